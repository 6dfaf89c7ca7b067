"""The figures of the paper's Tables 1 and 3 (specification section 13), in %, N-Net last; Tables 4 to 7: ablation_table.py."""

from __future__ import annotations

TABLE_1_METHODS = ("FastFlow", "FAVAE", "SPADE", "PaDiM", "PatchCore", "STPM", "RD", "MemKD", "N-Net")
TABLE_1: dict[str, dict[str, tuple[float, ...]]] = {  # data set -> our figure's name -> one a method
    "MVTec AD": {
        "pixel_ap": (39.8, 30.7, 47.1, 55.0, 61.2, 51.8, 60.8, 59.6, 64.4),
        "pixel_auroc": (94.5, 88.9, 95.5, 96.6, 98.1, 95.4, 98.0, 98.2, 98.3),
        "pro_rd4ad": (85.6, 74.9, 89.5, 91.3, 93.4, 87.9, 94.5, 94.5, 94.9),
        "image_auroc": (90.5, 79.3, 85.4, 90.8, 99.2, 92.4, 98.6, 99.6, 99.1),
    },
    "VisA": {
        "pixel_ap": (15.6, 21.3, 21.5, 30.9, 40.1, 16.9, 44.3, 44.1, 45.8),
        "pixel_auroc": (88.2, 88.0, 85.6, 89.5, 98.8, 83.4, 98.6, 98.4, 99.1),
        "pro_rd4ad": (59.6, 67.9, 65.9, 85.9, 91.2, 62.0, 94.5, 94.9, 94.7),
        "image_auroc": (82.2, 80.3, 82.1, 89.1, 95.1, 83.3, 96.1, 97.6, 96.5),
    },
}
TABLE_3_METHODS = ("US", "RIAD", "PaDiM", "PatchCore", "STPM", "RD", "RD++", "SimpleNet", "N-Net")
TABLE_3: dict[str, tuple[float, ...]] = {  # category of MVTec AD -> pixel AP, one a method
    "carpet": (52.2, 61.4, 60.7, 66.7, 65.3, 66.8, 64.3, 40.5, 69.4),
    "grid": (10.1, 36.4, 35.7, 41.0, 45.4, 49.8, 50.1, 32.4, 50.0),
    "leather": (40.9, 49.1, 53.5, 51.0, 42.9, 52.0, 51.3, 42.2, 49.8),
    "tile": (65.3, 52.6, 52.4, 59.3, 61.7, 53.8, 54.4, 60.9, 71.3),
    "wood": (53.3, 38.2, 46.7, 52.3, 47.0, 50.8, 52.6, 44.4, 59.1),
    "bottle": (74.2, 76.4, 77.3, 80.1, 80.6, 79.1, 79.7, 71.0, 83.0),
    "cable": (48.2, 24.4, 45.4, 70.0, 58.0, 59.6, 61.7, 66.9, 70.6),
    "capsule": (25.9, 38.2, 46.7, 48.1, 35.9, 45.1, 47.1, 41.3, 42.5),
    "hazelnut": (57.8, 33.8, 61.1, 61.5, 60.3, 67.9, 65.7, 45.1, 68.2),
    "metal_nut": (83.5, 64.3, 77.4, 88.8, 79.3, 82.3, 83.5, 89.4, 83.3),
    "pill": (62.0, 51.6, 61.2, 78.7, 63.3, 79.4, 79.8, 80.0, 81.7),
    "screw": (7.8, 43.9, 21.7, 41.4, 26.9, 54.5, 55.6, 35.3, 51.1),
    "toothbrush": (37.7, 50.6, 54.7, 51.6, 48.8, 54.1, 56.2, 38.5, 70.9),
    "transistor": (27.1, 39.2, 72.0, 63.2, 44.4, 55.6, 59.1, 67.5, 58.8),
    "zipper": (36.1, 63.4, 58.2, 64.0, 54.9, 60.9, 61.1, 62.2, 56.5),
}
TABLE_3_AVERAGES: dict[str, tuple[float, ...]] = {  # as printed
    "textures": (44.4, 47.5, 49.8, 54.1, 52.5, 54.6, 54.5, 44.1, 59.9),
    "objects": (46.0, 48.6, 57.6, 64.7, 55.2, 63.9, 65.0, 59.7, 66.7),
    "all": (45.5, 48.2, 55.0, 61.2, 54.3, 60.8, 61.5, 54.5, 64.4),
}


def best_other(methods: tuple[str, ...], figures: tuple[float, ...]) -> str:
    """The best method of the paper's table besides N-Net, as "RD 66.8"."""
    value, name = max(zip(figures[:-1], methods[:-1], strict=True), key=lambda pair: pair[0])
    return f"{name} {value:.1f}"
