"""How the page looks in a real browser: its colours, and in narrow windows."""

import json
from pathlib import Path

from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

from support.e2e.page import choose, footer, message, until


def test_light_and_dark(page: Chrome, tmp_path: Path) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        script = "return getComputedStyle(document.body).backgroundColor"
        colours.add(page.execute_script(script))
        assert page.save_screenshot(str(tmp_path / f"{scheme}.png"))
    assert len(colours) == 2, json.dumps(sorted(colours))


def narrow(page: Chrome, width: int) -> None:
    size = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    until(page, lambda: page.execute_script("return innerWidth") == width)


def overhang(page: Chrome) -> int:
    """Pixels by which the page is wider than the window."""
    return page.execute_script("return document.documentElement.scrollWidth - innerWidth")


def test_a_narrow_window_scrolls_only_the_table(page: Chrome) -> None:
    narrow(page, 360)
    assert overhang(page) <= 0


def test_a_long_word_is_broken(page: Chrome) -> None:
    """In the chosen names, above and below an answer, in the message and beside the title."""
    name = "x" * 200
    narrow(page, 500)
    choose(page, name)
    assert overhang(page) <= 0
    page.find_element(By.ID, "run").click()
    until(page, lambda: name[:50] in footer(page, name))
    assert overhang(page) <= 0
    page.find_element(By.ID, "load-id").send_keys(name, Keys.ENTER)
    until(page, lambda: message(page).startswith(f"load {name}: the admin key is needed"))
    assert overhang(page) <= 0
    page.execute_script("document.getElementById('base').textContent = arguments[0]", name)
    assert overhang(page) <= 0
