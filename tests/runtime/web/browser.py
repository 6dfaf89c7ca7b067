"""A headless Chromium, driven by its DevTools protocol over one WebSocket; nothing of it is simulated."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_LIMIT_S, ANSWER_LIMIT_S = 30.0, 20.0
STILL_S = 0.1  # an element that is where it was so long before stands still
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
         "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--no-default-browser-check", "--disable-sync", "--remote-debugging-port=0")  # fmt: skip


class Browser:
    """One page of a browser, from `with` to its end."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        self._folder, self._size = folder, (width, height)
        self._numbers = count(1)
        self.complaints: list[str] = []  # exceptions and errors that the page's console saw

    def __enter__(self) -> Browser:
        assert CHROMIUM is not None
        self._process = subprocess.Popen(
            [
                CHROMIUM,
                *QUIET,
                f"--user-data-dir={self._folder}",
                f"--window-size={self._size[0]},{self._size[1]}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            told = wait_for(lambda: self._told(), START_LIMIT_S, "Chromium to say where it listens")
            with urllib.request.urlopen(f"http://127.0.0.1:{told}/json/list", timeout=ANSWER_LIMIT_S) as answer:
                address = next(tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page")
            self._connection = connect(address, max_size=None, open_timeout=ANSWER_LIMIT_S)
            self._socket = self._connection.__enter__()
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self._end_process()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.__exit__(None, None, None)
        self._end_process()

    def _told(self) -> str | None:
        file = self._folder / "DevToolsActivePort"
        text = file.read_text() if file.exists() else ""
        return text.splitlines()[0] if "\n" in text else None

    def _end_process(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # the group that it was started in: its own children only
        self._process.wait(10)

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        """The answer to one command of the protocol."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": fields}))
        limit_s = time.monotonic() + ANSWER_LIMIT_S
        while True:
            message = json.loads(self._socket.recv(max(0.1, limit_s - time.monotonic())))
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(message["params"]["exceptionDetails"])[:500])
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            entry = message["params"]["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
        elif message.get("method") == "Page.javascriptDialogOpening":
            number = next(self._numbers)
            fields = {"id": number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._socket.send(json.dumps(fields))

    def open(self, address: str) -> None:
        """Go to a page and wait until it has loaded."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, script: str) -> Any:
        """What an expression of JavaScript gives, promises awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, limit_s: float = 15.0) -> Any:
        """The first value of the expression that is true."""
        return wait_for(lambda: self.value(script), limit_s, script)

    def click(self, selector: str) -> None:
        """Press the middle of the element with the mouse."""
        x, y = self.place(selector, 0.5, 0.5)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw with the mouse from one share of the element to another."""
        (x, y), (u, v) = self.place(selector, *start), self.place(selector, *end)
        self.mouse("mousePressed", x, y)
        for step in range(1, 5):
            self.mouse("mouseMoved", x + (u - x) * step / 4, y + (v - y) * step / 4)
        self.mouse("mouseReleased", u, v)

    def place(self, selector: str, across: float, down: float) -> tuple[float, float]:
        """A point of the element in the window, scrolled into view, once it has stopped moving: a page that fills moves it."""
        script = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        seen: list[Any] = [self.value(script)]

        def rests() -> bool:
            time.sleep(STILL_S)
            seen.append(self.value(script))
            return bool(seen[-1] == seen[-2])

        wait_for(rests, ANSWER_LIMIT_S, f"{selector} to stand still")
        x, y, width, height = seen[-1]
        return x + across * width, y + down * height

    def mouse(self, kind: str, x: float, y: float) -> None:
        """One event of the mouse."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def write_text(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, path: Path, whole: bool = True) -> None:
        """Save the page as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


def wait_for(look: Callable[[], Any], limit_s: float, what: str) -> Any:
    """The first thing that `look` gives which is true; AssertionError after `limit_s`."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {limit_s:g} s in vain for {what}")
