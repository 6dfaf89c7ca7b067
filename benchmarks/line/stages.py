"""Where a picture's time goes: what each stage of a line makes alone, and what the line makes of them.

Decoding (the source alone), resizing (on a GPU also the upload and the download of the scores: `start_frames`), the network
(images that lie ready, full batches, two under way) and the whole stream with a JSON line a verdict, each in pictures a
second, in turn with the others. What the whole lacks to the slowest stage is lost between them.

    python -m nnet_edge.benchmarks.line.stages BUNDLE photos/ line.mp4 --cameras 8 --plot stages.png
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import click
import cv2
import numpy as np

from nnet_edge.benchmarks.harness.command_line import command_text, run_command, say
from nnet_edge.benchmarks.harness.machine import busy_percent, busy_warning, describe_machine
from nnet_edge.benchmarks.harness.report import new_figure, png_of, table_text, write_json
from nnet_edge.benchmarks.harness.rounds import Spread, run_rounds, spread
from nnet_edge.benchmarks.harness.streams import ABOVE_ALL, add_camera, log_of, per_second, require_balanced, running
from nnet_edge.benchmarks.line.line import bare_rate
from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.files import write_atomically
from nnet_edge.frame import Frame
from nnet_edge.runtime.runners.base import FrameRunner
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.sources.synthetic import SyntheticSource, draw_part
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.loop import preprocess
from nnet_edge.runtime.stream.model import Model, load_model
from nnet_edge.settings.line import PRECISIONS
from nnet_edge.settings.runner import RunnerSettings

DEMAND = 1.5  # pictures that cameras give, for each that the slowest stage makes
DRAWN = 4  # pictures that a camera shows
STAGES = ("decode", "resize", "network", "whole")
COLOURS = {"decode": "#8a8a8a", "resize": "#d08770", "network": "#2f6fb0", "whole": "#2e6b2e"}
Stages = dict[str, Callable[[], float]]
Opener = Callable[[], Source]


@dataclass(frozen=True)
class Row:
    """Pictures a second of one source, over the rounds."""

    source: str
    size: tuple[int, int]  # height and width of its pictures
    decode: Spread | None  # None: cameras whose pictures lie ready
    resize: Spread
    network: Spread
    whole: Spread

    @property
    def slowest(self) -> str:
        """The stage that makes the fewest alone."""
        alone = {name: value.median for name in STAGES[:3] if (value := getattr(self, name)) is not None}
        return min(alone, key=lambda name: alone[name])

    @property
    def share(self) -> float:
        """Of the network's rate that the whole makes."""
        return self.whole.median / self.network.median


def measure(model: Model, sources: Sequence[str], cameras: Sequence[int], size: tuple[int, int], seconds: float,
            rounds: int, tell: Callable[[str], None] = say, decode: str = "cpu") -> Iterator[Row]:  # fmt: skip
    """A row of each source, read from its start again and again, and of each number of synthetic cameras of `size`.

    `decode` says where JPEGs and video are decoded, as `stream` does.

    Raises SourceError for a source that ends without a picture, ConfigError for one that is live.
    """
    for text in sources:
        opener = partial(open_source, text, decode=decode)
        frames = first_frames(text, opener, model.runner.max_batch)
        stages: Stages = {"decode": partial(decode_rate, opener, seconds)}
        stages |= stages_of(model, frames, seconds) | {"whole": partial(whole_rate, model, text, opener, seconds)}
        yield row_of(text, frames, stages, rounds, tell)
    for number in cameras:
        frames = [Frame(image, index, 0.0) for index, image in enumerate(drawn(size))]
        full = list(islice(cycle(frames), model.runner.max_batch))
        alone = stages_of(model, full, seconds)
        stages = alone | {"whole": lambda number=number, alone=alone: camera_rate(model, number, size, alone, seconds)}
        yield row_of(f"{number} cameras", frames, stages, rounds, tell)


def row_of(name: str, frames: Sequence[Frame], stages: Stages, rounds: int, tell: Callable[[str], None]) -> Row:
    """The row of these stages, each once a round."""
    tell(name)
    found = {stage: spread(values) for stage, values in run_rounds(stages, rounds).items()}
    height, width = frames[0].image.shape[:2]
    return Row(name, (height, width), found.get("decode"), found["resize"], found["network"], found["whole"])


def stages_of(model: Model, frames: Sequence[Frame], seconds: float) -> Stages:
    """Resizing `frames`, a full batch of them, and the network, each alone."""
    return {
        "resize": lambda: resize_rate(model, frames, seconds),
        "network": lambda: bare_rate(model.runner, seconds),
    }


def first_frames(text: str, opener: Opener, count: int) -> list[Frame]:
    """So many pictures of a source, from its start; it is read again where it has fewer."""
    source = opener()
    if source.is_live:
        raise ConfigError(
            f"{source.describe()} is live: give a folder or a video file, which can be read from its start again"
        )
    with source:
        found = list(islice(source, count))
    if not found:
        raise SourceError(f"{text} ends without a picture")
    return list(islice(cycle(found), count))


def decode_rate(opener: Opener, seconds: float) -> float:
    """Pictures a second that the source gives by itself."""
    count, start_s = 0, time.monotonic()
    while time.monotonic() - start_s < seconds:
        with opener() as source:
            for _ in source:
                count += 1
                if time.monotonic() - start_s >= seconds:
                    break
    return count / (time.monotonic() - start_s)


def resize_rate(model: Model, frames: Sequence[Frame], seconds: float) -> float:
    """Pictures a second that are brought to the input, beside no network; on a GPU with it, from memory to the scores."""
    runner = model.runner
    if isinstance(runner, FrameRunner):
        return per_second(runner.start_frames, lambda: frames, seconds)
    count, start_s = 0, time.monotonic()
    while time.monotonic() - start_s < seconds or not count:
        preprocess(frames, model.geometry)
        count += len(frames)
    return count / (time.monotonic() - start_s)


def whole_rate(model: Model, text: str, opener: Opener, seconds: float) -> float:
    """Verdicts a second of a line with this source."""
    return line_rate(model, [lambda: Repeated(text, opener)], seconds)


def camera_rate(model: Model, number: int, size: tuple[int, int], alone: Stages, seconds: float) -> float:
    """Verdicts a second of a line with so many synthetic cameras, which together give more than the stages make."""
    rate_hz = DEMAND * min(stage() for stage in alone.values()) / number
    pictures = drawn(size)
    return line_rate(model, [lambda: SyntheticSource(cycle(pictures), rate_hz)] * number, seconds)


def line_rate(model: Model, cameras: Sequence[Callable[[], Source]], seconds: float) -> float:
    """Verdicts a second of a line with these cameras, whose JSON lines go to a file. Raises StreamError for a lost frame."""
    with tempfile.TemporaryDirectory(prefix="nnet-edge-stages-") as folder:
        line = Line(model, [log_of(Path(folder) / "verdicts.jsonl")])
        for number, open_camera in enumerate(cameras):
            add_camera(line, number, open_camera, ABOVE_ALL)
        with running(line) as reports:
            time.sleep(seconds)
    for error in line.errors().values():
        raise error
    require_balanced(reports[0])
    return reports[0].total.judged / reports[0].seconds


class Repeated(Source):
    """A folder or video that begins again at its end, and waits until it is judged."""

    never_ends = True

    def __init__(self, text: str, opener: Opener) -> None:
        super().__init__(text)
        self._text, self._opener = text, opener

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while not self._interrupted.is_set():
            with self._opener() as source:
                for frame in source:
                    yield replace(frame, index=index)
                    index += 1
                    if self._interrupted.is_set():
                        return

    def describe(self) -> str:
        return self._text


def drawn(size: tuple[int, int]) -> list[np.ndarray]:
    """What a camera shows, uint8 BGR (height, width, 3): the drawn line, brought to that size."""
    return [cv2.resize(draw_part(number)[0], size[::-1], interpolation=cv2.INTER_LINEAR) for number in range(DRAWN)]


HEADS = ("source", "pictures", *STAGES, "slowest alone", "whole of network")


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown: pictures a second, median and range over the rounds."""
    return table_text(HEADS, [
        [row.source, f"{row.size[1]}x{row.size[0]}", *(text_of(getattr(row, name)) for name in STAGES), row.slowest,
         f"{row.share:.0%}"]
        for row in rows
    ])  # fmt: skip


def text_of(rate: Spread | None) -> str:
    """Median and range, "-" for what there is not."""
    return "-" if rate is None else rate.text(1)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of every stage's pictures a second, a group a source. Raises MissingExtraError without matplotlib."""
    figure = new_figure((9, 1.2 + 1.1 * len(rows)))
    axes = figure.subplots()
    for place, name in enumerate(STAGES):
        found = [(number, value.median) for number, row in enumerate(rows) if (value := getattr(row, name)) is not None]
        heights = [number + 0.2 * place for number, _ in found]
        axes.barh(heights, [value for _, value in found], height=0.18, color=COLOURS[name], label=name)
    axes.set_yticks([number + 0.3 for number in range(len(rows))], [row.source for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("pictures a second")
    axes.legend(loc="lower right")
    write_atomically(path, png_of(figure))


def size_of(context: click.Context, option: click.Parameter, text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT as (height, width)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) <= 16384 and 0 < int(height) <= 16384):
        raise click.BadParameter(f"{text}: give WIDTHxHEIGHT in pixels, as 1920x1080")
    return int(height), int(width)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1)
@click.option("--cameras", type=click.IntRange(1), multiple=True, help="So many synthetic cameras; may be repeated.")
@click.option("--size", callback=size_of, default="1920x1080", show_default=True, help="Of the cameras' pictures.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--runner", "kind", default="auto", show_default=True)
@click.option("--runner-batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the runner (default: one a usable core).")
@click.option(
    "--decode", default="cpu", show_default=True, help="Where JPEGs and video are decoded: cpu, gpu or gpu:N."
)
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Of each stage in a round.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the bars here, a PNG.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows here too.")
def command(
    bundle: Path, sources: tuple[str, ...], cameras: tuple[int, ...], size: tuple[int, int], precision: str, kind: str,
    runner_batch: int, threads: int | None, decode: str, seconds: float, rounds: int, picture: Path | None,
    json_path: Path | None,
) -> None:  # fmt: skip
    """Measure where the time of pictures goes on their way from SOURCES to verdicts, a Markdown table."""
    if not sources and not cameras:
        raise ConfigError("nothing to measure: give folders or videos, or --cameras")
    for warning in busy_warning(busy_percent()):
        say(warning)
    settings = RunnerSettings(kind=kind, threads=threads, hint="throughput", max_batch=runner_batch)
    model = load_model(bundle, settings, precision)
    with model.runner:
        rows = list(measure(model, sources, cameras, size, seconds, rounds, decode=decode))
    click.echo(table(rows))
    about = f"{model.runner.name} {model.runner.precision}; " + "; ".join(describe_machine(threads).values())
    click.echo(f"\n`{command_text('nnet_edge.benchmarks.line.stages')}`: {about}")
    if picture is not None:
        plot(rows, picture)
    if json_path is not None:
        write_json(json_path, [asdict(row) for row in rows])


if __name__ == "__main__":
    sys.exit(run_command(command))
