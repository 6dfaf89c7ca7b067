"""A real line with its real page on loopback, and a real browser; pictures are grey with one brighter square."""

from __future__ import annotations

import http.client
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.kept import LineChanges, state_path_of
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.report import LineReport
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.runtime.web.server import WebServer
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.line import read_toml
from nnet_edge.settings.stream import BufferSettings, LineStream
from nnet_edge.settings.web import DriftSettings, WebSettings
from tests.asking import ask

HEIGHT, WIDTH = 240, 320
SQUARE = (slice(60, 140), slice(30, 110))  # rows and columns of the brighter square: in the left half
BRIGHT = 153  # 0.6 of white: what BrightnessRunner's map has there
THRESHOLD = 0.8  # above it: a good part


def pictures(brightness: int = BRIGHT) -> Iterator[np.ndarray]:
    """Grey pictures, uint8 BGR (240, 320, 3), with the square and a dark line that wanders through the right half."""
    number = 0
    while True:
        picture = np.full((HEIGHT, WIDTH, 3), 76, np.uint8)
        picture[SQUARE] = brightness
        picture[:, 170 + 2 * (number % 70)] = 20
        number += 1
        yield picture


@dataclass
class Site:
    """A line that runs, and its page."""

    line: Line
    server: WebServer
    reports: list[LineReport] = field(default_factory=list)

    def ask(
        self,
        path: str,
        fields: Any = None,
        headers: dict[str, str] | None = None,
        method: str | None = None,
        body: bytes | None = None,
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, content (JSON where it is) and headers of one answer; `fields` are posted as JSON."""
        body = json.dumps(fields).encode() if fields is not None else body
        kind = {"content-type": "application/json"} if body is not None else {}
        method = method or ("GET" if body is None else "POST")
        return ask(self.server.port, path, method, body, kind | (headers or {}), 10)

    @property
    def live(self) -> str:
        """The address of the pictures."""
        return f"ws://127.0.0.1:{self.server.port}/live"

    def session(self) -> dict[str, str]:
        """The headers of a page that was opened: its cookie and its CSRF token."""
        _, _, headers = self.ask("/")
        cookie = (headers.get("set-cookie") or "").partition(";")[0]
        _, found, _ = self.ask("/api/session", headers={"cookie": cookie})
        return {"cookie": cookie, "x-csrf-token": found["csrf"]}


Serve = Callable[..., AbstractContextManager[Site]]


@pytest.fixture
def keeps(tmp_path: Path) -> Callable[[Line], LineChanges]:
    """A function that keeps what differs from a settings file of the line that `serve` makes."""
    file = tmp_path / "line.toml"
    file.write_text('bundle = "part"\n[web]\n[[stream]]\nname = "left"\ncamera.address = "synthetic"  # the left one\n')

    def keep(line: Line) -> LineChanges:
        kept = LineChanges(state_path_of(file), read_toml(file), file.name, tmp_path, file=file)
        kept.follow(line)
        return kept

    return keep


@pytest.fixture
def serve(make_runner: Callable[..., Any]) -> Serve:
    """A function that serves a line with one stream, `left`, as long as its block runs; every frame is accounted for."""

    @contextmanager
    def serving(settings: WebSettings | None = None, drift: DriftSettings | None = None, **more: Any) -> Iterator[Site]:
        path, keeps = more.pop("path", None), more.pop("keeps", None)
        rate_hz, brightness = more.pop("rate_hz", 20.0), more.pop("brightness", BRIGHT)
        manifest, buffer = more.pop("manifest", {}), more.pop("buffer", BufferSettings())
        model = more.pop("model", None) or Model("parts", path, make_runner(), THRESHOLD, manifest=manifest)
        left = LineStream("left", CameraSettings("synthetic"), buffer, trigger=more.pop("trigger", None))
        is_triggered = left.trigger is not None
        line = Line(model, keep_open=True, **more)
        line.add_source(left, SyntheticSource(pictures(brightness), rate_hz))
        stop = threading.Event()
        kept = None if keeps is None else keeps(line)
        with WebServer(line, settings or WebSettings(port=0), drift, kept) as server:
            site = Site(line, server)
            thread = threading.Thread(target=lambda: site.reports.append(run_line(line, stop)))
            thread.start()
            try:
                until(lambda: line.latest("left") is not None or (is_triggered and line.streams()[0].counts.captured))
                yield site
            finally:
                stop.set()
                thread.join(10)
        (report,) = site.reports
        assert report.total.is_balanced
        assert report.total.queued == 0

    return serving


def until(is_so: Callable[[], object], limit_s: float = 10.0) -> None:
    """Wait until it is so; fail when it is not within the limit."""
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.fixture(name="pictures")
def pictures_fixture() -> Callable[..., Iterator[np.ndarray]]:
    """The function `pictures`."""
    return pictures


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., None]:
    """The function `until`."""
    return until


@pytest.fixture(scope="session")
def browser_module() -> ModuleType:
    """tests/runtime/web/browser.py; skips where there is no Chromium."""
    path = Path(__file__).with_name("browser.py")
    spec = importlib.util.spec_from_file_location("nnet_edge_test_browser", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    return module


@pytest.fixture
def browser(browser_module: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium."""
    with browser_module.Browser(tmp_path / "profile") as browser:
        yield browser
