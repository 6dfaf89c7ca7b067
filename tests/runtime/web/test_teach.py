"""Teaching on the page: parts are collected until they are enough, a bundle is trained, compared and swapped in."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.bundle import UNTAUGHT
from nnet_edge.errors import ConfigError
from nnet_edge.runtime.runners.untaught import UntaughtRunner
from nnet_edge.runtime.stream.model import Model, load_model
from nnet_edge.runtime.web import teach as module
from nnet_edge.runtime.web.teach import FEWEST, Comparison, Parts, home_of, is_flat
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.web import WebSettings


def noise(seed: int, spread: int = 40) -> np.ndarray:
    """A picture of smooth noise, uint8 BGR (48, 64, 3)."""
    rough = np.random.default_rng(seed).integers(100 - spread, 100 + spread, (6, 8, 3))
    return np.kron(rough, np.ones((8, 8, 1))).astype(np.uint8)


def test_the_curve_is_flat_once_new_parts_are_no_more_news() -> None:
    assert not is_flat([0.1] * (FEWEST - 1))
    assert is_flat([0.1] * FEWEST)
    falling = [1 / (1 + n) for n in range(FEWEST)]
    assert not is_flat(falling)
    assert is_flat([*falling, *[falling[-1]] * 40])


def test_parts_are_kept_once_and_found_again(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    assert [parts.add(noise(n)) for n in range(5)] == [1, 2, 3, 4, 5]
    assert parts.add(noise(3)) is None
    assert len(parts.curve) == 4
    assert min(parts.curve) > 0
    parts.remove(2)
    with pytest.raises(ConfigError, match="no picture 2"):
        parts.remove(2)
    again = Parts(tmp_path)
    assert list(again.novelty) == [1, 3, 4, 5]
    assert again.add(noise(1)) == 6


def test_a_disk_that_takes_no_picture_ends_the_collection_with_a_sentence(
    serve: Any, until: Any, tmp_path: Path
) -> None:
    (tmp_path / "left-001").write_text("a file where the folder should be")
    with serve(WebSettings(port=0, teach_folder=tmp_path)) as site:
        site.ask("/api/teach/start", {"stream": "left", "every_s": 0}, site.session())
        until(lambda: site.ask("/api/teach")[1]["stage"] == "collected")
        assert "cannot keep the picture" in site.ask("/api/teach")[1]["fault"]


def test_a_teaching_without_a_bundle_goes_on_and_another_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert home_of(tmp_path / "absent", "left").name == "left-001"
    (tmp_path / "left-001").mkdir()
    (tmp_path / "left-lid-007/bundle").mkdir(parents=True)
    assert home_of(tmp_path, "left").name == "left-001"
    (tmp_path / "left-001/bundle").mkdir()
    (tmp_path / "left-001/bundle/manifest.json").write_text("{}")
    assert home_of(tmp_path, "left").name == "left-002"
    assert home_of(tmp_path, "right").name == "right-001"


def test_a_line_that_is_not_taught_rejects_every_part(serve: Any, until: Any, tmp_path: Path) -> None:
    model = load_model(tmp_path / UNTAUGHT, RunnerSettings())
    assert "rejects every part" in model.warnings[0]
    with serve(model=model) as site:
        until(lambda: site.line.streams()[0].verdicts > 5)
        (stream,) = site.line.streams()
        assert stream.rejected == stream.verdicts
        assert site.line.latest("left").is_untaught
        assert site.ask("/api/rejects")[1] == []  # pictures of them would say nothing
        assert "not taught yet" in site.ask("/api/state")[1]["warnings"][0]
    outputs = UntaughtRunner().infer(np.zeros((3, 64, 64, 3), np.uint8))
    assert (outputs.image_score == 2).all()
    assert not len(outputs.broken())


def test_without_a_folder_the_page_does_not_teach(serve: Any) -> None:
    with serve() as site:
        assert site.ask("/api/teach")[1]["is_possible"] is False
        status, answer, _ = site.ask("/api/teach/start", {"stream": "left"}, site.session())
        assert status == 400
        assert "--teach FOLDER" in answer["error"]


def test_a_new_bundle_judges_beside_the_old_one_which_decides(
    serve: Any, until: Any, make_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEWEST", 1000)

    def load(path: Path) -> Model:
        return Model("new", path, make_runner(), 0.5)  # every frame scores 0.6; the old threshold is 0.8

    with serve(WebSettings(port=0, teach_folder=tmp_path), load=load) as site:
        headers, ask = site.session(), lambda: site.ask("/api/teach")[1]
        assert site.ask("/api/teach/compare", {"parts": 5}, headers)[0] == 400
        start = {"stream": "left", "every_s": 0}
        assert site.ask("/api/teach/start", start, headers)[1]["stage"] == "collecting"
        until(lambda: ask()["parts"] >= 3)
        for wrong in ({"stream": "nobody"}, {"stream": "left", "every_s": -1}, {}):
            assert site.ask("/api/teach/start", wrong, headers)[0] == 400
        number = ask()["pictures"][0]
        assert site.ask(f"/api/teach/pictures/{number}")[1][:2] == b"\xff\xd8"
        assert site.ask("/api/teach/remove", {"number": number}, headers)[0] == 200
        assert site.ask(f"/api/teach/pictures/{number}")[0] == 404
        assert site.ask("/api/teach/train", {}, headers)[0] == 400  # too few
        assert site.ask("/api/teach/stop", {}, headers)[1]["stage"] == "collected"
        site.server.teach.stage = "trained"
        assert site.ask("/api/teach/compare", {"parts": 4}, headers)[1]["stage"] == "comparing"
        until(lambda: ask()["stage"] == "compared")
        compared = ask()["compared"]
        assert (compared["seen"], compared["only_new"], compared["both_good"]) == (4, 4, 0)
        assert compared["median"] == pytest.approx(1.2)
        assert site.ask(f"/api/teach/differences/{compared['pictures'][0]}")[0] == 200
        assert site.line.streams()[0].rejected == 0  # the old one decided
        assert site.ask("/api/teach/swap", {}, headers)[1]["stage"] == "idle"
        until(lambda: site.line.model().name == "new")
        until(lambda: site.line.streams()[0].rejected > 0)
        assert site.ask("/api/teach/nonsense", {}, headers)[0] == 404


def test_a_first_bundle_is_not_compared_with_none() -> None:
    comparison = Comparison(10, is_first=True)
    assert comparison.as_dict()["median"] is None


def test_a_training_that_fails_says_why_and_one_is_cancelled(
    serve: Any, until: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEWEST", 2)
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    with serve(WebSettings(port=0, teach_folder=tmp_path)) as site:
        headers, ask = site.session(), lambda: site.ask("/api/teach")[1]
        site.ask("/api/teach/start", {"stream": "left", "every_s": 0}, headers)
        until(lambda: ask()["parts"] >= 2)
        monkeypatch.setattr(module, "TRAIN", "import sys; print('no parts here'); sys.exit(1)")
        assert site.ask("/api/teach/train", {}, headers)[1]["stage"] in ("training", "collected")
        until(lambda: ask()["stage"] == "collected")
        assert ask()["fault"] == "no parts here"
        niceness = "import os, time; print(os.nice(0), os.environ['OMP_NUM_THREADS'], flush=True); time.sleep(60)"
        monkeypatch.setattr(module, "TRAIN", niceness)
        site.ask("/api/teach/train", {}, headers)
        until(lambda: ask()["progress"])
        assert ask()["progress"].split()[0] == "19"
        process = site.server.teach._process
        assert site.ask("/api/teach/cancel", {}, headers)[1]["stage"] == "collected"
        assert process.poll() is not None
        site.ask("/api/teach/train", {}, headers)
        process = site.server.teach._process
    assert process.poll() is not None  # it ends with the line


def test_a_newcomer_clicks_from_a_bare_camera_to_a_judging_line(
    browser: Any, serve: Any, until: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEWEST", 16)
    monkeypatch.setattr(
        module, "FLAT", 0.1
    )  # the camera has no more than 70 pictures, some nearer to each other than others
    # in place of the training, which the test below has
    bundle = Path(__file__).parents[2] / "data/from_0_1/bundle"
    copies = "import shutil, sys; print('epoch 1', flush=True); home = sys.argv[sys.argv.index('--out') + 1]; "
    copies += f"__import__('time').sleep(1.2); shutil.copytree({str(bundle)!r}, home + '/bundle')"
    monkeypatch.setattr(module, "TRAIN", copies)

    def load(path: Path) -> Model:
        return load_model(path, RunnerSettings(threads=1))

    def text(name: str) -> str:
        return f"document.getElementById('{name}').textContent"

    def is_open(name: str) -> str:
        return f"(b => b && !b.disabled && b.checkVisibility())(document.getElementById('{name}'))"

    model = load_model(tmp_path / UNTAUGHT, RunnerSettings())
    with serve(WebSettings(port=0, teach_folder=tmp_path), model=model, load=load, rate_hz=50.0) as site:
        browser.open(site.server.address)
        browser.wait("document.body.dataset.role !== undefined")
        assert "not taught" in browser.wait(text("warnings"))
        browser.click("#to-teach")
        browser.wait(is_open("start"))
        for name in ("train", "compare", "swap"):
            assert not browser.value(is_open(name)), name
        browser.value("by('every').value = 0")
        browser.click("#start")
        browser.wait(f"parseInt({text('count')}) >= 31")
        browser.wait(f"{text('enough')}.startsWith('enough')", 30)
        browser.wait("document.querySelector('#pictures img').naturalWidth > 0")
        browser.click("#stop")
        browser.wait(f"{is_open('start')} && {is_open('train')}")
        count = browser.value(f"parseInt({text('count')})")
        browser.value("document.querySelector('#pictures button').click()")  # and yes, it is to go
        browser.wait(f"parseInt({text('count')}) === {count - 1}")
        browser.click("#train")
        browser.wait(f"{text('progress')}.startsWith('training for')")
        browser.wait(f"{text('progress')} === 'trained' || !by('fault').hidden", 30)
        assert browser.value(text("fault")) == ""
        assert site.line.latest("left").is_untaught
        browser.value("by('wanted').value = 3")
        browser.click("#compare")
        browser.wait(f"{text('seen')} === '3 of 3 parts'", 30)
        browser.wait(is_open("swap"))
        browser.click("#swap")
        browser.wait("!by('swapped').hidden")
        until(lambda: not site.line.latest("left").is_untaught, 30)
        assert site.line.model().path == tmp_path / "left-001/bundle"
        browser.click("#swapped a")
        browser.wait(
            "typeof board !== 'undefined' && document.querySelector('.lamp-tile.good, .lamp-tile.bad') !== null"
        )
        browser.wait(f"!{text('warnings')}.includes('not taught')")
        assert browser.complaints == []


@pytest.mark.slow
def test_from_a_bare_camera_to_a_judging_line(
    serve: Any, until: Any, parts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEWEST", 16)
    quick = ("--epochs", "1", "--batch", "4", "--set", "augmentation_copies=0", "--set", "model.memory_slots=32")
    monkeypatch.setattr(module, "TRAIN_OPTIONS", quick)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))

    def load(path: Path) -> Model:
        return load_model(path, RunnerSettings(threads=1))

    model = load_model(tmp_path / UNTAUGHT, RunnerSettings())
    with serve(WebSettings(port=0, teach_folder=tmp_path), model=model, load=load) as site:
        headers, ask = site.session(), lambda: site.ask("/api/teach")[1]
        site.ask("/api/teach/start", {"stream": "left", "every_s": 0}, headers)
        until(lambda: ask()["parts"] >= 24)
        assert site.ask("/api/teach/train", {}, headers)[1]["stage"] == "training"
        end_s = time.monotonic() + 150
        while ask()["stage"] == "training" and time.monotonic() < end_s:
            time.sleep(0.5)
        assert ask()["stage"] == "trained", ask()
        assert site.line.latest("left").is_untaught
        site.ask("/api/teach/compare", {"parts": 3}, headers)
        until(lambda: ask()["stage"] == "compared", 30)
        assert ask()["compared"]["is_first"]
        site.ask("/api/teach/swap", {}, headers)
        until(lambda: not site.line.latest("left").is_untaught, 30)
        assert site.line.model().name == "left-001"
