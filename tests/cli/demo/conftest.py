"""A run of the demo with a runner that learned nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import cv2
import numpy as np
import pytest

from nnet_edge.bundle import Bundle, made_on
from nnet_edge.cli.demo.page import DemoRun, Verdicts
from nnet_edge.cli.demo.run import write_video
from nnet_edge.data.example_parts import camera, make_line
from nnet_edge.data.images import read_dataset
from nnet_edge.evaluation.evaluate import evaluate
from nnet_edge.evaluation.pictures import write_evaluation
from nnet_edge.frame import Outputs, Prediction
from nnet_edge.runtime.sinks import CallbackSink, RejectsSettings, RejectsSink
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.running import run
from nnet_edge.scoring import choose_threshold
from nnet_edge.settings.stream import VerdictSettings

SEED = 7
THRESHOLD = choose_threshold([1.0] * 12)


class BrightSpotRunner:
    """Scores how far the brightest patch is above the part's mean: finds missing pieces, and little else."""

    name, precision, max_batch, input_shape = "bright spots", "fp32", 4, (256, 256, 3)

    def __enter__(self) -> BrightSpotRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        grey = images[..., 0].astype(np.float32)
        maps = np.stack([np.maximum(cv2.GaussianBlur(image, (0, 0), 5) - image.mean(), 0) / 60 for image in grey])
        return Outputs(maps, maps.max(axis=(1, 2)))

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        return lambda: self.infer(images, layer_maps)


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """A run of the demo with a runner that learned nothing."""
    out = tmp_path_factory.mktemp("demo")
    dataset = read_dataset(make_line(out / "line", SEED, train=3, test_good=6, test_each=3))
    runner = BrightSpotRunner()
    evaluation = evaluate(runner, dataset, THRESHOLD.value)
    write_evaluation(evaluation, out / "evaluation")
    parts = list(camera(SEED, parts=30, good_first=6, defect_share=0.5))
    predictions: list[Prediction] = []
    sinks = [
        RejectsSink(RejectsSettings(folder=out / "rejects", pictures=("overlay",), by_stream=False)),
        CallbackSink(predictions.append),
    ]
    report = run(SyntheticSource([part.image for part in parts]), runner, sinks, VerdictSettings(THRESHOLD.value))
    manifest = {
        "system": "nnet",
        "nnet_edge": "0.1.0",
        "made_on": made_on(),
        "backbone": "efficientnet_lite0",
        "teacher": {"origin": "weights.pth, sha256 0123", "is_random": False},
        "data": {"learned": 48, "held_out": 24, "distinct": 71},
        "trained": {"epochs": 12, "seconds": 100.0, "precision": "fp32"},
        "parity": [
            {
                "reference": "torch",
                "runner": "openvino",
                "layer_map_error": 2e-6,
                "score_error": 3e-6,
                "flipped_verdicts": 0,
                "images": 12,
            }
        ],
    }
    return DemoRun(
        out=out,
        command="nnet-edge demo --out <demo>",
        processor="some CPU, 2 cores",
        learned=48,
        bundle=Bundle(out / "bundle", manifest, THRESHOLD),
        evaluation=evaluation,
        verdicts=Verdicts(parts, {p.frame.index: p.is_anomalous for p in predictions}),
        live=report,
        flat_out=report,
        rate_hz=8.0,
        seconds={"train": 150.0, "evaluate": 5.0},
        video=write_video(out / "line.mp4", predictions),
        losses=None,
        files=[(out / "evaluation" / "metrics.json", "metrics")],
    )
