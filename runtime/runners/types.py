"""Number types of a graph's tensors, so that a graph whose layers do not take what they are given is refused.

Quantised graphs most of all: rounded numbers where a layer takes real ones, or a zero point of another type than what it
belongs to, can end a library's process. Types are ONNX's numbers; None is one that is not known, and nothing is asked of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nnet_edge.runtime.runners.shapes import UnfitError

FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16, DOUBLE, BFLOAT16 = 1, 2, 3, 6, 7, 9, 10, 11, 16
NAMES = {FLOAT: "float", UINT8: "uint8", INT8: "int8", 4: "uint16", 5: "int16", INT32: "int32", INT64: "int64", 8: "text",
         BOOL: "bool", FLOAT16: "float16", DOUBLE: "double", BFLOAT16: "bfloat16"}  # fmt: skip
MOST_PARTS = 64  # of a Split
REAL, WHOLE = (FLOAT, FLOAT16, DOUBLE, BFLOAT16), (INT32, INT64)
OF_REAL = """
AveragePool BatchNormalization Ceil Conv ConvTranspose Elu Erf Exp Floor Gelu Gemm GlobalAveragePool GlobalMaxPool HardSigmoid
HardSwish InstanceNormalization LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MatMul MaxPool Mean Mish PRelu
Reciprocal Relu Resize Round Selu Sigmoid Softmax Softplus Sqrt Tanh
"""
OF_ONE_TYPE = """
Add And BatchNormalization Clip Concat Conv ConvTranspose Div Equal Gemm Greater GreaterOrEqual InstanceNormalization
LayerNormalization Less LessOrEqual MatMul Max Mean Min Mul Or PRelu Range Sub Sum
"""
OF_PLACES = """
Reshape Expand Tile Gather Pad Squeeze Unsqueeze Split TopK ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd
ReduceSum ReduceSumSquare
"""  # whose second input holds places or sizes
REALS, EQUALS = set(OF_REAL.split()), set(OF_ONE_TYPE.split())
PLACES = dict.fromkeys(OF_PLACES.split(), (1,)) | {"Slice": (1, 2, 3, 4), "Resize": (3,), "ConstantOfShape": (0,)}
COMPARED = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not")
GIVES = dict.fromkeys(COMPARED, BOOL) | {"Shape": INT64, "ArgMax": INT64}


def types_of(
    operator: str, types: Sequence[int | None], numbers: Mapping[str, Sequence[int]], value: int
) -> list[int | None]:
    """The types of what a layer gives, without those that are not known at its end.

    `numbers` are its attributes, `value` is the type of a constant. Raises UnfitError for a type that it does not take.
    """
    if operator == "QuantizeLinear":
        return [rounded_type(types, numbers)]
    if operator == "DequantizeLinear":
        return [real_type(types)]
    if operator in REALS:
        require(types[0], REAL)
    if operator in EQUALS and len({one for one in types if one is not None}) > 1:
        raise UnfitError(f"it is given {' and '.join(sorted({NAMES.get(one or 0, '?') for one in types}))}")
    for place in PLACES.get(operator, ()):
        if place < len(types):
            require(types[place], WHOLE)
    if operator == "Where":
        require(types[0], (BOOL,))
        require(types[2], REAL if types[1] in REAL else (types[1],))
        return [types[1]]
    if operator == "Cast":
        return [numbers.get("to", [0])[0]]
    if operator in ("Constant", "ConstantOfShape"):
        return [value]
    if operator in GIVES:
        return [GIVES[operator]]
    if operator == "Split":
        return list(types[:1]) * MOST_PARTS
    return [types[0], INT64] if operator == "TopK" else [types[0]]


def rounded_type(types: Sequence[int | None], numbers: Mapping[str, Sequence[int]]) -> int | None:
    """What QuantizeLinear gives."""
    require(types[0], REAL)
    require(types[1], REAL if types[0] is None else (types[0],))
    if len(types) > 2:
        require(types[2], (UINT8, INT8))
        return types[2]
    (found,) = numbers.get("output_dtype") or [UINT8]
    require(found or UINT8, (UINT8, INT8))
    return found or UINT8


def real_type(types: Sequence[int | None]) -> int | None:
    """What DequantizeLinear gives."""
    require(types[0], (UINT8, INT8, INT32))
    require(types[1], REAL)
    if len(types) > 2 and types[0] is not None:
        require(types[2], (types[0],))
    return types[1]


def require(found: int | None, allowed: Sequence[int | None]) -> None:
    """Raise UnfitError unless the type, where it is known, is one of these."""
    if found is not None and found not in allowed and None not in allowed:
        known = ", ".join(NAMES.get(one or 0, "?") for one in allowed)
        raise UnfitError(f"it is given {NAMES.get(found, f'the type {found}')} and takes {known}")
