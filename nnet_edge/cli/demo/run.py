"""The demo: an inspection line of real photographs, from nothing to a report, in a few minutes on a plain PC.

It walks the way that a user walks with photographs of his own: pictures -> train -> export -> evaluate -> stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nnet_edge.bundle import Bundle, foreign_to_bundle, record_metrics
from nnet_edge.cli.demo.page import DemoRun, Verdicts, in_short, write_report
from nnet_edge.cli.view import TrainingView
from nnet_edge.data.example_parts import Part, camera, make_line
from nnet_edge.data.images import Dataset, read_dataset
from nnet_edge.data.training_data import load_training_data
from nnet_edge.evaluation.evaluate import evaluate
from nnet_edge.evaluation.pictures import write_evaluation
from nnet_edge.export.bundling import export_bundle
from nnet_edge.files import write_atomically, writing_folder
from nnet_edge.frame import Prediction
from nnet_edge.machine import find_processor
from nnet_edge.methods.base import DEFAULT_METHOD, METHODS, MethodSettings
from nnet_edge.runtime.runners.base import Runner, load_runner
from nnet_edge.runtime.sinks import (
    CallbackSink,
    JsonLinesSettings,
    JsonLinesSink,
    RejectsSettings,
    RejectsSink,
    VideoSettings,
    VideoSink,
)
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.report import StreamReport
from nnet_edge.runtime.stream.running import run
from nnet_edge.runtime.stream.terminal import TerminalView
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.stream import VerdictSettings
from nnet_edge.training.log import LOG, PICTURE
from nnet_edge.training.loop import TrainOptions, train

VIDEO_HZ = 3.0  # parts a second in the video: slow enough to look at each
REPORT = "report.html"
MADE = ".nnet-edge-demo.json"  # the names of all files that the demo made: --force replaces these and no others


@dataclass(frozen=True)
class DemoSettings:
    """The size of the line and how it is learned."""

    train_parts: int = 72  # good parts
    held_out_share: float = 1 / 3  # of them, for the threshold: 24 support 1 good part of 25 rejected
    test_good: int = 30
    test_each: int = 12  # parts of every kind of defect
    camera_parts: int = 120
    camera_good_first: int = 24  # then three of ten parts have a defect
    camera_hz: float = 8.0
    training: MethodSettings = METHODS.find(DEFAULT_METHOD).protocols["tuned"]  # what `nnet-edge train` does by default
    options: TrainOptions = field(default_factory=TrainOptions)


def run_demo(
    out: Path,
    seed: int = 0,
    replace: bool = False,
    say: Callable[[str], None] = lambda line: None,
    settings: DemoSettings | None = None,
) -> Path:
    """Make the folder `out` with pictures, bundle, evaluation, verdicts, video and report.html; gives the page's path.

    The folder is written atomically. Progress and the stream are shown on standard error. Raises ConfigError when
    `out` exists and `replace` is off, and whatever a step raises.
    """
    settings = settings or DemoSettings()
    seconds: dict[str, float] = {}
    with writing_folder(out, foreign_to_demo if replace else None) as draft:
        say("drawing the line's pictures from photographs of bricks, gravel and grass")
        with timed(seconds, "pictures"):
            counts = settings.train_parts, settings.test_good, settings.test_each
            dataset = read_dataset(make_line(draft / "line", seed, *counts))
            parts = list(camera(seed, settings.camera_parts, settings.camera_good_first))
        bundle = learn(draft, dataset, seed, settings, seconds, say)
        with load_runner(bundle.graph, RunnerSettings()) as runner:
            say(f"evaluating {len(dataset.test)} parts on {runner.name}")
            with timed(seconds, "evaluate"):
                evaluation = evaluate(runner, dataset, bundle.threshold.value)
                write_evaluation(evaluation, draft / "evaluation")
                record_metrics(bundle, evaluation.metrics.as_dict())
            say(f"the camera starts: {len(parts)} parts, {settings.camera_hz:g} a second")
            with timed(seconds, "stream"):
                predictions, live = watch(draft, parts, runner, bundle, settings.camera_hz)
                flat_out = judge_flat_out(parts, runner, bundle)
        with timed(seconds, "video"):
            video = write_video(draft / "line.mp4", predictions)
        facts = DemoRun(
            out=draft, command=f"nnet-edge demo --out {out} --seed {seed}", processor=processor_words(),
            learned=bundle.manifest["data"]["learned"], bundle=bundle, evaluation=evaluation,
            verdicts=Verdicts(parts, {p.frame.index: p.is_anomalous for p in predictions}), live=live,
            flat_out=flat_out, rate_hz=settings.camera_hz, seconds=seconds, video=video,
            losses=draft / "training" / PICTURE, files=files_of(draft),
        )  # fmt: skip
        write_report(facts, draft / REPORT)
        write_atomically(draft / MADE, json.dumps([MADE, *names_in(draft)], indent=0).encode())
    for line in in_short(facts):
        say(line)
    return out / REPORT


def foreign_to_demo(path: Path) -> str | None:
    """Why the folder is not what a demo left and nothing else; None where it is."""
    try:
        ours = set(json.loads((path / MADE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"is not what a demo left: it holds no {MADE}"
    bundle = path / "bundle"
    if bundle.exists() and (reason := foreign_to_bundle(bundle)) is not None:
        return f"holds a bundle that {reason}"
    foreign = [name for name in names_in(path) if name not in ours and not name.startswith("bundle/")]
    return f"holds {foreign[0]}, which no demo made" if foreign else None


def names_in(folder: Path) -> list[str]:
    """The files below the folder, relative to it."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def learn(draft: Path, dataset: Dataset, seed: int, settings: DemoSettings, seconds: dict[str, float],
          say: Callable[[str], None]) -> Bundle:  # fmt: skip
    """The bundle of the line's good parts: trained, exported, checked on all runners, its threshold chosen."""
    data = load_training_data(dataset, seed, settings.held_out_share)
    say(f"training on {len(data.learned)} good parts; {len(data.held_out)} are held out for the threshold")
    with timed(seconds, "train"), TrainingView() as view:
        train(data.learned, data.held_out, settings.training, draft / "training", settings.options, data.facts,
              report=view.show, say=say)  # fmt: skip
    with timed(seconds, "export, parity, threshold"):
        return export_bundle(draft / "training", draft / "bundle", say=say).bundle


def watch(
    draft: Path, parts: Sequence[Part], runner: Runner, bundle: Bundle, rate_hz: float
) -> tuple[list[Prediction], StreamReport]:
    """The predictions for the parts under a camera of `rate_hz`; leaves JSON lines, the truth, pictures of rejects."""
    lines = (json.dumps({"index": i, "kind": part.kind, "defect": part.defect}) for i, part in enumerate(parts))
    write_atomically(draft / "truth.jsonl", "".join(f"{line}\n" for line in lines).encode())
    predictions: list[Prediction] = []
    sinks = [
        JsonLinesSink(JsonLinesSettings(path=draft / "verdicts.jsonl", fsync_every_s=None, events=False)),
        RejectsSink(
            RejectsSettings(folder=draft / "rejects", pictures=("overlay",), budget_bytes=None, by_stream=False)
        ),
        CallbackSink(predictions.append),
    ]
    source = SyntheticSource([part.image for part in parts], rate_hz, stream="line")
    with TerminalView("demo line") as view:
        report = run(source, runner, sinks, VerdictSettings(bundle.threshold.value), show=view.show)
    return predictions, report


def judge_flat_out(parts: Sequence[Part], runner: Runner, bundle: Bundle) -> StreamReport:
    """How fast the same parts are judged when they come as fast as they are taken."""
    return run(SyntheticSource([part.image for part in parts]), runner, [], VerdictSettings(bundle.threshold.value))


def write_video(path: Path, predictions: Sequence[Prediction]) -> Path:
    """The annotated video of the predictions; written after the stream, whose latencies it would blur."""
    with VideoSink(VideoSettings(path=path, rate_hz=VIDEO_HZ, piece_s=None, piece_bytes=None, by_stream=False)) as sink:
        for prediction in predictions:
            sink.write(prediction)
    return path


def files_of(draft: Path) -> list[tuple[Path, str]]:
    """What lies in the folder, for the report."""
    return [
        (draft / "verdicts.jsonl", "one JSON object for each part under the camera"),
        (draft / "truth.jsonl", "what each of these parts really was"),
        (draft / "rejects", "annotated pictures of the rejected parts"),
        (draft / "bundle", "the trained inspection: manifest, weights, ONNX graph"),
        (draft / "evaluation" / "metrics.json", "metrics and the score of every test part"),
        (draft / "training" / LOG, "the losses of every epoch"),
        (draft / "line", "the pictures in MVTec AD layout"),
    ]


def processor_words() -> str:
    """The processor as a report names it."""
    processor = find_processor()
    cores = processor.usable_cores or processor.cores
    return processor.model if cores is None else f"{processor.model}, {cores} core{'' if cores == 1 else 's'}"


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Put the time that the block takes under `step`."""
    began = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - began
