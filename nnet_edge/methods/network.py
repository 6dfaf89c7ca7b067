"""Network: the base of every method's network, a frozen teacher and what learns from it; and its runner in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from nnet_edge.anomaly_map import Fusion, anomaly_map, image_score
from nnet_edge.frame import Outputs
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.methods.backbone import Encoder, Features, build_encoder, find_backbone
from nnet_edge.methods.base import METHODS, MethodSettings, ModelSettings
from nnet_edge.methods.compute import full_fp32, to_device
from nnet_edge.methods.global_distance import GlobalDistance, raised, strangeness_of, values_in
from nnet_edge.methods.global_formula import PREFIX
from nnet_edge.methods.teacher_weights import Teacher

PLACE_FACTORS = "place_factors"  # its name among the weights


class Network(nn.Module):
    """`forward` takes uint8 RGB (N, height, width, 3) and gives the layer maps (N, 1, h, w) of `output_names`, a tuple."""

    method: ClassVar[str]  # its name in METHODS
    geometry: Geometry = DEFAULT  # of its input; no weight depends on it
    mean: Tensor
    std: Tensor
    place_factors: Tensor | None  # (1, 1, h, w), of the deepest layer maps: see place_level.py

    def __init__(self, settings: Any, teacher: Encoder) -> None:
        super().__init__()
        self.settings = settings  # a ModelSettings
        self.backbone = find_backbone(settings.backbone)
        self.teacher = teacher
        self.register_buffer("mean", 255 * torch.tensor(self.backbone.mean))
        self.register_buffer("std", 255 * torch.tensor(self.backbone.std))
        self.register_buffer(PLACE_FACTORS, None)  # in the state only where there are some
        self.global_distance: GlobalDistance | None = None  # likewise

    def at(self, geometry: Geometry) -> Network:
        """The network itself, for inputs of that geometry from now on."""
        self.geometry = geometry
        return self

    def train(self, mode: bool = True) -> Network:
        """Set the training mode of everything but the teacher, which always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def trained_parameters(self) -> Iterable[nn.Parameter]:
        """All parameters but the teacher's."""
        return (value for name, value in self.named_parameters() if not name.startswith("teacher."))

    def normalise(self, images: Tensor) -> Tensor:
        """Float (N, 3, H, W), as the teacher was trained on, of uint8 RGB (N, H, W, 3); the cast comes first (TensorRT)."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def student_images(self, images: np.ndarray) -> Tensor:
        """What a training step shows: uint8 RGB `images` (N, H, W, 3), normalised, on the network's device, channels last."""
        values = self.normalise(to_device(images, self.mean.device))
        return values.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def teacher_features(self, normalised: Tensor) -> Features:
        """F1, F2, F3 of normalised images."""
        return self.teacher(normalised)

    def levelled(self, layer_maps: Sequence[Tensor], features: Features) -> tuple[Tensor, ...]:
        """The layer maps of `output_names`, the deepest as the place level and the global distance leave them.

        `features` are the teacher's. See place_level.py and global_distance.py; without both the maps are as they were.
        """
        maps = dict(zip(self.output_names, layer_maps, strict=True))
        deepest = max(self.settings.map_strides.values())
        changed = {name: maps[name] for name, stride in self.settings.map_strides.items() if stride == deepest}
        if self.place_factors is not None:
            changed = {name: values * self.place_factors for name, values in changed.items()}
        if self.global_distance is not None:
            strangeness = strangeness_of(maps | changed, self.map_fusion)
            gain = self.global_distance.gain(features[2])
            changed = {name: raised(values, strangeness, gain) for name, values in changed.items()}
        return tuple((maps | changed).values())

    @property
    def map_fusion(self) -> Fusion:
        """How its layer maps become one map."""
        model: ModelSettings = self.settings
        return model.fusion

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the layer maps that `forward` gives."""
        model: ModelSettings = self.settings
        return tuple(model.map_strides)


def is_settled(name: str) -> bool:
    """Whether the weight of that name is chosen at the end of a training, not trained."""
    return name == PLACE_FACTORS or name.startswith(PREFIX)


def start_network(settings: MethodSettings, teacher: Teacher) -> Network:
    """The network of a training that begins: `teacher`, and everything else at random from the settings' seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network: Network = METHODS.find(settings.method).build(settings.model, teacher.encoder)
        return network.at(settings.input.network)


def restore_network(settings: MethodSettings, weights: Mapping[str, Tensor]) -> Network:
    """The network with `weights`, the teacher's among them, as `state_dict` gave them; in evaluation mode."""
    encoder = build_encoder(find_backbone(settings.model.backbone))
    network: Network = METHODS.find(settings.method).build(settings.model, encoder).at(settings.input.network)
    if PLACE_FACTORS in weights:
        network.place_factors = torch.empty_like(weights[PLACE_FACTORS])
    if values := values_in(weights):
        network.global_distance = GlobalDistance(values)
    network.load_state_dict(weights)
    return network.eval()


class TorchRunner:
    """What every exported graph and engine is compared with: PyTorch, FP32, and the reference of `anomaly_map.py`."""

    name = "torch"
    precision = "fp32"

    def __init__(self, network: Network, device: str = "cpu", max_batch: int = 8) -> None:
        self.max_batch, self.input_shape = max_batch, network.geometry.shape
        self._device = device
        self._network = network.eval().to(device)

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is held that Python does not free itself."""

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        """`infer` at once; what is given back gives its outputs."""
        outputs = self.infer(images, layer_maps)
        return lambda: outputs

    @torch.inference_mode()
    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        """Maps and scores of `images`, uint8 RGB (N, height, width, 3); the caller may keep the arrays."""
        with full_fp32():
            found = self._network(torch.from_numpy(np.ascontiguousarray(images)).to(self._device))
        maps = {name: value.cpu().numpy() for name, value in zip(self._network.output_names, found, strict=True)}
        enlarged = anomaly_map(maps, self._network.map_fusion, self._network.geometry.window)
        return Outputs(enlarged[:, 0], image_score(enlarged), maps if layer_maps else {})
