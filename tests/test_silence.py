"""Nothing leaves the box unasked: what the commands connect to and write, as the kernel sees it through strace."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parent.parent
NNET_EDGE = Path(sys.executable).with_name("nnet-edge")
SENDERS = {"onnxruntime", "openvino", "openvino_telemetry", "huggingface_hub"}  # libraries that send by themselves
OWNERS = {  # the only files that import one, all inside the package, whose __init__ calls `silence` before them
    "runtime/runners/openvino_runner.py",
    "runtime/runners/onnx_runner.py",
    "runtime/runners/trt/cuda_engine.py",
    "calibration/ranges.py",
}
KEPT = "traced/home/.cache"  # compiled graphs
NET = "connect,sendto,sendmsg,sendmmsg,bind"
FILES = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate,mknod,mknodat"
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
NO_FILES = ("/dev/null", "/dev/tty", "/dev/pts/", "/proc/", "/dev/shm/")  # devices, and memory that has a name


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-f", "-qq", "-e", "trace=none", "true"], capture_output=True).returncode == 0


needs_strace = pytest.mark.skipif(
    not strace_works(),
    reason="NO STRACE, or no right to trace: what leaves the box was NOT looked at; apt install strace",
)


@dataclass
class Traced:
    """A finished command as the kernel saw it."""

    said: str
    addresses: set[str] = field(default_factory=set)  # that it connected, sent or bound to; "ADDRESS:PORT"
    written: set[Path] = field(default_factory=set)  # made, opened for writing, or renamed to

    def strangers(self) -> set[str]:
        """The addresses that are not loopback's, and every name server."""
        return {
            found
            for found in self.addresses
            if not ip_address(found.rpartition(":")[0]).is_loopback or found.endswith(":53")
        }

    def outside(self, *given: Path) -> set[Path]:
        return {path for path in self.written if not any(path.is_relative_to(folder) for folder in given)}


@pytest.fixture
def trace(tmp_path: Path) -> Callable[..., Traced]:
    """A function that runs a command under strace, in a new home; `meanwhile` gets strace's process."""

    def traced(*command: Any, meanwhile: Callable[[psutil.Process], None] | None = None) -> Traced:
        record, home, temporary = (tmp_path / f"traced/{name}" for name in ("calls", "home", "temporary"))
        for folder in (home, temporary):
            folder.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("ORT_", "HF_", "XDG_", "MPL"))}  # fmt: skip
        variables = kept | {
            "HOME": str(home), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0",
        }  # fmt: skip
        strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={NET},{FILES}", "-o", record]
        with subprocess.Popen([*strace, *command], cwd=tmp_path, env=variables, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as process:  # fmt: skip
            if meanwhile is not None:
                meanwhile(psutil.Process(process.pid))
            said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert not [path for path in temporary.rglob("*") if path.is_file()], "left in the temporary folder"
        found = read_calls(record.read_text(errors="replace"), tmp_path)
        found.said = said
        found.written = {path for path in found.written if not path.is_relative_to(temporary)}
        return found

    return traced


def read_calls(text: str, folder: Path) -> Traced:
    """The addresses and written files in the record of strace of a process that runs in `folder`."""
    found = Traced("")
    for line in text.splitlines():
        call = re.match(r"(?:\d+\s+)?(\w+)\((.*)", line)
        if call is None:
            continue
        name, arguments = call.groups()
        for port, address in re.findall(r'port=htons\((\d+)\).*?"([0-9a-fA-F.:]+)"', arguments):
            if not (name == "bind" and port == "0"):  # a socket without a port of its own
                found.addresses.add(f"{address}:{port}")
        if name in FILES.split(",") and not re.search(r"= -1 E|O_PATH|O_DIRECTORY", arguments):
            if name in ("open", "openat") and not WRITES.search(arguments):
                continue
            for path in re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)[-1:]:
                if not path.startswith(NO_FILES):
                    found.written.add(Path(os.path.normpath(folder / path)))
    return found


def until(is_so: Callable[[], object], limit_s: float = 120.0) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.05)


@needs_strace
def test_an_address_and_a_file_outside_would_be_found(trace: Callable[..., Traced], tmp_path: Path) -> None:
    probe = (
        "import pathlib, socket; s = socket.socket(type=socket.SOCK_DGRAM)\n"
        "s.connect(('192.0.2.1', 9)); s.connect(('127.0.0.1', 53)); s.connect(('127.0.0.1', 80))\n"  # UDP: nothing is sent
        "pathlib.Path.home().joinpath('note').write_text('x'); pathlib.Path('given/here').write_text('x')"
    )
    (tmp_path / "given").mkdir()
    found = trace(sys.executable, "-c", probe)
    assert found.strangers() == {"192.0.2.1:9", "127.0.0.1:53"}
    assert found.outside(tmp_path / "given") == {tmp_path / "traced/home/note"}


@needs_strace
@pytest.mark.slow
def test_train_and_evaluate_stay_in_their_folders(
    trace: Callable[..., Traced], parts_folder: Path, tmp_path: Path
) -> None:
    quick = ("--size", "64", "--epochs", "1", "--batch", "7", "--set", "augmentation_copies=0")
    trained = trace(NNET_EDGE, "train", parts_folder, "--out", "run", *quick)
    assert (tmp_path / "run/bundle/manifest.json").exists()
    evaluated = trace(NNET_EDGE, "evaluate", "run/bundle", parts_folder, "--out", "report")
    assert (tmp_path / "report/sheet.png").exists()  # matplotlib drew
    for found in (trained, evaluated):
        assert not found.strangers(), found.said
        assert not found.outside(tmp_path / "run", tmp_path / "report")


@needs_strace
@pytest.mark.slow
def test_calibrate_stays_in_its_bundle(
    trace: Callable[..., Traced], second_run: Path, parts_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(second_run / "run/bundle", tmp_path / "bundle")
    quick = ("--frames", "8", "--threads", "1", "--metric-points", "100", "--accept")
    found = trace(NNET_EDGE, "calibrate", "bundle", parts_folder, "--precision", "fp16", *quick)
    assert "fp16" in found.said
    assert not found.strangers(), found.said
    assert not found.outside(tmp_path / "bundle")


@needs_strace
@pytest.mark.parametrize("runner", ["openvino", "onnxruntime"])
def test_a_stream_connects_to_nobody(
    trace: Callable[..., Traced], trained_run: Path, parts_folder: Path, runner: str, tmp_path: Path
) -> None:
    out = ("--json", "out/lines.jsonl", "--rejects", "out/rejects", "--video", "out/seen.avi")
    found = trace(
        NNET_EDGE, "stream", parts_folder / "bad/stain", "--bundle", trained_run / "bundle", "--runner", runner, *out
    )
    assert len((tmp_path / "out/lines.jsonl").read_text().splitlines()) == 4
    assert not found.addresses, found.said
    assert not found.outside(tmp_path / "out", tmp_path / KEPT)


@needs_strace
def test_a_line_with_its_page_listens_where_it_was_told(
    trace: Callable[..., Traced], trained_run: Path, free_port: Callable[[], int], tmp_path: Path
) -> None:
    port = free_port()
    answers: list[int] = []

    def answered(path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                answers.append(answer.status)
        except OSError:
            return False
        return True

    def visit(strace: psutil.Process) -> None:
        until(lambda: answered("/"))
        assert answered("/metrics")
        (line,) = strace.children()
        line.send_signal(signal.SIGINT)  # ends it well

    command = ("stream", "synthetic", "--bundle", trained_run / "bundle", "--page", str(port))
    found = trace(NNET_EDGE, *command, "--json", "out/lines.jsonl", meanwhile=visit)
    assert answers == [200, 200]
    assert found.addresses == {f"127.0.0.1:{port}"}
    assert not found.outside(tmp_path / "out", tmp_path / KEPT)


@needs_strace
@pytest.mark.parametrize("library", sorted(SENDERS - {"openvino_telemetry"}))
def test_a_library_that_is_imported_behind_us_is_silent(trace: Callable[..., Traced], library: str) -> None:
    pytest.importorskip(library)
    found = trace(sys.executable, "-c", f"import nnet_edge, {library}, time; time.sleep(1)")
    assert not found.addresses
    assert not found.outside()


def imported(code: str) -> dict[str, int]:
    """Top-level module -> the line of its first import in `code`; nothing where that is no Python."""
    found: dict[str, int] = {}
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return found
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            found.setdefault(name.partition(".")[0], node.lineno)
    return found


def loud_imports(code: str) -> set[str]:
    """The libraries of SENDERS that the code of a script imports without an import of nnet_edge before."""
    found = imported(code)
    before = found.get("nnet_edge", sys.maxsize)
    return {name for name in SENDERS & found.keys() if found[name] < before}


def test_no_other_file_imports_a_library_that_sends() -> None:
    faults = []
    ours = [path for folder in ("nnet_edge", "runtime", "export", "calibration", "benchmarks", "tests", "examples")
            for path in (ROOT / folder).rglob("*.py")]  # fmt: skip
    assert len(ours) > 300
    for path in (*ours, ROOT / "setup.py"):
        name, code = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        if not any(library in code for library in SENDERS):
            continue
        if name not in OWNERS:
            faults += [f"{name} imports {library}" for library in SENDERS & imported(code).keys()]
        for node in ast.walk(ast.parse(code)):  # code for another process
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                faults += [f"{name}:{node.lineno}: {library}" for library in loud_imports(node.value)]
    assert not faults
    assert {str(path.relative_to(ROOT)) for path in ours if SENDERS & imported(path.read_text()).keys()} >= OWNERS


def test_a_loud_import_would_be_found() -> None:
    assert loud_imports("import sys\n" + "import onnx" + "runtime") == {"onnxruntime"}
    assert loud_imports("import nnet_edge\nfrom openvino import Core") == set()
    assert loud_imports("no code: import") == set()


def test_the_package_switches_off_before_anything_else_and_says_when_it_is_too_late() -> None:
    early = "import sys, types; sys.modules['openvino_telemetry'] = types.ModuleType('x')\nimport nnet_edge"
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, check=True)
    assert "openvino was imported before nnet_edge" in done.stderr
    late = (
        "import os, sys, nnet_edge; from nnet_edge.silence import silenced\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1' and set(silenced()) == "
        "{'onnxruntime', 'openvino', 'huggingface_hub', 'mlflow', 'ray', 'wandb'}\n"
        "assert not {'onnxruntime', 'openvino', 'numpy.testing', 'logging'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
