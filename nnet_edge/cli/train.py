"""`nnet-edge train`: train on good images and export the bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.options import (
    FOLDER,
    Command,
    asked_input,
    dataset_options,
    find_dataset,
    grouped,
    log_option,
    nice_option,
    runner_options,
    runner_precision_option,
    runner_settings,
    shown_option,
    threshold_options,
    training_options,
)
from nnet_edge.cli.preview import Preview
from nnet_edge.cli.training_report import figures_of, tell_bundle, tell_data, tell_exported, tell_training
from nnet_edge.cli.training_settings import (
    AUTO,
    SETTING_OPTIONS,
    as_before,
    bits_as_before,
    candidates_of,
    known_settings,
    learned_by,
    settings_of,
    train_options,
)
from nnet_edge.cli.view import say, stop_on_signal, training_bar
from nnet_edge.errors import EXIT_FAILURE, EXIT_INTERRUPTED, ConfigError

if TYPE_CHECKING:
    from nnet_edge.bundle import Bundle
    from nnet_edge.data.images import Dataset
    from nnet_edge.export.bundling import Exported
    from nnet_edge.settings.runner import RunnerSettings
    from nnet_edge.training.checkpoint import Checkpoint
    from nnet_edge.training.trackers.base import Tracking


BUNDLE, TRAINING, CANDIDATES, FOLDS, PREVIEW = "bundle", "training", "candidates", "folds", "preview"  # in --out
REFUSED = "bundle-refused"  # a bundle that loses defects which the one before finds
NO_GROUPS = "none"  # of --groups


def train_bundle(
    dataset: Dataset, out: Path, runner: RunnerSettings, resume: bool, force: bool, options: Mapping[str, Any],
    base: Bundle | None = None, own: Sequence[Path] = (), tracked: Tracking | None = None,
) -> bool:  # fmt: skip
    """Train on `dataset`, on from the bundle `base` where one is given, and write out/training and out/bundle.

    `own` are its good images without those that are added to what `base` learned. False when it was stopped before its end.
    """
    from nnet_edge.bits import kept_bits
    from nnet_edge.bundle import id_of
    from nnet_edge.data.holding_out import NOTHING_BEFORE, seen_before
    from nnet_edge.data.seen import settle_input
    from nnet_edge.data.training_data import load_training_data
    from nnet_edge.methods.compute import choose_device
    from nnet_edge.scoring import ThresholdRule
    from nnet_edge.training.choice import choose
    from nnet_edge.training.folds import FoldTrainings
    from nnet_edge.training.loop import train
    from nnet_edge.training.memory import require_memory

    candidates = candidates_of(options) if base is None else [settings_of(base, options)]
    settings = candidates[0]
    computed, known = train_options(options), start_folder(out, resume, force, options)
    bits = options["bits"] if known is None else bits_as_before(options["bits"], known)
    if base is not None:
        bits = kept_bits(base.manifest)
    if known is None and base is not None:
        geometry = base.geometry
    elif known is None:
        geometry = settle_input(dataset.train, settings.input.size, asked_input(options), say, out, options["bits"])
        candidates = [replace(one, input=geometry) for one in candidates]
        settings = candidates[0]
    else:
        geometry = known.settings.input
    if known is None:
        device = choose_device(computed.device)
        for one in candidates:
            require_memory(one, len(dataset.train), computed.memory_limit, device)
    before = NOTHING_BEFORE if base is None else seen_before(base.manifest["data"], dataset.train, own)
    data = load_training_data(
        dataset, settings.seed, options["hold_out"], options["skip_bad_images"], together=options["together"], bits=bits,
        groups=options["groups"], folds=options["folds"], geometry=geometry, before=before,
    )  # fmt: skip
    data = replace(data, facts=data.facts | {"goes_on_from": None if base is None else id_of(base.manifest)})
    if known is not None:
        settings, computed = known_settings(known, data), as_before(computed, known)
    elif settings.batch != options["batch"]:  # it was not asked for
        shown = geometry.pieces * len(data.learned)
        candidates = [replace(one, batch=min(one.batch, shown)) for one in candidates]
        settings = candidates[0]
    tell_data(data)
    groups = data.facts["held_out_groups"]
    rule = ThresholdRule(options["false_rejects"], None if groups is None else tuple(groups), margin=options["margin"])
    rule.check(len(data.held_out))  # a rate that they cannot support ends here, not after training
    facts, folds = data.facts, data.folds
    with ExitStack() as stack:
        report = stack.enter_context(training_bar())
        if known is None and len(candidates) > 1:
            learned = data.learned if folds is None else data.learned[folds.fold_of != 0]
            judged = data.held_out if folds is None else data.learned[folds.fold_of == 0]
            choice = choose(learned, judged, candidates, out / CANDIDATES, computed, report, stop_on_signal, say)
            if choice is None:
                say("stopped before a method was chosen: nothing is kept; start again, or name the method")
                return False
            say(choice.table())
            say(choice.sentence())
            won = (choice.winner.method, choice.winner.backbone)
            settings = next(one for one in candidates if (one.method, one.model.backbone) == won)
            facts = facts | {"choice": choice.as_dict()}
        preview = stack.enter_context(Preview(out / PREVIEW, out / TRAINING, options))
        report = preview.watching(report)
        if tracked is not None:
            tracked.begin(settings.as_dict())
            computed = replace(computed, on_row=tracked.add)
        learned_before = (
            None if base is None else learned_by(base, options["epochs"], options["batch"], options["protocol"])
        )
        if folds is None or (known is not None and "factors" in known.facts["data"]):
            trained = train(data.learned, data.held_out, settings, out / TRAINING, computed, facts, known, report,
                            stop_on_signal, say, learned_before)  # fmt: skip
        else:
            trainings = FoldTrainings(data, settings, out / FOLDS, computed, report, stop_on_signal, say)
            trained = trainings.run(out / TRAINING, facts, known is not None)
    if base is not None and not trained.finished:
        say("stopped before its end; go on with the same command and --resume")
        return False
    tell_training(trained)
    if not trained.finished:
        as_it_is = f", or make a bundle of it as it is: nnet-edge export {out / TRAINING}" if folds is None else ""
        say(f"stopped after {trained.epochs} passes; go on with --resume{as_it_is}")
        return False
    preview.remove()
    exported = export_trained(out, options["false_rejects"], runner, options["margin"])
    if tracked is not None:
        tracked.figures |= figures_of(trained, exported)
    return True


def with_added(dataset: Dataset, added: Dataset) -> Dataset:
    """The dataset with the good images of another beside its own."""
    return replace(dataset, train=tuple(sorted({*dataset.train, *added.train})))


def prove_bundle(
    base: Path, out: Path, datasets: Sequence[Dataset], runner: RunnerSettings, options: Mapping[str, Any]
) -> bool:
    """Whether out/bundle rejects every defect of the datasets that `base` rejects; else it is put aside, and said."""
    from nnet_edge.evaluation.proof import prove
    from nnet_edge.scoring import in_counts

    proof = prove(base, out / BUNDLE, datasets, runner, options["skip_bad_images"])
    for line in proof.lines():
        say(line)
    refused = out / REFUSED
    shutil.rmtree(refused, ignore_errors=True)  # of an earlier run of this training
    if not proof.lost:
        return True
    (out / BUNDLE).rename(refused)
    say(
        f"the new bundle loses defects that the old one finds: it was put aside as {refused}, and {base} stays the one to use"
    )
    if (rate := proof.equal_rate) is not None:
        old, new = map(in_counts, proof.promised)
        say(
            f"its threshold promises fewer false rejects, {new}, than the old one's, {old}: run the same command with "
            f"--resume --false-rejects {ceil(1e4 * rate) / 1e4:g} to compare them at one rate"
        )
    return False


def export_trained(out: Path, false_rejects: float | None, runner: RunnerSettings, margin: float = 0.0) -> Exported:
    """Make out/bundle of the finished out/training."""
    from nnet_edge.export.bundling import export_bundle

    try:
        exported = export_bundle(out / TRAINING, out / BUNDLE, false_rejects, runner, True, say, margin)
    except KeyboardInterrupt:
        command_line = f"nnet-edge export {out / TRAINING} --out {out / BUNDLE}"
        say(f"the training is finished and kept; make its bundle with: {command_line}")
        raise
    tell_exported(exported)
    return exported


def start_folder(out: Path, resume: bool, force: bool, options: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint to resume, None for a new training.

    Raises ConfigError when `out` holds a training and neither resume nor force is given, or for settings with --resume.
    """
    from nnet_edge.training.checkpoint import CHECKPOINT, read_checkpoint

    folds = out / FOLDS  # until the last training of them has ended
    if resume and force:
        raise ConfigError("--resume and --force contradict each other: give one")
    given = [name for name in SETTING_OPTIONS if options.get(name)]
    if resume and given:
        names = ", ".join("--set" if name == "overrides" else f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"--resume goes on with the settings that the training began with: leave out {names}")
    if resume:
        return read_checkpoint(folds if (folds / CHECKPOINT).exists() else out / TRAINING)
    if any((folder / CHECKPOINT).exists() for folder in (out / TRAINING, folds)) and not force:
        choices = "go on with --resume, start again with --force, or choose another --out"
        raise ConfigError(f"{out} holds a training already: {choices}")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    for folder in (folds, out / PREVIEW):
        shutil.rmtree(folder, ignore_errors=True)
    return None


_method_options = grouped(
    "Training",
    click.option("--ablation", metavar="ROW", help="A row of the paper's tables, as 4.2 for Table 4 row 2 (default: none)."),
    shown_option("--seed", type=int, metavar="SEED", default=111, help="Of all that is drawn by chance."),
)  # fmt: skip
_held_out_options = grouped(
    "Held-out parts",
    shown_option("--together", type=click.Choice(["equal", "near"]), default="equal",
                 help="Images that show one part, to learn or to hold out as one: equal ones, or near copies, too."),
    shown_option("--groups", metavar="auto|none|FILE", default="auto",
                 help="Groups (parts, days, cameras) to learn or to hold out whole: a CSV table (file,group); auto: groups.csv "
                      "in the data, folders, or names as part_01_view2."),
    shown_option("--folds", type=int, metavar="TRAININGS", default=1,
                 help="Judge every image by a model that has not learned it: so many trainings more."),
)  # fmt: skip


@click.command("train", cls=Command, example="nnet-edge train photos/ --out runs/part")
@dataset_options
@click.option("--out", type=FOLDER, help="Where bundle and training go (default: runs/NAME OF DATA).")
@click.option("--force", is_flag=True, help="Replace what --out holds.")
@shown_option("--preview", type=click.Choice(["auto", "always", "never"]), default="auto",
              help="A bundle of the first pass, OUT/preview, to try meanwhile; auto: where five minutes are left.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option("--resume-from", type=FOLDER, metavar="BUNDLE",
              help="Learn on from what BUNDLE knows, of DATA, its photographs; or make it small: --protocol lean.")  # fmt: skip
@click.option("--add", type=FOLDER, metavar="DIR",
              help="Learn the good images of DIR too, as review --export wrote it.")  # fmt: skip
@click.option("--no-worse-than", type=FOLDER, metavar="BUNDLE",
              help="Put the bundle aside where it passes a defect in DATA or DIR that BUNDLE rejects.")  # fmt: skip
@log_option
@training_options
@_method_options
@_held_out_options
@threshold_options
@runner_precision_option
@runner_options
@nice_option
def command(**options: Any) -> int:
    """Learn from the good images of DATA and leave a bundle that stream and evaluate load.

    With --resume-from, as with --no-worse-than, what the old bundle rejects of the defects in DATA and DIR must be rejected
    by the new one too.
    """
    return learn(**options)[1]


def learn(data: Path, out: Path | None, resume: bool, force: bool, resume_from: Path | None, add: Path | None,
          no_worse_than: Path | None, trackers: tuple[str, ...], **options: Any) -> tuple[Path, int]:  # fmt: skip
    """Do what the command does; gives the folder that holds bundle and training, and the exit code."""
    from nnet_edge.bundle import read_bundle
    from nnet_edge.data.groups import find_groups
    from nnet_edge.data.images import fingerprint
    from nnet_edge.training.trackers.base import tracking

    if resume_from is not None and no_worse_than is not None:
        raise ConfigError("--resume-from proves its bundle's defects already: leave out --no-worse-than")
    settings, dataset = runner_settings(options), find_dataset(data, options)
    out, datasets, own = out or Path("runs") / dataset.category, [dataset], dataset.train
    before = resume_from or no_worse_than
    earlier = None if before is None else read_bundle(before)
    if before is not None and before.resolve() in [(out / name).resolve() for name in (BUNDLE, REFUSED, PREVIEW)]:
        raise ConfigError(f"--out {out} holds the bundle {before}, which must stay: give another folder")
    base = None if resume_from is None else earlier
    if base is not None and base.manifest["data"]["fingerprint"] != fingerprint(dataset.train):
        say(
            f"note: {resume_from} was trained on other photographs than {data}: what these do not show may be forgotten"
        )
    if add is not None:
        datasets.append(find_dataset(add, {**options, "layout": "auto", "category": None, "split_csv": None}))
        if options["groups"] == AUTO:
            options |= {"groups": NO_GROUPS}
            if find_groups(dataset, dataset.train) is not None:
                say(
                    f"note: {data} has groups and {add} names none: parts are held out one by one; --groups FILE names all"
                )
        dataset = with_added(*datasets)
    with tracking(trackers, out, say) as tracked:
        if not train_bundle(dataset, out, settings, resume, force, options, base, own, tracked):
            return out, EXIT_INTERRUPTED
    if before is not None and not prove_bundle(before, out, datasets, settings, options):
        return out, EXIT_FAILURE
    tell_bundle(out / BUNDLE)
    return out, 0
