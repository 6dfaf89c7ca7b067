"""Device and precision that a network computes in: processor or GPU, FP32 or BF16 autocast."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnet_edge.errors import ConfigError
from nnet_edge.files import require_private
from nnet_edge.machine import is_throttled, usable_cores

if is_throttled():  # torch counts cores, and knows nothing of a container's quota
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))

CHUNK = 8  # images that the teacher takes at once


@dataclass(frozen=True)
class Compute:
    """Where and in which precision the network computes; losses and cosines are FP32 in any case."""

    device: str  # cpu | cuda
    precision: str  # fp32 | bf16

    def autocast(self) -> contextlib.AbstractContextManager:
        """BF16 for convolutions and matrix products where that is the precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def dtype(self) -> torch.dtype:
        """What the features are kept in."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """What torch.compile makes of `function`. Raises ConfigError where others may write the code that torch would load."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()
    require_private(Path(folder), "torch's folder of compiled code (TORCHINDUCTOR_CACHE_DIR)")
    made: Callable[..., Any] = torch.compile(function, **options)
    return made


def choose_device(wanted: str) -> str:
    """cpu or cuda. Raises ConfigError when CUDA is asked for and absent."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: this torch sees no CUDA GPU; say --device cpu, or install a CUDA build of torch"
        )
    if wanted not in ("cpu", "cuda"):
        raise ConfigError(f"device {wanted!r} is unknown: choose auto, cpu or cuda")
    return wanted


def choose_precision(wanted: str, device: str) -> str:
    """fp32 or bf16. Raises ConfigError when BF16 is asked for and the processor has no instruction for it."""
    has_bf16 = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device == "cuda"
        else torch.cpu._is_avx512_bf16_supported()
    )
    if wanted == "auto":
        return "bf16" if has_bf16 else "fp32"
    if wanted == "bf16" and not has_bf16:
        raise ConfigError(f"--precision bf16: this {device} multiplies no BF16 in hardware; say fp32 or auto")
    if wanted not in ("fp32", "bf16"):
        raise ConfigError(f"precision {wanted!r} is unknown: choose auto, fp32 or bf16")
    return wanted


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Only kernels whose sums have a fixed order, where wanted; as before afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """FP32 convolutions that stay FP32 on a GPU: TF32 rounds cosines to 10 bits. As before afterwards."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """The images in pieces that the teacher takes at once."""
    return (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))


def to_device(images: np.ndarray, device: torch.device) -> Tensor:
    """The images as a tensor on `device`."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device)
