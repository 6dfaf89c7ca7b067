"""`nnet-edge pairs`: a picture of the synthetic anomalies that a method would learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.options import FILE, FOLDER, Command, dataset_options, find_dataset, shown_option
from nnet_edge.cli.view import say
from nnet_edge.errors import ConfigError
from nnet_edge.settings.synthesis import FOREGROUNDS, KINDS, TEXTURE_AUGMENTATIONS

if TYPE_CHECKING:
    import numpy as np

SHOWN_SIDE, GAP, COLUMNS = 160, 6, 4  # pixels, pixels, pairs beside each other
OUTLINE, BACKGROUND = (255, 60, 60), 255


@click.command("pairs", cls=Command)
@dataset_options
@click.option("--out", type=FILE, required=True, help="The picture, a PNG.")
@shown_option("--kind", type=click.Choice(KINDS), default="perlin")
@click.option("--textures", type=FOLDER, help="Images in this folder tree, as DTD (default: procedural textures).")
@shown_option("--texture-augmentation", type=click.Choice(TEXTURE_AUGMENTATIONS), default="plain")
@shown_option(
    "--foreground", type=click.Choice(FOREGROUNDS), default="none", help="Where anomalies may lie; none: anywhere."
)
@shown_option("--probability", type=float, default=1.0, help="Of an anomaly.")
@shown_option("--noise", type=float, default=0.0, help="Grey levels, on the pixels outside the mask.")
@shown_option("--count", type=click.IntRange(1, 400), default=20, help="Pairs.")
@shown_option("--seed", type=int, default=111)
def command(data: Path, out: Path, textures: Path | None, count: int, seed: int, **options: Any) -> None:
    """Draw good images of DATA beside damaged copies."""
    import numpy as np

    from nnet_edge.data.images import load_images
    from nnet_edge.data.synthetic import PairSynthesis
    from nnet_edge.files import write_atomically
    from nnet_edge.settings.synthesis import Synthesis

    names = ("kind", "texture_augmentation", "foreground", "probability", "noise")
    settings = Synthesis(textures=str(textures or ""), **{name: options[name] for name in names})
    dataset = find_dataset(data, options)
    rows = np.linspace(0, len(dataset.train), min(count, len(dataset.train)), endpoint=False).astype(int)
    good = load_images([dataset.train[row] for row in rows], options["skip_bad_images"], bits=options["bits"]).images
    synthesis = PairSynthesis(settings, seed, good)
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

    width = 3 * SHOWN_SIDE + 4 * GAP
    columns = min(COLUMNS, len(pairs))
    sheet = np.full((-(-len(pairs) // columns) * (SHOWN_SIDE + GAP) + GAP, columns * width, 3), BACKGROUND, np.uint8)
    for place, (good, damaged, mask) in enumerate(pairs):
        outlined = damaged.copy()
        edges, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(outlined, edges, -1, OUTLINE, 2)
        row, column = divmod(place, columns)
        top = GAP + row * (SHOWN_SIDE + GAP)
        for number, image in enumerate((good, damaged, outlined)):
            left = column * width + GAP + number * (SHOWN_SIDE + GAP)
            small = cv2.resize(image, (SHOWN_SIDE, SHOWN_SIDE), interpolation=cv2.INTER_AREA)
            sheet[top : top + SHOWN_SIDE, left : left + SHOWN_SIDE] = small
    return bytes(cv2.imencode(".png", sheet[..., ::-1])[1])
