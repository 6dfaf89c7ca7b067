"""What --runner cuda takes of this machine, asked before anything is loaded on the GPU."""

from __future__ import annotations

from importlib.util import find_spec

from nnet_edge.errors import ConfigError, MissingExtraError


def require_cuda_parts(index: int = 0, precision: str | None = None) -> None:
    """Raise ConfigError, MissingExtraError or StreamError, with what to do, unless it can compute on the GPU of that index."""
    if precision == "int8":
        raise ConfigError("INT8 is for TensorRT and the processor")
    from nnet_edge.runtime.runners.trt.cuda_engine import require_cuda
    from nnet_edge.runtime.runners.trt.kernels.nvcc import find_nvcc

    require_cuda(index)
    find_nvcc()
    if find_spec("pycuda") is None:
        raise MissingExtraError("pycuda is not installed: pip install 'nnet-edge[cuda]'")
