"""Loading a model: what is imported beside it, and that nothing stays in memory that only its loading needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nnet_edge.gpu import GpuFacts, NoGpu
from nnet_edge.runtime.stream.model import likely_runner
from nnet_edge.settings.runner import RunnerSettings

GPU = GpuFacts("NVIDIA L4", "8.9", "580.65.06", "13.0", 23034)

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'nnet-edge[cpu]'")

FROM_0_1 = Path(__file__).parents[2] / "data/from_0_1/bundle"
LOADED = """
import ctypes, json, os, re, sys, tempfile, threading
import numpy as np
from nnet_edge.runtime.runners import openvino_runner
from nnet_edge.runtime.stream import model
from nnet_edge.settings.runner import RunnerSettings
from pathlib import Path

class Content(bytes):
    def __del__(self):
        told.append("content freed")

def read(graph):
    return Content(read_bytes(graph))

def compiled(*given):
    told.append("compiled")
    return compile_graph(*given)

def arenas():
    libc.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libc.fopen(os.fsencode(heaps), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    return len(re.findall("<heap nr", Path(heaps).read_text()))

told, heaps, libc = [], sys.argv[2], ctypes.CDLL(None)
read_bytes, openvino_runner.read_known = openvino_runner.read_known, read
compile_graph, openvino_runner.compile_graph = openvino_runner.compile_graph, compiled
call, model.call_allocator = model.call_allocator, lambda *given: (told.append(given[0]), call(*given))
with model.load_model(Path(sys.argv[1]), RunnerSettings("openvino", hint="throughput")).runner:
    cameras = [threading.Thread(target=np.ones, args=(10_000,)) for _ in range(4)]
    for camera in cameras:
        camera.start()
    for camera in cameras:
        camera.join()
print(json.dumps([told, arenas()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_info is glibc's")
def test_threads_share_one_heap_and_what_loading_left_is_given_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOADED, str(FROM_0_1), str(tmp_path / "heaps.xml")]
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["mallopt", "content freed", "compiled", "malloc_trim"], 1]


LINE = """
import json, sys
from nnet_edge.cli.main import run
code = run(["stream", *sys.argv[1:3], "--runner", "openvino", "--quiet", "--json", sys.argv[3]])
lines = sum(1 for _ in open(sys.argv[3]))
readers = sorted({"PIL.ImageFile", "PIL.PngImagePlugin", "nnet_edge.image_files", "numpy.ma"} & {*sys.modules})
print(json.dumps([code, lines, readers]))
"""


def test_a_line_without_picture_files_does_without_their_readers(
    write_video: Callable[..., Path], tmp_path: Path
) -> None:
    """4 MB of memory, and 26 ms of a start."""
    video, verdicts = write_video(12), tmp_path / "verdicts.jsonl"
    command = [sys.executable, "-c", LINE, str(video), f"--bundle={FROM_0_1}", str(verdicts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    code, lines, readers = json.loads(done.stdout.splitlines()[-1])
    assert (code, lines >= 12, readers) == (0, True, [])


@pytest.mark.parametrize(
    ("kind", "found", "is_likely"),
    [
        ("openvino", GPU, True),
        ("auto", NoGpu("there is no GPU"), True),
        ("auto", GPU, False),
        ("onnxruntime", NoGpu("there is no GPU"), False),
    ],
)
def test_a_start_imports_openvino_beside_the_hashes_where_it_will_compute(
    monkeypatch: pytest.MonkeyPatch, kind: str, found: GpuFacts | NoGpu, is_likely: bool
) -> None:
    monkeypatch.setattr("nnet_edge.runtime.stream.model.find_gpu", lambda gpu: found)

    assert likely_runner(RunnerSettings(kind=kind)) == ("nnet_edge.runtime.runners.openvino_runner",) * is_likely
