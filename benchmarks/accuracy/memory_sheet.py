"""What a bundle finds beside a memory of its teacher's features: a table by kind of defect, and a sheet of the maps.

`python -m nnet_edge.benchmarks.accuracy.memory_sheet DATA BUNDLE --limit 150 --out sheet.png`. The memory is PatchCore's
(Roth et al., CVPR 2022) in its simplest form: features of strides 8 and 16, averaged over 3x3, a random tenth of the places
of 100 good images in the coreset's stead, and the distance to the nearest. Both judge at the score that 5 % of the good test
images exceed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from nnet_edge.benchmarks.accuracy.trainings import read_datasets
from nnet_edge.benchmarks.accuracy.variants import limited
from nnet_edge.data.holding_out import hold_out
from nnet_edge.data.images import load_images
from nnet_edge.evaluation.artefact import open_artifact
from nnet_edge.evaluation.evaluate import evaluate
from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.teacher_weights import load_teacher
from nnet_edge.settings.runner import RunnerSettings

LEARNED, SHARE = 100, 0.1  # good images, and of their places
FALSE_REJECTS = 0.05
SIGMA = 4.0  # of the blur of both kinds of maps, pixels
EDGE = (255, 255, 255)
SHOWN = (4, 8, 3)  # of the defects that neither, the memory alone and the bundle alone find
MEAN, DEVIATION = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@dataclass(frozen=True)
class Judged:
    """The test images' maps float32 (N, H, W) of one judge, at its line."""

    maps: np.ndarray
    line: float  # that FALSE_REJECTS of the good images exceed
    found: np.ndarray  # bool (N,): the map exceeds the line inside the mask

    def heat(self, index: int) -> np.ndarray:
        """The map of an image in colours, uint8 BGR (H, W, 3)."""
        low, high = np.median(self.maps), 1.1 * self.line
        grey = 255 * np.clip((self.maps[index] - low) / (high - low), 0, 1)
        return cv2.applyColorMap(grey.astype(np.uint8), cv2.COLORMAP_JET)


def judged(maps: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> Judged:
    """What the maps find; the score of an image is its map's maximum."""
    line = float(np.quantile(maps.max(axis=(1, 2))[~labels], 1 - FALSE_REJECTS))
    return Judged(maps, line, np.array([bool((one[mask] > line).any()) for one, mask in zip(maps, masks, strict=True)]))


class FeatureMemory:
    """Nearest features of good images, at strides 8 and 16 of a teacher."""

    def __init__(self, encoder: torch.nn.Module, images: np.ndarray, share: float = SHARE) -> None:
        """Remember a share of the places of `images`, uint8 RGB (N, H, W, 3)."""
        self._encoder = encoder
        places = torch.cat([self._features(images[at : at + 8]).flatten(0, 2) for at in range(0, len(images), 8)])
        chosen = np.random.default_rng(0).permutation(len(places))[: max(1, int(share * len(places)))]
        self._known = places[torch.from_numpy(chosen)]

    @torch.inference_mode()
    def _features(self, images: np.ndarray) -> Tensor:
        """(N, h, w, C) at stride 8."""
        shown = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / DEVIATION
        middle, deep = (F.avg_pool2d(one, 3, 1, 1) for one in self._encoder(shown)[1:])
        return torch.cat([middle, F.interpolate(deep, size=middle.shape[-2:], mode="bilinear")], 1).permute(0, 2, 3, 1)

    def maps(self, images: np.ndarray) -> np.ndarray:
        """Distances to the nearest feature, float32 (N, H, W)."""
        size = images.shape[2], images.shape[1]
        made = []
        for image in images:
            features = self._features(image[None])[0]
            near = torch.cdist(features.flatten(0, 1), self._known).amin(1).view(features.shape[:2]).numpy()
            made.append(cv2.GaussianBlur(cv2.resize(near, size, interpolation=cv2.INTER_LINEAR), (0, 0), SIGMA))
        return np.stack(made)


def table(kinds: np.ndarray, masks: np.ndarray, ours: Judged, memory: Judged) -> str:
    """Defects of each kind by who finds them, as Markdown; `kinds` (N,) is "" for good images."""
    rows = []
    for kind in sorted(set(kinds) - {""}):
        here = kinds == kind
        counts = [ours.found, memory.found, memory.found & ~ours.found, ours.found & ~memory.found]
        counts.append(~ours.found & ~memory.found)
        area = f"{100 * np.median(masks[here].mean(axis=(1, 2))):.2f} %"
        rows.append([kind, here.sum(), area, *((one & here).sum() for one in counts)])
    heads = ["defect", "images", "median area", "bundle", "memory", "memory alone", "bundle alone", "neither"]
    return tabulate(rows, heads, tablefmt="github")


def sheet(images: np.ndarray, masks: np.ndarray, rows: Sequence[int], ours: Judged, memory: Judged) -> np.ndarray:
    """Picture, the defect's edge, both maps; a row an image, uint8 BGR."""
    lines = []
    for index in rows:
        picture = np.ascontiguousarray(images[index][..., ::-1])
        cells = [picture, picture.copy(), ours.heat(index), memory.heat(index)]
        edges, _ = cv2.findContours(masks[index].astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for cell in cells[1:]:
            cv2.drawContours(cell, edges, -1, EDGE, 1)
        lines.append(np.hstack(cells))
    return np.vstack(lines)


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The sheet, a PNG.")
@click.option("--limit", type=int, help="Good test images, and defects, at most.")
@click.option("--threads", type=int, default=1, show_default=True)
def main(data: Path, bundle: Path, out: Path, limit: int | None, threads: int) -> None:
    """Compare BUNDLE with a memory of features on the test images of DATA."""
    torch.set_num_threads(threads)
    (dataset,) = read_datasets([data])
    learned, _ = hold_out(list(dataset.train), 1)
    order = np.random.default_rng(0).permutation(len(learned))[:LEARNED]
    dataset = limited(dataset, limit)
    artefact = open_artifact(bundle, RunnerSettings(threads=threads), False)
    with artefact.runner as runner:
        seen = evaluate(runner, dataset, artefact.threshold, geometry=artefact.geometry)
    encoder = load_teacher(find_backbone("efficientnet_lite0"), None, 0).encoder
    memory = FeatureMemory(encoder, load_images([learned[index] for index in sorted(order)]).images)
    images = load_images([sample.path for sample in seen.samples]).images
    ours = judged(seen.maps, seen.labels, seen.masks)
    theirs = judged(memory.maps(images), seen.labels, seen.masks)
    kinds = np.array([sample.defect if bad else "" for sample, bad in zip(seen.samples, seen.labels, strict=True)])
    click.echo(table(kinds, seen.masks, ours, theirs))
    defects, rows = seen.labels, []
    groups = (~ours.found & ~theirs.found, ~ours.found & theirs.found, ours.found & ~theirs.found)
    for group, count in zip(groups, SHOWN, strict=True):
        rows += [int(index) for index in np.flatnonzero(defects & group)[:count]]
    if rows:
        cv2.imwrite(str(out), sheet(images, seen.masks, rows, ours, theirs))
        click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
