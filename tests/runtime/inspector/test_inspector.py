"""An inspector's verdicts are those of `stream` and `evaluate`, one by one, in batches and from many threads."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge import Inspector, Result, load
from nnet_edge.cli.main import run
from nnet_edge.data.layouts import read_dataset
from nnet_edge.errors import BundleError, ConfigError, DataError, NotFiniteError, SourceError, StreamError
from nnet_edge.evaluation.artefact import open_artifact
from nnet_edge.evaluation.evaluate import evaluate
from nnet_edge.frame import Outputs
from nnet_edge.settings.runner import RunnerSettings
from tests.conftest import bad_part, good_part
from tests.runtime.inspector.conftest import Opened

SAME = ("name", "score", "threshold", "relative_score", "threshold_from", "verdict", "regions", "judged", "bundle",
        "bundle_id", "precision", "runner", "index")  # fmt: skip
ONE = ["--threads", "1", "--runner", "openvino"]


def same_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: json.loads(json.dumps(fields[name])) for name in SAME if name in fields}


@pytest.mark.parametrize("name", ["plain", "tiled", "deep"])
def test_its_verdicts_are_those_of_stream_and_evaluate(
    name: str,
    bundles: Path,
    opened: Opened,
    photographs: Path,
    deep_photographs: Path,
    parts_folder: Path,
    tmp_path: Path,
) -> None:
    folder, bundle = deep_photographs if name == "deep" else photographs, str(bundles / name)
    lines = tmp_path / "lines.jsonl"
    assert run(["stream", str(folder), "--bundle", bundle, "--json", str(lines), *ONE]) == 0
    streamed = [same_fields(json.loads(line)) for line in lines.read_text().splitlines()]
    inspector = opened(name)
    judged = list(inspector(folder))  # type: ignore[call-overload]
    alone = [inspector(folder / str(result.as_dict()["name"])) for result in judged]
    assert [same_fields(result.as_dict()) for result in judged] == streamed
    assert [result.score for result in alone] == [fields["score"] for fields in streamed]
    assert [result.regions for result in alone] == [result.regions for result in judged]
    assert len(streamed) == len(list(folder.iterdir()))
    if name == "tiled":
        assert all(fields["judged"]["width"] < 96 for fields in streamed)
    data = tmp_path / "data"
    shutil.copytree(folder, data / "test_good")
    shutil.copytree(parts_folder / "good", data / "good")
    artifact = open_artifact(bundles / name, RunnerSettings("openvino", threads=1), in_torch=False)
    with artifact.runner as runner:
        found = evaluate(runner, read_dataset(data), artifact.threshold, bits=artifact.bits, geometry=artifact.geometry)
    measured = dict(zip(map(name_of, found.names), zip(found.scores, found.rejected, strict=True), strict=True))
    assert measured == {fields["name"]: (fields["score"], fields["verdict"] == "anomalous") for fields in streamed}


def name_of(path: str) -> str:
    return Path(path).name


def test_pictures_of_16_bits_that_nobody_says_are_read_by_the_first_as_in_a_stream(
    bundles: Path, opened: Opened, deep_photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = tmp_path / "lines.jsonl"
    bundle = str(bundles / "plain")
    assert run(["stream", str(deep_photographs), "--bundle", bundle, "--json", str(lines), *ONE]) == 0
    streamed = [json.loads(line)["score"] for line in lines.read_text().splitlines()]
    caplog.clear()
    assert [result.score for result in opened().folder(deep_photographs)] == streamed
    assert "inspector: pictures of 16 bits are read as 12 bits (the fewest that hold it" in caplog.text
    caplog.clear()
    inspector = opened("plain", bits=12)
    assert [result.score for result in inspector.folder(deep_photographs)] == streamed
    bright = np.full((96, 96), 5000, np.uint16)
    results = inspector([deep_photographs / "grey_3.png", bright])
    assert next(results).score == streamed[2]
    with pytest.raises(DataError, match=r"image 1 cannot be judged: its brightest value 5000 is beyond the 12 bits"):
        next(results)
    assert not caplog.text


def test_one_image_gives_a_result_and_many_give_them_in_order(inspector: Inspector) -> None:
    pictures = [bad_part(seed)[0] if seed % 3 == 0 else good_part(seed) for seed in range(30)]
    alone = [inspector(picture, colour="bgr") for picture in pictures]
    assert all(isinstance(result, Result) for result in alone)
    assert len({result.score for result in alone}) > 20
    for many in (list(pictures), tuple(pictures), iter(pictures), (picture for picture in pictures)):
        results = inspector(many, colour="bgr")
        assert next(results).index == 0
        assert [result.score for result in results] == [result.score for result in alone[1:]]


def test_the_images_of_an_iterator_may_share_their_memory(inspector: Inspector) -> None:
    pictures = [good_part(seed) for seed in range(12)]

    def reused() -> Iterator[np.ndarray]:
        buffer = np.empty_like(pictures[0])
        for picture in pictures:
            buffer[...] = picture
            yield buffer
        buffer[...] = 0

    scores = [result.score for result in inspector(reused(), colour="bgr")]
    assert scores == [inspector(picture, colour="bgr").score for picture in pictures]


def test_an_iterator_is_taken_as_it_is_asked_for_and_memory_is_bounded(inspector: Inspector) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield good_part(taken)

    results = inspector(endless(), colour="bgr")
    assert taken == 0
    for count in range(1, 30):
        assert next(results).index == count - 1
        assert count <= taken <= count + 8 + 4 + 1  # a batch, and what is read beside it
    results.close()  # type: ignore[attr-defined]


def test_an_image_that_is_slow_to_come_is_judged_before_the_next_is_asked_for(inspector: Inspector) -> None:
    told: list[object] = []

    def camera() -> Iterator[np.ndarray]:
        for number in range(3):
            time.sleep(0.05)
            told.append(number)
            yield good_part(number)

    for result in inspector(camera(), colour="bgr"):
        told.append(f"judged {result.index}")
    assert told == [0, "judged 0", 1, "judged 1", 2, "judged 2"]


def test_what_came_before_an_image_that_cannot_be_judged_is_judged(inspector: Inspector, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "whole.png"), good_part(1))
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    images = [tmp_path / "whole.png", good_part(2), tmp_path / "torn.png", tmp_path / "whole.png"]
    results = inspector(images)
    assert [next(results).index, next(results).index] == [0, 1]
    with pytest.raises(DataError, match=r"cannot read image .*torn\.png"):
        next(results)
    assert [result.index for result in inspector(images, skip_bad_images=True)] == [0, 1, 3]

    def broken() -> Iterator[Path]:
        yield images[0]  # type: ignore[misc]
        raise ZeroDivisionError("of its user")

    results = inspector(broken())
    assert next(results).index == 0
    with pytest.raises(ZeroDivisionError, match="of its user"):
        next(results)


def test_any_number_of_threads_may_ask(inspector: Inspector, photographs: Path) -> None:
    paths = sorted(photographs.iterdir())
    alone = {path: inspector(path).score for path in paths}
    barrier = threading.Barrier(6)

    def ask(number: int) -> None:
        barrier.wait(20)
        for round_ in range(3):
            turned = paths[(number + round_) % len(paths) :] + paths[: (number + round_) % len(paths)]
            if number % 2:
                assert {path: inspector(path).score for path in turned} == alone
            else:
                assert {result.path: result.score for result in inspector(turned)} == alone

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(ask, number) for number in range(6)]:
            future.result(60)


def test_no_two_threads_are_in_the_runner_at_once(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0
    with load(bundles / "plain", threads=1) as inspector:
        runner = inspector._model.runner
        start = runner.start

        def watched(images: np.ndarray, layer_maps: bool = False) -> Any:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            collect = start(images, layer_maps)

            def outputs() -> Outputs:
                nonlocal inside
                time.sleep(0.002)
                found = collect()
                inside -= 1
                return found

            return outputs

        monkeypatch.setattr(runner, "start", watched)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(inspector, [good_part(seed) for seed in range(20)]))
    assert (inside, most) == (0, 1)


def test_a_score_that_is_not_finite_is_no_verdict(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(bundles / "plain", threads=1) as inspector:
        runner = inspector._model.runner

        def poisoned(images: np.ndarray, layer_maps: bool = False) -> Any:
            outputs = runner.infer(images)
            outputs.anomaly_map[-1, 0, 0] = np.nan
            return lambda: outputs

        runner_start = runner.start
        monkeypatch.setattr(runner, "infer", lambda images: runner_start(images)())
        monkeypatch.setattr(runner, "start", poisoned)
        results = inspector([good_part(1), good_part(2)])
        assert next(results).index == 0
        with pytest.raises(NotFiniteError, match="so it has no verdict"):
            next(results)


def test_a_closed_inspector_says_so(bundles: Path) -> None:
    with load(bundles / "plain", threads=1) as inspector:
        results = inspector([good_part(1)] * 40)
        next(results)
    inspector.close()  # once more is no error
    for ask in (lambda: inspector(good_part(1)), lambda: list(results)):
        with pytest.raises(StreamError, match="is closed: load the bundle again"):
            ask()


def test_threshold_and_regions_follow_the_keywords(bundles: Path, opened: Opened) -> None:
    usual = opened()(bad_part(1)[0], colour="bgr")
    strict = opened("plain", threshold=usual.score * 0.5)(bad_part(1)[0], colour="bgr")
    assert strict.is_anomalous
    assert strict.ratio == pytest.approx(2)
    assert strict.regions
    assert not opened("plain", threshold=usual.score * 0.5, min_area=1e6)(bad_part(1)[0], colour="bgr").regions
    with load(bundles / "plain", threads=1, threshold=usual.score * 2, runner="onnxruntime", batch=2) as inspector:
        assert (
            repr(inspector)
            == f"Inspector({inspector.name}, onnxruntime fp32, input 64x64, threshold {usual.score * 2:.4g})"
        )
        mild = inspector(bad_part(1)[0], colour="bgr")
    assert not mild.is_anomalous
    assert mild.score == pytest.approx(usual.score, rel=1e-4)


def test_a_picture_of_another_size_is_told_once(bundles: Path, caplog: pytest.LogCaptureFixture) -> None:
    with load(bundles / "plain", threads=1) as inspector, caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert inspector(good_part(1, side=200)).map.shape == (200, 200)
    assert caplog.text.count("a picture of 200x200 pixels has another size") == 1


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"runner": "abacus"}, "runner 'abacus' is unknown: choose auto, openvino"),
        ({"gpu": -1}, "gpu is -1: it must be a whole number from 0"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown: choose fp32, bf16, fp16 or int8"),
        ({"threads": 0}, "threads is 0: it must be a whole number from 1"),
        ({"threshold": float("nan")}, "threshold is nan: it must be a finite number above 0"),
        ({"bits": 20}, "bits is 20: it must be a whole number from 8 to 16"),
        ({"batch": 0}, "batch is 0"),
        ({"min_area": -1}, "smallest area is -1"),
    ],
)
def test_wrong_keywords_are_one_sentence(bundles: Path, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(bundles / "plain", **keywords)


def test_what_is_no_bundle_and_an_empty_folder_are_one_sentence(inspector: Inspector, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle at"):
        load(tmp_path / "nothing")
    with pytest.raises(SourceError, match="holds no image"):
        inspector.folder(tmp_path)
