"""Keys on the page: what needs one, a wrong one, and changing adapters with the right one."""

from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

from launcher.triton.server import TritonServer
from support.e2e.gateway import ADMIN_KEY, running_gateway
from support.e2e.page import ADAPTERS, answers, footer, message, names, open_page, press, until

SOURCE = (
    "return fetch('/adapters').then(a => a.json())"
    ".then(t => t.adapters.find(e => e.id === arguments[0]).source)"
)


def test_unload_and_load(page: Chrome) -> None:
    press(page, "Unload rot13")
    until(page, lambda: "the admin key is needed" in message(page))
    page.find_element(By.ID, "admin-key").send_keys("wrong")
    press(page, "Load rot13")
    until(page, lambda: message(page).startswith("load rot13: the admin key is needed"))
    page.find_element(By.ID, "admin-key").clear()
    page.find_element(By.ID, "admin-key").send_keys(ADMIN_KEY)
    source = page.execute_script(SOURCE, "rot13")
    press(page, "Unload rot13")
    until(page, lambda: "unload rot13: done" in message(page))
    until(page, lambda: "rot13" not in names(page))
    page.find_element(By.ID, "load-id").send_keys("rot13")
    page.find_element(By.ID, "load-source").send_keys(source, Keys.ENTER)
    until(page, lambda: "rot13" in names(page))
    press(page, "Pin rot13")
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, "[aria-label='Unpin rot13']"))
    assert "pinned" in row(page, "rot13")
    press(page, "Unpin rot13")
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, "[aria-label='Pin rot13']"))


def row(page: Chrome, name: str) -> str:
    script = (
        "return [...document.querySelectorAll('#rows tr')]"
        ".find(r => r.cells[0].innerText === arguments[0])?.innerText ?? ''"
    )
    return page.execute_script(script, name)


def test_a_load_that_is_refused_says_why(page: Chrome) -> None:
    page.find_element(By.ID, "admin-key").send_keys(ADMIN_KEY)
    page.find_element(By.ID, "load-id").send_keys("foreign")
    page.find_element(By.ID, "load-source").send_keys("/nowhere/foreign", Keys.ENTER)
    until(page, lambda: "--adapter-allow" in message(page))
    assert set(names(page)) == ADAPTERS


def test_an_api_key_is_asked_for(browser: Chrome, page_server: TritonServer) -> None:
    with running_gateway(page_server, "--api-key", "tenant:upper") as url:
        open_page(browser, url)
        needed = "a valid API key is needed; type it at the top"
        until(browser, lambda: message(browser) == f"adapters: {needed}")
        browser.find_element(By.ID, "run").click()
        until(browser, lambda: footer(browser, "(base model)") == needed)
        browser.find_element(By.ID, "api-key").send_keys("tenant")
        until(browser, lambda: names(browser) == ["upper"])
        until(browser, lambda: not message(browser))
        browser.find_element(By.ID, "choose").send_keys("upper", Keys.ENTER)
        browser.find_element(By.ID, "run").click()
        until(browser, lambda: answers(browser).get("upper") == "HELLO WORLD")
    browser.get_log("browser")


def test_without_an_admin_key_nothing_can_be_pressed(
    browser: Chrome, page_server: TritonServer
) -> None:
    with running_gateway(page_server, ADMIN_KEY="") as url:
        open_page(browser, url)
        until(browser, lambda: len(names(browser)) == len(ADAPTERS))
        buttons = browser.find_elements(By.CSS_SELECTOR, "#rows button, #load button")
        assert len(buttons) == 3 * len(ADAPTERS) + 1
        assert not any(button.is_enabled() for button in buttons)
        assert "--admin-key" in (buttons[0].get_attribute("title") or "")
