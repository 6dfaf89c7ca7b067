"""What one image costs whatever computes it: parameters, multiply-adds, and what the layers read and write.

Multiply-adds are those of convolutions and matrix products as torch.utils.flop_counter counts them, of the network up to
the layer maps; the teacher, both students and the memory are in it. The tail is not: it is 2 million multiply-adds of small
products. The traffic is what the same operations read and write in FP32 when each takes its operands from memory once and
nothing is fused: less than that is possible, and is what caches and fusing are for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnet_edge.bundle import Bundle
from nnet_edge.imaging import SIDE

if TYPE_CHECKING:
    from nnet_edge.methods.nnet.network import NNet

COUNTED_BY = "torch.utils.flop_counter"
FP32_BYTES = 4
COUNTED = ("convolution", "mm", "addmm", "bmm", "baddbmm")  # of torch's operators


@dataclass(frozen=True)
class Work:
    """One image of 256x256 through N-Net."""

    parameters: int  # all that inference needs: teacher, students, projections, memory, fusion
    trained_parameters: int  # without the teacher
    macs: int  # multiply-adds; an operation count is twice that
    traffic_bytes: int  # of the counted operators, FP32, nothing fused, no cache
    counted_by: str = COUNTED_BY

    def intensity_at(self, batch: int) -> float:
        """Operations for each byte of that traffic, FP32, when a batch reads the weights once."""
        spared = FP32_BYTES * self.parameters * (1 - 1 / batch)
        return 2 * self.macs / (self.traffic_bytes - spared)


def count_work(bundle: Bundle) -> Work:
    """The work of the bundle's network. Raises MissingExtraError without torch."""
    from nnet_edge.evaluation.artefact import load_network

    return work_of(load_network(bundle))


def work_of(network: NNet, side: int = SIDE) -> Work:
    """The work of one image of `side` x `side` through `network`."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = network.eval()
    images = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    traffic = traffic_counter()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, traffic:
        network(images)
    return Work(
        parameters=sum(value.numel() for value in network.parameters()),
        trained_parameters=sum(value.numel() for value in network.trained_parameters()),
        macs=counter.get_total_flops() // 2,
        traffic_bytes=traffic.total,
    )


def traffic_counter() -> Any:
    """A context manager whose `total` are the bytes that convolutions and matrix products of its block read and write."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Traffic(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = operator(*args, **(kwargs or {}))
            if operator.overloadpacket.__name__ in COUNTED:
                shapes = [value.shape for value in (*args, found) if hasattr(value, "shape")]
                self.total += FP32_BYTES * sum(math.prod(shape) for shape in shapes)
            return found

    return Traffic()
