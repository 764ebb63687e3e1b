"""A real Chromium for tests, by its DevTools protocol over two pipes: no port, no library, keys as from a keyboard."""

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120.0  # seconds without a word, after which a browser is taken for dead
KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "), "Escape": (27, "")}
# Chromium reads its third file and writes its fourth.
START = """import fcntl, os, sys
for new, old in enumerate([fcntl.fcntl(int(word), fcntl.F_DUPFD, 10) for word in sys.argv[1:3]], 3):
    os.dup2(old, new)
os.execv(sys.argv[3], sys.argv[3:])"""
ERRORS = ("Runtime.exceptionThrown", "Log.entryAdded")


class Browser:
    """Chromium without a window; commands and what happened go through two pipes, each message ended by a zero byte."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._numbers = itertools.count(1)
        self._text = b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **words: Any) -> dict[str, Any]:
        """One command and its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": words, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            pass
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def event(self, method: str, **words: Any) -> dict[str, Any]:
        """The first event of a name that says these words; waits for it."""
        for at in itertools.count():
            while at >= len(self.events):
                self._next()
            one = self.events[at]
            if one["method"] == method and words.items() <= one["params"].items():
                return one
        raise AssertionError

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._text:
            assert select.select([self._back], [], [], PATIENCE)[0], "the browser says nothing"
            read = os.read(self._back, 1 << 20)
            assert read, "the browser has ended"
            self._text += read
        line, _, self._text = self._text.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, address: str, width: int = 1280, height: int = 900) -> "Tab":
        """A page once it is loaded, in a window of this size; below 500 pixels a phone's."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        tab.call("Page.navigate", url=address)
        tab.until(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")
        return tab

    def download_to(self, folder: Path) -> None:
        """Where what is saved comes to lie; `event("Browser.downloadProgress", state="completed")` waits for it."""
        self.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder.resolve()), eventsEnabled=True
        )


class Tab:
    """One open page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **words: Any) -> dict[str, Any]:
        """See `Browser.call`."""
        return self._browser.call(method, self._session, **words)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript; of a promise, what it comes to."""
        words = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", expression=script, **words)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression of JavaScript is true."""
        self.run(
            f"new Promise(done => {{ const look = () => (({condition}) ? done() : setTimeout(look, 10)); look(); }})"
        )

    def press(self, *keys: str) -> None:
        """Keys of a keyboard, one after the other."""
        for key in keys:
            code, text = KEYS[key]
            words = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **words)
            self.call("Input.dispatchKeyEvent", type="keyUp", **words)

    def tab_to(self, condition: str, most: int = 100) -> None:
        """Press Tab until the element with the focus, `at`, fulfils an expression of JavaScript."""
        for _ in range(most):
            self.press("Tab")
            if self.run(f"(at => Boolean({condition}))(document.activeElement)"):
                return
        raise AssertionError(f"not reached by Tab: {condition}")

    def errors(self) -> list[Any]:
        """What went wrong on its console."""
        mine = [one for one in self._browser.events if one.get("sessionId") == self._session]
        return [one["params"] for one in mine if one["method"] in ERRORS]


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser that ends with the block.

    Args:
        profile: an empty folder for what it keeps.
    """
    there, to = os.pipe()
    back, from_it = os.pipe()
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             f"--user-data-dir={profile}", "--remote-debugging-pipe"]  # fmt: skip
    start = [sys.executable, "-c", START, str(there), str(from_it), *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(start, pass_fds=(there, from_it), **quiet) as process:
        os.close(there)
        os.close(from_it)
        try:
            yield Browser(to, back)
        finally:
            process.terminate()
            os.close(to)
            os.close(back)
