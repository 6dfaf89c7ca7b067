"""Teaching on the page: good parts are collected from a running camera until they are enough, a bundle is trained in a
process of its own, judges beside the old one for some parts, and is swapped in. Knows no web library.

    idle -> collecting -> collected -> training -> trained -> comparing -> compared -> (swapped: idle)

Enough are the parts when a new one is no more unlike those before it than the last ones were: the curve has become flat.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from nnet_edge.bundle import MANIFEST, is_untaught
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import write_atomically
from nnet_edge.frame import Prediction
from nnet_edge.runtime.history.report import thumbnail
from nnet_edge.runtime.sinks.overlay import annotate
from nnet_edge.runtime.stream.judge import BatchTimes, Judge, PartOutputs
from nnet_edge.runtime.stream.loop import preprocess
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.web.pictures import lower_priority
from nnet_edge.settings.runner import require_between
from nnet_edge.threads import COUNTS, SPINS

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.line import Line

log = logging.getLogger(__name__)

FEWEST, MOST = 40, 2000  # parts that are collected
LOOKED_AT = 15  # newest parts whose novelty is compared with as many before them
FLAT = 0.85  # of the novelty before: a curve that falls by less is flat
SAME = 5e-4  # less novelty than this: the picture of before, once more
SIDE = 24  # of the small picture that parts are compared by
FEWEST_COMPARED, MOST_COMPARED = 1, 10_000
SHOWN, KEPT_DIFFERENCES = 60, 24
EVERY_S = 1.0  # between two parts that are collected
NICE = 19
JOIN_LIMIT_S, END_LIMIT_S = 3.0, 5.0
BUNDLE, LOG = "bundle", "train.log"
TRAIN = "from nnet_edge.cli.main import main; main()"
TRAIN_OPTIONS: tuple[str, ...] = ()  # more of `nnet-edge train`


def describe(image: np.ndarray) -> np.ndarray:
    """A picture, uint8 BGR (H, W, 3), as a few numbers float32 (M,): its colours and its edges, small."""
    colours = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    grey = cv2.cvtColor(cv2.resize(image, (4 * SIDE, 4 * SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
    edges = cv2.resize(np.abs(cv2.Laplacian(grey, cv2.CV_32F)) / 255, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.concatenate([colours.ravel(), edges.ravel()])


def is_flat(novelty: list[float]) -> bool:
    """Whether enough parts are there: the newest are about as unlike the others as those before them were."""
    if len(novelty) < max(FEWEST, 2 * LOOKED_AT):
        return False
    newest, before = novelty[-LOOKED_AT:], novelty[-2 * LOOKED_AT : -LOOKED_AT]
    return float(np.mean(newest)) >= FLAT * float(np.mean(before))


class Parts:
    """The good parts that were collected in a folder, and how novel each was when it came."""

    def __init__(self, folder: Path) -> None:
        self.folder = photos_of(folder) / "good"
        self.novelty: dict[int, float] = {}  # number of the picture -> distance from the nearest one before
        self._described: dict[int, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.png")):  # of an earlier run
            if path.stem.isdecimal() and (picture := cv2.imread(str(path))) is not None:
                self._take(int(path.stem), describe(picture))

    def add(self, image: np.ndarray) -> int | None:
        """Keep the picture; gives its number, None for one that is as the one before."""
        described = describe(image)
        if self._described and self._distance(described) < SAME:
            return None
        number = max(self.novelty, default=0) + 1
        is_encoded, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not is_encoded:
            raise DataError("a picture could not be encoded as PNG")
        try:
            write_atomically(self.path(number), data.tobytes())
        except OSError as error:
            raise DataError(f"cannot keep the picture {self.path(number)}: {error.strerror or error}") from error
        self._take(number, described)
        return number

    def _take(self, number: int, described: np.ndarray) -> None:
        self.novelty[number] = self._distance(described) if self._described else 0.0
        self._described[number] = described

    def _distance(self, described: np.ndarray) -> float:
        known = np.stack(list(self._described.values()))
        return float(np.sqrt(((known - described) ** 2).mean(axis=1)).min())

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.png"

    def remove(self, number: int) -> None:
        """Take a picture away: it shows no good part."""
        if number not in self.novelty:
            raise ConfigError(f"there is no picture {number}")
        self.path(number).unlink(missing_ok=True)
        del self.novelty[number], self._described[number]

    @property
    def curve(self) -> list[float]:
        """The novelty of each part in turn, without the first, which has none before it."""
        return list(self.novelty.values())[1:]


class Comparison:
    """What a new bundle says beside the one that judges."""

    def __init__(self, wanted: int, is_first: bool) -> None:
        self.wanted, self.is_first = wanted, is_first  # the old one is none: it rejects everything
        self.counts: Counter[tuple[bool, bool]] = Counter()  # whether old and new reject it
        self.scores: list[float] = []  # of the new one, divided by its threshold
        self.pictures: dict[int, bytes] = {}  # newest parts of which they differ, or which a first one rejects

    @property
    def seen(self) -> int:
        return sum(self.counts.values())

    def add(self, old: Prediction, new: Prediction) -> None:
        is_old, is_new = old.is_above, new.is_above
        self.counts[is_old, is_new] += 1
        self.scores.append(new.relative_score)
        if is_new if self.is_first else is_old != is_new:
            shown = thumbnail(cv2.imencode(".jpg", annotate(new))[1].tobytes())
            if shown is not None:
                self.pictures[self.seen] = shown
            while len(self.pictures) > KEPT_DIFFERENCES:
                del self.pictures[next(iter(self.pictures))]

    def as_dict(self) -> dict[str, object]:
        counts = self.counts
        return {
            "wanted": self.wanted, "seen": self.seen, "is_first": self.is_first,
            "both_good": counts[False, False], "both_reject": counts[True, True], "only_old": counts[True, False],
            "only_new": counts[False, True], "new_rejects": counts[True, True] + counts[False, True],
            "median": float(np.median(self.scores)) if self.scores else None, "largest": max(self.scores, default=None),
            "pictures": list(self.pictures),
        }  # fmt: skip


class Teach:
    """Teaches one camera of a line at a time; any thread may call any method. Raises NnetEdgeError for what cannot be."""

    def __init__(self, line: Line, folder: Path | None, swap: Callable[[Path, str], None]) -> None:
        self._line, self._folder, self._swap = line, folder, swap
        self._lock = threading.RLock()
        self.stage = "idle"
        self._stream = ""
        self._home: Path | None = None  # the folder of this teaching
        self._parts: Parts | None = None
        self._same, self._missed, self._next_s, self._every_s = 0, 0, 0.0, EVERY_S
        self._fault: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._began_s = 0.0
        self._comparison: Comparison | None = None
        self._waiting: queue.Queue[Prediction] = queue.Queue(2)
        self._end = threading.Event()  # of the thread that collects or compares
        self._thread: threading.Thread | None = None
        self.actions: dict[str, Callable[[Mapping[str, Any], str], None]] = {
            "start": self._start, "stop": self._stop, "remove": self._remove, "train": self._train, "cancel": self._cancel,
            "compare": self._compare, "swap": self._swap_in, "discard": self._discard,
        }  # fmt: skip

    @property
    def is_possible(self) -> bool:
        """Whether the settings name a folder to teach in."""
        return self._folder is not None

    def act(self, action: str, given: Mapping[str, Any], by: str) -> dict[str, object]:
        """Do what an engineer asked for; gives the state."""
        if self._folder is None:
            raise ConfigError(
                "this line is not taught on the page: set teach_folder under [web], or start with --teach FOLDER"
            )
        with self._lock:
            self._fault = None
            self.actions[action](given, by)
        return self.state()

    def close(self) -> None:
        """End what runs; what was collected stays."""
        with self._lock:
            self._leave()
            if self._process is not None and self._process.poll() is None:
                end_process(self._process)

    def state(self) -> dict[str, object]:
        """Everything that the page shows."""
        with self._lock:
            self._look_at_training()
            parts, home = self._parts, self._home
            curve = [] if parts is None else parts.curve
            return {
                "is_possible": self.is_possible, "can_train": find_spec("torch") is not None, "stage": self.stage,
                "stream": self._stream, "parts": 0 if parts is None else len(parts.novelty), "fewest": FEWEST,
                "curve": curve, "is_enough": is_flat(curve), "same": self._same, "missed": self._missed,
                "pictures": [] if parts is None else list(parts.novelty)[-SHOWN:][::-1], "fault": self._fault,
                "progress": None if home is None or self.stage != "training" else last_line(home / LOG),
                "took_s": round(time.monotonic() - self._began_s) if self.stage == "training" else None,
                "compared": None if self._comparison is None else self._comparison.as_dict(),
                "home": None if home is None else str(home),
                "is_untaught": is_untaught(self._line.model().path or Path()),
            }  # fmt: skip

    def picture(self, number: int) -> bytes | None:
        """A small picture of a collected part; None where it is gone."""
        parts = self._parts
        with suppress(OSError):
            return None if parts is None else thumbnail(parts.path(number).read_bytes())
        return None

    def difference(self, number: int) -> bytes | None:
        """The picture of a part of which the bundles differ; None where it is not kept."""
        return None if self._comparison is None else self._comparison.pictures.get(number)

    # ---- collecting

    def _require(self, *stages: str) -> None:
        if self.stage not in stages:
            raise ConfigError(f"this is not possible while it is {self.stage}: it must be {' or '.join(stages)}")

    def _start(self, given: Mapping[str, Any], by: str) -> None:
        """Collect from a camera, into the folder of before where that has no bundle yet."""
        self._require("idle", "collected", "trained", "compared")
        stream, every_s = given.get("stream"), given.get("every_s", EVERY_S)
        if stream not in [status.name for status in self._line.streams()]:
            raise ConfigError(f"there is no stream called {stream!r}: add a camera first")
        if not isinstance(every_s, int | float) or isinstance(every_s, bool) or not 0 <= every_s <= 3600:
            raise ConfigError("every_s must be a number of seconds from 0 to 3600")
        assert self._folder is not None
        home = home_of(self._folder, str(stream))
        if home != self._home or self._parts is None:
            self._parts = Parts(home)
        self._stream, self._home, self._every_s, self._next_s = str(stream), home, float(every_s), 0.0
        self._same = self._missed = 0
        self._comparison = None
        self._enter("collecting", self._collect)

    def _stop(self, given: Mapping[str, Any], by: str) -> None:
        self._require("collecting", "comparing")
        done = {"collecting": "collected", "comparing": "compared"}[self.stage]
        self._leave()
        self.stage = done

    def _remove(self, given: Mapping[str, Any], by: str) -> None:
        self._require("collecting", "collected")
        number = given.get("number")
        if self._parts is None or type(number) is not int:
            raise ConfigError("number must be that of a picture")
        self._parts.remove(number)

    def _discard(self, given: Mapping[str, Any], by: str) -> None:
        """Forget this teaching, and delete what it collected."""
        self._require("collecting", "collected", "trained", "comparing", "compared")
        self._leave()
        if self._home is not None and not self._judges(self._home):
            shutil.rmtree(self._home, ignore_errors=True)
        self._parts, self._home, self._comparison, self.stage = None, None, None, "idle"

    def _judges(self, home: Path) -> bool:
        """Whether the bundle of that teaching judges now."""
        path = self._line.model().path
        return path is not None and path.resolve().is_relative_to(home.resolve())

    def _enter(self, stage: str, work: Callable[[Prediction], bool]) -> None:
        """Give `work` the stream's predictions in a thread of low priority until it says False."""
        self._leave()
        self.stage = stage
        self._waiting, self._end = queue.Queue(2), threading.Event()
        self._line.subscribe(self._see)
        self._thread = threading.Thread(
            target=self._serve, args=(work, self._waiting, self._end), name="teach", daemon=True
        )
        self._thread.start()

    def _leave(self) -> None:
        """End the thread that collects or compares."""
        self._line.unsubscribe(self._see)
        self._end.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            self._lock.release()  # it may wait for the lock
            try:
                thread.join(JOIN_LIMIT_S)
            finally:
                self._lock.acquire()

    def _see(self, prediction: Prediction) -> None:
        """Queue a part; in the line's thread, which it never holds up."""
        if prediction.frame.stream != self._stream:
            return
        if self.stage == "collecting":
            if (now_s := time.monotonic()) < self._next_s:
                return
            self._next_s = now_s + self._every_s
        try:
            self._waiting.put_nowait(prediction)
        except queue.Full:
            self._missed += 1

    def _serve(
        self, work: Callable[[Prediction], bool], waiting: queue.Queue[Prediction], end: threading.Event
    ) -> None:
        lower_priority()
        while not end.is_set():
            try:
                prediction = waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                goes_on = work(prediction)
            except Exception as error:
                log.warning("teaching stopped: %r", error)
                self._fault, goes_on = str(error) or type(error).__name__, False
            if not goes_on and not end.is_set():
                with self._lock:
                    self._line.unsubscribe(self._see)
                    self.stage = "collected" if self.stage == "collecting" else "compared"
                return

    def _collect(self, prediction: Prediction) -> bool:
        parts = self._parts
        assert parts is not None
        if len(parts.novelty) >= MOST:
            return False
        with self._lock:
            if parts.add(prediction.frame.image) is None:
                self._same += 1
        return True

    # ---- training

    def _train(self, given: Mapping[str, Any], by: str) -> None:
        """Train in a process of its own, behind everything else that this machine does."""
        self._require("collecting", "collected", "trained", "compared")
        parts, home = self._parts, self._home
        if parts is None or home is None or len(parts.novelty) < FEWEST:
            raise ConfigError(f"collect at least {FEWEST} good parts first")
        if find_spec("torch") is None:
            raise ConfigError(
                "torch, which trains, is not installed here: pip install 'nnet-edge[train]', then start again"
            )
        self._leave()
        self._comparison = None
        threads = max(
            1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // 2
        )
        nice = ["nice", "-n", str(NICE)] if shutil.which("nice") else []
        command = [*nice, sys.executable, "-c", TRAIN, "train", str(photos_of(home)), "--out", str(home), "--force",
                   "--skip-bad-images", "--preview", "never", "--threads", str(threads), *TRAIN_OPTIONS]  # fmt: skip
        names = (*COUNTS, "OPENBLAS_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, str(threads)) | {SPINS: "0", "COLUMNS": "120"}
        shutil.rmtree(home / BUNDLE, ignore_errors=True)
        try:
            with (home / LOG).open("wb") as said:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
                )
        except OSError as error:
            raise DataError(f"the training could not be started: {error.strerror or error}") from error
        self.stage, self._began_s = "training", time.monotonic()

    def _look_at_training(self) -> None:
        """Take notice of a training that has ended."""
        process, home = self._process, self._home
        if self.stage != "training" or process is None or home is None or (code := process.poll()) is None:
            return
        self._process = None
        if code == 0 and (home / BUNDLE / MANIFEST).is_file():
            self.stage = "trained"
        else:
            self.stage, self._fault = "collected", last_line(home / LOG) or f"the training ended with exit code {code}"

    def _cancel(self, given: Mapping[str, Any], by: str) -> None:
        self._require("training")
        if self._process is not None:
            end_process(self._process)
        self._process, self.stage = None, "collected"

    # ---- beside the old one

    def _compare(self, given: Mapping[str, Any], by: str) -> None:
        """Let the new bundle judge the next parts too; the old one decides."""
        self._require("trained", "compared")
        wanted = given.get("parts", 50)
        require_between("parts to compare on", wanted, FEWEST_COMPARED, MOST_COMPARED)
        assert self._home is not None
        model = self._line.models.load(self._home / BUNDLE)
        judge = self._judge_of(model)
        comparison = self._comparison = Comparison(wanted, is_untaught(self._line.model(self._stream).path or Path()))

        def work(old: Prediction) -> bool:
            began_s = time.monotonic()
            frame = replace(old.frame, crop=None)
            with model.runner:
                outputs = model.runner.infer(preprocess([frame], model.geometry))
            times = BatchTimes(began_s, began_s, time.monotonic())
            (new,) = judge.judge(frame, [frame], [PartOutputs(outputs, 0)], times, True)
            with self._lock:
                comparison.add(old, new)
            return comparison.seen < comparison.wanted

        model.runner.__enter__()  # held while it compares
        self._enter("comparing", work)
        thread = self._thread
        assert thread is not None

        def leave() -> None:
            thread.join()
            model.runner.__exit__(None, None, None)

        threading.Thread(target=leave, name="teach, its runner", daemon=True).start()

    def _judge_of(self, model: Model) -> Judge:
        """What judges by the new bundle as the stream would; crops are judged whole."""
        settings = self._line.stream(self._stream).judge.settings
        plain: dict[str, Any] = {
            "threshold": None,
            "adapted": None,
            "adapt": None,
            "smoothing": None,
            "trigger": None,
            "pixel_threshold": None,
        }
        if settings.crops:
            plain |= {
                "crops": (),
                "regions_of_interest": (),
                "ignored": (),
                "interest_picture": None,
                "ignored_picture": None,
            }
        return Judge(replace(settings, **plain), model.threshold, model.judged_by, model.geometry)

    def _swap_in(self, given: Mapping[str, Any], by: str) -> None:
        """Let the new bundle judge; the teaching has ended."""
        self._require("trained", "comparing", "compared")
        assert self._home is not None
        self._leave()
        self._swap(self._home / BUNDLE, by)
        self._parts, self._home, self._comparison, self.stage = None, None, None, "idle"


def home_of(folder: Path, stream: str) -> Path:
    """The newest folder of this stream that has no bundle yet, else a new one: NAME-001, NAME-002."""
    name = re.compile(re.escape(stream) + r"-(\d{3,})")
    numbers = sorted(
        int(found[1]) for path in (folder.iterdir() if folder.is_dir() else ()) if (found := name.fullmatch(path.name))
    )
    newest = folder / f"{stream}-{numbers[-1]:03d}" if numbers else None
    if newest is not None and not (newest / BUNDLE / MANIFEST).exists():
        return newest
    return folder / f"{stream}-{numbers[-1] + 1 if numbers else 1:03d}"


def photos_of(home: Path) -> Path:
    """The folder of photographs of a teaching; a bundle is called after it."""
    return home / home.name


def last_line(path: Path) -> str | None:
    """The last line that the training said; None where it said nothing yet."""
    with suppress(OSError):
        lines = [
            line.strip() for line in path.read_bytes()[-4000:].decode(errors="replace").splitlines() if line.strip()
        ]
        return lines[-1][:300] if lines else None
    return None


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End the process with all that it started: a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(END_LIMIT_S)
