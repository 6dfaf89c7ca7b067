"""`nnet-edge stream --config`: a settings file becomes a line with sinks and a page, and ends well when asked to."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError
from nnet_edge.runtime.sinks import JsonLinesSink, MqttSink, RejectsSink, VideoSink, WebhookSink
from nnet_edge.settings.registry import SINKS
from nnet_edge.settings.sink import SinkSettings

LIMIT_S = 60.0


def make_sink(settings: SinkSettings) -> object:
    return SINKS.find(settings.kind).make(settings)


@pytest.mark.slow
def test_a_line_of_files_judges_every_image_and_ends(
    trained_run: Path, parts_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "line.toml"
    config.write_text(
        f"bundle = '{trained_run / 'bundle'}'\n"
        f"[[stream]]\nname = 'good'\ncamera.address = '{parts_folder / 'good'}'\n"
        f"[[stream]]\nname = 'stain'\ncamera.address = '{parts_folder / 'bad/stain'}'\n"
        "[[sink]]\nkind = 'json-lines'\npath = 'verdicts.jsonl'\nevery_frame = true\n"
        "[[sink]]\nkind = 'rejects'\nfolder = 'rejects'\n"
    )
    assert run(["stream", "--config", str(config), "--threads", "1"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    verdicts = [line for line in lines if "verdict" in line]
    images = {
        name: len(list((parts_folder / folder).iterdir()))
        for name, folder in (("good", "good"), ("stain", "bad/stain"))
    }
    assert {name: sum(line["stream"] == name for line in verdicts) for name in images} == images
    assert len({line["id"] for line in verdicts}) == len(verdicts)
    rejected = {line["stream"] for line in verdicts if line["verdict"] == "anomalous"}
    assert {path.name for path in (tmp_path / "rejects").iterdir() if path.is_dir()} == rejected
    total = sum(images.values())
    assert f"sources ended: {total} frames of 2 streams" in capfd.readouterr().err


@pytest.mark.slow
def test_sigterm_ends_a_live_line_with_its_page(trained_run: Path, tmp_path: Path) -> None:
    config = tmp_path / "line.toml"
    config.write_text(
        f"bundle = '{trained_run / 'bundle'}'\n[runner]\nthreads = 1\n"
        "[[stream]]\nname = 'left'\ncamera.address = 'synthetic'\n"
        "[[sink]]\nkind = 'json-lines'\npath = 'verdicts.jsonl'\n[web]\nport = 0\n"
    )
    command = [str(Path(sys.executable).with_name("nnet-edge")), "stream", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said: list[str] = []
            while not (found := re.search(r"the page is at (http://127\.0\.0\.1:\d+/)", "".join(said))):
                line = process.stderr.readline()
                assert line, said
                said.append(line)
            address, state, end_s = found[1], {"streams": [{"judged": 0}]}, time.monotonic() + LIMIT_S
            while state["streams"][0]["judged"] < 5:
                assert time.monotonic() < end_s
                time.sleep(0.1)
                with urllib.request.urlopen(f"{address}api/state", timeout=10) as answer:
                    state = json.load(answer)
            assert [sink["name"] for sink in state["sinks"]] == ["json-lines"]  # type: ignore[index,call-overload]
            process.send_signal(signal.SIGTERM)
            said.append(process.stderr.read())
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()
    counts = re.search(r"stopped: (\d+) frames in .* (\d+) dropped", "".join(said))
    assert counts, said
    judged = int(counts[1])
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert sum("verdict" in line for line in lines) == judged


def test_every_kind_of_sink_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "something-long-enough")
    for table, kind in (
        ({"kind": "json-lines", "path": "a.jsonl"}, JsonLinesSink),
        ({"kind": "rejects", "folder": "rejects"}, RejectsSink),
        ({"kind": "video", "path": "a.mp4"}, VideoSink),
        ({"kind": "mqtt", "host": "h", "user": "u", "password_from": "env:SECRET"}, MqttSink),
        ({"kind": "webhook", "url": "http://h/x", "token_from": "env:SECRET"}, WebhookSink),
    ):
        assert isinstance(make_sink(SinkSettings.from_table(table, "[[sink]]", tmp_path)), kind)
    monkeypatch.delenv("SECRET")
    with pytest.raises(ConfigError, match="SECRET"):
        make_sink(
            SinkSettings.from_table(
                {"kind": "webhook", "url": "http://h/x", "token_from": "env:SECRET"}, "[[sink]]", tmp_path
            )
        )
