"""Bundles and photographs of the inspector's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from nnet_edge import Inspector, load
from nnet_edge.bundle import changed, read_bundle
from nnet_edge.geometry import Geometry
from nnet_edge.tiles import CropShare, Tiles
from tests.conftest import bad_part, good_part


@pytest.fixture(scope="module")
def bundles(second_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 64x64 bundle as it is, as one that learned pictures of 12 bits, and as one of tiles of a crop in a letterbox."""
    root = tmp_path_factory.mktemp("bundles")
    for name in ("plain", "deep", "tiled"):
        shutil.copytree(second_run / "run/bundle", root / name)
    deep, tiled = read_bundle(root / "deep"), read_bundle(root / "tiled")
    changed(deep, data=deep.manifest["data"] | {"bits": 12})
    small = Geometry(64, 64, "letterbox", (96, 96), crop=CropShare(0.1, 0.1, 0.85, 0.8))
    changed(tiled, input=small.with_tiles(Tiles(1, 2, height=64, width=64)).as_dict(), known_answers={"frames": []})
    return root


Opened = Callable[..., Inspector]


@pytest.fixture(scope="module")
def opened(bundles: Path) -> Iterator[Opened]:
    """A function that gives the inspector of a bundle with these keywords, loaded once; no test closes it."""
    with ExitStack() as stack:

        @cache
        def give(name: str = "plain", **keywords: Any) -> Inspector:
            return stack.enter_context(load(bundles / name, threads=1, runner="openvino", **keywords))

        yield give


@pytest.fixture
def inspector(opened: Opened) -> Inspector:
    """That of the plain bundle."""
    return opened()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad parts in every kind of file, 8 bits a channel."""
    root = tmp_path_factory.mktemp("photographs")
    bad = bad_part(7)[0]
    rgb = Image.fromarray(cv2.cvtColor(bad, cv2.COLOR_BGR2RGB))
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(np.ascontiguousarray(np.asarray(rgb)[:70])).save(root / "turned_2.jpg", exif=turned, quality=95)
    rgb.save(root / "chroma_10.jpg", quality=60)
    rgb.convert("CMYK").save(root / "inks.jpg")
    rgb.convert("L").save(root / "grey.png")
    rgb.convert("1").save(root / "black_and_white.png")
    rgb.quantize(32).save(root / "palette.png")
    alpha = Image.fromarray(np.tile(np.arange(96, dtype=np.uint8), (96, 1)))
    rgb.putalpha(alpha)
    rgb.save(root / "rgba.png")
    rgb.convert("LA").save(root / "la.png")
    rgb.convert("RGB").save(root / "rgb.bmp")
    rgb.convert("RGB").save(root / "rgb.tif")
    rgb.convert("RGB").save(root / "lossy.webp", quality=70)
    cv2.imwrite(str(root / "good.png"), good_part(3))
    return root


@pytest.fixture(scope="module")
def deep_photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 bits in files of 16: grey and colour, PNG and TIFF."""
    root = tmp_path_factory.mktemp("deep")
    deep = bad_part(9)[0].astype(np.uint16) * 16
    cv2.imwrite(str(root / "colour_1.png"), deep)
    cv2.imwrite(str(root / "colour_2.tif"), deep)
    cv2.imwrite(str(root / "grey_3.png"), deep[..., 1])
    cv2.imwrite(str(root / "grey_4.tif"), deep[..., 1])
    return root
