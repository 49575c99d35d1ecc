"""What the tests of the pages do in a browser: wait, look, click, type; and clips that it can play."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 30.0  # of a busy machine; nothing waits so long where all is well


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of ``condition``."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except Exception as error:  # an element that has just been drawn anew
            what = f"{what} ({type(error).__name__})"
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {PATIENCE_S:g} s")


def every(driver: Any, selector: str) -> list:
    """The visible elements of a CSS selector."""
    return [element for element in driver.find_elements("css selector", selector) if element.is_displayed()]


def texts(driver: Any, selector: str) -> list[str]:
    """Their texts."""
    return [element.text for element in every(driver, selector)]


def put(driver: Any, name: str, value: str) -> None:
    """Give a field of the page a value, as a user does who types or chooses it."""
    code = "const f = document.getElementById(arguments[0]); f.value = arguments[1];"
    driver.execute_script(f"{code} f.dispatchEvent(new Event('input', {{bubbles: true}}));", name, value)


def click_at(driver: Any, element: Any, part: float) -> None:
    """Click at a part of an element's width, 0 to 1."""
    from selenium.webdriver import ActionChains

    aside = round((part - 0.5) * element.size["width"])
    ActionChains(driver).move_to_element_with_offset(element, aside, 0).click().perform()


def second(driver: Any) -> float:
    """Where the player is."""
    return driver.execute_script("return document.querySelector('video').currentTime")


def keys(driver: Any, *pressed: str) -> None:
    """Press keys, one after the other, where the focus is."""
    for key in pressed:
        driver.switch_to.active_element.send_keys(key)


def write_webm(path: Path, length_s: int = 10) -> None:
    """A small clip in VP8, which every build of Chromium plays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = f"testsrc=size=64x48:rate=4:duration={length_s}"
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, "-c:v", "libvpx", "-g", "4", str(path)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("ffmpeg is not installed, which makes the clips")
