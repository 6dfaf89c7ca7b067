"""A signal behind runners that were closed is handled: SIGTERM after a swap of the bundle ends a line, it does not crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'nnet-edge[cpu]'")

CLOSED = """
import gc, signal, sys, threading
from pathlib import Path
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.settings.runner import RunnerSettings

graph, how = Path(sys.argv[1]), sys.argv[2]

def opened():
    return load_runner(graph, RunnerSettings("openvino", threads=1)).__enter__()

def close(runners):
    while runners:
        runners.pop(0).__exit__(None, None, None)

if how == "one after the other":
    runners = [opened(), opened()]
    close(runners)
else:
    runners = [opened()]
    closing = threading.Thread(target=close, args=(runners,))
    closing.start()
    closing.join()
gc.collect()
signal.signal(signal.SIGTERM, lambda number, frame: print("handled", flush=True))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.parametrize("how", ["one after the other", "by another thread"])
def test_a_signal_is_handled_behind_runners_that_were_closed(graph: Path, how: str) -> None:
    done = subprocess.run([sys.executable, "-c", CLOSED, str(graph), how], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
