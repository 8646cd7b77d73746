"""A real browser without a screen: Chromium, by its driver (W3C WebDriver), of which a few calls are enough."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]


class Browser:
    """One window."""

    def __init__(self, url: str) -> None:
        self._url = url
        options = {"goog:chromeOptions": {"args": _OPTIONS}}
        self._url += (
            f"/session/{self.call('POST', '/session', {'capabilities': {'alwaysMatch': options}})['sessionId']}"
        )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return what the driver answers; raises on its errors."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def show(self, url: str, width: int = 1280) -> None:
        """Load a page, on a screen of so many pixels."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})
        self.call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns; a promise is awaited."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def choose(self, selector: str, path: str) -> None:
        """Give a file to the field of a file."""
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        (element,) = found.values()
        self.call("POST", f"/element/{element}/value", {"text": path})


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start one; the test is skipped where there is none."""
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    with subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            started = (re.search(r"started successfully on port (\d+)", line) for line in process.stdout)
            port = next(found[1] for found in started if found)
            browser = Browser(f"http://127.0.0.1:{port}")
            try:
                yield browser
            finally:
                browser.call("DELETE", "")
        finally:
            process.terminate()
