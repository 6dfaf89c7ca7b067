"""What the nodes of a graph cost on OpenVINO, by its own clock, together for each kind of node and kernel."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnet_edge.runtime.runners.graph import INPUT
from nnet_edge.runtime.runners.openvino_runner import compile_for
from nnet_edge.settings.runner import RunnerSettings


@dataclass(frozen=True)
class NodeCost:
    """All nodes of a kind that the same kernel computes."""

    kind: str  # as OpenVINO calls it: Convolution, Subgraph (fused element-wise nodes), Reorder, ...
    kernel: str  # "brgconv_avx512_amx_i8"; "ref" in it is a kernel that nobody made fast
    nodes: int
    milliseconds: float  # the smallest of every node, added
    share: float  # of all nodes


def measure_nodes(graph: Path, settings: RunnerSettings, images: np.ndarray, rounds: int) -> list[NodeCost]:
    """The kinds of nodes, most expensive first; of each node the smallest of `rounds`, which other programs disturb least.

    `images` are uint8 RGB (N, 256, 256, 3), computed one at a time in turn.
    """
    request = compile_for(graph, settings, 1, {"PERF_COUNT": True}).create_infer_request()
    smallest: dict[str, float] = {}
    kinds: dict[str, tuple[str, str]] = {}
    for number in range(rounds):
        request.infer({INPUT: images[number % len(images)][np.newaxis]})
        for node in request.get_profiling_info():
            milliseconds = 1e3 * node.real_time.total_seconds()
            if milliseconds > 0:
                smallest[node.node_name] = min(smallest.get(node.node_name, np.inf), milliseconds)
                kinds[node.node_name] = node.node_type, node.exec_type
    groups: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for name, milliseconds in smallest.items():
        groups[kinds[name]].append(milliseconds)
    total = sum(smallest.values())
    costs = [NodeCost(*kind, len(each), sum(each), sum(each) / total) for kind, each in groups.items()]
    return sorted(costs, key=lambda cost: -cost.milliseconds)
