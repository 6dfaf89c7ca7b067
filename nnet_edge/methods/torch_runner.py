"""TorchRunner: a network in PyTorch as a runner, which every exported graph and engine is compared with."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import numpy as np
import torch

from nnet_edge.anomaly_map import anomaly_map, image_score
from nnet_edge.frame import Outputs
from nnet_edge.imaging import SIDE
from nnet_edge.methods.compute import full_fp32
from nnet_edge.methods.network import Network


class TorchRunner:
    """Computes in PyTorch, FP32, and takes the maps through the reference of `anomaly_map.py`."""

    name = "torch"
    precision = "fp32"
    input_shape = (SIDE, SIDE, 3)

    def __init__(self, network: Network, device: str = "cpu", max_batch: int = 8) -> None:
        self.max_batch = max_batch
        self._device = device
        self._network = network.eval().to(device)

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held that Python does not free itself."""

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        """`infer` at once; what is given back gives its outputs."""
        outputs = self.infer(images, layer_maps)
        return lambda: outputs

    @torch.inference_mode()
    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        """Maps and scores of `images`, uint8 RGB (N, 256, 256, 3); the caller may keep the arrays."""
        with full_fp32():
            found = self._network(torch.from_numpy(np.ascontiguousarray(images)).to(self._device))
        maps = {name: value.cpu().numpy() for name, value in zip(self._network.output_names, found, strict=True)}
        enlarged = anomaly_map(maps, fusion=self._network.map_fusion)
        return Outputs(enlarged[:, 0], image_score(enlarged), maps if layer_maps else {})
