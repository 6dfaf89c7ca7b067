"""Sensitivity of each block of the network to INT8, and the fewest parts that must stay in higher precision.

The cost of a block is the map error when it alone is INT8. Costs of different blocks add up like independent noise (their
squares do), so the first to keep are those with the largest squared cost for the work that they save. The few
blocks that make most of the error are taken apart: often one layer of them, a depthwise one for instance, makes it all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from nnet_edge.calibration.fp32_region import block_of
from nnet_edge.calibration.qdq import Plan, insert_qdq
from nnet_edge.calibration.ranges import Activations, Probe, Progress, map_error

OUTPUTS = ("anomaly_map", "image_score")
GROWTH = 1.25  # of the number of blocks kept, from one try to the next
LOUD_SHARE = 0.95  # of the squared error; what the other blocks cost is not worth looking at twice
Verdict = TypeVar("Verdict")


@dataclass(frozen=True)
class Sensitivity:
    """Map error by unit, in thresholds: mean absolute difference of the anomaly maps when only that unit is INT8."""

    blocks: Mapping[str, float]
    layers: Mapping[str, float]  # of the blocks that were taken apart
    efforts: Mapping[str, float]  # unit -> what computing it in FP32 costs, in multiplications

    @property
    def order(self) -> list[str]:
        """Blocks, and layers of those taken apart: the one first that should be kept in higher precision first."""
        apart = {block_of(layer) for layer in self.layers}
        costs = {name: cost for name, cost in self.blocks.items() if name not in apart} | dict(self.layers)
        return sorted(costs, key=lambda name: -(costs[name] ** 2) / self.efforts[name])


def measure_sensitivity(plan: Plan, activations: Activations, frames: np.ndarray, threshold: float, report: Progress,
                        threads: int | None = None) -> Sensitivity:  # fmt: skip
    """The cost of every block of the plan on `frames`, uint8 RGB (N, H, W, 3); one graph a block is computed."""
    fp32 = Probe(plan.model, OUTPUTS, threads)
    expected = [fp32.infer(frame[None]) for frame in frames]
    done = 0

    def cost(layers: Collection[str], total: int) -> float:
        nonlocal done
        probe = Probe(insert_qdq(plan, activations, kept=set(plan.layers) - set(layers)), OUTPUTS, threads)
        pairs = zip(frames, expected, strict=True)
        error = float(np.mean([map_error(probe.infer(frame[None]), truth, threshold) for frame, truth in pairs]))
        done += 1
        report(done, total)
        return error if np.isfinite(error) else np.inf  # NaN in the maps: nothing is worse

    blocks = {name: cost(layers, len(plan.blocks)) for name, layers in plan.blocks.items()}
    apart = [layer for name in loudest(blocks) for layer in plan.blocks[name] if len(plan.blocks[name]) > 1]
    layers = {layer: cost([layer], len(plan.blocks) + len(apart)) for layer in apart}
    return Sensitivity(blocks, layers, {unit: plan.effort(unit) for unit in (*blocks, *layers)})


def loudest(costs: Mapping[str, float]) -> list[str]:
    """The fewest blocks that make 95 % of the sum of squared costs, the loudest first; or those without a finite cost."""
    names = sorted(costs, key=lambda name: -costs[name])
    if endless := [name for name in names if np.isinf(costs[name])]:
        return endless
    sums = np.cumsum([costs[name] ** 2 for name in names])
    return names[: int(np.searchsorted(sums, LOUD_SHARE * sums[-1])) + 1]


@dataclass(frozen=True)
class Found(Generic[Verdict]):
    """The fewest blocks kept for which the gate holds, and its verdict; `holds` is False when none was found."""

    kept: tuple[str, ...]
    verdict: Verdict
    holds: bool
    tried: int  # verdicts of the gate


def fewest_kept(
    order: Sequence[str], judge: Callable[[tuple[str, ...]], Verdict], holds: Callable[[Verdict], bool]
) -> Found[Verdict]:
    """The shortest beginning of `order` that the gate accepts when these blocks are kept.

    Grows the number by a quarter until the gate holds, then halves the gap: rounding errors are noise to the gate, so more
    blocks kept may do worse than fewer, and doubling would jump over most of what holds. At least one block stays INT8;
    where the gate never holds the verdict is the one with the most blocks kept.
    """
    verdicts: dict[int, Verdict] = {}

    def holds_at(count: int) -> bool:
        verdicts[count] = judge(tuple(order[:count]))
        return holds(verdicts[count])

    most = len(order) - 1
    low, high = 0, 1
    while not holds_at(min(high, most)):
        if high >= most:
            return Found(tuple(order[:most]), verdicts[most], False, len(verdicts))
        low, high = high, max(high + 1, int(GROWTH * high))
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds_at(middle) else (middle, high)
    return Found(tuple(order[:high]), verdicts[high], True, len(verdicts))
