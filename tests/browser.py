"""A headless Chromium for tests, driven through its DevTools protocol; no driver is needed."""

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tornado.ioloop import IOLoop
from tornado.websocket import WebSocketClientConnection, websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = float(os.environ.get("E2E_BROWSER_SECONDS", "120"))  # for one answer
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root in a container has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
# Every request of a page, its console, and what went wrong in it.
DOMAINS = ("Page", "Network", "Log", "Runtime")


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome; None where there is none. E2E_CHROMIUM names another."""
    named = os.environ.get("E2E_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One tab; collects requests and complaints of the page that it shows."""

    def __init__(self, connection: WebSocketClientConnection, loop: IOLoop) -> None:
        self.connection, self.loop = connection, loop
        self.number = 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.loaded = False

    def call(self, method: str, **parameters: object) -> dict:
        """Result of a DevTools method; events that come before it are noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.loop.run_sync(lambda: self.connection.write_message(json.dumps(message)), PATIENCE)
        while (answer := self.receive()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self) -> dict:
        """The next message; an event is noted."""
        message = json.loads(self.loop.run_sync(self.connection.read_message, PATIENCE))
        event, about = message.get("method"), message.get("params", {})
        if event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event == "Network.loadingFailed":
            self.complaints.append(f"not loaded: {about['errorText']}")
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.complaints.append(f"console: {about['args']}")
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(f"exception: {about['exceptionDetails']}")
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"log: {about['entry']['text']}")
        elif event == "Page.loadEventFired":
            self.loaded = True
        return message

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> Self:
        """Show a page in a window of that size, and wait until it is loaded."""
        self.requests, self.complaints, self.loaded = [], [], False
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)
        while not self.loaded:
            self.receive()
        return self

    def evaluate(self, expression: str) -> object:
        """Value of a JavaScript expression, a promise's included."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


@contextmanager
def chromium(path: str) -> Iterator[Tab]:
    """A tab of a new Chromium, which ends with the context."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        loop = IOLoop(make_current=False)
        try:
            address = tab_address(Path(profile) / "DevToolsActivePort", process)
            limit = 2**28  # the address of an embedded picture is long
            connection = loop.run_sync(
                lambda: websocket_connect(address, max_message_size=limit), PATIENCE
            )
            tab = Tab(connection, loop)
            for domain in DOMAINS:
                tab.call(f"{domain}.enable")
            yield tab
            connection.close()
        finally:
            process.terminate()
            process.wait()
            loop.close()


def tab_address(port_file: Path, process: subprocess.Popen) -> str:
    """Address of the first tab's websocket, as soon as the browser listens."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        if port_file.is_file() and (lines := port_file.read_text().split()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return tabs[0]["webSocketDebuggerUrl"]
        time.sleep(0.2)
    raise TimeoutError(f"the browser did not listen within {PATIENCE:g} s")
