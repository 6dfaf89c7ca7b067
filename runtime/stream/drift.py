"""Whether good parts still look as they did when the threshold was chosen: newest good scores against the bundle's.

Two measures over a rolling window of each stream: the population stability index (PSI), which sees any change of shape,
and the shift of the mean in standard deviations of the reference. Few scores make both jump about by chance, so a limit
is never below what chance alone exceeds once in a thousand looks.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nnet_edge.errors import BundleError
from nnet_edge.frame import Prediction
from nnet_edge.scoring import GoodScores, counts_between, describe_scores
from nnet_edge.settings.web import DriftSettings

LOOKS_A_WINDOW = 10  # a look after every tenth of a window
CHANCE_Z = 3.09  # a normal variable lies above it once in a thousand
CALM_SHARE = 0.8  # of the limits: below it a drift is over, so that one at the limit does not flicker


@dataclass(frozen=True, slots=True)
class Drift:
    """What is known of a stream's good scores now."""

    reference: str  # "bundle", "own" (its first window) or "collecting"
    scores: int  # in the window
    psi: float | None = None  # None: too few scores yet
    psi_limit: float | None = None
    mean_shift: float | None = None  # standard deviations of the reference; positive: stranger than before
    mean_shift_limit: float | None = None
    is_drifted: bool = False

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class DriftWatch:
    """Compares the good scores of one stream. One thread adds, any reads.

    Without a reference, and for pictures of which only a part is inspected, the first window of the stream is the
    reference: the bundle's histogram is one of whole pictures.
    """

    def __init__(self, settings: DriftSettings, reference: GoodScores | None) -> None:
        self._settings, self._bundle = settings, reference
        self._lock = threading.Lock()
        self._own: GoodScores | None = None
        self._is_partial = False
        self._scores: deque[float] = deque(maxlen=settings.window)
        self._since_look = 0
        self._now = Drift("collecting" if reference is None else "bundle", 0)

    @property
    def now(self) -> Drift:
        """What the last look found."""
        with self._lock:
            return self._now

    def restart(self, reference: GoodScores | None) -> None:
        """Begin again, after another bundle or other regions."""
        with self._lock:
            self._bundle, self._own, self._since_look = reference, None, 0
            self._scores.clear()
            self._now = Drift("collecting" if reference is None else "bundle", 0)

    def add(self, prediction: Prediction) -> Drift | None:
        """Take notice of one verdict; gives the drift when it has just begun.

        Scores are divided by the bundle's threshold, as the reference's are, and what lies above it is no good score: a
        stream's own threshold changes verdicts, not parts.
        """
        is_partial = prediction.is_masked or prediction.frame.crop is not None
        if is_partial != self._is_partial:
            self._is_partial = is_partial
            self.restart(self._bundle)
        score = prediction.image_score / (prediction.bundle_threshold or prediction.threshold)
        if score > 1:
            return None
        with self._lock:
            self._scores.append(score)
            self._since_look += 1
            if self._since_look < max(1, self._settings.window // LOOKS_A_WINDOW):
                return None
            self._since_look = 0
            was_drifted, self._now = self._now.is_drifted, self._look()
            return self._now if self._now.is_drifted and not was_drifted else None

    def _look(self) -> Drift:
        reference = self._own if self._is_partial or self._bundle is None else self._bundle
        if reference is None:
            if len(self._scores) == self._settings.window:
                self._own = describe_scores(self._scores)
                self._scores.clear()
            return Drift("collecting", len(self._scores))
        name = "own" if reference is self._own else "bundle"
        if len(self._scores) < self._settings.smallest:
            return Drift(name, len(self._scores))
        scores = np.array(self._scores)
        index = psi(reference, scores)
        shift = mean_shift(reference, scores)
        index_limit = max(self._settings.psi, psi_by_chance(reference, len(scores)))
        shift_limit = max(self._settings.mean_shift, CHANCE_Z * math.sqrt(1 / len(scores) + 1 / reference.count))
        share = CALM_SHARE if self._now.is_drifted else 1.0
        is_drifted = index > share * index_limit or abs(shift) > share * shift_limit
        return Drift(name, len(scores), index, index_limit, shift, shift_limit, is_drifted)


def psi(reference: GoodScores, scores: np.ndarray) -> float:
    """The population stability index of `scores` (N,): sum of (p - q) ln(p / q) over the bins.

    Half a score is added to each bin (Jeffreys' prior), so that an empty one does not make it infinite.
    """
    expected = np.array(reference.counts) + 0.5
    found = np.array(counts_between(scores, reference.edges)) + 0.5
    p, q = found / found.sum(), expected / expected.sum()
    return float(((p - q) * np.log(p / q)).sum())


def psi_by_chance(reference: GoodScores, count: int) -> float:
    """The PSI that `count` scores like the reference's exceed once in a thousand times.

    Without a drift PSI / (1/n + 1/m) is distributed as chi-square with bins - 1 degrees of freedom; its quantile is
    that of Wilson and Hilferty.
    """
    freedom = len(reference.counts) - 1
    if freedom == 0:
        return 0.0
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + CHANCE_Z * math.sqrt(spread)) ** 3
    return quantile * (1 / count + 1 / reference.count)


def mean_shift(reference: GoodScores, scores: np.ndarray) -> float:
    """Mean of `scores` less the reference's, in standard deviations of the reference (at least a thousandth)."""
    return float((scores.mean() - reference.mean) / max(reference.deviation, 1e-3))


def reference_of(manifest: Mapping[str, object]) -> GoodScores | None:
    """The histogram in a bundle's manifest, None for a bundle that was exported before there was one. Raises BundleError."""
    fields = manifest.get("good_scores")
    if fields is None:
        return None
    if not isinstance(fields, Mapping):
        raise BundleError("the manifest's good_scores are no table: export the bundle again")
    return GoodScores.from_dict(fields)


class DriftWatches:
    """One watch a stream, made when its first prediction comes.

    `reference` gives the histogram of a stream's bundle, `tell` is given the event of a drift that begins.
    """

    def __init__(
        self, settings: DriftSettings, reference: Callable[[str], GoodScores | None], tell: Callable[..., object]
    ) -> None:
        self._settings, self._reference, self._tell = settings, reference, tell
        self._lock = threading.Lock()
        self._watches: dict[str, DriftWatch] = {}

    def add(self, prediction: Prediction) -> None:
        """Take notice of one verdict."""
        stream = prediction.frame.stream
        with self._lock:
            watch = self._watches.get(stream)
        if watch is None:
            watch = DriftWatch(self._settings, self._reference(stream))
            with self._lock:
                self._watches[stream] = watch
        drift = watch.add(prediction)
        if drift is not None:
            self._tell("drift.warning", stream, **drift.as_dict())

    def now(self, stream: str) -> Drift | None:
        """What is known of the stream, None before its first verdict."""
        with self._lock:
            watch = self._watches.get(stream)
        return None if watch is None else watch.now

    def restart(self, stream: str | None = None) -> None:
        """Begin again for one stream, or all, after another bundle or other regions."""
        with self._lock:
            watches = {name: watch for name, watch in self._watches.items() if stream in (None, name)}
        for name, watch in watches.items():
            watch.restart(self._reference(name))

    def forget(self, stream: str) -> None:
        """Drop what is known of a stream that was removed."""
        with self._lock:
            self._watches.pop(stream, None)
