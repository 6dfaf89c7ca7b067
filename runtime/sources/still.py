"""How long a camera's picture has not changed by one pixel: noise changes every picture of a sensor that works."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a settings check needs no NumPy
    import numpy as np

STEP = 17  # of the rows and columns that are compared behind one row: takes 0.06 ms, all of a full-HD picture 0.6 ms


class StillPicture:
    """The first of equal pictures, and when it came."""

    def __init__(self) -> None:
        self._image: np.ndarray | None = None
        self._since_s = 0.0

    def seconds(self, image: np.ndarray, now_s: float) -> float:
        """For how long pictures up to this one have been equal; 0 for one that differs from the last."""
        if self._image is None or not are_equal(self._image, image):
            self._image, self._since_s = image, now_s
        return now_s - self._since_s


def are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures (H, W, 3) are the same in every pixel."""
    import numpy as np

    few, middle = slice(None, None, STEP), len(one) // 2
    return one.shape == other.shape and all(
        np.array_equal(one[part], other[part]) for part in (middle, (few, few), slice(None))
    )
