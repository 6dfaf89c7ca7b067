"""Formula of the global distance in NumPy: training learns by it, and calibration brings INT8 graphs back to it."""

from __future__ import annotations

import numpy as np

PREFIX = "global_distance."  # of its constants' names, among a network's weights and in the graph


def distances(
    averages: np.ndarray, mean: np.ndarray, scale: np.ndarray, basis: np.ndarray, shrink: np.ndarray
) -> np.ndarray:
    """What GlobalDistance (global_distance.py) gives for averages (N, D) over the grid's cells, float64 (N,)."""
    away = (averages - mean) * scale
    away = away - ((away @ basis.T) * shrink) @ basis
    found: np.ndarray = np.sqrt((away**2).mean(axis=1))
    return found
