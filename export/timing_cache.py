"""What TensorRT measured while it built, kept beside the bundle so that the next build on the same GPU is quick.

One file for each flavour, version and GPU: timings of another say nothing. TensorRT-RTX measures on the machine where it
runs and keeps none.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from nnet_edge.files import write_atomically
from nnet_edge.gpu import GpuFacts
from nnet_edge.runtime.runners.trt.library import TensorrtLibrary

logger = logging.getLogger(__name__)


def cache_path(folder: Path, library: TensorrtLibrary, gpu: GpuFacts) -> Path:
    """timing.<flavour>-<version>-<gpu>.cache in the bundle's folder."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{gpu.name} {gpu.target}".lower()).strip("-")
    return folder / f"timing.{library.flavour}-{library.version}-{name}.cache"


def use_timing_cache(library: TensorrtLibrary, config: Any, folder: Path, gpu: GpuFacts | None) -> Path | None:
    """The file of the earlier builds' timings, which the builder's config now has; None where the flavour keeps none.

    TensorRT checks itself that a cache is from the same version and GPU; one that it refuses is begun anew.
    """
    if library.is_rtx or gpu is None:
        return None
    file = cache_path(folder, library, gpu)
    earlier = file.read_bytes() if file.is_file() else b""
    cache = config.create_timing_cache(earlier)
    if cache is None or not config.set_timing_cache(cache, False):
        logger.warning("%s is no timing cache of this GPU and version: it is begun anew", file)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return file


def keep_timing_cache(file: Path | None, config: Any) -> None:
    """Write the timings that the build ended with."""
    if file is not None:
        timings = config.get_timing_cache()
        write_atomically(file, bytes(timings.serialize()))
