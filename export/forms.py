"""Forms that other programs take a bundle's graph in: ONNX, OpenVINO IR, Triton, DeepStream, and a C++ program.

Each is a folder with the graph, `contract.json`, which says how pictures become its input and scores verdicts
(docs/contract.md), and a README.md with the command that starts it. A bundle of tiles has none: nothing but nnet-edge
cuts and stitches them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnet_edge.anomaly_map import split_name
from nnet_edge.bits import kept_bits
from nnet_edge.bundle import Artefact, Bundle, name_of, read_bundle
from nnet_edge.errors import ConfigError, ExportError
from nnet_edge.files import writing_folder
from nnet_edge.geometry import GREY, Geometry
from nnet_edge.runtime.runners.graph import INPUT
from nnet_edge.settings.runner import require_between, require_choice
from nnet_edge.settings.stream import NAME

TEMPLATES = Path(__file__).parent / "templates"
CONTRACT = "contract.json"
SCHEMA = 1  # of contract.json: fields are added, none goes
QUEUE_US = 2000  # that Triton lets an image wait for others


@dataclass(frozen=True)
class Order:
    """What is asked for: one graph of a bundle for one program."""

    bundle: Bundle
    artefact: Artefact
    name: str  # of the model on its server
    backend: str  # that computes; the name of a runner, or tensorrt
    threshold: float
    max_batch: int

    @property
    def geometry(self) -> Geometry:
        """Of the bundle's input."""
        return self.bundle.geometry

    def graph(self) -> bytes:
        """The ONNX graph, its hash checked."""
        return self.bundle.read(self.artefact.name)

    def outputs(self) -> dict[str, list[int]]:
        """Each output of the graph -> its shape without the batch."""
        from nnet_edge.runtime.runners.graph import layer_maps_of

        height, width = self.geometry.size
        maps = layer_maps_of(output_names(self.graph()))
        sides = {name: (256 // split_name(name)[1]) for name in maps}
        return {"image_score": [], "anomaly_map": [1, height, width]} | {
            name: [1, height // stride, width // stride] for name, stride in sides.items()
        }

    def contract(self) -> dict[str, Any]:
        """What contract.json says."""
        geometry, crop = self.geometry, self.geometry.crop
        window = geometry.window
        return {
            "schema": SCHEMA, "name": self.name, "bundle": self.bundle.name, "bundle_id": self.bundle.id,
            "method": self.bundle.method, "precision": self.artefact.precision, "computed_by": self.backend,
            "input": {"name": INPUT, "dtype": "uint8", "layout": "NHWC", "colours": "RGB", "shape": [-1, *geometry.shape]},
            "preprocess": {
                "resize": "bilinear with antialiasing, horizontally first, rounded to 8 bits after each direction",
                "crop": [0.0, 0.0, 1.0, 1.0] if crop is None else [crop.x, crop.y, crop.width, crop.height],
                "shares": list(geometry.shares), "window": [window.top, window.left, window.height, window.width],
                "grey": GREY, "bits": kept_bits(self.bundle.manifest),
            },
            "outputs": {name: [-1, *shape] for name, shape in self.outputs().items()},
            "threshold": self.threshold,
            "verdict": "anomalous where image_score > threshold; no verdict where it is not finite",
        }  # fmt: skip


def output_names(graph: bytes) -> list[str]:
    """The names of an ONNX graph's outputs."""
    return [output.name for output in load(graph).graph.output]


def load(graph: bytes) -> Any:
    """The graph as onnx reads it. Raises MissingExtraError."""
    from nnet_edge.errors import missing_library

    try:
        import onnx
    except ImportError as error:
        raise missing_library("onnx", "calibrate", error) from error
    return onnx.load_model_from_string(graph)


def write_onnx(order: Order, out: Path) -> str:
    (out / "model.onnx").write_bytes(order.graph())
    return "Any program that runs ONNX takes `model.onnx`; `contract.json` says how."


def write_openvino_ir(order: Order, out: Path) -> str:
    """The IR, as a repository of the OpenVINO model server."""
    write_ir(order, out / order.name / "1")
    server = {"name": order.name, "base_path": f"/models/{order.name}",
              "plugin_config": {"INFERENCE_PRECISION_HINT": "f32"}}  # fmt: skip
    write_json(out / "config.json", {"model_config_list": [{"config": server}]})
    write_client(out, "OpenVINO model server")
    return (
        "```\ndocker run --rm -p 8000:8000 -v $PWD:/models:ro openvino/model_server --config_path /models/config.json "
        "--rest_port 8000\npython client.py part.jpg\n```\n\nWithout `plugin_config` OpenVINO computes in BF16 on processors "
        "that have it, and the threshold does not hold."
    )


def write_ir(order: Order, folder: Path) -> None:
    from nnet_edge.runtime.runners.openvino_runner import save_ir

    folder.mkdir(parents=True)
    save_ir(order.graph(), folder / "model.xml")


def write_triton(order: Order, out: Path) -> str:
    """A model repository of one model."""
    folder = out / "models" / order.name
    if order.backend == "openvino":
        write_ir(order, folder / "1")
    else:
        (folder / "1").mkdir(parents=True)
        (folder / ("model.onnx" if order.backend == "tensorrt" else "1/model.onnx")).write_bytes(order.graph())
    (folder / "config.pbtxt").write_text(triton_config(order), encoding="utf-8")
    write_client(out, "Triton")
    gpus = "--gpus all " if order.backend == "tensorrt" else ""
    start = f"docker run --rm {gpus}-p 8000:8000 -v $PWD/models:/models nvcr.io/nvidia/tritonserver:YY.MM-py3 "
    text = f"```\n{start}tritonserver --model-repository /models\npython client.py part.jpg\n```"
    if order.backend == "tensorrt":
        largest, side = order.max_batch, "x".join(map(str, order.geometry.shape))
        shapes = " ".join(
            f"--{which}Shapes={INPUT}:{n}x{side}" for which, n in (("min", 1), ("opt", largest), ("max", largest))
        )
        build = f"trtexec --onnx=model.onnx --saveEngine=1/model.plan --noTF32 {shapes}"
        return (
            f"First build the plan on the GPU that will run it, in the same version's container "
            f"(nvcr.io/nvidia/tensorrt:YY.MM-py3), in models/{order.name}:\n\n```\n{build}\n```\n\nThen:\n\n{text}\n\n"
            "The threshold is that of FP32 on the processor: compare some scores before you rely on it."
        )
    return text


PLATFORMS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt"}


def triton_config(order: Order) -> str:
    """config.pbtxt. OpenVINO takes whole batches as they come: its back end would pad each to the largest."""
    is_batched = order.backend != "openvino"
    free = [] if is_batched else [-1]
    ports = [port("input", INPUT, "TYPE_UINT8", [*free, *order.geometry.shape])]
    for name, shape in order.outputs().items():
        is_scalar = is_batched and not shape
        ports.append(
            port("output", name, "TYPE_FP32", [*free, *shape] or [1], "reshape { shape: [ ] } " if is_scalar else "")
        )
    kind = "KIND_GPU" if order.backend == "tensorrt" else "KIND_CPU"
    texts = {"threshold": repr(order.threshold), "bundle": order.bundle.name, "bundle_id": order.bundle.id}
    facts = {json.dumps(key): json.dumps(value) for key, value in texts.items()}
    return "\n".join([
        f"name: {json.dumps(order.name)}",
        f'backend: "{PLATFORMS[order.backend]}"',
        f"max_batch_size: {order.max_batch if is_batched else 0}",
        *ports,
        *([f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_US} }}"] if is_batched else []),
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
        *(f"parameters {{ key: {key} value {{ string_value: {value} }} }}" for key, value in facts.items()),
        "",
    ])  # fmt: skip


def port(kind: str, name: str, dtype: str, dims: list[int], more: str = "") -> str:
    return f'{kind} [ {{ name: "{name}" data_type: {dtype} dims: [ {", ".join(map(str, dims))} ] {more}}} ]'


def write_deepstream(order: Order, out: Path) -> str:
    """A primary classifier of Gst-nvinfer: its two probabilities are good and anomalous, the score is in them."""
    if not order.geometry.is_whole:
        raise ConfigError(
            f"{order.bundle.path} sees pictures by {order.geometry.sentence()}, and nvinfer knows no such rule: "
            "use --to triton, or train with --fit squeeze and without --crop"
        )
    (out / "verdict.onnx").write_bytes(nvinfer_graph(order.graph(), order.threshold))
    (out / "labels.txt").write_text("anomalous;good\n", encoding="utf-8")
    (out / "threshold.txt").write_text(f"{order.threshold!r}\n", encoding="utf-8")
    height, width, _ = order.geometry.shape
    batch = order.max_batch
    (out / "config_infer.txt").write_text(
        "\n".join([
            "[property]", "gpu-id=0", "gie-unique-id=1", "process-mode=1", "network-type=1", "network-mode=0",
            "onnx-file=verdict.onnx", f"model-engine-file=verdict.onnx_b{batch}_gpu0_fp32.engine", f"batch-size={batch}",
            "labelfile-path=labels.txt", "classifier-threshold=0", "classifier-async-mode=0", "output-blob-names=verdict",
            "interval=0", f"infer-dims=3;{height};{width}", "network-input-order=0", "model-color-format=0",
            "net-scale-factor=1", "offsets=0;0;0", "maintain-aspect-ratio=0", "scaling-filter=1", "",
        ]),
        encoding="utf-8",
    )  # fmt: skip
    return (
        "```\ngst-launch-1.0 ... ! nvstreammux ! nvinfer config-file-path=config_infer.txt ! ...\n```\n\n"
        "The label of a frame is its verdict. A frame without a label has none: its score was not finite. The probability p of "
        "anomalous is score / (score + threshold), so score / threshold is p / (1 - p).\n\nnvinfer shrinks pictures "
        "without antialiasing, so scores differ from nnet-edge's: judge good parts there first, and export again with "
        "`--threshold` where they come near p = 0.5."
    )


def nvinfer_graph(graph: bytes, threshold: float) -> bytes:
    """The graph with float32 (N, 3, H, W) as its input and `verdict` (N, 2), anomalous and good, as its one output.

    Raises ExportError for a graph of which something else than a Cast takes the images.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    model = load(graph)
    inner = model.graph
    heads = [node for node in inner.node if INPUT in node.input]
    if not heads or any(node.op_type != "Cast" for node in heads):
        raise ExportError("the graph does not begin with a Cast of its images: export the bundle again")
    batch, height, width = inner.input[0].type.tensor_type.shape.dim[:3]
    for node in heads:
        node.input[0] = "images_last"
    sides = [batch.dim_param or "N", 3, height.dim_value, width.dim_value]
    (old,) = inner.input
    inner.input.remove(old)
    inner.input.append(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, sides))
    inner.node.insert(0, helper.make_node("Transpose", [INPUT], ["images_last"], perm=[0, 2, 3, 1]))
    inner.initializer.extend([
        numpy_helper.from_array(np.array(threshold, np.float32), "verdict_threshold"),
        numpy_helper.from_array(np.array([1], np.int64), "verdict_axis"),
    ])  # fmt: skip
    inner.node.extend([
        helper.make_node("Add", ["image_score", "verdict_threshold"], ["verdict_sum"]),
        helper.make_node("Div", ["image_score", "verdict_sum"], ["verdict_bad"]),
        helper.make_node("Div", ["verdict_threshold", "verdict_sum"], ["verdict_good"]),
        helper.make_node("Unsqueeze", ["verdict_bad", "verdict_axis"], ["verdict_bad_column"]),
        helper.make_node("Unsqueeze", ["verdict_good", "verdict_axis"], ["verdict_good_column"]),
        helper.make_node("Concat", ["verdict_bad_column", "verdict_good_column"], ["verdict"], axis=1),
    ])  # fmt: skip
    del inner.output[:]
    inner.output.append(helper.make_tensor_value_info("verdict", TensorProto.FLOAT, [sides[0], 2]))
    content: bytes = model.SerializeToString()
    return content


def write_cpp(order: Order, out: Path) -> str:
    """A C++ program that judges JPEGs, with its CMakeLists.txt."""
    (out / "model.onnx").write_bytes(order.graph())
    for name in ("judge.cpp", "picture.hpp"):
        (out / name).write_bytes((TEMPLATES / name).read_bytes())
    (out / "network.hpp").write_bytes((TEMPLATES / f"network_{order.backend}.hpp").read_bytes())
    cmake = (TEMPLATES / "CMakeLists.txt").read_text(encoding="utf-8")
    runtime = (TEMPLATES / f"{order.backend}.cmake").read_text(encoding="utf-8")
    (out / "CMakeLists.txt").write_text(cmake.replace("@RUNTIME@\n", runtime), encoding="utf-8")
    rule = order.contract()["preprocess"]
    sizes = dict(zip(("HEIGHT", "WIDTH"), order.geometry.size, strict=True)) | {"GREY": GREY}
    lines = ["// Of contract.json.", "#pragma once"]
    lines += [f"constexpr int {name} = {value};" for name, value in sizes.items()]
    lines += [f"constexpr float THRESHOLD = {order.threshold:.9g}f;"]
    lines += [cpp_array("double", name.upper(), rule[name]) for name in ("crop", "shares")]
    lines += [cpp_array("int", "WINDOW", rule["window"]), ""]
    (out / "contract.hpp").write_text("\n".join(lines), encoding="utf-8")
    options = {"openvino": "-DOpenVINO_DIR=...", "onnxruntime": "-DONNXRUNTIME_ROOT=..."}[order.backend]
    return f"```\ncmake -B build {options} && cmake --build build\nbuild/judge model.onnx part.jpg\n```"


def cpp_array(kind: str, name: str, values: list[Any]) -> str:
    return f"constexpr {kind} {name}[] = {{{', '.join(map(repr, values))}}};"


@dataclass(frozen=True)
class Form:
    """One form: who writes it, and what computes it, the default first."""

    write: Callable[[Order, Path], str]  # fills the folder; gives what its README.md says
    backends: tuple[str, ...]


FORMS = {
    "onnx": Form(write_onnx, ("onnxruntime", "openvino")),
    "openvino-ir": Form(write_openvino_ir, ("openvino",)),
    "triton": Form(write_triton, ("onnxruntime", "openvino", "tensorrt")),
    "deepstream": Form(write_deepstream, ("tensorrt",)),
    "cpp": Form(write_cpp, ("onnxruntime", "openvino")),
}


def export_model(
    path: Path,
    to: str,
    out: Path,
    backend: str | None = None,
    precision: str = "fp32",
    name: str | None = None,
    max_batch: int = 8,
    threshold: float | None = None,
    force: bool = False,
) -> Order:
    """Write the bundle at `path` in the form `to` into the folder `out`.

    Raises ConfigError for a back end or a bundle that the form does not have, BundleError for a precision that has no
    threshold there.
    """  # fmt: skip
    require_choice("form", to, tuple(FORMS))
    form = FORMS[to]
    backend = backend or form.backends[0]
    require_choice(f"back end of {to}", backend, form.backends)
    require_between("batch", max_batch, 1, 256)
    bundle = read_bundle(path)
    if bundle.geometry.tiles is not None:
        raise ConfigError(
            f"{path} sees pictures as {bundle.geometry.tiles} tiles, which no other program cuts and stitches: "
            f"use nnet-edge serve {path}, or train without --tiles"
        )
    if name is not None and NAME.fullmatch(name) is None:
        raise ConfigError(f"--name {name}: give letters, digits, dots and dashes, 64 at most")
    if backend == "tensorrt" and precision != "fp32":
        raise ConfigError(f"TensorRT builds its own {precision} of a graph: give --precision fp32")
    runner = "onnxruntime" if backend == "tensorrt" else backend
    artefact = bundle.graph_for(runner, precision)
    chosen = threshold or artefact.threshold_for(runner).value
    order = Order(bundle, artefact, name or name_of(path), backend, chosen, max_batch)
    with writing_folder(out, foreign_to_form if force else None) as folder:
        told = form.write(order, folder)
        write_json(folder / CONTRACT, order.contract())
        head = f"# {order.name}\n\nMade by nnet-edge of the bundle {bundle.name} ({bundle.id}), {precision}, for {backend}."
        (folder / "README.md").write_text(f"{head}\n\n{told}\n", encoding="utf-8")
    return order


def foreign_to_form(out: Path) -> str | None:
    """Why the folder is not one that `export_model` wrote; None where it is."""
    return None if (out / CONTRACT).is_file() else f"holds no {CONTRACT}"


def write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_client(out: Path, servers: str) -> None:
    text = (TEMPLATES / "client.txt").read_text(encoding="utf-8")
    (out / "client.py").write_text(text.replace("@SERVERS@", servers), encoding="utf-8")
