"""Global distance: against a computation written out, what it adds to maps, where it is learned, and that the graph has it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from onnx import numpy_helper

from nnet_edge.anomaly_map import Fusion, fuse_maps
from nnet_edge.calibration.qdq import plan
from nnet_edge.calibration.quantize import QuantizeSettings, measure_activations, quantize
from nnet_edge.calibration.whole_pictures import averages_of, averages_tensor, measure_whole
from nnet_edge.errors import ConfigError
from nnet_edge.export.onnx_graph import export_onnx, facts_of
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.global_distance import GlobalDistance, raised, strangeness_of, values_in
from nnet_edge.methods.global_formula import PREFIX, distances
from nnet_edge.methods.network import PLACE_FACTORS, TorchRunner, is_settled
from nnet_edge.methods.nnet.settings import PAPER
from nnet_edge.runtime.runners.openvino_runner import OpenvinoRunner
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.training.checkpoint import read_checkpoint
from nnet_edge.training.global_search import cells_of, learn_global_distance
from nnet_edge.training.loop import TrainOptions, train
from nnet_edge.training.settling import settled_otherwise
from nnet_edge.training.start import Learned

CPU = Compute("cpu", "fp32")
SETTINGS = replace(
    PAPER, epochs=1, batch=2, align_epochs=1, ema_decay=0.9, global_gain=4.0, input=Geometry(128, 128),
    model=replace(PAPER.model, memory_slots=32),
)  # fmt: skip


def trays(count: int, swapped: bool = False) -> np.ndarray:
    """Two items on a tray, a little moved and of varying brightness, uint8 (N, 128, 128, 3); swapped: in each other's place."""
    rng = np.random.default_rng(count)
    pictures = np.full((count, 256, 256, 3), 60, np.uint8)
    for picture in pictures:
        left, right = (70, 180)[:: -1 if swapped else 1]
        x, y, light = (int(value) for value in rng.integers(-4, 5, 3))
        cv2.circle(picture, (left + x, 128 + y), 40, (180 + light, 90, 60), -1)
        cv2.rectangle(picture, (right - 35 + x, 93 + y), (right + 35 + x, 163 + y), (90, 170 + light, 200), -1)
    return np.stack([cv2.resize(picture, (128, 128), interpolation=cv2.INTER_AREA) for picture in pictures])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A short training with a global distance."""
    folder = tmp_path_factory.mktemp("global") / "run"
    train(trays(12), trays(9), SETTINGS, folder, TrainOptions("cpu", "fp32"))
    return folder


def test_cells_average_whatever_the_size() -> None:
    for height, width in ((16, 16), (14, 22)):
        values = np.random.default_rng(0).normal(size=(height, width))
        by_cells = (values.reshape(-1) @ cells_of(height, width)).reshape(4, 4)
        rows, columns = (np.array_split(np.arange(side), 4) for side in (height, width))
        for row in range(4):
            for column in range(4):
                assert by_cells[row, column] == pytest.approx(values[np.ix_(rows[row], columns[column])].mean())


def test_the_distance_is_the_formula() -> None:
    rng = np.random.default_rng(1)
    features, components = rng.normal(size=(3, 2, 8, 8)), 5
    basis = np.linalg.qr(rng.normal(size=(32, components)))[0].T
    mean, scale, shrink = rng.normal(size=32), rng.uniform(0.5, 2, 32), rng.uniform(0, 1, components)
    values = {"cells": cells_of(8, 8), "mean": mean, "scale": scale, "basis": basis, "shrink": shrink, "power": 2.0,
              "largest": 3.0}  # fmt: skip
    module = GlobalDistance({name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()})
    expected = []
    for one in features:
        averages = [one[channel, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean()
                    for channel in range(2) for r in range(4) for c in range(4)]  # fmt: skip
        whole = (np.array(averages) - mean) * scale
        away = whole - sum(
            share * (component @ whole) * component for component, share in zip(basis, shrink, strict=True)
        )
        expected.append(np.sqrt((away**2).mean()))
    tensor = torch.tensor(features, dtype=torch.float32)
    assert module(tensor).numpy() == pytest.approx(expected, rel=1e-5)
    gains = np.minimum(np.maximum(1, expected) ** 2, 3)
    assert module.gain(tensor).ravel().numpy() == pytest.approx(gains, rel=1e-5)


def test_the_strangest_place_is_raised_by_the_gain_and_others_hardly() -> None:
    maps = torch.full((2, 1, 16, 16), 0.1)
    maps[:, 0, 3, 4] = 0.4
    gain = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    out = raised(maps, maps, gain)
    assert torch.equal(out[0], maps[0])
    assert out[1, 0, 3, 4] == pytest.approx(1.2)
    assert out[1, 0, 0, 0] == pytest.approx(0.1 * (1 + 2 / 256))
    assert raised(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), gain[1:]).sum() == 0  # a map of nothing stays one


def test_strangeness_is_the_fused_map_made_small() -> None:
    rng = np.random.default_rng(2)
    fusion = Fusion(exponents=(0.3, 0.0, 1.0), weights=(1.0, 1.0, 0.1))
    flat = {name: np.full((1, 1, side, side), rng.uniform(0.1, 1), np.float32)
            for name, side in zip(fusion.layer_maps, (64, 32, 16) * 2, strict=True)}  # fmt: skip
    small = strangeness_of({name: torch.from_numpy(maps) for name, maps in flat.items()}, fusion)
    assert small.shape == (1, 1, 16, 16)
    assert float(small.mean()) == pytest.approx(float(fuse_maps(flat, fusion).mean()), rel=1e-5)


def test_a_training_keeps_it_and_the_graph_gives_it(trained: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained)
    facts = checkpoint.facts["global_distance"]
    assert facts["images"] == 12
    assert facts["largest_gain"] == 4.0
    for weights in (checkpoint.deployed, checkpoint.averaged, checkpoint.network):
        assert values_in(weights)
    network = checkpoint.build_network()
    assert network.global_distance is not None
    pictures = np.concatenate((trays(9), trays(5, swapped=True)))
    with torch.inference_mode():
        teacher = network.teacher_features(network.normalise(torch.from_numpy(pictures)))
        distances = network.global_distance(teacher[2]).numpy()
        gains = network.global_distance.gain(teacher[2]).ravel().numpy()
    assert np.median(distances[:9]) == pytest.approx(1.0, rel=1e-4)  # of those that were held out
    assert distances[9:].min() > distances[:9].max()  # ordinary pieces in wrong places
    assert (gains[9:] == pytest.approx(4.0)) or gains[9:].min() > gains[:9].max()
    with_it = TorchRunner(network).infer(pictures).image_score
    (tmp_path / "graph.onnx").write_bytes(export_onnx(network, facts_of(network)).SerializeToString())
    with OpenvinoRunner(tmp_path / "graph.onnx", RunnerSettings(threads=1, max_batch=16)) as runner:
        assert runner.infer(pictures).image_score == pytest.approx(with_it, rel=1e-3)
    network.global_distance = None
    without = TorchRunner(network).infer(pictures).image_score
    assert (with_it >= without * 0.999).all()
    assert (with_it[9:] / without[9:]).min() > 1.2


@pytest.mark.parametrize(
    "changes",
    [
        {"global_gain": 1.0},
        {"augmentation": replace(SETTINGS.augmentation, rotation_degrees=180.0)},
    ],
)
def test_a_training_without_it_has_none(changes: dict[str, Any], tmp_path: Path) -> None:
    train(trays(12), trays(9), replace(SETTINGS, **changes), tmp_path, TrainOptions("cpu", "fp32"))
    checkpoint = read_checkpoint(tmp_path)
    assert "global_distance" not in checkpoint.facts
    assert not any(name.startswith(PREFIX) for name in checkpoint.deployed)


def test_a_finished_training_settles_again_as_it_did_and_otherwise(trained: Path) -> None:
    checkpoint = read_checkpoint(trained)
    again = settled_otherwise(checkpoint, checkpoint.settings, trays(12), trays(9), CPU)
    assert again.state_dict().keys() == checkpoint.deployed.keys()
    assert all(torch.equal(value, checkpoint.deployed[name]) for name, value in again.state_dict().items())
    other = replace(checkpoint.settings, global_gain=1.0, place_powers=(0.5,))
    without = settled_otherwise(checkpoint, other, trays(12), trays(9), CPU)
    trained_alone = {name for name in checkpoint.deployed if not is_settled(name)}
    assert without.state_dict().keys() - {PLACE_FACTORS} == trained_alone < checkpoint.deployed.keys()


def test_a_training_that_goes_on_from_a_bundle_learns_its_own(trained: Path, tmp_path: Path) -> None:
    before = read_checkpoint(trained)
    learned = Learned(before.deployed, before.facts["teacher"])
    more = np.concatenate((trays(12), trays(5, swapped=True)))  # both ways round are good now
    train(more, trays(9), SETTINGS, tmp_path / "on", TrainOptions("cpu", "fp32"), learned=learned)
    checkpoint = read_checkpoint(tmp_path / "on")
    assert checkpoint.facts["global_distance"]["images"] == 17
    assert not torch.equal(values_in(checkpoint.deployed)["mean"], values_in(before.deployed)["mean"])
    plain = replace(SETTINGS, global_gain=1.0)
    train(more, trays(9), plain, tmp_path / "without", TrainOptions("cpu", "fp32"), learned=learned)
    assert not values_in(read_checkpoint(tmp_path / "without").deployed)


def test_it_is_not_learned_from_few_in_a_letterbox_or_for_a_sum_of_maps() -> None:
    images = np.zeros((8, 256, 256, 3), np.uint8)
    product, summed = Fusion(), Fusion(rule="sum")
    letterbox = Geometry(fit="letterbox", picture=(512, 256))
    for fusion, geometry, good, held_out in (
        (summed, DEFAULT, images, images),
        (product, letterbox, images, images),
        (product, DEFAULT, images[:7], images),
        (product, DEFAULT, images, images[:7]),
    ):
        network: Any = SimpleNamespace(map_fusion=fusion, output_names=fusion.layer_maps, geometry=geometry)
        assert learn_global_distance(network, 4.0, good, held_out, CPU) is None


def test_a_wrong_gain_is_refused() -> None:
    for wrong in ("0.5", "17"):
        with pytest.raises(ConfigError, match="global_gain is"):
            PAPER.overridden(f"global_gain={wrong}")


def test_an_int8_graph_says_of_whole_pictures_what_fp32_says(trained: Path) -> None:
    network = read_checkpoint(trained).build_network()
    frames = trays(16)
    planned = plan(export_onnx(network, facts_of(network)))
    activations = measure_activations(
        planned, frames, QuantizeSettings(method="max", threads=1), lambda done, all_: None
    )
    tensor = averages_tensor(planned.model)
    assert tensor is not None
    matched, plain = (quantize(planned, replace(activations, whole=known)) for known in (activations.whole, None))

    def distances_in(model: Any) -> np.ndarray:
        known = {item.name: numpy_helper.to_array(item).astype(np.float64) for item in model.graph.initializer}
        constants = (known[PREFIX + name] for name in ("mean", "scale", "basis", "shrink"))
        return distances(averages_of(model, tensor, frames, threads=1), *constants)

    wanted = distances_in(planned.model)
    inside = network.global_distance
    assert inside is not None
    with torch.inference_mode():
        features = network.teacher_features(network.normalise(torch.from_numpy(frames)))[2]
        assert inside(features).numpy() == pytest.approx(wanted, rel=1e-3)  # the graph's own formula
    assert np.median(distances_in(matched)) == pytest.approx(np.median(wanted), rel=1e-4)
    off_matched, off_plain = (np.abs(distances_in(model) / wanted - 1).mean() for model in (matched, plain))
    assert off_matched < 0.7 * off_plain
    assert measure_whole(without_global_distance(planned.model), frames) is None


def without_global_distance(model: Any) -> Any:
    """A graph in which nothing is taken off good averages."""
    copy = deepcopy(model)
    for node in copy.graph.node:
        node.input[:] = ["x" if name == f"{PREFIX}mean" else name for name in node.input]
    return copy
