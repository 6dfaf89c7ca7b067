"""Structure of an ONNX graph, checked before a runner sees it, without onnx, which the camera box lacks.

A library that is given a malformed graph may end the whole process instead of raising an error. So the bytes are walked
first: every message lies inside its own, every tensor has as many bytes as its shape asks for, every name that is read was
made before, every layer is given shapes and types that it takes, and every weight is a finite number. Graphs with other
files, subgraphs or functions are none of ours.
"""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod

import numpy as np

from nnet_edge.errors import BundleError
from nnet_edge.runtime.runners.shapes import Layer, Shape, UnfitError, shapes_of
from nnet_edge.runtime.runners.types import FLOAT, INT64, types_of

VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5  # wire types of protobuf
KINDS = {
    1: "<f4",
    2: "u1",
    3: "i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    9: "u1",
    10: "<f2",
    11: "<f8",
}  # of tensors
FLOATS = (1, 10, 11)
FIELD_OF_TYPE = {1: 2, 2: 3, 3: 4, 4: 5, 6: 7, 7: 8, 8: 9, 9: 10}  # of AttributeProto
TYPED = {1: 4, 2: 5, 3: 5, 4: 5, 5: 5, 6: 5, 7: 7, 9: 5, 10: 5, 11: 10}  # the field of values that are not raw
RAW = 9
MOST_CONSTANTS = 64
MOST_DIMENSIONS, LARGEST_TENSOR, LARGEST_NUMBER = 8, 2**31, 2**16  # elements; of attributes: sizes, axes, groups
OPERATORS = """
0-0 1 Constant : sparse_value value value_float value_floats value_int value_ints value_string value_strings
1-1 1 Abs Ceil Erf Exp Floor GlobalAveragePool GlobalMaxPool HardSwish Identity Log Mish Neg Not
1-1 1 Reciprocal Relu Round Sigmoid Sign Softplus Sqrt Tanh
1-1 1 Elu LeakyRelu : alpha
1-1 1 HardSigmoid : alpha beta
1-1 1 Selu : alpha gamma
1-1 1 Gelu : approximate
1-1 1 AveragePool : auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides
1-1 1 Flatten LogSoftmax Softmax : axis
1-1 1 ArgMax : axis keepdims select_last_index
1-1 1 LpNormalization : axis p
1-1 1 SpaceToDepth : blocksize
1-1 1 DepthToSpace : blocksize mode
1-1 1 Shape : end start
1-1 1 Transpose : perm
1-1 1 Cast : saturate to
1-1 1 ConstantOfShape : value
1-1 1-2 MaxPool : auto_pad ceil_mode dilations kernel_shape pads storage_order strides
1-2 1 Squeeze Unsqueeze : axes
1-2 1 ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare : axes keepdims noop_with_empty_axes
1-2 1-64 Split : axis num_outputs split
1-3 1 Clip
1-3 1-2 Dropout : ratio seed
1-4 1 Resize : antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value \
keep_aspect_ratio_policy mode nearest_mode
1-64 1 Max Mean Min Sum
1-64 1 Concat : axis
2-2 1 Add And Div Equal Expand Greater GreaterOrEqual Less LessOrEqual MatMul Mul Or PRelu Pow Sub Tile
2-2 1 Reshape : allowzero
2-2 1 Gather : axis
2-2 2-2 TopK : axis largest sorted
2-3 1 Gemm : alpha beta transA transB
2-3 1 ConvTranspose : auto_pad dilations group kernel_shape output_padding output_shape pads strides
2-3 1 Conv : auto_pad dilations group kernel_shape pads strides
2-3 1 DequantizeLinear : axis block_size output_dtype
2-3 1 QuantizeLinear : axis block_size output_dtype precision saturate
2-3 1-3 LayerNormalization : axis epsilon stash_type
2-4 1 Pad : mode
3-3 1 Range Where
3-3 1 InstanceNormalization : epsilon
3-5 1 Slice
5-5 1-5 BatchNormalization : epsilon momentum training_mode
"""  # a line: number of inputs, of outputs, operators : their attributes; of opset 11 to 23, what networks use
SCALED = ("QuantizeLinear", "DequantizeLinear")
WINDOW = {"Conv", "ConvTranspose", "AveragePool", "MaxPool"}
Message = Mapping[int, list["int | bytes | memoryview"]]  # field number -> its values
must_be_finite: ContextVar[bool] = ContextVar("must_be_finite", default=True)
checked: set[bytes] = set()  # SHA-256 of the graphs that were found sound: one that is opened again is not walked again


def signatures() -> dict[str, tuple[tuple[int, int], tuple[int, int], frozenset[str]]]:
    """Operator -> fewest and most inputs, fewest and most outputs, names of its attributes."""
    found: dict[str, tuple[tuple[int, int], tuple[int, int], frozenset[str]]] = {}
    for line in OPERATORS.strip().splitlines():
        head, _, attributes = line.partition(" : ")
        inputs, outputs, *names = head.split()
        ranges = [(int(part.split("-")[0]), int(part.split("-")[-1])) for part in (inputs, outputs)]
        found |= dict.fromkeys(names, (ranges[0], ranges[1], frozenset(attributes.split())))
    return found


SIGNATURES = signatures()


class MalformedError(ValueError):
    """Why no runner may see a graph."""


def require_structure(content: bytes, name: str) -> None:
    """Raise BundleError that names the file `name` unless `content` may be given to a runner."""
    digest = hashlib.sha256(content).digest()
    if digest in checked and must_be_finite.get():
        return
    if fault := fault_of(content):
        raise BundleError(f"a runner cannot read {name}: {fault}; copy the bundle again, or write it with `export`")
    if must_be_finite.get():
        checked.add(digest)


def fault_of(content: bytes) -> str:
    """Why no runner may be given these bytes; empty where one may."""
    try:
        check_model(memoryview(content))
    except (MalformedError, UnicodeDecodeError, struct.error) as error:
        return str(error)
    return ""


@contextmanager
def any_weights() -> Iterator[None]:
    """Runners that are loaded in the block may have weights that are NaN or infinite: a gate says what becomes of them."""
    token = must_be_finite.set(False)
    try:
        yield
    finally:
        must_be_finite.reset(token)


def check_model(content: memoryview) -> None:
    """Raise MalformedError unless these bytes are a ModelProto with a sound graph."""
    model = fields_of(content)
    if model[25] or model[20]:
        raise MalformedError("it brings functions or a training of its own")
    for item in messages(model[8]):
        domain = text(item[1], "")
        if domain not in ("", "ai.onnx") or not 1 <= number(item[2], 0) <= 99:
            raise MalformedError(f"it needs version {number(item[2], 0)} of the operators {domain or 'ai.onnx'!r}")
    if len(model[7]) != 1 or not model[8]:
        raise MalformedError("it has no graph in it")
    check_graph(fields_of(view(model[7][0])))


def check_graph(graph: Message) -> None:
    """Raise MalformedError unless tensors and names of a GraphProto are sound."""
    if graph[15]:
        raise MalformedError("it has sparse weights")
    shapes: dict[str, Shape | None] = {}
    types: dict[str, int | None] = {}
    numbers: dict[str, list[int]] = {}  # of constants that may be axes or sizes
    positive: set[str] = set()  # those that may be scales
    for item in messages(graph[5]):
        name = text(item[8])
        if name in shapes:
            raise MalformedError(f"the weights {name} come twice")
        values = check_tensor(item, f"the weights {name}")
        shapes[name] = tuple(signed(value) for value in varints(item[1]))
        types[name] = number(item[2], 0)
        if len(shapes[name] or ()) < 2 and values.dtype.kind == "f" and values.size and (values > 0).all():
            positive.add(name)
        if values.dtype == np.int64 and values.size <= MOST_CONSTANTS:
            numbers[name] = values.tolist()
    for item in messages(graph[11]):
        shapes.setdefault(text(item[1]), declared_shape(item))
        types.setdefault(text(item[1]), declared_type(item))
    known = set(shapes)
    for item in messages(graph[1]):
        operator, name = text(item[4]), text(item[3], "")
        where = f"the node {name or '?'} ({operator})"
        if text(item[7], "") not in ("", "ai.onnx") or operator not in SIGNATURES:
            raise MalformedError(f"{where} is no operator that networks here use")
        inputs, outputs = ([text([value]) for value in item[place]] for place in (1, 2))
        check_signature(operator, inputs, outputs, where)
        made = [each for each in outputs if each]
        for each in inputs:
            if each and each not in known:
                raise MalformedError(f"{where} reads {each!r}, which nothing before it makes")
        if not made or len(set(made)) < len(made) or known.intersection(made):
            raise MalformedError(f"{where} makes nothing, or what is made already")
        known.update(made)
        attributes, constant = {}, FLOAT
        for attribute in messages(item[5]):
            check_attribute(attribute, operator, where)
            constant = type_of(attribute, constant)
            if attribute[3] or attribute[8]:
                attributes[text(attribute[1])] = [signed(value) for value in varints((*attribute[3], *attribute[8]))]
        of_inputs = [shapes.get(each) if each else None for each in inputs]
        layer = Layer(operator, of_inputs, [numbers.get(each) for each in inputs], attributes, len(outputs))
        if operator in WINDOW:
            check_window(layer, where)
        if operator in SCALED and must_be_finite.get() and inputs[1] not in positive:
            raise MalformedError(f"{where} has a scale that is no constant above 0")
        try:
            shapes |= dict(zip(outputs, shapes_of(layer), strict=True))
            given = [types.get(each) if each else None for each in inputs]
            types |= dict(zip(outputs, types_of(operator, given, attributes, constant), strict=False))
        except UnfitError as error:
            raise MalformedError(f"{where} cannot be computed: {error}") from error
    outputs = [text(item[1]) for item in messages(graph[12])]
    if not outputs or not known.issuperset(outputs):
        raise MalformedError("nothing makes its outputs")


def check_signature(operator: str, inputs: Sequence[str], outputs: Sequence[str], where: str) -> None:
    """Raise MalformedError unless the operator has as many inputs and outputs as ONNX gives it."""
    (fewest, most), (fewest_out, most_out), _ = SIGNATURES[operator]
    if not fewest <= len(inputs) <= most or not all(inputs[:fewest]) or not fewest_out <= len(outputs) <= most_out:
        raise MalformedError(f"{where} has {len(inputs)} inputs and {len(outputs)} outputs")


def declared_shape(item: Message) -> Shape | None:
    """The shape of an input for one image; None where it has none."""
    for kind in messages(item[2]):
        for tensor in messages(kind[1]):
            for shape in messages(tensor[2]):
                sizes = [number(size[1], 1) for size in messages(shape[1])]  # 1 for one that is free
                if len(sizes) > MOST_DIMENSIONS or any(size < 1 for size in sizes):
                    raise MalformedError(f"the input {text(item[1])} has the shape {sizes}")
                return tuple(sizes)
    return None


def declared_type(item: Message) -> int | None:
    """The number type of an input; None where it has none."""
    found = [number(tensor[1], 0) for kind in messages(item[2]) for tensor in messages(kind[1])]
    return found[0] if found else None


def type_of(attribute: Message, otherwise: int) -> int:
    """The number type of a constant's attribute; `otherwise` for another attribute."""
    if attribute[5]:
        return number(fields_of(view(attribute[5][-1]))[2], 0)
    is_whole = text(attribute[1]) in ("value_int", "value_ints")
    return INT64 if is_whole else otherwise


def check_window(layer: Layer, where: str) -> None:
    """Raise MalformedError unless kernel, strides, padding, weights and bias of a convolution or pooling fit each other."""
    numbers, shapes = layer.attributes, layer.shapes
    weights, kernel = shapes[1] if len(shapes) > 1 else None, numbers.get("kernel_shape")
    is_transposed = layer.operator == "ConvTranspose"
    rank = len(kernel) if kernel is not None else len(weights) - 2 if weights is not None else 2
    sizes = {"kernel_shape": rank, "strides": rank, "dilations": rank, "pads": 2 * rank, "output_padding": rank}
    (group,) = numbers.get("group", [1]) or [1]
    is_sound = (
        1 <= rank <= 3
        and group > 0
        and all(len(numbers[name]) == size for name, size in sizes.items() if name in numbers)
    )
    is_sound = is_sound and all(
        value > 0 for name in ("kernel_shape", "strides", "dilations") for value in numbers.get(name, ())
    )
    is_sound = is_sound and all(value >= 0 for name in ("pads", "output_padding") for value in numbers.get(name, ()))
    if weights is not None and is_sound:
        is_sound = len(weights) == rank + 2 and min(weights) > 0 and weights[0] % group == 0
        is_sound = is_sound and (kernel is None or tuple(kernel) == weights[2:])
        is_sound = is_sound and (
            len(shapes) < 3 or shapes[2] in (None, (weights[1] * group if is_transposed else weights[0],))
        )
    if not is_sound:
        raise MalformedError(f"{where} has attributes and weights that do not fit each other")


def check_attribute(attribute: Message, operator: str, where: str) -> None:
    """Raise MalformedError for one that the operator lacks, that is a graph or a type, or whose numbers no layer has."""
    name = text(attribute[1])
    if name not in SIGNATURES[operator][2]:
        raise MalformedError(f"{where} has the attribute {name}, which {operator} lacks")
    if any(attribute[place] for place in (6, 11, 14, 15, 21, 22, 23)):
        raise MalformedError(f"{where} has the attribute {name} that is no number, text or tensor")
    held = FIELD_OF_TYPE.get(number(attribute[20], 0))
    if held is None or any(attribute[field] for field in FIELD_OF_TYPE.values() if field != held):
        raise MalformedError(f"{where} has the attribute {name} of another type than it says")
    for tensor in (*attribute[5], *attribute[10]):
        check_tensor(fields_of(view(tensor)), f"the attribute {name} of {where}")
    numbers = [signed(value) for value in varints((*attribute[3], *attribute[8]))]
    if any(abs(value) > LARGEST_NUMBER for value in numbers):
        raise MalformedError(f"{where} has {max(numbers, key=abs)} in the attribute {name}")
    if name == "perm" and sorted(numbers) != list(range(len(numbers))):
        raise MalformedError(f"{where} has the axes {numbers}")
    floats = [value for value in attribute[2] if isinstance(value, bytes)]
    if not np.isfinite(np.frombuffer(b"".join(floats), "<f4")).all():
        raise MalformedError(f"{where} has NaN or infinity in the attribute {name}")


def check_tensor(tensor: Message, where: str) -> np.ndarray:
    """The numbers (N,) of a TensorProto. Raises MalformedError unless they are as many as its shape asks for, and finite."""
    if tensor[13] or number(tensor[14], 0):
        raise MalformedError(f"{where} lie in another file")
    shape, kind = [signed(value) for value in varints(tensor[1])], number(tensor[2], 0)
    if kind not in KINDS or len(shape) > MOST_DIMENSIONS or min(shape, default=0) < 0 or prod(shape) > LARGEST_TENSOR:
        raise MalformedError(f"{where} have the number type {kind} and the shape {shape}")
    dtype = np.dtype(KINDS[kind])
    if tensor[RAW]:
        raw = view(tensor[RAW][-1])
        if len(raw) != prod(shape) * dtype.itemsize:
            raise MalformedError(
                f"{where} have {len(raw)} bytes and their shape {shape} asks for {prod(shape) * dtype.itemsize}"
            )
        values = np.frombuffer(raw, dtype)
    else:
        typed = tensor[TYPED[kind]]
        if TYPED[kind] in (4, 10):
            packed = b"".join(bytes(view(value)) for value in typed)
            values = np.frombuffer(packed, dtype) if len(packed) % dtype.itemsize == 0 else np.empty(0, dtype)
        else:
            values = np.array([value & 0xFFFF if kind == 10 else signed(value) for value in varints(typed)], np.int64)
            values = values.astype(np.uint16).view(np.float16) if kind == 10 else values
        if len(values) != prod(shape):
            raise MalformedError(f"{where} have {len(values)} numbers and their shape {shape} asks for {prod(shape)}")
    if kind in FLOATS and must_be_finite.get() and not np.isfinite(values).all():
        raise MalformedError(f"{where} are NaN or infinite in places")
    return values


def fields_of(content: memoryview) -> Message:
    """The fields of a message, none deeper than this one."""
    found: defaultdict[int, list[int | bytes | memoryview]] = defaultdict(list)
    place, end = 0, len(content)
    while place < end:
        key, place = varint(content, place)
        wire = key & 7
        if wire == VARINT:
            value, place = varint(content, place)
            found[key >> 3].append(value)
            continue
        if wire == LENGTH:
            size, place = varint(content, place)
        elif wire in (FIXED_32, FIXED_64):
            size = 4 if wire == FIXED_32 else 8
        else:
            raise MalformedError(f"it has the wire type {wire} at byte {place}")
        if place + size > end:
            raise MalformedError(f"field {key >> 3} ends {place + size - end} bytes behind its message")
        part = content[place : place + size]
        found[key >> 3].append(part if wire == LENGTH else bytes(part))
        place += size
    return found


def varint(content: memoryview, place: int) -> tuple[int, int]:
    """A number in protobuf's base 128, at most 10 bytes, and the place behind it."""
    value = shift = 0
    for byte in content[place : place + 10]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value & (1 << 64) - 1, place + shift // 7
    raise MalformedError(f"a number is cut off at byte {place}")


def varints(values: Iterable[int | bytes | memoryview]) -> list[int]:
    """Numbers that stand alone or packed together."""
    found = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        place = 0
        while place < len(value):
            one, place = varint(memoryview(value), place)
            found.append(one)
    return found


def messages(values: Iterable[int | bytes | memoryview]) -> list[Message]:
    """The messages in a field."""
    return [fields_of(view(value)) for value in values]


def view(value: int | bytes | memoryview) -> memoryview:
    """A field that holds bytes. Raises MalformedError for one that is a number."""
    if not isinstance(value, memoryview):
        raise MalformedError("it has a number where bytes belong")
    return value


def number(values: list[int | bytes | memoryview], default: int) -> int:
    """The last of a field's numbers."""
    value = values[-1] if values else default
    if not isinstance(value, int):
        raise MalformedError("it has bytes where a number belongs")
    return signed(value)


def signed(value: int) -> int:
    """What protobuf writes of a negative number is beyond 2**63."""
    return value - (1 << 64) if value >= 1 << 63 else value


def text(values: list[int | bytes | memoryview], default: str | None = None) -> str:
    """The last of a field's texts. Raises MalformedError where there is none, unless there is a default."""
    if not values and default is not None:
        return default
    if not values:
        raise MalformedError("it lacks a name")
    return str(view(values[-1]), "utf-8")
