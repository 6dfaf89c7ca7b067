"""`nnet-edge answers`: give a bundle of before its known answers, and what is usual in its pictures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from nnet_edge.cli.options import FOLDER, Command
from nnet_edge.cli.view import say


@click.command("answers", cls=Command, example="nnet-edge answers runs/part/bundle")
@click.argument("bundle", type=FOLDER)
def command(bundle: Path) -> None:
    """Give BUNDLE, one of before, its known answers.

    What its FP32 graph says of three held-out frames now, on every runner that is installed, is what it must say from now on;
    one that has answers keeps them. So that a camera whose pictures are made otherwise is told of, its held-out frames are
    measured too.
    """
    from nnet_edge.bundle import changed, read_bundle
    from nnet_edge.image_path import ImagePath
    from nnet_edge.known_answers import asked_frames
    from nnet_edge.runtime.runners.answers import add_answers
    from nnet_edge.settings.runner import CPU_RUNNER_KINDS

    found = read_bundle(bundle)
    if ImagePath.in_manifest(found.manifest) is None and (measured := ImagePath.of(found.frames("held_out"))):
        found = changed(found, image_path=measured.as_dict())
        say(f"{bundle}: what is usual in its {measured.images} held-out frames is kept")
    if asked_frames(found):
        say(f"{bundle} has its known answers already: they stay")
        return
    kinds = [kind for kind in CPU_RUNNER_KINDS if find_spec(kind) is not None]
    kept = add_answers(found, kinds)
    say(f"{bundle}: answers of {len(asked_frames(kept))} frames on {' and '.join(kinds)} are kept")
    if len(found.artefacts) > 1:
        say("its other artefacts have none: run calibrate, then build-engine, again to give them theirs")
