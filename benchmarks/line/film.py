"""A film of a line: parts that pass a camera, coded as H.264, which OpenCV's wheel does not write.

    python -m nnet_edge.benchmarks.line.film film.mp4 --size 1920x1080 --frames 300

For `benchmarks.line.stages` and for a trial of `--decode gpu`, where no film of one's own line is at hand. Needs PyAV
(`pip install "nnet-edge[decode]"`).
"""

from __future__ import annotations

import os
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import click
import numpy as np

from nnet_edge.benchmarks.harness.command_line import run_command, say
from nnet_edge.benchmarks.line.stages import drawn, size_of
from nnet_edge.errors import ConfigError
from nnet_edge.runtime.pyav_video import pyav

CODECS = {"h264": "libx264", "h265": "libx265"}
STEP = 1 / 64  # of the width, that a part passes from one picture to the next


def write_film(path: Path, size: tuple[int, int], frames: int, rate_hz: float, codec: str = "h264") -> None:
    """Write parts of the drawn line on their way, pictures of `size` (H, W) by BT.709, and name that in the file.

    It appears when it is whole. Raises ConfigError for a size that H.264 does not take or a path that cannot be written,
    MissingExtraError without PyAV.
    """
    av = pyav()
    height, width = size
    if height % 2 or width % 2:
        raise ConfigError(f"{width}x{height} cannot be coded as {codec} in 4:2:0: give even numbers")
    pictures = np.concatenate(drawn(size), axis=1)
    options = {"x265-params": "log-level=none"} if codec == "h265" else {"preset": "veryfast"}
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / f"film{path.suffix}"
            with av.open(str(draft), "w") as container:
                stream = container.add_stream(
                    CODECS[codec], rate=Fraction(rate_hz).limit_denominator(1000), options=options
                )
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
                stream.codec_context.colorspace = 1  # BT.709, as HD is
                for number in range(frames):
                    at = round(number * STEP * width) % (pictures.shape[1] - width + 1)
                    image: np.ndarray = np.ascontiguousarray(pictures[:, at : at + width])
                    frame = av.VideoFrame.from_ndarray(image, "bgr24").reformat(
                        format="yuv420p", dst_colorspace="ITU709"
                    )
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            os.replace(draft, path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--size", callback=size_of, default="1920x1080", show_default=True)
@click.option("--frames", type=click.IntRange(1), default=300, show_default=True)
@click.option("--rate", "rate_hz", type=click.FloatRange(0.1, 1000), default=30.0, show_default=True)
@click.option("--codec", type=click.Choice(tuple(CODECS)), default="h264", show_default=True)
def command(path: Path, size: tuple[int, int], frames: int, rate_hz: float, codec: str) -> None:
    """Write a film of parts that pass a camera to PATH, an MP4 or a Matroska file."""
    write_film(path, size, frames, rate_hz, codec)
    say(f"{path}: {frames} pictures of {size[1]}x{size[0]}")


if __name__ == "__main__":
    sys.exit(run_command(command))
