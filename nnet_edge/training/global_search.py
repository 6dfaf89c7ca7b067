"""Global search: the global distance of a trained network, learned from good pictures alone (methods/global_distance.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnet_edge.anomaly_map import SMALLEST_DISTANCE, anomaly_map, image_score
from nnet_edge.methods.compute import Compute, chunks, to_device
from nnet_edge.methods.fusion_search import layer_maps_of
from nnet_edge.methods.global_distance import GRID, GlobalDistance
from nnet_edge.methods.global_formula import distances
from nnet_edge.methods.network import Network

COMPONENTS = 32  # seen: 32, 64, 128 and all of them agree within 0.1 point of image AUROC
SHRINKAGE = 0.1  # of the components' variances towards the mean one; seen: 0.03 to 0.3 agree within 0.1 point
IMAGES = 300  # good ones that are learned from, at most
FEWEST = 8  # pictures, learned and held out each: fewer say nothing of what varies
LARGEST_POWER = 8.0
FLOOR = 1e-3  # of an average's deviation, as a share of the deviation of all


@dataclass(frozen=True)
class GlobalSearch:
    """The distance that was learned, and what it rests on."""

    distance: GlobalDistance
    images: int  # learned from
    power: float
    largest: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint and the manifest."""
        return {"images": self.images, "power": self.power, "largest_gain": self.largest}


def learn_global_distance(
    network: Network, largest: float, good: np.ndarray, held_out: np.ndarray, compute: Compute
) -> GlobalSearch | None:
    """The distance of pictures from `good` ones, with the middle and the power of `held_out` ones, uint8 RGB (N, H, W, 3).

    None where `largest` (the gain) is 1, for a sum of several maps, in a letterbox, and with fewer than 8 of either.
    """
    fusion, geometry = network.map_fusion, network.geometry
    is_sum = fusion.rule == "sum" and len(network.output_names) > 1
    if largest <= 1 or is_sum or geometry.window.size != geometry.size or min(len(good), len(held_out)) < FEWEST:
        return None
    learned = good[np.linspace(0, len(good), min(IMAGES, len(good)), endpoint=False).astype(int)]
    cells = cells_of(geometry.height // 16, geometry.width // 16)
    averages = averages_of(network, learned, cells, compute)
    mean, deviation = averages.mean(axis=0), averages.std(axis=0)
    scale = 1 / np.maximum(deviation, FLOOR * max(float(averages.std()), SMALLEST_DISTANCE))
    _, singular, basis = np.linalg.svd((averages - mean) * scale, full_matrices=False)
    variances = singular**2 / len(averages)
    rest = SHRINKAGE * max(float(variances.sum()) / averages.shape[1], SMALLEST_DISTANCE)
    shrink = 1 - np.sqrt(rest / ((1 - SHRINKAGE) * variances + rest))
    basis, shrink = basis[:COMPONENTS], shrink[:COMPONENTS]
    away = distances(averages_of(network, held_out, cells, compute), mean, scale, basis, shrink)
    away = np.maximum(away, SMALLEST_DISTANCE)
    maps = anomaly_map(layer_maps_of(network, held_out, compute), fusion, geometry.window)
    scores = np.maximum(image_score(maps).astype(np.float64), SMALLEST_DISTANCE)
    power = float(np.log(scores).std() / max(np.log(away).std(), SMALLEST_DISTANCE))
    power = float(np.clip(power, 1 / LARGEST_POWER, LARGEST_POWER))
    values = {"cells": cells, "mean": mean, "scale": scale / np.median(away), "basis": basis, "shrink": shrink,
              "power": power, "largest": largest}  # fmt: skip
    tensors = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in values.items()}
    return GlobalSearch(GlobalDistance(tensors), len(learned), power, largest)


def cells_of(height: int, width: int) -> np.ndarray:
    """What averages maps (..., height * width) over the grid's cells, float64 (height * width, 16)."""
    cells = np.zeros((height, width, GRID * GRID))
    rows, columns = (np.array_split(np.arange(side), GRID) for side in (height, width))
    for number in range(GRID * GRID):
        here = np.ix_(rows[number // GRID], columns[number % GRID])
        cells[..., number][here] = 1 / cells[..., number][here].size
    return cells.reshape(-1, GRID * GRID)


@torch.inference_mode()
def averages_of(network: Network, images: np.ndarray, cells: np.ndarray, compute: Compute) -> np.ndarray:
    """The averages of the teacher's deepest features over the cells, float64 (N, C * 16)."""
    found = []
    for chunk in chunks(images):
        with compute.autocast():
            features = network.teacher_features(network.normalise(to_device(chunk, network.mean.device)))[2]
        found.append((features.double().flatten(2).cpu().numpy() @ cells).reshape(len(chunk), -1))
    return np.concatenate(found)
