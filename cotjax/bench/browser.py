"""A headless Chromium, driven by its debugging protocol over a pipe: pages, keys, clicks, pictures.

No package is needed beside the browser (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from cotjax.errors import UsageError

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_WAIT_S = 60.0
# Name -> (code, key code, text) of keys that have no letter of their own.
_KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "End": ("End", 35, ""),
    " ": ("Space", 32, " "),
}


def find_chromium() -> str | None:
    """Return the path of a Chromium; None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """A running Chromium; a context manager that ends it.

    Raises:
      UsageError: there is no Chromium, or it does not start.
    """

    def __init__(self) -> None:
        program = find_chromium()
        if program is None:
            raise UsageError(
                "this needs Chromium, which is not installed (Debian: apt-get install chromium)"
            )
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        root = os.geteuid() == 0  # as which it has no sandbox
        command = [
            program, "--headless=new", "--remote-debugging-pipe", "--disable-gpu",
            "--no-first-run", "--disable-extensions", "--hide-scrollbars",
            f"--user-data-dir={self._profile.name}", *(["--no-sandbox"] if root else []),
        ]  # fmt: skip
        # The protocol's pipes are descriptors 3 and 4.
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._sent = b"", 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(UsageError):
            self.send("Browser.close")
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def page(self, width: int = 1400, height: int = 900, *, dark: bool = False) -> Page:
        """Open an empty page of this size, in pixels."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, width, height, dark)

    def send(self, method: str, session: str | None = None, /, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result.

        Raises:
          UsageError: the browser ended, or refuses the call.
        """
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        try:
            os.write(self._write, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise UsageError("Chromium ended") from None
        end = time.monotonic() + _WAIT_S
        while True:
            for answer in self._messages(end):
                if answer.get("id") != self._sent:
                    self._events.append(answer)
                elif "error" in answer:
                    raise UsageError(f"Chromium: {method}: {answer['error'].get('message')}")
                else:
                    return answer["result"]

    def take_events(self, session: str) -> list[dict[str, Any]]:
        """Return the events of a session since the last call."""
        mine = [event for event in self._events if event.get("sessionId") == session]
        self._events = [event for event in self._events if event.get("sessionId") != session]
        return mine

    def _messages(self, end: float) -> Iterator[dict[str, Any]]:
        """Yield the messages that arrive with the next bytes."""
        ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
        part = os.read(self._read, 1 << 20) if ready else b""
        if not part:
            raise UsageError("Chromium ended" if ready else "Chromium does not answer")
        *whole, self._buffer = (self._buffer + part).split(b"\0")
        yield from map(json.loads, whole)


class Page:
    """A page of a browser.

    Attributes:
      problems: uncaught errors, errors on the console and refused loads, so far.
      requests: addresses that were asked for, so far.
    """

    def __init__(self, browser: Browser, session: str, width: int, height: int, dark: bool):
        self._browser, self._session = browser, session
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def send(self, method: str, /, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol for this page."""
        result = self._browser.send(method, self._session, **params)
        for event in self._browser.take_events(self._session):
            self._note(event["method"], event["params"])
        return result

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window, in pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, url: str, ready: str) -> None:
        """Go to an address and wait until a JavaScript expression is true there."""
        self.send("Page.navigate", url=url)
        self.wait(ready)

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression. Raises UsageError where it throws."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise UsageError(f"JavaScript: {json.dumps(answer['exceptionDetails'])[:500]}")
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until a JavaScript expression is true. Raises UsageError where it never is."""
        end = time.monotonic() + _WAIT_S
        while not self.run(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise UsageError(f"still not true: {expression}; problems: {self.problems}")
            time.sleep(0.02)

    def key(self, name: str) -> None:
        """Press and release a key: a character, or a name such as "Enter"."""
        code, number, text = _KEYS.get(name, ("", ord(name[0].upper()), name))
        common = {"key": name, "code": code, "windowsVirtualKeyCode": number}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str) -> None:
        """Write a text into what has the focus."""
        self.send("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click with the mouse on the middle of the first element that a selector finds."""
        box = self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'nearest'}); const box = found.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )

    def picture(self, file: Path) -> None:
        """Write what is in sight as a PNG file."""
        shot = self.send("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(str(details.get("exception", details).get("description", details)))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.problems.append(json.dumps(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
