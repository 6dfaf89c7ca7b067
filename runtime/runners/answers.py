"""Known-answer test: a runner that was just opened judges the bundle's known frames before any other."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nnet_edge.bundle import Artefact, Bundle
from nnet_edge.errors import BundleError
from nnet_edge.known_answers import (
    TOLERANCES,
    Answers,
    answers_at,
    asked_frames,
    choose_frames,
    keep_answers,
    known_to,
    read_asked,
)
from nnet_edge.runtime.runners.base import Runner, infer_all, load_runner
from nnet_edge.runtime.runners.tiled import tiled
from nnet_edge.settings.runner import RunnerSettings

log = logging.getLogger(__name__)
told: set[Path] = set()  # artefacts without known answers that were spoken of


def ask(runner: Runner, frames: np.ndarray) -> Answers:
    """The runner's answers for `frames`, uint8 RGB (N, H, W, 3)."""
    return Answers.of(infer_all(runner, frames, layer_maps=False))


def answer_fault(bundle: Bundle, artefact: Artefact, runner: Runner) -> str:
    """Where the runner of that artefact does not give its known answers, with both values; empty where it does.

    An artefact of a bundle of before has none: a line says so, once, and how to add them.
    """
    frames = asked_frames(bundle)
    known = known_to(bundle, artefact, runner.name) if frames else None
    if known is None:
        if artefact.path.resolve() not in told:
            told.add(artefact.path.resolve())
            log.warning(
                "%s carries no known answers, so a wrong result of its runner would go unnoticed here: add them with "
                "nnet-edge answers %s",
                artefact.path,
                bundle.path,
            )
        return ""
    answers, tolerance = known
    tolerance = max(tolerance, TOLERANCES.get(runner.precision, 0.0))  # FP32's graph in BF16
    return answers.fault(ask(runner, read_asked(bundle)), frames, bundle.threshold.value, tolerance)


def require_answers(bundle: Bundle, artefact: Artefact, runner: Runner) -> None:
    """Raise BundleError, and release the runner, unless it gives the known answers of that artefact."""
    try:
        fault = answer_fault(bundle, artefact, runner)
        if fault:
            raise BundleError(
                f"{artefact.path} on {runner.name} does not give its known answers: {fault}. Nothing is judged by it: "
                "empty the cache folder if there is one, try another --runner, or make the artefact again"
            )
    except BaseException:
        with runner:  # the last exit releases it
            pass
        raise


def add_answers(bundle: Bundle, kinds: Iterable[str]) -> Bundle:
    """The bundle with known answers of nnet.onnx on these runners; one that has some is given back as it is.

    Raises BundleError for scores or maps that are not finite.
    """
    if asked_frames(bundle):
        return bundle
    hashes, held_out = bundle.manifest["frames"]["held_out"], bundle.frames("held_out")
    chosen: list[str] = []
    answers: dict[str, Answers] = {}
    for kind in kinds:
        with tiled(load_runner(bundle.graph, RunnerSettings(kind=kind)), bundle.geometry) as runner:
            outputs = infer_all(runner, held_out, layer_maps=False)
            if fault := outputs.fault():
                raise BundleError(f"{bundle.graph} on {runner.name}, of the held-out frames: {fault}; export it again")
            chosen = chosen or choose_frames(hashes, outputs.image_score)
            answers[runner.name] = answers_at(outputs, hashes, chosen)
    return keep_answers(bundle, chosen, answers)
