"""Forms of a bundle for other programs: read back by their own parsers, run where they run here, compared with our verdicts."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from PIL import Image

import nnet_edge.imaging
from nnet_edge.bundle import Bundle, changed, read_bundle
from nnet_edge.cli.export_model import FORMS as TYPED
from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError
from nnet_edge.export.forms import FORMS, Order, export_model, nvinfer_graph
from nnet_edge.geometry import Geometry
from nnet_edge.image_files import read_image
from nnet_edge.imaging import pillow_bilinear, resize
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.runners.onnx_runner import onnxruntime
from nnet_edge.runtime.runners.openvino_runner import openvino
from nnet_edge.tiles import Tiles
from tests.conftest import good_part

SAME_INPUT = 1e-5  # of the score: two libraries on the same pixels
SAME_RULE = 0.02  # of the score: our resizer on x86-64 is a grey level or two off the reference, at a few places
NVINFER = {  # keys of [property] in the documentation of Gst-nvinfer, DeepStream 7
    "gpu-id", "gie-unique-id", "process-mode", "network-type", "network-mode", "onnx-file", "model-engine-file", "batch-size",
    "labelfile-path", "classifier-threshold", "classifier-async-mode", "output-blob-names", "interval", "infer-dims",
    "network-input-order", "model-color-format", "net-scale-factor", "offsets", "maintain-aspect-ratio", "scaling-filter",
}  # fmt: skip


@pytest.fixture(scope="module")
def small(second_run: Path) -> Bundle:
    """A bundle for 64x64 pixels."""
    return read_bundle(second_run / "run/bundle")


@pytest.fixture
def order(small: Bundle, tmp_path: Path) -> Callable[..., tuple[Order, Path]]:
    """A function that exports the bundle, or one of another geometry; gives the order and the folder."""

    def export(to: str, geometry: Geometry | None = None, **options: Any) -> tuple[Order, Path]:
        path = small.path
        if geometry is not None:
            path = shutil.copytree(small.path, tmp_path / "bundle")
            changed(read_bundle(path), input=geometry.as_dict())
        return export_model(path, to, tmp_path / "out", **options), tmp_path / "out"

    return export


def write_jpegs(folder: Path) -> list[Path]:
    paths = [folder / f"{seed}.jpg" for seed in range(2)]
    for seed, path in enumerate(paths):
        assert cv2.imwrite(str(path), good_part(seed, 150)[:, : 150 - 37 * seed], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths


def scores(bundle: Bundle, paths: list[Path], geometry: Geometry, is_reference: bool) -> np.ndarray:
    """Our scores of the pictures, resized by the reference filter or as this machine does."""
    with pytest.MonkeyPatch.context() as patch:
        if is_reference:
            patch.setattr(nnet_edge.imaging, "bilinear", pillow_bilinear)
        images = np.stack([resize(read_image(path), geometry) for path in paths])
    with load_runner(bundle.graph) as runner:
        return runner.infer(images).image_score


LETTERBOX = Geometry(64, 64, "letterbox", (100, 150))
CROPPED = Geometry.in_manifest(
    {"input": {"height": 64, "width": 64, "fit": "crop", "picture": [100, 150],
               "crop": {"x": 0.1, "y": 0.2, "width": 0.71, "height": 0.6}}}
)  # fmt: skip

BOTH = replace(LETTERBOX, crop=CROPPED.crop)


def test_the_command_offers_every_form_and_says_what_it_wrote(
    small: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tuple(FORMS) == TYPED
    command = ["export-model", str(small.path), "--to", "onnx", "--out", str(tmp_path / "onnx")]
    assert run(command) == 0
    assert f"threshold {small.threshold.value:.6g} on onnxruntime" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {"model.onnx", "contract.json", "README.md"}
    assert (tmp_path / "onnx/model.onnx").read_bytes() == small.graph.read_bytes()
    assert run(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert run([*command, "--force", "--threshold", "0.5"]) == 0
    assert json.loads((tmp_path / "onnx/contract.json").read_text())["threshold"] == 0.5


def test_the_contract_says_what_the_graph_takes_and_gives(order: Callable[..., tuple[Order, Path]]) -> None:
    _, out = order("onnx")
    contract = json.loads((out / "contract.json").read_text())
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert [contract["input"]["name"], *contract["input"]["shape"][1:]] == [images.name, *images.shape[1:]]
    assert {name: shape[1:] for name, shape in contract["outputs"].items()} == {
        port.name: port.shape[1:] for port in session.get_outputs()
    }


def message_of(config: Path) -> Any:
    """config.pbtxt as Triton's own message; its module needs no grpc."""
    triton = pytest.importorskip("tritonclient", reason="tritonclient is not installed: config.pbtxt is not parsed")
    text_format = pytest.importorskip("google.protobuf.text_format")
    spec = importlib.util.spec_from_file_location(
        "model_config_pb2", Path(triton.__file__).parent / "grpc/model_config_pb2.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(config.read_text(encoding="utf-8"), module.ModelConfig())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_triton_reads_its_configuration(backend: str, order: Callable[..., tuple[Order, Path]], small: Bundle) -> None:
    asked, out = order("triton", backend=backend, name="left.part", max_batch=4)
    config = message_of(out / "models/left.part/config.pbtxt")
    is_batched = backend != "openvino"
    free = [] if is_batched else [-1]
    assert (config.name, config.backend, config.max_batch_size) == ("left.part", backend, 4 if is_batched else 0)
    assert config.HasField("dynamic_batching") == is_batched
    assert [(port.name, port.data_type, list(port.dims)) for port in config.input] == [
        ("images", 2, [*free, 64, 64, 3])
    ]
    graph = {port.name: [side.dim_value for side in port.type.tensor_type.shape.dim][1:]
             for port in onnx.load(small.graph).graph.output}  # fmt: skip
    for port in config.output:
        is_scalar = is_batched and port.name == "image_score"
        assert list(port.dims) == ([1] if is_scalar else [*free, *graph.pop(port.name)])
        assert port.HasField("reshape") == is_scalar
        graph.pop(port.name, None)
    assert not graph
    assert float(config.parameters["threshold"].string_value) == asked.threshold
    names = {
        path.relative_to(out / "models/left.part").as_posix() for path in (out / "models").rglob("*") if path.is_file()
    }
    files = {"onnxruntime": {"1/model.onnx"}, "openvino": {"1/model.xml", "1/model.bin"}, "tensorrt": {"model.onnx"}}
    assert names == {"config.pbtxt", *files[backend]}
    assert (out / "models/left.part/1").is_dir()


def test_the_ir_is_the_graph_in_fp32(order: Callable[..., tuple[Order, Path]], small: Bundle) -> None:
    asked, out = order("openvino-ir")
    (served,) = json.loads((out / "config.json").read_text())["model_config_list"]
    assert served["config"]["plugin_config"] == {"INFERENCE_PRECISION_HINT": "f32"}
    assert served["config"]["base_path"] == f"/models/{asked.name}"
    compiled = openvino.Core().compile_model(out / asked.name / "1/model.xml", "CPU", served["config"]["plugin_config"])
    images = small.frames("held_out")[:3]
    with load_runner(small.graph) as runner:
        expected = runner.infer(images)
    found = compiled({"images": images})
    np.testing.assert_allclose(found["image_score"], expected.image_score, rtol=SAME_INPUT)
    np.testing.assert_allclose(found["anomaly_map"][:, 0], expected.anomaly_map, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("geometry", [Geometry(64, 64), LETTERBOX, CROPPED], ids=["squeeze", "letterbox", "crop"])
def test_the_client_sees_the_picture_that_we_see(
    geometry: Geometry, order: Callable[..., tuple[Order, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed: the client is not run")
    _, out = order("triton", geometry)
    to_input = runpy.run_path(str(out / "client.py"))["to_input"]
    paths = write_jpegs(tmp_path)
    picture = Image.open(paths[0])
    picture.getexif()[274] = 6  # turned to the right
    picture.save(tmp_path / "turned.jpg", exif=picture.getexif(), quality=95)
    monkeypatch.setattr(nnet_edge.imaging, "bilinear", pillow_bilinear)
    for path in (*paths, tmp_path / "turned.jpg"):
        np.testing.assert_array_equal(to_input(str(path)), resize(read_image(path), geometry))


def test_deepstream_reads_its_configuration(order: Callable[..., tuple[Order, Path]]) -> None:
    asked, out = order("deepstream", max_batch=4)
    parser = configparser.ConfigParser()
    parser.read(out / "config_infer.txt")
    assert parser.sections() == ["property"]
    found = dict(parser["property"])
    assert set(found) == NVINFER
    assert (found["infer-dims"], found["batch-size"], found["offsets"]) == ("3;64;64", "4", "0;0;0")
    for key in ("onnx-file", "labelfile-path"):
        assert (out / found[key]).is_file()
    assert (out / "labels.txt").read_text() == "anomalous;good\n"
    assert float((out / "threshold.txt").read_text()) == asked.threshold


def test_the_graph_of_deepstream_gives_our_verdicts(order: Callable[..., tuple[Order, Path]], small: Bundle) -> None:
    asked, out = order("deepstream")
    images = small.frames("held_out")[:4]
    with load_runner(small.graph) as runner:
        expected = runner.infer(images).image_score
    planes = images.transpose(0, 3, 1, 2).astype(np.float32)
    for threshold in (asked.threshold, float(np.median(expected))):
        content = nvinfer_graph(small.graph.read_bytes(), threshold)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (verdict,) = session.run(None, {"images": planes})
        bad, good = verdict.T
        np.testing.assert_allclose(bad / good, expected / threshold, rtol=1e-4)
        np.testing.assert_array_equal(bad > good, expected > threshold)
    planes[0, 0, 0, 0] = np.nan  # as a broken computation would
    (verdict,) = session.run(None, {"images": planes})
    assert not (verdict[0] > 0).any()  # neither label is attached
    assert (out / "verdict.onnx").read_bytes() == nvinfer_graph(small.graph.read_bytes(), asked.threshold)


@pytest.mark.parametrize(("to", "file"), [("triton", "models/run/model.onnx"), ("deepstream", "verdict.onnx")])
def test_tensorrt_reads_what_it_is_to_build(
    to: str, file: str, order: Callable[..., tuple[Order, Path]], small: Bundle
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: the graphs are not parsed by it")
    _, out = order(to, backend="tensorrt")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse((out / file).read_bytes()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert tuple(network.get_input(0).shape) == ((-1, 64, 64, 3) if to == "triton" else (-1, 3, 64, 64))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_cpp_program_judges_as_we_do(
    backend: str, order: Callable[..., tuple[Order, Path]], small: Bundle, tmp_path: Path
) -> None:
    if not all(map(shutil.which, ("cmake", "c++"))):
        pytest.skip("no cmake or no C++ compiler: the C++ program is not built")
    if backend == "openvino":
        place = f"-DOpenVINO_DIR={Path(openvino.__file__).parent / 'cmake'}"
    elif "ONNXRUNTIME_ROOT" in os.environ:
        place = f"-DONNXRUNTIME_ROOT={os.environ['ONNXRUNTIME_ROOT']}"
    else:
        pytest.skip("ONNXRUNTIME_ROOT names no archive of ONNX Runtime, whose wheel has no headers: not built with it")
    paths = write_jpegs(tmp_path)
    turned, damaged = tmp_path / "turned.jpg", tmp_path / "damaged.jpg"
    picture = Image.open(paths[0])
    picture.getexif()[274] = 6
    picture.save(turned, exif=picture.getexif())
    damaged.write_bytes(paths[0].read_bytes()[:-300])
    _, out = order("cpp", BOTH, backend=backend)
    assert len((out / "judge.cpp").read_text().splitlines()) < 100
    build = subprocess.run(["cmake", "-S", out, "-B", out / "build", place], capture_output=True, text=True)
    if "Could NOT find JPEG" in build.stderr:
        pytest.skip("no headers of libjpeg: the C++ program is not built")
    assert build.returncode == 0, build.stderr
    subprocess.run(["cmake", "--build", out / "build"], check=True, capture_output=True)
    command = [out / "build/judge", out / "model.onnx", *paths]
    judged = subprocess.run([*command, turned, damaged, tmp_path / "absent.jpg"], capture_output=True, text=True)
    assert judged.returncode == 1
    assert [line.split(": ", 2)[2] for line in judged.stderr.splitlines()] == [
        "EXIF turns it: save it upright", "it is damaged", "it cannot be read",
    ]  # fmt: skip
    found = [json.loads(line) for line in judged.stdout.splitlines()]
    assert [one["number"] for one in found] == [0, 1]
    values = np.array([one["score"] for one in found])
    np.testing.assert_allclose(values, scores(small, paths, BOTH, True), rtol=SAME_INPUT)
    np.testing.assert_allclose(values, scores(small, paths, BOTH, False), rtol=SAME_RULE)
    for one in found:
        assert one["verdict"] == ("anomalous" if one["relative_score"] > 1 else "good")


def test_what_cannot_be_exported_is_said(
    order: Callable[..., tuple[Order, Path]], small: Bundle, tmp_path: Path
) -> None:
    tiles = Tiles(2, 2, height=64, width=64)
    with pytest.raises(ConfigError, match="no other program cuts and stitches"):
        order("onnx", Geometry(64, 64).with_tiles(tiles))
    with pytest.raises(ConfigError, match="nvinfer knows no such rule"):
        export_model(small_with(tmp_path, small, LETTERBOX), "deepstream", tmp_path / "out")
    for options, words in (
        ({"backend": "tensorrt"}, "back end of onnx"), ({"name": "../up"}, "--name"), ({"max_batch": 0}, "batch"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            export_model(small.path, "onnx", tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="builds its own int8"):
        export_model(small.path, "triton", tmp_path / "out", "tensorrt", "int8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").touch()
    with pytest.raises(ConfigError, match="holds no contract"):
        export_model(small.path, "onnx", tmp_path / "mine", force=True)
    assert not (tmp_path / "out").exists()


def small_with(tmp_path: Path, small: Bundle, geometry: Geometry) -> Path:
    path = shutil.copytree(small.path, tmp_path / "other")
    changed(read_bundle(path), input=geometry.as_dict())
    return path
