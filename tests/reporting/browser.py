"""A headless Chromium, controlled over a pipe by the DevTools protocol: pages as users see them."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--remote-debugging-pipe")  # fmt: skip


def find_chromium() -> str:
    """The program; skips the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return program or pytest.skip("there is no Chromium here; on Debian: apt-get install chromium")


class Browser:
    """One tab. `events` has what the protocol reported, `console` the errors and warnings of pages."""

    def __init__(self, profile: Path):
        to_read, self.to_write = os.pipe()
        self.from_read, from_write = os.pipe()

        def connect() -> None:  # Chromium reads from descriptor 3 and writes to 4
            high = [os.dup2(fd, 100 + n) for n, fd in enumerate((to_read, from_write))]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        arguments = [find_chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(arguments, preexec_fn=connect, close_fds=False, **quiet)
        os.close(to_read)
        os.close(from_write)
        self.replies, self.number, self.events, self.buffer = {}, 0, [], b""
        self.session = None
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        """The result of a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        while self.number not in self.replies:
            self._receive()
        reply = self.replies.pop(self.number)
        assert "error" not in reply, f"{method}: {reply}"
        return reply["result"]

    def _receive(self) -> None:
        part = os.read(self.from_read, 2**20)
        assert part, f"the browser ended with status {self.process.wait()}"
        *messages, self.buffer = (self.buffer + part).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self.replies[message["id"]] = message
            else:
                self.events.append(message)

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page and wait until it is there."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def evaluate(self, script: str):
        """The value of an expression of JavaScript, once it is there if it is a promise."""
        how = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        result = self.call("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    @property
    def problems(self) -> list[dict]:
        """Exceptions, errors and warnings since the page was opened."""
        names = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [event["params"] for event in self.events if event["method"] in names]

    @property
    def requests(self) -> list[str]:
        """What was fetched since the page was opened, but for data in the page itself."""
        sent = [event["params"]["request"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [request["url"] for request in sent if not request["url"].startswith("data:")]

    def screenshot(self, target: Path, whole: bool = True) -> None:
        """A PNG of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        target.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.to_write)
        os.close(self.from_read)
