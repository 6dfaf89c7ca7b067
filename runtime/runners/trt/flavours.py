"""Which installed TensorRT runs on this GPU: asked once for each driver, GPU and version, and kept in the user's cache.

It builds for compute capabilities that it then refuses to load on, so it is asked before anything is built. The question
(`question.py`) takes half a second, in a process of its own: a library that ends it says no more than that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nnet_edge.errors import ConfigError, NnetEdgeError
from nnet_edge.files import require_private, user_cache, write_atomically
from nnet_edge.gpu import GpuFacts
from nnet_edge.machine import installed_as, program_output
from nnet_edge.runtime.runners.trt.library import FLAVOURS, TITLES, how_to_install, installed_flavours, parse_version

PATIENCE = 45.0  # of program_output: a first start of CUDA compiles nothing, but may load a gigabyte
OTHER_WAYS = "use --runner cuda (pip install 'nnet-edge[cuda]'), or a CPU runner of the graph"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """Whether a TensorRT runs on a GPU."""

    compute_capability: str
    version: str | None  # of the flavour; None: it is not installed
    runs: bool | None  # None: it was not asked
    reason: str  # why not; "" when it runs
    flavour: str = "tensorrt_rtx"
    is_broken: bool = False  # it does not refuse this GPU, and fails on it

    def sentence(self) -> str:
        """The answer in one line."""
        answer = {True: "runs", False: "does NOT run", None: "was not asked whether it runs"}[self.runs]
        why = f" ({self.reason})" if self.reason else ""
        version = f" {self.version}" if self.version else ""
        return f"{TITLES[self.flavour]}{version} {answer} on compute capability {self.compute_capability}{why}"


def flavours_on(gpu: GpuFacts) -> tuple[Answer, ...]:
    """The answers of the installed flavours for a GPU of this machine, in the order of choice."""
    return tuple(answer_of(flavour, gpu) for flavour in installed_flavours())


def answer_of(flavour: str, gpu: GpuFacts) -> Answer:
    """Whether the installed flavour runs on the GPU: as it answered before, else it is asked. Raises nothing."""
    distribution, version = installed_as(flavour)
    needs = re.search(r"-cu(\d+)$", distribution or "")
    if needs and parse_version(gpu.cuda)[:1] < (int(needs.group(1)),):
        return Answer(
            gpu.compute_capability, version, False, older_driver(distribution or "", needs.group(1), gpu), flavour
        )
    file = cache_file(flavour, version, gpu) if distribution else None
    if (kept := read_answer(file)) is not None:
        return kept
    answer = replace(ask_in_process(flavour, gpu), flavour=flavour)
    if answer.runs is not None and not answer.is_broken:
        keep_answer(file, answer)
    return answer


def older_driver(package: str, needs: str, gpu: GpuFacts) -> str:
    """That the driver knows no CUDA as new as the package needs, and what to do."""
    driver = f"the driver {gpu.driver}" if gpu.driver else "the driver"
    return (
        f"{package} needs CUDA {needs} and {driver} knows CUDA {gpu.cuda}: update the driver, or install the package for "
        f"CUDA {parse_version(gpu.cuda)[0] if parse_version(gpu.cuda) else 12}"
    )


def ask_in_process(flavour: str, gpu: GpuFacts) -> Answer:
    """What `question.py` answers in a process of its own; what ends it is the answer."""
    module = "nnet_edge.runtime.runners.trt.question"
    text, problem = program_output([sys.executable, "-m", module, flavour, str(gpu.index)], PATIENCE)
    with contextlib.suppress(ValueError, TypeError):
        return Answer(**json.loads((text or "").splitlines()[-1:][0] if text else ""))
    version = installed_as(flavour)[1]
    reason = f"it ended the process that asked it: {problem or 'no answer'}"
    return Answer(gpu.compute_capability, version, False, reason, flavour, is_broken=True)


def cache_file(flavour: str, version: str | None, gpu: GpuFacts) -> Path | None:
    """Where that answer is kept, by flavour, version, driver and GPU; None where one of them is not known."""
    facts = (flavour, version, gpu.uuid or gpu.name, gpu.compute_capability, gpu.driver)
    if None in facts:
        return None
    with contextlib.suppress(ConfigError):  # no home
        return user_cache("gpu") / f"{re.sub(r'[^A-Za-z0-9._]+', '-', '-'.join(map(str, facts)))}.json"
    return None


def read_answer(file: Path | None) -> Answer | None:
    """The answer in that file; None where there is none that can be read."""
    try:
        if file is not None and file.is_file():
            return Answer(**json.loads(require_private(file, "the kept answer").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, NnetEdgeError) as error:
        log.warning("the answer kept in %s is not used, TensorRT is asked again: %s", file, error)
    return None


def keep_answer(file: Path | None, answer: Answer) -> None:
    """Write the answer there; where nothing can be kept it is asked again next time."""
    try:
        if file is not None:
            write_atomically(file, json.dumps(asdict(answer)).encode())
    except OSError as error:
        log.info("the answer cannot be kept in %s: %s", file, error)


def refusal(answers: Sequence[Answer]) -> str:
    """Why no installed flavour runs here, and what to do; empty where one runs, was not asked, or none is installed."""
    if not answers or any(answer.runs is not False for answer in answers):
        return ""
    said = "; ".join(answer.sentence() for answer in answers)
    others = [
        f"{TITLES[name]} ({how_to_install(name)})" for name in FLAVOURS if name not in {a.flavour for a in answers}
    ]
    return f"{said}: " + ", or ".join([f"try {' or '.join(others)}"] * bool(others) + [OTHER_WAYS])
