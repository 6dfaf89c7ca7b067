"""Bundling: a training folder becomes a bundle, atomically; graph, parity, threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.torch import save

from nnet_edge.bundle import GRAPH, WEIGHTS, Bundle, read_bundle, writing_bundle
from nnet_edge.errors import ParityError, TrainingError
from nnet_edge.export.onnx_graph import export_onnx, facts_of
from nnet_edge.files import write_atomically
from nnet_edge.frame import Outputs
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.image_path import ImagePath
from nnet_edge.kept_frames import frame_hash, frame_path, write_frames
from nnet_edge.known_answers import answers_at, choose_frames
from nnet_edge.methods.network import Network, TorchRunner
from nnet_edge.runtime.runners.base import Runner, infer_all, load_runner
from nnet_edge.runtime.runners.tiled import tiled
from nnet_edge.scoring import Threshold, ThresholdRule, describe_accepted, set_by_outliers, share_above
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.training.checkpoint import Checkpoint, read_checkpoint, read_held_out

PARITY_RUNNERS = ("onnxruntime", "openvino")
PARITY_BATCH = 2  # images at once: eight take ONNX Runtime 350 MB more, and no less time
LAYER_MAP_ATOL = 1e-4  # FP32 sums in another order; layer maps lie in [0, 2]
SCORE_RTOL = 1e-4  # the score is a product of three sums of layer maps


@dataclass(frozen=True)
class Exported:
    """A finished bundle and what was measured on the way."""

    bundle: Bundle
    parities: tuple[Parity, ...]
    warnings: tuple[str, ...] = ()  # of the good images that it was measured on


def export_bundle(training: Path, out: Path, false_rejects: float | None = None, settings: RunnerSettings | None = None,
                  replace_old: bool = False, say: Callable[[str], None] = lambda line: None,
                  margin: float = 0.0) -> Exported:  # fmt: skip
    """Make the bundle `out` of the training folder (or checkpoint file) `training`.

    The threshold is chosen on the held-out images with the runner of `settings`, the one that will be deployed, for a share
    `false_rejects` of good parts rejected, or the tightest that the images support, and raised by `margin` deviations of good
    scores. Raises ParityError, ConfigError,
    TrainingError or ExportError; then no bundle is written and an old one stays.
    """
    checkpoint = read_checkpoint(training)
    held_out = read_held_out(training if training.is_dir() else training.parent)
    rule = ThresholdRule.of(checkpoint.facts["data"], false_rejects, margin)
    rule.check(len(held_out))  # before the minutes that a large graph takes
    network = checkpoint.build_network()
    checkpoint = replace(checkpoint, network={}, averaged={}, best={}, optimiser={})  # four times the weights
    with writing_bundle(out, replace_old) as draft:
        write_atomically(draft.path / WEIGHTS, save(network.state_dict()))
        say("exporting the graph")
        onnx.save(export_onnx(network, facts_of(network)), draft.path / GRAPH)
        say(f"comparing torch with {' and '.join(PARITY_RUNNERS)} on {len(held_out)} images")
        measured = measure(network, draft.path / GRAPH, held_out, rule, settings, checkpoint.settings.input)
        threshold, parities = measured.threshold, measured.parities
        draft.manifest |= manifest_of(checkpoint, network, threshold, parities, measured.runner)
        draft.manifest["known_answers"] = measured.known_answers
        if reference := describe_accepted(rule.unseen(measured.scores) / threshold.value):
            draft.manifest["good_scores"] = reference.as_dict()
        image_path = ImagePath.of(held_out, checkpoint.facts["data"].get("image_path_of_files"))
        if image_path is not None:
            draft.manifest["image_path"] = image_path.as_dict()
        hashes = write_frames(draft.path, held_out)
        draft.manifest["frames"] = {"held_out": hashes}
    warnings = outlier_warnings(
        rule.unseen(measured.scores), rule, threshold, [frame_path(out, name) for name in hashes]
    )
    return Exported(read_bundle(out), tuple(parities), warnings)


def outlier_warnings(
    scores: np.ndarray, rule: ThresholdRule, threshold: Threshold, paths: Sequence[Path]
) -> tuple[str, ...]:
    """A sentence where few good images, by their held-out scores (N,) far beyond the others, set the threshold."""
    odd = set_by_outliers(scores, threshold)
    if not len(odd):
        return ()
    line = np.delete(scores, odd).max()
    share = math.ceil(1000 * share_above(scores, line, rule.groups)) / 1000
    names = ", ".join(str(paths[row]) for row in odd[:3]) + ", ..." * (len(odd) > 3)
    return (
        f"warning: {len(odd)} of {len(scores)} good images lie far beyond the others and set the threshold ({names}); without "
        f"them it would lie {1 - line / threshold.value:.0%} lower, and defects between are missed. Look at them: take away "
        f"what is no good part and train again, or allow more false rejects (export --false-rejects {share:g})",
    )


@dataclass(frozen=True)
class Measured:
    """What the held-out frames say of a graph."""

    threshold: Threshold  # on the deployed runner
    parities: Sequence[Parity]  # of all runners with the network
    runner: dict[str, Any]  # what the deployed one is
    scores: np.ndarray  # of the held-out frames on it, float32 (N,)
    known_answers: dict[str, Any]  # for the manifest


def measure(
    network: Network,
    graph: Path,
    held_out: np.ndarray,
    rule: ThresholdRule,
    settings: RunnerSettings | None,
    geometry: Geometry = DEFAULT,
) -> Measured:
    """Threshold, parity and known answers. Raises ParityError, ConfigError, TrainingError."""
    settings = replace(settings or RunnerSettings(), max_batch=PARITY_BATCH)
    with tiled(load_runner(graph, settings), geometry) as deployed:
        outputs = infer_all(deployed, held_out)
    if fault := outputs.fault():
        raise TrainingError(
            f"{graph.name} on {deployed.name}, of the held-out frames: {fault}: train again, with a lower --learning-rate"
        )
    scores = outputs.image_score
    threshold = rule.choose(scores)
    hashes = [frame_hash(frame) for frame in held_out]
    asked = choose_frames(hashes, scores)
    reference = tiled(TorchRunner(network, max_batch=PARITY_BATCH), geometry)
    expected = reference_outputs(reference, held_out)
    parities, answers = [], {}
    for kind in PARITY_RUNNERS:  # one after the other: each takes as much memory as the training did
        alone = RunnerSettings(kind=kind, threads=settings.threads, max_batch=PARITY_BATCH)
        found = outputs
        if kind != deployed.name or replace(settings, kind=kind) != alone:
            with tiled(load_runner(graph, alone), geometry) as runner:
                found = infer_all(runner, held_out)
        parities.append(check_parity(reference.name, expected, kind, found, threshold.value))
        answers[kind] = answers_at(found, hashes, asked).as_dict()
    known = {"frames": asked, "answers": answers}
    return Measured(threshold, parities, {"name": deployed.name, "precision": deployed.precision}, scores, known)


def manifest_of(
    checkpoint: Checkpoint, network: Network, threshold: Threshold, parities: Sequence[Parity], runner: dict[str, Any]
) -> dict[str, Any]:
    """What the manifest says beyond schema, versions and hashes."""
    facts = checkpoint.facts
    return {
        "system": network.method,
        "backbone": network.settings.backbone,
        "teacher": facts["teacher"],
        "input": {"name": "images", "dtype": "uint8", "layout": "NHWC", "colours": "RGB",
                  **checkpoint.settings.input.as_dict()},
        "layer_maps": list(network.output_names),
        "fusion": asdict(network.map_fusion),
        "precision": "fp32",
        "train": checkpoint.settings.as_dict(),
        "trained": {"epochs": checkpoint.epoch, "seconds": facts["seconds"], "precision": facts["precision"],
                    "marks": facts["marks"], "place_level": facts.get("place_level"),
                    "global_distance": facts.get("global_distance"),
                    **{name: facts[name] for name in ("compression", "learning_on") if name in facts},
                    **({} if checkpoint.is_finished else {"preview": True})},
        "data": facts["data"],
        "threshold": threshold.as_dict() | {
            "meaning": "image score above which a part is anomalous; scores in reports are divided by it, 1.0 is the line",
            "chosen_on": runner,
        },
        "parity": [asdict(parity) for parity in parities],
        "metrics": None,
    }  # fmt: skip


@dataclass(frozen=True)
class Parity:
    """How far `runner` is from `reference` on the same images."""

    reference: str
    runner: str
    images: int
    layer_map_error: float  # largest absolute difference of any layer map, which lie in [0, 2]
    score_error: float  # largest relative difference of an image score
    flipped_verdicts: int | None  # None before there is a threshold

    @property
    def holds(self) -> bool:
        """Whether all three stay within the stated tolerances."""
        return self.layer_map_error <= LAYER_MAP_ATOL and self.score_error <= SCORE_RTOL and not self.flipped_verdicts

    def sentence(self) -> str:
        """The comparison in one line."""
        flips = "" if self.flipped_verdicts is None else f", {self.flipped_verdicts} flipped verdicts"
        within = f"layer maps within {self.layer_map_error:.1e}, scores within {self.score_error:.1e} relative"
        return f"{self.runner} against {self.reference} on {self.images} images: {within}{flips}"


def reference_outputs(reference: Runner, images: np.ndarray) -> Outputs:
    """What `reference` gives for uint8 RGB images (N, H, W, 3). Raises ParityError for numbers that are not finite."""
    expected = infer_all(reference, images)
    if fault := expected.fault():
        raise ParityError(
            f"the network gives NaN or infinite scores ({reference.name}, of the held-out frames: {fault}): train longer, or "
            "with a lower --learning-rate"
        )
    return expected


def check_parity(
    reference: str, expected: Outputs, runner: str, found: Outputs, threshold: float | None = None
) -> Parity:
    """How far what `runner` gives is from what `reference` gives for the same images. Raises ParityError for too far."""
    if fault := found.fault():
        raise ParityError(
            f"nnet.onnx on {runner}, of the held-out frames: {fault}, where {reference} gives numbers. "
            "No bundle was written; report the versions that `nnet-edge doctor` prints"
        )
    parity = compare(reference, runner, expected, found, threshold)
    if not parity.holds:
        raise ParityError(
            f"{parity.sentence()}; allowed are {LAYER_MAP_ATOL:.0e} and {SCORE_RTOL:.0e} and no flip. "
            "No bundle was written; report the versions that `nnet-edge doctor` prints"
        )
    return parity


def compare(reference: str, runner: str, expected: Outputs, found: Outputs, threshold: float | None) -> Parity:
    """The differences between the outputs of two runners for the same images."""
    errors = [np.abs(value - found.layer_maps[name]).max() for name, value in expected.layer_maps.items()]
    layer_maps = float(max(errors)) if np.isfinite(errors).all() else float("inf")
    scale = np.maximum(np.abs(expected.image_score), np.finfo(np.float32).tiny)
    scores = float((np.abs(expected.image_score - found.image_score) / scale).max())
    flipped = None
    if threshold is not None:
        flipped = int(((expected.image_score > threshold) != (found.image_score > threshold)).sum())
    return Parity(reference, runner, len(expected.image_score), layer_maps, scores, flipped)
