"""The filter of the graph's input: bilinear with antialiasing, by vector instructions where there is a library of them.

Pillow defines it (specification section 1): horizontally first, then vertically, rounded after each. On x86-64
cykooz-resizer computes it in a third of the time: the same bytes for many sizes, 512x384 among them, and never more than
one grey level off (640x480: 1 value in 100 of noise); with AVX2, SSE4.1 and neither it computes the same. It is not built
for other processors: there Pillow is taken. All verbs on a machine share one of the two.
"""

from __future__ import annotations

import platform
import threading

import numpy as np
from PIL import Image

IS_VECTORISED = platform.machine() == "x86_64"  # as the marker in setup.py has it


def pillow_bilinear(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The definition: `image`, uint8 (H, W) or (H, W, 3), at the size `height` x `width`; read-only."""
    # One pass a call: in a single call a picture much higher than wide goes vertically first, from Pillow 13 on.
    narrow = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(narrow.resize((width, height), Image.Resampling.BILINEAR))


if IS_VECTORISED:
    from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

    _OPTIONS = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.bilinear))
    _of_thread = threading.local()  # a resizer keeps its tables and buffers, and serves one thread at a time

    def bilinear(image: np.ndarray, width: int, height: int) -> np.ndarray:
        """`image`, uint8 (H, W) or (H, W, 3), at the size `height` x `width`; read-only. At most 1 from `pillow_bilinear`."""
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
