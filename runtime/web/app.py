"""The page's HTTP and WebSocket addresses: who may ask, and the answers.

GET  /                                  the page, or the form for the token
GET  /healthz  /readyz  /metrics        for machines
POST /login  /logout
GET  /api/session  /api/state?after=N   numbers of the line; scores above number N
GET  /api/rejects  /api/rejects/KEY/thumbnail|overlay|original
POST /api/streams  /api/streams/NAME/threshold|adapt|regions|pause|resume|remove|trigger  /api/swap  /api/changes/write|forget
GET  /history  /teach                   the pages of the shift, and for teaching
GET  /api/teach  /api/teach/pictures|differences/N;  POST /api/teach/start|stop|remove|train|cancel|compare|swap|discard
GET  /api/history?since=&until=&stream=   its sums;  /api/history/parts?only=  /api/history/parts/ROW[/PICTURE]
POST /api/history/parts/ROW/label  /api/rejects/KEY/label   what somebody says of a part; operators may too
WS   /live                              pictures of the streams that the page shows

Bodies are read within bounds; an error is one sentence; every answer has safe headers, the framework's own included.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import MissingExtraError, NnetEdgeError
from nnet_edge.runtime.history.queries import utc
from nnet_edge.runtime.texts import TABLE
from nnet_edge.runtime.web.auth import ENGINEER, OPERATOR, Auth, Caller, Refusal
from nnet_edge.runtime.web.controls import Controls
from nnet_edge.runtime.web.gallery import Gallery
from nnet_edge.runtime.web.live import Broadcast, Outlet
from nnet_edge.runtime.web.shift import PICTURES, Shift
from nnet_edge.runtime.web.state import Health, alive, line_state, ready, reject_state
from nnet_edge.runtime.web.teach import Teach
from nnet_edge.settings.reader import require_plain

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ImportError as missing:
    raise MissingExtraError("starlette is not installed: pip install 'nnet-edge[web]'") from missing

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.line import Line

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "common.js", "labels.js", "board.js", "page.js", "card.js", "chart.js", "panels.js", "regions.js", "history.js", "teach.js",
    "login.js",
)  # fmt: skip
PAGES = {"history": "history.html", "teach": "teach.html"}
STATIC_FILES = {"page.css": "text/css", "icon.svg": "image/svg+xml"} | dict.fromkeys(SCRIPTS, "text/javascript")
KINDS = {"thumbnail": "jpg", "overlay": "jpg", "original": "png"}
Handler = Callable[[Request], Awaitable[Response]]
LARGEST_BODY = 64 * 1024  # bytes: 32 polygons of 256 corners are less
BODY_LIMIT_S = 10.0
MOST_ROWS = (1 << 63) - 1  # of SQLite
SAFE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class JSONAnswer(JSONResponse):
    """An answer as JSON; text that UTF-8 cannot hold, of a file name for one, is written as JSON's escape."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return text.encode(errors="backslashreplace")


def health_answer(health: Health, may_know_why: bool) -> Response:
    """The answer that tells a health."""
    fields = {"status": "ok" if health.is_good else "unavailable"}
    reasons = {"reasons": list(health.reasons)} if may_know_why else {}
    return JSONAnswer(fields | reasons, status_code=200 if health.is_good else 503)


def sentence(status: int, text: str) -> Response:
    """The answer that tells an error in one sentence."""
    return JSONAnswer({"error": " ".join(text.split())}, status_code=status)


def number_of(text: str | None) -> int:
    """A whole number from 0 on; 0 for anything else."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 18 else 0


def row_of(request: Request) -> int:
    """The row of the history in the address; a larger number than SQLite has is that of no row either."""
    return min(int(request.path_params["row"]), MOST_ROWS)


async def body_of(request: Request) -> Mapping[str, Any]:
    """The JSON object in the body, of at most LARGEST_BODY bytes. Raises Refusal."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "send JSON, and say so: content-type: application/json")
    body = bytearray()

    async def read() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > LARGEST_BODY:
                raise Refusal(413, f"the body has more than {LARGEST_BODY} bytes")

    try:
        await asyncio.wait_for(read(), BODY_LIMIT_S)
        fields = json.loads(bytes(body) or b"{}")
        require_plain(fields, "the body")
    except asyncio.TimeoutError as error:
        raise Refusal(408, f"the body did not come within {BODY_LIMIT_S:g} s") from error
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not JSON") from error
    if not isinstance(fields, dict):
        raise Refusal(400, "the body is not a JSON object")
    return fields


def peer_of(asked: Request | WebSocket) -> str:
    """The address of the other end; nothing when it is gone already."""
    return "" if asked.client is None else asked.client.host


def unexpected(path: str, error: Exception) -> Response:
    """The answer to a request that broke, which must cost the line nothing: one line in its log."""
    log.error("the page broke at %r: %s: %r", path[:200], type(error).__name__, str(error)[:200])
    log.debug("where it broke", exc_info=error)
    return sentence(500, f"unexpected: {type(error).__name__}; the log of the line says more, please report it")


async def framework_answer(request: Request, error: Exception) -> Response:
    """The framework's own answers, such as 404 and 405, as one sentence."""
    assert isinstance(error, HTTPException)
    answer = sentence(error.status_code, f"{error.detail}: there is no {request.method} for this address")
    answer.headers.update(error.headers or {})
    return answer


class Door:
    """What every request by HTTP passes: the check of its host name, safe headers, no error that reaches the server."""

    def __init__(self, app: ASGIApp, auth: Auth) -> None:
        self._app, self._auth = app, auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # pictures check for themselves, before they accept
            return
        is_begun = False

        async def send_safely(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                MutableHeaders(scope=message).update(SAFE_HEADERS)
            await send(message)

        refusal = self._auth.host_refused(Headers(scope=scope))
        try:
            answer = self._app if refusal is None else sentence(refusal.status, refusal.reason)
            await answer(scope, receive, send_safely)
        except Exception as error:
            broken = unexpected(scope["path"], error)
            if not is_begun:
                await broken(scope, receive, send_safely)


@dataclass(frozen=True)
class Page:
    """The handlers of the addresses, and what they answer from."""

    line: Line
    gallery: Gallery
    auth: Auth
    controls: Controls
    broadcast: Broadcast
    exposition: Callable[[], tuple[bytes, str]]
    cookie: str  # its name: pages on two ports of one machine must not share it
    is_behind_tls: bool
    is_ended: Callable[[], bool]
    shift: Shift
    teach: Teach

    def app(self) -> ASGIApp:
        application = Starlette(
            exception_handlers={HTTPException: framework_answer},
            routes=[
                Route("/", self._open(self.index)),
                Route("/history", self._open(self.index)),
                Route("/teach", self._open(self.index)),
                Route("/api/teach", self._read(self.teaching)),
                Route("/api/teach/{action}", self._write(self.act_teach), methods=["POST"]),
                Route("/api/teach/{kind}/{number:int}", self._read(self.teach_picture)),
                Route("/static/texts.json", self._open(self.texts)),
                Route("/static/{name}", self._open(self.static)),
                Route("/healthz", self._open(self.healthz)),
                Route("/readyz", self._open(self.readyz)),
                Route("/metrics", self._read(self.metrics)),
                Route("/login", self._open(self.log_in), methods=["POST"]),
                Route("/logout", self._write(self.log_out, OPERATOR), methods=["POST"]),
                Route("/api/session", self._read(self.session)),
                Route("/api/state", self._read(self.state)),
                Route("/api/rejects", self._read(self.rejects)),
                Route("/api/rejects/{key}/{kind}", self._read(self.reject)),
                Route("/api/rejects/{key}/label", self._write(self.label_reject, OPERATOR), methods=["POST"]),
                Route("/api/history", self._read(self.history)),
                Route("/api/history/report", self._read(self.report)),
                Route("/api/history/parts", self._read(self.parts)),
                Route("/api/history/parts/{row:int}", self._read(self.part)),
                Route("/api/history/parts/{row:int}/label", self._write(self.label, OPERATOR), methods=["POST"]),
                Route("/api/history/parts/{row:int}/{kind}", self._read(self.part_picture)),
                Route("/api/streams", self._write(self.add_stream), methods=["POST"]),
                Route("/api/streams/{name}/{action}", self._write(self.act), methods=["POST"]),
                Route("/api/swap", self._write(self.swap), methods=["POST"]),
                Route("/api/changes/{action}", self._write(self.change), methods=["POST"]),
                WebSocketRoute("/live", self.live),
            ],
        )
        application.router.redirect_slashes = False
        return Door(application, self.auth)

    # ---- who may ask

    def _open(self, handler: Handler) -> Handler:
        """The handler with its errors as one sentence."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Refusal as error:
                return sentence(error.status, error.reason)
            except NnetEdgeError as error:
                return sentence(400, str(error))
            except Exception as error:
                return unexpected(request.url.path, error)

        return answer

    def _read(self, handler: Handler) -> Handler:

        async def answer(request: Request) -> Response:
            self._caller(request)
            return await handler(request)

        return self._open(answer)

    def _write(self, handler: Handler, role: str = ENGINEER) -> Handler:

        async def answer(request: Request) -> Response:
            if (refusal := self.auth.write_refused(self._caller(request), request.headers, role)) is not None:
                raise refusal
            return await handler(request)

        return self._open(answer)

    def _caller(self, request: Request) -> Caller:
        found = self._asks(request)
        if isinstance(found, Refusal):
            raise found
        return found

    def _asks(self, asked: Request | WebSocket) -> Caller | Refusal:
        return self.auth.caller(asked.headers, asked.cookies.get(self.cookie), peer_of(asked))

    # ---- pages

    async def index(self, request: Request) -> Response:
        """The page for a session, the form for the token otherwise; without a token a session begins by itself."""
        found = self._asks(request)
        if isinstance(found, Refusal):
            return FileResponse(STATIC / "login.html", media_type="text/html")
        name = PAGES.get(request.url.path.rpartition("/")[2], "index.html")
        response = FileResponse(STATIC / name, media_type="text/html")
        if found.session is None and not self.auth.needs_token:
            session = self.auth.log_in(None)
            assert isinstance(session, str)
            return self._with_cookie(response, session)
        return response

    async def static(self, request: Request) -> Response:
        """One of the page's own files."""
        name = request.path_params["name"]
        if name not in STATIC_FILES:
            return sentence(404, "there is no such file")
        return FileResponse(STATIC / name, media_type=STATIC_FILES[name])

    async def texts(self, request: Request) -> Response:
        """The page's texts in every language."""
        return FileResponse(TABLE, media_type="application/json")

    async def log_in(self, request: Request) -> Response:
        """Open a session with the token."""
        if (refusal := self.auth.origin_refused(request.headers)) is not None:
            raise refusal
        token = (await body_of(request)).get("token")
        session = self.auth.log_in(token if isinstance(token, str) else None, request.headers, peer_of(request))
        if isinstance(session, Refusal):
            raise session
        return self._with_cookie(JSONAnswer({}), session)

    async def log_out(self, request: Request) -> Response:
        self.auth.log_out(request.cookies.get(self.cookie, ""))
        response = JSONAnswer({})
        response.delete_cookie(self.cookie)
        return response

    def _with_cookie(self, response: Response, session: str) -> Response:
        response.set_cookie(self.cookie, session, httponly=True, samesite="strict", secure=self.is_behind_tls)
        return response

    # ---- numbers

    async def healthz(self, request: Request) -> Response:
        """200 while the line works, 503 with the reason when it has ended or its runner hangs."""
        return health_answer(alive(self.line, self.is_ended()), True)

    async def readyz(self, request: Request) -> Response:
        """200 while verdicts are to be expected, else 503; the reasons only for callers that may read."""
        found = self._asks(request)
        return health_answer(ready(self.line, self.is_ended()), not isinstance(found, Refusal))

    async def metrics(self, request: Request) -> Response:
        """Everything for Prometheus."""
        text, kind = await run_in_threadpool(self.exposition)
        return Response(text, headers={"content-type": kind})

    async def session(self, request: Request) -> Response:
        """The token that the page's writes carry, and the sources that it may add."""
        caller = self._caller(request)
        session = caller.session
        token = None if session is None else self.auth.csrf_token(session)
        sources = self.controls.addable()
        facts = {"role": caller.role, "keeps_history": self.shift.is_kept, "can_teach": self.teach.is_possible}
        return JSONAnswer({"csrf": token, "needs_token": self.auth.needs_token, "sources": sources} | facts)

    async def state(self, request: Request) -> Response:
        """The whole line, and the scores that are new to the page."""
        return await run_in_threadpool(self._state, number_of(request.query_params.get("after")))

    def _state(self, after: int) -> Response:
        found = line_state(self.line, self.gallery)
        rows = {
            name: [[item.number, item.score, int(item.is_anomalous), item.crop] for item in kept]
            for name, kept in self.gallery.scores(after).items()
        }
        newest = next((reject.key for reject in self.gallery.rejects()), None)
        controls: dict[str, object] = {"swap": self.controls.swap_state(), "bundles": self.controls.bundles()}
        controls |= {"recipe": self.line.recipe, "recipes": list(self.line.recipes()), "shift": self.shift.counts()}
        controls |= {"judging": self.controls.judging(), "changes": self.controls.changes()}
        return JSONAnswer(found | {"scores": rows, "newest_reject": newest} | controls)

    async def rejects(self, request: Request) -> Response:
        """The gallery's list, newest first."""
        found = self.gallery.rejects(request.query_params.get("stream"))
        return JSONAnswer([reject_state(reject) for reject in found])

    async def reject(self, request: Request) -> Response:
        """One picture of a reject; ?download names the file."""
        kind = request.path_params["kind"]
        found = self.gallery.reject(request.path_params["key"])
        if found is None or kind not in KINDS:
            return sentence(404, "there is no such picture any more")
        media = "image/png" if kind == "original" else "image/jpeg"
        response = Response(getattr(found, kind), media_type=media)
        if "download" in request.query_params:
            name = f"{found.fields['stream']}-{found.fields['index']}-{kind}.{KINDS[kind]}"
            response.headers["content-disposition"] = f'attachment; filename="{name}"'
        return response

    # ---- the shift

    async def history(self, request: Request) -> Response:
        """The sums of a time; without `since`, of this shift."""
        window = self.shift.window(request.query_params)
        return JSONAnswer(await run_in_threadpool(self.shift.sums, window))

    async def parts(self, request: Request) -> Response:
        """The newest parts of a time."""
        asked = request.query_params
        window, only, limit = self.shift.window(asked), asked.get("only", "rejects"), number_of(asked.get("limit"))
        return JSONAnswer(await run_in_threadpool(self.shift.parts, window, only, limit))

    async def part(self, request: Request) -> Response:
        return JSONAnswer(await run_in_threadpool(self.shift.part, row_of(request)))

    async def part_picture(self, request: Request) -> Response:
        """One picture of a part; ?download names the file."""
        row, kind = row_of(request), request.path_params["kind"]
        found = await run_in_threadpool(self.shift.picture, row, kind) if kind in PICTURES else None
        if found is None:
            return sentence(404, "there is no such picture any more")
        response = Response(found, media_type="image/png" if PICTURES[kind] == "png" else "image/jpeg")
        if "download" in request.query_params:
            response.headers["content-disposition"] = f'attachment; filename="part-{row}-{kind}.{PICTURES[kind]}"'
        return response

    async def label(self, request: Request) -> Response:
        """Keep what somebody says of a part."""
        return JSONAnswer(await run_in_threadpool(self.shift.label, row_of(request), await body_of(request)))

    async def label_reject(self, request: Request) -> Response:
        """The same of a reject in the gallery; without a label, only the part that the history has of it."""
        row, fields = await run_in_threadpool(self.shift.row_of, request.path_params["key"]), await body_of(request)
        if fields:
            return JSONAnswer(await run_in_threadpool(self.shift.label, row, fields))
        return JSONAnswer(await run_in_threadpool(self.shift.part, row))

    async def report(self, request: Request) -> Response:
        """The report of a time, a file of its own: the page's own rules allow no style within a page."""
        asked = request.query_params
        window, language = self.shift.window(asked), asked.get("language") or "en"
        page = await run_in_threadpool(self.shift.report, window, language)
        name = f"shift-{utc(window.since)[:16].replace(':', '')}.html"
        answer = Response(page.encode(errors="backslashreplace"), media_type="text/html; charset=utf-8")
        answer.headers["content-disposition"] = f'attachment; filename="{name}"'
        return answer

    # ---- teaching

    async def teaching(self, request: Request) -> Response:
        """How far teaching is."""
        return JSONAnswer(await run_in_threadpool(self.teach.state))

    async def act_teach(self, request: Request) -> Response:
        action = request.path_params["action"]
        if action not in self.teach.actions:
            return sentence(404, f"teaching has no action {action}: choose {', '.join(self.teach.actions)}")
        fields, by = await body_of(request), self._who(request)
        return JSONAnswer(await run_in_threadpool(self.teach.act, action, fields, by))

    async def teach_picture(self, request: Request) -> Response:
        """A part that was collected, or one of which the bundles differ."""
        find = {"pictures": self.teach.picture, "differences": self.teach.difference}.get(request.path_params["kind"])
        found = None if find is None else await run_in_threadpool(find, request.path_params["number"])
        return (
            sentence(404, "there is no such picture any more")
            if found is None
            else Response(found, media_type="image/jpeg")
        )

    # ---- controls

    async def add_stream(self, request: Request) -> Response:
        await run_in_threadpool(self.controls.add, await body_of(request), self._who(request))
        return JSONAnswer({}, status_code=201)

    async def act(self, request: Request) -> Response:
        action = request.path_params["action"]
        if action not in self.controls.actions:
            return sentence(404, f"a stream has no action {action}: choose {', '.join(self.controls.actions)}")
        fields = await body_of(request)
        name, by = request.path_params["name"], self._who(request)
        return JSONAnswer(await run_in_threadpool(self.controls.act, name, action, fields, by))

    async def swap(self, request: Request) -> Response:
        """Begin to load another bundle."""
        await run_in_threadpool(self.controls.start_swap, await body_of(request), self._who(request))
        return JSONAnswer({"swap": self.controls.swap_state()}, status_code=202)

    async def change(self, request: Request) -> Response:
        """Write what differs from the settings file into it, or forget it."""
        action = request.path_params["action"]
        if action not in ("write", "forget"):
            return sentence(404, f"changes have no action {action}: choose write, forget")
        await run_in_threadpool(self.controls.change, action, self._who(request))
        return JSONAnswer({"changes": self.controls.changes()})

    def _who(self, request: Request) -> str:
        """Who asks, for the state file: the page or a program, and its address."""
        kind = "program" if self._caller(request).session is None else "page"
        return f"{kind} at {request.client.host if request.client else 'an unknown address'}"

    # ---- pictures

    async def live(self, socket: WebSocket) -> None:
        """Send pictures of the streams that the page shows."""
        auth, headers = self.auth, socket.headers
        refusal = auth.host_refused(headers) or auth.origin_refused(headers)
        caller = refusal or self._asks(socket)
        if isinstance(caller, Refusal):
            log.info("pictures were refused: %s", caller.reason)
            await socket.close(1008, caller.reason)  # before it is accepted: the answer is 403
            return
        await socket.accept()
        outlet = Outlet(socket.receive_text, socket.send_bytes, lambda: auth.is_still(caller))
        try:
            await self.broadcast.serve(outlet, WebSocketDisconnect)
        except asyncio.TimeoutError:
            log.info("a page took no picture for too long: its connection is dropped")
        except (ValueError, RuntimeError) as error:
            with suppress(RuntimeError):  # it was closed already
                await socket.close(1008, str(error)[:100])
