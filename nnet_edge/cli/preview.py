"""The preview of a training: a bundle of what it has learned so far, to try meanwhile."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.cli.view import say

if TYPE_CHECKING:
    from typing_extensions import Self

    from nnet_edge.training.loop import Progress

PREVIEW_LEFT_S = 300.0  # of a training: a shorter one is nearly as soon at its own bundle


class Preview:
    """A bundle of the training as it is after its first pass, made by a process of its own: nothing of the training changes.

    It lies in `folder`, and is made of `training`. A context manager, whose end ends that process. `--preview auto` makes one
    where the training has minutes left.
    """

    def __init__(self, folder: Path, training: Path, options: Mapping[str, Any]) -> None:
        self._folder, self._training, self._wanted = folder, training, options["preview"]
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
