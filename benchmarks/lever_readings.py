"""What a lever's row keeps: the layer maps of the test images, computed once a training, and the figures of each reading."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from nnet_edge.benchmarks.levers import Variant
from nnet_edge.benchmarks.trainings import Key, require_same
from nnet_edge.checkpoint import Checkpoint
from nnet_edge.data import Dataset
from nnet_edge.errors import DataError
from nnet_edge.files import write_atomically
from nnet_edge.metrics import Metrics
from nnet_edge.model.backbone import build_encoder, find_backbone
from nnet_edge.model.nnet import NNet
from nnet_edge.model.torch_runner import TorchRunner
from nnet_edge.runtime.batches import infer_all

SCHEMA = "nnet-edge lever row 1"


def kept_layer_maps(
    path: Path, key: Key, checkpoint: Checkpoint, weights: str, images: np.ndarray, device: str
) -> dict[str, np.ndarray]:
    """The layer maps float32 (N, 1, h, w) of uint8 RGB `images` (N, 256, 256, 3), read from `path` or computed and kept.

    `weights` is one of levers.WEIGHTS. Raises ConfigError when `path` is of another key, DataError when it is damaged.
    """
    if path.exists():
        require_same(path, read_map_key(path), key)
        return load_file(path)
    maps = infer_all(TorchRunner(network_with(checkpoint, weights), device), images).layer_maps
    write_atomically(path, save(dict(maps), {"key": json.dumps(key)}))
    return dict(maps)


def network_with(checkpoint: Checkpoint, weights: str) -> NNet:
    """N-Net with weights that a training left: the running mean is the weights themselves where none was kept."""
    model = checkpoint.settings.model
    network = NNet(model, build_encoder(find_backbone(model.backbone)))
    left = {
        "deployed": checkpoint.deployed,
        "averaged": checkpoint.averaged or checkpoint.network,
        "last": checkpoint.network,
    }
    network.load_state_dict(left[weights])
    return network.eval()


def read_map_key(path: Path) -> Key:
    """The key of kept layer maps. Raises DataError when they are damaged."""
    try:
        with safe_open(path, "np") as file:
            key: Key = json.loads((file.metadata() or {})["key"])
            return key
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it, and the maps are computed again") from error


def write_figures(path: Path, key: Key, name: str, metrics: Metrics) -> None:
    """Keep the figures of the variant `name` at `path`."""
    found = {"schema": SCHEMA, "variant": name, "metrics": metrics.as_dict(), "key": key}
    write_atomically(path, json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")


def read_figures(path: Path, key: Key) -> Metrics:
    """What `write_figures` wrote. Raises ConfigError when it is of another run, DataError when damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        found, metrics = known["key"], Metrics(**known["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it, and it is measured again") from error
    require_same(path, found, key)
    return metrics


def reading_key(variant: Variant) -> dict[str, Any]:
    """What tells one reading from another, as JSON gives it back."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(variant.reading)))
    return values


def slug(name: str) -> str:
    """A variant's name as a file's."""
    return re.sub(r"[^a-z0-9.=_]+", "-", name.lower()).strip("-")


def limited(dataset: Dataset, limit: int | None) -> Dataset:
    """`dataset` with at most `limit` good and as many bad test images, evenly spread over their names."""
    if limit is None:
        return dataset
    kept = []
    for is_anomalous in (False, True):
        kind = [sample for sample in dataset.test if sample.is_anomalous == is_anomalous]
        rows = np.linspace(0, len(kind) - 1, min(limit, len(kind))).astype(int)
        kept += [kind[row] for row in rows]
    return replace(dataset, test=tuple(sorted(kept, key=lambda sample: sample.path)))
