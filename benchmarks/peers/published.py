"""What others published: speed on their hardware and PRO on MVTec AD. Never set on one line with what is measured here.

Parameters are counted, not published: those that inference executes (specification, sections 0 and 14). None: not known.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """One point of the literature."""

    method: str
    frames_per_s: float
    hardware: str
    pro: float  # %, MVTec AD, mean of the categories
    parameters: int | None
    speed_source: str
    pro_source: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


RDPP_FIGURE = "inference-time figure of the RD++ repository, read off, ±2 ms"
NOT_STATED = "GPU not stated"
PUBLISHED = (
    Published("RD", 1000 / 26, NOT_STATED, 93.9, 108_670_000, RDPP_FIGURE, "INP-Former, Table 4"),
    Published("RD++", 1000 / 28.5, NOT_STATED, 94.99, 124_150_000, RDPP_FIGURE, "RD++, quoted by UniNet"),
    Published("PatchCore", 1000 / 181.5, NOT_STATED, 93.5, None, RDPP_FIGURE, "INP-Former, Table 4"),
    Published("FastFlow", 1000 / 29.5, NOT_STATED, 85.6, None, RDPP_FIGURE, "N-Net paper, Table 1"),
    Published("SimpleNet", 77.0, "RTX 3080 Ti", 90.0, None, "SimpleNet, abstract", "INP-Former, Table 4"),
    Published("SuperSimpleNet", 1000 / 9.29, "V100S, FP16", 91.1, None,
              "its perf_v100s.csv, batch 1", "its results_avg_std.json, mean of 5 runs"),
    Published("EfficientAD-M", 269.0, "RTX A6000", 93.5, None, "hyper.ai record", "hyper.ai record"),
)  # fmt: skip
UNPLOTTED = (
    "N-Net itself: PRO 94.9 on MVTec AD, but the paper prints no frames per second (its Figure 4, TITAN RTX, has no "
    "numbers); a third party measured 6.6 frames/s for SimpleNet on the same RTX 3080 Ti (its issue 58)"
)
