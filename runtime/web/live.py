"""Pictures sent to pages by WebSocket, each at the page's own speed and never queued. Knows no web library.

A page tells which streams it shows: {"views": [{"stream": "left", "overlay": true}, ...]}. Each picture is one message:
two bytes with the length of a JSON header (big endian), the header (stream, overlay, verdict), the JPEG.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nnet_edge.runtime.web.pictures import Picture, PictureMaker, View
from nnet_edge.settings.web import WebSettings

MOST_VIEWS = 64
SEND_LIMIT_S = 10.0  # a page that takes nothing for so long is gone
LARGEST_MESSAGE = 8192  # characters


@dataclass(frozen=True)
class Outlet:
    """One page: where its messages come from, and where its pictures go."""

    receive: Callable[[], Awaitable[str]]
    send: Callable[[bytes], Awaitable[None]]
    may_look: Callable[[], bool] = lambda: True  # False: its session has ended


class Broadcast:
    """Serves pages, a limited number at a time; belongs to one event loop."""

    def __init__(self, maker: PictureMaker, settings: WebSettings) -> None:
        self._maker, self._settings = maker, settings
        self.viewers = 0
        self.sent = 0

    async def serve(self, outlet: Outlet, gone: type[Exception]) -> None:
        """Send pictures until the page is gone, which raises `gone`.

        Raises RuntimeError when there are too many pages or the session has ended, ValueError for an invalid
        message, TimeoutError for a page that takes nothing.
        """
        if self.viewers >= self._settings.viewers:
            raise RuntimeError(f"{self.viewers} pages show pictures already: close one")
        self.viewers += 1
        wanted: dict[View, str] = {}  # -> the key of the picture that was sent last
        sending = asyncio.create_task(self._send(outlet, wanted))
        listening = asyncio.create_task(self._listen(outlet, wanted))
        try:
            await asyncio.wait((sending, listening), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.viewers -= 1
            for task in (sending, listening):
                task.cancel()
            found = await asyncio.gather(sending, listening, return_exceptions=True)
            for view in wanted:
                self._maker.unwatch(view)
        for error in found:
            if isinstance(error, Exception) and not isinstance(error, (gone, asyncio.CancelledError, ConnectionError)):
                raise error

    async def _listen(self, outlet: Outlet, wanted: dict[View, str]) -> None:
        while True:
            views = views_of(await outlet.receive())
            for view in wanted.keys() - views:
                del wanted[view]
                self._maker.unwatch(view)
            for view in views - wanted.keys():
                wanted[view] = ""
                self._maker.watch(view)

    async def _send(self, outlet: Outlet, wanted: dict[View, str]) -> None:
        while True:
            if not outlet.may_look():
                raise RuntimeError("the session has ended: log in again")
            for view, key in list(wanted.items()):
                picture = self._maker.picture(view)
                if picture is None or picture.key == key or view not in wanted:
                    continue
                wanted[view] = picture.key
                await asyncio.wait_for(outlet.send(message_of(view, picture)), SEND_LIMIT_S)
                self.sent += 1
            await asyncio.sleep(0.5 / self._settings.picture_hz)


def message_of(view: View, picture: Picture) -> bytes:
    """A picture with its header, as a page reads it."""
    header = json.dumps({"stream": view.stream, "overlay": view.has_overlay, "verdict": picture.verdict}).encode()
    return len(header).to_bytes(2, "big") + header + picture.jpeg


def views_of(text: str) -> set[View]:
    """The views that a page shows. Raises ValueError for an invalid message."""
    if len(text) > LARGEST_MESSAGE:
        raise ValueError("the message is too long")
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        views = json.loads(text)["views"]
        if isinstance(views, list) and len(views) <= MOST_VIEWS:
            return {View(str(view["stream"]), bool(view["overlay"])) for view in views}
    raise ValueError(f"a message must be views, a list of at most {MOST_VIEWS}, each with stream and overlay")
