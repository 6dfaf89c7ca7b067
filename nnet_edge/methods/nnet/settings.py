"""Settings of N-Net: its architecture and losses, the named protocols, and the paper's ablation rows.

Every point that the paper leaves open is a setting here; its default is the specification's resolution (A-1 to A-15).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from nnet_edge.anomaly_map import Fusion
from nnet_edge.errors import ConfigError
from nnet_edge.methods.base import MethodSettings, require_at_least, require_not_negative, require_positive, three_maps
from nnet_edge.settings.runner import require_choice


@dataclass(frozen=True)
class ModelSettings:
    """The architecture of N-Net and the maps that it fuses."""

    backbone: str = "efficientnet_lite0"
    use_fpm: bool = True  # feature projection modules, section 3
    use_nfs: bool = True  # normal feature storage, section 4
    use_ffc: bool = True  # False: the bottleneck of reverse distillation (RD4AD) instead, the baseline of Table 5
    use_forward: bool = True  # forward branch (bidirectional distillation, BD); False leaves the reverse one
    maps: str = "both"  # both | reverse | forward: the layer maps that are fused, Table 7
    fpm_reduction: int = 32  # A-2
    fpm_mid: str = "bn_hswish"  # bn_hswish | none, A-1
    memory_slots: int = 512  # A-4
    memory_temperature: float = 1.0
    memory_lambda_times_slots: float = 1.0  # shrinkage threshold lambda = this / slots; 2 and more kills the memory
    memory_addressing: str = "cos_softmax"  # cos_softmax | dot_softmax | cos_relu
    memory_init: str = "uniform"  # uniform | features (drawn at random) | coreset (greedy k-centre of the features)
    recall_residual: bool = False  # D3 = F3' + gain * D3: the reverse student corrects what the memory recalls
    anchor: float = 0.0  # of the cosines: a constant channel of this many deviations; 0: the paper's cosine
    forward_p3_source: str = "recalled"  # recalled | raw, A-5
    residual_blocks: int = 4  # L, A-8
    forward_map: str = "projected"  # projected | student: P against SP or against SF (Table 6, row 3)
    decoder_order: str = "encoder"  # encoder (3, 4, 6) | mirrored (6, 4, 3), A-9
    decoder_depth: int = 0  # blocks of a stage of the reverse student, at most; 0: all of them
    student_width: float = 1.0  # inner width of the forward student's blocks, as a share of the teacher's
    student_depths: tuple[float, ...] = (0, 0, 0)  # blocks of its stages (strides 4, 8, 16) that keep the shape; 0: all
    shared_stem: bool = False  # the forward student begins with what the teacher's stem gives, and has none of its own
    align_corners: bool = True  # A-14
    scale_exponents: tuple[float, ...] = (1.0, 1.0, 1.0)  # of the fused scales 64, 32, 16; all ones: equation 8
    exponent_power: float = 0.0  # above 0: the exponents are chosen on good images, see fusion_search.py
    forward_weights: tuple[float, ...] = (1.0, 1.0, 1.0)  # of the forward maps in the sums of the scales 64, 32, 16
    standardise: bool = False  # teacher's channels to mean 0 and deviation 1 over the good images before anything else

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        require_choice("maps", self.maps, ("both", "reverse", "forward"))
        require_choice("fpm_mid", self.fpm_mid, ("bn_hswish", "none"))
        require_choice("memory_addressing", self.memory_addressing, ("cos_softmax", "dot_softmax", "cos_relu"))
        require_choice("memory_init", self.memory_init, ("uniform", "features", "coreset"))
        require_choice("forward_p3_source", self.forward_p3_source, ("recalled", "raw"))
        require_choice("forward_map", self.forward_map, ("projected", "student"))
        require_choice("decoder_order", self.decoder_order, ("encoder", "mirrored"))
        for name in ("fpm_reduction", "memory_slots", "residual_blocks"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("decoder_depth", self.decoder_depth, 0)
        if len(self.student_depths) != 3 or not all(
            depth >= 0 and depth == int(depth) for depth in self.student_depths
        ):
            raise ConfigError(f"student_depths are {self.student_depths}: give three whole numbers, 0 for all blocks")
        require_positive("student_width", self.student_width)
        if self.student_width > 1:
            raise ConfigError(f"student_width is {self.student_width}: it is a share of the teacher's, from 0 to 1")
        require_positive("memory_temperature", self.memory_temperature)
        require_not_negative("memory_lambda_times_slots", self.memory_lambda_times_slots)
        require_not_negative("anchor", self.anchor)
        require_not_negative("exponent_power", self.exponent_power)
        self.fusion  # noqa: B018 - raises for invalid exponents
        if self.anchor and not self.standardise:
            raise ConfigError("anchor needs standardised features, whose mean length is known: set standardise to true")
        if self.recall_residual and not self.use_nfs:
            raise ConfigError("recall_residual needs the memory: leave use_nfs on")
        if self.maps == "forward" and not self.use_forward:
            raise ConfigError("maps 'forward' needs the forward branch: leave use_forward on")

    @property
    def fusion(self) -> Fusion:
        """How the layer maps become one map."""
        return Fusion(self.align_corners, self.scale_exponents, self.forward_weights)

    @property
    def map_strides(self) -> dict[str, int]:
        """Layer map -> its stride, for those that `maps` names, in the order of LAYER_MAPS."""
        branches = {"both": ("forward", "reverse"), "reverse": ("reverse",), "forward": ("forward",)}[self.maps]
        if not self.use_forward:
            branches = ("reverse",)
        return three_maps(*branches)


@dataclass(frozen=True)
class Compression:
    """What the trained network becomes at the end of its training: a smaller one that imitates it, see compression.py."""

    images: int = 0  # shown in all; 0: it stays as it is
    batch: int = 4  # images a step
    anomalous: float = 0.25  # share of them with a painted anomaly, on which the small network follows the trained one
    student_width: float = 0.5  # what is small: settings of the model of these names
    student_depths: tuple[float, ...] = (1, 1, 1)
    shared_stem: bool = True
    residual_blocks: int = 2

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting; those of the model are checked with it."""
        require_at_least("compression.images", self.images, 0)
        require_at_least("compression.batch", self.batch, 2)  # batch norm has no variance over one image
        if not 0 <= self.anomalous < 1:
            raise ConfigError(f"compression.anomalous is {self.anomalous}; it must be from 0 to below 1")

    def of(self, model: ModelSettings) -> ModelSettings:
        """The model made small. Raises ConfigError where one of its settings is invalid."""
        small = {name: getattr(self, name) for name in SMALLER}
        try:
            return replace(model, **small)
        except ConfigError as error:  # of one of them, which it begins with
            raise ConfigError(f"compression.{error}") from error


@dataclass(frozen=True)
class TrainSettings(MethodSettings):
    """What N-Net is trained with: the losses of equations 1 to 7 beside what every method has."""

    method = "nnet"
    model_type = ModelSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    kd_weight: float = 1.2  # alpha of equation 7, forward distillation
    align_weight: float = 1.0  # beta of equation 3
    align_epochs: int = 20  # beta is 0 afterwards; with image_steps a tenth of the epochs
    query_weight: float = 0.002  # delta of equation 7, entropy of the memory's weights
    distance: str = "pixel"  # pixel | global, A-10
    memory_rate: float = 1.0  # learning rate of the memory, as a share of the others'
    projection_rate: float = 1.0  # that of the feature projection modules (RD++ gives its projections a fifth)
    compression: Compression = field(default_factory=Compression)

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        super().__post_init__()
        require_choice("distance", self.distance, ("pixel", "global"))
        for name in ("kd_weight", "align_weight", "query_weight", "memory_rate", "projection_rate"):
            require_not_negative(name, getattr(self, name))
        require_at_least("align_epochs", self.align_epochs, 0)
        if self.distance == "global" and self.model.anchor:
            raise ConfigError("distance 'global' has no positions that an anchor could steady: set model.anchor to 0")
        if self.compression.images:
            self.check_compression()

    def check_compression(self) -> None:
        """Raise ConfigError where the model cannot become what the compression makes of it."""
        small = self.compression.of(self.model)
        if small != self.model and any(getattr(self.model, name) != getattr(ModelSettings, name) for name in STUDENT):
            raise ConfigError(
                "compression begins with a forward student of full size: leave model.student_width, model.student_depths and "
                "model.shared_stem alone, or set compression.images to 0"
            )
        if small.residual_blocks > self.model.residual_blocks:
            raise ConfigError(
                f"compression.residual_blocks is {small.residual_blocks}, more than the model's {self.model.residual_blocks}"
            )

    def as_dict(self) -> dict[str, Any]:
        """As of every method, without the parts of the model that are as they were before there was a choice."""
        values = super().as_dict()
        for name in YOUNGER:
            if values["model"][name] == getattr(ModelSettings, name):
                del values["model"][name]
        if self.compression == Compression():
            del values["compression"]
        return values

    def with_length_for(self, images: int) -> TrainSettings:
        """The settings with the epochs that `image_steps` means for so many images; the first tenth of them aligns."""
        if not self.image_steps:
            return self
        settings = super().with_length_for(images)
        return replace(settings, align_epochs=max(1, round(settings.epochs / 10)))

    def learning_on(self, images: int, batch: int | None, wanted: Compression | None = None) -> TrainSettings:
        """The settings by which a network that was trained by these learns on: a compression to what it is, or as `wanted`."""
        wanted = wanted or Compression(**{name: getattr(self.model, name) for name in SMALLER})
        return replace(self, compression=replace(wanted, images=images, batch=wanted.batch if batch is None else batch))

    def as_deployed(self) -> TrainSettings:
        """As of every method; where there is a compression, those of the smaller network, which ask for none."""
        if not self.compression.images:
            return self
        return replace(self, model=self.compression.of(self.model), compression=Compression())

    def overridden(self, change: str) -> TrainSettings:
        """As of every method; exponents that are named are not chosen: model.scale_exponents sets model.exponent_power to 0."""
        changed = super().overridden(change)
        if change.partition("=")[0].strip() != "model.scale_exponents":
            return changed
        return replace(changed, model=replace(changed.model, exponent_power=0.0))


Changes = dict[str, Any]
LEARN_ON = 400  # images, where a trained network learns on; each of more is shown once (benchmarks/ablations.md)
STUDENT = ("student_width", "student_depths", "shared_stem")  # what makes the forward student smaller than the teacher
SMALLER = (*STUDENT, "residual_blocks")  # what a compression makes small
YOUNGER = ("decoder_depth", *STUDENT)  # settings that older bundles lack

PAPER = TrainSettings()
TUNED = TrainSettings(  # benchmarks/accuracy.md: what each of these brings, and what it was measured on
    image_steps=1000,
    look_every=200,
    augmentation_copies=4,
    batch=8,
    memory_rate=0.02,
    schedule="cosine",
    ema_decay=0.98,
    place_powers=(0.5, 1.0),
    model=ModelSettings(
        memory_init="coreset",
        memory_slots=1024,
        memory_temperature=0.02,
        recall_residual=True,
        scale_exponents=(0.3, 0.3, 1.0),  # where too few images are held out to choose
        exponent_power=4.0,
        forward_weights=(1.0, 1.0, 0.1),
    ),
)
LEAN = replace(TUNED, compression=Compression(images=400))  # benchmarks/ablations.md, "A lean network"
PROTOCOLS = {"paper": PAPER, "tuned": TUNED, "lean": LEAN}
PAPER_LEARNING_RATE = 0.05  # as printed; RD4AD's 0.005 with everything else equal makes it a likely misprint (A-12)

_BASELINE: Changes = {"use_fpm": False, "use_nfs": False, "use_ffc": False, "use_forward": False}
_FPM_AND_FORWARD: Changes = {"use_nfs": False, "use_ffc": False}
ABLATIONS: dict[str, tuple[str, Changes, Changes]] = {  # table.row -> what it is, changes of the model, of the training
    "4.1": ("baseline", _BASELINE, {}),
    "4.2": ("FPM", _BASELINE | {"use_fpm": True}, {}),
    "4.3": ("MF", _BASELINE | {"use_nfs": True, "use_ffc": True}, {}),
    "4.4": ("FPM + BD", _FPM_AND_FORWARD, {}),
    "4.5": ("FPM + MF + BD", {}, {}),
    "5.1": ("baseline", _BASELINE, {}),
    "5.2": ("NFS", _BASELINE | {"use_nfs": True}, {}),
    "5.3": ("FFC", _BASELINE | {"use_ffc": True}, {}),
    "5.4": ("NFS + FFC", _BASELINE | {"use_nfs": True, "use_ffc": True}, {}),
    "6.1": ("base loss", _FPM_AND_FORWARD | {"use_forward": False}, {}),
    "6.2": ("base loss + KD", _FPM_AND_FORWARD, {"align_weight": 0.0}),
    "6.3": ("base loss + align", _FPM_AND_FORWARD | {"forward_map": "student"}, {"kd_weight": 0.0}),
    "6.4": ("base loss + KD + align", _FPM_AND_FORWARD, {}),
    "7.1": ("maps M1 to M3 (reverse)", {"maps": "reverse"}, {}),
    "7.2": ("maps M4 to M6 (forward)", {"maps": "forward"}, {}),
    "7.3": ("maps M1 to M6", {}, {}),
}


def ablated(settings: TrainSettings, row: str) -> TrainSettings:
    """`settings` changed to a row of the paper's Tables 4 to 7, as "4.2". Raises ConfigError for an unknown row."""
    require_choice("ablation", row, tuple(ABLATIONS))
    _, model, training = ABLATIONS[row]
    if not model.get("use_nfs", True):
        model = model | {"recall_residual": False}  # there is no recall to correct
    return replace(settings, model=replace(settings.model, **model), **training)
