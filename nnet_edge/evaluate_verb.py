"""What `nnet-edge evaluate` opens: a bundle's graph on a runner, or weights in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.bundle import MANIFEST, Bundle, read_bundle
from nnet_edge.config import RunnerSettings
from nnet_edge.runtime.runner import Runner, load_runner

if TYPE_CHECKING:
    from nnet_edge.model.nnet import NNet


@dataclass(frozen=True)
class Artifact:
    """A runner, the threshold to judge with, and the bundle where there is one."""

    runner: Runner
    threshold: float
    bundle: Bundle | None
    warnings: tuple[str, ...]


def open_artifact(path: Path, settings: RunnerSettings, in_torch: bool) -> Artifact:
    """The artifact at `path`: a bundle, or the training folder (or checkpoint file) that train left.

    A checkpoint alone has no threshold chosen on a deployed runner: it is chosen here, in PyTorch, on its held-out images.
    """
    if path.is_file() or (
        path.is_dir() and not (path / MANIFEST).exists() and (path / "checkpoint.safetensors").exists()
    ):
        return open_checkpoint(path, settings)
    bundle = read_bundle(path)
    runner = open_weights(bundle, settings) if in_torch else load_runner(bundle.graph, settings)
    return Artifact(runner, bundle.threshold.value, bundle, tuple(bundle.warnings))


def open_checkpoint(path: Path, settings: RunnerSettings) -> Artifact:
    """A checkpoint in PyTorch."""
    from nnet_edge.checkpoint import read_checkpoint, read_held_out
    from nnet_edge.export.bundling import with_margin
    from nnet_edge.export.parity import infer_all
    from nnet_edge.model.torch_runner import TorchRunner
    from nnet_edge.scoring import choose_threshold

    checkpoint = read_checkpoint(path)
    runner = TorchRunner(checkpoint.build_network(), max_batch=settings.max_batch)
    scores = infer_all(runner, read_held_out(path if path.is_dir() else path.parent)).image_score
    is_random = checkpoint.facts["teacher"]["is_random"]
    warnings = ("THE TEACHER HAS RANDOM WEIGHTS: verdicts mean nothing",) if is_random else ()
    return Artifact(runner, with_margin(choose_threshold(scores)).value, None, warnings)


def open_weights(bundle: Bundle, settings: RunnerSettings) -> Runner:
    """The bundle's weights in PyTorch, behind the runners' door."""
    from nnet_edge.model.torch_runner import TorchRunner

    return TorchRunner(load_network(bundle), max_batch=settings.max_batch)


def load_network(bundle: Bundle) -> NNet:
    """N-Net with the bundle's weights."""
    from safetensors.torch import load_file

    from nnet_edge.model.backbone import build_encoder, find_backbone
    from nnet_edge.model.nnet import NNet
    from nnet_edge.settings import TrainSettings

    model = TrainSettings.from_dict(bundle.manifest["train"]).model
    network = NNet(model, build_encoder(find_backbone(model.backbone)))
    network.load_state_dict(load_file(bundle.weights))
    return network
