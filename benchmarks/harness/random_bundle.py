"""A bundle whose teacher and students have random weights: as fast as a trained one, and of no other use.

No training and no download: how fast a large backbone runs on a machine can be known where its ImageNet weights cannot be
had. The manifest's `teacher.is_random` makes every report say so.

    python -m nnet_edge.benchmarks.random_bundle OUT --backbone wide_resnet50_2 --set model.memory_slots=256
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from nnet_edge.benchmarks.harness.command_line import run_command, say
from nnet_edge.benchmarks.harness.rounds import Say, quiet
from nnet_edge.bundle import Bundle
from nnet_edge.errors import ConfigError
from nnet_edge.geometry import DEFAULT, Geometry, parse_size
from nnet_edge.imaging import resize
from nnet_edge.settings.runner import require_choice

BACKBONES = (
    "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet18", "resnet34", "resnet50", "wide_resnet50_2"
)  # fmt: skip


def make_random_bundle(
    out: Path,
    backbone: str = "wide_resnet50_2",
    seed: int = 0,
    replace_old: bool = False,
    say: Say = quiet,
    geometry: Geometry = DEFAULT,
    protocol: str = "paper",
    changes: Sequence[str] = (),
) -> Bundle:
    """The bundle `out` with N-Net as `seed` initialises it; parity and threshold come from `real_pictures`.

    `changes` are made to the protocol's settings, each as "model.memory_slots=256".
    Raises ConfigError when `out` exists (unless `replace_old`) or a backbone, protocol or setting is unknown, MissingExtraError
    without scikit-image, ParityError when the runners disagree.
    """
    from nnet_edge.export.bundling import export_bundle
    from nnet_edge.methods.backbone import find_backbone
    from nnet_edge.methods.base import DEFAULT_METHOD, METHODS
    from nnet_edge.methods.network import start_network
    from nnet_edge.methods.teacher_weights import RANDOM, load_teacher
    from nnet_edge.training.checkpoint import Checkpoint, facts_of_teacher, write_checkpoint, write_held_out

    if out.exists() and not replace_old:  # before minutes of exporting
        raise ConfigError(f"{out} exists already; choose another OUT, or say --force to replace it")
    protocols = METHODS.find(DEFAULT_METHOD).protocols
    require_choice("--protocol", protocol, tuple(protocols))
    settings = protocols[protocol]
    settings = replace(settings, seed=seed, model=replace(settings.model, backbone=backbone), input=geometry)
    for change in changes:
        settings = settings.overridden(change)
    settings = settings.as_deployed()
    teacher = load_teacher(find_backbone(backbone), RANDOM)
    network = start_network(settings, teacher)
    pictures = np.stack([resize(picture, geometry) for picture in real_pictures()])
    no_data = {"name": "random-weights", "layout": None, "fingerprint": None, "learned": 0, "held_out": len(pictures),
               "held_out_share": None, "seed": None, "skipped": 0, "duplicates_of_test_images": 0}  # fmt: skip
    facts = {"teacher": facts_of_teacher(teacher), "data": no_data, "epoch": 0, "step": 0,
             "sums": {}, "marks": None, "seconds": 0.0, "precision": "fp32", "finished": True}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="nnet-edge-random-") as folder:
        training = Path(folder)
        write_checkpoint(training, Checkpoint(settings, network.state_dict(), {}, {}, facts))
        write_held_out(training, pictures)
        return export_bundle(training, out, replace_old=replace_old, say=say).bundle


def real_pictures() -> np.ndarray:
    """The four quarters of three photographs that scikit-image ships, uint8 RGB (12, 256, 256, 3)."""
    from nnet_edge.data.example_parts import KINDS, photograph

    quarters = []
    for kind in KINDS:
        photo = photograph(kind).astype(np.uint8)  # 512 x 512, whole numbers
        quarters += [half for row in np.vsplit(photo, 2) for half in np.hsplit(row, 2)]
    return np.repeat(np.stack(quarters)[..., None], 3, axis=3)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--backbone", type=click.Choice(BACKBONES), default="wide_resnet50_2", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--size", default="256", show_default=True, help="Of the input: SIDE or HEIGHTxWIDTH, multiples of 32.")
@click.option("--protocol", default="paper", show_default=True, help="Named settings of N-Net.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a setting of the protocol.")
@click.option("--force", is_flag=True, help="Replace what OUT holds.")
def command(
    out: Path, backbone: str, seed: int, size: str, protocol: str, changes: tuple[str, ...], force: bool
) -> None:
    """Make the bundle OUT with random weights, for measuring speed only."""
    bundle = make_random_bundle(out, backbone, seed, force, say, Geometry(*parse_size(size)), protocol, changes)
    for warning in bundle.warnings:
        say(warning)
    click.echo(f"bundle: {bundle.path}")


if __name__ == "__main__":
    sys.exit(run_command(command))
