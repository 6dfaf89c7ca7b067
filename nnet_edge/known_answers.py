"""Known answers of a bundle: what its artefacts say of three held-out frames, so that whoever opens it can ask again.

A wrong processor path, a stale cache, an engine of another graph or a poisoned weight gives plausible scores; it does not give
these. In the manifest:

    known_answers.frames    hashes of the frames: of all held-out ones those with the lowest, the middle and the highest score
    known_answers.answers   runner name -> answers of nnet.onnx
    artefacts.*.answers     the same of every other artefact, in its record

Answers are {"scores": [...], "maps": [...]}, one a frame: the image score, and the anomaly map reduced to 8x8 means, row by
row, as 64 numbers in one text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnet_edge.bundle import Artefact, Bundle, changed, of_runner
from nnet_edge.errors import BundleError
from nnet_edge.frame import Outputs
from nnet_edge.kept_frames import read_frames

ASKED = 3  # frames
COARSE = 8  # height and width of a map that is kept
# How far answers may lie from those that are kept, in thresholds. FP32: the band of the gate. INT8 rounds otherwise on
# processors of another kind, by up to a twentieth; half precision and BF16 lie between.
TOLERANCES = {"fp32": 0.01, "fp16": 0.03, "bf16": 0.05, "int8": 0.05}
ENGINE_FACTOR = 2.0  # of an engine from the graph that it was built of: other kernels, another order of sums


@dataclass(frozen=True)
class Answers:
    """Scores float64 (N,) and coarse maps float64 (N, 8, 8) of the asked frames."""

    scores: np.ndarray
    maps: np.ndarray

    @classmethod
    def of(cls, outputs: Outputs) -> Answers:
        """The answers in a runner's outputs for the asked frames."""
        height, width = (side // COARSE for side in outputs.anomaly_map.shape[-2:])
        blocks = outputs.anomaly_map.astype(np.float64).reshape(-1, COARSE, height, COARSE, width)
        return cls(outputs.image_score.astype(np.float64), blocks.mean(axis=(2, 4)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {
            "scores": [float(f"{score:.7g}") for score in self.scores],
            "maps": [" ".join(f"{value:.5g}" for value in one.ravel()) for one in self.maps],
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str) -> Answers:
        """The answers that `as_dict` wrote. Raises BundleError, naming `where`, for anything else."""
        try:
            scores = np.array(fields["scores"], np.float64)
            maps = np.array([[float(word) for word in text.split()] for text in fields["maps"]]).reshape(
                -1, COARSE, COARSE
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"the known answers of {where} cannot be read ({error!r}): make it again") from error
        if len(scores) != len(maps) or not len(scores) or not (np.isfinite(scores).all() and np.isfinite(maps).all()):
            raise BundleError(f"the known answers of {where} are none: make it again")
        return cls(scores, maps)

    def fault(self, found: Answers, frames: Sequence[str], threshold: float, tolerance: float) -> str:
        """Where `found` lies farther from these than `tolerance` thresholds, with both values; empty where it does not."""
        for frame, known, score, one, other in zip(
            frames, self.scores, found.scores, self.maps, found.maps, strict=True
        ):
            allowed = f"{tolerance:.0%} of the threshold {threshold:.6g} are allowed"
            if not abs(score - known) <= tolerance * threshold:
                return f"frames/{frame}.png has the score {score:.6g} and must have {known:.6g} ({allowed})"
            errors = np.abs(one - other)
            if not errors.max() <= tolerance * threshold:
                place = np.unravel_index(int(np.argmax(np.nan_to_num(errors, nan=np.inf))), errors.shape)
                row, column = int(place[0]), int(place[1])
                return (
                    f"frames/{frame}.png has {other[row, column]:.6g} in row {row + 1}, column {column + 1} of its "
                    f"{COARSE}x{COARSE} map and must have {one[row, column]:.6g} ({allowed})"
                )
        return ""


def choose_frames(hashes: Sequence[str], scores: np.ndarray) -> list[str]:
    """The frames to ask: of the held-out ones, by their scores (N,), the lowest, the middle and the highest; each once."""
    order = sorted(range(len(hashes)), key=lambda row: (float(scores[row]), hashes[row]))
    return list(dict.fromkeys(hashes[order[round(share * (len(order) - 1))]] for share in np.linspace(0, 1, ASKED)))


def answers_at(outputs: Outputs, held_out: Sequence[str], frames: Sequence[str]) -> Answers:
    """The answers for `frames` in a runner's outputs for all held-out frames of these hashes."""
    rows = [held_out.index(name) for name in frames]
    return Answers.of(Outputs(outputs.anomaly_map[rows], outputs.image_score[rows]))


def asked_frames(bundle: Bundle) -> list[str]:
    """Hashes of the frames that are asked; none in a bundle of before."""
    known = bundle.manifest.get("known_answers")
    frames = known.get("frames") if isinstance(known, Mapping) else []
    if not isinstance(frames, list) or not set(frames) <= set(bundle.manifest["frames"]["held_out"]):
        raise BundleError(f"{bundle.path} has known answers of frames that it does not keep: export it again")
    return frames


def read_asked(bundle: Bundle) -> np.ndarray:
    """The asked frames, uint8 RGB (N, H, W, 3)."""
    return read_frames(bundle.path, asked_frames(bundle), bundle.geometry)


def known_to(bundle: Bundle, artefact: Artefact, runner: str) -> tuple[Answers, float] | None:
    """The answers that this artefact must give on that runner, and the tolerance; None where none are known.

    They are its own on that runner; else its own on another; for an engine else those of the graph that it was built of.
    """
    named = own_answers(bundle, artefact)
    tolerance = TOLERANCES[artefact.precision]
    if artefact.kind == "engine" and of_runner(named, runner) is None:
        named, tolerance = own_answers(bundle, bundle.engine_source(artefact.precision)), tolerance * ENGINE_FACTOR
    if not named:
        return None
    fields = of_runner(named, runner) or named[sorted(named, key=lambda name: (name != "openvino", name))[0]]
    answers = Answers.from_dict(fields, str(artefact.path))
    if len(answers.scores) != len(asked_frames(bundle)):
        raise BundleError(
            f"the known answers of {artefact.path} are not those of the frames that are asked: make it again"
        )
    return answers, tolerance


def own_answers(bundle: Bundle, artefact: Artefact) -> Mapping[str, Any]:
    """Runner name -> the answers that are kept of the artefact."""
    is_first = artefact.path == bundle.graph
    found = (bundle.manifest.get("known_answers") or {}) if is_first else artefact.record
    answers = found.get("answers") or {}
    if not isinstance(answers, Mapping):
        raise BundleError(f"the known answers of {artefact.path} are no table: make it again")
    return answers


def keep_answers(bundle: Bundle, frames: Sequence[str], answers: Mapping[str, Answers]) -> Bundle:
    """The bundle with those frames to ask and nnet.onnx's answers by runner, on disk too."""
    fields = {name: one.as_dict() for name, one in answers.items()}
    return changed(bundle, known_answers={"frames": list(frames), "answers": fields})
