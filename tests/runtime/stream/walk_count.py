"""The walk of one frame, counted: the functions of the project that carry it from `Source.__iter__` to `Sink.write`.

`count_walk(work, root)` runs `work`, a callable that sends frames through a line, under sys.setprofile in this thread and in
every thread that it starts (capture, line, sink), and gives what carried.

**Carry** means, of a function of the project (its file lies below `root`):

1. it was called with a *carrier* as an argument (`self` is one too), or
2. it returned or yielded a carrier, or
3. it held a carrier in a local variable while it called another function that carries (`for frame in source: put(frame)`).

A *carrier* is an object of a class in `carriers`: the nouns Frame and Prediction, and what holds them on the way (today: Job,
Batch, Chunk and Item; of the new tree: whatever replaces them), or a list, tuple or deque of carriers, two levels deep.

Not counted:

- comprehensions, generator expressions and lambdas; who calls through one counts as the caller behind it;
- properties and methods of the nouns Frame and Prediction themselves (`prediction.is_anomalous` looks, it does not carry);
- *helper leaves*: functions that are called out of their own file only, and neither hand a carrier to another function of
  the project nor give one back nor keep one (its number of references is the same behind the call as before it).

By this definition version 0.1.0 had 32 functions in 13 files without a queued sink, and 41 in 17 with one.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

NOUNS = ("Frame", "Prediction")
CARRIERS = (*NOUNS, "Batch", "Item")  # the nouns, and what holds them on the way
DEPTH = 2  # of lists in which a carrier may lie
LOOK_AT = 8  # first members of a list that are looked at
COMPREHENSIONS = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>")


@dataclass
class Carrying:
    """What was seen of one function."""

    file: str
    name: str
    thread: str  # name of the thread, without what follows its first word
    line: int
    takes: bool = False
    gives: bool = False
    hands_on: bool = False
    keeps: bool = False
    callers: set[str] = field(default_factory=set)  # files

    @property
    def is_helper(self) -> bool:
        """Whether it is a helper leaf."""
        return not (self.gives or self.hands_on or self.keeps) and self.callers <= {self.file}


@dataclass(frozen=True)
class WalkCount:
    """Who carries a frame, in the order in which they first did."""

    functions: tuple[Carrying, ...]
    helpers: tuple[Carrying, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Their files, each once."""
        return tuple(dict.fromkeys(one.file for one in self.functions))

    def __str__(self) -> str:
        lines = [f"{len(self.functions)} functions in {len(self.files)} files"]
        lines += [f"  {one.thread:12} {one.file}:{one.line} {one.name}" for one in self.functions]
        helpers = ", ".join(one.name for one in self.helpers)
        return "\n".join([*lines, f"  helper leaves, not counted: {helpers or 'none'}"])


def count_walk(
    work: Callable[[], object], root: Path, carriers: Collection[str] = CARRIERS, nouns: Collection[str] = NOUNS,
    outside: Collection[str] = (".venv", "tests"),
) -> WalkCount:  # fmt: skip
    """Who carries frames while `work` runs; it must have ended its threads when it returns."""
    recorder = _Recorder(root.resolve(), frozenset(carriers), frozenset(nouns), frozenset(outside))
    before = sys.getprofile()
    threading.setprofile(recorder.notice)
    sys.setprofile(recorder.notice)
    try:
        work()
    finally:
        sys.setprofile(before)
        threading.setprofile(before)  # type: ignore[arg-type]  # None is taken
    found = recorder.found.values()
    return WalkCount(tuple(one for one in found if not one.is_helper), tuple(one for one in found if one.is_helper))


class _Recorder:
    """The profile function and what it noticed."""

    def __init__(self, root: Path, carriers: frozenset[str], nouns: frozenset[str], outside: frozenset[str]) -> None:
        self._root, self._carriers, self._nouns, self._outside = root, carriers, nouns, outside
        self._files: dict[str, str | None] = {}
        self._references: dict[
            int, tuple[tuple[Any, ...], tuple[int, ...]]
        ] = {}  # id of a running frame -> carriers, references
        self.found: dict[CodeType, Carrying] = {}

    def notice(self, frame: FrameType, event: str, argument: Any) -> None:
        """What sys.setprofile calls."""
        if event not in ("call", "return"):
            return
        code = frame.f_code
        file = self._file(code.co_filename)
        if file is None or code.co_name in COMPREHENSIONS:
            return
        if event == "call":
            self._called(frame, code, file)
        else:
            self._returned(frame, code, file, argument)

    def _called(self, frame: FrameType, code: CodeType, file: str) -> None:
        if code in self.found and frame.f_lasti > 0 and code.co_flags & 0x20:
            return  # a generator goes on
        given = tuple(
            frame.f_locals[name]
            for name in arguments(code)
            if name in frame.f_locals and self._carries(frame.f_locals[name])
        )
        if given and not self._is_of_noun(frame, code):
            one = self._note(code, file)
            one.takes = True
            self._note_caller(one, frame)
            self._references[id(frame)] = given, references(given)

    def _returned(self, frame: FrameType, code: CodeType, file: str, argument: Any) -> None:
        given, before = self._references.pop(id(frame), ((), ()))
        if code in self.found and any(now > then for now, then in zip(references(given), before, strict=True)):
            self.found[code].keeps = True
        if self._carries(argument) and not self._is_of_noun(frame, code):
            one = self._note(code, file)
            one.gives = True
            self._note_caller(one, frame)

    def _note(self, code: CodeType, file: str) -> Carrying:
        name = getattr(code, "co_qualname", code.co_name)
        thread = threading.current_thread().name.split()[0]
        return self.found.setdefault(code, Carrying(file, name, thread, code.co_firstlineno))

    def _note_caller(self, one: Carrying, frame: FrameType) -> None:
        """Note who called it; who holds a carrier itself hands it on, and so carries."""
        caller = frame.f_back
        while caller is not None and (
            caller.f_code.co_name in COMPREHENSIONS or self._file(caller.f_code.co_filename) is None
        ):
            caller = caller.f_back
        if caller is None:
            return
        file = self._file(caller.f_code.co_filename)
        assert file is not None
        one.callers.add(file)
        known = self.found.get(caller.f_code)
        if known is not None:
            known.hands_on = True
        elif any(self._carries(value) for name, value in caller.f_locals.items() if name != "self"):
            self._note(caller.f_code, file).hands_on = True

    def _carries(self, value: Any, depth: int = DEPTH) -> bool:
        if type(value).__name__ in self._carriers:
            return self._file(sys.modules[type(value).__module__].__file__ or "") is not None
        if depth and type(value) in (list, tuple, deque):
            return any(self._carries(member, depth - 1) for _, member in zip(range(LOOK_AT), value, strict=False))
        return False

    def _is_of_noun(self, frame: FrameType, code: CodeType) -> bool:
        names = arguments(code)
        return bool(names) and type(frame.f_locals.get(names[0])).__name__ in self._nouns and names[0] == "self"

    def _file(self, name: str) -> str | None:
        """The file below the root, None for one that is not the project's."""
        if name not in self._files:
            path = Path(name)
            inside = path.is_absolute() and path.is_relative_to(self._root)
            parts = path.relative_to(self._root) if inside else None
            is_ours = parts is not None and not self._outside & set(parts.parts)
            self._files[name] = str(parts) if is_ours else None
        return self._files[name]


def references(values: tuple[Any, ...]) -> tuple[int, ...]:
    """How many references each has."""
    return tuple(sys.getrefcount(values[place]) for place in range(len(values)))


def arguments(code: CodeType) -> tuple[str, ...]:
    """The names of a function's arguments, *args and **kwargs included."""
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    return code.co_varnames[:count]
