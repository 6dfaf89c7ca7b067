"""JPEGs decoded on a GPU by nvImageCodec (nvJPEG): the only file that imports it.

nvJPEG says nothing reliable of damage inside the coded data, so each picture is looked at on the processor first, as
`jpeg.py` does, at an eighth of its size: the same faults are found (all of 100 pictures with 512 bytes overwritten, by either)
in 0.36 of the time of a whole decode. The pixels are not those of libjpeg-turbo, which training reads: nvJPEG rounds its
cosine transform otherwise, so GPUs are asked for by name, never taken by themselves.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError, MissingExtraError, missing_library
from nnet_edge.gpu import NoGpu, find_gpu
from nnet_edge.jpeg import INKS, header_facts, orientation_of, require_undamaged, upright, whole_picture

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

MOST_OFF = 12  # grey levels between its picture of the trial and libjpeg-turbo's; a wrong colour order is 200 off
TRIAL_SIDE = 64


class GpuJpegs:
    """Decodes JPEGs on the GPU of that index; None: nvImageCodec's own decoder on the processor, as the tests do.

    Raises MissingExtraError without nvImageCodec, ConfigError for a GPU that it does not decode on.
    """

    def __init__(self, gpu: int | None) -> None:
        if gpu is not None and isinstance(found := find_gpu(gpu), NoGpu):
            raise ConfigError(found.reason)
        codec = nvimgcodec()
        kinds = codec.BackendKind
        some = (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU) if gpu is not None else (kinds.CPU_ONLY,)
        device = codec.NVIMGCODEC_DEVICE_CPU_ONLY if gpu is None else gpu
        try:  # pixels of chroma are interpolated, as libjpeg-turbo does; one worker: pictures come one by one
            self._decoder = codec.Decoder(device, 1, [codec.Backend(kind) for kind in some], ":fancy_upsampling=1")
        except RuntimeError as error:
            raise ConfigError(f"nvImageCodec cannot use GPU {gpu}: {error}") from error
        self._parameters = codec.DecodeParams(
            apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB, sample_format=codec.SampleFormat.I_BGR
        )
        self._has_failed = False
        self._try()

    def picture(self, data: bytes) -> np.ndarray:
        """The JPEG upright, uint8 BGR (H, W, 3), owned by the caller; on the processor where the GPU cannot.

        Raises DataError as `whole_picture`.
        """
        height, width, colours = header_facts(data)
        if colours in INKS:  # Pillow knows which way round the inks are stored
            return whole_picture(data)
        require_undamaged(data)
        image = self._decode(data)
        if image is None or image.shape != (height, width, 3):
            if not self._has_failed:
                log.warning(
                    "nvImageCodec could not decode a JPEG of %d x %d: such are decoded on the processor", width, height
                )
            self._has_failed = True
            return whole_picture(data)
        return upright(image, orientation_of(data))

    def _decode(self, data: bytes) -> np.ndarray | None:
        """The picture as it is stored; None where nvImageCodec cannot."""
        import numpy as np

        image = self._decoder.decode(data, params=self._parameters)
        return None if image is None else np.asarray(image.cpu())

    def _try(self) -> None:
        """Raise ConfigError unless a picture comes out as on the processor."""
        import numpy as np
        from PIL import Image

        ramp = np.linspace(40, 215, TRIAL_SIDE, dtype=np.uint8)
        pixels = np.stack(np.broadcast_arrays(ramp, ramp[:, None], np.uint8(60)), axis=-1)
        coded = io.BytesIO()
        Image.fromarray(pixels).save(coded, "JPEG", quality=95)
        data = coded.getvalue()
        image, expected = self._decode(data), whole_picture(data)
        if image is None:
            raise ConfigError("nvImageCodec decodes no JPEG here: is nvJPEG installed? pip install 'nnet-edge[decode]'")
        off = np.abs(image.astype(np.int16) - expected).max() if image.shape == expected.shape else None
        if off is None or off > MOST_OFF:
            raise ConfigError(f"nvImageCodec's picture of a trial is another one (off by {off}, {image.shape})")


def nvimgcodec() -> Any:
    """nvImageCodec, quiet on the terminal unless the user asks for its words. Raises MissingExtraError."""
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        import nvidia.nvimgcodec as codec
    except ModuleNotFoundError as error:  # of a namespace that other packages of NVIDIA's may have made
        raise MissingExtraError("nvImageCodec is not installed: pip install 'nnet-edge[decode]'") from error
    except ImportError as error:
        raise missing_library("nvidia.nvimgcodec", "decode", error) from error
    return codec


class JpegReader:
    """Decodes the JPEGs of the source `who`: on the processor for None, else on that GPU, and on the processor where it cannot.

    The GPU is opened with the first picture.
    """

    def __init__(self, gpu: int | None, who: str) -> None:
        self._gpu, self._who = gpu, who

    @property
    def is_on_gpu(self) -> bool:
        """Whether a GPU was asked for."""
        return self._gpu is not None

    def picture(self, data: bytes) -> np.ndarray:
        """The JPEG upright, uint8 BGR (H, W, 3), owned by the caller. Raises DataError as `whole_picture`."""
        return self._decode(data)

    @cached_property
    def _decode(self) -> Callable[[bytes], np.ndarray]:
        if self._gpu is None:
            return whole_picture
        try:
            return GpuJpegs(self._gpu).picture
        except (ConfigError, MissingExtraError) as error:
            log.warning("%s: its JPEGs are decoded on the processor, not on GPU %d: %s", self._who, self._gpu, error)
            return whole_picture
