"""An engine's entry in the manifest, and every way in which a machine or a file may not fit it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.anomaly_map import LAYER_MAPS, Fusion
from nnet_edge.bundle import MANIFEST, SCHEMA
from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.runtime.runners.trt.record import EngineRecord, Place, read_engine, require_engine

CONTENT = b"an engine, as far as its record goes" * 10
GRAPH_HASH = hashlib.sha256(b"the graph").hexdigest()
PLACE = Place("tensorrt", "10.3.0", "Linux x86_64", "8.9")
RECORD = EngineRecord(
    tool="tensorrt",
    version="10.3.0",
    system="Linux x86_64",
    target="local",
    compute_capabilities=("8.9",),
    gpu="RTX 4000 Ada",
    cuda="12.6",
    driver="560.35",
    hardware_compatibility="none",
    version_compatible=False,
    batch=(1, 8, 32),
    workspace_mib=None,
    optimization=3,
    layer_maps=LAYER_MAPS,
    fusion={"align_corners": False, "exponents": [0.1, 0.1, 1.0], "forward_weights": [1.0, 1.0, 0.5]},
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    seconds=12.5,
    when="2026-01-01T00:00:00+00:00",
)


def write_bundle(folder: Path, record: EngineRecord = RECORD, **entry: Any) -> Path:
    """A folder with the engine and its manifest; gives the engine's path."""
    entry = {"kind": "engine", "precision": "fp16", "source": GRAPH_HASH, "made": record.as_dict(), "gates": {}} | entry
    engine = folder / "nnet.fp16.local.engine"
    engine.write_bytes(CONTENT)
    manifest = {"schema": SCHEMA, "files": {"nnet.fp16.onnx": GRAPH_HASH}, "artefacts": {engine.name: entry}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return engine


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    artefact, record = read_engine(write_bundle(tmp_path))
    assert (artefact.kind, artefact.precision) == ("engine", "fp16")
    assert record.as_dict() == RECORD.as_dict()
    assert record.as_fusion() == Fusion(False, (0.1, 0.1, 1.0), (1.0, 1.0, 0.5))
    assert record.batch == (1, 8, 32)


def test_an_engine_is_loaded_where_it_was_built(tmp_path: Path) -> None:
    assert require_engine(write_bundle(tmp_path), PLACE).as_dict() == RECORD.as_dict()


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (replace(PLACE, flavour="tensorrt_rtx", version="1.7.1"), "built by TensorRT and this is TensorRT-RTX"),
        (replace(PLACE, version="10.7.0"), "built by TensorRT 10.3.0 and this is 10.7.0"),
        (replace(PLACE, version="10.30.0"), "10.3.0 and this is 10.30.0"),
        (replace(PLACE, system="Linux aarch64"), "built for Linux x86_64 and this is Linux aarch64"),
        (replace(PLACE, compute_capability="8.6"), "compute capability 8.9 and this GPU has 8.6"),
    ],
)
def test_each_value_that_differs_is_named_with_the_command(place: Place, says: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be loaded here") as caught:
        require_engine(write_bundle(tmp_path), place)
    assert says in str(caught.value)
    assert f"nnet-edge build-engine {tmp_path} --precision fp16 --target local" in str(caught.value)


def test_all_differences_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"10\.7\.0; it was built for Linux x86_64 .*; .*this GPU has 12\.0"):
        require_engine(write_bundle(tmp_path), Place("tensorrt", "10.7.0", "Linux aarch64", "12.0"))


@pytest.mark.parametrize(
    ("record", "place", "fits"),
    [
        (replace(RECORD, version_compatible=True), replace(PLACE, version="10.16.1"), True),
        (replace(RECORD, version_compatible=True), replace(PLACE, version="10.2.0"), False),
        (replace(RECORD, version_compatible=True), replace(PLACE, version="11.4.0"), False),
        (replace(RECORD, hardware_compatibility="ampere_plus"), replace(PLACE, compute_capability="12.0"), True),
        (replace(RECORD, hardware_compatibility="ampere_plus"), replace(PLACE, compute_capability="7.5"), False),
        (replace(RECORD, compute_capabilities=("8.6", "8.9", "12.0")), replace(PLACE, compute_capability="12.0"), True),
        (
            replace(RECORD, compute_capabilities=("8.6", "8.9", "12.0")),
            replace(PLACE, compute_capability="12.1"),
            False,
        ),
        (replace(RECORD, version="10.3.0.26"), replace(PLACE, version="10.3.0.30"), False),
    ],
)
def test_what_compatibility_allows(record: EngineRecord, place: Place, fits: bool, tmp_path: Path) -> None:
    engine = write_bundle(tmp_path, record)
    if fits:
        require_engine(engine, place)
    else:
        with pytest.raises(BundleError, match="cannot be loaded here"):
            require_engine(engine, place)


def test_a_cut_off_engine_is_told_by_its_size(tmp_path: Path) -> None:
    engine = write_bundle(tmp_path)
    engine.write_bytes(CONTENT[:100])
    with pytest.raises(BundleError, match=f"has 100 bytes and had {len(CONTENT)} .*cut off"):
        require_engine(engine, PLACE)


def test_an_altered_engine_is_told_by_its_hash(tmp_path: Path) -> None:
    engine = write_bundle(tmp_path)
    engine.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(BundleError, match="altered after it was built"):
        require_engine(engine, PLACE)


def test_an_engine_of_another_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"built from another nnet\.fp16\.onnx than the one in the bundle"):
        require_engine(write_bundle(tmp_path, source="0" * 64), PLACE)


def test_an_engine_from_elsewhere_is_never_loaded(tmp_path: Path) -> None:
    alone = tmp_path / "nnet.fp16.local.engine"
    alone.write_bytes(CONTENT)
    with pytest.raises(BundleError, match=r"outside of its bundle.*never loaded without its manifest"):
        require_engine(alone, PLACE)
    (tmp_path / "bundle").mkdir()
    stranger = write_bundle(tmp_path / "bundle").with_name("other.engine")
    stranger.write_bytes(CONTENT)
    with pytest.raises(BundleError, match=r"no entry for the engine other\.engine"):
        require_engine(stranger, PLACE)
    with pytest.raises(ConfigError, match="there is no engine"):
        require_engine(tmp_path / "absent.engine", PLACE)


def test_an_entry_that_says_too_little_is_refused(tmp_path: Path) -> None:
    made = RECORD.as_dict()
    del made["sha256"], made["compute_capabilities"]
    with pytest.raises(BundleError, match="lacks compute_capabilities, sha256: build it again"):
        require_engine(write_bundle(tmp_path, made=made), PLACE)
