"""TensorRT runner: an engine of TensorRT or TensorRT-RTX between two CUDA kernels, with overlapping batches.

A batch is one upload, three launches (preprocess, engine, anomaly_map; one CUDA graph where TensorRT lets them be captured)
and one download of 32 bytes an image (at 256x256). Maps stay on the GPU until they are asked for.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nnet_edge.anomaly_map import Fusion
from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.frame import Frame, FrameOutputs
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.runtime.runners.graph import GraphRunner, geometry_beside
from nnet_edge.runtime.runners.trt.device import CudaStream, Device
from nnet_edge.runtime.runners.trt.kernels.tables import RGB8, launch_anomaly_map, launch_preprocess
from nnet_edge.runtime.runners.trt.library import load_tensorrt
from nnet_edge.runtime.runners.trt.record import Place, read_engine, require_engine, system_here
from nnet_edge.runtime.runners.trt.ring import RING, Picture, Slot, Tables, picture_of
from nnet_edge.settings.runner import RunnerSettings

if TYPE_CHECKING:
    from typing_extensions import Self


class InFlightBatch:
    """A batch of `images` images in `slot`; the maps named in `maps` are downloaded with the scores, others on demand.

    It holds the slot until a later batch needs it or the runner is closed. Errors name the batch by its `label`.
    """

    def __init__(
        self, device: Device, slot: Slot, cuda_stream: CudaStream, images: int, label: str, maps: Sequence[str]
    ) -> None:
        self._device, self._stream = device, cuda_stream
        self._slot: Slot | None = slot
        self._is_closed = False
        self._images, self._label, self._maps = images, label, maps
        self._arrays: dict[str, np.ndarray] | None = None  # once downloaded

    def queue_downloads(self) -> None:
        """Queue the download of peaks and maps, and the event behind it."""
        slot = self._require_slot()
        self._device.download(slot.host_peaks(self._images), slot.peaks.address, self._stream)
        for name in self._maps:
            host, address = slot.host_maps(name, self._images)
            self._device.download(host, address, self._stream)
        slot.downloaded.record(self._stream)

    def arrays(self) -> Mapping[str, np.ndarray]:
        """`image_score` (N,) and the maps (N, 1, h, w), float32, in memory of their own; waits for them."""
        if self._arrays is None:
            slot = self._require_slot()
            with self._device.current(), self.named():
                slot.downloaded.synchronize()
            # the largest of the strips' maxima; NumPy's max gives NaN when one is
            found = {"image_score": slot.host_peaks(self._images).max(axis=1)}
            for name in self._maps:
                found[name] = slot.host_maps(name, self._images)[0].astype(np.float32)
            self._arrays = found
        return self._arrays

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> np.ndarray:
        """The anomaly map of one image, float32 (H, W), owned by the caller.

        Raises StreamError when its place on the GPU was given to a later batch, or back.
        """
        if not 0 <= index < self._images:
            raise IndexError(index)
        found = self.arrays()
        if "anomaly_map" in found:
            return found["anomaly_map"][index, 0]
        slot = self._require_slot()
        with self._device.current(), self.named():
            host, address = slot.host_maps("anomaly_map", 1)
            self._device.download(host, address + index * host.nbytes, self._stream)
            self._stream.synchronize()
        copied: np.ndarray = host[0, 0].copy()
        return copied

    def make_room(self) -> None:
        """Leave the slot to the next batch: download outputs that nobody has waited for yet, maps included."""
        if self._arrays is None and "anomaly_map" not in self._maps:
            with self.named():
                self._require_slot().downloaded.synchronize()
                self._maps = (*self._maps, "anomaly_map")
                self.queue_downloads()
        self.arrays()
        self._slot = None

    def close(self) -> None:
        """Release the slot, whose memory is freed: asking for what was not fetched is an error from now on."""
        self._slot, self._is_closed = None, True

    def _require_slot(self) -> Slot:
        if self._slot is not None:
            return self._slot
        if self._is_closed:
            raise StreamError(f"{self._label}: the runner is closed: ask for scores and maps before")
        gone = "the anomaly map has left the GPU, a later batch has its place"
        raise StreamError(f"{self._label}: {gone}: ask for it earlier")

    @contextmanager
    def named(self) -> Iterator[None]:
        """A StreamError in the block says which batch it was."""
        try:
            yield
        except StreamError as error:
            raise StreamError(f"{self._label}: {error}") from error


def label_of(frames: Sequence[Frame]) -> str:
    """The frames, for an error: "frames 7 to 9 of camera-0" or "frame 7 (part.png)"."""
    if not frames:
        return "no frames"
    first, last = frames[0], frames[-1]
    if len(frames) == 1:
        return f"frame {first.index} ({first.name or first.stream})"
    return f"frames {first.index} to {last.index} ({first.name or first.stream} to {last.name or last.stream})"


log = logging.getLogger(__name__)


class Engine(Protocol):
    """A loaded engine; see TrtEngine."""

    smallest: int
    largest: int
    layer_maps: Mapping[str, np.dtype]

    @property
    def can_capture(self) -> bool:
        """Whether a CUDA graph can hold it."""

    def bind(self, batch: int, addresses: Mapping[str, int], cuda_stream: CudaStream) -> Callable[[], None]:
        """A function that queues one inference."""

    def close(self) -> None:
        """Give everything back."""


@contextmanager
def closed_on_failure(held: Device | Engine) -> Iterator[None]:
    """Close what a runner was to own when the runner cannot be made."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # half-made slots in them hold pinned memory
        held.close()
        raise


class TrtRunner(GraphRunner):
    """A Runner that takes frames of any size too (`start_frames`). Owns device, engine and all device memory.

    One thread at a time. At most RING batches are in flight; starting one more downloads the oldest one's outputs first.
    """

    name = "tensorrt"

    def __init__(
        self, path: Path, settings: RunnerSettings, device: Device, engine: Engine, fusion: Fusion,
        geometry: Geometry = DEFAULT, ring: int = RING, compute: CudaStream | None = None,
    ) -> None:  # fmt: skip
        """`compute`: the stream that the engine was made for, where it must be told early."""
        super().__init__(path, settings)
        self.input_shape, self._geometry = geometry.shape, geometry
        self.version, self.device = "", device.title
        self._device, self._engine = device, engine
        self.max_batch = min(settings.max_batch, engine.largest)
        self._batches = batch_sizes(engine.smallest, self.max_batch)
        self.layer_maps = tuple(engine.layer_maps)
        self._work: dict[tuple[int, int], Callable[[], None]] = {}  # (slot, batch) -> what queues it
        self._queued: set[tuple[int, int]] = set()  # that ran once, so that they can be captured
        self._number = 0
        capacity, layer_maps = self._batches[-1], engine.layer_maps
        with device.current():
            self._upload, self._compute, self._download = device.stream(), compute or device.stream(), device.stream()
            self._tables = Tables(device, fusion, geometry)
            self._slots = [Slot(device, capacity, layer_maps, fusion, geometry) for _ in range(ring)]

    @classmethod
    def load(cls, path: Path, settings: RunnerSettings) -> Self:
        """A runner of the engine at `path`, in its bundle. The engine is loaded after its manifest entry was checked.

        Raises BundleError for an engine that does not fit this machine, MissingExtraError without TensorRT, pycuda or nvcc,
        StreamError without a GPU or without enough of its memory; each names what to do.
        """
        from nnet_edge.runtime.runners.trt.engine import TrtEngine
        from nnet_edge.runtime.runners.trt.kernels import open_gpu

        artefact, record = read_engine(path)
        tensorrt = load_tensorrt(record.tool)
        geometry = geometry_beside(path) or DEFAULT
        device = open_gpu(settings.kept_in, geometry.size, settings.gpu)
        with closed_on_failure(device):
            place = Place(tensorrt.flavour, tensorrt.version, system_here(), device.compute_capability)
            require_engine(path, place)
            with device.current():
                engine = TrtEngine(path, record, tensorrt, device, geometry)
                with closed_on_failure(engine):
                    runner = cls(path, settings, device, engine, record.as_fusion(), geometry)
        runner.name, runner.version, runner.precision = tensorrt.flavour, tensorrt.version, artefact.precision
        return runner

    def start_frames(self, frames: Sequence[Frame]) -> Callable[[], FrameOutputs]:
        """Begin to judge `frames`, of any size, 1 to max_batch; the returned function waits for the scores.

        The GPU resizes, and keeps the maps. Raises DataError for an image that no frame can have, StreamError that names
        the frames.
        """
        self._require_open()
        label = label_of(frames)
        if not 1 <= len(frames) <= self.max_batch:
            raise ConfigError(f"{label}: this runner takes 1 to {self.max_batch} at a time")
        batch = self._queue_batch([picture_of(frame.image, self._geometry) for frame in frames], label, ())

        def outputs() -> FrameOutputs:
            self._require_open()
            return FrameOutputs(batch.arrays()["image_score"], batch)

        return outputs

    def _start(self, images: np.ndarray, wanted: Sequence[str]) -> Callable[[], Mapping[str, np.ndarray]]:
        pictures = [Picture(image, RGB8, is_input=True) for image in images]
        maps = tuple(name for name in wanted if name != "image_score")
        return self._queue_batch(pictures, f"a batch of {len(images)} images", maps).arrays

    def _queue_batch(self, pictures: Sequence[Picture], label: str, maps: Sequence[str]) -> InFlightBatch:
        """Queue a batch: upload, compute, download of the peaks and of `maps`."""
        number = self._number % len(self._slots)
        slot = self._slots[number]
        self._number += 1
        with self._device.current():
            if isinstance(slot.batch, InFlightBatch):
                slot.batch.make_room()
            batch = InFlightBatch(self._device, slot, self._download, len(pictures), label, tuple(maps))
            with batch.named():
                views, bulk = slot.fill(pictures)
                try:
                    self._device.upload(slot.views.address, views, self._upload)
                    self._device.upload(slot.bulk_address, bulk, self._upload)
                    slot.uploaded.record(self._upload)
                    self._compute.wait(slot.uploaded)
                    self._queue(number, next(size for size in self._batches if size >= len(pictures)))
                    slot.computed.record(self._compute)
                    self._download.wait(slot.computed)
                    batch.queue_downloads()
                except BaseException:
                    self._settle("after an error of")  # the slot is used again: nothing may still read or write it
                    raise
        slot.batch = batch
        return batch

    def _queue(self, number: int, batch: int) -> None:
        """Queue the work of one slot and batch size: directly the first time, as a CUDA graph from the second on."""
        key = number, batch
        if key not in self._work:
            self._work[key] = self._bind(self._slots[number], batch)
        elif key not in self._queued and self._engine.can_capture:
            self._queued.add(key)
            self._work[key] = self._device.capture(self._work[key], self._compute) or self._work[key]
        self._work[key]()

    def _bind(self, slot: Slot, batch: int) -> Callable[[], None]:
        """A function that queues the three launches of a batch."""
        infer = self._engine.bind(batch, slot.addresses, self._compute)

        def queue() -> None:
            views, images, geometry = slot.views.address, slot.images.address, self._geometry
            launch_preprocess(self._device, views, images, batch, geometry, self._compute)
            infer()
            launch_anomaly_map(self._device, slot.layer_maps.address, self._tables.enlarging, self._tables.filter,
                               slot.anomaly_maps.address, slot.peaks.address, batch, geometry, self._compute)  # fmt: skip

        return queue

    def _release(self) -> None:
        self._settle("closing")
        with self._device.current():
            for slot in self._slots:
                if isinstance(slot.batch, InFlightBatch):
                    slot.batch.close()
            self._work.clear()
            self._engine.close()
            # streams and pinned memory go with the last that knows them, while the device is there
            del self._slots, self._tables, self._upload, self._compute, self._download
        try:
            self._device.close()
        except StreamError as error:
            log.warning("closing the %s runner: %s", self.name, error)

    def _settle(self, when: str) -> None:
        """Wait for all that was queued. A broken GPU refuses this too: that is logged, and the first error stays."""
        try:
            with self._device.current():
                for cuda_stream in (self._upload, self._compute, self._download):
                    cuda_stream.synchronize()
        except StreamError as error:
            log.warning("%s the %s runner: %s", when, self.name, error)


def batch_sizes(smallest: int, largest: int) -> tuple[int, ...]:
    """The batch sizes that are computed: powers of two and the two ends; others are filled up to the next one.

    Each has its own context and CUDA graph.
    """
    largest = max(smallest, largest)
    powers = (1 << bits for bits in range(largest.bit_length()))
    return tuple(sorted({smallest, largest, *(power for power in powers if smallest < power < largest)}))
