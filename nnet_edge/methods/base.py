"""Method: all that training, export, bundle and runners know of N-Net and its siblings; METHODS holds them by name.

A method is a folder beside this file. Its `__init__` registers a Method; the rest is its network, its losses and its settings.
This file imports no torch, and a method's settings none either: the command line reads them before anything heavy is loaded.
"""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, get_type_hints

from nnet_edge.anomaly_map import SCALES, STRIDES, Fusion
from nnet_edge.errors import ConfigError
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.settings.augmentation import Augmentation
from nnet_edge.settings.registry import Registry
from nnet_edge.settings.runner import require_choice
from nnet_edge.settings.synthesis import Synthesis

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from typing_extensions import Self

    from nnet_edge.methods.backbone import Encoder, Features
    from nnet_edge.methods.compute import Compute


class ModelSettings(Protocol):
    """What every method's architecture states; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def backbone(self) -> str:
        """Of the teacher, a name in BACKBONES."""
        ...

    @property
    def fusion(self) -> Fusion:
        """How the layer maps become one map."""
        ...

    @property
    def map_strides(self) -> Mapping[str, int]:
        """Layer map -> pixels of the image to one of the map, in the order in which the network gives them."""
        ...


@dataclass(frozen=True)
class MethodSettings:
    """What every method is trained with: length, optimiser, schedule, augmentation. A method adds its own losses' weights."""

    method: ClassVar[str]  # its name in METHODS
    model_type: ClassVar[type[Any]]  # of `model`
    model: Any  # a ModelSettings
    epochs: int = 200
    image_steps: int = 0  # images shown in all, at most; above 0 it gives the epochs
    look_every: int = 0  # images shown between two validations, see early_stopping.py; 0: the length is fixed
    patience: int = 3  # validations in a row, clearly worse than the best, after which the training ends
    augmentation_copies: int = 0  # at most; above 0 augmentation.py chooses the augmentation on good images
    batch: int = 16
    learning_rate: float = 0.005  # A-12; the paper prints 0.05
    betas: tuple[float, float] = (0.5, 0.999)
    schedule: str = "constant"  # constant | cosine: the learning rate over the training
    ema_decay: float = 0.0  # of the weights' moving average, which is deployed; begins as (1 + n) / (10 + n); 0: none
    place_powers: tuple[float, ...] = ()  # of good parts' level at each place, tried at the end, see place_level.py
    global_gain: float = 1.0  # most that a whole picture's distance raises maps by, see global_distance.py; 1: unused
    seed: int = 111
    augmentation: Augmentation = field(default_factory=Augmentation)
    input: Geometry = field(default_factory=Geometry)  # its size, and how pictures get into it

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        self.input.require_input()
        require_choice("schedule", self.schedule, ("constant", "cosine"))
        require_at_least("epochs", self.epochs, 1)
        require_at_least("image_steps", self.image_steps, 0)
        require_at_least("look_every", self.look_every, 0)
        require_at_least("patience", self.patience, 1)
        require_at_least("augmentation_copies", self.augmentation_copies, 0)
        require_at_least("batch", self.batch, 2)  # batch norm in train mode has no variance over one image
        require_positive("learning_rate", self.learning_rate)
        if not all(0 < power <= 2 for power in self.place_powers):
            raise ConfigError(f"place_powers are {self.place_powers}; each must be above 0, at most 2")
        if not 1 <= self.global_gain <= 16:
            raise ConfigError(f"global_gain is {self.global_gain}; it must be from 1 (not used) to 16")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}; it must be from 0 to below 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}; Adam takes two from 0 to below 1")

    def with_length_for(self, images: int) -> Self:
        """The settings with the epochs that `image_steps` means for so many images, augmented copies included."""
        if not self.image_steps:
            return self
        return replace(self, epochs=max(1, round(self.image_steps / images)), image_steps=0)

    def as_deployed(self) -> Self:
        """The settings of the network that a training with these ends in."""
        return self

    def with_fusion(self, fusion: Fusion) -> Self:
        """The settings with the exponents of the fusion that was chosen."""
        return replace(self, model=replace(self.model, scale_exponents=fusion.exponents))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest and the checkpoint, without what is as it was before there was a choice."""
        values = asdict(self)
        if not self.place_powers:
            del values["place_powers"]
        if self.global_gain == 1:
            del values["global_gain"]
        if self.input == DEFAULT:
            del values["input"]
        if not self.augmentation.half_turns:
            del values["augmentation"]["half_turns"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The settings that `as_dict` wrote. Raise ConfigError for an unknown name or an invalid value."""
        try:
            return _built(cls, values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"settings of another version of nnet-edge: {error}") from error

    def overridden(self, change: str) -> Self:
        """The settings with one changed, as "model.memory_slots=50", "augmentation.copies=4" or "kd_weight=0".

        Raises ConfigError for an unknown name or a value of another kind.
        """
        name, equals, text = change.partition("=")
        part, _, inner = name.strip().rpartition(".")
        parts = [item.name for item in fields(self) if is_dataclass(getattr(self, item.name)) and item.name != "input"]
        if (part or inner) == "input":
            raise ConfigError(f"--set {change}: the input is set by --size and --fit")
        if not equals or part not in ("", *parts):
            places = ", ".join(f"{place}.NAME=VALUE" for place in parts)
            raise ConfigError(f"--set {change}: write NAME=VALUE, or {places}")
        target: Any = getattr(self, part) if part else self
        known = [item.name for item in fields(target) if not is_dataclass(getattr(target, item.name))]
        if inner not in known:
            raise ConfigError(f"--set {change}: there is no setting {name}; known are {', '.join(known)}")
        changed = replace(target, **{inner: _parse(change, text.strip(), getattr(target, inner))})
        return replace(self, **{part: changed}) if part else changed


@dataclass(frozen=True)
class PairSettings(MethodSettings):
    """What a method that learns from pairs of a good and a damaged image is trained with."""

    synthesis: Synthesis = field(default_factory=Synthesis)


def _built(kind: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass with these plain values, dataclasses and tuples in it made again."""
    types = get_type_hints(kind)
    made: dict[str, Any] = {}
    for name, value in values.items():
        inner: Any = kind.model_type if name == "model" else types[name]
        if isinstance(value, Mapping) and is_dataclass(inner):
            made[name] = _built(inner, value)
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
    return kind(**made)


def _parse(change: str, text: str, present: object) -> object:
    try:
        if isinstance(present, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(present, tuple):
            return tuple(float(value) for value in text.split(",") if value.strip())
        return type(present)(text)  # type: ignore[call-arg]
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--set {change}: the value must be of the kind of {present!r}") from error


def three_maps(*branches: str) -> dict[str, int]:
    """The layer maps of these branches at all three scales -> their strides, branch by branch."""
    return {f"{branch}_{scale}": stride for branch in branches for scale, stride in zip(SCALES, STRIDES, strict=True)}


def require_at_least(name: str, value: int, least: int) -> None:
    """Raise ConfigError unless `value` is `least` or more."""
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")


def require_not_negative(name: str, value: float) -> None:
    """Raise ConfigError unless `value` is a finite number, 0 or more."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} is {value}; it must be 0 or more")


def require_positive(name: str, value: float) -> None:
    """Raise ConfigError unless `value` is a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value}; it must be a number above 0")


@dataclass(frozen=True)
class Batch:
    """What a training step is given, on the network's device."""

    images: Tensor  # good images, normalised, float (N, 3, H, W)
    teacher: Features  # their feature maps
    anomalous: Tensor | None = None  # the same images with a synthetic anomaly; None for methods that need no pairs
    masks: Tensor | None = None  # where the anomaly is, bool (N, 1, H, W)
    draw: tuple[int, int] = (0, 0)  # seed and step of the training: all that a method draws comes from them


class Fusing(Protocol):
    """A network that gives layer maps, as methods/network.py makes them."""

    @property
    def map_fusion(self) -> Fusion:
        """How its layer maps become one map."""
        ...


Net = TypeVar("Net", bound=Fusing)
Settings = TypeVar("Settings", bound=MethodSettings)


class CompressionWords(NamedTuple):
    """How a compression, or a learning on, is called."""

    fact: str  # its key among the facts of a training
    shown: str  # with its progress
    aim: str  # half a sentence


SMALLER = CompressionWords("compression", "making it small", "a smaller network learns now to do what this one does")
LEARNS_ON = CompressionWords("learning_on", "learning on", "it learns on, and keeps what it does on damage")


class Compressor(ABC, Generic[Net, Settings]):
    """What makes a trained network small: a smaller one learns to imitate it on `images` in all, `batch` a step.

    One of the same size learns on: good parts from the teacher, and where a defect is to do what it did.
    """

    images: int
    batch: int
    anomalous: int  # of a batch, the first ones, have a painted anomaly
    is_smaller: bool  # whether the network becomes smaller, or learns on

    @property
    def words(self) -> CompressionWords:
        """How it is called."""
        return SMALLER if self.is_smaller else LEARNS_ON

    @abstractmethod
    def begin(self, network: Net, images: np.ndarray, compute: Compute) -> tuple[Net, Settings]:
        """A smaller network with what `network` learned, in evaluation mode, and its settings, which ask for no compression.

        What shall not learn any more needs no gradient. `images` are good ones, uint8 RGB (N, H, W, 3).
        """

    @abstractmethod
    def losses(self, small: Net, whole: Net, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss of `small`, by name: it imitates `whole`; computed under autocast."""


class Method(ABC, Generic[Net, Settings]):
    """A way to learn from good parts. The maps that its graph gives and how they are fused are in its model settings."""

    name: str  # as in manifests and graphs ("system")
    title: str  # as people write it
    origin: str  # where it comes from, and how far it is what was published; for help, docs and manifest
    settings: type[Settings]
    protocols: Mapping[str, Settings]  # named settings; "tuned" is what `train` takes
    paper_learning_rate: float | None = None  # that its paper prints, where nobody would take it
    sees_masks = False  # whether a loss is told where synthetic anomalies are: how well it finds such then says little
    ablations: Mapping[str, tuple[Any, ...]] = {}  # rows of its paper's tables: a name first
    losses_shown: tuple[str, ...]  # the terms of its loss, in the log's order
    validated_loss: str  # the one of them that is measured on held-out good images

    @property
    def hyperparameters(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What only it can be changed in, for `bench levers`: `hyperparameters.json` beside its class, empty without one."""
        path = Path(inspect.getfile(type(self))).with_name("hyperparameters.json")
        known: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return known

    def needs_pairs(self, settings: Settings) -> bool:
        """Whether its batches hold synthetic anomalies and their masks beside the good images."""
        return False

    @abstractmethod
    def build(self, model: Any, teacher: Encoder) -> Net:
        """The network of these model settings, everything but the teacher at random."""

    def ablated(self, settings: Settings, row: str) -> Settings:
        """`settings` changed to a row of the tables of the method's paper. Raises ConfigError for an unknown row."""
        raise ConfigError(f"--ablation {row}: there are no tables to ablate for {self.title}; use --set")

    def can_capture(self, settings: Settings) -> bool:
        """Whether a step asks nothing of the host, neither for numbers nor for a draw: then it can be a CUDA graph."""
        return False

    def phase(self, settings: Settings, epoch: int) -> int:
        """Which steps are alike: those of epochs (from 0) of one phase have the same terms of the loss."""
        return epoch

    def validates_from(self, settings: Settings) -> int:
        """The epoch (from 0) from which early stopping may score the weights: before it a part has not learned at all."""
        return 0

    def prepare(self, network: Net, images: np.ndarray, compute: Compute) -> None:
        """Prepare what the teacher's features depend on, by uint8 RGB images (N, H, W, 3), before they are cached."""

    def prepare_students(self, network: Net, features: Features, settings: Settings) -> None:
        """Prepare what learns, by the cached features of all images (N, C, h, w), before the first step."""

    def begin_epoch(self, network: Net, settings: Settings, epoch: int) -> None:
        """Choose what trains and what evaluates in `epoch` (from 0); the network is in training mode."""

    @abstractmethod
    def forward(self, network: Net, batch: Batch, settings: Settings) -> Any:
        """What the losses compare; computed under autocast, compiled where that is asked for.

        A batch of held-out good images has no pairs, whatever the method; the network is in evaluation mode then.
        """

    @abstractmethod
    def losses(self, compared: Any, settings: Settings, epoch: int) -> dict[str, Tensor]:
        """The weighted terms of the loss that are active in `epoch` (from 0), by name; their sum is the loss."""

    def check(self, compared: Any, settings: Settings, where: str) -> str | None:
        """Why the training must end before the step `where`, and what to change; None while all is well."""
        return None

    def parameter_groups(self, settings: Settings) -> dict[str, float]:
        """Prefix of parameter names -> their learning rate as a share of the others'; each is a group of the optimiser."""
        return {}

    def compressor(self, settings: Settings) -> Compressor[Net, Settings] | None:
        """What makes the network small at the end of a training; None: it stays as it is."""
        return None

    def learning_on(
        self, settings: Settings, images: int, passes: int | None, batch: int | None, protocol: str | None = None
    ) -> Settings | None:
        """The settings by which a trained network learns on, with a compressor that makes it no smaller; None: as if new.

        There are so many good `images`; `passes` over them and images a step only where they were asked for. With the name of a
        `protocol` it becomes as small as that makes a network. Raises ConfigError for one that makes none smaller.
        """
        return None

    def settle(self, network: Net, held_out: np.ndarray, compute: Compute) -> Fusion:
        """The fusion that suits these weights; by default the settings' own.

        `held_out` are good images that were not learned from, uint8 RGB (N, H, W, 3), or the tiles of each (N, T, H, W, 3).
        """
        return network.map_fusion


METHODS: Registry[Method[Any, Any]] = Registry("method", "nnet_edge.methods")
DEFAULT_METHOD = "nnet"  # also that of checkpoints of 0.1, which knew no other


def find_method(name: object, made: str = "") -> Method[Any, Any]:
    """The method called `name`; `made` is what was made by it, where that is known. Raises ConfigError for an unknown one."""
    if made and name not in METHODS.names():
        known = ", ".join(METHODS.names())
        raise ConfigError(f"{made} was made by a newer nnet-edge: method {name!r}; this one knows {known}: upgrade it")
    return METHODS.find(name)
