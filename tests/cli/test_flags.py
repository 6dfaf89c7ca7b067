"""What sinks and sources register costs `--help` nothing: a copy of their flags is read, and it always holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nnet_edge.cli.flags import ask_registries, read_copy

HEAVY = ("cv2", "numpy", "PIL", "simplejpeg", "paho", "openvino", "onnxruntime", "torch", "sqlite3", "starlette")
SINK = '''
"""Postcards."""
from dataclasses import dataclass
from nnet_edge.runtime.sinks.base import Sink
from nnet_edge.settings.registry import SINKS, Flag, SinkKind
from nnet_edge.settings.sink import SinkSettings

@dataclass(frozen=True, kw_only=True)
class PostcardSettings(SinkSettings):
    """Postcards."""
    kind = "postcard"
    town: str

class PostcardSink(Sink):
    def write(self, prediction): ...

FLAG = Flag("--postcard", "Send cards to this town.", lambda town, asked: {"town": town}, "text", "TOWN")
SINKS.register(SinkKind("postcard", PostcardSettings, PostcardSink, FLAG))
'''
SOURCE = '''
"""A camera on the moon."""
from nnet_edge.settings.registry import SOURCES, SourceKind

SOURCES.register(SourceKind("moon", "a moon: address", lambda text: text.startswith("moon:"), print))
'''


def loaded_after(code: str) -> tuple[set[str], str]:
    """The modules that a fresh process has loaded after the code, and what it printed."""
    script = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split()), done.stdout


def test_the_help_of_stream_loads_no_kind() -> None:
    loaded, said = loaded_after("import nnet_edge.cli\nnnet_edge.cli.run(['stream', '--help'])")
    assert "--webhook URL" in said
    assert "an rtsp:// address" in said
    assert not loaded & {*HEAVY, "rich", "nnet_edge.frame", *read_copy().files}


def test_a_kind_is_registered_without_what_it_opens() -> None:
    loaded, said = loaded_after(
        "from nnet_edge.settings.registry import SINKS, SOURCES\nprint(*SINKS.names(), *SOURCES.names())"
    )
    assert {"json-lines", "mqtt", "rejects", "video", "webhook", "images", "rtsp", "synthetic"} <= {*said.split()}
    assert not loaded & {*HEAVY}


def test_the_copy_says_what_the_registries_say() -> None:
    remedy = "python -m nnet_edge.cli.flags > nnet_edge/cli/flags.txt"
    assert read_copy() == ask_registries(), remedy
    assert read_copy().to_text() == ask_registries().to_text(), remedy


def test_a_new_file_is_found_by_the_help_and_by_the_settings(tmp_path: Path) -> None:
    (tmp_path / "postcard.py").write_text(SINK)
    (tmp_path / "moon.py").write_text(SOURCE)
    (tmp_path / "other.py").write_text("raise AssertionError('it registers nothing')")
    added = f"""
import nnet_edge.cli, nnet_edge.runtime.sinks, nnet_edge.runtime.sources
for package in (nnet_edge.runtime.sinks, nnet_edge.runtime.sources):
    package.__path__.append({str(tmp_path)!r})
nnet_edge.cli.run(['stream', '--help'])
nnet_edge.cli.run(['config', 'schema'])
"""
    _, said = loaded_after(added)
    assert "--postcard TOWN" in said
    assert "a moon: address" in " ".join(said.split())
    assert '"const": "postcard"' in said
