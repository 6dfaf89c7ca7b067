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

from nnet_edge.bundle import Bundle, record_metrics
from nnet_edge.config import RunnerSettings, StreamSettings
from nnet_edge.data import Dataset, fingerprint, hold_out, load_images, read_dataset
from nnet_edge.demo_page import DemoRun, Verdicts, compose, decimals, duration
from nnet_edge.demo_parts import GOOD, Part, camera, make_line
from nnet_edge.evaluate import evaluate, write_evaluation
from nnet_edge.export.bundling import export_bundle
from nnet_edge.files import write_atomically, writing_folder
from nnet_edge.frame import Prediction
from nnet_edge.machine import find_processor
from nnet_edge.metrics import Metrics
from nnet_edge.report import write_report
from nnet_edge.runtime.meters import StreamReport
from nnet_edge.runtime.runner import Runner, load_runner
from nnet_edge.runtime.sinks import CallbackSink, JsonLinesSink, RejectPicturesSink, VideoSink
from nnet_edge.runtime.sources import SyntheticSource
from nnet_edge.runtime.stream import run
from nnet_edge.settings import TrainSettings
from nnet_edge.train import Progress, TrainOptions, train
from nnet_edge.training_log import LOG, PICTURE

VIDEO_HZ = 3.0  # parts a second in the video: slow enough to look at each
REPORT = "report.html"


@dataclass(frozen=True)
class DemoSettings:
    """The size of the line and how it is learned."""

    seed: int = 0
    train_parts: int = 60  # good parts; 15 % of them are held out for the threshold
    test_good: int = 30
    test_each: int = 12  # parts of every kind of defect
    camera_parts: int = 120
    camera_good_first: int = 24  # then three of ten parts have a defect
    camera_hz: float = 8.0
    training: TrainSettings = field(default_factory=TrainSettings)
    options: TrainOptions = field(default_factory=TrainOptions)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and the page that shows it."""

    report: Path
    metrics: Metrics  # of the test set
    verdicts: Verdicts  # under the camera
    frames_per_s: float | None
    seconds: dict[str, float]  # spent on each step

    def lines(self) -> list[str]:
        """The result as a person reads it, one fact a line."""
        (found, defective), (false, good) = self.verdicts.count(None), self.verdicts.count(GOOD)
        return [
            f"image AUROC {decimals(self.metrics.image_auroc)}, pixel AP {decimals(self.metrics.pixel_ap)}, "
            f"PRO {decimals(self.metrics.pro)}",
            f"under the camera: {found} of {defective} parts with a defect found, {false} of {good} good ones rejected",
            f"{decimals(self.frames_per_s, 1)} frames/s; {duration(sum(self.seconds.values()))} in all",
            f"open {self.report}",
        ]


def run_demo(
    out: Path,
    settings: DemoSettings | None = None,
    replace: bool = False,
    say: Callable[[str], None] = lambda line: None,
    on_training: Callable[[Progress], None] = lambda progress: None,
    on_stream: Callable[[StreamReport], None] | None = None,
    command: str | None = None,
) -> DemoResult:
    """Make the folder `out` with pictures, bundle, evaluation, video, verdicts and report.html; give back what was found.

    The folder appears whole or not at all. `command` is printed in the report. Raises
    ConfigError when `out` exists and `replace` is off, and whatever a step raises.
    """
    settings = settings or DemoSettings()
    seconds: dict[str, float] = {}
    with writing_folder(out, replace) as draft:
        say("drawing the line's pictures from photographs of bricks, gravel and grass")
        with timed(seconds, "pictures"):
            dataset = read_dataset(
                make_line(draft / "line", settings.seed, settings.train_parts, settings.test_good, settings.test_each)
            )
            parts = list(camera(settings.seed, settings.camera_parts, settings.camera_good_first))
        bundle, learned = learn(draft, dataset, settings, seconds, say, on_training)
        with load_runner(bundle.graph, RunnerSettings()) as runner:
            say(f"evaluating {len(dataset.test)} parts on {runner.name}")
            with timed(seconds, "evaluate"):
                evaluation = evaluate(runner, dataset, bundle.threshold.value)
                write_evaluation(evaluation, draft / "evaluation")
                record_metrics(bundle, evaluation.metrics.as_dict())
            say(f"the camera starts: {len(parts)} parts, {settings.camera_hz:g} a second")
            with timed(seconds, "stream"):
                predictions, live = watch(draft, parts, runner, bundle, settings.camera_hz, on_stream)
                flat_out = judge_flat_out(parts, runner, bundle)
        with timed(seconds, "video and report"):
            video = write_video(draft / "line.mp4", predictions)
            verdicts = Verdicts(parts, {p.frame.index: p.is_anomalous for p in predictions})
            first_hit = verdicts.first_hit()
            facts = DemoRun(
                out=draft,
                command=command or f"nnet-edge demo --out {out} --seed {settings.seed}",
                processor=processor_words(),
                learned=learned,
                bundle=bundle,
                evaluation=evaluation,
                verdicts=verdicts,
                live=live,
                flat_out=flat_out,
                rate_hz=settings.camera_hz,
                seconds=seconds,
                video=video,
                poster=None if first_hit is None else draft / "rejects" / f"{first_hit:06d}.jpg",
                losses=draft / "training" / PICTURE,
                files=files_of(draft),
            )
            write_report(compose(facts), draft / REPORT)
    return DemoResult(out / REPORT, evaluation.metrics, verdicts, flat_out.frames_per_s, seconds)


def learn(
    draft: Path,
    dataset: Dataset,
    settings: DemoSettings,
    seconds: dict[str, float],
    say: Callable[[str], None],
    on_training: Callable[[Progress], None],
) -> tuple[Bundle, int]:
    """The bundle, trained, exported and checked, and the number of parts that were learned from."""
    paths, held_out = hold_out(dataset.train, settings.seed)
    say(f"training on {len(paths)} good parts; {len(held_out)} are held out for the threshold")
    facts = {
        "name": "demo line",
        "images": len(paths),
        "held_out": len(held_out),
        "fingerprint": fingerprint(dataset.train),
    }
    with timed(seconds, "train"):
        images, unseen = load_images(paths).images, load_images(held_out).images
        train(images, unseen, settings.training, draft / "training", settings.options, facts, report=on_training)
    with timed(seconds, "export, parity, threshold"):
        bundle = export_bundle(draft / "training", draft / "bundle", say=say).bundle
    return bundle, len(paths)


def watch(
    draft: Path,
    parts: Sequence[Part],
    runner: Runner,
    bundle: Bundle,
    rate_hz: float,
    on_stream: Callable[[StreamReport], None] | None,
) -> tuple[list[Prediction], StreamReport]:
    """The predictions for the parts under a camera of `rate_hz`; leaves JSON lines, the truth, and pictures of rejects."""
    predictions: list[Prediction] = []
    sinks = [
        JsonLinesSink(draft / "verdicts.jsonl"),
        RejectPicturesSink(draft / "rejects"),
        CallbackSink(predictions.append),
    ]
    source = SyntheticSource([part.image for part in parts], rate_hz, stream="line")
    report = run(source, runner, sinks, StreamSettings(bundle.threshold.value), show=on_stream)
    lines = (json.dumps({"index": i, "kind": part.kind, "defect": part.defect}) for i, part in enumerate(parts))
    write_atomically(draft / "truth.jsonl", "".join(f"{line}\n" for line in lines).encode())
    return predictions, report


def judge_flat_out(parts: Sequence[Part], runner: Runner, bundle: Bundle) -> StreamReport:
    """How fast the same parts are judged when they come as fast as they are taken."""
    return run(SyntheticSource([part.image for part in parts]), runner, [], StreamSettings(bundle.threshold.value))


def write_video(path: Path, predictions: Sequence[Prediction]) -> Path:
    """The annotated video of the predictions; written after the stream, whose latencies it would blur."""
    with VideoSink(path, VIDEO_HZ) as sink:
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
