"""The page in a real browser: it loads, the picture moves, and what people do there is what the line does."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.frame import Crop, Frame, Outputs, Prediction
from nnet_edge.runtime.stream.judge import BatchTimes, Judge, PartOutputs
from nnet_edge.runtime.stream.model import Model, hears, load_model
from nnet_edge.scoring import choose_threshold
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.line import LineSettings
from nnet_edge.settings.policy import EVERY_FRAME
from nnet_edge.settings.recipe import Recipe, RecipeStream
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.stream import BufferSettings, LineStream, Smoothing, TriggerSettings, VerdictSettings
from nnet_edge.settings.web import WebSettings

TOKEN = "a-token-of-some-length"
CARD = "document.querySelector('.card')"


def open_page(browser: Any, site: Any) -> None:
    """The page with one card that shows a picture."""
    browser.open(site.server.address)
    browser.wait(f"{CARD} && {CARD}.querySelector('.picture').naturalWidth > 0")


@pytest.mark.slow
def test_the_page_loads_the_picture_moves_and_people_steer_the_line(browser: Any, serve: Any, until: Any) -> None:
    with serve() as site:
        open_page(browser, site)
        assert browser.value("document.querySelector('.card .name').textContent") == "left"
        browser.wait("document.querySelector('.card .state').textContent === 'live'")
        assert browser.value(f"{CARD}.classList.contains('good')")

        frame = browser.value(f"{CARD}.dataset.frame")
        pixels = browser.value(SUM_OF_PIXELS)
        browser.wait(f"{CARD}.dataset.frame !== '{frame}'")
        browser.wait(f"({SUM_OF_PIXELS}).then((sum) => sum !== {pixels})")

        assert not browser.value("document.querySelector('.threshold').offsetParent")  # no slip of a finger moves it
        browser.click(".adjust")
        browser.wait("/ of the last [1-9][0-9]/.test(document.querySelector('.would').textContent)")
        browser.value(
            "(() => { const s = document.querySelector('.threshold'); s.value = 250;"
            " s.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )  # 0.25 of twice the threshold: 0.4, and every frame scores 0.6
        would = browser.value("document.querySelector('.would').textContent")
        count = int(would.split("would reject: ")[1].split(" of")[0])
        assert count == int(would.split("the last ")[1].split(" ")[0]) > 0
        assert site.line.streams()[0].threshold == pytest.approx(0.8)
        browser.click(".apply")
        until(lambda: site.line.streams()[0].threshold == pytest.approx(0.4))
        browser.wait(f"{CARD}.classList.contains('bad')")
        browser.wait("document.querySelectorAll('#gallery button').length > 0")

        browser.click(".draw")
        browser.drag(".regions", (0.55, 0.1), (0.95, 0.9))  # the right half: the square lies in the left one
        browser.click(".draw-save")
        until(lambda: site.line.streams()[0].settings.verdict.regions_of_interest)
        (((x, y), *_),) = site.line.streams()[0].settings.verdict.regions_of_interest
        assert (x, y) == (pytest.approx(0.55 * 320, abs=2), pytest.approx(0.1 * 240, abs=2))
        browser.wait(f"{CARD}.classList.contains('good')")
        assert site.line.latest("left").is_masked
        browser.wait(
            "document.querySelector('.would').textContent.startsWith('rejects: 0 of the last ')"
        )  # of these regions

        browser.click(".pause")
        browser.wait("document.querySelector('.card .state').textContent === 'paused'")
        assert site.line.streams()[0].is_paused
        browser.wait("document.querySelector('.card .word').textContent === 'PAUSED'")  # no old verdict is shown as new
        assert not browser.value(f"{CARD}.classList.contains('good')")
        browser.click(".pause")
        browser.wait("document.querySelector('.card .state').textContent === 'live'")

        ground = "getComputedStyle(document.body).backgroundColor"
        before = browser.value(ground)
        browser.click("#theme")
        browser.wait(f"{ground} !== '{before}'")  # dark, or light again
        for width, height in ((820, 1180), (1180, 820)):  # a tablet, held either way
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True
            )
            assert browser.value("document.documentElement.scrollWidth <= innerWidth")
            sizes = browser.value("[...document.querySelectorAll('.card button')].filter((b) => b.offsetParent)"
                                  ".map((b) => b.getBoundingClientRect().height)")  # fmt: skip
            assert min(sizes) >= 28  # pixels of the screen: a finger hits it
        assert not browser.complaints


@pytest.mark.slow
def test_the_threshold_is_set_from_the_last_good_parts_by_a_button(
    browser: Any, serve: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnet_edge.runtime.stream.first_frames.OTHER", 0.1)  # the pictures differ by a wandering line
    chosen = choose_threshold(np.linspace(0.1, 0.8, 10)).as_dict()  # 1 of 11
    manifest = {"threshold": chosen, "files": {"nnet.onnx": "0123456789ab"}}
    with serve(manifest=manifest) as site:
        open_page(browser, site)
        browser.click(".adjust")
        browser.value("document.querySelector('.adapt-count').value = 900")
        browser.click(".adapt")
        browser.wait("document.querySelector('#fault').textContent.includes('900 pictures were asked for')")
        assert site.line.streams()[0].threshold == 0.8
        until(lambda: len(site.line.scores("left")) > 60)  # at ten a second, twelve of them were looked at
        browser.value("document.querySelector('.adapt-count').value = 12")
        browser.click(".adapt")
        until(lambda: 0.55 < site.line.streams()[0].threshold < 0.65)
        browser.wait("document.querySelector('[data-fact=adapting]')?.textContent === 'done'")


@pytest.mark.slow
def test_a_triggered_camera_and_a_recipe_by_buttons(browser: Any, serve: Any, until: Any, make_runner: Any) -> None:
    settings = LineSettings(
        (LineStream("left", CameraSettings("synthetic")),), Path("old"), web=WebSettings(),
        recipes=(Recipe("m8"), Recipe("m10", Path("new"), (RecipeStream("left", verdict=VerdictSettings(threshold=0.3)),))),
    )  # fmt: skip

    def load(path: Path) -> Model:
        return Model(path.name, path, make_runner(), 0.8)

    trigger = TriggerSettings(window_ms=400, deadline_ms=2000)
    with serve(path=Path("old"), load=load, written=settings, trigger=trigger) as site:
        browser.open(site.server.address)
        browser.wait(f"{CARD} !== null")
        browser.click(".adjust")
        browser.click(".trigger")
        until(lambda: site.line.latest("left") is not None)
        browser.wait("document.querySelector('[data-fact=triggers]')?.textContent === '1'")
        browser.wait("document.querySelector('[data-fact=trigger_p50_p99]').textContent.includes('max')")
        browser.wait(f"{CARD}.classList.contains('good')")
        assert browser.value("document.querySelector('#swap-what').textContent") == "Recipe"
        options = "[...document.querySelector('#bundles').options].map((o) => o.textContent)"
        assert browser.value(options) == ["m8 (judges now)", "m10"]
        browser.value("document.querySelector('#bundles').value = 'm10'")
        browser.click("#swap")
        browser.wait(f"{options}.join() === 'm8,m10 (judges now)'")
        browser.click(".trigger")
        browser.wait(f"{CARD}.classList.contains('bad')")
        assert site.line.latest("left").frame.recipe == "m10"
        assert not browser.complaints


def test_what_a_threshold_would_reject_is_counted_as_the_line_judges(browser: Any, serve: Any) -> None:
    """Every verdict is that of a real judge with the same smoothing, for each crop by itself."""
    scores = [0.2, 0.9, 0.3, 0.8, 0.7, 0.1, 0.2, 0.9, 0.1, 0.95, 0.9, 0.3]
    crops = [Crop("nut", 0, 0, 8, 8), Crop("bolt", 8, 0, 8, 8)]
    whole = Frame(np.zeros((8, 16, 3), np.uint8), 0, 0.0)
    with serve() as site:
        open_page(browser, site)
        for n, m, in_crops in ((1, 1, False), (2, 3, False), (3, 5, False), (1, 3, True), (2, 2, True)):
            settings = VerdictSettings(0.5, smoothing=Smoothing(n, m), crops=tuple(crops) if in_crops else ())
            judge, rows = Judge(settings, 0.5), []
            for number, score in enumerate(scores):
                crop = crops[number % 2] if in_crops else None
                outputs = Outputs(np.full((1, 256, 256), score, np.float32), np.array([score], np.float32))
                parts, times = [replace(whole, crop=crop)], BatchTimes(0.0, 0.0, 0.0)
                (found,) = judge.judge(whole, parts, [PartOutputs(outputs, 0)], times, False)
                rows.append([number, score, int(found.is_anomalous), None if crop is None else crop.name])
            counted = browser.value(f"countRejects({json.dumps(rows)}, 0.5, [{n}, {m}])")
            assert counted == sum(row[2] for row in rows) > 0
        assert browser.value(f"countRejects({json.dumps(rows)}, 0.5, null)") == sum(score > 0.5 for score in scores)


@pytest.mark.slow
def test_a_line_that_answers_no_more_shows_no_verdict(browser: Any, serve: Any) -> None:
    with serve() as site:
        open_page(browser, site)
        browser.wait(f"{CARD}.classList.contains('good')")
        site.server._listening._server.should_exit = True
        browser.wait("document.querySelector('.card .word').textContent === 'NO ANSWER'")
        assert not browser.value(f"{CARD}.classList.contains('good')")


SUM_OF_PIXELS = """(async () => {
  const picture = document.querySelector('.picture'); await picture.decode().catch(() => null);
  const canvas = new OffscreenCanvas(160, 120), paint = canvas.getContext('2d');
  paint.drawImage(picture, 0, 0, 160, 120);
  return paint.getImageData(80, 0, 80, 120).data.reduce((sum, value, place) => sum + value * (place % 997), 0); })()"""


@pytest.mark.slow
def test_streams_are_added_and_removed_and_rejects_opened(browser: Any, serve: Any, until: Any) -> None:
    with serve(brightness=230) as site:
        open_page(browser, site)
        browser.wait("document.querySelectorAll('#gallery img').length > 0")
        browser.click("#gallery button")
        browser.wait("document.querySelector('#reject-picture').naturalWidth > 0")
        assert browser.value(
            "fetch(document.querySelector('#reject-original').href).then((answer) => answer.headers.get('content-disposition'))"
        ).startswith("attachment")
        browser.click("#reject-dialog .cancel")

        browser.click("#add")
        browser.click("#add-form input[name=name]")
        browser.write_text("right")
        browser.click("#add-form input[name=address]")
        browser.write_text("/etc")
        browser.click("#add-form button[type=submit]")
        browser.wait("document.querySelector('.dialog-fault').textContent.includes('may not add')")
        browser.value("document.querySelector('#add-form input[name=address]').value = 'synthetic'")
        browser.click("#add-form button[type=submit]")
        browser.wait("document.querySelectorAll('.card').length === 2")
        assert [status.name for status in site.line.streams()] == ["left", "right"]
        browser.click("[data-stream=right] .adjust")
        browser.click("[data-stream=right] .remove")
        browser.wait("document.querySelectorAll('.card').length === 1")
        assert [status.name for status in site.line.streams()] == ["left"]


@pytest.mark.slow
def test_what_differs_from_the_file_is_listed_and_written_to_it(
    browser: Any, serve: Any, keeps: Any, tmp_path: Path
) -> None:
    panel = "document.querySelector('#changes-panel')"
    with serve(keeps=keeps, path=tmp_path / "part") as site:
        open_page(browser, site)
        assert browser.value(f"{panel}.hidden")
        site.ask("/api/streams/left/threshold", {"value": 0.9}, site.session())
        browser.wait(f"!{panel}.hidden && {panel}.textContent.includes('left: threshold 0.9 instead of the default')")
        assert browser.value(f"{panel}.textContent.includes('Differs from line.toml')")
        browser.value("window.confirm = () => true")
        browser.click("#changes-write")
        browser.wait(f"{panel}.hidden")
        assert "threshold = 0.9" in (tmp_path / "line.toml").read_text()
        site.ask("/api/streams/left/threshold", {"value": 0.8}, site.session())
        browser.wait(f"!{panel}.hidden")
        browser.click("#changes-forget")
        browser.wait(f"{panel}.hidden")
        assert site.line.stream("left").judge.threshold == 0.9


@pytest.mark.slow
def test_a_bad_token_is_refused_and_the_right_one_opens_the_page(
    browser: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGE_TOKEN", TOKEN)
    with serve(WebSettings(port=0, token_from="env:PAGE_TOKEN")) as site:
        browser.open(site.server.address)
        browser.click("#token")
        browser.write_text("a-token-that-is-wrong")
        browser.click("button[type=submit]")
        browser.wait("document.querySelector('#fault').textContent === 'the token is wrong'")
        assert not browser.value("document.querySelector('.card')")
        browser.click("#token")
        browser.write_text(TOKEN)
        browser.click("button[type=submit]")
        browser.wait(f"{CARD} && {CARD}.querySelector('.picture').naturalWidth > 0")
        assert TOKEN not in browser.value("document.documentElement.outerHTML + document.cookie")
        browser.click("#logout")
        browser.wait("document.querySelector('#token') !== null")


IN_VIEW = """(selector) => { const box = document.querySelector(selector).getBoundingClientRect();
  return box.height > 0 && box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth; }"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_how_far_a_swap_is_and_why_it_was_refused_stand_beside_its_button_in_view(
    browser: Any, serve: Any, make_runner: Any, tmp_path: Path, width: int, height: int
) -> None:
    for name in ("old", "new", "broken", "gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    go_on = threading.Event()

    def load(path: Path) -> Model:
        hears.get()("asking its known answers")
        assert go_on.wait(20)
        if path.name == "broken":
            raise ConfigError(
                f"{path}/nnet.onnx does not give its known answers: " + "it has 1.2 and must have 0.8; " * 9
            )
        return Model(path.name, path, make_runner(), 0.3)

    def choose(name: str) -> None:
        browser.value(f"document.querySelector('#bundles').value = '{name}'")
        browser.click("#swap")

    listed = "[...document.querySelector('#bundles').options].map((option) => option.textContent)"
    told = "document.querySelector('#swap-told')"
    with serve(path=tmp_path / "old", load=load) as site:
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        open_page(browser, site)
        browser.value("window.confirm = () => true")
        assert browser.value(listed) == ["broken", "gone", "new", "old (judges now)"]
        choose("broken")
        browser.value("scrollTo(0, document.body.scrollHeight)")  # somebody looks at the rejects meanwhile
        browser.wait(f"/^broken: asking its known answers, [0-9]+ s$/.test({told}.textContent)")
        go_on.set()
        browser.wait(f"{told}.textContent.startsWith('broken was not swapped in, the old one judges on: ')")
        assert browser.value(f"({IN_VIEW})('#swap-told')")
        assert browser.value(listed)[-1] == "old (judges now)"
        (tmp_path / "gone/manifest.json").rename(tmp_path / "gone/other.json")  # the page's list may be older
        choose("gone")
        browser.wait(f"{told}.textContent.startsWith('gone was not swapped in: there is no bundle gone')")
        assert browser.value(f"({IN_VIEW})('#swap-told')")
        assert browser.value("document.querySelector('#fault').hidden")
        choose("new")
        browser.wait(f"/^new judges, after [0-9.]+ s$/.test({told}.textContent)")
        browser.wait(f"{listed}.includes('new (judges now)') && {listed}.includes('old')")
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        browser.value("scrollTo(0, document.body.scrollHeight); showFault('the region is invalid')")
        assert browser.value(f"({IN_VIEW})('#fault')")  # what any other control has to say, wherever the page stands
        browser.click("#fault")
        assert browser.value("document.querySelector('#fault').hidden")


@pytest.mark.slow
def test_a_real_bundle_is_swapped_for_another_from_the_page_and_no_frame_is_lost(
    browser: Any, serve: Any, until: Any, trained_run: Path, tmp_path: Path
) -> None:
    """Two bundles on OpenVINO; by the second one's threshold, a hundredth, every part is a reject."""
    for name, share in (("old", 100.0), ("new", 0.01)):
        folder = Path(shutil.copytree(trained_run / "bundle", tmp_path / "bundles" / name))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["data"]["name"] = name
        manifest["threshold"]["value"] *= share
        (folder / "manifest.json").write_text(json.dumps(manifest))

    stages: list[str] = []

    def load(path: Path) -> Any:
        tell = hears.get()
        hears.set(lambda stage: (stages.append(stage), tell(stage)))
        return load_model(path, RunnerSettings(kind="openvino", max_batch=2, threads=1))

    seen: list[Prediction] = []
    first = load(tmp_path / "bundles/old")
    with serve(model=first, load=load, buffer=BufferSettings(EVERY_FRAME, 8), rate_hz=10.0) as site:
        site.line.subscribe(seen.append)
        begin = site.line.buffer.counts("left").judged
        open_page(browser, site)
        browser.wait("document.querySelector('#bundle').textContent.startsWith('old on openvino')")
        assert browser.value("[...document.querySelector('#bundles').options].map((o) => o.value)") == ["new", "old"]
        browser.wait(f"{CARD}.classList.contains('good')")
        browser.value("document.querySelector('#bundles').value = 'new'")
        browser.click("#swap")
        browser.wait("document.querySelector('#bundle').textContent.startsWith('new on openvino')", 60)
        browser.wait(f"{CARD}.classList.contains('bad')")
        browser.wait("document.querySelector('#events').textContent.includes('bundle.swapped')")
        until(lambda: sum(one.is_anomalous for one in seen) > 5)
        assert not browser.complaints
        found = site.ask("/api/state")[1]["swap"]
        assert (found["state"], found["stage"], found["reason"]) == ("done", None, None)
    assert stages == [
        "reading and checking its files",
        "loading nnet.onnx",
        "asking its known answers",
        "warming up",
    ] * 2 + ["waiting for the gap between two batches"]
    (report,) = site.reports
    indices = [one.frame.index for one in seen]
    assert indices == list(range(indices[0], indices[0] + len(indices)))  # not one is missing
    assert indices[0] <= begin + 1
    verdicts = [one.is_anomalous for one in seen]
    assert verdicts == sorted(verdicts)  # once, between two frames
    assert set(verdicts) == {False, True}
    assert set(report.total.dropped) <= {"stopped"}
