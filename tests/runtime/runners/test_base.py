"""Both CPU runners compute the same graph, refuse what does not fit, and say so in one line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nnet_edge.anomaly_map import LAYER_MAPS
from nnet_edge.errors import BundleError, ConfigError, StreamError
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.runners.openvino_runner import openvino
from nnet_edge.settings.runner import RunnerSettings

KINDS = ("openvino", "onnxruntime")
FP32_ATOL = 1e-6  # sums of at most 256 numbers below 1; BF16 with its 8 bits would be off by 1e-3
WriteGraph = Callable[..., Path]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 256, 256, 3), np.uint8)


def distance_from_grey(images: np.ndarray, side: int) -> np.ndarray:
    """What the test graph computes, float32 (N, 1, side, side)."""
    block = 256 // side
    distance = np.abs(images / 255 - 0.5).mean(axis=3)
    blocks = distance.reshape(len(images), side, block, side, block)
    return blocks.mean(axis=(2, 4), dtype=np.float64)[:, None].astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_maps_and_scores_are_those_of_the_graph_in_fp32(graph: Path, images: np.ndarray, kind: str, hint: str) -> None:
    expected = distance_from_grey(images, 64)[:, 0]
    with load_runner(graph, RunnerSettings(kind=kind, hint=hint, threads=2)) as runner:
        assert (runner.name, runner.precision, runner.input_shape) == (kind, "fp32", (256, 256, 3))
        outputs = runner.infer(images)
        one = runner.infer(images[3:4])
    assert (outputs.anomaly_map.shape, outputs.anomaly_map.dtype) == ((5, 256, 256), np.float32)
    assert (outputs.image_score.shape, outputs.image_score.dtype) == ((5,), np.float32)
    np.testing.assert_allclose(outputs.anomaly_map[:, ::4, ::4], expected, atol=FP32_ATOL)
    np.testing.assert_allclose(outputs.image_score, expected.max(axis=(1, 2)), atol=FP32_ATOL)
    np.testing.assert_allclose(one.image_score, outputs.image_score[3:4], atol=FP32_ATOL)
    assert outputs.layer_maps == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_two_batches_under_way_give_what_each_gives_alone(
    graph: Path, images: np.ndarray, kind: str, hint: str
) -> None:
    with load_runner(graph, RunnerSettings(kind=kind, hint=hint)) as runner:
        alone = [runner.infer(part).anomaly_map for part in (images[:3], images[3:])]
        first, second = runner.start(images[:3]), runner.start(images[3:])
        np.testing.assert_array_equal(second().anomaly_map, alone[1])
        np.testing.assert_array_equal(first().anomaly_map, alone[0])
        runner.start(images)  # never waited for: the end waits for it
    with pytest.raises(StreamError, match="closed"):
        first()


def test_openvino_lets_go_of_images_that_could_not_be_computed(graph: Path, images: np.ndarray) -> None:
    with load_runner(graph, RunnerSettings(kind="openvino", threads=1)) as runner:
        expected = runner.infer(images).image_score
        first = runner._single._idle[-1]  # type: ignore[attr-defined]  # the one that is taken next

        class Failing:
            """A request of OpenVINO's that fails once it is waited for."""

            def __getattr__(self, name: str) -> Any:
                return getattr(first, name)

            def wait(self) -> None:
                first.wait()
                raise RuntimeError("the primitive failed")

        for _ in range(20):
            runner._single._idle[-1] = Failing()  # type: ignore[attr-defined]
            with pytest.raises(StreamError, match="the primitive failed"):
                runner.infer(images)
            assert runner._busy == {}  # type: ignore[attr-defined]
            np.testing.assert_array_equal(runner.infer(images).image_score, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_six_layer_maps_come_when_asked(graph: Path, images: np.ndarray, kind: str) -> None:
    with load_runner(graph, RunnerSettings(kind=kind)) as runner:
        layer_maps = runner.infer(images, layer_maps=True).layer_maps
    assert tuple(layer_maps) == LAYER_MAPS
    for side in (64, 32, 16):
        expected = distance_from_grey(images, side)
        np.testing.assert_allclose(layer_maps[f"forward_{side}"], expected, atol=FP32_ATOL)
        np.testing.assert_allclose(layer_maps[f"reverse_{side}"], expected / 2, atol=FP32_ATOL)


@pytest.mark.parametrize("kind", KINDS)
def test_images_may_be_read_only(graph: Path, images: np.ndarray, kind: str) -> None:
    frozen = images[:2].copy()
    frozen.flags.writeable = False
    with load_runner(graph, RunnerSettings(kind)) as runner:
        np.testing.assert_array_equal(runner.infer(frozen).image_score, runner.infer(images[:2]).image_score)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_the_caller_keeps_arrays_that_a_later_infer_leaves_alone(
    graph: Path, images: np.ndarray, kind: str, hint: str
) -> None:
    with load_runner(graph, RunnerSettings(kind=kind, hint=hint)) as runner:
        kept = runner.infer(images, layer_maps=True)
        copies = [kept.anomaly_map.copy(), kept.image_score.copy(), kept.layer_maps["forward_64"].copy()]
        runner.infer(255 - images // 2, layer_maps=True)
    for array, copy in zip((kept.anomaly_map, kept.image_score, kept.layer_maps["forward_64"]), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
        array += 1  # and may write on them


def test_on_openvino_no_score_depends_on_the_neighbours_in_the_batch(graph: Path, images: np.ndarray) -> None:
    for hint in ("latency", "throughput"):
        with load_runner(graph, RunnerSettings(kind="openvino", hint=hint)) as runner:
            together = runner.infer(images)
            for index in range(len(images)):
                alone = runner.infer(images[index : index + 1])
                np.testing.assert_array_equal(alone.anomaly_map[0], together.anomaly_map[index])
                assert alone.image_score[0] == together.image_score[index]


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_the_runner_is_refused(graph: Path, images: np.ndarray, kind: str) -> None:
    with load_runner(graph, RunnerSettings(kind=kind, max_batch=4)) as runner:
        with pytest.raises(ConfigError, match="a batch of 5 images does not fit this runner: it takes 1 to 4"):
            runner.infer(images)
        with pytest.raises(ConfigError, match="a batch of 0 images"):
            runner.infer(images[:0])
        with pytest.raises(ConfigError, match=r"takes uint8 RGB \(N, 256, 256, 3\), not float32 \(1, 256, 256, 3\)"):
            runner.infer(images[:1].astype(np.float32))
        with pytest.raises(ConfigError, match=r"not uint8 \(1, 128, 256, 3\)"):
            runner.infer(images[:1, :128])
        assert len(runner.infer(images[:4, :, ::-1]).image_score) == 4  # a view that is not contiguous


@pytest.mark.parametrize("kind", KINDS)
def test_a_runner_entered_twice_closes_with_the_last_exit(graph: Path, images: np.ndarray, kind: str) -> None:
    with load_runner(graph, RunnerSettings(kind=kind)) as runner:
        with runner:
            runner.infer(images[:1])
        runner.infer(images[:1])
    with pytest.raises(StreamError, match=f"the {kind} runner of .* is closed: load it again"):
        runner.infer(images[:1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ({"leave_out": "image_score"}, "it lacks the output image_score; write it again with `export`"),
        ({"leave_out": "reverse_16"}, "it lacks the output reverse_16"),
        (
            {"takes": (4, 256, 256, 3)},
            r"takes images of shape \(4, 256, 256, 3\) and not \(N, height, width, 3\) with a free N",
        ),
        ({"takes": ("N", 100, 256, 3)}, r"takes images of shape .*100, 256, 3\) and not .* multiples of 32"),
        ({"as_double": "image_score"}, "it has the output image_score as .* instead of float32"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_named(
    write_graph: WriteGraph, kind: str, faults: dict[str, Any], says: str
) -> None:
    with pytest.raises(BundleError, match=says):
        load_runner(write_graph(**faults), RunnerSettings(kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_of_another_shape_is_refused(graph: Path, images: np.ndarray, kind: str, tmp_path: Path) -> None:
    model = onnx.load(graph)
    (tail,) = (node for node in model.graph.node if "image_score" in node.output)
    (keepdims,) = (item for item in tail.attribute if item.name == "keepdims")
    keepdims.i = 1
    (score,) = (output for output in model.graph.output if output.name == "image_score")
    score.type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "graph.onnx")
    with (
        pytest.raises(BundleError, match=r"gives image_score of shape \(1, 1.*\) and not \(N\): write it again"),
        load_runner(tmp_path / "graph.onnx", RunnerSettings(kind=kind)) as runner,
    ):
        runner.infer(images[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(BundleError, match=f"cannot read {path}") as caught:
        load_runner(path, RunnerSettings(kind=kind))
    assert "\n" not in str(caught.value)


def test_paths_that_cannot_be_meant_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no graph at"):
        load_runner(tmp_path / "absent.onnx")
    with pytest.raises(ConfigError, match=r"there is no engine at .* build one with nnet-edge build-engine"):
        load_runner(tmp_path / "nnet.engine")
    with pytest.raises(ConfigError, match=r"is neither graph nor engine: a runner takes \.onnx"):
        load_runner(tmp_path / "nnet.pt")


def test_bf16_is_used_only_where_it_is_chosen_and_there(graph: Path, images: np.ndarray) -> None:
    settings = RunnerSettings(kind="openvino", precision="bf16")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ConfigError, match="this processor has no BF16 arithmetic: choose the precision fp32"):
            load_runner(graph, settings)
        return
    with load_runner(graph, settings) as runner:
        assert runner.precision == "bf16"
        difference = np.abs(runner.infer(images).anomaly_map[:, ::4, ::4] - distance_from_grey(images, 64)[:, 0])
    assert FP32_ATOL < difference.max() < 5e-3  # it does compute with 8 bits


def test_onnx_runtime_refuses_what_it_cannot_do(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in fp32 only, not in bf16: use openvino"):
        load_runner(graph, RunnerSettings(kind="onnxruntime", precision="bf16"))
    with pytest.raises(ConfigError, match="keeps no compiled graphs"):
        load_runner(graph, RunnerSettings(kind="onnxruntime", cache_dir=tmp_path))


def test_openvino_keeps_its_compiled_graph_where_it_was_told(graph: Path, images: np.ndarray, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    for _ in range(2):
        with load_runner(graph, RunnerSettings(kind="openvino", cache_dir=cache)) as runner:
            scores = runner.infer(images).image_score
    assert any(cache.iterdir())
    np.testing.assert_allclose(scores, distance_from_grey(images, 64).max(axis=(1, 2, 3)), atol=FP32_ATOL)


@pytest.mark.parametrize("spoil", ["a byte", "another's", "no seal"])
def test_a_cached_graph_that_is_damaged_or_exchanged_is_made_again(
    graph: Path, images: np.ndarray, tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = RunnerSettings(kind="openvino", cache_dir=tmp_path, threads=1)

    def scores() -> np.ndarray:
        with load_runner(graph, settings) as runner:
            found: np.ndarray = runner.infer(images).image_score
            return found

    def blobs() -> list[Path]:
        return [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".sha256"]

    expected = scores()
    (blob,) = blobs()
    kept, seal = blob.read_bytes(), blob.with_name(f"{blob.name}.sha256")
    assert scores().tolist() == expected.tolist()
    assert not caplog.records, "what is sound is used without a word"
    if spoil == "a byte":
        blob.write_bytes(kept[: len(kept) // 2] + bytes([kept[len(kept) // 2] ^ 1]) + kept[len(kept) // 2 + 1 :])
    elif spoil == "another's":  # with its seal, under this graph's name
        blob.write_bytes(b"compiled of another graph")
        seal.write_text(f"{hashlib.sha256(b'compiled of another graph').hexdigest()}  other.blob\n")
    else:
        seal.unlink()
    assert scores().tolist() == expected.tolist()
    (line,) = [record.message for record in caplog.records]
    assert line == f"the cached file {blob} is not what was written there: it is discarded and made again"
    (again,) = blobs()
    assert (again, seal.exists()) == (blob, True)


def test_a_cache_folder_that_cannot_be_written_is_refused(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"the cache folder .* cannot be written"):
        load_runner(graph, RunnerSettings(kind="openvino", cache_dir=tmp_path / "file" / "cache"))


def test_auto_is_openvino_where_it_is_installed(graph: Path) -> None:
    with load_runner(graph) as runner:
        assert runner.name == "openvino"
