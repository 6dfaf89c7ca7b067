"""Inspector: judges pictures by a bundle, one by one or many in batches, by the same steps as a line's stream."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from nnet_edge.bits import StreamBits, kept_bits
from nnet_edge.errors import DataError, NnetEdgeError, StreamError
from nnet_edge.frame import Frame, FrameOutputs, Outputs, Prediction
from nnet_edge.geometry import PictureSizes
from nnet_edge.machine import usable_cores
from nnet_edge.runtime.inspector.inputs import ONE, STREAM, Colour, ImageLike, Taken, read_again, require_many, take
from nnet_edge.runtime.inspector.result import Result
from nnet_edge.runtime.runners.base import FrameRunner
from nnet_edge.runtime.sources.images import images_in
from nnet_edge.runtime.stream.judge import BatchTimes, Judge, PartOutputs
from nnet_edge.runtime.stream.loop import preprocess
from nnet_edge.runtime.stream.model import GRAPH_OF, Model, load_model
from nnet_edge.settings.runner import RunnerSettings, require_between, require_choice
from nnet_edge.settings.stream import VerdictSettings

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

MOST_READERS = 4  # threads that decode files
PATIENCE_S = 0.02  # an image that took longer to come is judged at once, without waiting for a full batch

Runner = Literal["auto", "openvino", "onnxruntime", "tensorrt", "cuda"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]


def load(
    bundle: str | os.PathLike[str],
    *,
    runner: Runner = "auto",
    precision: Precision | None = None,
    threads: int | None = None,
    hint: Literal["latency", "throughput"] = "latency",
    batch: int = 8,
    cache_dir: str | os.PathLike[str] | None = None,
    gpu: int = 0,
    threshold: float | None = None,
    bits: int | None = None,
    min_area: float = 0.0,
) -> Inspector:
    """An inspector of the bundle, the folder that `train` leaves.

    >>> inspector = load("runs/part/bundle")
    >>> result = inspector("part.png")
    >>> result
    Result(..., score ..., threshold ..., ratio ..., part.png)
    >>> result.is_anomalous == (result.score > result.threshold)
    True
    >>> result.map.dtype
    dtype('float32')

    The keywords are the options of `nnet-edge stream`: `runner` computes the graph of that `precision`, on so many `threads`
    of the processor or on the GPU of that number, `batch` images at most at a time (--runner-batch); `threshold` stands in
    place of the bundle's, `bits` are those of pictures of 16 bits, and regions smaller than `min_area` pixels are left out.
    Raises ConfigError for an invalid one, BundleError for a bundle that is absent or altered, MissingExtraError without the
    runner's library.
    """
    if precision is not None:
        require_choice("precision", precision, tuple(GRAPH_OF))
    if bits is not None:
        require_between("bits", bits, 8, 16)
    settings = RunnerSettings(
        kind=runner, precision="bf16" if precision == "bf16" else "fp32", threads=threads, hint=hint,
        cache_dir=None if cache_dir is None else Path(cache_dir), max_batch=batch, gpu=gpu,
    )  # fmt: skip
    verdict = VerdictSettings(threshold=threshold, min_area=min_area)
    model = load_model(Path(bundle), settings, precision, is_warm=False, is_guest=True)
    for warning in model.warnings:
        log.warning("%s: %s", bundle, warning)
    return Inspector(model, verdict, bits)


class Inspector:
    """Judges images by a loaded bundle; `load` makes one. Any number of threads may call it.

    It is a context manager, and `close` gives the runner's memory back; so does the end of the program.
    """

    def __init__(self, model: Model, verdict: VerdictSettings, bits: int | None = None) -> None:
        self._model, self._bits = model, bits or kept_bits(model.manifest)
        self._judge = Judge(verdict, model.threshold, model.judged_by, model.geometry)
        self._learned_sizes = PictureSizes.in_manifest(model.manifest)  # None: nothing to tell, or it was told
        self._lock = threading.Lock()  # one thread at a time may use a runner
        model.runner.__enter__()
        self._release = weakref.finalize(self, model.runner.__exit__, None, None, None)

    @property
    def bundle(self) -> Path | None:
        """The folder of the bundle."""
        return self._model.path

    @property
    def name(self) -> str:
        """What the data was called that the bundle was trained on."""
        return self._model.name

    @property
    def threshold(self) -> float:
        """The image score above which an image is anomalous."""
        return self._judge.threshold

    @property
    def runner(self) -> str:
        """The library that computes."""
        return self._model.runner.name

    @property
    def precision(self) -> str:
        """The precision of the graph that it computes."""
        return self._model.runner.precision

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every report of this bundle must say."""
        return self._model.warnings

    @overload  # a str is a sequence of str too
    def __call__(self, image: ImageLike, *, colour: Colour = "rgb") -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(
        self, image: Sequence[ImageLike] | Iterator[ImageLike], *, colour: Colour = "rgb", skip_bad_images: bool = False
    ) -> Iterator[Result]: ...

    def __call__(
        self, image: ImageLike | Iterable[ImageLike], *, colour: Colour = "rgb", skip_bad_images: bool = False
    ) -> Result | Iterator[Result]:
        """The verdict on one image, or an iterator of the verdicts on many, in their order.

        An image is a path, an image of Pillow or a NumPy array: grey or RGB, uint8, uint16, or floats from 0 to 1; an array of
        OpenCV's order is given with colour="bgr". Many are a list or an iterator of such, taken as they are asked for, or a
        folder (see `folder`); those of one call count as one stream, whose first picture of 16 bits says how many bits all
        have where neither bundle nor `bits` does.

        Raises DataError that names an image which cannot be read (of many with `skip_bad_images` it is passed over, and
        logged), ConfigError for what is no image, NotFiniteError for one without a verdict, StreamError once it is closed.
        """
        if isinstance(image, (str, os.PathLike)) and Path(image).is_dir():
            return self.folder(image, skip_bad_images=skip_bad_images)
        if isinstance(image, ONE):
            taken = take(image, 0, colour).scaled(StreamBits(STREAM), self._bits)
            return Result(next(self._judge_taken([taken])), taken.path)
        return self._each(require_many(image), colour, skip_bad_images)

    def folder(self, path: str | os.PathLike[str], *, skip_bad_images: bool = False) -> Iterator[Result]:
        """The verdicts on the images directly in the folder, in the natural order of their names (2 before 10)."""
        return self._each(images_in(Path(path)), "rgb", skip_bad_images)

    def close(self) -> None:
        """Give the runner's memory back; what is called afterwards raises StreamError."""
        with self._lock:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        size = self._model.geometry.text
        return f"Inspector({self.name}, {self.runner} {self.precision}, input {size}, threshold {self.threshold:.4g})"

    def _each(self, images: Iterable[ImageLike], colour: Colour, skip_bad: bool) -> Iterator[Result]:
        """The verdicts, in batches: while one is computed, the files of the next are read by threads.

        What is no file is taken over at once, as its owner may write the next image into the same memory.
        """
        size, readers, bits = self._model.runner.max_batch, min(MOST_READERS, usable_cores()), StreamBits(STREAM)
        waiting: deque[Future[Taken]] = deque()
        numbered, failure = enumerate(images), None
        pool = ThreadPoolExecutor(readers, thread_name_prefix="inspector")
        try:
            while True:
                began_s = time.monotonic()
                try:
                    index, image = next(numbered, (-1, ""))
                except Exception as error:  # of the iterator: what came before is judged first
                    index, failure = -1, error
                is_late = time.monotonic() - began_s > PATIENCE_S
                if index >= 0 and isinstance(image, (str, os.PathLike)):
                    waiting.append(pool.submit(take, image, index, colour))
                elif index >= 0:
                    waiting.append(done(partial(take, image, index, colour)))
                while waiting and (index < 0 or is_late or len(waiting) >= size + readers):
                    yield from self._judge_batch(
                        [waiting.popleft() for _ in range(min(size, len(waiting)))], bits, skip_bad
                    )
                if failure is not None:
                    raise failure
                if index < 0:
                    return
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _judge_batch(self, batch: Sequence[Future[Taken]], bits: StreamBits, skip_bad: bool) -> Iterator[Result]:
        """The verdicts on a batch; those on what comes before an image that cannot be read come before its error.

        Results of files let go of their pixels, so that a list of many fits into memory.
        """
        ready: list[Taken] = []
        failure = None
        for future in batch:
            try:
                ready.append(future.result().scaled(bits, self._bits))
            except NnetEdgeError as error:
                if not (skip_bad and isinstance(error, DataError)):
                    failure = error
                    break
                log.warning("passed over: %s", error)
        for prediction, taken in zip(self._judge_taken(ready), ready, strict=False):  # fewer where one has no verdict
            if taken.path is None:
                yield Result(prediction)
                continue
            hollow = replace(taken.frame, image=np.broadcast_to(np.uint8(0), taken.frame.image.shape))
            yield Result(
                replace(prediction, frame=hollow), taken.path, partial(read_again, replace(taken, frame=hollow))
            )
        if failure is not None:
            raise failure

    def _judge_taken(self, taken: Sequence[Taken]) -> Iterator[Prediction]:
        """The predictions of a batch, at most of the runner's size; one that cannot be judged raises in its turn."""
        if not taken:
            return
        started_s, frames = time.monotonic(), [one.frame for one in taken]
        runner, failure = self._model.runner, None
        if isinstance(runner, FrameRunner):
            start: Callable[[], Callable[[], Outputs | FrameOutputs]] = partial(runner.start_frames, frames)
        else:
            start = partial(runner.start, preprocess(frames, self._model.geometry))
        prepared_s = time.monotonic()
        found: list[Prediction] = []
        with self._lock:
            if not self._release.alive:
                raise StreamError(f"the inspector of {self.bundle} is closed: load the bundle again")
            outputs = start()()
            times = BatchTimes(started_s, prepared_s, time.monotonic())
            for place, frame in enumerate(frames):
                self._look_at_size(frame)
                try:
                    found += self._judge.judge(frame, [frame], [PartOutputs(outputs, place)], times, wants_maps=True)
                except NnetEdgeError as error:
                    failure = error
                    break
        yield from found
        if failure is not None:
            raise failure

    def _look_at_size(self, frame: Frame) -> None:
        """Log, once, that an image has another size or shape than those that the bundle learned from."""
        if self._learned_sizes is not None:
            height, width = frame.image.shape[:2]
            told = self._learned_sizes.differs(height, width, self._model.geometry)
            if told:
                self._learned_sizes = None
                log.warning("%s: %s", self.name, told)


def done(work: Callable[[], Taken]) -> Future[Taken]:
    """What the work gives or raises, at once; it comes out in its turn."""
    future: Future[Taken] = Future()
    try:
        future.set_result(work())
    except NnetEdgeError as error:
        future.set_exception(error)
    return future


if TYPE_CHECKING:  # what `make types` holds type checkers to
    from typing_extensions import assert_type

    def _typed(
        inspector: Inspector, path: Path, array: np.ndarray, paths: list[str], arrays: Iterator[np.ndarray]
    ) -> None:
        assert_type(inspector("part.png"), Result)
        assert_type(inspector(path), Result)
        assert_type(inspector(array, colour="bgr"), Result)
        assert_type(inspector(paths), Iterator[Result])
        assert_type(inspector(arrays, skip_bad_images=True), Iterator[Result])
        assert_type(inspector.folder(path), Iterator[Result])
