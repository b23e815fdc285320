"""A real server with the demo, its gateway, and a headless Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from launcher.triton.server import TritonServer
from support.e2e.gateway import running_gateway
from support.e2e.page import ADAPTERS, names, open_page, until
from support.e2e.triton import demo_server

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1280,1000",
)  # fmt: skip


@pytest.fixture(scope="session")
def page_server() -> Iterator[TritonServer]:
    with demo_server() as server:
        yield server


@pytest.fixture(scope="session")
def page_url(page_server: TritonServer) -> Iterator[str]:
    with running_gateway(page_server) as url:
        yield url


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={_profile(tmp_path_factory)}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, Service(driver)) as chrome:
        yield chrome


@pytest.fixture
def page(browser: webdriver.Chrome, page_url: str) -> Iterator[webdriver.Chrome]:
    """Opened, with its adapters; nothing but refusals may be complained about in its console."""
    browser.get("about:blank")  # the page of another test may ask a server that has gone
    browser.get_log("browser")
    open_page(browser, page_url)
    until(browser, lambda: len(names(browser)) == len(ADAPTERS))
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    refused = ("status of 401", "status of 400", "status of 422")
    assert not [line for line in errors if not any(r in line["message"] for r in refused)], errors


def _profile(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("chromium")
