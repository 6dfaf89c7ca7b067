"""`nnet-edge pairs`: a picture of the synthetic anomalies that a method would learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.options import (
    FILE,
    FOLDER,
    Command,
    asked_input,
    dataset_options,
    find_dataset,
    input_options,
    shown_option,
)
from nnet_edge.cli.view import say
from nnet_edge.errors import ConfigError
from nnet_edge.geometry import SIDE, parse_size
from nnet_edge.settings.synthesis import FOREGROUNDS, KINDS, TEXTURE_AUGMENTATIONS

if TYPE_CHECKING:
    import numpy as np

SHOWN_SIDE, GAP, COLUMNS = 160, 6, 4  # pixels of the longer side, pixels, pairs beside each other
OUTLINE, BACKGROUND = (255, 60, 60), 255


@click.command("pairs", cls=Command, example="nnet-edge pairs photos/ --out pairs.png --tiles 2x3")
@dataset_options
@click.option("--out", type=FILE, required=True, help="The picture, a PNG.")
@shown_option("--kind", type=click.Choice(KINDS), default="perlin", help="Of synthetic anomalies.")
@click.option("--textures", type=FOLDER, help="Images in this folder tree, as DTD (default: procedural textures).")
@shown_option("--texture-augmentation", type=click.Choice(TEXTURE_AUGMENTATIONS), default="plain",
              help="How textures are changed first.")  # fmt: skip
@shown_option(
    "--foreground", type=click.Choice(FOREGROUNDS), default="none", help="Where anomalies may lie; none: anywhere."
)
@shown_option("--probability", type=float, metavar="SHARE", default=1.0, help="Of pairs that get an anomaly.")
@shown_option("--noise", type=float, metavar="LEVELS", default=0.0, help="Grey levels, on the pixels outside the mask.")
@input_options
@shown_option("--count", type=click.IntRange(1, 400), metavar="PAIRS", default=20, help="Pairs to draw.")
@shown_option("--seed", type=int, metavar="SEED", default=111, help="Decides every anomaly.")
def command(data: Path, out: Path, textures: Path | None, count: int, seed: int, **options: Any) -> None:
    """Draw good images of DATA beside damaged copies, as large as --size, --fit, --tiles and --crop make them in training."""
    import numpy as np

    from nnet_edge.data.images import load_images
    from nnet_edge.data.seen import settle_input
    from nnet_edge.data.synthetic import PairSynthesis
    from nnet_edge.files import write_atomically
    from nnet_edge.settings.synthesis import Synthesis

    names = ("kind", "texture_augmentation", "foreground", "probability", "noise")
    settings = Synthesis(textures=str(textures or ""), **{name: options[name] for name in names})
    dataset = find_dataset(data, options)
    size = (SIDE, SIDE) if options["size"] is None else parse_size(options["size"])
    geometry = settle_input(dataset.train, size, asked_input(options), say, bits=options["bits"])
    rows = np.linspace(0, len(dataset.train), min(count, len(dataset.train)), endpoint=False).astype(int)
    paths = [dataset.train[row] for row in rows]
    good = geometry.cut(load_images(paths, options["skip_bad_images"], bits=options["bits"], geometry=geometry).images)
    if geometry.tiles is not None:  # of any place, as training draws them
        good = good[np.random.default_rng(seed).permutation(len(good))[:count]]
    synthesis = PairSynthesis(settings, seed, good, geometry.network.window)
    pairs = [
        (good[index % len(good)], *synthesis.pair(index % len(good), index // len(good))) for index in range(count)
    ]
    try:
        write_atomically(out, draw_pairs(pairs))
    except OSError as error:
        raise ConfigError(f"cannot write {out} ({error.strerror}): choose another --out") from error
    shares = np.array([mask.mean() for _, _, mask in pairs])
    say(
        f"{count} pairs, {int((shares == 0).sum())} without an anomaly; masks cover {shares.mean():.1%} on average, "
        f"{shares.max():.1%} at most"
    )
    say(f"wrote {out}")


def draw_pairs(pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> bytes:
    """A PNG: of each (good, damaged, mask) the good image, the damaged one, and that again with its mask outlined."""
    import cv2
    import numpy as np

    height, width = pairs[0][0].shape[:2]
    high, wide = (max(1, round(SHOWN_SIDE * side / max(height, width))) for side in (height, width))
    columns, of_pair = min(COLUMNS, len(pairs)), 3 * wide + 4 * GAP
    rows = -(-len(pairs) // columns)
    sheet = np.full((rows * (high + GAP) + GAP, columns * of_pair, 3), BACKGROUND, np.uint8)
    for place, (good, damaged, mask) in enumerate(pairs):
        outlined = damaged.copy()
        edges, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(outlined, edges, -1, OUTLINE, 2)
        row, column = divmod(place, columns)
        top = GAP + row * (high + GAP)
        for number, image in enumerate((good, damaged, outlined)):
            left = column * of_pair + GAP + number * (wide + GAP)
            small = cv2.resize(image, (wide, high), interpolation=cv2.INTER_AREA)
            sheet[top : top + high, left : left + wide] = small
    return bytes(cv2.imencode(".png", sheet[..., ::-1])[1])
