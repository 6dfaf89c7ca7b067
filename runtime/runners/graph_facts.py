"""Graph facts: the metadata of a graph of nnet-edge, read without onnx, which the camera box lacks.

A .onnx file is a protobuf message. Its metadata_props (field 14) are read here and every other field is jumped over, so a
graph of 600 MB costs a few seeks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from nnet_edge.anomaly_map import Fusion
from nnet_edge.errors import BundleError, ConfigError

METADATA_PROPS = 14  # ModelProto.metadata_props, a repeated StringStringEntryProto
KEY, VALUE = 1, 2  # of StringStringEntryProto
VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5  # wire types of protobuf
OURS = "nnet_edge."
LARGEST_ENTRY = 1 << 20  # bytes; ours have a few hundred


def read_facts(graph: Path) -> dict[str, str]:
    """The facts that `export` put into the graph (system, backbone, settings, ...), their prefix taken off.

    Raises ConfigError when there is no such file, BundleError for one that is no ONNX graph, or none of nnet-edge.
    """
    if not graph.is_file():
        raise ConfigError(f"there is no graph at {graph}: give a bundle or a .onnx file that `export` wrote")
    try:
        with graph.open("rb") as file:
            entries = dict(_entry(value) for _, value in _fields(file, {METADATA_PROPS}))
    except (ValueError, EOFError) as error:
        raise BundleError(f"{graph} is no ONNX graph, or was cut off ({error}): write it with `export`") from error
    facts = {key.removeprefix(OURS): value for key, value in entries.items() if key.startswith(OURS)}
    if "system" not in facts or "settings" not in facts:
        raise BundleError(
            f"{graph} has no metadata of nnet-edge, so how its layer maps are fused is unknown: "
            "give a graph that `export` or `calibrate` wrote"
        )
    return facts


def fusion_of(facts: dict[str, str]) -> Fusion:
    """How the layer maps of a graph with these facts are fused. Raises BundleError when they do not say it."""
    try:
        if "fusion" in facts:
            return Fusion.from_dict(json.loads(facts["fusion"]))
        settings = json.loads(facts["settings"])  # a graph of a version that had one method
        exponents, weights = (tuple(settings[name]) for name in ("scale_exponents", "forward_weights"))
        return Fusion(bool(settings["align_corners"]), exponents, weights)
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise BundleError(f"the graph does not say how its maps are fused ({error}): export it again") from error


def _fields(file: BinaryIO, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """Number and content of each wanted field of the message; all others are jumped over."""
    end = file.seek(0, 2)
    file.seek(0)
    while file.tell() < end:
        number, wire = divmod(_varint(file), 8)
        if wire == VARINT:
            _varint(file)
        elif wire == LENGTH:
            length = _varint(file)
            if file.tell() + length > end:
                raise EOFError(f"field {number} ends {file.tell() + length - end} bytes behind the file")
            if number in wanted and length <= LARGEST_ENTRY:
                yield number, file.read(length)
            else:
                file.seek(length, 1)
        elif wire in (FIXED_64, FIXED_32):
            file.seek(8 if wire == FIXED_64 else 4, 1)
        else:
            raise ValueError(f"wire type {wire} at byte {file.tell()}")


def _entry(content: bytes) -> tuple[str, str]:
    found = {number: value.decode() for number, value in _fields(BytesIO(content), {KEY, VALUE})}
    return found.get(KEY, ""), found.get(VALUE, "")


def _varint(file: BinaryIO) -> int:
    """A number in protobuf's base 128, at most 10 bytes."""
    value = 0
    for place in range(10):
        byte = file.read(1)
        if not byte:
            raise EOFError("it ends inside a number")
        value |= (byte[0] & 0x7F) << (7 * place)
        if byte[0] < 0x80:
            return value
    raise ValueError(f"a number of more than 10 bytes at byte {file.tell()}")
