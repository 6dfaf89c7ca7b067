"""One batch on its way through the GPU: its outputs, once they are there, and its maps as long as they stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from nnet_edge.errors import StreamError
from nnet_edge.frame import Frame, FrameOutputs
from nnet_edge.runtime.device import CudaStream, Device
from nnet_edge.runtime.device_ring import Slot


class Flight:
    """A batch of `images` images in `slot`; of `maps` (names) copies are downloaded with the scores, of the rest on demand.

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
        """Queue the download of peaks and maps, and the mark behind it."""
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

    def frame_outputs(self) -> FrameOutputs:
        """The scores, and maps that are fetched when asked for; waits for the scores."""
        return FrameOutputs(self.arrays()["image_score"], self)

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> np.ndarray:
        """The anomaly map of one image, float32 (256, 256), owned by the caller.

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
        """Leave the slot to the next batch: outputs that nobody has waited for yet are taken down, maps included."""
        if self._arrays is None and "anomaly_map" not in self._maps:
            with self.named():
                self._require_slot().downloaded.synchronize()
                self._maps = (*self._maps, "anomaly_map")
                self.queue_downloads()
        self.arrays()
        self._slot = None

    def close(self) -> None:
        """Let go of the slot, whose memory goes: what was not fetched by now is an error from here on."""
        self._slot, self._is_closed = None, True

    def _require_slot(self) -> Slot:
        if self._slot is not None:
            return self._slot
        if self._is_closed:
            raise StreamError(f"{self._label}: the runner is closed: ask for scores and maps before")
        raise StreamError(
            f"{self._label}: the anomaly map has left the GPU, a later batch has its place: ask for it earlier"
        )

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
