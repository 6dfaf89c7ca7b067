"""What a training is asked for: settings of its method and how it is computed, out of options, a bundle or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nnet_edge.cli.view import say
from nnet_edge.errors import ConfigError, TrainingError
from nnet_edge.geometry import Geometry, parse_size
from nnet_edge.settings.runner import require_choice

if TYPE_CHECKING:
    from nnet_edge.bundle import Bundle
    from nnet_edge.data.training_data import TrainingData
    from nnet_edge.methods.base import MethodSettings
    from nnet_edge.training.checkpoint import Checkpoint
    from nnet_edge.training.loop import TrainOptions
    from nnet_edge.training.start import Learned

AUTO = "auto"  # of --method, --backbone and --groups: chosen by what the data are
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
