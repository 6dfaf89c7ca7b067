"""What to do on a GPU that is there for minutes: fixed steps in the order of their value, each with a time-out of its own.

    python -m nnet_edge.benchmarks.gpu.session OUT [--dry-run]

After each step OUT/session.json and OUT/logs/STEP.log are whole on disk, so that a session that is cut off keeps what it had. A
step that fails or takes too long ends itself alone. No step reads standard input, and none writes to standard output.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from nnet_edge.benchmarks.harness.command_line import run_command, say
from nnet_edge.benchmarks.harness.machine import describe_machine
from nnet_edge.benchmarks.harness.report import write_json
from nnet_edge.bundle import now
from nnet_edge.errors import ConfigError
from nnet_edge.files import IMAGE_SUFFIXES
from nnet_edge.gpu import GpuFacts, find_gpu

GPU_S = 420  # all steps together: what a session of minutes leaves them
LAST_LINES = 20  # of a log, in session.json
DRY_S = 60
LITE0, WIDE = "efficientnet_lite0", "wide_resnet50_2"


@dataclass(frozen=True)
class Step:
    """One command of a session; `{out}`, `{kit}`, `{images}`, `{bin}` are folders, `{python}` the interpreter."""

    name: str
    command: tuple[str, ...]
    timeout_s: int
    dry: tuple[str, ...] = ()  # in its place without a GPU; empty: the command with --help

    @property
    def help(self) -> tuple[str, ...]:
        """What begins without a GPU and shows that the command is one."""
        return self.dry or (*self.command[: 3 if "-m" in self.command[:2] else 2], "--help")


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """The command of a module of nnet-edge."""
    return ("{python}", "-m", f"nnet_edge.{name}", *arguments)


def product(*arguments: str) -> tuple[str, ...]:
    """The command of nnet-edge."""
    return ("{bin}/nnet-edge", *arguments)


def tests(*arguments: str) -> tuple[str, ...]:
    """pytest on what needs a GPU."""
    places = (
        "{kit}/tests/runtime/runners/trt",
        "{kit}/tests/runtime/test_gpu_jpegs.py",
        "{kit}/tests/runtime/test_pyav_video.py",
        "{kit}/tests/training/test_captured.py",
        "{kit}/tests/cli/test_engine.py",
    )
    return ("{python}", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *arguments, *places)


STEPS = (
    Step("question", module("benchmarks.gpu.question"), 20),
    Step("tests", tests("--junitxml", "{out}/tests.xml"), 150, tests("--collect-only")),
    Step(
        "kernels",
        module("benchmarks.gpu.kernels", "--variant", "staged", "--variant", "wide", "--json", "{out}/kernels.json"), 50,
    ),
    Step("bundle", module("benchmarks.random_bundle", "{out}/lite0", "--backbone", LITE0, "--force"), 60),
    Step("halves", product("calibrate", "{out}/lite0", "{kit}/data", "--precision", "fp16", "--frames", "8", "--accept"), 60),
    Step("measure", product("build-engine", "{out}/lite0", "--measure", "--accept"), 40),
    Step("rates", module("benchmarks.gpu", "{out}/lite0", "--json", "{out}/lite0.json"), 90),
    Step("stream", product("stream", "{images}", "--bundle", "{out}/lite0", "--runner", "cuda", "--runner-batch", "32",
                           "--json", "{out}/stream.jsonl"), 40),
    Step("film", module("benchmarks.line.film", "{out}/film.mp4"), 30),
    Step("stages", module("benchmarks.line.stages", "{out}/lite0", "{images}", "{out}/film.mp4", "--cameras", "8", "--cameras",
                          "32", "--runner", "cuda", "--runner-batch", "32", "--seconds", "1", "--json", "{out}/stages.json"),
         60),
    Step("decode", module("benchmarks.line.stages", "{out}/lite0", "{images}", "{out}/film.mp4", "--decode", "gpu", "--runner",
                          "cuda", "--runner-batch", "32", "--seconds", "1", "--rounds", "1", "--json", "{out}/decode.json"),
         30),
    Step("training", product("train", "{kit}/data", "--out", "{out}/trained", "--device", "cuda"), 120),
    Step("wide bundle", module("benchmarks.random_bundle", "{out}/wide", "--backbone", WIDE, "--force"), 90),
    Step("wide rates", module("benchmarks.gpu", "{out}/wide", "--json", "{out}/wide.json"), 120),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    name: str
    command: str
    code: int | None  # None: it was not begun
    seconds: float
    timed_out: bool
    said: Any  # the JSON that is the last line of its standard output, or of all of it; None where there is none
    last_lines: tuple[str, ...]
    why: str = ""  # it was not begun


def run_session(
    out: Path, kit: Path, is_dry: bool, gpu_s: float = GPU_S, steps: Sequence[Step] = STEPS
) -> dict[str, Any]:
    """The report of the session, which is in OUT/session.json after each of its steps.

    A step gets no more time than is left of `gpu_s` for all; one that has none left is not begun.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    gpu = find_gpu()
    report: dict[str, Any] = {
        "when": now(), "gpu": asdict(gpu) if isinstance(gpu, GpuFacts) else None, "is_dry": is_dry,
        "note": "" if isinstance(gpu, GpuFacts) else f"nothing ran on a GPU: {gpu.reason}",
        "machine": describe_machine(None), "steps": [], "support": {},
    }  # fmt: skip
    began = time.monotonic()
    for step in steps:
        outcome = run_step(step, out, kit, is_dry, gpu_s - (time.monotonic() - began))
        report["steps"].append(asdict(outcome))
        report["support"] = {} if is_dry else support_of(report["steps"], gpu, report["when"][:10])
        write_json(out / "session.json", report)
        say(f"{outcome.name}: {outcome.why or words_of(outcome)}")
    return report


def words_of(outcome: Outcome) -> str:
    """The end of a step in words."""
    ending = "took too long" if outcome.timed_out else "ok" if outcome.code == 0 else f"exit code {outcome.code}"
    return f"{ending}, {outcome.seconds:.1f} s"


def run_step(step: Step, out: Path, kit: Path, is_dry: bool, left_s: float) -> Outcome:
    """The outcome of a step; its process group is ended when its time is over."""
    python = Path(sys.executable)  # of the environment: what a link points to is another one
    names = {"out": out, "kit": kit, "python": python, "bin": python.parent, "images": most_images(kit / "data")}
    command = [part.format(**names) for part in (step.help if is_dry else step.command)]
    text = " ".join(command)
    if left_s < 1:
        return Outcome(step.name, text, None, 0.0, False, None, (), "no time is left")
    log, answer = (out / "logs" / f"{step.name.replace(' ', '-')}.{end}" for end in ("log", "out"))
    began, timed_out = time.monotonic(), False
    with log.open("wb") as errors, answer.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, cwd=kit, start_new_session=True
        )
        try:
            code = process.wait(min(DRY_S if is_dry else step.timeout_s, left_s))
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    seconds = time.monotonic() - began
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = answer.read_text(encoding="utf-8", errors="replace")
    shown = (lines or said.splitlines())[-LAST_LINES:]
    return Outcome(step.name, text, code, round(seconds, 2), timed_out, json_of(said), tuple(shown))


def most_images(data: Path) -> Path:
    """The folder below `data` that holds the most images itself; `data` where there is none."""
    held: dict[Path, int] = {}
    for file in data.rglob("*"):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            held[file.parent] = held.get(file.parent, 0) + 1
    return max(held, key=lambda folder: held[folder], default=data)


def json_of(text: str) -> Any:
    """The JSON that a text is, or that its last line is; None for another."""
    for part in (text, *text.strip().splitlines()[-1:]):
        try:
            return json.loads(part)
        except ValueError:
            continue
    return None


def support_of(steps: Sequence[Mapping[str, Any]], gpu: Any, date: str) -> dict[str, str]:
    """Row of the README's table -> what it may say by these steps; nothing without a GPU."""
    if not isinstance(gpu, GpuFacts):
        return {}
    went = {step["name"]: step for step in steps}
    where, found = f"an {gpu.name} ({date})", {}
    if went.get("tests", {}).get("code") == 0:
        found["CUDA kernels"] = f"agree with their references on {where}"
    if went.get("training", {}).get("code") == 0:
        found["training on CUDA"] = f"ran on {where}"
    if went.get("stream", {}).get("code") == 0:
        found["ONNX Runtime on CUDA"] = f"ran on {where}"
    for answer in went.get("question", {}).get("said") or ():
        if answer.get("runs") is not None and answer.get("flavour") == "tensorrt_rtx":
            found["TensorRT-RTX"] = f"{'runs on' if answer['runs'] else 'refuses'} {where}"
    return found


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--kit",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("."),
    help="The folder with tests/ and data/ (default: this one).",
)
@click.option(
    "--dry-run", is_flag=True, help="Begin every step without a GPU: each says its help, tests are collected."
)
@click.option("--seconds", type=float, default=GPU_S, show_default=True, help="For all steps together.")
def command(out: Path, kit: Path, dry_run: bool, seconds: float) -> None:
    """Do everything that a GPU is needed for, in the order of its value; OUT/session.json after each step."""
    gpu = find_gpu()
    if not dry_run and not isinstance(gpu, GpuFacts):
        raise ConfigError(f"{gpu.reason}: a session needs a GPU, say --dry-run to begin its steps without one")
    report = run_session(out.resolve(), kit.resolve(), dry_run, seconds)
    failed = [step["name"] for step in report["steps"] if step["code"] != 0]
    say(f"{out / 'session.json'}: {len(report['steps']) - len(failed)} of {len(report['steps'])} steps went well")
    if dry_run and failed:
        raise ConfigError(f"these steps do not begin: {', '.join(failed)}; see {out / 'logs'}")


if __name__ == "__main__":
    sys.exit(run_command(command))
