"""What a camera's frame costs on its way to the graph's input: the way that `stream` takes beside others, in processor time.

All ways take turns on the same random frame. What must give the reference's bytes, `resize(to_rgb(frame))`, is compared with
it first; of the others the table says how far they are off.

    python -m nnet_edge.benchmarks.frame_choices
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click
import cv2
import numpy as np
from PIL import Image

from nnet_edge.benchmarks.command_line import command_text, run_command
from nnet_edge.benchmarks.machine_words import busy_percent, busy_warning
from nnet_edge.benchmarks.speed_table import table_of
from nnet_edge.errors import StreamError
from nnet_edge.imaging import SIDE, resize, to_input, to_rgb
from nnet_edge.machine import has_module

FRAMES = {"BGR 640x480": (480, 640, 3), "grey 640x480": (480, 640), "BGR 1280x960": (960, 1280, 3)}
REFERENCE, NOW = "colours, then resize (before)", "to_input (now)"
BILINEAR = Image.Resampling.BILINEAR
SIZE = (SIDE, SIDE)
Way = Callable[[np.ndarray], np.ndarray]  # uint8 frame as a camera gives it -> uint8 RGB (256, 256, 3)


@dataclass(frozen=True)
class Row:
    """A way for frames of one kind."""

    frame: str
    way: str
    milliseconds: float  # of the processor, median
    ratio: float  # to the reference, median over the rounds
    off: int  # grey levels, at most
    off_share: float  # of the values


def reference(frame: np.ndarray) -> np.ndarray:
    """What training, evaluation and calibration see."""
    return resize(to_rgb(frame))


def now(frame: np.ndarray) -> np.ndarray:
    """What `stream` does."""
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    to_input(frame, image)
    return image


def four_channels(frame: np.ndarray) -> np.ndarray:
    """Pillow keeps colours in four bytes: handed over so, nothing has to be spread, but the fourth is resized too."""
    height, width = frame.shape[:2]
    spread = cv2.cvtColor(frame, cv2.COLOR_BGR2RGBA)
    picture = Image.frombuffer("RGBX", (width, height), spread, "raw", "RGBX", 0, 1)
    return np.ascontiguousarray(np.asarray(picture.resize(SIZE, BILINEAR))[..., :3])


def by_channel(frame: np.ndarray) -> np.ndarray:
    """Three grey pictures."""
    channels = [np.ascontiguousarray(frame[..., number]) for number in (2, 1, 0)]
    return np.stack([np.asarray(Image.fromarray(channel).resize(SIZE, BILINEAR)) for channel in channels], axis=-1)


def by_area(frame: np.ndarray) -> np.ndarray:
    """OpenCV's means over areas: another filter."""
    return cv2.cvtColor(cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)


def by_torch(frame: np.ndarray) -> np.ndarray:
    """The same filter in torch, which no line has installed."""
    import torch

    images = torch.from_numpy(frame).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(images, size=SIZE, mode="bilinear", antialias=True)
    return cv2.cvtColor(small[0].permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_BGR2RGB)


EXACT: Mapping[str, Way] = {
    REFERENCE: reference,
    NOW: now,
    "four channels": four_channels,
    "a channel at a time": by_channel,
}
OTHERS: Mapping[str, Way] = {"OpenCV INTER_AREA": by_area, "torch, antialias": by_torch}


def ways_for(frame: np.ndarray) -> dict[str, Way]:
    """The ways that this frame can go: grey ones only the first two."""
    if frame.ndim == 2:
        return {name: EXACT[name] for name in (REFERENCE, NOW)}
    return {**EXACT, **{name: way for name, way in OTHERS.items() if way is not by_torch or has_module("torch")}}


def measure(kind: str, frame: np.ndarray, rounds: int) -> list[Row]:
    """A row for each way. Raises StreamError when one that must give the reference's bytes does not."""
    ways = ways_for(frame)
    expected = reference(frame)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began_s = time.process_time()
            way(frame)
            took[name].append(1e3 * (time.process_time() - began_s))
    rows = []
    for name, way in ways.items():
        off = np.abs(way(frame).astype(np.int16) - expected)
        if name in EXACT and off.any():
            raise StreamError(f"{name} is {off.max()} grey levels off for {kind}: mend it, or verdicts change")
        ratio = statistics.median(one / other for one, other in zip(took[name], took[REFERENCE], strict=True))
        rows.append(Row(kind, name, statistics.median(took[name]), ratio, int(off.max()), float((off > 0).mean())))
    return rows


def markdown(rows: list[Row]) -> str:
    """The rows as a table."""
    cells = [[row.frame, row.way, f"{row.milliseconds:.2f}", f"{row.ratio:.2f}",
              "equal" if row.off == 0 else f"{row.off} in {row.off_share:.0%}"] for row in rows]  # fmt: skip
    return "\n".join(table_of(["frame", "way", "processor ms", "ratio", "grey levels off"], cells))


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=100, show_default=True)
def command(rounds: int) -> None:
    """Compare ways of a frame to the graph's input, on one thread."""
    for warning in busy_warning(busy_percent()):
        click.echo(warning, err=True)
    cv2.setNumThreads(1)
    if has_module("torch"):
        import torch

        torch.set_num_threads(1)
    random = np.random.default_rng(0)
    frames = {kind: random.integers(0, 256, shape, np.uint8) for kind, shape in FRAMES.items()}
    rows = [row for kind, frame in frames.items() for row in measure(kind, frame, rounds)]
    click.echo(f"{command_text('nnet_edge.benchmarks.frame_choices')}\n\n{markdown(rows)}")


if __name__ == "__main__":
    sys.exit(run_command(command))
