"""Result: what an inspector says of one image, with its map, its regions and its picture."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import write_atomically
from nnet_edge.frame import Prediction, Region
from nnet_edge.imaging import to_rgb
from nnet_edge.runtime.sinks.fields import to_fields
from nnet_edge.runtime.sinks.overlay import annotate

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # suffix -> format


class Result:
    """The verdict on one image. `index` counts the images of one call from 0; `path` is None for one of no file."""

    def __init__(
        self, prediction: Prediction, path: Path | None = None, read: Callable[[], np.ndarray] | None = None
    ) -> None:
        self._prediction, self.path, self._read = prediction, path, read

    @property
    def index(self) -> int:
        """Its place among the images of its call, from 0."""
        return self._prediction.frame.index

    @property
    def score(self) -> float:
        """The image score, the largest value of the anomaly map; larger is stranger."""
        return self._prediction.image_score

    @property
    def threshold(self) -> float:
        """The image score above which an image is anomalous."""
        return self._prediction.threshold

    @property
    def ratio(self) -> float:
        """Score divided by threshold: 1.0 is the line."""
        return self._prediction.relative_score

    @property
    def is_anomalous(self) -> bool:
        """Whether the part is to be rejected."""
        return self._prediction.is_anomalous

    @property
    def regions(self) -> tuple[Region, ...]:
        """Where the map of an anomalous image exceeds the threshold, pixels of the image, the largest peak first."""
        return self._prediction.regions

    @property
    def latency_ms(self) -> float:
        """Milliseconds from the moment when the image was taken in to its verdict."""
        return self._prediction.latencies_ms["total"]

    @property
    def latencies_ms(self) -> Mapping[str, float]:
        """Stage -> milliseconds, as in the stream's JSON."""
        return self._prediction.latencies_ms

    @cached_property
    def map(self) -> np.ndarray:
        """The anomaly map at the image's own size, float32 (H, W); larger is stranger.

        It is enlarged from the size at which it is computed, so its largest value may lie a little below the score.
        """
        found = self._prediction.anomaly_map
        assert found is not None  # an inspector asks for it
        height, width = self._prediction.frame.image.shape[:2]
        return cv2.resize(np.asarray(found, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)

    @property
    def image(self) -> np.ndarray:
        """The image that was judged, upright: uint8 RGB (H, W, 3); one of a list or a folder is read again from its file.

        Raises DataError for a file that is gone or was changed since.
        """
        return to_rgb(self._with_pixels().frame.image)

    def plot(self) -> Image.Image:
        """The image with its regions, and its map in colours beside it; a notebook shows it. Raises DataError as `image`."""
        return Image.fromarray(cv2.cvtColor(annotate(self._with_pixels()), cv2.COLOR_BGR2RGB))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what the file's suffix says: the picture of `plot`, `as_dict` as .json, or the map as .npy; gives the path.

        Raises ConfigError for another suffix, DataError where it cannot be written.
        """
        target, content = Path(path), io.BytesIO()
        suffix = target.suffix.lower()
        if suffix in PICTURES:
            self.plot().save(content, PICTURES[suffix], quality=92)
        elif suffix == ".json":
            content.write(
                json.dumps(self.as_dict(), ensure_ascii=False, indent=2).encode(errors="backslashreplace") + b"\n"
            )
        elif suffix == ".npy":
            np.save(content, self.map)
        else:
            raise ConfigError(
                f"a result cannot be saved as {target.name}: end it in {', '.join(PICTURES)}, .json or .npy"
            )
        try:
            write_atomically(target, content.getvalue())
        except OSError as error:
            raise DataError(f"cannot write {target}: {error.strerror or error}") from error
        return target

    def as_dict(self) -> dict[str, Any]:
        """The fields that `nnet-edge stream --json` writes of a verdict."""
        return to_fields(self._prediction)

    def _with_pixels(self) -> Prediction:
        """The prediction with its image, read again where it was let go."""
        if self._read is None:
            return self._prediction
        return replace(self._prediction, frame=replace(self._prediction.frame, image=self._read()))

    def __repr__(self) -> str:
        verdict = "REJECT" if self.is_anomalous else "GOOD"
        name = self._prediction.frame.name
        regions = f", {len(self.regions)} region{'s' * (len(self.regions) != 1)}" if self.regions else ""
        return (
            f"Result({verdict}, score {self.score:.4g}, threshold {self.threshold:.4g}, ratio {self.ratio:.2f}"
            f"{regions}{f', {name}' if name else ''})"
        )
