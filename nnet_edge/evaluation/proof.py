"""Proof that a bundle that learned on loses no defect: the old one and the new one on the same test images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from nnet_edge.data.images import Dataset
from nnet_edge.evaluation.artefact import open_artifact
from nnet_edge.evaluation.evaluate import Evaluation, evaluate, name_below
from nnet_edge.settings.runner import RunnerSettings


@dataclass(frozen=True)
class Compared:
    """Two bundles on the test images of one dataset."""

    old: Evaluation
    new: Evaluation

    @property
    def lost(self) -> tuple[Path, ...]:
        """The defective images that the old one rejects and the new one passes."""
        rows = self.old.labels & self.old.rejected & ~self.new.rejected
        return tuple(sample.path for sample, is_lost in zip(self.old.samples, rows, strict=True) if is_lost)

    def line(self) -> str:
        """The counts in a sentence."""
        labels = self.old.labels
        bad, good = int(labels.sum()), int((~labels).sum())
        text = (
            f"{self.old.root}: of {bad} with a defect the old bundle rejects {int(self.old.rejected[labels].sum())}, "
        )
        text += f"the new one {int(self.new.rejected[labels].sum())}"
        return text + (
            f"; of {good} good ones {len(self.old.false_rejects)} and {len(self.new.false_rejects)}" if good else ""
        )


@dataclass(frozen=True)
class Proof:
    """The old and the new bundle, dataset by dataset."""

    compared: tuple[Compared, ...]
    without: tuple[Path, ...]  # datasets without a defective image
    promised: tuple[float, float]  # share of good parts that the old threshold, and the new one, will reject

    @property
    def equal_rate(self) -> float | None:
        """The least rate of false rejects that the new bundle's held-out parts support and that is no lower than the old one's.

        None where the new bundle does not promise fewer.
        """
        old, new = self.promised
        return new * ceil(old / new) if 0 < new < old else None

    @property
    def lost(self) -> tuple[Path, ...]:
        """Every image whose defect is lost."""
        return tuple(path for one in self.compared for path in one.lost)

    def lines(self) -> Iterator[str]:
        """The proof for a terminal."""
        for one in self.compared:
            yield one.line()
            if one.lost:
                names = ", ".join(name_below(path, one.old.root) for path in one.lost[:5])
                yield f"  lost: {names}{', ...' * (len(one.lost) > 5)}"
        for root in self.without:
            yield f"{root} has no image with a defect: nothing is proved on it"


def prove(old: Path, new: Path, datasets: Sequence[Dataset], settings: RunnerSettings, skip_bad: bool = False) -> Proof:
    """Both bundles on the test images of every dataset that has some with a defect."""
    usable = [dataset for dataset in datasets if any(sample.is_anomalous for sample in dataset.test)]
    found: list[list[Evaluation]] = []
    promised: list[float] = []
    for path in (old, new):
        artifact = open_artifact(path, settings, False)
        assert artifact.bundle is not None  # `old` and `new` are bundles, no checkpoints
        promised.append(artifact.bundle.threshold.expected_false_rejects)
        with artifact.runner as runner:
            found.append([
                evaluate(runner, dataset, artifact.threshold, runner.max_batch, skip_bad, bits=artifact.bits,
                         geometry=artifact.geometry, learned=artifact.sizes) for dataset in usable
            ])  # fmt: skip
    pairs = zip(*found, strict=True)
    without = tuple(one.root for one in datasets if one not in usable)
    return Proof(tuple(Compared(*pair) for pair in pairs), without, (promised[0], promised[1]))
