"""Kept frames of a bundle: lossless PNG files, named by the hash of their pixels.

From the held-out frames any machine chooses the threshold of an artefact again, without the data; on the calibration frames
the ranges of INT8 were measured.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.files import read_regular, write_atomically
from nnet_edge.geometry import DEFAULT, MULTIPLE, Geometry

if TYPE_CHECKING:
    import onnx

FOLDER = "frames"
PNG = b"\x89PNG\r\n\x1a\n"
DIGITS = 16  # of the SHA-256: 64 bits tell a few thousand frames apart


def frame_hash(frame: np.ndarray) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the RGB bytes of `frame`, uint8 (H, W, 3)."""
    return hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest()[:DIGITS]


def write_frames(bundle: Path, frames: np.ndarray) -> list[str]:
    """Write `frames`, uint8 RGB (N, H, W, 3), into the bundle's folder; return their hashes in the same order.

    Equal frames are written once and named as often as they occur. Raises ConfigError for frames of another shape.
    """
    require_frames(frames)
    hashes = [frame_hash(frame) for frame in frames]
    for name, frame in zip(hashes, frames, strict=True):
        path = frame_path(bundle, name)
        if not path.exists():
            write_atomically(path, to_png(frame))
    return hashes


def read_frames(bundle: Path, hashes: Sequence[str], geometry: Geometry = DEFAULT) -> np.ndarray:
    """The frames uint8 RGB (N, height, width, 3) of these hashes. Raises BundleError for one that is absent or altered."""
    frames = np.empty((len(hashes), *geometry.shape), np.uint8)
    for place, name in zip(frames, hashes, strict=True):
        if not (isinstance(name, str) and re.fullmatch(f"[0-9a-f]{{{DIGITS}}}", name)):
            raise BundleError(
                f"{bundle} names the frame {name!r}, which is no hash of a frame: copy the whole bundle again"
            )
        path = frame_path(bundle, name)
        try:
            data = read_regular(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BundleError(f"cannot read {path}: {reason}; copy the whole bundle again") from error
        frame = from_png(data, geometry.size)
        if frame is None or frame_hash(frame) != name:
            raise BundleError(f"{path} does not show what its name says: copy the whole bundle again")
        place[...] = frame
    return frames


def from_png(data: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """The pixels, uint8 RGB (H, W, 3), of a PNG of that height and width; None for anything else. Damage shows in the hash."""
    import cv2  # a line imports it while its graph is opened

    if data[:8] != PNG or data[16:24] != struct.pack(">II", *size[::-1]):  # before a pixel is decoded
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if pixels is None or pixels.shape[:2] != size else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def frame_path(bundle: Path, name: str) -> Path:
    """Where the frame with that hash lies."""
    return bundle / FOLDER / f"{name}.png"


def to_png(frame: np.ndarray) -> bytes:
    """`frame`, uint8 RGB (H, W, 3), as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def require_frames(frames: np.ndarray, model: onnx.ModelProto | None = None) -> None:
    """Raise ConfigError unless `frames` is uint8 RGB (N, H, W, 3), of a size that an input may have, or of that of `model`."""
    shape = frames.shape[1:] if frames.ndim == 4 else (1, 1, 1)
    if model is None:
        fits = shape[2:] == (3,) and not any(side % MULTIPLE for side in shape[:2])
        takes = f"frames are kept as uint8 RGB (N, H, W, 3), H and W multiples of {MULTIPLE}"
    else:
        wanted = tuple(side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[1:])
        fits, takes = shape == wanted, f"the graph takes uint8 RGB {('N', *wanted)}"
    if frames.dtype != np.uint8 or not fits:
        raise ConfigError(f"{takes}, not {frames.dtype} {tuple(frames.shape)}: resize with nnet_edge.imaging.resize")
