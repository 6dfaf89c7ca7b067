"""`nnet-edge cameras`: the cameras of this machine and its networks, what each has, and a picture of it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nnet_edge.cli.options import FOLDER, Command
from nnet_edge.errors import ConfigError, NnetEdgeError, SourceError
from nnet_edge.pixel_formats import find_format
from nnet_edge.settings.registry import SOURCES, FoundCamera

if TYPE_CHECKING:
    import numpy as np

    from nnet_edge.frame import Frame
    from nnet_edge.runtime.sources.base import Source, SourceFacts

NO_CAMERA = "none on USB (/dev/video*), and none answers as GenICam camera; rtsp:// and http:// are not searched"
SETTLED = 5  # pictures: the first ones after opening are dark where exposure works by itself
LONGEST_S = 10.0  # for a picture
STRIP, MARGIN = 22, 6  # pixels of a line of text below the picture


def find_cameras() -> list[FoundCamera]:
    """Every camera that kinds of sources find; asks networks by one broadcast, which takes a second."""
    kinds = sorted((kind for kind in SOURCES if kind.find is not None), key=lambda kind: kind.order)
    return [camera for kind in kinds if kind.find is not None for camera in kind.find()]


def not_searched() -> list[str]:
    """What to install to find more cameras, a line for each library."""
    from nnet_edge.machine import has_library, has_module, pip_line

    found: dict[str, list[str]] = {}
    for kind in (kind for kind in SOURCES if kind.find is not None):
        lacks = [install for library, install in kind.system.items() if not has_library(library)]
        lacks += [pip_line(extra) for module, extra in kind.needs.items() if not has_module(module)]
        for install in lacks:
            found.setdefault(install, []).append(f"{kind.name}:")
    return [f"not searched for {' and '.join(kinds)} {install}" for install, kinds in found.items()]


def words_of(camera: FoundCamera) -> str:
    """A camera for people, without its address."""
    facts = [camera.name]
    if camera.serial:
        facts.append(f"serial {camera.serial}")
    if camera.formats:
        facts.append(f"formats {' '.join(camera.formats)}")
    if camera.automatic is not None:
        facts.append(automatic_words(camera.automatic))
    return ", ".join(facts) + (f": {camera.problem}" if camera.problem else "")


def automatic_words(automatic: Sequence[str]) -> str:
    """What a camera changes by itself, in few words."""
    return f"AUTOMATIC: {' and '.join(automatic)}" if automatic else "nothing automatic"


def take_picture(camera: FoundCamera) -> tuple[Frame, SourceFacts | None]:
    """A picture of the camera, and what it says of itself. Raises NnetEdgeError: it may be another program's."""
    from nnet_edge.runtime.sources.open import open_source

    try:
        return first_picture(open_source(camera.path))
    except ConfigError:  # it is set to a pixel format that is not read here
        known = [name for name in camera.formats if find_format(name)]
        if not known:
            raise
        return first_picture(open_source(camera.path, pixel_format=known[0]))


def first_picture(source: Source) -> tuple[Frame, SourceFacts | None]:
    """A picture of the source, a later one where exposure works by itself, and what it says of itself. Raises SourceError."""
    limit = threading.Timer(LONGEST_S, source.interrupt)
    limit.start()
    try:
        with source:
            for number, frame in enumerate(source, 1):
                if number >= SETTLED or (source.got is not None and source.got.automatic == ()):
                    return frame, source.got
            raise SourceError(f"{source.describe()} has given no picture in {LONGEST_S:g} s")
    finally:
        limit.cancel()


def with_caption(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """The picture, uint8 BGR (H, W, 3), with lines of text below it; wider where they need it."""
    import cv2
    import numpy as np

    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    texts = [line.encode("ascii", "replace").decode() for line in lines]  # OpenCV's font has no others
    needed = max(cv2.getTextSize(line, font, size, 1)[0][0] for line in texts) + 2 * MARGIN
    height, width = image.shape[:2]
    drawn = np.full((height + len(texts) * STRIP + MARGIN, max(width, needed), 3), 32, np.uint8)
    drawn[:height, :width] = image
    for number, line in enumerate(texts, 1):
        cv2.putText(
            drawn, line, (MARGIN, height + number * STRIP - MARGIN // 2), font, size, (255, 255, 255), 1, cv2.LINE_AA
        )
    return drawn


def shoot(camera: FoundCamera, folder: Path) -> dict[str, object]:
    """Write a picture of the camera into the folder; its path and the camera's settings. Raises NnetEdgeError."""
    import cv2

    from nnet_edge.bits import MOST, to_8_bit
    from nnet_edge.files import write_atomically

    frame, got = take_picture(camera)
    image = frame.image if frame.image.dtype == "uint8" else to_8_bit(frame.image, frame.bits or MOST)
    settings = {} if got is None else dict(got.settings)
    automatic = camera.automatic if got is None or got.automatic is None else got.automatic
    shown = ", ".join(
        f"{key} {settings[key]}" for key in ("exposure_us", "gain", "rate_hz") if settings.get(key) is not None
    )
    height, width = image.shape[:2]
    lines = [
        f"{camera.path}  {camera.name}" + (f", serial {camera.serial}" if camera.serial else ""),
        f"{width}x{height} {got.pixel_format if got and got.pixel_format else ''}" + (f", {shown}" if shown else ""),
        "automatic settings are not known" if automatic is None else automatic_words(automatic),
    ]
    path = folder / (re.sub(r"[^\w.-]+", "_", camera.path).strip("_") + ".png")
    _, data = cv2.imencode(".png", with_caption(image, lines))
    write_atomically(path, data.tobytes())
    return {"picture": str(path), "settings": settings, "automatic": automatic}


@click.command("cameras", cls=Command, example="nnet-edge cameras --shot pictures")
@click.option("--shot", "folder", type=FOLDER, help="Write a picture of each camera here, with its settings below it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: Path | None, as_json: bool) -> None:
    """List the cameras that are there.

    Those of this machine (USB), and GenICam cameras, for which each network is asked by one broadcast. What a camera changes
    by itself is named: automatic exposure is the most common cause of false rejects.
    """
    found, failed, rows = find_cameras(), [], []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for camera in found:
        row: dict[str, object] = asdict(camera)
        if folder is not None and (camera.formats or not camera.problem):
            try:
                if not camera.is_readable:
                    raise SourceError(camera.problem)
                row |= shoot(camera, folder)
            except NnetEdgeError as error:
                row["problem"] = str(error)
                failed.append(f"{camera.path}: {error}")
        rows.append(row)
        if not as_json:
            click.echo(f"{camera.path}  {words_of(camera)}")
            if "picture" in row:
                click.echo(f"  wrote {row['picture']}")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        for line in ([] if found else [f"no camera: {NO_CAMERA}"]) + not_searched():
            click.echo(line)
    if failed:
        raise SourceError(f"no picture of {len(failed)} of {len(found)} cameras: {'; '.join(failed)}")
