"""`nnet-edge train`: train on good images and export the bundle."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
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
from nnet_edge.cli.view import say, say_in_detail, stop_on_signal, training_bar, warn
from nnet_edge.errors import EXIT_FAILURE, EXIT_INTERRUPTED, ConfigError, TrainingError
from nnet_edge.geometry import Geometry, parse_size
from nnet_edge.settings.runner import require_choice

if TYPE_CHECKING:
    from typing_extensions import Self

    from nnet_edge.bundle import Bundle
    from nnet_edge.data.images import Dataset, TrainingData
    from nnet_edge.export.bundling import Exported
    from nnet_edge.methods.base import MethodSettings
    from nnet_edge.settings.runner import RunnerSettings
    from nnet_edge.training.checkpoint import Checkpoint
    from nnet_edge.training.loop import Progress, Trained, TrainOptions
    from nnet_edge.training.start import Learned
    from nnet_edge.training.trackers.base import Tracking


BUNDLE, TRAINING, CANDIDATES, FOLDS, PREVIEW = "bundle", "training", "candidates", "folds", "preview"
PREVIEW_LEFT_S = 300.0  # of a training: a shorter one is nearly as soon at its own bundle
REFUSED = "bundle-refused"  # a bundle that loses defects which the one before finds
NO_GROUPS = "none"  # of --groups
AUTO = "auto"  # of --method and --backbone: chosen on good parts
SETTING_OPTIONS = (  # fixed by the first run of a training
    "method", "protocol", "backbone", "ablation", "epochs", "batch", "learning_rate", "paper_lr", "textures", "overrides",
    "teacher_weights", "size", "fit", "tiles", "overlap", "crop",
)  # fmt: skip


def choose_settings(options: Mapping[str, Any]) -> MethodSettings:
    """The training settings that the options stand for. Raises ConfigError for options that contradict each other."""
    from nnet_edge.methods.base import DEFAULT_METHOD, METHODS

    named = options["method"] or DEFAULT_METHOD
    if AUTO in (named, options["backbone"]):
        raise ConfigError(f"{AUTO} for --method or --backbone belongs to nnet-edge train")
    method = METHODS.find(named, "--method")
    protocol = options["protocol"] or "tuned"
    require_choice(f"--protocol of {method.title}", protocol, tuple(method.protocols))
    settings: MethodSettings = method.protocols[protocol]
    backbone = options["backbone"] or settings.model.backbone
    settings = replace(settings, model=replace(settings.model, backbone=backbone), seed=options["seed"])
    if options.get("ablation") is not None:
        settings = method.ablated(settings, options["ablation"])
    if options["paper_lr"] and options["learning_rate"] is not None:
        raise ConfigError("--paper-lr and --learning-rate contradict each other: give one")
    if options["paper_lr"] and method.paper_learning_rate is None:
        raise ConfigError(f"--paper-lr: no paper of {method.title} prints a learning rate; give --learning-rate")
    learning_rate = method.paper_learning_rate if options["paper_lr"] else options["learning_rate"]
    given = {"epochs": options["epochs"], "batch": options["batch"], "learning_rate": learning_rate}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    if options["epochs"] is not None:
        settings = replace(settings, image_steps=0, look_every=0)
    size = settings.input.size if options["size"] is None else parse_size(options["size"])
    settings = replace(settings, input=Geometry(*size, options["fit"] or "squeeze"))
    if options["textures"] is not None:
        if not method.needs_pairs(settings):
            raise ConfigError(
                f"--textures: {method.title} as it is set learns without synthetic anomalies; leave it out"
            )
        settings = settings.overridden(f"synthesis.textures={options['textures']}")
    names = [change.partition("=")[0].strip() for change in options["overrides"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--set {twice[0]} was given twice: say it once")
    for change in options["overrides"]:
        settings = settings.overridden(change)
    return settings


def candidates_of(options: Mapping[str, Any]) -> list[MethodSettings]:
    """The settings to choose among; one where nothing is left open. Raises ConfigError for what suits one method only."""
    if AUTO not in (options["method"], options["backbone"]):
        return [choose_settings(options)]
    from nnet_edge.methods.base import METHODS
    from nnet_edge.methods.teacher_weights import installed_backbones

    if given := [name for name in ("ablation", "paper_lr", "epochs") if options.get(name)]:
        raise ConfigError(f"--{given[0].replace('_', '-')} and {AUTO} contradict each other: name the method")
    if options["backbone"] == AUTO and options["teacher_weights"]:
        raise ConfigError(f"--teacher-weights are of one backbone: leave them out, or name it in place of {AUTO}")
    methods: tuple[str, ...] = (options["method"],)
    if options["method"] == AUTO:
        methods = tuple(one.name for one in METHODS if not one.sees_masks)
        left_out = ", ".join(one.name for one in METHODS if one.sees_masks)
        say(f"{left_out} learns where synthetic anomalies are, so they cannot judge it: left out of the choice")
    backbones = installed_backbones() if options["backbone"] == AUTO else (options["backbone"],)
    return [
        choose_settings({**options, "method": method, "backbone": backbone})
        for method in methods
        for backbone in backbones
    ]


def train_bundle(
    dataset: Dataset, out: Path, runner: RunnerSettings, resume: bool, force: bool, options: Mapping[str, Any],
    base: Bundle | None = None, own: Sequence[Path] = (), tracked: Tracking | None = None,
) -> bool:  # fmt: skip
    """Train on `dataset`, on from the bundle `base` where one is given, and write out/training and out/bundle.

    `own` are its good images without those that are added to what `base` learned. False when it was stopped before its end.
    """
    from nnet_edge.bits import kept_bits
    from nnet_edge.bundle import id_of
    from nnet_edge.data.before import Before, seen_before
    from nnet_edge.data.images import load_training_data
    from nnet_edge.data.seen import settle_input
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
    seen = Before() if base is None else seen_before(base.manifest["data"], dataset.train, own)
    data = load_training_data(
        dataset, settings.seed, options["hold_out"], options["skip_bad_images"], together=options["together"], bits=bits,
        groups=options["groups"], folds=options["folds"], geometry=geometry, learned_before=seen.learned,
        held_out_before=seen.held_out,
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
        preview = stack.enter_context(Preview(out, options))
        report = preview.watching(report)
        if tracked is not None:
            tracked.begin(settings.as_dict())
            computed = replace(computed, on_row=tracked.add)
        before = None if base is None else learned_by(base, options["epochs"], options["batch"], options["protocol"])
        if folds is None or (known is not None and "factors" in known.facts["data"]):
            trained = train(data.learned, data.held_out, settings, out / TRAINING, computed, facts, known, report,
                            stop_on_signal, say, before)  # fmt: skip
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


class Preview:
    """A bundle of the training as it is after its first pass, made by a process of its own: nothing of the training changes.

    A context manager, whose end ends that process. `--preview auto` makes one where the training has minutes left.
    """

    def __init__(self, out: Path, options: Mapping[str, Any]) -> None:
        self._folder, self._training, self._wanted = out / PREVIEW, out / TRAINING, options["preview"]
        given = {"--false-rejects": options["false_rejects"], "--margin": options["margin"] or None}
        self._more = [text for name, value in given.items() if value is not None for text in (name, f"{value:.9g}")]
        self._earlier = self._changed_ns()
        self._process: subprocess.Popen[str] | None = None
        self._is_over = self._wanted == "never"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def watching(self, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """The report of a training's progress, which lets the preview begin and be told of, too."""

        def watch(progress: Progress) -> None:
            report(progress)
            if self._process is not None and self._process.poll() is not None:
                self._tell(self._process)
            elif not self._is_over and progress.epoch > 1 and self._is_fresh():
                self._is_over = True
                if self._wanted == "always" or progress.seconds_left >= PREVIEW_LEFT_S:
                    self._begin()

        return watch

    def remove(self) -> None:
        """Take the preview away: its training has ended."""
        self.__exit__()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_fresh(self) -> bool:
        """Whether the checkpoint is one of this training."""
        return self._changed_ns() not in (None, self._earlier)

    def _changed_ns(self) -> int | None:
        """When the checkpoint was written; None where there is none."""
        from nnet_edge.training.checkpoint import CHECKPOINT

        path = self._training / CHECKPOINT
        return path.stat().st_mtime_ns if path.is_file() else None

    def _begin(self) -> None:
        words = ["export", str(self._training), "--out", str(self._folder), "--force", "--threads", "1", "--nice", "19"]
        program = [sys.executable, "-c", "import nnet_edge.cli as cli; cli.main()", *words, "--quiet", *self._more]
        self._process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def _tell(self, process: subprocess.Popen[str]) -> None:
        _, said = process.communicate()
        self._process = None
        if process.returncode:
            say(f"note: no preview, the training goes on: {(said.strip().splitlines() or ['its export failed'])[-1]}")
        else:
            say(f"a preview of the bundle, to try while it learns on: nnet-edge stream 0 --bundle {self._folder}")


def figures_of(trained: Trained, exported: Exported) -> dict[str, float]:
    """What a finished training is compared by."""
    threshold = exported.bundle.threshold
    figures = {"epochs": trained.epochs, "seconds": trained.seconds, "threshold": threshold.value,
               "expected_false_rejects": threshold.expected_false_rejects}  # fmt: skip
    if trained.validation is not None and trained.validation.kept is not None:
        figures["synthetic_pixel_ap"] = trained.validation.kept
    return figures


def settings_of(base: Bundle, options: Mapping[str, Any]) -> MethodSettings:
    """The settings that the bundle was trained with, and the length that was asked for. Raises ConfigError."""
    from nnet_edge.methods.base import find_method

    method = find_method(base.method, str(base.path))
    settings: MethodSettings = method.settings.from_dict(base.manifest["train"])
    learns_on = method.learning_on(settings, 1, options["epochs"], options["batch"], options["protocol"]) is not None
    allowed = ("epochs", "batch", "learning_rate", *(["protocol"] if learns_on else []))
    given = [name for name in SETTING_OPTIONS if options.get(name) and name not in allowed]
    if given or options["folds"] > 1:
        names = ", ".join("--set" if name == "overrides" else f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"--resume-from goes on with the settings of its bundle: leave out {names or '--folds'}")
    # where it learns on, passes and batch are those of what comes now, see `learned_by`
    own = ("learning_rate",) if learns_on else ("epochs", "batch", "learning_rate")
    asked = {name: options[name] for name in own if options[name] is not None}
    return replace(settings, **asked, seed=options["seed"])


def learned_by(
    base: Bundle, passes: int | None = None, batch: int | None = None, protocol: str | None = None
) -> Learned:
    """The bundle's weights; how many passes of how large batches were asked for, and by which protocol it is to be small."""
    from safetensors.torch import load

    from nnet_edge.training.start import Learned

    return Learned(load(base.read(base.weights.name)), base.manifest["teacher"], passes, batch, protocol)


def with_added(dataset: Dataset, added: Dataset) -> Dataset:
    """The dataset with the good images of another beside its own."""
    return replace(dataset, train=tuple(sorted({*dataset.train, *added.train})))


def prove_bundle(
    base: Path, out: Path, datasets: Sequence[Dataset], runner: RunnerSettings, options: Mapping[str, Any]
) -> bool:
    """Whether out/bundle rejects every defect of the datasets that `base` rejects; else it is put aside, and said."""
    from nnet_edge.evaluation.proof import prove

    proof = prove(base, out / BUNDLE, datasets, runner, options["skip_bad_images"])
    for line in proof.lines():
        say(line)
    if not proof.lost:
        return True
    refused = out / REFUSED
    shutil.rmtree(refused, ignore_errors=True)
    (out / BUNDLE).rename(refused)
    say(
        f"the new bundle loses defects that the old one finds: it was put aside as {refused}, and {base} stays the one to use"
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


def tell_exported(exported: Exported) -> None:
    """Say whether the runners agree, what the threshold means, and what to do with the bundle; in detail by how much."""
    bundle, parities = exported.bundle, exported.parities
    if parities:  # those that did not hold left no bundle
        names = " and ".join(parity.runner for parity in parities)
        say(f"{names} gave the verdicts of the training on {parities[0].images} photographs that it did not learn")
    for parity in parities:
        say_in_detail(parity.sentence())
    say(bundle.threshold.sentence())
    for line in (*exported.warnings, *bundle.warnings):
        warn(line)
    say(f"bundle: {bundle.path}")
    say(f"next: nnet-edge stream 0 --bundle {bundle.path} (0: the first camera; or a folder)")


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


def known_settings(checkpoint: Checkpoint, data: TrainingData) -> MethodSettings:
    """The settings of a resumed training. Raises TrainingError when the images are not those it began with."""
    began_with, now = checkpoint.facts["data"], data.facts
    for name in ("fingerprint", "held_out", "seed", "together", "folds", "groups", "goes_on_from"):
        if began_with.get(name, now[name]) != now[name]:  # 0.1.0 knew no "together"
            raise TrainingError(
                f"--resume: the training began with other data ({name} was {began_with[name]}, is {now[name]}); "
                "give the same DATA, --seed, --hold-out, --together, --groups, --folds and --resume-from, or start again "
                "with --force"
            )
    return checkpoint.settings


def bits_as_before(bits: int | None, checkpoint: Checkpoint) -> int | None:
    """The bits of the pictures that the training began with. Raises ConfigError for others."""
    from nnet_edge.bits import kept_bits

    began_with = kept_bits(checkpoint.facts)
    if bits not in (None, began_with):
        raise ConfigError(f"--resume: the training began with {began_with or 8} bits; leave out --bits {bits}")
    return began_with


def as_before(options: TrainOptions, checkpoint: Checkpoint) -> TrainOptions:
    """The options with the precision that the training began with. Raises ConfigError for another one."""
    precision = checkpoint.facts["precision"]
    if options.precision not in ("auto", precision):
        raise ConfigError(f"--resume: the training began in {precision}; leave out --precision {options.precision}")
    return replace(options, precision=precision)


def train_options(options: Mapping[str, Any]) -> TrainOptions:
    """How the command line wants the training computed."""
    from nnet_edge.training.loop import TrainOptions

    if options["checkpoint_every"] is not None and options["checkpoint_every"] < 1:
        raise ConfigError(f"--checkpoint-every {options['checkpoint_every']}: give at least 1 epoch")
    if not options["feature_memory"] >= 0:
        raise ConfigError(f"--feature-memory {options['feature_memory']}: give 0 or more GiB")
    names = ("device", "precision", "compile", "deterministic", "checkpoint_every", "teacher_weights")
    memory_limit = int(options["feature_memory"] * 2**30)
    return TrainOptions(memory_limit=memory_limit, **{name: options[name] for name in names})


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
              help="With --resume-from: learn the good images of DIR too, as review --export wrote it.")  # fmt: skip
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

    With --resume-from, what the old bundle rejects of the defects in DATA and DIR must be rejected by the new one too.
    """
    return learn(**options)[1]


def learn(data: Path, out: Path | None, resume: bool, force: bool, resume_from: Path | None, add: Path | None,
          trackers: tuple[str, ...], **options: Any) -> tuple[Path, int]:  # fmt: skip
    """Do what the command does; gives the folder that holds bundle and training, and the exit code."""
    from nnet_edge.bundle import read_bundle
    from nnet_edge.data.images import fingerprint
    from nnet_edge.training.trackers.base import tracking

    if add is not None and resume_from is None:
        raise ConfigError(f"--add {add} belongs to --resume-from: name the bundle to go on from")
    settings, dataset = runner_settings(options), find_dataset(data, options)
    out, base, datasets = out or Path("runs") / dataset.category, None, [dataset]
    own = dataset.train
    if resume_from is not None:
        base = read_bundle(resume_from)
        if (out / BUNDLE).resolve() == resume_from.resolve():
            raise ConfigError(f"--out {out} holds the bundle to go on from: give another folder")
        if base.manifest["data"]["fingerprint"] != fingerprint(dataset.train):
            say(
                f"note: {resume_from} was trained on other photographs than {data}: what these do not show may be forgotten"
            )
        if add is not None:
            datasets.append(find_dataset(add, {**options, "layout": "auto", "category": None, "split_csv": None}))
            options |= {"groups": NO_GROUPS} if options["groups"] == AUTO else {}
            dataset = with_added(*datasets)
    with tracking(trackers, out, say) as tracked:
        if not train_bundle(dataset, out, settings, resume, force, options, base, own, tracked):
            return out, EXIT_INTERRUPTED
    if resume_from is not None and not prove_bundle(resume_from, out, datasets, settings, options):
        return out, EXIT_FAILURE
    return out, 0
