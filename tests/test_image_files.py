"""Reading every kind of file that a camera or a colleague may leave."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from nnet_edge.errors import DataError
from nnet_edge.image_files import MAX_PIXELS, read_image, read_mask, read_size
from tests.conftest import HEIGHT, WIDTH, as_rgb, over_257

# EXIF orientation -> what brings the stored pixels upright
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


def check(path: Path, expected: np.ndarray) -> None:
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    np.testing.assert_array_equal(image, expected)
    assert read_size(path) == expected.shape[:2]


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.bmp", "a.tif", "a.TIFF", "a.jpg.png"])
def test_lossless_formats(tmp_path: Path, rgb: np.ndarray, name: str) -> None:
    Image.fromarray(rgb).save(tmp_path / name)
    check(tmp_path / name, rgb)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_compressed_tiff(tmp_path: Path, rgb: np.ndarray, compression: str) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.tif", compression=compression)
    check(tmp_path / "a.tif", rgb)


def test_jpeg_is_pillows(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.JPG", quality=95)
    check(tmp_path / "a.JPG", np.array(Image.open(tmp_path / "a.JPG")))


def test_the_bytes_decide_not_the_suffix(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.jpg", format="PNG")
    check(tmp_path / "a.jpg", rgb)


def test_only_the_first_picture_of_several(tmp_path: Path, rgb: np.ndarray) -> None:
    Image.fromarray(rgb).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(255 - rgb)])
    check(tmp_path / "a.tif", rgb)


def test_grey_one_bit_palette_and_transparency(tmp_path: Path, rgb: np.ndarray) -> None:
    grey, black_or_white = rgb[..., 0], np.where(rgb[..., 0] > 127, 255, 0).astype(np.uint8)
    alpha = rgb[..., 1]
    palette = Image.fromarray(grey % 3).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(black_or_white).convert("1").save(tmp_path / "bit.png")
    Image.fromarray(black_or_white).convert("1").save(tmp_path / "bit.tif", compression="group4")
    Image.fromarray(np.dstack([grey, alpha])).save(tmp_path / "grey_alpha.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(rgb).save(tmp_path / "key.png", transparency=tuple(rgb[0, 0].tolist()))
    check(tmp_path / "grey.png", as_rgb(grey))
    check(tmp_path / "bit.png", as_rgb(black_or_white))
    check(tmp_path / "bit.tif", as_rgb(black_or_white))
    check(tmp_path / "grey_alpha.png", as_rgb(grey))
    check(tmp_path / "rgba.png", rgb)
    check(tmp_path / "key.png", rgb)
    check(tmp_path / "palette.png", 255 * np.eye(3, dtype=np.uint8)[grey % 3])


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_cmyk(tmp_path: Path, name: str) -> None:
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 0], ink[..., 3] = 255, 51  # all cyan, one fifth black
    Image.frombytes("CMYK", (16, 16), ink.tobytes()).save(tmp_path / name, quality=100)
    image = read_image(tmp_path / name)
    np.testing.assert_allclose(image, np.broadcast_to((0, 204, 204), (16, 16, 3)), atol=3)  # JPEG's rounding


def test_16_bit_grey_is_divided_by_257(tmp_path: Path, deep: np.ndarray) -> None:
    grey = np.ascontiguousarray(deep[..., 0])
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    tifffile.imwrite(tmp_path / "little.tif", grey, byteorder="<")
    tifffile.imwrite(tmp_path / "big.tif", grey, byteorder=">")
    tifffile.imwrite(tmp_path / "white_is_zero.tif", 65535 - grey, photometric="miniswhite")
    for name in ("a.png", "little.tif", "big.tif", "white_is_zero.tif"):
        check(tmp_path / name, as_rgb(over_257(grey)))


def test_16_bit_colour_is_divided_by_257(tmp_path: Path, deep: np.ndarray) -> None:
    bgr = deep[..., ::-1]
    cv2.imwrite(str(tmp_path / "a.png"), bgr)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([bgr, deep[..., 1]]))
    cv2.imwrite(str(tmp_path / "lzw.tif"), bgr)
    tifffile.imwrite(tmp_path / "little.tif", deep, photometric="rgb", byteorder="<")
    tifffile.imwrite(tmp_path / "big.tif", deep, photometric="rgb", byteorder=">")
    for name in ("a.png", "alpha.png", "lzw.tif", "little.tif", "big.tif"):
        check(tmp_path / name, over_257(deep))


def test_12_bit_grey_reaches_white(tmp_path: Path) -> None:
    values = (0, 4095, 2048, 16)  # packed, two pixels in three bytes
    packed = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2], strict=True))
    tags = [(256, 3, 2), (257, 3, 2), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 2)]
    tags.append((279, 4, len(packed)))
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in tags)
    offset = 8 + len(packed)
    data = b"II*\0" + struct.pack("<I", offset) + packed + directory + b"\0\0\0\0"
    (tmp_path / "a.tif").write_bytes(data)
    check(tmp_path / "a.tif", as_rgb(np.round(np.array(values).reshape(2, 2) * 255 / 4095).astype(np.uint8)))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied(tmp_path: Path, rgb: np.ndarray, deep: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    upright = UPRIGHT[orientation]
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(rgb).save(tmp_path / "a.tif", exif=exif)
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png", exif=exif)
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey16.png", exif=exif)
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey16.tif", exif=exif)
    tifffile.imwrite(tmp_path / "rgb16.tif", deep, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    cv2.imwrite(str(tmp_path / "plain.png"), deep[..., ::-1])
    plain, block = (tmp_path / "plain.png").read_bytes(), exif.tobytes().removeprefix(b"Exif\0\0")
    checksum = struct.pack(">I", zlib.crc32(b"eXIf" + block))
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + checksum
    (tmp_path / "rgb16.png").write_bytes(plain[:33] + chunk + plain[33:])  # behind the header
    check(tmp_path / "a.png", upright(rgb))
    check(tmp_path / "a.tif", upright(rgb))
    check(tmp_path / "grey.png", as_rgb(upright(rgb[..., 0])))
    check(tmp_path / "grey16.png", as_rgb(over_257(upright(deep[..., 0]))))
    check(tmp_path / "grey16.tif", as_rgb(over_257(upright(deep[..., 0]))))
    check(tmp_path / "rgb16.tif", over_257(upright(deep)))
    check(tmp_path / "rgb16.png", over_257(upright(deep)))


def test_pixels_without_a_fixed_white_are_refused(tmp_path: Path, deep: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "float.tif", deep[..., 0].astype(np.float32))
    tifffile.imwrite(tmp_path / "signed.tif", deep[..., 0].astype(np.int16))
    for name in ("float.tif", "signed.tif"):
        with pytest.raises(DataError, match=f"{name}.*save it with 8 or 16 bits"):
            read_image(tmp_path / name)


def test_16_bit_colour_in_planes_is_refused_not_garbled(tmp_path: Path, deep: np.ndarray) -> None:
    planes = np.ascontiguousarray(deep.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(DataError, match=r"a.tif: .*save it as a PNG"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "deep.png", "deep.tif"])
def test_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / name), noise.astype(np.uint16) * 257 if name.startswith("deep") else noise)
    whole = (tmp_path / name).read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=name) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "deep.png", "deep.tif"])
def test_damaged_bytes_give_an_image_or_a_data_error(tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(4)
    noise = random.integers(0, 256, (24, 16, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / name), noise.astype(np.uint16) * 257 if name.startswith("deep") else noise)
    whole = np.fromfile(tmp_path / name, np.uint8)
    outcomes: set[bool] = set()
    for _ in range(150):
        damaged = whole.copy()
        places = random.integers(0, min(len(whole), 400), 3)
        damaged[places] = random.integers(0, 256, 3)
        damaged.tofile(tmp_path / name)
        try:
            image = read_image(tmp_path / name)
        except DataError as error:
            outcomes.add(name in str(error))
        else:
            assert (image.ndim, image.shape[2], image.dtype) == (3, 3, np.uint8)
    assert outcomes == {True}  # some were refused, each by name; any other exception ends the test


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"GIF89a.....", "not a PNG|cannot read mask"), (b"hello, I am text", "not a PNG")],
)
def test_what_is_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_image, read_mask, read_size):
        with pytest.raises(DataError, match=f"a.png: .*{reason}"):
            read(tmp_path / "a.png")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    for path in (tmp_path, tmp_path / "absent.png", tmp_path / "pipe.png", tmp_path / "circle.png"):
        with pytest.raises(DataError, match=f"cannot read {path}: "):
            read_image(path)


def test_a_decompression_bomb_is_an_error(tmp_path: Path) -> None:
    # A header that promises just more pixels than allowed: Pillow alone would only warn.
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, MAX_PIXELS // 10_000 + 1, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "bomb.png").write_bytes(data)
    for read in (read_image, read_mask, read_size):
        with pytest.raises(DataError, match=r"bomb.png: 10000 x 8948 pixels are more than the 89,478,485 allowed"):
            read(tmp_path / "bomb.png")


def test_a_mask_is_whatever_is_not_zero(tmp_path: Path) -> None:
    marked = np.zeros((HEIGHT, WIDTH), bool)
    marked[1, 2] = marked[4, 0] = True
    faint = marked.astype(np.uint8)
    palette = Image.fromarray(faint).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white and still the background
    palette.save(tmp_path / "palette.png")
    Image.fromarray(faint).save(tmp_path / "faint.png")
    Image.fromarray(faint * 255).convert("1").save(tmp_path / "bit.bmp")
    Image.fromarray(faint.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([faint, faint * 0, faint * 0, faint * 0 + 255])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([faint, faint * 0 + 255])).save(tmp_path / "grey_alpha.png")
    cv2.imwrite(str(tmp_path / "deep_colour.png"), np.dstack([faint, faint * 0, faint * 0]).astype(np.uint16))
    for name in ("palette.png", "faint.png", "bit.bmp", "deep.png", "rgba.png", "grey_alpha.png", "deep_colour.png"):
        mask = read_mask(tmp_path / name)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, marked, err_msg=name)


def test_a_jpeg_is_no_mask(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a.jpg is a JPEG.*save the mask as PNG"):
        read_mask(tmp_path / "a.jpg")


def test_webp_is_read_and_its_lossy_kind_is_no_mask(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp"), np.rot90(pixels, -1))
    assert read_size(tmp_path / "a.webp") == (30, 20)
    assert read_mask(tmp_path / "a.webp").all()
    (tmp_path / "cut.webp").write_bytes((tmp_path / "a.webp").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cannot read image .*cut.webp"):
        read_image(tmp_path / "cut.webp")
    Image.fromarray(pixels).save(tmp_path / "lossy.webp")
    assert read_image(tmp_path / "lossy.webp").shape == (20, 30, 3)
    with pytest.raises(DataError, match=r"lossy.webp is a lossy WebP.*save the mask as PNG"):
        read_mask(tmp_path / "lossy.webp")


@pytest.mark.parametrize("turned", [False, True])
def test_a_gif_mask_counts_as_it_is_shown(tmp_path: Path, turned: bool) -> None:
    marked = np.zeros((8, 12), bool)
    marked[2:4, 3:9] = True
    picture = Image.fromarray((marked ^ turned).astype(np.uint8), "P")
    picture.putpalette([255, 255, 255, 0, 0, 0] if turned else [0, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "m.gif", optimize=False)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.gif"), marked)
