"""The page in a real browser, before a real server: the table, the playground, the buttons."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from gateway_tools import ADMIN_KEY

SECONDS = 20
ADAPTERS = {"sql", "upper", "reverse", "digits", "json", "rot13", "emoji"}
ANSWERS = {"upper": "HELLO WORLD", "rot13": "uryyb jbeyq", "reverse": "world hello"}
# Answers the list of adapters with a thousand of them.
MANY = """
const real = window.fetch;
window.fetch = async (path, options) => {
  const answer = await real(path, options);
  if (path !== '/adapters') return answer;
  const told = await answer.json();
  const one = told.adapters[0];
  told.adapters = Array.from({length: 1000}, (_, i) =>
    ({...one, id: `team-${i % 7}/adapter-${String(i).padStart(4, '0')}`, tokens: i}));
  return new Response(JSON.stringify(told));
};
"""


@pytest.fixture
def page(browser: Chrome, page_url: str) -> Iterator[Chrome]:
    browser.get(page_url)
    browser.execute_script("sessionStorage.clear()")
    browser.get(page_url)
    until(browser, lambda: len(names(browser)) == len(ADAPTERS))
    yield browser
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not [line for line in errors if "status of 401" not in line["message"]], errors


def until(browser: Chrome, condition: Any) -> None:
    WebDriverWait(browser, SECONDS, 0.05).until(lambda _: condition())


def names(browser: Chrome) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#rows tr td:first-child')].map(e => e.innerText)"
    )
    return browser.execute_script(script)


def message(browser: Chrome) -> str:
    return browser.find_element(By.ID, "message").text


def press(browser: Chrome, label: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f"[aria-label='{label}']").click()


def answers(browser: Chrome) -> dict[str, str]:
    return {
        article.get_attribute("data-adapter") or "": article.find_element(By.TAG_NAME, "pre").text
        for article in browser.find_elements(By.TAG_NAME, "article")
    }


def test_it_lists_the_adapters(page: Chrome) -> None:
    assert set(names(page)) == ADAPTERS
    assert names(page) == sorted(ADAPTERS)
    page.find_element(By.CSS_SELECTOR, "[data-key=id] button").click()
    assert names(page) == sorted(ADAPTERS, reverse=True)
    page.find_element(By.ID, "filter").send_keys("R")
    assert set(names(page)) == {"upper", "reverse", "rot13"}
    assert page.find_element(By.ID, "count").text == "3 of 7"


def test_three_adapters_side_by_side(page: Chrome) -> None:
    for name in ANSWERS:
        page.find_element(By.ID, "choose").send_keys(name)
        page.find_element(By.ID, "add").click()
    page.find_element(By.ID, "run").click()
    expected = {"(base model)": "hello world", **ANSWERS}
    until(page, lambda: answers(page) == expected)
    facts = page.find_element(By.CSS_SELECTOR, "article footer")
    until(page, lambda: "first token" in facts.text and "tokens/s" in facts.text)


def test_the_keyboard_is_enough(page: Chrome) -> None:
    choose = page.find_element(By.ID, "choose")
    choose.send_keys("upper", Keys.ENTER)
    prompt = page.find_element(By.ID, "prompt")
    prompt.clear()
    prompt.send_keys("hello world", Keys.CONTROL, Keys.ENTER)
    until(page, lambda: answers(page).get("upper") == "HELLO WORLD")


def test_an_unknown_adapter_is_told_in_its_place(page: Chrome) -> None:
    page.find_element(By.ID, "choose").send_keys("<b>nobody", Keys.ENTER)
    page.find_element(By.ID, "run").click()
    script = "return document.querySelector('[data-adapter=\"<b>nobody\"] footer').innerText"
    until(page, lambda: "is not known" in page.execute_script(script))
    until(page, lambda: answers(page)["(base model)"] == "hello world")


def test_unload_and_load(page: Chrome) -> None:
    press(page, "Unload rot13")
    until(page, lambda: "the admin key is needed" in message(page))
    page.find_element(By.ID, "admin-key").send_keys(ADMIN_KEY)
    source = page.execute_script(
        "return fetch('/adapters').then(a => a.json())"
        ".then(t => t.adapters.find(e => e.id === 'rot13').source)"
    )
    press(page, "Unload rot13")
    until(page, lambda: "unload rot13: done" in message(page))
    until(page, lambda: "rot13" not in names(page))
    page.find_element(By.ID, "load-id").send_keys("rot13")
    page.find_element(By.ID, "load-source").send_keys(source, Keys.ENTER)
    until(page, lambda: "rot13" in names(page))
    press(page, "Pin rot13")
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, "[aria-label='Unpin rot13']"))


def test_a_thousand_adapters(page: Chrome, page_url: str) -> None:
    """Few rows at a time, and nothing is built anew by the polls."""
    page.execute_cdp_cmd("Page.enable", {})
    hook = page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": MANY})
    try:
        page.get(page_url)
        until(page, lambda: page.find_element(By.ID, "count").text == "1000")
        assert len(names(page)) == 200
        first = page.find_element(By.CSS_SELECTOR, "#rows tr")
        page.find_element(By.ID, "more").click()
        assert len(names(page)) == 400
        first.find_element(By.TAG_NAME, "td")  # raises if the row was replaced
        page.find_element(By.ID, "filter").send_keys("team-3/")
        assert {name.split("/")[0] for name in names(page)} == {"team-3"}
    finally:
        page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", hook)


def test_light_and_dark(page: Chrome, tmp_path: Path) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        script = "return getComputedStyle(document.body).backgroundColor"
        colours.add(page.execute_script(script))
        assert page.save_screenshot(str(tmp_path / f"{scheme}.png"))
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(colours) == 2, json.dumps(sorted(colours))
