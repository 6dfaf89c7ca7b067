"""Resize and colour order of images: the reference for training, evaluation, calibration and stream.

The resize to the input's size is Pillow's bilinear filter with antialiasing (specification section 1, RD4AD's protocol):
horizontally first, then vertically, rounded after each; `geometry.py` says which part of a picture goes where. On x86-64
cykooz-resizer computes it in a third of the time: the same bytes for many sizes, 512x384 among them, and never more than one
grey level off in each direction (640x480: one, in 1 value of 100 of noise; 320x320, the worst: two at places, 8 values of 100
differ), with AVX2, SSE4.1 or neither. Other processors use Pillow. The CUDA kernel agrees within one grey level.

Files are read by `image_files.py`.
"""

from __future__ import annotations

import platform
import threading
from typing import Literal

import cv2
import numpy as np

from nnet_edge.bits import to_8_bit
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.geometry import DEFAULT, GREY, Geometry
from nnet_edge.machine import is_throttled, usable_cores
from nnet_edge.moved import forward

IS_VECTORISED = platform.machine() == "x86_64"  # as in the marker of setup.py


def pillow_bilinear(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """`image`, uint8 (H, W) or (H, W, 3), at the size `height` x `width`, by the reference filter; read-only."""
    from PIL import Image

    # One pass a call: in a single call a picture much higher than wide goes vertically first, from Pillow 13 on.
    narrow = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(narrow.resize((width, height), Image.Resampling.BILINEAR))


if IS_VECTORISED:
    from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

    _OPTIONS = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.bilinear))
    _of_thread = threading.local()  # a resizer keeps its tables and buffers, and serves one thread at a time

    def bilinear(image: np.ndarray, width: int, height: int) -> np.ndarray:
        """`image`, uint8 (H, W) or (H, W, 3), at the size `height` x `width`; read-only. At most 2 from `pillow_bilinear`."""
        if not hasattr(_of_thread, "resizer"):
            _of_thread.resizer = Resizer()
        kind = PixelType.U8 if image.ndim == 2 else PixelType.U8x3
        height_now, width_now = image.shape[:2]
        pixels = ImageData(width_now, height_now, kind, image.tobytes())
        for size in ((width, height_now), (width, height)):
            if size != (pixels.width, pixels.height):
                larger, pixels = pixels, ImageData(*size, kind)
                _of_thread.resizer.resize(larger, pixels, _OPTIONS)
        return np.frombuffer(pixels.get_buffer(), np.uint8).reshape(height, width, *image.shape[2:])

else:
    bilinear = pillow_bilinear


if is_throttled():  # OpenCV counts cores, and knows nothing of a container's quota
    cv2.setNumThreads(usable_cores())

MaskRule = Literal["half", "any"]
__getattr__ = forward(__name__)


def resize(image: np.ndarray, geometry: Geometry = DEFAULT) -> np.ndarray:
    """`image`, uint8 (H, W, 3), as the graph's input: uint8 (height, width, 3), owned by the caller."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise DataError(f"resize needs an image of uint8 (H, W, 3), not {image.dtype} {image.shape}: call to_rgb first")
    if geometry.is_whole:
        return bilinear(image, geometry.width, geometry.height).copy()
    placed = np.full(geometry.shape, GREY, np.uint8)
    window = geometry.window
    part = np.ascontiguousarray(image[geometry.part(*image.shape[:2]).inside])
    placed[window.inside] = bilinear(part, window.width, window.height)
    return placed


def to_rgb(frame_bgr: np.ndarray) -> np.ndarray:
    """A frame as a camera gives it, as uint8 RGB (H, W, 3), owned by the caller.

    Takes grey (H, W) or (H, W, 1), BGR (H, W, 3) and BGRA (H, W, 4), uint8 or uint16 (of 16 bits).
    Raises DataError for any other shape or type.
    """
    frame, conversion = _as_8_bit_frame(frame_bgr)
    return cv2.cvtColor(frame, conversion)


def to_input(frame_bgr: np.ndarray, into: np.ndarray, geometry: Geometry | None = None) -> None:
    """Write resize(to_rgb(frame_bgr), geometry), the graph's input, bit for bit into `into`, uint8 (height, width, 3).

    Without a geometry the whole frame fills all of `into`.

    Faster than both: colours are reordered after the resize, and grey is resized once (benchmarks/notes.md).
    Raises DataError as `to_rgb`.
    """
    frame, conversion = _as_8_bit_frame(frame_bgr)
    if conversion == cv2.COLOR_BGRA2RGB:
        frame, conversion = cv2.cvtColor(frame, cv2.COLOR_BGRA2BGR), cv2.COLOR_BGR2RGB
    flat = frame[..., 0] if conversion == cv2.COLOR_GRAY2RGB and frame.ndim == 3 else frame
    geometry = geometry or Geometry(into.shape[0], into.shape[1])
    if not geometry.is_whole:
        flat = np.ascontiguousarray(flat[geometry.part(*flat.shape[:2]).inside])
    window = geometry.window
    if flat.shape[:2] != (window.height, window.width):
        flat = bilinear(flat, window.width, window.height)
    if (window.height, window.width) == geometry.size:
        cv2.cvtColor(flat, conversion, dst=into)
    else:
        into[...] = GREY
        into[window.inside] = cv2.cvtColor(flat, conversion)


def _as_8_bit_frame(frame_bgr: np.ndarray) -> tuple[np.ndarray, int]:
    """The frame in uint8, and OpenCV's code for its conversion to RGB. Raises DataError for another type or shape."""
    channels = frame_bgr.shape[2] if frame_bgr.ndim == 3 else 1 if frame_bgr.ndim == 2 else 0
    conversion = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}.get(channels)
    if conversion is None or frame_bgr.dtype not in (np.uint8, np.uint16) or frame_bgr.size == 0:
        raise DataError(
            f"a frame must be uint8 or uint16 of shape (H, W), (H, W, 3) or (H, W, 4), not {frame_bgr.dtype} "
            f"{frame_bgr.shape}: convert it where it is captured"
        )
    return frame_bgr if frame_bgr.dtype == np.uint8 else to_8_bit(frame_bgr), conversion


def resize_mask(mask: np.ndarray, geometry: Geometry = DEFAULT, rule: MaskRule = "half") -> np.ndarray:
    """`mask`, bool (H, W), as its picture comes to the input: bool (height, width), false beside a letterbox.

    "half": true where the bilinearly resized mask exceeds one half, the paper's protocol; a tiny defect may vanish.
    "any": true wherever the filter touched a defect; none vanishes, each grows by about one pixel.
    """
    if rule not in ("half", "any"):
        raise ConfigError(f'mask rule "{rule}" is unknown: choose "half" or "any"')
    from PIL import Image

    mask, window = mask[geometry.part(*mask.shape).inside], geometry.window
    values = mask.astype(np.uint8) * 255 if rule == "half" else mask.astype(np.float32)
    resized = np.asarray(Image.fromarray(values).resize((window.width, window.height), Image.Resampling.BILINEAR))
    placed = np.zeros(geometry.size, bool)
    placed[window.inside] = resized > (127 if rule == "half" else 0)
    return placed
