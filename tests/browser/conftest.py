"""A headless Chromium for the tests of the pages; they are skipped by name where there is none, or no driver for it."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

WIDE, NARROW = (1280, 900), (400, 800)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser (a Selenium WebDriver), one for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[browser]'")
    places = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in places:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = places[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(places[1]))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium) -> Iterator[Any]:
    """The browser with a wide window; a test fails where a script of a page has."""
    resize(chromium, WIDE)
    chromium.get_log("browser")
    yield chromium
    errors = [entry["message"] for entry in chromium.get_log("browser") if entry["source"] == "javascript"]
    chromium.get("about:blank")  # a page that is left behind would hold its files
    assert not errors


def resize(driver: Any, size: tuple[int, int]) -> None:
    """Give the page a window of (width, height) pixels."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
