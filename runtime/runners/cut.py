"""A graph without its tail, cut in the bytes: the camera box lacks onnx, and ONNX Runtime computes every node of a graph,
whether or not its output is asked for (`only_execute_path_to_fetches` of 1.32 changes nothing).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from nnet_edge.runtime.runners.structure import LENGTH, VARINT, fields_of, text, varint

GRAPH, NODE, OUTPUT = 7, 1, 12  # fields of ModelProto and GraphProto
NODE_INPUT, NODE_OUTPUT, NAME = 1, 2, 1  # of NodeProto and ValueInfoProto


def cut_graph(content: bytes, outputs: Collection[str]) -> bytes:
    """The graph of these bytes, which are sound, with these of its outputs alone, without the nodes that only others need."""
    return b"".join(
        written(number, cut(value, outputs)) if number == GRAPH else raw
        for number, value, raw in parts(memoryview(content))
    )


def cut(graph: memoryview, outputs: Collection[str]) -> bytes:
    """A GraphProto cut so."""
    fields = list(parts(graph))
    needed, kept = set(outputs), set()
    for place, (number, value, _) in reversed(list(enumerate(fields))):  # nodes come in the order of computing
        if number == NODE:
            node = fields_of(value)
            if needed.intersection(text([name]) for name in node[NODE_OUTPUT]):
                needed.update(text([name]) for name in node[NODE_INPUT])
                kept.add(place)
    return b"".join(
        raw
        for place, (number, value, raw) in enumerate(fields)
        if (number != NODE or place in kept) and (number != OUTPUT or text(fields_of(value)[NAME]) in outputs)
    )


def parts(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, content and bytes with key of each field of a message, in its order."""
    place = 0
    while place < len(message):
        start = place
        key, place = varint(message, place)
        wire = key & 7
        if wire == VARINT:
            _, place = varint(message, place)
            size = 0
        elif wire == LENGTH:
            size, place = varint(message, place)
        else:
            size = 8 if wire == 1 else 4
        place += size
        yield key >> 3, message[place - size : place], message[start:place]


def written(number: int, content: bytes) -> bytes:
    """A field that holds bytes, as protobuf writes it."""
    return base_128(number << 3 | LENGTH) + base_128(len(content)) + content


def base_128(value: int) -> bytes:
    """A number as protobuf writes it."""
    digits = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([digit | 0x80 for digit in digits[:-1]] + digits[-1:])
