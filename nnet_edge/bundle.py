"""Bundle: the folder of one trained inspection, which training leaves and the camera box loads.

    manifest.json         schema, settings, data fingerprint, threshold, metrics, and the hash of every other file
    weights.safetensors   all weights of the network, the teacher's too; only training and export read them
    nnet.onnx             the one graph, FP32
    nnet.fp16.onnx ...    artefacts: the graph in another precision, engines (below)
    frames/*.png          held-out frames, which thresholds are chosen on, and calibration frames (`kept_frames.py`)

Nothing in it is pickled. Reading checks the schema and the hashes; writing is atomic.

A bundle is run from the FP32 graph, from graphs of another precision, or from engines; each has its own threshold.

The manifest's `artefacts` maps a file name to its record, and so does `variants`, which versions that know none pass over:

    kind        "graph"; "variant": that graph in a form for those runners alone that its gates name; "engine"; or "source": an
                INT8 graph with everything else in FP16, which engines are built of
    precision   "fp32", "fp16" or "int8"
    source      SHA-256 of the graph that it was made from
    made        tool, version, method, seconds, when, ...
    frames      hashes of the frames that a graph was calibrated on
    gates       runner name -> what was measured there against FP32, the verdict, and the threshold chosen again
    unseen      the same on the labelled images that a graph's layers were not chosen on; decides nothing
    answers     runner name -> its known answers (`known_answers.py`)

`nnet.onnx` itself needs no record: it is what every other artefact is measured against. Its known answers, and the frames
that all answers are of, stand in the manifest's `known_answers`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from nnet_edge import __version__
from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.files import remove_drafts, sha256, write_atomically, writing_folder
from nnet_edge.frame import UNTAUGHT
from nnet_edge.geometry import Geometry
from nnet_edge.kept_frames import FOLDER, frame_path, read_frames, write_frames
from nnet_edge.scoring import Threshold, ThresholdRule

if TYPE_CHECKING:
    import numpy as np

ARTEFACTS, VARIANTS = "artefacts", "variants"  # of the manifest; versions that know no variants pass over the second
KINDS = ("graph", "variant", "source", "engine")
PRECISIONS = ("fp32", "fp16", "int8")
FIELDS = ("kind", "precision", "source", "made", "gates")  # that every record has
COMMANDS = {  # kind -> what makes one
    "graph": "calibrate", "variant": "calibrate", "source": "calibrate", "engine": "build-engine",
}  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """One file of a bundle that a runner can load."""

    path: Path
    kind: str
    precision: str
    record: Mapping[str, Any]  # as the manifest has it
    fp32_threshold: Threshold | None = None  # of nnet.onnx only, whose threshold holds on every runner

    @property
    def name(self) -> str:
        """The file's name in the bundle."""
        return self.path.name

    def threshold_for(self, runner: str) -> Threshold:
        """The threshold that was chosen with this artefact on that runner.

        Raises BundleError, naming the command that measures it, when none was, or when the gate refused it there.
        """
        if self.fp32_threshold is not None:
            return self.fp32_threshold
        gate = of_runner(self.record["gates"], runner)
        data = "" if self.kind == "engine" else " DATA"
        again = f"nnet-edge {COMMANDS[self.kind]} {self.path.parent}{data} --precision {self.precision}"
        if runner.endswith("-cuda"):  # which does not make the graph, and judges it where the GPU is
            again = f"nnet-edge build-engine {self.path.parent} --measure"
        if gate is None:
            known = ", ".join(self.record["gates"]) or "no runner"
            raise BundleError(
                f"{self.path} was measured on {known} and not on {runner}, so it has no threshold there: "
                f"run {again} where {runner} is installed"
            )
        if not (gate["accepted"] or gate.get("overridden")):
            raise BundleError(
                f"{self.path} was refused on {runner} ({'; '.join(gate['reasons'])}): use another precision, or run "
                f"{again} --accept to use it anyway"
            )
        return Threshold.from_dict(gate["threshold"])


def of_runner(table: Mapping[str, Any], runner: str) -> Any:
    """What a table of the manifest says of a runner on a device, as "onnxruntime-cuda"; None where it says nothing.

    A runner of the processor may be called with its device or without: "openvino" is "openvino-cpu".
    """
    name = runner.removesuffix("-cpu")
    return table.get(name, table.get(f"{name}-cpu"))


def artefact_of(path: Path, record: Mapping[str, Any]) -> Artefact:
    """The artefact at `path` with that record. Raises BundleError for a record that says too little."""
    faults = [f"lacks {name}" for name in FIELDS if name not in record]
    suffix = ".engine" if record.get("kind") == "engine" else ".onnx"
    if path.suffix != suffix:
        faults.append(f"says {record.get('kind')!r} of a file that does not end in {suffix}")
    faults += [
        f"has the {name} {record[name]!r}"
        for name, known in (("kind", KINDS), ("precision", PRECISIONS))
        if name in record and record[name] not in known
    ]
    if faults:
        raise BundleError(f"the manifest's record of {path} {' and '.join(faults)}: make that file again")
    return Artefact(path, record["kind"], record["precision"], record)


def graph_name(precision: str) -> str:
    """The file name of the graph of a precision, as nnet.int8.onnx."""
    return "nnet.onnx" if precision == "fp32" else f"nnet.{precision}.onnx"


def variant_name(precision: str, runner: str) -> str:
    """The file name of the graph of a precision in the form that is that runner's alone, as nnet.onnxruntime.int8.onnx."""
    return f"nnet.{runner}.{precision}.onnx"


def source_name(precision: str) -> str:
    """The file name of the graph that engines of a precision are built of, where it is another than the runners'."""
    return f"nnet.{precision}.source.onnx"


def precision_named(graph: Path) -> str | None:
    """The precision that a graph's file name states, None for nnet.onnx and for names of other making."""
    word = Path(graph.stem).suffix.removeprefix(".")
    return word if word in PRECISIONS else None


HASH = re.compile("[0-9a-f]{64}")
SCHEMA = 2
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

    def read(self, name: str) -> bytes:
        """The bytes of a file of the bundle, read once and hashed. Raises BundleError when they are not the manifest's."""
        return read_known(self.path / name, self.manifest)

    @property
    def name(self) -> str:
        """What the data was called that the bundle was trained on."""
        return str(self.manifest["data"]["name"])

    @property
    def id(self) -> str:
        """What tells its network from any other: 12 digits of the SHA-256 of the FP32 graph."""
        return id_of(self.manifest)

    @property
    def rule(self) -> ThresholdRule:
        """How its thresholds are chosen by the held-out frames, on every runner. Raises BundleError."""
        return ThresholdRule.of(self.manifest["data"], self.threshold.asked, self.threshold.margin)

    @property
    def method(self) -> str:
        """The method that it was trained by, a name in METHODS."""
        return str(self.manifest["system"])

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """Everything that a runner can load: nnet.onnx first, then the rest by name."""
        records = records_of(self.manifest)
        first = Artefact(self.graph, "graph", "fp32", {}, self.threshold)
        return (first, *(artefact_of(self.path / name, records[name]) for name in sorted(records)))

    def artefact(self, precision: str, kind: str = "graph") -> Artefact:
        """The artefact of that precision and kind. Raises BundleError when there is none, or more than one engine.

        A graph is the one that every runner takes; `graph_for` gives that of one runner.
        """
        found = [item for item in self.artefacts if (item.kind, item.precision) == (kind, precision)]
        if not found:
            data = " DATA" if kind == "graph" else ""
            raise BundleError(
                f"{self.path} holds no {precision} {kind}: make one with "
                f"nnet-edge {COMMANDS[kind]} {self.path}{data} --precision {precision}"
            )
        if len(found) > 1:
            raise BundleError(
                f"{self.path} holds {len(found)} {precision} {kind}s ({', '.join(item.name for item in found)}): "
                "name the file"
            )
        return found[0]

    def graph_for(self, runner: str, precision: str) -> Artefact:
        """The graph of that precision that the runner takes: its variant where there is one, else the one for all.

        Raises BundleError when there is none.
        """
        for item in self.artefacts:
            if (item.kind, item.precision) == ("variant", precision) and of_runner(item.record["gates"], runner):
                return item
        return self.artefact(precision)

    def engine_source(self, precision: str) -> Artefact:
        """The graph that an engine of that precision is built of: its "source" where there is one, else the runners' graph.

        Raises BundleError when there is neither.
        """
        sources = [item for item in self.artefacts if (item.kind, item.precision) == ("source", precision)]
        return sources[0] if sources else self.artefact(precision)

    def frames(self, kind: str) -> np.ndarray:
        """The kept frames, uint8 RGB (N, height, width, 3): the "held_out" ones, or those (tiles, where a bundle has some)
        that the graph of a precision ("int8", "fp16") was made with; N may be 0.

        Raises BundleError for a frame that is absent or does not show what its name says, and for a precision without one.
        """
        frames: Mapping[str, Any] = self.manifest["frames"]
        if kind == "held_out":
            return read_frames(self.path, frames["held_out"], self.geometry)
        hashes = self.artefact(kind).record.get(
            "frames", frames.get("calibration")
        )  # older bundles name those of the last
        if hashes is None:
            raise BundleError(
                f"{self.path} keeps no frames of its {kind} graph: run nnet-edge calibrate {self.path} DATA --precision {kind}"
            )
        return read_frames(self.path, hashes, self.geometry.network)

    @cached_property
    def geometry(self) -> Geometry:
        """Of its input. Raises BundleError for a manifest that cannot be used."""
        return Geometry.in_manifest(self.manifest)

    @property
    def warnings(self) -> list[str]:
        """What every report must say of this bundle, one sentence each."""
        found = ["THE TEACHER HAS RANDOM WEIGHTS: speed is real, verdicts mean nothing"]
        found = found if self.manifest["teacher"]["is_random"] else []
        if is_preview(self.manifest):
            passes = self.manifest["trained"]["epochs"]
            of_passes = "the first pass" if passes == 1 else f"{passes} passes"
            found.append(f"A PREVIEW, made after {of_passes} of a training: the finished bundle judges otherwise")
        if self.geometry.crop is not None:
            found.append(f"judged is the bundle's crop, {self.geometry.crop}; what lies outside is not")
        return found


def records_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """File name -> record, of every file that a runner can load but nnet.onnx."""
    return {**(manifest.get(ARTEFACTS) or {}), **(manifest.get(VARIANTS) or {})}


def is_preview(manifest: Mapping[str, Any]) -> bool:
    """Whether the bundle was made of a training before its end."""
    return bool(manifest.get("trained", {}).get("preview"))


def name_of(path: Path) -> str:
    """What a bundle is called where nobody names it: runs/part/bundle is part."""
    path = Path(os.path.abspath(path))
    name = path.parent.name if path.name == "bundle" else path.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:64] or "part"


def id_of(manifest: Mapping[str, Any]) -> str:
    """The id of the bundle with that manifest."""
    return str(manifest["files"][GRAPH])[:12]


@dataclass
class BundleDraft:
    """A bundle being written: fill `path` and `manifest`."""

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def writing_bundle(out: Path, replace: bool = False) -> Iterator[BundleDraft]:
    """A draft that becomes the bundle `out` when the block ends well; nothing is left of it otherwise."""
    with writing_folder(out, foreign_to_bundle if replace else None) as path:
        draft = BundleDraft(path)
        yield draft
        files = {file.relative_to(path).as_posix(): sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
        head = {"schema": SCHEMA, "nnet_edge": __version__, "created": now(), "made_on": made_on()}
        head |= {"frames": {}, "artefacts": {}}
        write_manifest(path, head | draft.manifest | {"files": files})
        read_bundle(path)  # what cannot be read must not take the place of an old bundle


def foreign_to_bundle(path: Path) -> str | None:
    """Why the folder is not a bundle and nothing else, whole or not; None where it is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        named = {*manifest["files"], MANIFEST}
        manifest["schema"], manifest["artefacts"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"is no bundle: it holds no {MANIFEST} of one"
    found = sorted(
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_symlink() or not file.is_dir()
    )
    ours = re.compile(r"(.*/)?\..*|timing\.[^/]*\.cache")  # drafts that a kill left, and TensorRT's timings
    foreign = [name for name in found if name not in named and not ours.fullmatch(name)]
    return f"holds {foreign[0]}, which is no part of its bundle" if foreign else None


def is_untaught(path: Path) -> bool:
    """Whether the path stands for no bundle yet."""
    return path.name == UNTAUGHT and not path.exists()


def read_bundle(path: Path) -> Bundle:
    """The bundle at `path`. Raises BundleError for one that is absent, of another schema, incomplete or altered."""
    manifest = read_manifest(path)
    check_names(path, manifest)
    check_files(path, manifest)
    try:
        threshold = Threshold.from_dict(manifest["threshold"])
        manifest["teacher"]["is_random"], manifest["data"]["name"], manifest["train"]
        manifest["frames"]["held_out"], manifest["artefacts"].items()
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path / MANIFEST} lacks {error}: the bundle is not complete; export it again") from error
    return Bundle(path, manifest, threshold)


def whole_number(text: str) -> int:
    """An integer of a manifest. Raises ValueError for one that no size, seed or count has, and that no float can hold."""
    if len(text) > 20:
        raise ValueError(f"it holds an integer of {len(text)} digits")
    return int(text)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the bundle at `path`, its schema checked."""
    file = path / MANIFEST
    if not path.exists():
        raise BundleError(f"there is no bundle at {path}: the folder does not exist; check the path, or train one")
    if not file.is_file():
        raise BundleError(f"{path} is no bundle: it holds no {MANIFEST}; give the folder that train or export wrote")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8-sig"), parse_int=whole_number)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} cannot be read ({error}); export the bundle again") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"{path} has bundle schema {schema}, nnet-edge {__version__} reads schema {SCHEMA}: "
            "export the bundle again with this version, or install the version that wrote it"
        )
    return manifest


def check_names(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise BundleError unless the manifest names files of the bundle alone, each with a hash, and artefacts by their kinds."""
    files, parts = manifest.get("files"), [manifest.get(part) or {} for part in (ARTEFACTS, VARIANTS)]
    if not isinstance(files, dict) or GRAPH not in files:
        raise BundleError(f"{path / MANIFEST} names no {GRAPH}: the bundle is not complete; export it again")
    if not all(isinstance(part, dict) for part in parts):
        raise BundleError(f"{path / MANIFEST} has artefacts that are no table: copy or export the bundle again")
    odd = [
        name
        for name, value in files.items()
        if not (is_inside(name) and isinstance(value, str) and HASH.fullmatch(value))
    ]
    if odd:
        raise BundleError(
            f"{path / MANIFEST} names {odd[0]!r}, which is no hashed file of the bundle: copy or export it again"
        )
    for name, record in records_of(manifest).items():
        if not is_artefact_name(name) or name not in files:
            raise BundleError(
                f"{path / MANIFEST} has the artefact {name!r} without a hash, or it lies elsewhere: make it again with "
                f"nnet-edge calibrate or build-engine"
            )
        if not isinstance(record, dict) or (record.get("kind") == "engine") != name.endswith(".engine"):
            raise BundleError(
                f"{path / MANIFEST} has an artefact {name!r} of another kind than its name says: make it again"
            )


def is_inside(name: str) -> bool:
    """Whether the name is that of a file in the bundle's folder or below, written as the bundle writes it."""
    parts = PurePosixPath(name).parts
    is_plain = bool(parts) and "/".join(parts) == name and not {"..", "."}.intersection(parts)
    return is_plain and not name.startswith("/") and not set(name) & {"\\", "\0"} and name != MANIFEST


def is_artefact_name(name: str) -> bool:
    """Whether an artefact may be called so: a new file of the bundle's own folder."""
    return is_inside(name) and "/" not in name and not name.startswith(".") and name not in (MANIFEST, WEIGHTS, GRAPH)


def known_hash(file: Path) -> str | None:
    """The SHA-256 that the manifest of its bundle says the file has; None for a file outside a bundle. Raises BundleError."""
    if not (file.parent / MANIFEST).is_file():
        return None
    manifest = read_manifest(file.parent)
    check_names(file.parent, manifest)
    found: str | None = manifest["files"].get(file.name)
    return found


def read_known(file: Path, manifest: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a bundle's file, read once and hashed: what is checked is what is used. A file outside a bundle is its own.

    `manifest` is the bundle's where it was read already. Raises BundleError for bytes that are not those of the manifest.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror}): copy the whole bundle again") from error
    if manifest is None:
        if not (file.parent / MANIFEST).is_file():
            return content
        manifest = read_manifest(file.parent)
        check_names(file.parent, manifest)
    expected = manifest["files"].get(file.name)
    if expected is None:
        raise BundleError(
            f"{file} has no hash in its bundle's manifest: make it again with nnet-edge calibrate or export"
        )
    if hashlib.sha256(content).hexdigest() != expected:
        raise altered(file)
    return content


def altered(file: Path) -> BundleError:
    """What is said of a file whose hash differs."""
    return BundleError(f"{file} was altered after it was written (its SHA-256 differs): copy or export it again")


def check_files(path: Path, manifest: dict[str, Any]) -> None:
    """Compare every file that the manifest names with its hash; BundleError names the first that differs.

    Engines are left to `runtime/runners/trt/record.py`, which checks more of the one that is loaded: a broken engine must not
    keep `build-engine` from building it again.
    """
    for name, expected in manifest["files"].items():
        if name.endswith(".engine"):
            continue
        file = path / name
        if not file.is_file():
            raise BundleError(f"the bundle {path} lacks {name}: copy the whole folder again")
        if sha256(file) != expected:
            raise altered(file)


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Put `manifest` into the bundle at `path`, atomically."""
    try:
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise BundleError(
            f"the manifest of {path} would hold a NaN or an infinity ({error}): train or export again"
        ) from error
    write_atomically(path / MANIFEST, (text + "\n").encode())


def record_metrics(bundle: Bundle, metrics: dict[str, Any]) -> None:
    """Keep `metrics` in the bundle's manifest."""
    write_manifest(bundle.path, bundle.manifest | {"metrics": metrics})


def add_artefact(bundle: Bundle, name: str, content: bytes, record: Mapping[str, Any]) -> Bundle:
    """The bundle with the file `name` in it and its record in the manifest; an artefact of that name is replaced.

    File first, manifest last: what a crash in between leaves is a valid bundle without the new artefact. Raises ConfigError
    for a name that cannot be an artefact's, BundleError for a record that says too little; OSError for a full disk.
    """
    if not is_artefact_name(name):
        raise ConfigError(f"an artefact cannot be called {name!r}: give a new file name of the bundle's folder")
    artefact_of(bundle.path / name, record)
    if name in bundle.manifest["files"]:
        bundle = without_artefact(bundle, name)
    remove_drafts(bundle.path / name)
    write_atomically(bundle.path / name, content)
    files = bundle.manifest["files"] | {name: hashlib.sha256(content).hexdigest()}
    part = VARIANTS if record["kind"] == "variant" else ARTEFACTS
    return changed(bundle, files=files, **{part: bundle.manifest.get(part, {}) | {name: dict(record)}})


def without_artefact(bundle: Bundle, name: str) -> Bundle:
    """The bundle without that artefact; its file is deleted once the manifest names it no more."""
    kept = {
        part: {key: value for key, value in bundle.manifest[part].items() if key != name}
        for part in ("files", ARTEFACTS, VARIANTS)
        if part in bundle.manifest
    }
    bundle = changed(bundle, **kept)
    (bundle.path / name).unlink(missing_ok=True)
    return bundle


def record_gates(
    bundle: Bundle, name: str, gates: Mapping[str, Any], answers: Mapping[str, Any] | None = None
) -> Bundle:
    """The bundle with more gates (runner name -> Gate.as_dict()), and known answers, in the record of the artefact `name`."""
    records = dict(bundle.manifest["artefacts"])
    if name not in records:
        raise BundleError(f"{bundle.path} has no artefact {name}: its files are {', '.join(sorted(records)) or 'none'}")
    records[name] = records[name] | {"gates": records[name]["gates"] | dict(gates)}
    if answers:
        records[name] |= {"answers": records[name].get("answers", {}) | dict(answers)}
    return changed(bundle, artefacts=records)


def keep_frames(bundle: Bundle, frames: np.ndarray) -> tuple[Bundle, list[str]]:
    """The bundle with the files of `frames`, uint8 RGB (N, H, W, 3), in it, and their hashes for an artefact's record."""
    hashes = write_frames(bundle.path, frames)
    names = {f"{FOLDER}/{name}.png": sha256(frame_path(bundle.path, name)) for name in hashes}
    return changed(bundle, files=bundle.manifest["files"] | names), hashes


def without_unnamed_frames(bundle: Bundle) -> Bundle:
    """The bundle without the frames of graphs that it no longer holds; a file is deleted once the manifest names it no more."""
    lists = [*bundle.manifest["frames"].values(), *(one.get("frames") for one in records_of(bundle.manifest).values())]
    named = {f"{FOLDER}/{name}.png" for names in lists if isinstance(names, list) for name in names}
    files = bundle.manifest["files"]
    stale = [name for name in files if name.startswith(f"{FOLDER}/") and name not in named]
    bundle = changed(bundle, files={name: value for name, value in files.items() if name not in stale})
    for name in stale:
        (bundle.path / name).unlink(missing_ok=True)
    return bundle


def changed(bundle: Bundle, **parts: Any) -> Bundle:
    """The bundle with these parts of the manifest replaced, on disk too."""
    manifest = bundle.manifest | parts
    write_manifest(bundle.path, manifest)
    return Bundle(bundle.path, manifest, bundle.threshold)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def made_on() -> dict[str, Any]:
    """The Python, operating system and library versions at hand; None for a library that is absent."""
    return {"python": platform.python_version(), "system": platform.platform(terse=True), "libraries": versions()}


def versions() -> dict[str, str | None]:
    """Version of each library that can change a number; None where it is absent."""
    from importlib import metadata  # with the parser of e-mails

    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        found[name] = None
        for distribution in (name, f"{name}-headless"):  # OpenCV comes under either name
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(distribution)
    return found
