"""What a person does with the page and sees on it, for its tests."""

from typing import Any

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SECONDS = 20
ADAPTERS = {"sql", "upper", "reverse", "digits", "json", "rot13", "emoji"}


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


def footer(browser: Chrome, name: str) -> str:
    """What is said below an answer."""
    script = f"return document.querySelector('[data-adapter=\"{name}\"] footer').innerText"
    return browser.execute_script(script)


def write(browser: Chrome, prompt: str) -> None:
    field = browser.find_element(By.ID, "prompt")
    field.clear()
    field.send_keys(prompt)


def choose(browser: Chrome, *adapters: str) -> None:
    for name in adapters:
        browser.find_element(By.ID, "choose").send_keys(name)
        browser.find_element(By.ID, "add").click()


def open_page(browser: Chrome, url: str) -> None:
    """As if for the first time."""
    browser.get(url)
    browser.execute_script("sessionStorage.clear()")
    browser.get(url)
