"""What a training says: of its data before, of its time and its bundle after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.cli.view import say, say_in_detail, warn

if TYPE_CHECKING:
    from nnet_edge.data.training_data import TrainingData
    from nnet_edge.export.bundling import Exported
    from nnet_edge.training.loop import Trained


def figures_of(trained: Trained, exported: Exported) -> dict[str, float]:
    """What a finished training is compared by."""
    threshold = exported.bundle.threshold
    figures = {"epochs": trained.epochs, "seconds": trained.seconds, "threshold": threshold.value,
               "expected_false_rejects": threshold.expected_false_rejects}  # fmt: skip
    if trained.validation is not None and trained.validation.kept is not None:
        figures["synthetic_pixel_ap"] = trained.validation.kept
    return figures


def tell_exported(exported: Exported) -> None:
    """Say whether the runners agree, in detail by how much, and what the threshold means."""
    bundle, parities = exported.bundle, exported.parities
    if parities:  # those that did not hold left no bundle
        names = " and ".join(parity.runner for parity in parities)
        say(f"{names} gave the verdicts of the training on {parities[0].images} photographs that it did not learn")
    for parity in parities:
        say_in_detail(parity.sentence())
    say(bundle.threshold.sentence())
    for line in (*exported.warnings, *bundle.warnings):
        warn(line)


def tell_bundle(path: Path) -> None:
    """Say where the finished bundle is, and what to do with it."""
    say(f"bundle: {path}")
    say(f"next: nnet-edge stream 0 --bundle {path} (0: the first camera; or a folder)")


def tell_data(data: TrainingData) -> None:
    """Say what is learned from, and what is wrong with it."""
    facts = data.facts
    say(
        f"{len(data.learned)} good images to learn from, {len(data.held_out)} held out for the threshold; "
        f"{facts['distinct']} distinct"
    )
    if facts["groups"] is not None:
        found, held = facts["groups"], len(set(facts["held_out_groups"]))
        sizes = f"{found['smallest']} to {found['largest']} images each"
        if found["largest"] == 1:
            sizes = "one image each, which promises no more than --groups none"
        say(
            f"groups by {found['by']}: {found['count']} ({sizes}); {held} of them are judged by what has not learned them. "
            f"The rate of false rejects is one of new groups, and the tightest is 1 of {held + 1}"
            + ("" if data.folds or held == found["count"] else f"; of all with --folds {min(5, found['count'])}")
        )
    elif facts["together"] == "near":
        parts = facts["distinct_by_near_copies"]
        say(f"groups by near copies: {parts} parts, of each of which one image counts, learned or held out as one")
    if facts["left_out"]:
        say(f"left out {facts['left_out']} copies of held-out images: each counts once")
    if data.near is not None:
        say(
            f"warning: by near copies ({data.near[0]} and {data.near[1]}) the good images show only "
            f"{facts['distinct_by_near_copies']} distinct parts: where they show one part, as frames of one video do, "
            "say --together near, or the expected rate of false rejects is too good"
        )
    if data.mask_like:
        say(
            f"warning: {len(data.mask_like)} good images look like masks (first: {data.mask_like[0]}): they are learned; name "
            "them as masks, 7_mask.png beside 7.png, or take them away"
        )
    if data.skipped:
        names = ", ".join(skipped.path.name for skipped in data.skipped[:5])
        say(f"skipped {len(data.skipped)} images that cannot be read or are damaged: {names}")
    if data.depth is not None:
        say(data.depth.sentence())
    if data.is_dark:
        say(
            "warning: no picture exceeds a quarter of its range: are they under-exposed, or do they have fewer bits (--bits N)?"
        )
    if data.other_kind:
        say(
            f"warning: {len(data.other_kind)} of the good images were made otherwise than the rest (first: "
            f"{data.other_kind[0]}): compressed more, or less; learn from pictures as the camera will give them"
        )
    if data.duplicates:
        count, (one, other) = len(data.duplicates), data.duplicates[0]
        say(f"warning: {count} test images are training images too ({one} is {other}): figures will flatter")


def tell_training(trained: Trained) -> None:
    """Say how long it took; in detail what the feature cache saved and when the weights were best."""
    shown = f"{trained.epochs} passes over the photographs"
    if trained.learned_on:
        shown = f"{trained.learned_on} images beyond those of the bundle's training"
    say(f"learned in {trained.seconds / 60:.1f} min, {shown}")
    if trained.saved_share is not None:
        say_in_detail(
            f"computed in {trained.precision}; a step takes {trained.step_ms:.0f} ms an image, and the kept teacher features "
            f"save {trained.teacher_ms:.0f} ms more ({trained.saved_share:.0%})"
        )
    if trained.validation is not None and trained.validation.kept is not None:
        scores = ", ".join(f"{100 * score:.1f} after {shown}" for shown, score in trained.validation.checks)
        say_in_detail(
            f"synthetic anomalies on held-out parts are found with a pixel AP of {scores} images shown: "
            f"kept the weights after {trained.validation.kept_at}"
        )
