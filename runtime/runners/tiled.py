"""Tiled runner: any runner, given canvases: it computes their tiles in bounded batches and gives stitched maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.frame import Outputs
from nnet_edge.geometry import Geometry
from nnet_edge.runtime.runners.base import Runner, device_of
from nnet_edge.tiles import Tiles

if TYPE_CHECKING:
    from typing_extensions import Self

AHEAD = 2  # batches of tiles that are under way at once


class TiledRunner:
    """A Runner of canvases. At most AHEAD batches of tiles are under way, so memory does not grow with their number.

    Its batch is of so many pictures as fill one of the inner runner with tiles, at least one. Layer maps stay those of the
    tiles, float32 (N, T, h, w). A GPU's maps are fetched for every tile: its own tail knows no seams.
    """

    def __init__(self, runner: Runner, geometry: Geometry, tiles: Tiles) -> None:
        self._runner, self._geometry, self._tiles = runner, geometry, tiles
        self.name, self.precision = runner.name, runner.precision
        self.device = device_of(runner)
        self.max_batch = max(1, runner.max_batch // tiles.count)
        self.input_shape = geometry.shape

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.__exit__(*error)

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        """Stitched maps and their maxima for canvases, uint8 RGB (N, H, W, 3)."""
        return self.start(images, layer_maps)()

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        """Begin to infer: the first tiles are under way when it returns, the others follow while the outputs are waited for."""
        if images.dtype != np.uint8 or images.shape[1:] != self.input_shape or not len(images):
            raise ConfigError(
                f"a bundle of {self._tiles} tiles takes uint8 RGB {('N', *self.input_shape)}, not {images.dtype} "
                f"{tuple(images.shape)}: resize with nnet_edge.imaging.resize"
            )
        places = self._tiles.places
        tiles = [image[place] for image in images for place in places]  # views
        size = self._runner.max_batch
        pieces = [tiles[start : start + size] for start in range(0, len(tiles), size)]

        def begin() -> Iterator[Callable[[], Outputs]]:
            for piece in pieces:
                yield self._runner.start(np.stack(piece), layer_maps)

        begun = begin()
        under_way = [next(begun)]

        def outputs() -> Outputs:
            found = []
            try:
                while under_way:
                    if len(under_way) < AHEAD and (following := next(begun, None)) is not None:
                        under_way.append(following)
                        continue
                    found.append(under_way.pop(0)())
            finally:
                for wait in under_way:  # after an error: what nobody waits for stays under way
                    with suppress(Exception):
                        wait()
            return self._joined(found)

        return outputs

    def _joined(self, found: list[Outputs]) -> Outputs:
        """The outputs of all tiles as those of their pictures."""
        stitched = self._geometry.stitch(np.concatenate([one.anomaly_map for one in found]))
        scores = stitched.reshape(len(stitched), -1).max(axis=1)  # NumPy's max gives NaN when one is
        of_tiles = {name: np.concatenate([one.layer_maps[name] for one in found]) for name in found[0].layer_maps}
        layer_maps = {name: maps.reshape(-1, self._tiles.count, *maps.shape[2:]) for name, maps in of_tiles.items()}
        return Outputs(stitched, scores, layer_maps)


def tiled(runner: Runner, geometry: Geometry) -> Runner:
    """The runner of a bundle of that geometry: itself, where the network sees a picture in one piece.

    Raises BundleError for a runner of another input than the tiles.
    """
    if geometry.tiles is None:
        return runner
    if runner.input_shape != geometry.network.shape:
        raise BundleError(
            f"the bundle's tiles have {geometry.network.text} pixels and its graph takes "
            f"{'x'.join(map(str, runner.input_shape[:2]))}: copy the whole bundle again, or export it again"
        )
    return TiledRunner(runner, geometry, geometry.tiles)
