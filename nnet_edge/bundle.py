"""What training leaves and the box at the camera loads: a folder with a manifest, weights and the graph.

    manifest.json         schema, settings, data fingerprint, threshold, metrics, and the hash of every other file
    weights.safetensors   all weights of N-Net, the teacher's too; only training and export read them
    nnet.onnx             the one graph

Nothing in it is pickled. Reading checks the schema and the hashes; writing happens whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from nnet_edge import __version__
from nnet_edge.errors import BundleError
from nnet_edge.files import sha256, write_atomically, writing_folder
from nnet_edge.scoring import Threshold

SCHEMA = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
GRAPH = "nnet.onnx"
LIBRARIES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "numpy", "opencv-python", "pillow")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose schema and hashes were found right."""

    path: Path
    manifest: dict[str, Any]
    threshold: Threshold

    @property
    def graph(self) -> Path:
        """The ONNX graph."""
        return self.path / GRAPH

    @property
    def weights(self) -> Path:
        """The safetensors file with all weights."""
        return self.path / WEIGHTS

    @property
    def name(self) -> str:
        """What the data was called that the bundle was trained on."""
        return str(self.manifest["data"]["name"])

    @property
    def warnings(self) -> list[str]:
        """What every report must say of this bundle, one sentence each."""
        teacher = self.manifest["teacher"]
        if teacher["is_random"]:
            return ["THE TEACHER HAS RANDOM WEIGHTS: speed is real, verdicts mean nothing"]
        return []


@dataclass
class BundleDraft:
    """A bundle being written: fill `path` and `manifest`."""

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def writing_bundle(out: Path, replace: bool = False) -> Iterator[BundleDraft]:
    """A draft that becomes the bundle `out` when the block ends well; nothing is left of it otherwise."""
    with writing_folder(out, replace) as path:
        draft = BundleDraft(path)
        yield draft
        files = {file.relative_to(path).as_posix(): sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
        head = {"schema": SCHEMA, "system": "nnet", "nnet_edge": __version__, "created": now(), "made_on": made_on()}
        write_manifest(path, head | draft.manifest | {"files": files})


def read_bundle(path: Path) -> Bundle:
    """The bundle at `path`. Raises BundleError for one that is absent, of another schema, incomplete or altered."""
    manifest = read_manifest(path)
    check_files(path, manifest)
    try:
        threshold = Threshold.from_dict(manifest["threshold"])
        manifest["teacher"]["is_random"], manifest["data"]["name"], manifest["train"]
    except (KeyError, TypeError) as error:
        raise BundleError(f"{path / MANIFEST} lacks {error}: the bundle is not complete; export it again") from error
    return Bundle(path, manifest, threshold)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the bundle at `path`, its schema checked."""
    file = path / MANIFEST
    if not path.exists():
        raise BundleError(f"there is no bundle at {path}: the folder does not exist; check the path, or train one")
    if not file.is_file():
        raise BundleError(f"{path} is no bundle: it holds no {MANIFEST}; give the folder that train or export wrote")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}); export the bundle again") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"{path} has bundle schema {schema}, nnet-edge {__version__} reads schema {SCHEMA}: "
            "export the bundle again with this version, or install the version that wrote it"
        )
    return manifest


def check_files(path: Path, manifest: dict[str, Any]) -> None:
    """Compare every file that the manifest names with its hash; BundleError names the first that differs."""
    files = manifest.get("files")
    if not isinstance(files, dict) or GRAPH not in files:
        raise BundleError(f"{path / MANIFEST} names no {GRAPH}: the bundle is not complete; export it again")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"the bundle {path} lacks {name}: copy the whole folder again")
        if sha256(file) != expected:
            raise BundleError(f"{file} was altered after it was written (its SHA-256 differs): copy or export it again")


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Put `manifest` into the bundle at `path`, whole or not at all."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path / MANIFEST, (text + "\n").encode())


def record_metrics(bundle: Bundle, metrics: dict[str, Any]) -> None:
    """Keep `metrics` in the bundle's manifest."""
    write_manifest(bundle.path, bundle.manifest | {"metrics": metrics})


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def made_on() -> dict[str, Any]:
    """The Python, operating system and library versions at hand; None for a library that is absent."""
    return {"python": platform.python_version(), "system": platform.platform(terse=True), "libraries": versions()}


def versions() -> dict[str, str | None]:
    """Version of each library that can change a number; None where it is absent."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
