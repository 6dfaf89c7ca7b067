"""The bundles of the server: loaded when they are asked for, within a bound of memory; the least recently used is closed first.

Everything but loading and closing happens in the server's event loop, so nothing here is locked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from nnet_edge.bundle import Bundle, read_manifest
from nnet_edge.errors import ConfigError, NnetEdgeError
from nnet_edge.geometry import Geometry
from nnet_edge.runtime.runners.base import installed_kind, runner_class
from nnet_edge.runtime.serve.served import Listener, Served, ServedTally
from nnet_edge.runtime.stream.model import Model, choose_runnable, load_model
from nnet_edge.runtime.web.auth import Refusal
from nnet_edge.scoring import Threshold
from nnet_edge.settings.serve import ServeSettings

log = logging.getLogger(__name__)

MIB = 1 << 20
TIMES_ITS_GRAPH = 4  # memory that a bundle takes, before it was seen


def resident_bytes() -> int:
    """Memory of this process."""
    return int(psutil.Process().memory_info().rss)


class Models:
    """The server's bundles by name. `load` makes a model of a path; `resident` measures this process."""

    def __init__(
        self, settings: ServeSettings, listener: Listener,
        load: Callable[[Path], Model] | None = None, resident: Callable[[], int] = resident_bytes,
    ) -> None:  # fmt: skip
        self.settings, self._listener, self._resident = settings, listener, resident
        self._load_model = load or (lambda path: load_model(path, settings.runner, settings.precision))
        self.tallies = {name: ServedTally() for name in settings.bundles}
        self.errors: dict[str, str] = {}  # name -> why it could not be loaded the last time
        self._loaded: OrderedDict[str, Served] = OrderedDict()  # least recently used first
        self._uses: Counter[str] = Counter()  # requests that hold it
        self._changing = asyncio.Lock()  # one is loaded or closed at a time
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="bundles")
        if settings.runner.kind != "tensorrt":
            runner_class(installed_kind() if settings.runner.kind == "auto" else settings.runner.kind)
        self._base = resident()  # with the runner's library, without any bundle

    def path(self, name: str) -> Path:
        """The bundle of that name. Raises Refusal."""
        if name not in self.settings.bundles:
            raise Refusal(404, f"there is no model {name}: there are {', '.join(self.settings.bundles)}")
        return self.settings.bundles[name]

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of its input. Raises Refusal, BundleError."""
        served = self._loaded.get(name)
        geometry = served.model.geometry if served else Geometry.in_manifest(read_manifest(self.path(name)))
        return geometry.size

    def facts(self, name: str) -> dict[str, object]:
        """What its configuration says beside its ports; nothing is loaded. Raises Refusal, BundleError, MissingExtraError."""
        if (served := self._loaded.get(name)) is not None:
            known = served.model.facts()
            facts = {key: known[key] for key in ("bundle", "bundle_id", "precision", "runner")}
            return {"threshold": served.threshold, **facts}
        path = self.path(name)
        manifest = read_manifest(path)
        bundle = Bundle(path, manifest, Threshold.from_dict(manifest.get("threshold") or {}))
        artefact, runner, threshold = choose_runnable(bundle, self.settings.runner, self.settings.precision)
        threshold = self.settings.verdict.threshold or threshold
        return {"threshold": threshold, "bundle": bundle.name, "bundle_id": bundle.id, "precision": artefact.precision,
                "runner": runner}  # fmt: skip

    def loaded(self, name: str) -> Served | None:
        """The bundle where it is loaded."""
        return self._loaded.get(name)

    @property
    def used_bytes(self) -> int:
        """Memory of the process as far as bundles made it: that of the start, and what each loading took."""
        return self._base + sum(self.tallies[name].bytes for name in self._loaded)

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Served]:
        """The bundle, loaded where it must be, and kept until the block ends. Raises Refusal, and what `load_model` raises."""
        self.path(name)
        self._uses[name] += 1  # from now on: it is not closed between its loading and its use
        try:
            if name not in self._loaded:
                async with self._changing:
                    if name not in self._loaded:
                        await self._load(name)
            self._loaded.move_to_end(name)
            yield self._loaded[name]
        finally:
            self._uses[name] -= 1

    async def load_only(self) -> None:
        """Load the one bundle. Raises what `load_model` raises, ConfigError where it does not fit into the memory."""
        (name,) = self.settings.bundles
        try:
            await self._load(name)
        except Refusal as error:
            raise ConfigError(error.reason) from error

    async def unload(self, name: str) -> None:
        """Close the bundle. Raises Refusal for one that is in use."""
        self.path(name)
        async with self._changing:
            if self._uses[name]:
                raise Refusal(503, f"the model {name} is in use: ask again")
            if name in self._loaded:
                await self._close(name)

    async def close(self) -> None:
        """Close every bundle."""
        async with self._changing:
            for name in list(self._loaded):
                await self._close(name)
        self._worker.shutdown()

    async def _load(self, name: str) -> None:
        tally, path = self.tallies[name], self.settings.bundles[name]
        loop = asyncio.get_running_loop()
        await self._make_room(name, tally.bytes or TIMES_ITS_GRAPH * graph_bytes(path))
        before = self._resident()
        try:
            model = await loop.run_in_executor(self._worker, self._load_model, path)
        except NnetEdgeError as error:
            self.errors[name] = str(error)
            raise
        self.errors.pop(name, None)
        tally.loads += 1
        tally.bytes = max(tally.bytes, self._resident() - before, graph_bytes(path))
        verdict, queue = self.settings.verdict, self.settings.queue
        self._loaded[name] = Served(name, model, verdict, self._listener, queue, tally)
        log.info("%s is loaded, about %d MiB", name, tally.bytes // MIB)
        try:
            await self._make_room(name, 0)
        except Refusal:
            await self._close(name)
            raise

    async def _make_room(self, name: str, bytes_: int) -> None:
        """Close what was used longest ago until so much more fits. Raises Refusal when it does not."""
        bound = self.settings.memory_bytes
        while bound is not None and self.used_bytes + bytes_ > bound:
            others = [other for other in self._loaded if other != name]
            idle = [other for other in others if not self._uses[other]]
            if idle:
                await self._close(idle[0])
            elif others:
                raise Refusal(
                    503, f"the model {name} does not fit into --memory while {', '.join(others)} judge: ask again"
                )
            elif bytes_ and not self.tallies[name].bytes:
                return  # a guess alone refuses nothing
            else:
                needed = (self._base + self.tallies[name].bytes) // MIB + 1
                raise Refusal(
                    503, f"the model {name} needs {needed} MiB with the server itself: give --memory that much"
                )

    async def _close(self, name: str) -> None:
        served = self._loaded.pop(name)
        self.tallies[name].closed += 1
        await asyncio.get_running_loop().run_in_executor(self._worker, served.close)
        log.info("%s is closed", name)


def graph_bytes(path: Path) -> int:
    """The size of the largest graph in the bundle."""
    return max((file.stat().st_size for file in path.glob("*.onnx")), default=0)
