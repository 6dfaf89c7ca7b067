"""Open Inference Protocol (KServe version 2): requests and answers, as JSON and with the binary tensor extension.

A model takes `images`, UINT8 [N, height, width, 3], and gives `image_score` FP32 [N], `is_anomalous` BOOL [N] and
`anomaly_map` FP32 [N, 1, height, width].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnet_edge import __version__
from nnet_edge.runtime.runners.graph import INPUT
from nnet_edge.runtime.web.auth import Refusal

SERVER = {
    "name": "nnet-edge", "version": __version__,
    "extensions": ["binary_tensor_data", "model_configuration", "model_repository", "statistics"],
}  # fmt: skip
PLATFORM, VERSION = "nnet_edge_bundle", "1"
HEADER_LENGTH = "inference-header-content-length"
DATATYPES = {"image_score": "FP32", "is_anomalous": "BOOL", "anomaly_map": "FP32"}
CONFIG_TYPES = {"UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}


@dataclass(frozen=True)
class Asked:
    """What a request asks for."""

    images: np.ndarray  # uint8 RGB (N, height, width, 3)
    id: str | None
    outputs: tuple[tuple[str, bool], ...]  # name, and whether as binary data


def output_shapes(size: tuple[int, int]) -> dict[str, list[int]]:
    """The shape of each output, without N, for an input of (height, width)."""
    return {"image_score": [], "is_anomalous": [], "anomaly_map": [1, *size]}


def metadata(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """What a model is, as the protocol says it."""
    outputs = [{"name": output, "datatype": DATATYPES[output], "shape": [-1, *shape]}
               for output, shape in output_shapes(size).items()]  # fmt: skip
    return {"name": name, "versions": [VERSION], "platform": PLATFORM,
            "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *size, 3]}], "outputs": outputs}  # fmt: skip


def config(name: str, size: tuple[int, int], max_batch: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration, in Triton's words."""
    outputs = [{"name": output, "data_type": CONFIG_TYPES[DATATYPES[output]], "dims": shape or [1],
                **({} if shape else {"reshape": {"shape": []}})}
               for output, shape in output_shapes(size).items()]  # fmt: skip
    return {
        "name": name, "platform": PLATFORM, "max_batch_size": max_batch, "dynamic_batching": {},
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": [*size, 3]}], "output": outputs,
        "parameters": {key: {"string_value": str(value)} for key, value in facts.items()},
    }  # fmt: skip


def read_request(body: bytes, header_length: str | None, size: tuple[int, int]) -> Asked:
    """What the body asks of a model of (height, width). Raises Refusal for what the protocol or the model does not take."""
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal()) or int(header_length[:12]) > len(body):
            raise Refusal(400, f"the header {HEADER_LENGTH} is no number of bytes within the body")
        length = int(header_length)
    try:
        fields = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the request is not JSON: see the Open Inference Protocol") from error
    inputs = fields.get("inputs") if isinstance(fields, dict) else None
    if not isinstance(inputs, list) or not all(isinstance(one, dict) for one in inputs):
        raise Refusal(400, "the request is no JSON object with a list of inputs")
    unknown = [one.get("name") for one in inputs if one.get("name") != INPUT]
    if unknown or len(inputs) != 1:
        raise Refusal(400, f"the model takes the one input {INPUT}, not {', '.join(map(str, unknown)) or len(inputs)}")
    id = fields.get("id")
    if id is not None and not isinstance(id, str):
        raise Refusal(400, "the id of the request is no text")
    return Asked(read_images(inputs[0], body[length:], size), id, read_outputs(fields))


def parameters_of(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a request, an input or an output. Raises Refusal."""
    found = fields.get("parameters") or {}
    if not isinstance(found, dict):
        raise Refusal(400, "parameters are no JSON object")
    return found


def read_images(tensor: Mapping[str, Any], binary: bytes, size: tuple[int, int]) -> np.ndarray:
    """The images of an input. Raises Refusal."""
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    takes = f"UINT8 [N, {size[0]}, {size[1]}, 3]"
    if datatype != "UINT8":
        raise Refusal(400, f"{INPUT} is {datatype}, and the model takes {takes}")
    is_shape = isinstance(shape, list) and len(shape) == 4 and all(type(side) is int for side in shape)
    if not isinstance(shape, list) or not is_shape or shape[1:] != [*size, 3] or shape[0] < 1:
        raise Refusal(
            400, f"{INPUT} has the shape {shape}, and the model takes {takes}: or post a picture to .../judge"
        )
    given = parameters_of(tensor)
    if any(name.startswith("shared_memory") for name in given):
        raise Refusal(400, "shared memory is not supported: send the images themselves")
    expected = shape[0] * size[0] * size[1] * 3
    if "binary_data_size" in given:
        if given["binary_data_size"] != expected or len(binary) != expected:
            raise Refusal(400, f"{INPUT} of {shape} has {expected} bytes, and {len(binary)} came")
        return np.frombuffer(binary, np.uint8).reshape(shape)
    if binary:
        raise Refusal(400, f"{len(binary)} bytes came behind the JSON, and no input has a binary_data_size")
    try:
        values = np.array(tensor.get("data"))
    except ValueError:  # lists of several lengths
        values = np.empty(0)
    if values.size != expected or values.dtype.kind != "i" or values.min() < 0 or values.max() > 255:
        raise Refusal(400, f"the data of {INPUT} are not {expected} whole numbers from 0 to 255")
    return values.astype(np.uint8).reshape(shape)


def read_outputs(fields: Mapping[str, Any]) -> tuple[tuple[str, bool], ...]:
    """The outputs that a request wants, and whether each as binary data; all where it names none. Raises Refusal."""
    is_binary = parameters_of(fields).get("binary_data_output") is True
    wanted = fields.get("outputs")
    if not wanted:
        return tuple((name, is_binary) for name in DATATYPES)
    if not isinstance(wanted, list) or not all(isinstance(one, dict) for one in wanted):
        raise Refusal(400, "outputs are no list of JSON objects")
    found = []
    for one in wanted:
        given = parameters_of(one)
        if one.get("name") not in DATATYPES:
            raise Refusal(400, f"the model gives {', '.join(DATATYPES)}, and no {one.get('name')}")
        if "classification" in given or any(name.startswith("shared_memory") for name in given):
            raise Refusal(400, "outputs are given as tensors: classification and shared memory are not supported")
        found.append((one["name"], given.get("binary_data", is_binary) is True))
    return tuple(found)


def answer(name: str, asked: Asked, arrays: Mapping[str, np.ndarray]) -> tuple[bytes, int | None]:
    """The body of the answer, and how many bytes of it are JSON where binary data follow."""
    outputs, binary = [], []
    for output, is_binary in asked.outputs:
        array = np.ascontiguousarray(arrays[output])
        fields: dict[str, Any] = {"name": output, "datatype": DATATYPES[output], "shape": list(array.shape)}
        if is_binary:
            binary.append(array.tobytes())
            fields["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            fields["data"] = array.ravel().tolist()
        outputs.append(fields)
    facts = {} if asked.id is None else {"id": asked.id}
    head = json.dumps(
        {"model_name": name, "model_version": VERSION, **facts, "outputs": outputs}, allow_nan=False
    ).encode()
    return b"".join([head, *binary]), len(head) if binary else None


def statistics(name: str, counts: Mapping[str, Any], batches: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """What a model did so far, in Triton's words: `counts` as stage -> (count, ns), `batches` as size -> (count, ns)."""
    stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    found = {stage: dict(zip(("count", "ns"), counts.get(stage, (0, 0)), strict=True)) for stage in stages}
    return {
        "name": name, "version": VERSION, "last_inference": counts["last_ms"], "inference_count": found["success"]["count"],
        "execution_count": sum(count for count, _ in batches.values()), "inference_stats": found,
        "batch_stats": [{"batch_size": size, "compute_infer": {"count": count, "ns": ns}}
                        for size, (count, ns) in sorted(batches.items())],
    }  # fmt: skip
