"""The inference server's addresses: the Open Inference Protocol, and a picture that becomes a verdict.

GET  /v2   /v2/health/live|ready   /v2/models   /v2/models/stats   /metrics
GET  /v2/models/NAME[/versions/1][/ready|config|stats]
POST /v2/models/NAME[/versions/1]/infer   tensors, as JSON or binary
POST /v2/models/NAME/judge[?name=FILE]    the bytes of a picture -> its verdict, as `stream --json` writes it
POST /v2/repository/index   /v2/repository/models/NAME/load|unload

Bodies and what waits are bounded; an error is one sentence, with the status that says whose fault it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from nnet_edge.bits import depth_of, kept_bits, to_8_bit
from nnet_edge.errors import BundleError, DataError, MissingExtraError, NnetEdgeError
from nnet_edge.geometry import Geometry
from nnet_edge.image_files import decode
from nnet_edge.imaging import resize
from nnet_edge.machine import usable_cores
from nnet_edge.runtime.serve import protocol
from nnet_edge.runtime.serve.metrics import Metrics
from nnet_edge.runtime.serve.models import Models
from nnet_edge.runtime.serve.served import Judged, Served
from nnet_edge.runtime.sinks.fields import to_fields
from nnet_edge.runtime.web.app import Door, JSONAnswer, framework_answer, peer_of, sentence, unexpected
from nnet_edge.runtime.web.auth import Auth, Refusal
from nnet_edge.settings.serve import ServeSettings
from nnet_edge.text import printable

BODY_LIMIT_S = 30.0
ANSWER_LIMIT_S = 50.0  # for everything behind the body, a loading too
HELD = 16  # times the largest body that all bodies together may take
DISCARDED = 4  # times the largest body that is read and thrown away, so that the answer is heard
LONGEST_NAME = 200  # of a file
Handler = Callable[[Request], Awaitable[Response]]


class Inference:
    """The handlers of the addresses, and what they answer from."""

    def __init__(self, settings: ServeSettings, models: Models, metrics: Metrics, auth: Auth) -> None:
        self.settings, self.models, self.metrics, self.auth = settings, models, metrics, auth
        self.is_draining = False
        self._in_hand = 0  # images of requests that are not answered yet
        self._held = 0  # bytes of their bodies
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decoder")

    def app(self) -> ASGIApp:
        of_model = [
            ("", self.metadata, "GET"), ("/ready", self.model_ready, "GET"), ("/config", self.config, "GET"),
            ("/stats", self.stats, "GET"), ("/infer", self.infer, "POST"), ("/judge", self.judge, "POST"),
        ]  # fmt: skip
        routes = [
            Route("/v2", self._answered(self.server)),
            Route("/v2/health/live", self._answered(self.live, is_open=True)),
            Route("/v2/health/ready", self._answered(self.ready, is_open=True)),
            Route("/v2/models", self._answered(self.list_models)),
            Route("/v2/models/stats", self._answered(self.all_stats)),
            Route("/v2/repository/index", self._answered(self.index), methods=["POST"]),
            Route("/v2/repository/models/{name}/{action}", self._answered(self.change), methods=["POST"]),
            Route("/metrics", self._answered(self.exposition)),
        ]
        for start in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(start + end, self._answered(handler), methods=[method]) for end, handler, method in of_model
            ]
        application = Starlette(exception_handlers={HTTPException: framework_answer}, routes=routes)
        application.router.redirect_slashes = False
        return Door(application, self.auth)

    def _answered(self, handler: Handler, is_open: bool = False) -> Handler:
        """The handler for who may ask, with its errors as one sentence."""

        async def answer(request: Request) -> Response:
            try:
                self._check(request, is_open)
                found = await handler(request)
            except Refusal as error:
                found = sentence(error.status, error.reason)
                if error.status == 503:
                    found.headers["retry-after"] = "1"
            except NnetEdgeError as error:
                found = sentence(503 if isinstance(error, BundleError | MissingExtraError) else 500, str(error))
            except ClientDisconnect:
                found = sentence(400, "the body was cut off")
            except Exception as error:
                found = unexpected(request.url.path, error)
            name = request.path_params.get("name", "")
            if request.method == "POST":
                known = name if name in self.settings.bundles else ""
                self.metrics.answered(known, request.url.path.rpartition("/")[2], found.status_code)
            return found

        return answer

    def _check(self, request: Request, is_open: bool) -> None:
        """Raise Refusal for who may not ask, and for a version that no model has."""
        if not is_open:
            caller = self.auth.caller(request.headers, None, peer_of(request))
            refusal = caller if isinstance(caller, Refusal) else self.auth.origin_refused(request.headers)
            if refusal is not None:
                raise refusal
        if self.is_draining and request.method == "POST":
            raise Refusal(503, "the server is stopping")
        if (version := request.path_params.get("version", protocol.VERSION)) != protocol.VERSION:
            raise Refusal(404, f"the model has no version {version}: there is {protocol.VERSION}")

    # ---- what there is

    async def server(self, request: Request) -> Response:
        return JSONAnswer(protocol.SERVER)

    async def live(self, request: Request) -> Response:
        return JSONAnswer({"live": True})

    async def ready(self, request: Request) -> Response:
        """200 while requests are taken."""
        return JSONAnswer({"ready": not self.is_draining}, status_code=503 if self.is_draining else 200)

    async def list_models(self, request: Request) -> Response:
        return JSONAnswer({"models": [{"name": name} for name in self.settings.bundles]})

    async def metadata(self, request: Request) -> Response:
        name = request.path_params["name"]
        return JSONAnswer(protocol.metadata(name, self.models.size(name)))

    async def model_ready(self, request: Request) -> Response:
        """200 for a bundle that is loaded, or will be once it is asked for; 503 where its last loading failed."""
        name = request.path_params["name"]
        self.models.path(name)
        if name in self.models.errors or self.is_draining:
            raise Refusal(503, self.models.errors.get(name, "the server is stopping"))
        return JSONAnswer({"name": name, "ready": True})

    async def config(self, request: Request) -> Response:
        name = request.path_params["name"]
        batch = self.settings.runner.max_batch
        return JSONAnswer(protocol.config(name, self.models.size(name), batch, self.models.facts(name)))

    async def stats(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.models.path(name)
        return JSONAnswer({"model_stats": [self._stats(name)]})

    async def all_stats(self, request: Request) -> Response:
        return JSONAnswer({"model_stats": [self._stats(name) for name in self.settings.bundles]})

    def _stats(self, name: str) -> dict[str, Any]:
        tally = self.models.tallies[name]
        stages = {"success": "total", "queue": "queue", "compute_input": "resize", "compute_infer": "inference",
                  "compute_output": "verdict"}  # fmt: skip
        counts: dict[str, Any] = {word: (tally.verdicts, tally.stages[stage]) for word, stage in stages.items()}
        counts |= {"fail": (tally.failed, 0), "last_ms": round(1e3 * tally.last_s)}
        batches = {size: (count, tally.batch_ns[size]) for size, count in dict(tally.batches).items()}
        return protocol.statistics(name, counts, batches)

    async def exposition(self, request: Request) -> Response:
        text, kind = self.metrics.exposition()
        return Response(text, headers={"content-type": kind})

    async def index(self, request: Request) -> Response:
        """Every bundle, and whether it is loaded."""
        found = []
        for name in self.settings.bundles:
            state = "READY" if self.models.loaded(name) else "UNAVAILABLE"
            reason = self.models.errors.get(name, "" if state == "READY" else "it is loaded when it is asked for")
            found.append({"name": name, "version": protocol.VERSION, "state": state, "reason": reason})
        return JSONAnswer(found)

    async def change(self, request: Request) -> Response:
        """Load a bundle, or close it."""
        name, action = request.path_params["name"], request.path_params["action"]
        if action == "unload":
            await self.models.unload(name)
        elif action == "load":
            async with self.models.use(name):
                pass
        else:
            raise Refusal(404, f"a model has no action {action}: choose load, unload")
        return JSONAnswer({})

    # ---- verdicts

    async def infer(self, request: Request) -> Response:
        """Tensors in, tensors out."""
        name = request.path_params["name"]
        self.models.path(name)
        if "content-encoding" in request.headers:
            raise Refusal(415, "the body is compressed: send it as it is")
        with self._admitted(1):
            async with self._body(request) as body:
                size, length = self.models.size(name), request.headers.get(protocol.HEADER_LENGTH)
                asked = await self._in_thread(protocol.read_request, body, length, size)
                if len(asked.images) > self.settings.queue:
                    raise Refusal(413, f"a request may have {self.settings.queue} images: send fewer, or give --queue")
                with self._admitted(len(asked.images) - 1):
                    async with self.models.use(name) as served:
                        found = await self._wait([served.judge(image, size) for image in asked.images])
                        content, json_length = await self._in_thread(protocol.answer, name, asked, arrays_of(found))
        headers = {"content-type": "application/json" if json_length is None else "application/octet-stream"}
        if json_length is not None:
            headers[protocol.HEADER_LENGTH] = str(json_length)
        return Response(content, headers=headers)

    async def judge(self, request: Request) -> Response:
        """The verdict of the picture in the body."""
        name, file = request.path_params["name"], request.query_params.get("name", "")[:LONGEST_NAME] or None
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise Refusal(415, "the body is a form: send the picture alone, as curl --data-binary @part.jpg does")
        self.models.path(name)
        with self._admitted(1):
            async with self._body(request) as body, self.models.use(name) as served:
                image, size = await self._in_thread(self._to_input, served, body)
                (found,) = await self._wait([served.judge(image, size, file)])
        return JSONAnswer(to_fields(found.prediction))

    def _to_input(self, served: Served, body: bytes) -> tuple[np.ndarray, tuple[int, int]]:
        """The picture as the runner takes it, and its height and width. Raises Refusal."""
        geometry: Geometry = served.model.geometry
        try:
            picture = decode(body)
            pixels = picture.pixels
            if pixels.dtype == np.uint16:
                said = self.settings.bits or kept_bits(served.model.manifest)
                pixels = to_8_bit(pixels, depth_of(int(pixels.max()), picture.bits, said).bits)
            return resize(pixels, geometry), (pixels.shape[0], pixels.shape[1])
        except MemoryError as error:
            raise Refusal(413, "the picture is too large for this machine's memory: crop or shrink it") from error
        except Exception as error:  # on damaged bytes Pillow raises a dozen types
            told = str(error) if isinstance(error, DataError) else f"it cannot be decoded ({error})"
            raise Refusal(400, f"the body is no picture that can be judged: {printable(told)}") from error

    @contextmanager
    def _admitted(self, images: int) -> Iterator[None]:
        """Room for so many more images. Raises Refusal when there is none."""
        if self._in_hand + images > self.settings.queue:
            raise Refusal(503, f"{self._in_hand} images wait already: ask again, or ask more slowly")
        self._in_hand += images
        try:
            yield
        finally:
            self._in_hand -= images

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body, within its bounds and those of all bodies together. Raises Refusal."""
        largest = self.settings.body_bytes
        too_large = Refusal(413, f"the body has more than {largest:,} bytes: shrink the picture, or give --body-limit")
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said[:18]) > largest and "expect" in request.headers:
            raise too_large  # nothing of it was sent yet
        body, size = bytearray(), 0

        async def read() -> None:
            nonlocal size
            async for part in request.stream():
                size += len(part)
                if size > DISCARDED * largest:
                    return
                if size <= largest:
                    body.extend(part)
                    self._held += len(part)
                else:
                    self._held -= len(body)
                    body.clear()
                if self._held > HELD * largest:
                    raise Refusal(503, "the bodies of other requests fill the memory for them: ask again")

        try:
            try:
                await asyncio.wait_for(read(), BODY_LIMIT_S)
            except asyncio.TimeoutError as error:
                raise Refusal(408, f"the body did not come within {BODY_LIMIT_S:g} s") from error
            if size > largest:
                raise too_large
            if not size:
                raise Refusal(400, "the body is empty")
            yield bytes(body)
        finally:
            self._held -= len(body)

    async def _in_thread(self, work: Callable[..., Any], *values: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, *values)

    async def _wait(self, futures: list[Future[Judged]]) -> list[Judged]:
        """What comes of all of them. Raises Refusal when it takes too long, and what the first raised."""
        gathered = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        try:
            found = await asyncio.wait_for(gathered, ANSWER_LIMIT_S)
        except asyncio.TimeoutError as error:
            raise Refusal(504, f"there was no verdict within {ANSWER_LIMIT_S:g} s") from error
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return [one for one in found if isinstance(one, Judged)]

    async def close(self) -> None:
        """Close the bundles; no request is under way."""
        with suppress(RuntimeError):
            await self.models.close()
        self._decoders.shutdown(wait=False)


def arrays_of(found: list[Judged]) -> dict[str, np.ndarray]:
    """The outputs of the protocol."""
    return {
        "image_score": np.array([one.prediction.image_score for one in found], np.float32),
        "is_anomalous": np.array([one.prediction.is_anomalous for one in found], np.bool_),
        "anomaly_map": np.stack([one.anomaly_map for one in found])[:, np.newaxis].astype(np.float32, copy=False),
    }
