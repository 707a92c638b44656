"""A real browser without a network: opens a page, clicks, types, prints, and tells what went wrong."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MISSING = "no chromium and chromedriver: pages are NOT opened in a browser. Install them: make browser"


OUTSIDE = """
return [...document.querySelectorAll(".plot")].flatMap((plot) => {
  const frame = plot.getBoundingClientRect();
  return [...plot.querySelectorAll("text")].filter((text) => {
    const box = text.getBoundingClientRect();
    return box.width && !text.closest(".hoverlayer, .modebar") && (box.left < frame.left - 1
      || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1);
  }).map((text) => `${plot.id}: ${text.textContent}`);
});
"""
OVERLAPPING = """
const boxes = (plot, selector) => [...plot.querySelectorAll(selector)].filter((text) => !/rotate/.test(
  text.getAttribute("transform") || "") || /rotate\\(0/.test(text.getAttribute("transform")))
  .map((text) => [text.textContent, text.getBoundingClientRect()]);
const meet = (one, other) => one.left < other.right - 1 && other.left < one.right - 1
  && one.top < other.bottom - 1 && other.top < one.bottom - 1;
return [...document.querySelectorAll(".plot")].flatMap((plot) => [".xtick text", ".ytick text", ".legendtext"].flatMap(
  (selector) => boxes(plot, selector).flatMap(([text, box], number, all) => all.slice(number + 1)
    .filter(([, other]) => meet(box, other)).map(([other]) => `${plot.id}: ${text} / ${other}`)
    .concat(selector === ".legendtext" && meet(box, plot.querySelector(".nsewdrag").getBoundingClientRect())
      ? [`${plot.id}: legend over data`] : []))));
"""


class Browser:
    """One window. Every request it made is kept, and every message of its console."""

    def __init__(self, downloads: Path) -> None:
        from selenium.webdriver import Chrome, ChromeOptions, ChromeService

        self.downloads = downloads
        options = ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
            options.add_argument(f"--{flag}")
        # A name is never resolved and an address never reached but this machine's, whatever a page asks for.
        options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        options.add_argument("--proxy-server=127.0.0.1:9")
        # A mouse, which a window without a screen does not have.
        options.add_argument("--blink-settings=primaryHoverType=2,availableHoverTypes=2")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = ChromeService(shutil.which("chromedriver"), env={**os.environ, "NO_PROXY": "127.0.0.1,localhost"})
        self.driver = Chrome(options, service)

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Open a page in a window of so many CSS pixels and wait until its plots are drawn."""
        self.visit(path.absolute().as_uri(), width, height)
        self.wait(lambda: self.run("return document.body.dataset.drawn"))

    def visit(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Open an address in a window of so many CSS pixels."""
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # of the page before
        self.resize(width, height)
        self.driver.get(address)

    def resize(self, width: int, height: int) -> None:
        """Make the window so many CSS pixels wide and high."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    def wait(self, reached: Callable[[], Any]) -> None:
        """Wait until something is so; TimeoutException after a minute."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: reached())

    def run(self, script: str, *values: Any) -> Any:
        """What a script returns, run in the page."""
        return self.driver.execute_script(script, *values)

    def find(self, selector: str) -> list[Any]:
        """The elements a CSS selector finds."""
        from selenium.webdriver.common.by import By

        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def messages(self) -> list[str]:
        """Warnings and errors of the console since the page was opened."""
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] in ("WARNING", "SEVERE")]

    def requests(self) -> list[str]:
        """Every address asked for since the page was opened, but for data within the page itself."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "blob:"))]

    def crowded(self) -> list[str]:
        """Labels of plots that are cut, lie over one another or, of a legend, over the data."""
        return [*self.run(OUTSIDE), *self.run(OVERLAPPING)]

    def screenshot(self) -> bytes:
        """The whole page, beyond the window too, as PNG."""
        answer = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
        return base64.b64decode(answer["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        options = {"preferCSSPageSize": True, "printBackground": True}
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.printToPDF", options)["data"])


@contextmanager
def browser(downloads: Path) -> Iterator[Browser]:
    """A browser, closed at the end; where there is none the test is skipped, and fails under CI."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    window = Browser(downloads)
    try:
        yield window
    finally:
        window.driver.quit()
