"""A method is what a folder registers: training, checkpoint, runner and graph work for one that only this file knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nnet_edge.anomaly_map import Fusion
from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError
from nnet_edge.evaluation.artefact import load_network
from nnet_edge.export.onnx_graph import facts_of, trace
from nnet_edge.geometry import Geometry
from nnet_edge.methods.backbone import Encoder
from nnet_edge.methods.base import METHODS, Batch, Method, PairSettings, find_method
from nnet_edge.methods.cosine import cosine_distance, learned_distance
from nnet_edge.methods.network import Network, TorchRunner
from nnet_edge.methods.nnet.settings import PAPER, TrainSettings
from nnet_edge.runtime.runners.trt.record import read_engine
from nnet_edge.training.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from nnet_edge.training.loop import TrainOptions, train

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class MirrorModel:
    """One student that gives back the deepest features, whatever anomaly lies on the image."""

    backbone: str = "efficientnet_lite0"

    @property
    def fusion(self) -> Fusion:
        return Fusion(rule="sum", branches=("mirror",))

    @property
    def map_strides(self) -> Mapping[str, int]:
        return {"mirror_16": 16}


@dataclass(frozen=True)
class MirrorSettings(PairSettings):
    method = "mirror"
    model_type = MirrorModel
    model: MirrorModel = field(default_factory=MirrorModel)
    anomaly_weight: float = 0.5


class MirrorNetwork(Network):
    method = "mirror"

    def __init__(self, settings: MirrorModel, teacher: Encoder) -> None:
        super().__init__(settings, teacher)
        self.student = nn.Conv2d(self.backbone.channels[2], self.backbone.channels[2], 1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        third = self.teacher_features(self.normalise(images))[2]
        return (cosine_distance(third, self.student(third)),)


class MirrorMethod(Method[MirrorNetwork, MirrorSettings]):
    name, title, origin, settings = "mirror", "Mirror", "a test", MirrorSettings
    protocols: ClassVar = {"tuned": MirrorSettings()}
    losses_shown, validated_loss = ("good", "anomalous"), "good"

    def needs_pairs(self, settings: MirrorSettings) -> bool:
        return True

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def build(self, model: MirrorModel, teacher: Encoder) -> MirrorNetwork:
        return MirrorNetwork(model, teacher)

    def forward(
        self, network: MirrorNetwork, batch: Batch, settings: MirrorSettings
    ) -> dict[str, tuple[Tensor, Tensor]]:
        self.seen.append(batch)
        third = batch.teacher[2]
        pairs = {"good": (third, network.student(third))}
        if batch.anomalous is not None:
            pairs["anomalous"] = (third, network.student(network.teacher_features(batch.anomalous)[2]))
        return pairs

    def losses(
        self, compared: dict[str, tuple[Tensor, Tensor]], settings: MirrorSettings, epoch: int
    ) -> dict[str, Tensor]:
        weights = {"good": 1.0, "anomalous": settings.anomaly_weight}
        return {name: weights[name] * learned_distance(*pair).mean() for name, pair in compared.items()}


@pytest.fixture
def mirror() -> Iterator[MirrorMethod]:
    yield METHODS.register(MirrorMethod())  # type: ignore[misc]
    METHODS.unregister("mirror")


def test_a_registered_method_is_trained_on_pairs_checkpointed_and_run(
    mirror: MirrorMethod, washers: np.ndarray, tmp_path: Path
) -> None:
    settings = MirrorSettings(epochs=2, batch=2)
    options = TrainOptions(device="cpu", precision="fp32")
    trained = train(washers[:4], washers[4:], settings, tmp_path, options)
    assert trained.finished
    batch = next(batch for batch in mirror.seen if batch.masks is not None)
    assert batch.anomalous is not None
    differs = (batch.anomalous != batch.images).any(dim=1, keepdim=True)
    assert batch.masks.shape == (2, 1, 256, 256)
    assert bool((differs >= batch.masks).all())
    assert (tmp_path / "log.csv").read_text().startswith("epoch,loss,good,anomalous,held_out")
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.settings == settings
    network = checkpoint.build_network()
    assert isinstance(network, MirrorNetwork)
    outputs = TorchRunner(network).infer(washers[:1], layer_maps=True)
    assert outputs.layer_maps["mirror_16"].shape == (1, 1, 16, 16)
    assert facts_of(network)["system"] == "mirror"
    assert [output.name for output in trace(network).graph.output] == ["mirror_16"]


def test_a_registered_method_goes_all_the_way_from_pictures_to_verdicts(
    mirror: MirrorMethod, parts_folder: Path, tmp_path: Path
) -> None:
    out, verdicts = tmp_path / "run", tmp_path / "verdicts.jsonl"
    path, good = str(out / "bundle"), str(parts_folder / "test_good")
    quick = ["--size", "64", "--epochs", "2", "--batch", "7", "--threads", "1", "--set", "anomaly_weight=0.25"]
    assert run(["train", str(parts_folder), "--method", "mirror", "--out", str(out), *quick]) == 0
    wide = ["--metric-points", "100", "--band", "9", "--runner", "openvino", "--threads", "1"]
    assert run(["calibrate", path, str(parts_folder), "--precision", "int8", *wide]) == 0
    assert run(["evaluate", path, str(parts_folder), "--precision", "int8", "--threads", "1"]) == 0
    assert run(["build-engine", path, "--precision", "fp32", "--target", "rtx:sm89", "--batch", "1"]) == 0
    assert run(["stream", good, "--bundle", path, "--json", str(verdicts), "--threads", "1"]) in (0, 1)
    bundle = read_bundle(out / "bundle")
    assert bundle.method == "mirror"
    assert bundle.manifest["train"]["anomaly_weight"] == 0.25
    assert bundle.manifest["layer_maps"] == ["mirror_16"]
    assert Fusion.from_dict(bundle.manifest["fusion"]) == MirrorModel().fusion
    _, record = read_engine(next(item.path for item in bundle.artefacts if item.kind == "engine"))
    assert (record.layer_maps, record.as_fusion()) == (("mirror_16",), MirrorModel().fusion)
    assert len(verdicts.read_text().splitlines()) == 4


def test_nothing_outside_the_methods_knows_one_by_name() -> None:
    names = "|".join(METHODS.names())
    known = re.compile(rf"methods[./]({names})\b|[\"']({names})[\"']|\b(NNet|Dmdd|Bikd|Rbd)[A-Z(\[]")
    folders = [ROOT / "nnet_edge", *(ROOT / part for part in ("export", "calibration", "runtime", "benchmarks"))]
    files = [
        path for folder in folders for path in folder.rglob("*.py") if ROOT / "nnet_edge/methods" not in path.parents
    ]
    found = [f"{path.relative_to(ROOT)}: {line.strip()}" for path in files
             for line in path.read_text(encoding="utf-8").splitlines() if known.search(line)]  # fmt: skip
    assert len(files) > 200
    assert found == []


def test_a_bundle_of_a_newer_method_says_so(bundle: Bundle) -> None:
    newer = replace(bundle, manifest={**bundle.manifest, "system": "qnet"})
    with pytest.raises(
        ConfigError, match=r"bundle was made by a newer nnet-edge: method 'qnet'; this one knows .*nnet"
    ):
        load_network(newer)
    with pytest.raises(
        ConfigError, match=r"runs/x was made by a newer nnet-edge: method 'qnet'; this one knows .*nnet"
    ):
        find_method("qnet", "runs/x")


def test_pairs_are_the_same_after_a_stop(mirror: MirrorMethod, small_washers: np.ndarray, tmp_path: Path) -> None:
    options = TrainOptions(device="cpu", precision="fp32")
    settings, washers = MirrorSettings(epochs=2, batch=2, input=Geometry(64, 64)), small_washers
    straight = train(washers[:4], washers[4:], settings, tmp_path / "straight", options)
    train(washers[:4], washers[4:], replace(settings, epochs=1), tmp_path / "cut", options)
    first = read_checkpoint(tmp_path / "cut")
    rest = replace(first, settings=settings)
    ended = train(washers[:4], washers[4:], settings, tmp_path / "cut", options, resume=rest)
    one, other = (read_checkpoint(run.folder).network for run in (straight, ended))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_n_net_registers_itself() -> None:
    method = METHODS.find("nnet")
    assert method.settings is TrainSettings
    assert not method.needs_pairs(PAPER)
    assert dict(PAPER.model.map_strides) == {
        "forward_64": 4, "forward_32": 8, "forward_16": 16, "reverse_64": 4, "reverse_32": 8, "reverse_16": 16,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="runs/x: method 'n-net' is unknown: did you mean nnet"):
        METHODS.find("n-net", "runs/x")


def test_a_checkpoint_that_names_no_method_is_n_net_s(trained_run: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained_run / "training")
    path = write_checkpoint(tmp_path, checkpoint)
    facts = {"settings": checkpoint.settings.as_dict(), "facts": checkpoint.facts}
    save_file(load_file(path), path, {"format": "nnet-edge checkpoint 2", "nnet_edge": json.dumps(facts)})
    assert (tmp_path / CHECKPOINT).is_file()
    assert read_checkpoint(tmp_path).settings == checkpoint.settings
