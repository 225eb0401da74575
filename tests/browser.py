"""A real browser for the tests of pages, which holds every error and every request against them."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
)  # fmt: skip


class Page:
    """One open page; every wait ends when the page has drawn again."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver = driver
        start = time.monotonic()
        driver.get(path.as_uri())
        self.wait(lambda: self.js("return document.body.dataset.drawn"))
        self.seconds = time.monotonic() - start

    def js(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def wait(self, ready: Callable[[], object]) -> None:
        end = time.monotonic() + 30
        while not ready():
            assert time.monotonic() < end, self.driver.get_log("browser")
            time.sleep(0.02)

    def act(self, action: Callable[[], object]) -> None:
        """Do something and wait until the page has drawn the consequence."""
        before = self.js("return Number(document.body.dataset.drawn)")
        action()
        self.wait(lambda: self.js("return Number(document.body.dataset.drawn)") > before)

    def choose(self, selector: str, value: str) -> None:
        self.act(
            lambda: self.js(
                "const e = document.querySelector(arguments[0]); e.value = arguments[1]; "
                "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change'))",
                selector,
                value,
            )
        )

    def column(self, place: int) -> list[str]:
        return self.texts(f"#heads tbody td:nth-child({place})")

    def problems(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call, other than the page, data in it, and the browser's own first tab."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome:"))]


def started(profile: Path) -> Any:
    """A running headless Chromium; ModuleNotFoundError without selenium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
