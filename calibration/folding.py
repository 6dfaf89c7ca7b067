"""ReLU folding: the clip of a ReLU is left to the rounding that follows, for twice the steps or a scale a channel.

Between a convolution and the INT8 convolution that alone reads its result stands often nothing but a ReLU or ReLU6. The
rounding clips by itself, so the ReLU goes, and what the first convolution gives may be scaled and shifted channel by channel
as long as the second takes it back in its weights and bias:

    shift     into a 1x1 convolution: 0 becomes -128 and the range takes all 255 steps, instead of half of them with
              zero point 0. Only without padding, whose zeros would be no zeros any more
    scales    into a depthwise convolution: each channel has its own range, which the weights of both convolutions absorb

The zero point stays 0 and activations keep one scale a tensor: what TensorRT takes. Map error of EfficientNet-Lite0 with
all layers in INT8, in thresholds: tire 4.6 -> 3.0 %, ball_screw 2.2 -> 1.9 %, cookie 2.0 -> 1.9 %.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from nnet_edge.calibration.fp32_region import Wiring
from nnet_edge.calibration.ranges import Activations

RELUS = ("Relu", "Clip")
HEADROOM = 1.25  # of a channel's range over the largest value that good frames gave: a defect may give more
LEAST_SHARE = 1 / 16  # of the tensor's range: a channel that was nearly silent on good frames need not stay so
STEPS, LOWEST = 255, 128  # of INT8: from -128 to 127


@dataclass(frozen=True)
class Fold:
    """A ReLU that the rounding before `reader` does as well."""

    maker: onnx.NodeProto  # the convolution before the ReLU
    relu: onnx.NodeProto
    reader: onnx.NodeProto  # the only one that reads the ReLU
    ceiling: float  # of a ReLU6; infinite for a ReLU
    is_depthwise: bool


def find_folds(wiring: Wiring, chosen: Collection[str]) -> list[Fold]:
    """Every ReLU that can go when the convolutions named in `chosen` are INT8."""
    values = {item.name: item for item in wiring.graph.initializer}
    folds = []
    for reader in wiring.graph.node:
        if reader.name not in chosen or reader.op_type != "Conv" or len(reader.input) != 3:
            continue
        relu = wiring.producer.get(reader.input[0])
        maker = wiring.producer.get(relu.input[0]) if relu is not None and relu.op_type in RELUS else None
        if relu is None or maker is None or maker.op_type != "Conv" or len(maker.input) != 3:
            continue
        constants = (*maker.input[1:], *reader.input[1:], *relu.input[1:])
        tensors = maker.output[0], relu.output[0]
        are_alone = all(len(wiring.consumers[name]) == 1 and name not in wiring.outputs for name in tensors)
        if not are_alone or not all(name in wiring.constants for name in constants if name):
            continue
        bounds = clip_bounds(relu, values)
        weight = values[reader.input[1]].dims
        is_depthwise = weight[1] == 1 and attribute(reader, "group", 1) == weight[0]
        is_pointwise = weight[1:] == [values[maker.input[1]].dims[0], 1, 1] and not any(attribute(reader, "pads", ()))
        if bounds[0] == 0 and (is_depthwise or is_pointwise):
            folds.append(Fold(maker, relu, reader, bounds[1], is_depthwise))
    return folds


def fold(graph: onnx.GraphProto, folds: Collection[Fold], activations: Activations) -> Activations:
    """Put `folds` of `graph` into it; the activations as the new graph has them."""
    values = {item.name: item for item in graph.initializer}
    ranges, means = dict(activations.ranges), dict(activations.means)
    for each in folds:
        tensor, made = each.relu.output[0], each.maker.output[0]
        scales, shift, span = choose_fold(each, activations.ranges[tensor], activations.peaks[tensor])
        weight, bias = (read(values, name) for name in each.maker.input[1:])
        write(values, each.maker.input[1], weight / scales[:, None, None, None])
        write(values, each.maker.input[2], bias / scales - shift)
        weight, bias = (read(values, name) for name in each.reader.input[1:])
        if each.is_depthwise:
            weight = weight * scales[:, None, None, None]
        write(values, each.reader.input[1], weight)
        write(values, each.reader.input[2], bias + shift * weight.sum(axis=(1, 2, 3)))
        if each.is_depthwise:  # the zero point stays 0, so what is negative is still the ReLU's to clip
            each.relu.op_type = "Relu"
            del each.relu.input[1:]
            made = tensor
        else:
            each.reader.input[0] = made
            graph.node.remove(each.relu)
        ranges[made], means[made] = span, means[tensor] / scales - shift
    return Activations(ranges, means, activations.peaks)


def choose_fold(each: Fold, span: float, peaks: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Scale of each channel (C,), shift, and the new range: the value that becomes 127."""
    if not each.is_depthwise:
        step = span / STEPS
        return np.ones(len(peaks)), LOWEST * step, (STEPS - LOWEST) * step
    whole = min(span, each.ceiling)
    if whole == 0:
        return np.ones(len(peaks)), 0.0, whole
    own = np.clip(np.minimum(HEADROOM * peaks, each.ceiling), LEAST_SHARE * whole, None)
    return own / whole, 0.0, whole


def clip_bounds(relu: onnx.NodeProto, values: Mapping[str, onnx.TensorProto]) -> tuple[float, float]:
    """The smallest and the largest value that a Relu or Clip lets through."""
    if relu.op_type == "Relu":
        return 0.0, np.inf
    low, high = [*relu.input[1:], "", ""][:2]
    return float(read(values, low)) if low else -np.inf, float(read(values, high)) if high else np.inf


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The attribute `name` of a node, `default` where it has none."""
    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def read(values: Mapping[str, onnx.TensorProto], name: str) -> np.ndarray:
    """A constant in float64."""
    return numpy_helper.to_array(values[name]).astype(np.float64)


def write(values: dict[str, onnx.TensorProto], name: str, new: np.ndarray) -> None:
    """Give a constant new values of the same shape."""
    values[name].CopyFrom(numpy_helper.from_array(new.astype(np.float32), name))
