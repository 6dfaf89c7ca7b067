"""What a camera's frame costs on its way to the graph's input: the way that `stream` takes beside others, in processor time.

All ways are measured in every round on the same random frame. How far a way may be off the definition, Pillow's filter on
`to_rgb(frame)`, is checked first; of ways that nobody takes the table only says it. With a bundle and a folder of pictures a
second table says what the grey level that `stream` may be off does to scores and verdicts.

    python -m nnet_edge.benchmarks.frame_choices [BUNDLE FOLDER...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import cv2
import numpy as np
from PIL import Image

from nnet_edge.benchmarks.harness.command_line import command_text, run_command, say_if_busy
from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.benchmarks.harness.rounds import compare
from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.errors import ConfigError, DataError, StreamError
from nnet_edge.imaging import IMAGE_SUFFIXES, IS_VECTORISED, SIDE, pillow_bilinear, read_image, to_input, to_rgb
from nnet_edge.machine import has_module
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.settings.runner import RunnerSettings

FRAMES = {"BGR 640x480": (480, 640, 3), "grey 640x480": (480, 640), "BGR 1280x960": (960, 1280, 3)}
DEFINITION, NOW = "colours, then Pillow's resize (definition)", "to_input (now)"
COLOURS_LAST = "Pillow's resize, then colours"
ALLOWED = {NOW: 1 if IS_VECTORISED else 0}  # grey levels off the definition; 0 for all of EXACT
BILINEAR = Image.Resampling.BILINEAR
SIZE = (SIDE, SIDE)
Way = Callable[[np.ndarray], np.ndarray]  # uint8 frame as a camera gives it -> uint8 RGB (256, 256, 3)


@dataclass(frozen=True)
class Row:
    """A way for frames of one kind."""

    frame: str
    way: str
    milliseconds: float  # of the processor, median
    ratio: float  # to the definition, median over the rounds
    off: int  # grey levels, at most
    off_share: float  # of the values


def definition(frame: np.ndarray) -> np.ndarray:
    """Pillow's filter on the RGB picture."""
    return pillow_bilinear(to_rgb(frame), SIDE, SIDE)


def now(frame: np.ndarray) -> np.ndarray:
    """What `stream` does, and training, evaluation and calibration with colours that are in order already."""
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    to_input(frame, image)
    return image


def colours_last(frame: np.ndarray) -> np.ndarray:
    """Pillow on the frame as it is, then the colours of its few pixels; a grey frame is resized once, not three times."""
    conversion = cv2.COLOR_GRAY2RGB if frame.ndim == 2 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pillow_bilinear(frame, SIDE, SIDE), conversion)


def four_channels(frame: np.ndarray) -> np.ndarray:
    """Pillow keeps colours in four bytes: handed over so, nothing has to be spread, but the fourth is resized too."""
    spread = cv2.cvtColor(frame, cv2.COLOR_BGR2RGBA)
    picture = Image.frombuffer("RGBX", frame.shape[1::-1], spread, "raw", "RGBX", 0, 1)
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


EXACT: Mapping[str, Way] = {DEFINITION: definition, COLOURS_LAST: colours_last, "four channels, Pillow": four_channels,
                            "a channel at a time, Pillow": by_channel}  # fmt: skip
OTHERS: Mapping[str, Way] = {"OpenCV INTER_AREA": by_area, "torch, antialias": by_torch}


def measure(kind: str, frame: np.ndarray, rounds: int) -> list[Row]:
    """A row for each way. Raises StreamError when one is farther off the definition than it may be."""
    ways: dict[str, Way] = {DEFINITION: definition, NOW: now, COLOURS_LAST: EXACT[COLOURS_LAST]}
    if frame.ndim == 3:  # a grey one cannot go all of them
        others = {name: way for name, way in OTHERS.items() if way is not by_torch or has_module("torch")}
        ways |= {**EXACT, **others}
    found = compare({name: partial(way, frame) for name, way in ways.items()}, rounds)
    expected, rows = definition(frame), []
    for name, way in ways.items():
        off = np.abs(way(frame).astype(np.int16) - expected)
        allowed = 0 if name in EXACT else ALLOWED.get(name, 255)
        if off.max() > allowed:
            raise StreamError(
                f"{name} is {off.max()} grey levels off for {kind}, {allowed} allowed: mend it, or verdicts change"
            )
        took = found[name]
        rows.append(Row(kind, name, 1e3 * took.processor_s.median, took.processor_ratio.median, int(off.max()),
                        float((off > 0).mean())))  # fmt: skip
    return rows


def markdown(rows: list[Row]) -> str:
    """The rows as a table."""
    return table_text(["frame", "way", "processor ms", "ratio", "grey levels off"], [
        [row.frame, row.way, f"{row.milliseconds:.2f}", f"{row.ratio:.2f}",
         "equal" if row.off == 0 else f"{row.off} in {row.off_share:.0%}"] for row in rows
    ])  # fmt: skip


def measure_effect(bundle: Bundle, folder: Path) -> list[object]:
    """Cells: what the way of `stream` does, beside the definition, to scores and verdicts of the pictures in `folder`.

    Judged in FP32, changes in thresholds. Raises DataError when there is no picture.
    """
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise DataError(f"{folder} holds no picture ({', '.join(IMAGE_SUFFIXES)}): give a folder of photographs")
    frames = [cv2.cvtColor(read_image(path), cv2.COLOR_RGB2BGR) for path in paths]
    with load_runner(bundle.graph, RunnerSettings()) as runner:
        expected, found = (
            np.array([runner.infer(way(frame)[np.newaxis]).image_score[0] for frame in frames]) / bundle.threshold.value
            for way in (definition, now)
        )
    change, flips = np.abs(found - expected), int(((found > 1) != (expected > 1)).sum())
    return [folder.as_posix(), len(paths), f"{np.median(change):.3%}", f"{change.max():.3%}", flips]


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", type=click.IntRange(min=1), default=100, show_default=True)
def command(bundle: Path | None, folders: tuple[Path, ...], rounds: int) -> None:
    """Compare ways of a frame to the graph's input, on one thread."""
    if bundle is not None and not folders:
        raise ConfigError("a bundle alone says nothing: give folders of pictures to judge, too")
    say_if_busy()
    cv2.setNumThreads(1)
    if has_module("torch"):
        import torch

        torch.set_num_threads(1)
    random = np.random.default_rng(0)
    frames = {kind: random.integers(0, 256, shape, np.uint8) for kind, shape in FRAMES.items()}
    rows = [row for kind, frame in frames.items() for row in measure(kind, frame, rounds)]
    click.echo(f"{command_text('nnet_edge.benchmarks.frame_choices')}\n\n{markdown(rows)}")
    if bundle is not None:
        opened = read_bundle(bundle)
        heads = ["pictures", "images", "score, median change in thresholds", "largest", "verdicts flipped"]
        click.echo("\n" + table_text(heads, [measure_effect(opened, folder) for folder in folders]))


if __name__ == "__main__":
    sys.exit(run_command(command))
