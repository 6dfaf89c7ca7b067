"""Slots of the GPU runner: the memory and events of a batch, three times, so that batches overlap.

While batch k is computed, batch k + 1 is uploaded and the scores of batch k - 1 are downloaded: three CUDA streams, three
slots. A slot owns its memory on both sides and the events that keep its four steps in order:

    host fills the pinned upload -> [upload] -> uploaded -> [compute] -> computed -> [download] -> downloaded
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnet_edge.anomaly_map import SCALES, STRIDES, Fusion, split_name
from nnet_edge.geometry import Geometry
from nnet_edge.imaging import to_rgb
from nnet_edge.runtime.runners.trt.device import Buffer, Device
from nnet_edge.runtime.runners.trt.kernels import tables
from nnet_edge.runtime.runners.trt.kernels.tables import BGR8, GRAY8, NV12, RGB8, VIEW, resize_axis, strips_of

RING = 3  # in-flight batches: one in each of upload, compute and download
ALIGNMENT = 256  # bytes; what CUDA's own allocations begin at


@dataclass(frozen=True)
class Picture:
    """A frame as the kernel `preprocess` takes it."""

    pixels: np.ndarray  # uint8 (H, W, 3), (H, W), or NV12 as (H * 3 / 2, W); any strides
    format: int  # BGR8, RGB8, GRAY8 or NV12
    is_input: bool = False  # whether it is an input already, which no fit changes any more

    @property
    def height(self) -> int:
        """Rows of the picture; NV12 has half as many again below them."""
        return self.pixels.shape[0] * 2 // 3 if self.format == NV12 else self.pixels.shape[0]


def picture_of(image: np.ndarray, geometry: Geometry) -> Picture:
    """The part of a frame's image that the fit takes: BGR and grey go up as they are, the rest is converted here.

    Raises DataError for an image that no frame can have.
    """
    if geometry.leaves_out and image.ndim >= 2 and image.size:
        image = image[geometry.part(*image.shape[:2]).inside]
    if image.dtype == np.uint8 and image.size:
        if image.ndim == 3 and image.shape[2] == 3:
            return Picture(image, BGR8)
        if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
            return Picture(image.reshape(image.shape[:2]), GRAY8)
    return Picture(to_rgb(image), RGB8)


class Tables:
    """The constant tables of the kernel `anomaly_map` on the device."""

    def __init__(self, device: Device, fusion: Fusion, geometry: Geometry) -> None:
        constants = (tables.enlarging_table(fusion, geometry), tables.filter_table(fusion, geometry))
        self._buffers = [device.allocate(constant.nbytes) for constant in constants]
        for constant, buffer in zip(constants, self._buffers, strict=True):
            upload_constant(device, constant, buffer)
        self.enlarging, self.filter = (buffer.address for buffer in self._buffers)


def upload_constant(device: Device, constant: np.ndarray, there: Buffer) -> None:
    """Copy `constant` to the device and wait for it."""
    host, cuda_stream = device.pinned(constant.nbytes), device.stream()
    host[:] = np.frombuffer(constant.tobytes(), np.uint8)
    device.upload(there.address, host, cuda_stream)
    cuda_stream.synchronize()


class Slot:
    """The memory of one batch of at most `capacity` images; the engine's tensors lie at `addresses`."""

    def __init__(
        self, device: Device, capacity: int, layer_maps: Mapping[str, np.dtype], fusion: Fusion, geometry: Geometry
    ) -> None:
        self._device, self._geometry = device, geometry
        height, width = geometry.size
        self.capacity = capacity
        self.uploaded, self.computed, self.downloaded = (device.event() for _ in range(3))
        self.batch: object | None = None  # the in-flight batch that may still read this memory
        self.images = device.allocate(capacity * height * width * 3)
        self._types = dict(layer_maps)
        self._maps = {name: device.allocate(self.map_bytes(name, capacity)) for name in layer_maps}
        self.anomaly_maps = device.allocate(capacity * height * width * 4)
        strips = strips_of(geometry)
        self.peaks = device.allocate(capacity * strips * 4)
        self.views = device.allocate(capacity * VIEW.itemsize)
        self.layer_maps = device.allocate(ALIGNMENT)
        self.addresses = {"images": self.images.address} | {name: map_.address for name, map_ in self._maps.items()}
        self._views = device.pinned(capacity * VIEW.itemsize).view(VIEW)
        self._peaks = device.pinned(capacity * strips * 4).view(np.float32).reshape(capacity, strips)
        self._downloads: dict[str, np.ndarray] = {}
        self._bulk: np.ndarray | None = None  # pinned: tables and pixels of a batch
        self._bulk_there: Buffer | None = None
        halves = frozenset(name for name, kind in self._types.items() if kind == np.float16)
        addresses = {name: map_.address for name, map_ in self._maps.items()}
        upload_constant(device, tables.fill_maps(fusion, addresses, halves), self.layer_maps)

    def map_bytes(self, name: str, images: int) -> int:
        """Bytes of the layer map `name` of that many images."""
        height, width = self._size_of(name)
        return images * height * width * self._types[name].itemsize

    def _size_of(self, name: str) -> tuple[int, int]:
        """(height, width) of `anomaly_map` or a layer map."""
        stride = 1 if name == "anomaly_map" else STRIDES[SCALES.index(split_name(name)[1])]
        return self._geometry.height // stride, self._geometry.width // stride

    def fill(self, pictures: Sequence[Picture]) -> tuple[np.ndarray, np.ndarray]:
        """Put the pictures into pinned memory; return what to upload to `views` and to `bulk_address`."""
        places, size = plan(pictures, self._geometry)
        bulk, there = self._bulk_of(size)
        views = self._views
        views[:] = 0
        for view, picture, place in zip(views, pictures, places, strict=False):
            rows, columns = (resize_axis(*axis) for axis in axes_of(picture, self._geometry))
            for start, table in ((place.rows, rows), (place.columns, columns)):
                bulk[start : start + table.nbytes].view(np.int32)[:] = table
            end = place.pixels + picture.pixels.size
            np.copyto(bulk[place.pixels : end].reshape(picture.pixels.shape), picture.pixels)
            row_bytes = picture.pixels.size // picture.pixels.shape[0]
            view["pixels"], view["row_bytes"] = there.address + place.pixels, row_bytes
            if picture.format == NV12:
                view["chroma"] = there.address + place.pixels + picture.height * row_bytes
                view["chroma_row_bytes"] = row_bytes
            view["rows"], view["columns"] = there.address + place.rows, there.address + place.columns
            view["height"], view["width"] = picture.height, picture.pixels.shape[1]
            view["format"] = picture.format
        return views.view(np.uint8), bulk[:size]

    @property
    def bulk_address(self) -> int:
        """Where tables and pixels go."""
        assert self._bulk_there is not None
        return self._bulk_there.address

    def _bulk_of(self, size: int) -> tuple[np.ndarray, Buffer]:
        """Pinned and device memory of at least `size` bytes; too small ones are replaced by the next power of two."""
        if self._bulk is None or self._bulk_there is None or self._bulk_there.size < size:
            smaller = self._bulk_there
            self._bulk = self._bulk_there = None  # so that nothing stale stays when memory runs out
            if smaller is not None:
                smaller.free()
            larger = 1 << (size - 1).bit_length()
            self._bulk = self._device.pinned(larger)
            self._bulk_there = self._device.allocate(larger)
        return self._bulk, self._bulk_there

    def host_peaks(self, images: int) -> np.ndarray:
        """Pinned, float32 (images, strips)."""
        return self._peaks[:images]

    def host_maps(self, name: str, images: int) -> tuple[np.ndarray, int]:
        """Pinned memory for `anomaly_map` or a layer map, (images, 1, h, w), and the address that it is copied from."""
        if name == "anomaly_map":
            kind, address = np.dtype(np.float32), self.anomaly_maps.address
        else:
            kind, address = self._types[name], self.addresses[name]
        height, width = self._size_of(name)
        if name not in self._downloads:
            self._downloads[name] = self._device.pinned(self.capacity * height * width * kind.itemsize)
        flat = self._downloads[name][: images * height * width * kind.itemsize]
        return flat.view(kind).reshape(images, 1, height, width), address


@dataclass(frozen=True)
class Place:
    """Where a picture lies in the upload, bytes from its start."""

    rows: int
    columns: int
    pixels: int


Axis = tuple[int, int, int, int]  # what `resize_axis` is called with


def axes_of(picture: Picture, geometry: Geometry) -> tuple[Axis, Axis]:
    """How its rows and its columns get into the input."""
    window = geometry.window
    top, left, height, width = (window.top, window.left, window.height, window.width)
    if picture.is_input:
        top, left, height, width = (0, 0, *geometry.size)
    return (picture.height, geometry.height, top, height), (picture.pixels.shape[1], geometry.width, left, width)


def plan(pictures: Sequence[Picture], geometry: Geometry) -> tuple[list[Place], int]:
    """Where each picture and its tables lie in one upload (pictures of one size share tables), and its size in bytes."""
    axes: dict[Axis, int] = {}  # axis -> where its table lies
    size = 0

    def reserve(amount: int) -> int:
        nonlocal size
        start = size
        size += -(-amount // ALIGNMENT) * ALIGNMENT
        return start

    for picture in pictures:
        for axis in axes_of(picture, geometry):
            if axis not in axes:
                axes[axis] = reserve(resize_axis(*axis).nbytes)
    places = []
    for picture in pictures:
        rows, columns = axes_of(picture, geometry)
        places.append(Place(axes[rows], axes[columns], reserve(picture.pixels.size)))
    return places, size
