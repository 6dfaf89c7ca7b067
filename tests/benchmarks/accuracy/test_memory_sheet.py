"""What a bundle and a memory of features find, beside each other."""

from __future__ import annotations

import numpy as np
import torch

from nnet_edge.benchmarks.accuracy.memory_sheet import FeatureMemory, judged, sheet, table


class Pools(torch.nn.Module):
    """A teacher of three strides whose features are mean colours."""

    def forward(self, images):
        return [torch.nn.functional.avg_pool2d(images, stride) for stride in (4, 8, 16)]


def maps_with(values: list[float]) -> np.ndarray:
    made = np.zeros((len(values), 8, 8), np.float32)
    made[:, 2, 2] = values
    return made


def test_found_is_what_exceeds_the_line_inside_the_mask():
    labels = np.array([False] * 20 + [True, True, True])
    masks = np.zeros((23, 8, 8), bool)
    masks[20:22, 2, 2] = masks[22, 6, 6] = True
    both = judged(maps_with([*np.linspace(0, 1, 20), 2.0, 0.5, 2.0]), labels, masks)
    assert 0.9 < both.line <= 1.0
    assert both.found.tolist() == [False] * 20 + [True, False, False]


def test_a_memory_is_near_to_what_it_learned_and_far_from_a_spot():
    good = np.full((4, 32, 32, 3), 90, np.uint8)
    good += np.random.default_rng(0).integers(0, 3, good.shape, dtype=np.uint8)
    odd = good[:1].copy()
    odd[0, 16:24, 16:24] = 250
    near, far = FeatureMemory(Pools(), good, share=1.0).maps(np.concatenate([good[:1], odd]))
    assert near.shape == (32, 32)
    assert near.max() < 0.01
    assert far.max() > 0.1
    assert far[16:, 16:].mean() > 2 * far[:16, :16].mean()


def test_the_table_counts_each_defect_once_and_the_sheet_has_a_row_for_each():
    labels = np.array([False, False, True, True, True])
    masks = np.zeros((5, 8, 8), bool)
    masks[2:, 2, 2] = True
    ours = judged(maps_with([0.1, 0.2, 1.0, 0.1, 0.1]), labels, masks)
    memory = judged(maps_with([0.1, 0.2, 1.0, 1.0, 0.1]), labels, masks)
    text = table(np.array(["", "", "dent", "dent", "dent"]), masks, ours, memory)
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert cells == ["dent", "3", "1.56 %", "1", "2", "1", "0", "1"]
    assert sheet(np.zeros((5, 8, 8, 3), np.uint8), masks, [2, 4], ours, memory).shape == (16, 32, 3)
