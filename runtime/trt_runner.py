"""N-Net on an NVIDIA GPU: an engine of TensorRT or TensorRT-RTX between two CUDA kernels, batches overlapping.

A batch is one upload, three launches (preprocess, engine, anomaly_map; one CUDA graph where TensorRT lets them be
captured) and one download of 32 bytes an image. Maps stay on the GPU until somebody asks.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from nnet_edge.anomaly_map import Fusion
from nnet_edge.config import RunnerSettings
from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.frame import Frame, FrameOutputs
from nnet_edge.runtime.device import CudaStream, Device
from nnet_edge.runtime.device_ring import RING, Picture, Slot, Tables, picture_of
from nnet_edge.runtime.engine_record import Place, read_engine, require_engine, system_here
from nnet_edge.runtime.flight import Flight, label_of
from nnet_edge.runtime.graph_runner import GraphRunner
from nnet_edge.runtime.kernels.launches import launch_anomaly_map, launch_preprocess
from nnet_edge.runtime.kernels.tables import RGB8
from nnet_edge.runtime.tensorrt_library import load_tensorrt

log = logging.getLogger(__name__)


class Engine(Protocol):
    """A loaded engine; see TrtEngine."""

    smallest: int
    largest: int
    layer_maps: Mapping[str, np.dtype]

    @property
    def can_capture(self) -> bool:
        """Whether a CUDA graph can hold it."""
        ...

    def bind(self, batch: int, addresses: Mapping[str, int], cuda_stream: CudaStream) -> Callable[[], None]:
        """What queues one inference."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def load_trt_runner(path: Path, settings: RunnerSettings) -> TrtRunner:
    """A runner of the engine at `path`, which lies in its bundle. Nothing of it is loaded before its entry was checked.

    Raises BundleError for an engine that does not fit this machine, MissingExtraError without TensorRT, pycuda or nvcc,
    StreamError without a GPU or without enough of its memory; each names what to do.
    """
    from nnet_edge.runtime.kernels import open_gpu
    from nnet_edge.runtime.trt_engine import TrtEngine

    artefact, record = read_engine(path)
    tensorrt = load_tensorrt(record.tool)
    device = open_gpu(settings.cache_dir)
    try:
        place = Place(tensorrt.flavour, tensorrt.version, system_here(), device.compute_capability)
        require_engine(path, place)
        with device.current():
            engine = TrtEngine(path, record, tensorrt, device)
            try:
                runner = TrtRunner(path, settings, device, engine, record.as_fusion())
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)  # half-made slots in them hold pinned memory
                engine.close()
                raise
    except BaseException:
        device.close()
        raise
    runner.name, runner.version, runner.precision = tensorrt.flavour, tensorrt.version, artefact.precision
    return runner


class TrtRunner(GraphRunner):
    """Obeys Runner; takes frames of any size too (`start_frames`). Owns device, engine and all device memory.

    One thread at a time. At most RING batches are under way; starting one more takes the oldest one's outputs down first.
    """

    name = "tensorrt"

    def __init__(
        self, path: Path, settings: RunnerSettings, device: Device, engine: Engine, fusion: Fusion, ring: int = RING
    ) -> None:
        super().__init__(path, settings)
        self.version = ""
        self._device, self._engine = device, engine
        self.max_batch = min(settings.max_batch, engine.largest)
        self._batches = batch_sizes(engine.smallest, self.max_batch)
        self.layer_maps = tuple(engine.layer_maps)
        self._work: dict[tuple[int, int], Callable[[], None]] = {}  # (slot, batch) -> what queues it
        self._queued: set[tuple[int, int]] = set()  # that ran once, so that they can be captured
        self._number = 0
        self._last: tuple[int, int] | None = None  # slot and batch that were computed last
        capacity, layer_maps = self._batches[-1], engine.layer_maps
        with device.current():
            self._upload, self._compute, self._download = (device.stream() for _ in range(3))
            self._tables = Tables(device, fusion)
            self._slots = [Slot(device, capacity, layer_maps, fusion) for _ in range(ring)]

    def start_frames(self, frames: Sequence[Frame]) -> Callable[[], FrameOutputs]:
        """Begin to judge `frames`, of any size, 1 to max_batch; the answer waits for the scores. Maps stay on the GPU.

        Resizing is done there. Raises DataError for an image that no frame can have, StreamError that names the frames.
        """
        self._require_open()
        label = label_of(frames)
        if not 1 <= len(frames) <= self.max_batch:
            raise ConfigError(f"{label}: this runner takes 1 to {self.max_batch} at a time")
        flight = self._fly([picture_of(frame.image) for frame in frames], label, ())

        def outputs() -> FrameOutputs:
            self._require_open()
            return flight.frame_outputs()

        return outputs

    def compute_again(self, times: int) -> None:
        """Compute the batch that was started last `times` more in a row, without its upload, and wait; for measurements."""
        self._require_open()
        if self._last is None:
            raise StreamError(f"the {self.name} runner of {self.graph} has computed nothing yet: start a batch first")
        with self._device.current():
            for _ in range(times):
                self._queue(*self._last)
            self._compute.synchronize()

    def network_alone(self) -> Callable[[int], None]:
        """What computes the engine without the kernels around it, as a CUDA graph where the runner uses one, so many times in
        a row, on the images of the batch that was started last, and waits; for measurements.
        """
        self._require_open()
        if self._last is None:
            raise StreamError(f"the {self.name} runner of {self.graph} has computed nothing yet: start a batch first")
        number, batch = self._last
        with self._device.current():
            infer = self._engine.bind(batch, self._slots[number].addresses, self._compute)
            if self._engine.can_capture:
                infer()  # once as it is, as `_queue` does: what TensorRT sets up the first time cannot be captured
                self._compute.synchronize()
                infer = self._device.capture(infer, self._compute) or infer

        def compute(times: int) -> None:
            self._require_open()
            with self._device.current():
                for _ in range(times):
                    infer()
                self._compute.synchronize()

        return compute

    def _start(self, images: np.ndarray, wanted: Sequence[str]) -> Callable[[], Mapping[str, np.ndarray]]:
        pictures = [Picture(image, RGB8) for image in images]
        maps = tuple(name for name in wanted if name != "image_score")
        return self._fly(pictures, f"a batch of {len(images)} images", maps).arrays

    def _fly(self, pictures: Sequence[Picture], label: str, maps: Sequence[str]) -> Flight:
        """Queue a batch: upload, compute, download of the peaks and of `maps`."""
        number = self._number % len(self._slots)
        slot = self._slots[number]
        self._number += 1
        with self._device.current():
            if isinstance(slot.flight, Flight):
                slot.flight.make_room()
            flight = Flight(self._device, slot, self._download, len(pictures), label, tuple(maps))
            with flight.named():
                views, bulk = slot.fill(pictures)
                try:
                    self._device.upload(slot.views.address, views, self._upload)
                    self._device.upload(slot.bulk_address, bulk, self._upload)
                    slot.uploaded.record(self._upload)
                    self._compute.wait(slot.uploaded)
                    self._queue(number, next(size for size in self._batches if size >= len(pictures)))
                    slot.computed.record(self._compute)
                    self._download.wait(slot.computed)
                    flight.queue_downloads()
                except BaseException:
                    self._settle("after an error of")  # the slot is used again: nothing may still read or write it
                    raise
        slot.flight = flight
        return flight

    def _queue(self, number: int, batch: int) -> None:
        """Queue the work of one slot and batch size: as it is the first time, as a CUDA graph from the second on."""
        key = self._last = number, batch
        if key not in self._work:
            self._work[key] = self._bind(self._slots[number], batch)
        elif key not in self._queued and self._engine.can_capture:
            self._queued.add(key)
            self._work[key] = self._device.capture(self._work[key], self._compute) or self._work[key]
        self._work[key]()

    def _bind(self, slot: Slot, batch: int) -> Callable[[], None]:
        """What queues the three launches of a batch."""
        infer = self._engine.bind(batch, slot.addresses, self._compute)

        def queue() -> None:
            launch_preprocess(self._device, slot.views.address, slot.images.address, batch, self._compute)
            infer()
            launch_anomaly_map(
                self._device,
                slot.layer_maps.address,
                self._tables.enlarging,
                self._tables.filter,
                slot.anomaly_maps.address,
                slot.peaks.address,
                batch,
                self._compute,
            )

        return queue

    def _release(self) -> None:
        self._settle("closing")
        with self._device.current():
            for slot in self._slots:
                if isinstance(slot.flight, Flight):
                    slot.flight.close()
            self._work.clear()
            self._engine.close()
            # streams and pinned memory go with the last that knows them, while the device is there
            del self._slots, self._tables, self._upload, self._compute, self._download
        try:
            self._device.close()
        except StreamError as error:
            log.warning("closing the %s runner: %s", self.name, error)

    def _settle(self, when: str) -> None:
        """Wait for all that was queued. A broken GPU refuses this too: that is logged, so that the error that names the
        frames stays.
        """
        try:
            with self._device.current():
                for cuda_stream in (self._upload, self._compute, self._download):
                    cuda_stream.synchronize()
        except StreamError as error:
            log.warning("%s the %s runner: %s", when, self.name, error)


def batch_sizes(smallest: int, largest: int) -> tuple[int, ...]:
    """The batches that are computed: powers of two and the two ends; others are filled up to the next one.

    Each needs a context and a CUDA graph of its own, so not every number has one.
    """
    largest = max(smallest, largest)
    powers = (1 << bits for bits in range(largest.bit_length()))
    return tuple(sorted({smallest, largest, *(power for power in powers if smallest < power < largest)}))
