"""Scoring of a fleet: pictures by fsspec URL, judged by actors that come and go with the work.

An actor judges chunk after chunk by the same line as `nnet-edge stream`, so its verdicts are the same. A chunk counts once all
its verdicts have arrived: what an actor that dies had begun is judged again by another, and nothing is counted twice.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnet_edge import __version__
from nnet_edge.cli.fleet.cluster import Cluster, WorkerLostError
from nnet_edge.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    NnetEdgeError,
    SourceError,
    StreamError,
    missing_library,
)
from nnet_edge.files import IMAGE_SUFFIXES
from nnet_edge.frame import Frame
from nnet_edge.runtime.sources.base import Source
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.text import printable

LOOK_EVERY_S = 1.0
IN_THIS_PROCESS = "memory"  # the protocol of files that no other process sees: their content travels


@dataclass(frozen=True)
class Picture:
    """One picture to judge."""

    index: int  # of the whole list
    stream: str
    name: str
    url: str
    content: bytes | None = None  # where an actor cannot read it itself


@dataclass(frozen=True)
class ScoreSettings:
    """How an actor judges."""

    bundle: Path
    runner: RunnerSettings
    precision: str | None = None
    threshold: float | None = None
    bits: int | None = None
    min_area: float = 0.0
    cpus: int = 1  # and threads, of each actor
    version: str = __version__


def list_pictures(urls: Sequence[str]) -> list[Picture]:
    """The pictures directly in each folder, in the natural order of their names, the named ones, and those that a * finds.

    Raises ConfigError, MissingExtraError for a protocol whose library is absent, SourceError for a folder without a picture.
    """
    from nnet_edge.runtime.sources.images import natural_order
    from nnet_edge.settings.stream import plain_name

    found: list[Picture] = []
    for url in urls:
        files, path = file_system(url)
        try:
            if "*" in path:
                paths = files.glob(path)
            else:
                paths = files.ls(path, detail=False) if files.isdir(path) else [path]
                if paths == [path] and not files.exists(path):
                    raise SourceError(f"{url} is not there: name a folder or a picture that is")
            paths = [one for one in paths if one.lower().endswith(IMAGE_SUFFIXES) and files.isfile(one)]
        except NnetEdgeError:
            raise
        except Exception as error:  # each protocol has its own
            raise SourceError(f"{url} cannot be listed ({words_of(error)})") from error
        if not paths:
            raise SourceError(f"{url} holds no image ({', '.join(IMAGE_SUFFIXES)}): name the folder that does")
        paths.sort(key=lambda one: natural_order(Path(one)))
        stream = plain_name(Path(path.partition("*")[0]).name if files.isdir(path) or "*" in path else Path(path).stem)
        for one in paths:
            content = files.cat_file(one) if IN_THIS_PROCESS in protocols(files) else None
            found.append(Picture(len(found), stream, Path(one).name, files.unstrip_protocol(one), content))
    return found


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of the URL, and the path in it. Raises ConfigError and MissingExtraError."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise missing_library("fsspec", "ray", error) from error
    try:
        files, path = url_to_fs(url)
    except ImportError as error:  # "Install s3fs to access S3"
        raise MissingExtraError(f"{url} needs a library that is not installed: {words_of(error)}") from error
    except Exception as error:
        raise ConfigError(f"{url} is no address that fsspec knows ({words_of(error)})") from error
    return files, path


def protocols(files: Any) -> tuple[str, ...]:
    """The names of a file system's protocol."""
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def words_of(error: Exception) -> str:
    """What a foreign error says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


class FetchedImages(Source):
    """Pictures of any address, decoded exactly as files are; one that cannot be read is passed over, and named in `faults`."""

    def __init__(self, pictures: Sequence[Picture], stream: str, is_deep_known: bool) -> None:
        super().__init__(stream)
        self._pictures, self._is_deep_known = pictures, is_deep_known
        self.faults: dict[int, str] = {}

    def __iter__(self) -> Iterator[Frame]:
        import numpy as np

        for picture in self._pictures:
            try:
                pixels, bits = read_bgr(picture)
                if pixels.dtype == np.uint16 and not self._is_deep_known:
                    raise DataError(
                        "it has 16 bits, and the bundle learned from pictures of 8: say how many with --bits N"
                    )
            except DataError as error:
                self.skipped += 1
                self.faults[picture.index] = str(error)
                continue
            yield Frame(pixels, picture.index, time.monotonic(), self.stream, picture.name, bits=bits)

    def describe(self) -> str:
        return printable(f"{self.stream}, {len(self._pictures)} pictures")


def read_bgr(picture: Picture) -> tuple[Any, int | None]:
    """The picture's pixels as a camera gives them, and its bits. Raises DataError."""
    import cv2

    from nnet_edge.files import LARGEST_FILE
    from nnet_edge.image_files import decode

    try:
        content = picture.content
        if content is None:
            files, path = file_system(picture.url)
            with files.open(path, "rb") as file:
                content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise DataError(f"it has more than {LARGEST_FILE:,} bytes")
        found = decode(content)
    except Exception as error:  # a server, or damaged bytes: each has a dozen of its own
        raise DataError(f"the image cannot be read ({words_of(error)})") from error
    return cv2.cvtColor(found.pixels, cv2.COLOR_RGB2BGR), found.bits


class Scorer:
    """Judges chunks in a process of its own."""

    def prepare(self, settings: ScoreSettings) -> str | None:
        """Load the bundle; a sentence where that cannot be."""
        from nnet_edge.cli.fleet.training import set_threads

        try:
            if settings.version != __version__:
                raise StreamError(f"nnet-edge {__version__} is installed here, and {settings.version} asks")
            set_threads(settings.cpus)
            from nnet_edge.runtime.stream.model import load_model

            self._settings = settings
            self._model = load_model(settings.bundle, settings.runner, settings.precision)
            self._model.runner.__enter__()  # held for as long as the process lasts
        except NnetEdgeError as error:
            return f"{socket.gethostname()}: {error}"
        return None

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def judge(self, chunk: Sequence[Picture]) -> list[dict[str, Any]]:
        """Fields of a verdict for each picture, in order; of one without a verdict `error`, and `verdict` is None."""
        from nnet_edge.bits import kept_bits
        from nnet_edge.events import Event
        from nnet_edge.runtime.sinks.callback import CallbackSink
        from nnet_edge.runtime.sinks.fields import to_fields
        from nnet_edge.runtime.stream.line import Line
        from nnet_edge.runtime.stream.running import run_line
        from nnet_edge.settings.camera import CameraSettings
        from nnet_edge.settings.stream import LineStream, VerdictSettings

        settings, found = self._settings, {}
        name = chunk[0].stream
        bits = settings.bits or kept_bits(self._model.manifest)
        source = FetchedImages(chunk, name, bits is not None)

        def hear(event: Event) -> None:
            if event.kind == "frame.failed":  # its id ends with the frame's index
                source.faults[int(str(event.facts["frame"]).rpartition("/")[2])] = str(event.facts["reason"])

        line = Line(self._model, [CallbackSink(lambda one: found.update({one.frame.index: to_fields(one)}))])
        line.events.subscribe(hear)
        verdict = VerdictSettings(threshold=settings.threshold, min_area=settings.min_area)
        camera = CameraSettings(source.describe(), bits=settings.bits)
        line.add_source(LineStream(name, camera, verdict=verdict), source)
        try:
            run_line(line)
            failed = "it could not be judged"
        except NnetEdgeError as error:  # a runner that judges nothing: each picture says so
            failed = str(error)
        return [
            {"url": one.url, **(found.get(one.index) or without_verdict(one, source.faults.get(one.index, failed)))}
            for one in chunk
        ]


def without_verdict(picture: Picture, reason: str) -> dict[str, Any]:
    """The fields of a picture that nothing was found out about."""
    return {"stream": picture.stream, "index": picture.index, "name": picture.name, "verdict": None, "error": reason}


@dataclass
class Scored:
    """What became of the pictures."""

    pictures: int
    good: int = 0
    anomalous: int = 0
    failed: list[str] = field(default_factory=list)  # url: reason
    actors: int = 0  # at most at once
    lost: int = 0  # actors
    seconds: float = 0.0

    def add(self, verdicts: Sequence[Mapping[str, Any]]) -> None:
        """Count the verdicts of a chunk."""
        for one in verdicts:
            if one["verdict"] is None:
                self.failed.append(f"{one['url']}: {one['error']}")
            elif one["verdict"] == "good":
                self.good += 1
            else:
                self.anomalous += 1

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"pictures": self.pictures, "good": self.good, "anomalous": self.anomalous, "failed": len(self.failed),
                "actors": self.actors, "lost": self.lost, "seconds": round(self.seconds, 3)}  # fmt: skip


class ActorPool:
    """Actors on the cluster, `least` to `most`: one more while chunks wait, one less when none is left."""

    def __init__(self, cluster: Cluster, settings: ScoreSettings, least: int, most: int, retries: int) -> None:
        self._cluster, self._settings, self._least, self._most, self._retries = cluster, settings, least, most, retries
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # task -> actor
        self._busy: dict[Any, tuple[Any, int]] = {}  # task -> actor, number of its chunk
        self.lost = self.largest = 0

    def judge(self, chunks: Sequence[Sequence[Picture]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The verdicts of each chunk with its number, as they come.

        Raises StreamError for a chunk that `retries` actors more did not survive, or a bundle that they cannot load.
        """
        waiting, tries = deque(range(len(chunks))), [0] * len(chunks)
        try:
            while waiting or self._busy:
                self._scale(len(waiting))
                while waiting and self._idle:
                    chunk, actor = waiting.popleft(), self._idle.pop()
                    self._busy[self._cluster.call(actor, "judge", chunks[chunk])] = actor, chunk
                for task in self._cluster.wait([*self._busy, *self._starting], LOOK_EVERY_S):
                    number: int | None = None  # of the chunk; None: it was starting
                    if task in self._busy:
                        actor, number = self._busy.pop(task)
                    else:
                        actor = self._starting.pop(task)
                    try:
                        result = self._cluster.result(task)
                    except WorkerLostError as error:
                        self.lost += 1
                        place = self._settings.bundle if number is None else chunks[number][0].url
                        key = 0 if number is None else number
                        tries[key] += 1
                        if tries[key] > self._retries:
                            raise StreamError(
                                f"{place}: {error}, {tries[key]} times: look at the workers' memory"
                            ) from error
                        if number is not None:
                            waiting.appendleft(number)
                        continue
                    if number is None and result is not None:
                        raise StreamError(f"the bundle cannot be used by a worker: {result}")
                    self._idle.append(actor)
                    if number is not None:
                        yield number, result
        finally:
            for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._busy.values())]:
                self._cluster.stop(actor)

    def _scale(self, waiting: int) -> None:
        """Start an actor while chunks wait that none is free or starting for; end the free ones that nothing waits for."""
        count = len(self._idle) + len(self._starting) + len(self._busy)
        while count < self._most and (count < self._least or waiting > len(self._idle) + len(self._starting)):
            actor = self._cluster.actor(Scorer, self._settings.cpus)
            self._starting[self._cluster.call(actor, "prepare", self._settings)] = actor
            count += 1
        while not waiting and self._idle and count > self._least:
            self._cluster.stop(self._idle.pop())
            count -= 1
        self.largest = max(self.largest, count)


def score(
    pictures: Sequence[Picture], settings: ScoreSettings, cluster: Cluster, workers: tuple[int, int], chunk: int,
    write: Callable[[Mapping[str, Any]], object], retries: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scored:  # fmt: skip
    """Judge the pictures on the cluster, and `write` each verdict in their order. Raises StreamError."""
    began, scored = time.monotonic(), Scored(len(pictures))
    chunks = [list(part) for part in pieces(pictures, chunk)]
    pool = ActorPool(cluster, settings, *workers, retries)
    arrived: dict[int, list[dict[str, Any]]] = {}
    next_one = 0
    for number, verdicts in pool.judge(chunks):
        arrived[number] = verdicts
        while next_one in arrived:
            part = arrived.pop(next_one)
            for verdict in part:
                write(verdict)
            scored.add(part)
            next_one += 1
        progress(scored.good + scored.anomalous + len(scored.failed), len(pictures))
    scored.actors, scored.lost, scored.seconds = pool.largest, pool.lost, time.monotonic() - began
    return scored


def pieces(pictures: Sequence[Picture], most: int) -> Iterator[Sequence[Picture]]:
    """Runs of at most `most` pictures of one stream."""
    start = 0
    while start < len(pictures):
        end = start + 1
        while end < min(len(pictures), start + most) and pictures[end].stream == pictures[start].stream:
            end += 1
        yield pictures[start:end]
        start = end


def parse_workers(text: str, most: int) -> tuple[int, int]:
    """(1, 8) of "1:8" or "8"; without a largest number it is `most`. Raises ConfigError."""
    first, colon, last = text.partition(":")
    least, largest = first if colon else "1", last if colon else first
    if not (least or "1").isdecimal() or not (largest or str(most)).isdecimal():
        raise ConfigError(f"--workers {text} is no number and no MIN:MAX: give 1:8")
    found = int(least or 1), int(largest or most)
    if not 1 <= found[0] <= found[1]:
        raise ConfigError(f"--workers {text}: give at least 1, and no fewer at most than at least")
    return found
