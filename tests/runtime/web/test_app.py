"""The page's addresses over real HTTP and WebSockets on loopback."""

from __future__ import annotations

import json
import logging
import re
import threading
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from nnet_edge.cli import run
from nnet_edge.cli.swap import PageClient
from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.web import state
from nnet_edge.runtime.web.app import LARGEST_BODY
from nnet_edge.runtime.web.server import WebServer
from nnet_edge.scoring import choose_threshold
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.line import LineSettings
from nnet_edge.settings.recipe import Recipe, RecipeStream
from nnet_edge.settings.stream import LineStream, TriggerSettings, VerdictSettings
from nnet_edge.settings.web import WebSettings

TOKEN = "a-token-of-some-length"


def test_the_state_holds_every_stream_and_scores_come_once(serve: Any, until: Any) -> None:
    with serve() as site:
        until(lambda: site.line.streams()[0].counts.judged >= 5)
        status, found, _ = site.ask("/api/state")
        assert status == 200
        (stream,) = found["streams"]
        assert (stream["name"], stream["state"], stream["size"]) == ("left", "live", [320, 240])
        assert stream["captured"] == stream["judged"] + sum(stream["dropped"].values()) + stream["queued"]
        assert stream["last"]["is_anomalous"] is False
        assert stream["latency_ms"]["total"]["p50"] > 0
        newest = found["scores"]["left"][-1]
        assert newest[1] == pytest.approx(0.6, abs=0.01)
        _, later, _ = site.ask(f"/api/state?after={newest[0]}")
        assert all(number > newest[0] for number, *_ in later["scores"].get("left", []))
        assert site.ask("/readyz")[:2] == (200, {"status": "ok", "reasons": []})
        assert site.ask("/healthz")[0] == 200
        site.server.line_ended()
        assert site.ask("/healthz")[0] == 503
        assert site.ask("/readyz")[1]["reasons"] == ["the line has ended"]


def test_the_line_is_not_ready_while_a_source_is_lost(serve: Any, until: Any, free_port: Any) -> None:
    with serve() as site:
        address = f"http://127.0.0.1:{free_port()}/video"
        status, _, _ = site.ask("/api/streams", {"name": "gone", "address": address}, site.session())
        assert status == 201
        until(lambda: site.ask("/readyz")[0] == 503)
        assert "gone" in site.ask("/readyz")[1]["reasons"][0]
        site.ask("/api/streams/gone/pause", {}, site.session())
        assert site.ask("/readyz")[0] == 200


def test_the_line_is_not_ready_while_a_picture_is_frozen(serve: Any, until: Any) -> None:
    with serve() as site:
        camera = CameraSettings("synthetic", frozen_s=0.3)
        still = SyntheticSource(repeat(np.zeros((8, 8, 3), np.uint8)), 20.0)
        site.line.add_source(LineStream("still", camera), still)
        until(lambda: "stream still: its picture has not changed for" in str(site.ask("/readyz")[1]["reasons"]))
        assert site.ask("/readyz")[0] == 503
        assert site.ask("/healthz")[0] == 200
        assert site.ask("/api/state")[1]["streams"][1]["frozen_s"] >= 0.3
        site.line.pause("still")
        assert site.ask("/readyz")[0] == 200


def test_a_runner_that_hangs_is_no_good_health(
    serve: Any, until: Any, make_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STALL_LIMIT_S", 0.5)
    runner = make_runner()
    with serve(model=Model("parts", None, runner, 0.8)) as site:
        assert site.ask("/healthz")[0] == 200
        runner.infer_s = 3.0
        until(lambda: site.ask("/healthz")[0] == 503)
        until(lambda: "the runner hangs" in str(site.ask("/readyz")[1]["reasons"]))
        until(lambda: "the runner hangs" in str(site.ask("/api/state")[1]["faults"]))
        until(lambda: float(re.findall(rb"^nnet_edge_stalled_seconds (\S+)$", site.ask("/metrics")[1], re.M)[0]) > 0.5)
        runner.infer_s = 0.0
        until(lambda: site.ask("/healthz")[0] == 200)


def test_a_stream_that_is_removed_meanwhile_is_left_out(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as site:
        site.ask("/api/streams", {"name": "right", "address": "synthetic"}, site.session())
        both = site.line.streams()
        assert [status.name for status in both] == ["left", "right"]
        site.line.remove("right")
        monkeypatch.setattr(site.line, "streams", lambda: both)  # the moment between two looks
        status, found, _ = site.ask("/api/state")
        assert (status, [stream["name"] for stream in found["streams"]]) == (200, ["left"])
        status, text, _ = site.ask("/metrics")
        assert status == 200
        assert b'stream="left"' in text
        assert b'stream="right"' not in text


def test_scores_begin_again_with_other_regions_and_end_with_their_stream(
    serve: Any, until: Any, make_prediction: Any
) -> None:
    with serve() as site:
        until(lambda: len(site.server.gallery.scores()["left"]) >= 5)
        before = site.server.gallery.scores()["left"][-1].number
        headers = site.session()
        site.ask("/api/streams/left/regions", {"ignored": [[[0, 0], [160, 0], [160, 240], [0, 240]]]}, headers)
        found = site.ask("/api/state")[1]
        first = found["streams"][0]["scores_from"]
        assert first > before
        until(lambda: site.server.gallery.scores().get("left"))
        assert all(number > first for number, *_ in site.ask("/api/state")[1]["scores"]["left"])
        site.ask("/api/streams/left/remove", {}, headers)
        late = make_prediction()
        site.server.gallery._take(replace(late, frame=replace(late.frame, stream="left")))  # that was under way
        assert site.server.gallery.scores() == {}
        assert site.server.gallery.drift.now("left") is None


def test_a_mask_picture_stays_when_a_region_is_drawn_and_goes_when_all_are_removed(
    serve: Any, until: Any, pictures: Any, tmp_path: Path
) -> None:
    mask = np.full((240, 320), 255, np.uint8)
    mask[60:140, 30:110] = 0  # not the bright square
    assert cv2.imwrite(str(tmp_path / "mask.png"), 255 - mask)
    verdict = VerdictSettings(ignored_picture=tmp_path / "mask.png")
    with serve() as site:
        masked = LineStream("masked", CameraSettings("synthetic"), verdict=verdict)
        site.line.add_source(masked, SyntheticSource(pictures(), 20.0))
        until(lambda: site.line.latest("masked"))
        assert site.line.latest("masked").image_score < 0.5
        headers, path = site.session(), "/api/streams/masked/regions"
        site.ask(path, {"ignored": [[[300, 0], [310, 0], [310, 10], [300, 10]]]}, headers)
        newest = site.line.latest("masked").frame.index
        until(lambda: site.line.latest("masked").frame.index > newest + 3)
        assert site.line.latest("masked").image_score < 0.5  # the square is left out still
        assert site.ask("/api/state")[1]["streams"][1]["has_mask_picture"]
        site.ask(path, {"regions_of_interest": [], "ignored": []}, headers)
        until(lambda: site.line.latest("masked").image_score > 0.5)
        assert not site.ask("/api/state")[1]["streams"][1]["has_mask_picture"]


def test_the_page_knows_which_sources_it_may_add(serve: Any, tmp_path: Path) -> None:
    with serve(WebSettings(port=0, addable=("rtsp", "file"), source_folder=tmp_path)) as site:
        headers = site.session()
        assert site.ask("/api/session", headers=headers)[1]["sources"] == [
            "an rtsp:// address", "a path below source_folder"]  # fmt: skip
        for address in ("synthetic", "0", "/dev/video0", "http://h/", "udp://h:1", "/etc", "../x"):
            status, found, _ = site.ask("/api/streams", {"name": "x", "address": address}, headers)
            assert (status, "may add" in found["error"]) == (400, True), address
        for option in ("watch", "skip_bad_images", "at_own_rate", "options", "jitter"):
            status, found, _ = site.ask("/api/streams", {"name": "x", "address": "rtsp://h/", option: 1}, headers)
            assert (status, "is unknown" in found["error"]) == (400, True), option
        assert site.ask("/api/streams/left/dance", {}, headers)[0] == 404


def test_writes_do_what_they_say(serve: Any, until: Any) -> None:
    with serve() as site:
        headers = site.session()
        assert site.ask("/api/streams/left/threshold", {"value": 0.5}, headers)[:2] == (200, {"threshold": 0.5})
        until(lambda: site.line.latest("left").is_anomalous)
        assert site.ask("/api/streams/left/threshold", {"value": None}, headers)[1] == {"threshold": 0.8}
        assert (
            site.ask("/api/streams/left/regions", {"ignored": [[[0, 0], [160, 0], [160, 240], [0, 240]]]}, headers)[0]
            == 200
        )
        until(lambda: site.line.latest("left").is_masked)
        assert site.line.latest("left").image_score < 0.4
        assert site.ask("/api/streams/left/remove", {}, headers)[0] == 200
        assert site.line.streams() == []


def test_what_the_page_changes_is_shown_kept_written_and_forgotten(serve: Any, keeps: Any, tmp_path: Path) -> None:
    kept_at = tmp_path / "line.state.json"
    with serve(keeps=keeps, path=tmp_path / "part") as site:
        page = site.session()

        def rows() -> list[tuple[str, str, str]]:
            found = site.ask("/api/state", headers=page)[1]["changes"]
            assert (found["file"], found["state"], found["fault"]) == ("line.toml", kept_at.name, None)
            return [(row["stream"], row["key"], row["by"]) for row in found["rows"]]

        assert rows() == []
        assert site.ask("/api/streams/left/threshold", {"value": 0.9}, page)[0] == 200
        assert rows() == [("left", "threshold", "page at 127.0.0.1")]
        assert json.loads(kept_at.read_text())["changes"][0]["value"] == 0.9
        assert site.ask("/api/changes/forget", {}, page)[0] == 200
        assert rows() == []
        assert not kept_at.exists()
        assert site.line.stream("left").judge.threshold == site.line.model().threshold
        assert site.ask("/api/streams/left/threshold", {"value": 0.8}, page)[0] == 200
        assert site.ask("/api/streams", {"name": "more", "address": "synthetic:3"}, page)[0] == 201
        assert [key for _, key, _ in rows()] == ["threshold", "stream"]
        assert site.ask("/api/changes/write", {}, page)[0] == 200
        assert rows() == []
        text = (tmp_path / "line.toml").read_text()
        assert "threshold = 0.8" in text
        assert 'address = "synthetic:3"' in text
        assert "# the left one" in text
        kept_at.mkdir()  # nobody can write there
        status, said, _ = site.ask("/api/streams/left/threshold", {"value": 0.7}, page)
        assert (status, "gone after a restart" in said["error"]) == (400, True)
        assert "gone after a restart" in site.ask("/api/state", headers=page)[1]["changes"]["fault"]
        assert site.ask("/api/changes/burn", {}, page)[0] == 404
        assert site.ask("/api/changes/write", {})[0] == 403  # not from another page
    with serve() as site:
        assert site.ask("/api/state", headers=site.session())[1]["changes"] is None
        status, said, _ = site.ask("/api/changes/forget", {}, site.session())
        assert (status, "start it with --config or --state" in said["error"]) == (400, True)


def test_the_threshold_is_set_from_the_last_good_parts(
    serve: Any, until: Any, keeps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnet_edge.runtime.stream.first_frames.OTHER", 0.1)  # the pictures differ by a wandering line
    chosen = choose_threshold(np.linspace(0.1, 0.8, 10)).as_dict()  # 1 of 11
    manifest = {"threshold": chosen, "files": {"nnet.onnx": "0123456789ab"}}
    with serve(keeps=keeps, path=tmp_path / "part", manifest=manifest) as site:
        page = site.session()
        assert site.ask("/api/streams/left/adapt", {"pictures": 12})[0] == 403  # not from another page
        until(lambda: site.ask("/api/streams/left/adapt", {"pictures": 12}, page)[0] == 200)
        status, said, _ = site.ask("/api/streams/left/adapt", {"pictures": 12}, page)
        assert (status, said["pictures"]) == (200, 12)
        assert 0.55 < said["threshold"] < 0.65  # every frame scores 0.6, the bundle's threshold is 0.8
        (row,) = site.ask("/api/state", headers=page)[1]["changes"]["rows"]
        assert (row["stream"], row["key"], row["by"]) == ("left", "adapted", "page at 127.0.0.1")
        told = next(event for event in reversed(site.line.events.newest()) if event.kind == "adapt.done")
        assert told.facts["by"] == "page at 127.0.0.1"
        status, said, _ = site.ask("/api/streams/left/adapt", {"pictures": 900}, page)
        assert (status, "900 pictures were asked for" in said["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/streams/left/adapt", {"pictures": 12}),
        ("/api/streams/left/adapt", {"pictures": 0}),
        ("/api/streams/left/adapt", {"pictures": True}),
        ("/api/streams/left/adapt", {"pictures": "60"}),
        ("/api/streams/left/adapt", {"pictures": 10**400}),
        ("/api/streams/left/adapt", {}),
        ("/api/streams/left/threshold", {"value": -1}),
        ("/api/streams/left/threshold", {"value": "0.5"}),
        ("/api/streams/left/threshold", {"value": True}),
        ("/api/streams/left/threshold", {"value": 10**400}),
        ("/api/streams/left/regions", {"ignored": [[[0, 0], [9, 0], [9, 10**400]]]}),
        ("/api/streams/nobody/pause", {}),
        ("/api/streams/left/regions", {}),
        ("/api/streams/left/regions", {"ignored": [[[0, 0], [1, 1]]]}),
        ("/api/streams/left/regions", {"ignored": [[[0, 0], ["x", 1], [2, 2]]]}),
        ("/api/streams/left/regions", {"ignored": [[[0, 0], [320, 0], [320, 240], [0, 240]]]}),
        ("/api/streams", {"name": "x", "address": "/etc"}),
        ("/api/streams", {"name": "x", "address": "file:///etc/passwd"}),
        ("/api/streams", {"name": "x", "address": "gstreamer:filesrc location=/etc/passwd ! appsink"}),
        ("/api/streams", {"name": "x", "address": "rtsp://user:pass@camera/"}),
        ("/api/streams", {"name": "x", "address": "synthetic", "credentials": "file:/etc/shadow"}),
        ("/api/streams", {"name": "x", "address": "rtsp://[x"}),
        ("/api/streams", {"name": "x", "address": "http://camera:port/1"}),
        ("/api/streams", {"name": "../x", "address": "synthetic"}),
        ("/api/streams", {"name": "left", "address": "synthetic"}),
        ("/api/swap", {"bundle": "x"}),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(serve: Any, path: str, fields: Any) -> None:
    with serve() as site:
        status, found, _ = site.ask(path, fields, site.session())
        assert status == 400
        assert found["error"]
        assert "pass" not in found["error"].replace("password", "")
        assert [item.name for item in site.line.streams()] == ["left"]
        assert site.line.streams()[0].threshold == 0.8


def test_foreign_pages_and_broken_requests_are_refused(serve: Any) -> None:
    with serve() as site:
        headers = site.session()
        path = "/api/streams/left/pause"
        assert site.ask("/", headers={"host": "evil.example"})[0] == 421
        assert site.ask(path, {}, {"cookie": headers["cookie"]})[0] == 403
        assert site.ask(path, {}, {"x-csrf-token": headers["x-csrf-token"]})[0] == 403
        assert site.ask(path, {}, headers | {"origin": "http://evil.example"})[0] == 403
        assert site.ask(path, None, headers | {"content-type": "text/plain"}, body=b"{}")[0] == 415
        assert site.ask(path, None, headers, body=b"{")[0] == 400
        assert site.ask(path, None, headers, body=b"[]")[0] == 400
        assert site.ask(path, None, headers, body=b"[" * 60_000)[0] == 400
        assert site.ask(path, None, headers, body=b" " * (LARGEST_BODY + 1))[0] == 413
        assert site.ask(path, headers=headers)[0] == 405
        assert site.ask("/static/../app.py")[0] == 404
        assert site.ask("/static/%2e%2e%2fapp.py")[0] == 404
        assert site.ask("/api/rejects/1/__class__")[0] == 404
        assert site.ask("/api/state?after=x")[0] == 200
        assert not site.line.streams()[0].is_paused
        _, _, given = site.ask("/")
        assert "HttpOnly" in given["set-cookie"]
        assert "samesite=strict" in given["set-cookie"].lower()
        assert "frame-ancestors 'none'" in given["content-security-policy"]


def test_with_a_token_nothing_is_told_without_it(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PAGE_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    with serve(WebSettings(port=0, token_from="env:PAGE_TOKEN")) as site:
        for path in ("/api/state", "/api/session", "/api/rejects", "/metrics", "/api/rejects/1/original"):
            assert site.ask(path)[0] == 401, path
        assert b"left" not in site.ask("/")[1]
        assert site.ask("/healthz")[0] == 200
        assert site.ask("/readyz")[1] == {"status": "ok"}
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert site.ask("/metrics", headers=bearer)[0] == 200
        assert site.ask("/api/streams/left/pause", {}, bearer)[0] == 200
        assert site.ask("/api/streams/left/pause", {})[0] == 401
        with pytest.raises(InvalidStatus) as caught, connect(site.live):
            pass
        assert caught.value.response.status_code == 403
        with connect(site.live, additional_headers=bearer):
            pass
        assert TOKEN not in json.dumps(site.ask("/api/state", headers=bearer)[1])
    told = [record for record in caplog.records if record.name != "websockets.client"]  # that is this test itself
    assert not [record for record in told if TOKEN in record.getMessage() or record.levelno >= logging.ERROR]


def test_rejects_can_be_looked_at_and_downloaded(serve: Any, until: Any) -> None:
    with serve(brightness=230) as site:
        until(lambda: site.ask("/api/rejects")[1])
        newest = site.ask("/api/rejects?stream=left")[1][0]
        assert newest["score"] > newest["threshold"]
        status, content, headers = site.ask(f"/api/rejects/{newest['key']}/original?download=1")
        assert status == 200
        assert headers["content-disposition"] == f'attachment; filename="left-{newest["index"]}-original.png"'
        original = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert original is not None
        assert original.shape == (240, 320, 3)
        assert original[100, 60].tolist() == [230, 230, 230]
        assert site.ask("/api/rejects?stream=nobody")[1] == []


def test_a_bundle_is_swapped_by_the_command_line_without_losing_a_frame(
    serve: Any, make_runner: Any, tmp_path: Path, until: Any
) -> None:
    for name in ("old", "new", "broken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")

    def load(path: Path) -> Model:
        if path.name == "broken":
            raise ConfigError("the bundle was altered")
        return Model(path.name, path, make_runner(), 0.3)

    with serve(path=tmp_path / "old", load=load) as site:
        client = PageClient(site.server.address)
        client.swap("new")
        assert client.state()["bundle"]["bundle"] == "new"
        assert client.state()["streams"][0]["scores_from"] > 0  # older ones are of another scale
        until(lambda: site.line.latest("left").threshold == 0.3)
        until(lambda: site.line.latest("left").is_anomalous)
        with pytest.raises(StreamError, match="the bundle was altered"):
            client.swap("broken")
        assert client.state()["bundle"]["bundle"] == "new"
        for wrong in ("../old", "/etc", "absent"):
            with pytest.raises(StreamError, match="refuses"):
                client.swap(wrong)
    assert site.reports[0].total.captured == site.reports[0].total.judged + sum(site.reports[0].total.dropped.values())
    assert set(site.reports[0].total.dropped) <= {"stopped", "full"}


def test_the_page_triggers_and_changes_the_recipe(
    serve: Any, make_runner: Any, until: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = LineSettings(
        (LineStream("left", CameraSettings("synthetic")),), Path("old"), web=WebSettings(),
        recipes=(Recipe("m8"), Recipe("m10", Path("new"), (RecipeStream("left", verdict=VerdictSettings(threshold=0.3)),))),
    )  # fmt: skip
    trigger = TriggerSettings(window_ms=400, deadline_ms=2000)
    load = lambda path: Model(path.name, path, make_runner(), 0.8)  # noqa: E731
    with serve(path=Path("old"), load=load, written=settings, trigger=trigger) as site:
        headers = site.session()
        status, found, _ = site.ask("/api/streams/left/trigger", {"number": 7}, headers)
        assert (status, found) == (200, {"number": 7})
        until(lambda: site.line.latest("left") is not None)
        verdict = site.line.latest("left")
        assert (verdict.frame.trigger.number, verdict.frame.trigger.by, verdict.frame.recipe) == (7, "page", "m8")
        status, found, _ = site.ask("/api/streams/left/trigger", {"number": "seven"}, headers)
        assert (status, "a whole number from 0 to" in found["error"]) == (400, True)
        assert site.ask("/api/streams/left/trigger", {})[0] in (401, 403)  # without the page's token
        state = site.ask("/api/state")[1]
        assert (state["recipe"], state["recipes"]) == ("m8", ["m8", "m10"])
        stream = state["streams"][0]
        assert stream["triggers"] == {"triggers": 1, "verdicts": 1, "open": 0, "outcomes": {}}
        assert stream["latency_ms"]["trigger"]["max"] > 0
        run(["swap", "--recipe", "m10", "--url", site.server.address])
        assert "judges by the recipe m10" in capsys.readouterr().err
        site.line.trigger("left")
        until(lambda: site.line.latest("left").frame.recipe == "m10")
        assert (site.line.latest("left").threshold, site.line.latest("left").judged_by.bundle) == (0.3, "new")
        with pytest.raises(StreamError, match="there is no recipe called 'm9': there are m8, m10"):
            PageClient(site.server.address).swap(None, recipe="m9")
        until(lambda: site.line.streams()[0].triggers.verdicts == 2)
        text = site.ask("/metrics")[1].decode()
        assert 'nnet_edge_triggers_total{stream="left"} 2.0' in text
        assert 'nnet_edge_triggered_verdicts_total{stream="left"} 2.0' in text
        assert 'nnet_edge_latency_seconds_count{sink="",stage="trigger",stream="left"} 2.0' in text
        assert 'nnet_edge_trigger_latency_max_seconds{stream="left"}' in text


def test_a_port_that_is_taken_is_an_error_of_one_line(serve: Any) -> None:
    with serve() as site:
        with (
            pytest.raises(ConfigError, match="give another port"),
            WebServer(site.line, WebSettings(port=site.server.port)),
        ):
            pass
        assert site.ask("/healthz")[0] == 200


def test_no_thread_is_left(serve: Any, until: Any) -> None:
    with serve() as site:
        assert site.ask("/healthz")[0] == 200
    names = ("live page", "pictures of the page", "reject gallery")
    until(lambda: not [thread for thread in threading.enumerate() if thread.name in names])


def test_a_name_that_is_not_utf_8_costs_no_answer(serve: Any, until: Any) -> None:
    with serve() as site:
        site.line.events.tell("stream.failed", "left", reason="cannot read /mnt/teil_\udce4.png")
        status, found, _ = site.ask("/api/state")
        assert status == 200
        assert "teil_" in str(found["events"])
