"""Headless Chromium, spoken to over a pipe in its DevTools protocol: no driver, no port, no library beside it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_LIMIT = 60  # seconds that an answer may take
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--disable-extensions", "--remote-debugging-pipe"),
)


@contextmanager
def browser(folder):
    """Start Chromium with a profile in an empty folder and give it; end it afterwards."""
    ours_to_read, its_to_write = os.pipe()
    its_to_read, ours_to_write = os.pipe()
    given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (its_to_read, its_to_write)]  # apart from 3 and 4
    for end in (its_to_read, its_to_write):
        os.close(end)
    command = f'exec "$@" 3<&{given[0]} 4>&{given[1]}'  # the two that it speaks through
    with open(folder / "chromium.log", "wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            pass_fds=given,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    for end in given:
        os.close(end)
    try:
        yield Browser(ours_to_read, ours_to_write)
    finally:
        os.close(ours_to_write)  # it ends by itself when nobody speaks to it any more
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_to_read)


class Browser:
    """What is said to it and what it says."""

    def __init__(self, source, sink):
        self.source, self.sink, self.count, self.rest = source, sink, 0, b""
        self.events = []

    def ask(self, method, session=None, **params):
        """Call a method of the protocol; events that come meanwhile are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        text = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while text:
            text = text[os.write(self.sink, text) :]
        while (answer := self._next()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def wait(self, method, session):
        """Wait for an event."""
        while not any(e["method"] == method and e.get("sessionId") == session for e in self.events):
            self.events.append(self._next())

    def _next(self):
        end = time.monotonic() + _LIMIT
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.source], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"Chromium does not answer within {_LIMIT} s"
            read = os.read(self.source, 1 << 20)
            assert read, "Chromium ended"
            self.rest += read
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    @contextmanager
    def page(self, path, width=1200, scheme="light"):
        """Open a file in a window of this width, for a reader of that colour scheme."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        try:
            yield Page(self, session, path, width, scheme)
        finally:
            self.ask("Target.closeTarget", targetId=target)


class Page:
    """An open page, all that it asked for and complained of."""

    def __init__(self, browser, session, path, width, scheme):
        self.browser, self.session = browser, session
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.address = path.absolute().as_uri()
        self.ask("Page.navigate", url=self.address)
        browser.wait("Page.loadEventFired", session)

    def ask(self, method, **params):
        return self.browser.ask(method, self.session, **params)

    def run(self, script):
        """Evaluate an expression and give its value."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def said(self, *methods):
        """Events of these kinds."""
        return [
            e["params"] for e in self.browser.events if e.get("sessionId") == self.session and e["method"] in methods
        ]

    @property
    def complaints(self):
        """What the console has to say, and what was thrown."""
        return self.said("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")

    @property
    def requests(self):
        """Addresses that were asked for, the page's own left out."""
        found = [event["request"]["url"] for event in self.said("Network.requestWillBeSent")]
        return [address for address in found if address != self.address]

    def click(self, selector):
        """Press the mouse in the middle of an element, wherever it is."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', inline: 'center'});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key):
        """Press a key: Tab, Enter or a space."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}[key]
        for kind in ("keyDown", "keyUp"):
            given = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **given)

    def screenshot(self, whole=False):
        """Give what is seen, or all of the page, as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
