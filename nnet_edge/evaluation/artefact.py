"""Artefact to evaluate: a bundle's graph on a runner, or weights in PyTorch; and the table of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.bits import kept_bits
from nnet_edge.bundle import MANIFEST, Bundle, read_bundle
from nnet_edge.errors import ConfigError, TrainingError
from nnet_edge.geometry import DEFAULT, Geometry, PictureSizes
from nnet_edge.metrics import METRICS, SPRO_LIMIT
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.runners.tiled import tiled
from nnet_edge.runtime.stream.model import choose_runner, open_graph
from nnet_edge.settings.runner import RunnerSettings

if TYPE_CHECKING:
    from nnet_edge.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Artifact:
    """A runner, the threshold to judge with, and the bundle where there is one."""

    runner: Runner
    threshold: float
    bundle: Bundle | None
    warnings: tuple[str, ...]
    bits: int | None = None  # that its training read pictures of 16 bits with; None: it met none
    geometry: Geometry = DEFAULT  # of its input
    sizes: PictureSizes | None = None  # of the pictures that it learned from; None: it does not say


def open_artifact(path: Path, settings: RunnerSettings, in_torch: bool, precision: str | None = None) -> Artifact:
    """The artifact at `path`: a bundle, or the training folder (or checkpoint file) that train left.

    `precision` picks the bundle's graph and with it the threshold that was chosen there; "bf16" is FP32's graph, computed in
    BF16; None is FP32's, or TensorRT's best engine. Raises BundleError when the bundle holds no such graph or its gate refused
    it, ConfigError where only FP32 can be.
    A checkpoint alone has no threshold chosen on a deployed runner: it is chosen here, in PyTorch, on its held-out images.
    """
    is_training = (path / "checkpoint.safetensors").exists() and not (path / MANIFEST).exists()
    if path.is_file() or is_training:
        require_fp32(precision, "a checkpoint")
        return open_checkpoint(path, settings)
    bundle = read_bundle(path)
    idle = ""
    if in_torch:
        require_fp32(precision, "PyTorch")
        runner, threshold = open_weights(bundle, settings), bundle.threshold.value
    else:
        settings, idle = choose_runner(bundle, settings, precision)
        runner, threshold = open_graph(bundle, settings, precision)
    warnings = (*bundle.warnings, *([f"the GPU is not used ({idle})"] if idle else []))
    bits, sizes = kept_bits(bundle.manifest), PictureSizes.in_manifest(bundle.manifest)
    return Artifact(runner, threshold, bundle, warnings, bits, bundle.geometry, sizes)


def require_fp32(precision: str | None, what: str) -> None:
    """Raise ConfigError unless the precision is FP32 or not asked for."""
    if precision not in (None, "fp32"):
        raise ConfigError(f"{what} is evaluated in fp32, not in {precision}: give a bundle and leave --torch out")


def open_checkpoint(path: Path, settings: RunnerSettings) -> Artifact:
    from nnet_edge.methods.network import TorchRunner
    from nnet_edge.runtime.runners.base import infer_all
    from nnet_edge.scoring import ThresholdRule
    from nnet_edge.training.checkpoint import read_checkpoint, read_held_out

    checkpoint = read_checkpoint(path)
    geometry = checkpoint.settings.input
    runner = tiled(TorchRunner(checkpoint.build_network(), max_batch=settings.max_batch), geometry)
    outputs = infer_all(runner, read_held_out(path if path.is_dir() else path.parent))
    if fault := outputs.fault():
        raise TrainingError(f"{path}, of the held-out frames: {fault}: train again, with a lower --learning-rate")
    is_random = checkpoint.facts["teacher"]["is_random"]
    warnings = ("THE TEACHER HAS RANDOM WEIGHTS: verdicts mean nothing",) if is_random else ()
    threshold = ThresholdRule.of(checkpoint.facts["data"]).choose(outputs.image_score).value
    sizes = PictureSizes.in_manifest(checkpoint.facts)
    return Artifact(runner, threshold, None, warnings, kept_bits(checkpoint.facts), geometry, sizes)


def open_weights(bundle: Bundle, settings: RunnerSettings) -> Runner:
    """A runner of the bundle's weights in PyTorch."""
    from nnet_edge.methods.network import TorchRunner

    return tiled(TorchRunner(load_network(bundle), max_batch=settings.max_batch), bundle.geometry)


def load_network(bundle: Bundle) -> Any:  # a Network, of a type that its method knows
    """The network with the bundle's weights, in evaluation mode."""
    from safetensors.torch import load

    from nnet_edge.methods.base import find_method
    from nnet_edge.methods.network import restore_network

    method = find_method(bundle.method, str(bundle.path))
    return restore_network(method.settings.from_dict(bundle.manifest["train"]), load(bundle.read(bundle.weights.name)))


def table_of(found: Evaluation) -> str:
    """The metrics and verdicts as lines for a terminal."""
    lines = [f"{found.category}: {len(found.scores)} images on {found.runner}, {found.precision}"]
    lines += [f"  {metric.label:<14}{percent(found.metrics[metric.name])}" for metric in METRICS.values()]
    if found.spro is not None:
        lines.append(f"  {'sPRO':<14}{percent(found.spro)} to a false positive rate of {SPRO_LIMIT:g}")
    good, anomalous = int((~found.labels).sum()), int(found.labels.sum())
    lines.append(f"  {'false rejects':<14}{len(found.false_rejects):6d} of {good}")
    if found.promised is not None:
        lines.append(f"    promised: {found.promised.promise()}")
    lines.append(f"  {'missed':<14}{len(found.missed_defects):6d} of {anomalous}")
    if (recall := found.recall_of(found.labels)).found is not None:
        lines.append(f"  {'found':<14}{recall.found:6d} of {recall.marked} at their place")
    lines += [f"    {kind:<12}  {recall.words}" for kind, recall in found.recall_by_defect.items()]
    if found.skipped:
        lines.append(f"  {'skipped':<14}{len(found.skipped):6d} images that could not be read")
    if found.distinct is not None and found.distinct < len(found.scores):
        lines.append(
            f"  {'distinct':<14}{found.distinct:6d} of {len(found.scores)} images: copies count more than once"
        )
    if found.mask_like:
        lines.append(
            f"  {len(found.mask_like)} images look like masks (first: {found.mask_like[0]}): were they meant as such?"
        )
    if found.mask_disagreements:
        lines.append(f"  {len(found.mask_disagreements)} masks say something else than the folder: see metrics.json")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A share in percent, a dash for what could not be computed."""
    return "     -" if value is None else f"{100 * value:6.1f} %"
