"""The network in PyTorch as a candidate: eager or compiled, on the GPU where torch has one, else on the processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo import config

from nnet_edge.anomaly_map import FUSED_STRIDE, SCALES, SMALLEST_DISTANCE, STRIDES, Fusion, last_matrices
from nnet_edge.anomaly_map import enlarging_matrix as enlarging
from nnet_edge.benchmarks.harness.machine import torch_has_cuda, torch_threads
from nnet_edge.benchmarks.speed.plan import LARGEST_BATCH, PRECISIONS, Opened, Plan, SpeedSettings
from nnet_edge.bundle import Bundle
from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.evaluation.artefact import load_network
from nnet_edge.frame import Outputs
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.machine import usable_cores
from nnet_edge.methods.compute import compiled
from nnet_edge.methods.network import Network, TorchRunner

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def open_torch(bundle: Bundle, plan: Plan, settings: SpeedSettings, stack: ExitStack) -> Iterator[Opened]:
    """The bundle's weights in PyTorch; reduced precisions by autocast, whose verdicts are not compared here.

    Raises ConfigError for a precision that PyTorch does not compute these weights in.
    """
    device = "cuda" if torch_has_cuda() else "cpu"
    if plan.precision == "int8":
        raise ConfigError("PyTorch has the bundle's weights, which are FP32; INT8 is a graph, see the runners")
    if plan.precision == "fp16" and device == "cpu":
        raise ConfigError("FP16 in PyTorch is for a GPU, and this torch has none; BF16 is the processor's half")
    stack.enter_context(torch_threads(settings.threads or usable_cores()))
    if plan.system == "torch.compile":
        stack.enter_context(every_shape_compiled())
    network = load_network(bundle).eval().to(device)
    layer_maps = TorchNetwork(network, plan, device)
    for batch in settings.batches:
        runner = FusingRunner(layer_maps, network, plan.precision, batch)
        yield Opened(plan, batch, runner, layer_maps, bundle.threshold.value, bundle.weights, "")


class TorchNetwork:
    """The network alone: images in, layer maps out, on the device; waits for them."""

    def __init__(self, network: Network, plan: Plan, device: str) -> None:
        self._device, self._dtype = device, AUTOCAST.get(plan.precision)
        is_compiled = plan.system == "torch.compile"
        self._network: Callable[..., Any] = compiled(network, dynamic=False) if is_compiled else network

    def __call__(self, images: np.ndarray) -> tuple[Tensor, ...]:
        """The layer maps of `images`, uint8 RGB (N, H, W, 3). Raises StreamError when they cannot be computed."""
        with torch.inference_mode(), torch.autocast(self._device, self._dtype, enabled=self._dtype is not None):
            try:
                found: tuple[Tensor, ...] = self._network(torch.from_numpy(images).to(self._device))
            except RuntimeError as error:  # torch.compile finds no compiler, memory is short
                raise StreamError(f"PyTorch cannot compute the network: {str(error).splitlines()[0]}") from error
        if self._device == "cuda":
            torch.cuda.synchronize()
        return found


def every_shape_compiled() -> AbstractContextManager[None]:
    """torch.compile compiles each batch, up to the largest in every precision, and fails where it would fall back to eager."""
    shapes = LARGEST_BATCH * len(PRECISIONS)
    limits = {"recompile_limit": shapes, "accumulated_recompile_limit": shapes, "fail_on_recompile_limit_hit": True}
    patch: AbstractContextManager[None] = config.patch(limits)
    return patch


class FusingRunner(TorchRunner):
    """Fuses the layer maps of a TorchNetwork on the same device and threads, in FP32."""

    def __init__(self, layer_maps: TorchNetwork, network: Network, precision: str, max_batch: int) -> None:
        self.precision, self.max_batch, self.input_shape = precision, max_batch, network.geometry.shape
        self._layer_maps, self._names = layer_maps, network.output_names
        self._fuse = torch_fusion(network.settings.fusion, network.geometry)

    @torch.inference_mode()
    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        """Maps and scores of `images`, uint8 RGB (N, H, W, 3)."""
        found = self._layer_maps(np.ascontiguousarray(images))
        maps = {name: value.float() for name, value in zip(self._names, found, strict=True)}
        enlarged = self._fuse(maps)
        scores = enlarged.amax(dim=(1, 2, 3))
        kept = {name: value.cpu().numpy() for name, value in maps.items()} if layer_maps else {}
        return Outputs(enlarged[:, 0].cpu().numpy(), scores.cpu().numpy(), kept)


def torch_fusion(fusion: Fusion, geometry: Geometry = DEFAULT) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """What `anomaly_map` computes, in torch: layer maps (N, 1, h, w) to maps float32 (N, 1, H, W), on their device."""
    pairs: dict[int | None, tuple[np.ndarray, ...]] = {
        scale: tuple(enlarging(side // stride, side // FUSED_STRIDE, fusion.align_corners) for side in geometry.size)
        for scale, stride in zip(SCALES, STRIDES, strict=True)
    }
    pairs[None] = last_matrices(geometry, fusion.align_corners)

    @lru_cache(maxsize=8)
    def matrices(scale: int | None, device: torch.device) -> list[Tensor]:
        return [torch.from_numpy(np.array(values, np.float32)).to(device) for values in pairs[scale]]

    def fuse(maps: Mapping[str, Tensor]) -> Tensor:
        device = next(iter(maps.values())).device
        factors = []
        for scale, exponent in zip(SCALES, fusion.exponents, strict=True):
            weighed = [fusion.weight(name) * maps[name] for name in (f"{branch}_{scale}" for branch in fusion.branches)
                       if name in maps and fusion.weight(name) > 0]  # fmt: skip
            if weighed and exponent > 0:
                rows, columns = matrices(scale, device)
                factor = rows @ torch.stack(weighed).sum(dim=0) @ columns.T
                if fusion.rule == "sum":
                    factor = exponent * factor
                elif exponent != 1:
                    factor = factor.clamp_min(SMALLEST_DISTANCE) ** exponent
                factors.append(factor)
        (rows, columns), stacked = matrices(None, device), torch.stack(factors)
        return rows @ (stacked.sum(dim=0) if fusion.rule == "sum" else stacked.prod(dim=0)) @ columns.T

    return fuse
