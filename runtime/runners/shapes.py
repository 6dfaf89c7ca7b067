"""Shapes of a graph's tensors for one image, so that a graph whose layers do not fit each other is refused.

What a layer gives is computed where its operator is one of those that networks consist of; of others nothing is known, and
nothing is asked of what they give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]


class UnfitError(ValueError):
    """Why a layer cannot be computed."""


@dataclass(frozen=True)
class Layer:
    """A node: shapes of its inputs (None: not known), those whole numbers that are constants, and its attributes."""

    operator: str
    shapes: Sequence[Shape | None]
    constants: Sequence[Sequence[int] | None]
    attributes: Mapping[str, Sequence[int]]
    outputs: int

    def number(self, name: str, default: int) -> int:
        """The attribute, a whole number."""
        return self.attributes[name][0] if self.attributes.get(name) else default

    def axis(self, default: int, rank: int) -> int:
        """The attribute axis, counted from the front."""
        return place(self.number("axis", default), rank)


def place(axis: int, rank: int) -> int:
    """`axis` counted from the front. Raises UnfitError for one that a tensor of that rank lacks."""
    if not -rank <= axis < rank:
        raise UnfitError(f"axis {axis} of a tensor with {rank}")
    return axis % rank


def shapes_of(layer: Layer) -> list[Shape | None]:
    """The shapes of what the layer gives. Raises UnfitError where its inputs do not fit each other or it."""
    rule = RULES.get(layer.operator)
    if rule is None or any(shape is None for shape in layer.shapes[: ASKED.get(layer.operator, len(layer.shapes))]):
        return [None] * layer.outputs
    found = rule(layer)
    if any(
        shape is not None and (len(shape) > 8 or min(shape, default=1) < 1 or prod(shape) > 2**31) for shape in found
    ):
        raise UnfitError(f"it would give the shapes {found}")
    return found + [None] * (layer.outputs - len(found))


def broadcast(layer: Layer) -> list[Shape | None]:
    known = [shape for shape in layer.shapes if shape is not None]
    rank = max(len(shape) for shape in known)
    found = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in known), strict=True):
        if len(set(sizes) - {1}) > 1:
            raise UnfitError(f"shapes {known}")
        found.append(max(sizes))
    return [tuple(found)]


def same(layer: Layer) -> list[Shape | None]:
    return [layer.shapes[0]]


def along_axis(layer: Layer) -> list[Shape | None]:
    shape = known(layer, 0)
    layer.axis(-1, len(shape))
    return [shape]


def rounding(layer: Layer) -> list[Shape | None]:
    shape, scale = known(layer, 0), layer.shapes[1]
    if scale is not None and scale not in ((), (1,)) and scale != (shape[layer.axis(1, len(shape))],):
        raise UnfitError(f"scales {scale} of a tensor {shape}")
    if len(layer.shapes) > 2 and scale is not None and layer.shapes[2] not in (None, scale):
        raise UnfitError(f"scales {scale} and zero points {layer.shapes[2]}")
    if layer.number("block_size", 0):
        raise UnfitError("rounding in blocks")
    return [shape]


def known(layer: Layer, index: int) -> Shape:
    shape = layer.shapes[index]
    assert shape is not None  # `shapes_of` saw to it
    return shape


def window(layer: Layer, kernel: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]:
    """Dilated kernel, strides, padding before and behind."""
    rank = len(kernel)
    strides, dilations = (layer.attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
    pads = layer.attributes.get("pads") or [0] * 2 * rank
    if not len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        raise UnfitError("numbers of another rank")
    return (
        [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)],
        strides,
        pads[:rank],
        pads[rank:],
    )


def slid(sizes: Shape, layer: Layer, kernel: Sequence[int]) -> Shape:
    """Height and width behind a convolution or a pooling."""
    if len(sizes) != len(kernel):
        raise UnfitError(f"a window {list(kernel)} on a tensor with {len(sizes) + 2} axes")
    parts = zip(sizes, *window(layer, kernel), strict=True)
    found = []
    for size, reach, stride, before, behind in parts:
        if before >= reach or behind >= reach or size + before + behind < reach:
            raise UnfitError(f"a window of {reach} on {size} with {before} and {behind} of padding")
        found.append((size + before + behind - reach) // stride + 1)
    return tuple(found)


def convolution(layer: Layer) -> list[Shape | None]:
    x, weights = known(layer, 0), known(layer, 1)
    if len(x) != len(weights) or x[1] != weights[1] * layer.number("group", 1):
        raise UnfitError(f"weights {weights} on a tensor {x}")
    return [(x[0], weights[0], *slid(x[2:], layer, weights[2:]))]


def transposed_convolution(layer: Layer) -> list[Shape | None]:
    x, weights = known(layer, 0), known(layer, 1)
    if len(x) != len(weights) or x[1] != weights[0] or layer.attributes.get("output_shape"):
        raise UnfitError(f"weights {weights} on a tensor {x}")
    reach, strides, before, behind = window(layer, weights[2:])
    more = layer.attributes.get("output_padding") or [0] * len(reach)
    if any(extra >= max(stride, 1) for extra, stride in zip(more, strides, strict=True)):
        raise UnfitError(f"{list(more)} of output padding with strides {list(strides)}")
    sizes = zip(x[2:], strides, more, reach, before, behind, strict=True)
    spatial = tuple(
        stride * (size - 1) + extra + kernel - first - last for size, stride, extra, kernel, first, last in sizes
    )
    return [(x[0], weights[1] * layer.number("group", 1), *spatial)]


def pooling(layer: Layer) -> list[Shape | None]:
    x, kernel = known(layer, 0), layer.attributes.get("kernel_shape")
    if not kernel or len(x) < 3:
        raise UnfitError(f"a pooling without a window, or of a tensor {x}")
    return [None] if layer.number("ceil_mode", 0) else [(*x[:2], *slid(x[2:], layer, kernel))]


def global_pooling(layer: Layer) -> list[Shape | None]:
    x = known(layer, 0)
    if len(x) < 3:
        raise UnfitError(f"a pooling of a tensor {x}")
    return [(*x[:2], *[1] * (len(x) - 2))]


def reduction(layer: Layer) -> list[Shape | None]:
    x = known(layer, 0)
    axes = layer.attributes.get("axes") if len(layer.shapes) < 2 else layer.constants[1]
    require_list(layer)
    if len(layer.shapes) > 1 and axes is None:
        return [None]
    if not axes and layer.number("noop_with_empty_axes", 0):
        return [x]
    axes = axes or range(len(x))
    gone = {place(axis, len(x)) for axis in axes}
    if len(gone) < len(axes):
        raise UnfitError(f"a reduction over the axes {list(axes)}")
    keeps = layer.number("keepdims", 1)
    return [tuple(1 if axis in gone else size for axis, size in enumerate(x) if keeps or axis not in gone)]


def require_list(layer: Layer) -> None:
    """Raise UnfitError for axes or sizes that are no list."""
    if len(layer.shapes) > 1 and layer.shapes[1] is not None and len(layer.shapes[1]) != 1:
        raise UnfitError(f"axes or sizes of the shape {layer.shapes[1]}")


def transposition(layer: Layer) -> list[Shape | None]:
    x = known(layer, 0)
    order = layer.attributes.get("perm") or range(len(x))[::-1]
    if sorted(order) != list(range(len(x))):
        raise UnfitError(f"the order {list(order)} of a tensor with {len(x)} axes")
    return [tuple(x[axis] for axis in order)]


def concatenation(layer: Layer) -> list[Shape | None]:
    shapes = [known(layer, index) for index in range(len(layer.shapes))]
    axis = layer.axis(0, len(shapes[0]))
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(rest) > 1 or len({len(shape) for shape in shapes}) > 1:
        raise UnfitError(f"shapes {shapes} along axis {axis}")
    return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])]


def splitting(layer: Layer) -> list[Shape | None]:
    x = known(layer, 0)
    axis = layer.axis(0, len(x))
    require_list(layer)
    sizes = layer.attributes.get("split") or (layer.constants[1] if len(layer.shapes) > 1 else None)
    if sizes is None:
        return [None] * layer.outputs
    if len(sizes) != layer.outputs or sum(sizes) != x[axis]:
        raise UnfitError(f"parts of {list(sizes)} of {x[axis]}, of which {layer.outputs} are taken")
    return [(*x[:axis], size, *x[axis + 1 :]) for size in sizes]


def product(layer: Layer) -> list[Shape | None]:
    a, b = known(layer, 0), known(layer, 1)
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise UnfitError(f"a product of {a} and {b}")
    (batch,) = broadcast(Layer("", (a[:-2] or (1,), b[:-2] or (1,)), (), {}, 1))
    assert batch is not None
    return [(*(batch if len(a) > 2 or len(b) > 2 else ()), a[-2], b[-1])]


BROADCAST = ["Add", "Div", "Equal", "Greater", "Less", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum", "Where"]
SAME = ["Abs", "Cast", "Clip", "Erf", "Exp", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Neg", "Relu"]
SAME += ["Sigmoid", "Sqrt", "Tanh"]
REDUCE = ["ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"]
RULES: dict[str, Callable[[Layer], list[Shape | None]]] = {
    "Conv": convolution, "ConvTranspose": transposed_convolution, "AveragePool": pooling, "MaxPool": pooling,
    "GlobalAveragePool": global_pooling, "GlobalMaxPool": global_pooling, "Transpose": transposition, "Concat": concatenation,
    "Split": splitting, "MatMul": product, "Softmax": along_axis, "LogSoftmax": along_axis, "QuantizeLinear": rounding,
    "DequantizeLinear": rounding, **dict.fromkeys(BROADCAST, broadcast), **dict.fromkeys(SAME, same),
    **dict.fromkeys(REDUCE, reduction),
}  # fmt: skip
# operator -> the inputs without whose shapes nothing is known; all, where it is not named
ASKED = {
    "Conv": 2,
    "ConvTranspose": 2,
    **dict.fromkeys(("Split", "Clip", "QuantizeLinear", "DequantizeLinear", *REDUCE), 1),
}
