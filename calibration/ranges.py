"""Activation ranges of a graph on real frames, measured frame by frame: memory does not grow with their number.

Each tensor keeps a histogram of its absolute values whose width doubles when a larger value comes. The range, the value
that becomes 127, follows from it by one of three methods:

    max         the largest value: nothing is clipped, steps are coarse where one value sticks out
    percentile  99.99 % of all values lie within
    entropy     the range whose INT8 distribution is the closest to the true one (smallest Kullback-Leibler divergence)
    auto        for each tensor that of the three with the smallest squared error of rounding and clipping
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from nnet_edge.errors import CalibrationError, ConfigError, missing_library
from nnet_edge.machine import is_throttled, usable_cores

try:
    import onnxruntime
except ImportError as error:
    raise missing_library("onnxruntime", "calibrate", error) from error

PURE_METHODS = ("max", "entropy", "percentile")
METHODS = (*PURE_METHODS, "auto")
BINS = 2048
LEVELS = 128  # of the absolute values of INT8: 0 to 127
PERCENTILE = 0.9999
ENTROPY_STEP = 16  # bins between two ranges that are tried

Progress = Callable[[int, int], None]  # frames done, frames in all
INPUT = "images"
ERRORS_ONLY = 3


@dataclass(frozen=True)
class WholePictures:
    """Frames, uint8 RGB (N, H, W, 3), and the averages (N, D) over the grid's cells of the FP32 graph's deepest features."""

    frames: np.ndarray
    averages: np.ndarray
    threads: int | None = None


@dataclass(frozen=True)
class Activations:
    """What was measured of the tensors that become INT8."""

    ranges: Mapping[str, float]  # tensor -> the value that becomes 127
    means: Mapping[str, np.ndarray]  # tensor -> mean of each channel, float64 (C,)
    peaks: Mapping[str, np.ndarray]  # tensor -> largest absolute value of each channel, float64 (C,)
    whole: WholePictures | None = None  # of the global distance, where the graph has one


class Histogram:
    """How often which absolute values came, and each channel's mean; the width is a power of two and doubles when it must."""

    def __init__(self) -> None:
        self.sums: np.ndarray | float = 0.0  # of each channel
        self.peaks: np.ndarray | float = 0.0  # largest absolute value of each channel
        self.positions = 0
        self.counts = np.zeros(BINS, np.int64)
        self.width = 0.0
        self.largest = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count the absolute `values` (N, C, H, W). Raises CalibrationError for NaN and infinity."""
        magnitudes = np.abs(values)
        peaks = magnitudes.max(axis=(0, 2, 3)).astype(np.float64)
        magnitudes = magnitudes.ravel()
        largest = float(peaks.max())
        if not np.isfinite(largest):
            raise CalibrationError("an activation is NaN or infinite: the graph is broken; train and export again")
        if largest > self.width:
            self.widen(largest)
        self.largest = max(self.largest, largest)
        self.peaks = np.maximum(self.peaks, peaks)
        self.sums = self.sums + values.sum(axis=(0, 2, 3), dtype=np.float64)
        self.positions += values.size // values.shape[1]
        if self.width > 0:
            rows = np.minimum((magnitudes * (BINS / self.width)).astype(np.int32), BINS - 1)
            self.counts += np.bincount(rows, minlength=BINS)
        else:
            self.counts[0] += magnitudes.size

    def widen(self, largest: float) -> None:
        """Double the width until `largest` fits, two bins becoming one each time."""
        wanted = float(2.0 ** np.ceil(np.log2(largest)))
        while 0 < self.width < wanted:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(BINS - len(pairs), np.int64)])
            self.width *= 2
        self.width = wanted

    @property
    def channel_means(self) -> np.ndarray:
        """The mean of each channel, float64 (C,)."""
        return np.asarray(self.sums) / max(self.positions, 1)

    def range_by(self, method: str) -> float:
        """The value that becomes 127; 0 for a tensor that never was anything but 0."""
        if method not in METHODS:
            raise ConfigError(f"calibration method {method!r} is unknown: choose {', '.join(METHODS)}")
        if method == "max" or self.largest == 0:
            return self.largest
        if method == "auto":
            return min((self.range_by(pure) for pure in PURE_METHODS), key=self.squared_error)
        bins = self.by_percentile() if method == "percentile" else self.by_entropy()
        return min(bins * self.width / BINS, self.largest)

    def squared_error(self, span: float) -> float:
        """Sum of the squared errors when `span` becomes 127; exact zeros, nearly all of the first bin, have none."""
        middles = (np.arange(1, BINS) + 0.5) * (self.width / BINS)
        step = span / (LEVELS - 1)
        errors = np.where(middles > span, (middles - span) ** 2, step**2 / 12)
        return float((self.counts[1:] * errors).sum())

    def by_percentile(self) -> int:
        """Bins that hold 99.99 % of the values."""
        share = np.cumsum(self.counts) / self.counts.sum()
        return int(np.searchsorted(share, PERCENTILE)) + 1

    def by_entropy(self) -> int:
        """Bins of the range with the smallest divergence; exact zeros, which every range keeps, do not count."""
        counts = self.counts.astype(np.float64)
        counts[0] = counts[1]
        occupied = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else BINS
        tried = range(LEVELS, max(occupied, LEVELS) + ENTROPY_STEP, ENTROPY_STEP)
        ends = [min(end, BINS) for end in tried]
        return min(ends, key=lambda end: divergence(counts, end))


def divergence(counts: np.ndarray, end: int) -> float:
    """Kullback-Leibler divergence of `counts` cut off at `end` bins from what 128 levels make of it."""
    clipped = counts[:end].copy()
    clipped[-1] += counts[end:].sum()
    level = np.arange(end) * LEVELS // end
    occupied = counts[:end] > 0
    sums = np.bincount(level, counts[:end], LEVELS)
    places = np.bincount(level, occupied, LEVELS)
    quantized = np.where(occupied, sums[level] / np.maximum(places[level], 1), 0)
    if not quantized.any():
        return np.inf
    p, q = clipped / clipped.sum(), quantized / quantized.sum()
    some = p > 0
    return float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-12))).sum())


def measure_histograms(
    infer: Callable[[np.ndarray], Mapping[str, np.ndarray]], frames: Iterable[np.ndarray], total: int, report: Progress
) -> dict[str, Histogram]:
    """Tensor -> histogram over all `frames`; `infer` gives the tensors of one batch of one frame."""
    histograms: dict[str, Histogram] = {}
    for done, frame in enumerate(frames, start=1):
        for name, values in infer(frame[None]).items():
            try:
                histograms.setdefault(name, Histogram()).add(values)
            except CalibrationError as error:
                raise CalibrationError(f"calibration frame {done} of {total}, tensor {name}: {error}") from error
        report(done, total)
    return histograms


def ranges_by(histograms: Mapping[str, Histogram], method: str, names: Sequence[str]) -> dict[str, float]:
    """Tensor -> range of the tensors `names` by `method`."""
    return {name: histograms[name].range_by(method) for name in names}


class Probe:
    """A graph on ONNX Runtime that gives any of its float tensors.

    Raises CalibrationError for a graph that ONNX Runtime cannot compute.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], threads: int | None = None) -> None:
        self.tensors = list(dict.fromkeys(tensors))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        if threads is not None or is_throttled():
            options.intra_op_num_threads = threads or usable_cores()
        content = with_outputs(model, self.tensors).SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base below Exception
            raise CalibrationError(f"ONNX Runtime cannot read the graph: {words(error)}; export it again") from error

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors by name for uint8 RGB images (N, H, W, 3)."""
        try:
            arrays = self._session.run(self.tensors, {INPUT: images})
        except Exception as error:  # as above
            raise CalibrationError(f"ONNX Runtime cannot compute the graph: {words(error)}; export it again") from error
        return dict(zip(self.tensors, arrays, strict=True))


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` with exactly these tensors as outputs, which must be float."""
    copy = deepcopy(model)
    known = {item.name: item for item in model.graph.output}
    del copy.graph.output[:]
    for name in tensors:
        copy.graph.output.append(known.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy


def map_error(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], threshold: float) -> float:
    """Mean absolute difference of two anomaly maps, in thresholds."""
    return float(np.abs(found["anomaly_map"] - expected["anomaly_map"]).mean() / threshold)


def words(error: Exception) -> str:
    """A foreign error in one line."""
    return " ".join(str(error).split())[:300]
