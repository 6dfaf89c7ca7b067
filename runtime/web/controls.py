"""Actions of the page on a line: values are checked, then the line's own methods called. Knows no web library.

The page is trusted with the line and with nothing else of the machine: it gives no credentials, no pipelines (which run
programs), files only below a folder that the settings name, and swaps in only bundles that lie below another.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.bundle import MANIFEST
from nnet_edge.errors import ConfigError, NnetEdgeError
from nnet_edge.runtime.stream.model import hears
from nnet_edge.runtime.web.state import of_each
from nnet_edge.settings.camera import is_path, kind_by_name
from nnet_edge.settings.reader import build, unknown_key
from nnet_edge.settings.registry import SOURCES
from nnet_edge.settings.stream import LineStream, Polygon
from nnet_edge.settings.web import NEVER_ADDABLE, WebSettings

if TYPE_CHECKING:
    from nnet_edge.frame import Prediction
    from nnet_edge.runtime.stream.kept import LineChanges
    from nnet_edge.runtime.stream.line import Line
    from nnet_edge.runtime.stream.model import Model

log = logging.getLogger(__name__)

MOST_STREAMS = 64
MOST_POLYGONS, MOST_CORNERS = 32, 256
CAMERA_KEYS = ("address", "width", "height", "rate_hz", "pixel_format")  # and options that say so: camera_keys
VIDEO_DEVICE = re.compile(r"/dev/video[0-9]+")  # the one kind of path outside source_folder that the page may add
MOST_BUNDLES = 100
SETTLED_S = 2.0  # a folder that changed so shortly before a look may have changed again in the same tick of its clock


@dataclass(frozen=True)
class SwapState:
    """The state of the newest swap."""

    bundle: str
    state: str  # "loading", "done" or "failed"
    reason: str | None = None
    stage: str | None = None  # what is being done; None once a frame was judged by it, or it failed
    began_s: float = field(default_factory=time.monotonic)
    ended_s: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON: `took_s` until now or the end, `ago_s` since then."""
        now_s = time.monotonic()
        took_s, ago_s = (self.ended_s or now_s) - self.began_s, None if self.ended_s is None else now_s - self.ended_s
        facts = {"bundle": self.bundle, "state": self.state, "reason": self.reason, "stage": self.stage}
        return {**facts, "took_s": round(took_s, 1), "ago_s": None if ago_s is None else round(ago_s, 1)}


@dataclass(frozen=True)
class BundleList:
    """The bundles below a folder, and the folders that were looked through for them."""

    names: tuple[str, ...] = ()
    folders: Mapping[Path, int] = field(default_factory=dict)  # when each was last changed, ns
    looked_s: float = 0.0  # time.time()

    def is_fresh(self) -> bool:
        """Whether it was made within a second, or no folder has changed since; a page asks each second."""
        age_s = time.time() - self.looked_s
        if 0 <= age_s < 1 and self.folders:
            return True
        newest = max(self.folders.values(), default=None)
        if newest is None or self.looked_s - newest / 1e9 < SETTLED_S:
            return False
        try:
            return all(path.stat().st_mtime_ns == changed for path, changed in self.folders.items())
        except OSError:
            return False


def find_bundles(folder: Path) -> BundleList:
    """The bundles in the folder and two levels below. Raises OSError when it cannot be read."""
    looked_s, level = time.time(), [folder]
    folders: dict[Path, int] = {}
    for _ in range(3):
        folders |= {path: path.stat().st_mtime_ns for path in level}
        level = [Path(item.path) for path in level for item in scan(path) if item.is_dir()]
    found = sorted(path.relative_to(folder).as_posix() for path in folders if (path / MANIFEST).is_file())
    return BundleList(tuple(found[:MOST_BUNDLES]), folders, looked_s)


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in the folder; nothing where it cannot be read."""
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


class Controls:
    """Does what the page asks for; every method may wait, and raises NnetEdgeError for what is invalid or fails."""

    def __init__(self, line: Line, settings: WebSettings, kept: LineChanges | None = None) -> None:
        self._line, self._settings, self._kept = line, settings, kept
        self._lock = threading.Lock()
        self._swap: SwapState | None = None
        path = line.model().path
        folder = settings.bundle_folder or (None if path is None else path.resolve().parent)
        self._bundle_folder = None if folder is None else folder.resolve()
        self._bundles = BundleList()
        self.actions: dict[str, Callable[[str, Mapping[str, Any], str], object]] = {
            "threshold": self._threshold,
            "adapt": self._adapt,
            "regions": self._regions,
            "pause": lambda stream, given, by: line.pause(stream),
            "resume": lambda stream, given, by: line.resume(stream),
            "remove": lambda stream, given, by: line.remove(stream),
            "trigger": lambda stream, given, by: {"number": line.trigger(stream, given.get("number"), "page")},
        }

    def act(self, stream: str, action: str, given: Mapping[str, Any], by: str = "the page") -> object:
        """Do `action` to the stream, asked `by` somebody; gives the answer's fields."""
        found = self.actions[action](stream, given, by) or {}
        if action != "trigger":
            self._keep(by)
        return found

    def _keep(self, by: str) -> None:
        """Keep what differs from the settings that the line was written with."""
        if self._kept is not None:
            self._kept.keep(by)

    def changes(self) -> dict[str, object] | None:
        """What differs from the settings that the line was written with; None where nothing is kept."""
        return None if self._kept is None else self._kept.as_dict()

    def change(self, action: str, by: str) -> None:
        """ "write" what differs into the settings file, or "forget" it."""
        if self._kept is None:
            raise ConfigError("this line keeps no changes: start it with --config or --state")
        {"write": self._kept.write, "forget": self._kept.forget}[action](by)

    def addable(self) -> list[str]:
        """The addresses that `add` takes, for people."""
        words = self._settings.addable
        found = [kind.addresses for kind in SOURCES if not kind.is_path and kind.page in words]
        return found + (["a path below source_folder"] if "file" in words else [])

    def add(self, given: Mapping[str, Any], by: str = "the page") -> None:
        """Add a stream: its name, address and policy, and what is asked of the camera."""
        keys = camera_keys()
        known = ["name", "policy", *keys]
        if unknown := [key for key in given if key not in known]:
            raise ConfigError(unknown_key(unknown[0], known, "the stream"))
        if len(self._line.streams()) >= MOST_STREAMS:
            raise ConfigError(f"there are {MOST_STREAMS} streams: remove one first")
        camera = {key: value for key, value in given.items() if key in keys and value is not None}
        address = camera.get("address")
        if isinstance(address, str):
            camera["address"] = self._allowed(address.strip())
        policy = given.get("policy")
        lane = {} if policy is None else {"lane": {"policy": policy}}
        table = {"name": given.get("name", ""), "camera": camera, **lane}
        self._line.add(build(LineStream, table, "the stream", Path()))
        self._keep(by)

    def bundles(self) -> list[str]:
        """The bundles that can be swapped in, by their folders' names below the bundle folder."""
        folder = self._bundle_folder
        if folder is None:
            return []
        with self._lock:
            if not self._bundles.is_fresh():
                try:
                    self._bundles = find_bundles(folder)
                except OSError as error:
                    log.warning("the bundle folder cannot be read: %s", error.strerror)
                    return []
            return list(self._bundles.names)

    def judging(self) -> dict[str, list[str]]:
        """The bundles below the bundle folder that judge now, and by each its streams; the line's own comes first."""
        folder, models = self._bundle_folder, [(self._line.model(), "")]
        models += of_each(self._line, lambda status: (self._line.stream(status.name).model, status.name))
        found: dict[str, list[str]] = {}
        for model, name in models:
            path = None if model.path is None else model.path.resolve()
            if folder is not None and path is not None and path.is_relative_to(folder):
                found.setdefault(path.relative_to(folder).as_posix(), []).extend([name] if name else [])
        return found

    def swap_state(self) -> dict[str, object] | None:
        """The state of the newest swap, None before the first."""
        with self._lock:
            return None if self._swap is None else self._swap.as_dict()

    def start_swap(self, given: Mapping[str, Any], by: str = "the page") -> None:
        """Begin to load a bundle, or a recipe's; `swap_state` tells its state."""
        line, recipe, stream = self._line, given.get("recipe"), given.get("stream")
        if recipe is not None:
            if recipe not in line.recipes():
                raise ConfigError(
                    f"there is no recipe called {recipe!r}: there are {', '.join(line.recipes()) or 'none'}"
                )
            name = str(recipe)
        else:
            path = self._bundle(given.get("bundle"))
            name = path.name
        if stream is not None and stream not in [status.name for status in line.streams()]:
            raise ConfigError(f"there is no stream called {stream!r}")

        def work() -> Model:
            if recipe is None:
                return line.swap(path, stream)
            line.use_recipe(recipe, by)
            return line.model()

        self._begin_swap(name, work, by)

    def swap_to(self, path: Path, by: str) -> None:
        """Begin to load the bundle at this path, wherever it lies, for all streams of the line's bundle."""
        self._begin_swap(path.parent.name, lambda: self._line.swap(path), by)

    def _begin_swap(self, name: str, work: Callable[[], Model], by: str) -> None:
        with self._lock:
            if self._swap is not None and self._swap.state == "loading":
                raise ConfigError(f"the bundle {self._swap.bundle} is being loaded: wait until it judges")
            self._swap = SwapState(name, "loading")
        threading.Thread(target=self._do_swap, args=(name, work, by), name=f"swap to {name}", daemon=True).start()

    def _do_swap(self, name: str, work: Callable[[], Model], by: str) -> None:
        hears.set(lambda stage: self._reach(stage=stage))
        try:
            model = work()
            self._keep(by)
        except NnetEdgeError as error:
            self._reach(state="failed", reason=str(error), stage=None, ended_s=time.monotonic())
        except Exception as error:
            log.exception("the bundle %s could not be swapped in", name)
            self._reach(state="failed", reason=f"it broke: {error!r}", stage=None, ended_s=time.monotonic())
        else:
            self._reach(state="done", stage="waiting for its first frame", ended_s=time.monotonic())
            self._end_with_first_frame(model)

    def _end_with_first_frame(self, model: Model) -> None:
        """The newest swap reaches its end with the first prediction by the model."""
        with self._lock:
            mine = self._swap

        def see(prediction: Prediction) -> None:
            if self._swap is mine and prediction.judged_by == model.judged_by:
                self._reach(stage=None, ended_s=time.monotonic())
            if self._swap is not mine:
                self._line.unsubscribe(see)

        self._line.subscribe(see)

    def _reach(self, **changes: Any) -> None:
        with self._lock:
            if self._swap is not None:
                self._swap = replace(self._swap, **changes)

    def _bundle(self, given: object) -> Path:
        """The resolved folder of the bundle, which must be below the bundle folder. Raises ConfigError."""
        folder = self._bundle_folder
        if folder is None:
            raise ConfigError("bundles cannot be swapped in: set bundle_folder under [web]")
        if not isinstance(given, str) or not given:
            raise ConfigError("a swap needs the bundle's folder: give its name below bundle_folder")
        path = below(folder, given)
        if path is None:
            raise ConfigError(f"the bundle {given} does not lie below the bundle folder of the line: copy it there")
        if not (path / MANIFEST).is_file():
            raise ConfigError(f"there is no bundle {given} in the bundle folder of the line: copy it there")
        return path

    def _allowed(self, address: str) -> str:
        """The address, if the page may add a source of its kind. Raises ConfigError."""
        word = word_of(address)
        if word not in self._settings.addable:
            may = ", ".join(self._settings.addable) or "nothing"
            told = f"the page may not add a source of the kind {word}: it may add {may}; see addable under [web]"
            raise ConfigError(told)
        if word != "file":
            if "@" in address:
                raise ConfigError("the page takes no passwords: give the stream its credentials in the settings file")
            return address
        path = below((self._settings.source_folder or Path()).resolve(), address)
        if path is None:
            raise ConfigError("the page may add files and folders below source_folder only")
        return str(path)

    def _adapt(self, stream: str, given: Mapping[str, Any], by: str) -> object:
        pictures = given.get("pictures")
        if not isinstance(pictures, int) or isinstance(pictures, bool):
            raise ConfigError("pictures must be a whole number: how many of the last pictures are good parts")
        return {"threshold": self._line.adapt(stream, pictures, by), "pictures": pictures}

    def _threshold(self, stream: str, given: Mapping[str, Any], by: str) -> object:
        value = given.get("value")
        if value is not None and not is_finite(value):
            raise ConfigError("value must be a number above 0, or null for the bundle's threshold")
        return {"threshold": self._line.set_threshold(stream, value)}

    def _regions(self, stream: str, given: Mapping[str, Any], by: str) -> None:
        interest, ignored = (to_polygons(given.get(key), key) for key in ("regions_of_interest", "ignored"))
        if interest is None and ignored is None:
            raise ConfigError("give regions_of_interest or ignored, each a list of polygons")
        if interest is not None:
            self._line.set_regions_of_interest(stream, interest)
        if ignored is not None:
            self._line.set_ignored(stream, ignored)


def below(folder: Path, given: str) -> Path | None:
    """The resolved path `given`, None when it is not below the resolved `folder`. Raises ConfigError for an invalid one."""
    try:
        path = (folder / given).resolve()
        path.exists()  # asked here because it raises for a name that no file system takes
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the path {given[:100]!r} is invalid: {getattr(error, 'strerror', None) or error}"
        ) from error
    return path if path.is_relative_to(folder) else None


def word_of(address: str) -> str:
    """The word of [web] addable that lets the page add a source at the address; nothing on the disk is looked at.

    A path is a file's, whatever its kind: only a camera's device is not. What no kind takes can never be added.
    """
    if VIDEO_DEVICE.fullmatch(address):
        return "camera"
    if is_path(address):
        return "file"
    kind = kind_by_name(address)
    return NEVER_ADDABLE if kind is None else kind.page


def camera_keys() -> tuple[str, ...]:
    """The keys of a camera that the page may set; an option of a kind only where its field's metadata has `page`."""
    kinds = [kind.options for kind in SOURCES if kind.options is not None]
    return (*CAMERA_KEYS, *(item.name for options in kinds for item in fields(options) if item.metadata.get("page")))


def is_finite(value: object) -> bool:
    """Whether a value from JSON is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def to_polygons(given: object, key: str) -> list[Polygon] | None:
    """Polygons of (x, y) as the line takes them; None stays None. Raises ConfigError for anything else."""
    if given is None:
        return None
    fault = ConfigError(f"{key} must be a list of at most {MOST_POLYGONS} polygons, each a list of [x, y] in pixels")
    if not isinstance(given, list) or len(given) > MOST_POLYGONS:
        raise fault
    found: list[Polygon] = []
    for polygon in given:
        if not isinstance(polygon, list) or len(polygon) > MOST_CORNERS:
            raise fault
        for corner in polygon:
            is_pair = isinstance(corner, list) and len(corner) == 2
            if not is_pair or not all(is_finite(value) and abs(value) < 1e6 for value in corner):
                raise fault
        found.append(tuple((float(x), float(y)) for x, y in polygon))
    return found
