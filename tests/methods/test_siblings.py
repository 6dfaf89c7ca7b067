"""DMDD, BiKD and RBD together: cost of each by the specification, every backbone and switch, the seam's small questions."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnet_edge.errors import ConfigError, TrainingError
from nnet_edge.geometry import Geometry
from nnet_edge.methods.backbone import BACKBONES, build_encoder, find_backbone
from nnet_edge.methods.base import METHODS, Batch, MethodSettings, PairSettings
from nnet_edge.methods.network import Network, TorchRunner
from nnet_edge.training.checkpoint import read_checkpoint
from nnet_edge.training.loop import TrainOptions, train

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL, RANDOM = Geometry(64, 64), TrainOptions("cpu", "fp32", teacher_weights="random")
SIBLINGS = ("dmdd", "bikd", "rbd")
SWITCHES = {  # of each part, for ablation
    "dmdd": ("model.maps=both", "model.maps=normality", "model.maps=abnormality", "model.channel_attention=false",
             "model.spatial_attention=false", "model.perceptions=1", "abnormality_target=normal", "abnormality_loss=hinge",
             "normality_weight=0", "abnormality_weight=0"),
    "bikd": ("model.backward=teacher_adapter", "model.maps=forward", "model.maps=backward", "model.fusion_rule=sum",
             "exchange_weight=0", "denoising=false", "forward_weight=0", "backward_weight=0"),
    "rbd": ("corruption=mask", "corruption=synthesis", "consistency_weight=0", "model.fusion_rule=sum"),
}  # fmt: skip
FIRST_MAPS = {"dmdd": "segmentation_64", "bikd": "forward_64", "rbd": "reconstruction_64"}


def built(settings: MethodSettings, backbone: str = "efficientnet_lite0") -> Network:
    model = replace(settings.model, backbone=backbone)
    network: Network = METHODS.find(settings.method).build(model, build_encoder(find_backbone(backbone)))
    return network.eval()


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"), [("dmdd", 56.4, 31.3), ("bikd", 133.5, 42.5), ("rbd", 108.7, 30.5)]
)
def test_cost_of_the_wide_resnet_variant(name: str, millions: float, gmacs: float) -> None:
    """The specification's table, 256 x 256 pixels."""
    with FakeTensorMode():  # shapes without values
        network = built(METHODS.find(name).protocols["design"], "wide_resnet50_2")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 256, 256, 3, dtype=torch.uint8))
    counted = sum(value.numel() for part, value in network.named_parameters() if not part.startswith("tokens."))
    assert counted / 1e6 == pytest.approx(millions, abs=0.05)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.05)


@pytest.mark.parametrize("name", SIBLINGS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_gives_the_maps_that_the_settings_name(name: str, backbone: str) -> None:
    with FakeTensorMode(), torch.no_grad():
        network = built(METHODS.find(name).protocols["tuned"], backbone)
        maps = network(torch.zeros(2, 256, 256, 3, dtype=torch.uint8))
    assert network.output_names[0] == FIRST_MAPS[name]
    assert [tuple(values.shape) for values in maps] == [
        (2, 1, 256 // stride, 256 // stride) for stride in network.settings.map_strides.values()
    ]
    network.map_fusion.require_some(network.output_names)


@pytest.mark.parametrize(("name", "switch"), [(name, switch) for name in SIBLINGS for switch in SWITCHES[name]])
def test_every_switch_takes_a_step_and_gives_finite_maps(
    name: str, switch: str, small_washers: np.ndarray, tmp_path: Path
) -> None:
    settings = replace(METHODS.find(name).protocols["design"], epochs=2, batch=2, input=SMALL).overridden(switch)
    trained = train(small_washers[:2], small_washers[4:], settings, tmp_path, RANDOM)
    assert trained.finished
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.settings == settings
    outputs = TorchRunner(checkpoint.build_network()).infer(small_washers[:2], layer_maps=True)
    assert outputs.fault() == ""
    assert set(outputs.layer_maps) == set(settings.model.map_strides)


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_stop_within_an_epoch_changes_nothing(name: str, small_washers: np.ndarray, tmp_path: Path) -> None:
    settings = replace(METHODS.find(name).protocols["design"], epochs=3, batch=2, input=SMALL)
    pictures = small_washers[:4], small_washers[4:]
    straight = train(*pictures, settings, tmp_path / "straight", RANDOM)
    asked = iter(range(100))
    stopping = lambda: nullcontext(lambda: next(asked) == 2)  # noqa: E731
    stopped = train(*pictures, settings, tmp_path / "cut", RANDOM, stopping=stopping)
    first = read_checkpoint(stopped.folder)
    assert (stopped.finished, first.epoch, first.step) == (False, 1, 1)
    ended = train(*pictures, settings, tmp_path / "cut", RANDOM, resume=first)
    one, other = (read_checkpoint(run.folder).network for run in (straight, ended))
    assert all(torch.equal(one[part], other[part]) for part in one)


@pytest.mark.parametrize("name", SIBLINGS)
def test_what_is_our_design_is_called_so(name: str) -> None:
    method = METHODS.find(name)
    assert method.origin.startswith("in the style of")
    assert "our design, not a reproduction" in method.origin
    module = __import__(f"nnet_edge.methods.{name}.network", fromlist=["network"])
    assert "In the style of the paper's abstract" in module.__doc__


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("dmdd", "model.perceptions=4", "perceptions is 4; it must be 1, 2 or 3"),
        ("dmdd", "model.head_width=20", "head_width is 20; it must be a multiple of 8"),
        ("dmdd", "head_share=1", "head_share is 1.0; it must be above 0 and below 1"),
        ("dmdd", "abnormality_loss=l2", "abnormality_loss 'l2' is unknown: choose mask or hinge"),
        ("bikd", "model.backward=decoder", "choose reverse_student or teacher_adapter"),
        ("bikd", "exchange_epochs=-1", "exchange_epochs is -1; it must be at least 0"),
        ("rbd", "mask_least=0.9", "0 <= mask_least <= mask_most < 1"),
        ("rbd", "synthesis_share=2", "synthesis_share is 2.0; it must be from 0 to 1"),
        ("rbd", "model.fusion_rule=max", "fusion rule 'max' is unknown: choose product or sum"),
        ("rbd", "synthesis.kind=scratch", "kind of synthetic anomaly 'scratch' is unknown"),
        (
            "rbd",
            "memory.slots=5",
            "write NAME=VALUE, or model.NAME=VALUE, augmentation.NAME=VALUE, synthesis.NAME=VALUE",
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence(name: str, change: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        METHODS.find(name).protocols["tuned"].overridden(change)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", SIBLINGS)
def test_settings_come_back_from_plain_values(name: str) -> None:
    for settings in METHODS.find(name).protocols.values():
        assert isinstance(settings, PairSettings)
        assert type(settings).from_dict(settings.as_dict()) == settings


@pytest.mark.parametrize("name", SIBLINGS)
def test_pairs_are_asked_for_when_they_are_needed(name: str) -> None:
    method = METHODS.find(name)
    assert method.needs_pairs(method.protocols["tuned"])
    without = {"rbd": "corruption=mask", "bikd": "denoising=false"}.get(name)
    if without:
        assert not method.needs_pairs(method.protocols["tuned"].overridden(without))


def test_a_loss_that_is_not_finite_ends_every_method(small_washers: np.ndarray, tmp_path: Path) -> None:
    settings = replace(METHODS.find("rbd").protocols["design"], epochs=2, batch=2, learning_rate=1e30, input=SMALL)
    with pytest.raises(TrainingError, match="Lower --learning-rate"):
        train(small_washers[:4], small_washers[4:], settings, tmp_path, RANDOM)


@pytest.mark.parametrize("name", ["nnet", *SIBLINGS])
def test_every_method_learns_and_judges_at_any_size(name: str) -> None:
    method = METHODS.find(name)
    settings, geometry = method.protocols["tuned"], Geometry(64, 96, "letterbox", (50, 100))
    network = built(settings).at(geometry)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *geometry.shape), np.uint8)
    outputs = TorchRunner(network).infer(images, layer_maps=True)
    assert outputs.anomaly_map.shape == (2, 64, 96)
    for map_name, stride in settings.model.map_strides.items():
        assert outputs.layer_maps[map_name].shape == (2, 1, 64 // stride, 96 // stride)
    outside = np.ones(geometry.size, bool)
    outside[geometry.window.inside] = False
    assert (outputs.anomaly_map[:, outside] == 0).all()
    assert (outputs.anomaly_map[:, ~outside] > 0).all()
    normalised = network.train().normalise(torch.from_numpy(images))
    method.begin_epoch(network, settings, 0)
    masks = torch.zeros(2, 1, 64, 96, dtype=torch.bool)
    masks[:, :, 20:40, 30:60] = True
    batch = Batch(normalised, network.teacher_features(normalised), 0.5 * normalised, masks)
    loss = torch.stack(list(method.losses(method.forward(network, batch, settings), settings, 0).values())).sum()
    loss.backward()
    assert any(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in network.trained_parameters())
