"""Engine gate: an engine's verdicts against the FP32 graph on a CPU runner, its speed against other engines.

Verdicts are compared on the held-out frames that the bundle keeps, and on labelled images where they are at hand. Speeds are
taken in turns at the batch that the engines were built for, without downloads of maps: what a stream asks of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.bundle import Artefact, Bundle, read_bundle, record_gates
from nnet_edge.errors import DataError, EngineBuildError, MissingExtraError, StreamError
from nnet_edge.export.engine_settings import Target
from nnet_edge.frame import Frame
from nnet_edge.gpu import GpuFacts, find_gpu
from nnet_edge.runtime.runners.base import FrameRunner, installed_kind, load_runner
from nnet_edge.runtime.runners.trt.kernels import open_gpu
from nnet_edge.settings.runner import RunnerSettings

if TYPE_CHECKING:
    import numpy as np

    from nnet_edge.calibration.gate import Gate
    from nnet_edge.calibration.predictions import TestImages
    from nnet_edge.data.images import Dataset

Say = Callable[[str], None]
WARM_UP, TURNS = 8, 24  # batches; the first two in each of three slots bind a context and capture a CUDA graph


@dataclass(frozen=True)
class Judging:
    """What engines are judged by, and who is told."""

    accept: bool  # use an engine that the gate refuses
    test: TestImages | None  # labelled images; None: the held-out frames alone
    say: Say


def load_labelled(path: Path, dataset: Dataset | None, skip_bad: bool) -> TestImages | None:
    """The test images of `dataset` for the bundle at `path`; None where there is no dataset.

    Raises DataError for a dataset without test images, or with one that cannot be read (unless `skip_bad`).
    """
    if dataset is None:
        return None
    from nnet_edge.calibration.predictions import load_test
    from nnet_edge.data.images import with_held_out_images

    test = load_test(with_held_out_images(dataset, read_bundle(path).manifest["data"]), skip_bad)
    if test is None:
        raise DataError(f"{dataset.root} holds no test images to judge engines on: add defects, or leave --data out")
    return test


def runs_here(target: Target) -> bool:
    """Whether what is built for `target` will be measured on this machine."""
    gpu = find_gpu()
    is_named = isinstance(gpu, GpuFacts) and gpu.compute_capability in target.compute_capabilities
    return is_named or (target.needs_gpu and isinstance(gpu, GpuFacts))


def require_judging() -> None:
    """Check that this machine has all that judging takes, before minutes of building.

    Raises MissingExtraError that names the extra, StreamError for a GPU that cannot be used.
    """
    installed_kind()
    if find_spec("scipy") is None:
        raise MissingExtraError("scipy is not installed; an engine's threshold needs it: pip install 'nnet-edge[gpu]'")
    open_gpu().close()


def judge_engine(bundle: Bundle, artefact: Artefact, judging: Judging) -> tuple[Bundle, Gate]:
    """The bundle with the gate's verdict on an engine that fits this machine, and the verdict.

    Raises what `load_runner` raises, CalibrationError for an engine without verdicts that is to be accepted anyway.
    """
    from nnet_edge.calibration.gate import judge

    held_out, asked = bundle.frames("held_out"), bundle.threshold.asked
    with load_runner(bundle.graph) as reference, load_runner(artefact.path, RunnerSettings()) as candidate:
        gate = judge(reference, candidate, held_out, judging.test, false_rejects=asked).overridden_by(judging.accept)
        name, against = candidate.name, f"fp32 on {reference.name}"
    judging.say(sentence(artefact, gate, against))
    return record_gates(bundle, artefact.name, {name: gate.as_dict() | {"against": against}}), gate


def sentence(artefact: Artefact, gate: Gate, against: str) -> str:
    """The verdict in one line; `against` names what it was compared with."""
    verdict = "accepted" if gate.accepted else "refused, used anyway" if gate.overridden else "refused"
    error = f", map error {gate.map_error['max']:.1e} of the threshold at most" if gate.map_error else ""
    speed = "" if gate.latency_ms is None else f", {gate.latency_ms[1]:.2f} ms an image"
    flips = f"{gate.flips} of {gate.images} verdicts flip"
    return f"{artefact.name} on {gate.runner} against {against}: {verdict}; {flips}{error}{speed}"


def require_accepted(artefact: Artefact, gate: Gate) -> None:
    """Raise EngineBuildError, with the gate's reasons, unless the engine may be used."""
    if not (gate.accepted or gate.overridden):
        refused = f"{artefact.path} was built, and the gate refuses it on {gate.runner}"
        raise EngineBuildError(f"{refused}: {'; '.join(gate.reasons)}; use another --precision, or say --accept")


def time_engines(engines: Mapping[str, Path], batch: int, images: np.ndarray, say: Say) -> dict[str, float]:
    """Median milliseconds of a batch on each engine, in turns; one after another where they do not fit into the GPU together.

    `images` are uint8 RGB (N, 256, 256, 3). Raises what `load_runner` raises, StreamError for an engine that fails.
    """
    try:
        return time_in_turns(engines, batch, images)
    except StreamError as error:
        if len(engines) == 1:
            raise
        say(f"timing the engines one after another, for together they do not run: {error}")
        return {name: time_in_turns({name: path}, batch, images)[name] for name, path in engines.items()}


def time_in_turns(engines: Mapping[str, Path], batch: int, images: np.ndarray) -> dict[str, float]:
    """Median milliseconds of a batch on each engine, from frames to scores; a GPU that slows down slows all alike."""
    frames = [Frame(images[number % len(images)], number, 0.0) for number in range(batch)]
    spent: dict[str, list[int]] = {name: [] for name in engines}
    with ExitStack() as stack:
        settings = RunnerSettings(max_batch=batch)
        runners = {name: stack.enter_context(load_runner(path, settings)) for name, path in engines.items()}
        for _ in range(WARM_UP + TURNS):
            for name, runner in runners.items():
                assert isinstance(runner, FrameRunner)  # every runner of an engine is
                began = time.perf_counter_ns()
                runner.start_frames(frames)()
                spent[name].append(time.perf_counter_ns() - began)
    return {name: statistics.median(times[WARM_UP:]) / 1e6 for name, times in spent.items()}
