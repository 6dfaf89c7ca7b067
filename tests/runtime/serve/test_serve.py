"""The inference server: asked by Triton's own client and by hand, with bundles and with a runner whose verdicts are known."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError
from nnet_edge.frame import Outputs
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.serve.metrics import Metrics
from nnet_edge.runtime.serve.models import Models
from nnet_edge.runtime.serve.server import InferenceServer
from nnet_edge.runtime.stream.model import Model
from nnet_edge.settings.serve import ServeSettings, named_bundles, parse_bytes
from nnet_edge.settings.web import WebSettings
from tests.asking import ask
from tests.conftest import bad_part, good_part

SIDE, MIB = 64, 1 << 20
Start = Callable[..., "Site"]


class KnownRunner:
    """Obeys Runner: the score is the brightest value over 255, NaN for a picture that begins with 13."""

    name, precision, max_batch, input_shape = "known", "fp32", 8, (SIDE, SIDE, 3)

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()  # what is computed waits for it
        self.go.set()
        self.entered = 0

    def __enter__(self) -> KnownRunner:
        self.entered += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.entered -= 1

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        assert self.entered == 1
        assert self.go.wait(20)
        self.batches.append(len(images))
        maps = images.max(axis=3).astype(np.float32) / 255
        maps[images[:, 0, 0, 0] == 13, 0, 0] = np.nan
        return Outputs(maps, maps.reshape(len(maps), -1).max(axis=1))

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        return lambda: self.infer(images, layer_maps)


class Site:
    """A server that runs, and a way to ask it."""

    def __init__(self, server: InferenceServer, runners: dict[Path, KnownRunner]) -> None:
        self.server, self.runners = server, runners

    def ask(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        """Status, content (JSON where it is) and headers; with a body it is posted."""
        return ask(self.server.port, path, "GET" if body is None else "POST", body, headers or {}, 20)

    def metric(self, name: str) -> dict[str, float]:
        """Labels -> value."""
        text = self.ask("/metrics")[1].decode()
        return {
            found[1] or "": float(found[2]) for found in re.finditer(rf"^nnet_edge_{name}({{.*}})? (\S+)$", text, re.M)
        }

    def until(self, is_so: Callable[[], bool]) -> None:
        limit_s = time.monotonic() + 10
        while not is_so():
            assert time.monotonic() < limit_s
            time.sleep(0.01)


@pytest.fixture
def small(second_run: Path) -> Bundle:
    """A bundle for 64x64 pixels."""
    return read_bundle(second_run / "run/bundle")


@pytest.fixture
def start(small: Bundle) -> Iterator[Start]:
    """A function that starts a server of bundles by name, each with a KnownRunner; `resident` plays the memory."""
    sites: list[Site] = []

    @contextmanager
    def started(server: InferenceServer, runners: dict[Path, KnownRunner]) -> Iterator[Site]:
        with server:
            yield Site(server, runners)

    def begin(
        names: str = "part", web: WebSettings | None = None, costs: dict[str, int] | None = None, **options: Any
    ) -> Site:
        paths = {name: small.path.parent / name for name in names.split()}
        used = [100 * MIB]
        runners: dict[Path, KnownRunner] = {}

        def load(path: Path) -> Model:
            runners[path] = KnownRunner()
            used[0] += (costs or {}).get(path.name, 10 * MIB)
            return Model(path.name, path, runners[path], 0.5)

        settings = ServeSettings(paths, web or WebSettings(port=0), **options)
        models = Models(settings, Metrics(), load, lambda: used[0])
        server = InferenceServer(settings, models)
        site = Site(server, runners)
        server.__enter__()
        sites.append(site)
        return site

    yield begin
    for site in sites:
        for runner in site.runners.values():
            runner.go.set()
        site.server.__exit__()


def picture(value: int, side: int = SIDE, first: int | None = None) -> bytes:
    """A PNG of one grey value, its first pixel another one where that is given."""
    image = np.full((side, side, 3), value, np.uint8)
    if first is not None:
        image[0, 0] = first
    return cv2.imencode(".png", image)[1].tobytes()


def tensor(**changes: Any) -> bytes:
    """A request of one black image, as JSON."""
    fields = {"name": "images", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 3], "data": [0] * (3 * SIDE * SIDE)}
    return json.dumps({"inputs": [fields | changes]}).encode()


@contextmanager
def serving(path: Path, **options: Any) -> Iterator[Site]:
    settings = ServeSettings({"part": path}, WebSettings(port=0), **options)
    with InferenceServer(settings) as server:
        yield Site(server, {})


def test_tritons_client_asks_for_everything(small: Bundle) -> None:
    triton = pytest.importorskip(
        "tritonclient.http", reason="tritonclient[http] is not installed: its client is not tried"
    )
    from tritonclient.utils import InferenceServerException

    images = small.frames("held_out")[:3]
    with load_runner(small.graph) as runner:
        expected = runner.infer(images)
    with serving(small.path) as site:
        client = triton.InferenceServerClient(f"127.0.0.1:{site.server.port}")
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("part")
        assert client.is_model_ready("part", "1")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("part")
        assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, SIDE, SIDE, 3]}]
        threshold = float(client.get_model_config("part")["parameters"]["threshold"]["string_value"])
        assert threshold == small.threshold.value
        for is_binary in (True, False):
            asked = triton.InferInput("images", list(images.shape), "UINT8")
            asked.set_data_from_numpy(images, binary_data=is_binary)
            wanted = [
                triton.InferRequestedOutput(name, binary_data=is_binary) for name in ("image_score", "anomaly_map")
            ]
            answer = client.infer("part", [asked], outputs=wanted, request_id="of three")
            assert answer.get_response()["id"] == "of three"
            np.testing.assert_allclose(answer.as_numpy("image_score"), expected.image_score, rtol=1e-5)
            np.testing.assert_allclose(answer.as_numpy("anomaly_map")[:, 0], expected.anomaly_map, rtol=1e-4, atol=1e-7)
            assert answer.as_numpy("is_anomalous") is None
        verdicts = client.infer("part", [asked]).as_numpy("is_anomalous")
        np.testing.assert_array_equal(verdicts, expected.image_score > threshold)
        (found,) = client.get_inference_statistics("part")["model_stats"]
        assert (found["inference_count"], found["inference_stats"]["success"]["count"]) == (9, 9)
        assert sum(one["batch_size"] * one["compute_infer"]["count"] for one in found["batch_stats"]) == 9
        client.unload_model("part")
        assert client.get_model_repository_index()[0]["state"] == "UNAVAILABLE"
        client.load_model("part")
        assert client.get_model_repository_index() == [{"name": "part", "version": "1", "state": "READY", "reason": ""}]
        with pytest.raises(InferenceServerException, match="there is no model other: there are part"):
            client.get_model_metadata("other")
        client.close()


def test_a_pictures_verdict_is_that_of_stream(small: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    cv2.imwrite(str(folder / "bad.png"), bad_part(7, 150)[0])
    cv2.imwrite(str(folder / "good.jpg"), good_part(3, 120)[:, :97])
    cv2.imwrite(str(folder / "grey.bmp"), cv2.cvtColor(good_part(4), cv2.COLOR_BGR2GRAY))
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), good_part(5).astype(np.uint16) * 16)
    turned = Image.open(folder / "good.jpg")
    turned.getexif()[274] = 6
    turned.save(folder / "turned.jpg", exif=turned.getexif())
    lines = tmp_path / "verdicts.jsonl"
    expected = {}
    for what in (folder, deep):  # alone: a stream takes the bits of all from its first picture
        assert run(["stream", str(what), "--bundle", str(small.path), "--json", str(lines)]) == 0
    for line in map(json.loads, lines.read_text().splitlines()):
        expected[line["name"]] = line
    deep.rename(folder / deep.name)
    assert len(expected) == 5
    with serving(small.path) as site:
        for name, line in expected.items():
            status, verdict, _ = site.ask(f"/v2/models/part/judge?name={name}", (folder / name).read_bytes())
            assert status == 200
            assert verdict.pop("score") == pytest.approx(line.pop("score"), rel=1e-5)
            same = (
                "name",
                "verdict",
                "threshold",
                "threshold_from",
                "bundle",
                "bundle_id",
                "precision",
                "runner",
                "schema",
            )
            assert {key: verdict[key] for key in same} == {key: line[key] for key in same}
            assert set(line) == set(verdict)
            boxes = [[{key: region[key] for key in ("x", "y", "width", "height")} for region in one["regions"]]
                     for one in (verdict, line)]  # fmt: skip
            assert boxes[0] == boxes[1]
        assert any(line["regions"] for line in expected.values())


BAD: list[tuple[str, bytes | None, dict[str, str], int, str]] = [
    ("judge", b"no picture", {}, 400, "it is not a PNG, JPEG"),
    ("judge", b"", {}, 400, "the body is empty"),
    ("judge", b"\xff\xd8\xff\xe0 cut", {}, 400, "the body is no picture that can be judged"),
    ("judge", b"x" * 70_000, {}, 413, "the body has more than 65,536 bytes"),
    ("judge", b"form", {"content-type": "multipart/form-data; boundary=x"}, 415, "curl --data-binary"),
    ("judge", None, {}, 405, "Method Not Allowed"),
    ("infer", b"{", {}, 400, "not JSON"),
    ("infer", b"[" * 30_000, {}, 400, "not JSON"),
    ("infer", b"[1]", {}, 400, "list of inputs"),
    ("infer", b'{"inputs": [{"name": "pixels"}]}', {}, 400, "the one input images, not pixels"),
    ("infer", b'{"inputs": []}', {}, 400, "the one input images"),
    ("infer", tensor(datatype="FP32"), {}, 400, "images is FP32, and the model takes UINT8 [N, 64, 64, 3]"),
    ("infer", tensor(shape=[1, 32, 64, 3]), {}, 400, "has the shape [1, 32, 64, 3]"),
    ("infer", tensor(shape=[-1, 64, 64, 3]), {}, 400, "has the shape"),
    ("infer", tensor(shape=[True, 64, 64, 3]), {}, 400, "has the shape"),
    ("infer", tensor(shape="all"), {}, 400, "has the shape all"),
    ("infer", tensor(data=[0, 1]), {}, 400, "whole numbers from 0 to 255"),
    ("infer", tensor(data=[[0], [1, 2]]), {}, 400, "whole numbers from 0 to 255"),
    ("infer", tensor(data=[256] * 12288), {}, 400, "whole numbers from 0 to 255"),
    ("infer", tensor(data=[0.5] * 12288), {}, 400, "whole numbers from 0 to 255"),
    ("infer", tensor(data=[10**30] * 3), {}, 400, "whole numbers from 0 to 255"),
    ("infer", tensor(data=None), {}, 400, "whole numbers from 0 to 255"),
    ("infer", tensor(parameters=3), {}, 400, "parameters are no JSON object"),
    ("infer", tensor(parameters={"shared_memory_region": "r"}), {}, 400, "shared memory is not supported"),
    ("infer", tensor(parameters={"binary_data_size": 12288}), {}, 400, "12288 bytes, and 0 came"),
    ("infer", tensor(), {"inference-header-content-length": "99999999"}, 400, "no number of bytes within the body"),
    ("infer", tensor(), {"inference-header-content-length": "-1"}, 400, "no number of bytes within the body"),
    ("infer", tensor(), {"content-encoding": "gzip"}, 415, "compressed"),
    ("infer", tensor()[:-1] + b', "outputs": [{"name": "odd"}]}', {}, 400, "and no odd"),
    ("infer", tensor()[:-1] + b', "outputs": 7}', {}, 400, "outputs are no list"),
    ("infer", tensor()[:-1] + b', "id": 7}', {}, 400, "id of the request is no text"),
    ("versions/2/infer", tensor(), {}, 404, "no version 2: there is 1"),
    ("/v2/models/other/infer", tensor(), {}, 404, "there is no model other: there are part"),
    ("/v2/models/other/judge", picture(1), {}, 404, "there is no model other"),
    ("/v2/models/other", None, {}, 404, "there is no model other"),
    ("/v2/nothing", None, {}, 404, "Not Found"),
    ("/v2/repository/models/part/forget", b"", {}, 404, "choose load, unload"),
    ("judge", picture(1), {"host": "evil.example"}, 421, "does not answer to this host name"),
    ("judge", picture(1), {"origin": "http://evil.example"}, 403, "foreign page"),
]  # fmt: skip


def test_every_bad_request_is_one_sentence(start: Start) -> None:
    site = start(body_bytes=1 << 16)
    for path, body, headers, status, words in BAD:
        target = path if path.startswith("/") else f"/v2/models/part/{path}"
        found, content, given = site.ask(target, body, headers)
        assert found == status, (path, headers, content)
        assert set(content) == {"error"}
        assert words in content["error"], content
        assert "Traceback" not in content["error"]
        assert given["content-type"] == "application/json"
    assert site.ask("/v2/models/part/judge", picture(1))[0] == 200
    statuses = site.metric("serve_requests_total")
    assert statuses['{action="infer",model="part",status="400"}'] == sum(
        (path, status) == ("infer", 400) for path, _, _, status, _ in BAD
    )


def test_a_body_that_is_announced_too_large_is_not_read(start: Start) -> None:
    site = start(body_bytes=1 << 16)
    headers = {"expect": "100-continue", "content-length": str(1 << 40)}
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port, timeout=20)
    connection.putrequest("POST", "/v2/models/part/judge")
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_bodies_that_wait_for_their_end_do_not_fill_the_memory(start: Start) -> None:
    site = start(body_bytes=1 << 16)
    head = b"POST /v2/models/part/judge HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 65536\r\n\r\n"
    with ExitStack() as slow:
        callers = [slow.enter_context(socket.create_connection(("127.0.0.1", site.server.port))) for _ in range(16)]
        for caller in callers:
            caller.sendall(head + b"x" * 65_000)
        site.until(lambda: site.server.inference._held == 16 * 65_000)
        status, content, headers = site.ask("/v2/models/part/judge", b"x" * 60_000)
        assert (status, headers["retry-after"]) == (503, "1")
        assert content["error"] == "the bodies of other requests fill the memory for them: ask again"
        assert site.ask("/v2/models/part/judge", picture(1))[0] == 200  # a small one has room
    site.until(lambda: site.server.inference._held == 0)  # they gave up
    assert site.ask("/v2/models/part/judge", b"x" * 60_000)[0] == 400


def test_requests_that_come_together_are_judged_together(start: Start) -> None:
    site = start(queue=40)
    runner = next(iter(site.runners.values()))
    runner.go.clear()
    values = [10 * number for number in range(20)]
    with ThreadPoolExecutor(20) as callers:
        asked = [callers.submit(site.ask, "/v2/models/part/judge", picture(value)) for value in values]
        site.until(lambda: site.metric("serve_queued_images") == {'{model="part"}': 20})
        runner.go.set()
        answers = [one.result() for one in asked]
    assert [status for status, _, _ in answers] == [200] * 20
    np.testing.assert_allclose(
        [verdict["score"] for _, verdict, _ in answers], [value / 255 for value in values], rtol=1e-6
    )
    assert [verdict["verdict"] for _, verdict, _ in answers] == [
        "good" if value < 128 else "anomalous" for value in values
    ]
    assert sum(runner.batches) == 20
    assert max(runner.batches) == runner.max_batch
    assert len(runner.batches) <= 5


def test_more_than_the_queue_holds_is_refused_and_told_when_to_come_again(start: Start) -> None:
    site = start(queue=3)
    runner = next(iter(site.runners.values()))
    runner.go.clear()
    three = tensor(shape=[4, SIDE, SIDE, 3], data=[0] * (4 * 3 * SIDE * SIDE))
    assert site.ask("/v2/models/part/infer", three)[:2] == (
        413, {"error": "a request may have 3 images: send fewer, or give --queue"},
    )  # fmt: skip
    with ThreadPoolExecutor(3) as callers:
        asked = [callers.submit(site.ask, "/v2/models/part/judge", picture(9)) for _ in range(3)]
        site.until(lambda: site.metric("serve_queued_images") == {'{model="part"}': 3})
        status, content, headers = site.ask("/v2/models/part/judge", picture(9))
        assert (status, headers["retry-after"]) == (503, "1")
        assert content == {"error": "3 images wait already: ask again, or ask more slowly"}
        runner.go.set()
        assert [one.result()[0] for one in asked] == [200] * 3
    assert site.ask("/v2/models/part/judge", picture(9))[0] == 200


def test_a_score_that_is_not_finite_has_no_verdict_and_costs_no_other_request(start: Start) -> None:
    site = start()
    runner = next(iter(site.runners.values()))
    runner.go.clear()
    with ThreadPoolExecutor(3) as callers:
        asked = [callers.submit(site.ask, "/v2/models/part/judge", picture(9, first=first)) for first in (1, 13, 1)]
        site.until(lambda: site.metric("serve_queued_images") == {'{model="part"}': 3})
        runner.go.set()
        answers = [one.result() for one in asked]
    assert [status for status, _, _ in answers] == [200, 500, 200]
    assert "it has no verdict" in answers[1][1]["error"]
    broken = tensor(data=[13] * (3 * SIDE * SIDE))
    assert site.ask("/v2/models/part/infer", broken)[0] == 500
    counts = {name: site.metric(f"serve_{name}")['{model="part"}'] for name in ("images_total", "judged_images_total")}
    dropped = site.metric("serve_dropped_images_total")
    assert dropped == {'{cause="not_finite",model="part"}': 2}
    assert counts["images_total"] == counts["judged_images_total"] + 2 == 4


def states(site: Site) -> str:
    """The names of the bundles that are loaded."""
    found = site.ask("/v2/repository/index", b"")[1]
    return " ".join(one["name"] for one in found if one["state"] == "READY")


def test_the_bundle_used_longest_ago_makes_room(start: Start) -> None:
    site = start(
        "a b c huge", memory_bytes=150 * MIB, costs={"a": 20 * MIB, "b": 20 * MIB, "c": 20 * MIB, "huge": 80 * MIB}
    )
    assert states(site) == ""
    for name, loaded in (("a", "a"), ("b", "a b"), ("a", "a b"), ("c", "a c"), ("b", "b c")):
        assert site.ask(f"/v2/models/{name}/judge", picture(200))[1]["verdict"] == "anomalous"
        assert states(site) == loaded
        assert site.metric("serve_memory_bytes")[""] == 140 * MIB if len(loaded) > 1 else 120 * MIB
    assert [runner.entered for runner in site.runners.values()].count(1) == 2  # the others were let go
    status, content, headers = site.ask("/v2/models/huge/judge", picture(1))
    assert (status, headers["retry-after"]) == (503, "1")
    assert content["error"] == "the model huge needs 181 MiB with the server itself: give --memory that much"
    assert "huge" not in states(site)
    assert site.ask("/v2/models/a/judge", picture(1))[0] == 200
    images, judged = (sum(site.metric(f"serve_{name}_total").values()) for name in ("images", "judged_images"))
    assert images == judged == 6


def test_a_bundle_in_use_is_not_closed(start: Start) -> None:
    site = start("a b", memory_bytes=125 * MIB, costs={"a": 20 * MIB, "b": 20 * MIB})
    assert site.ask("/v2/models/a/judge", picture(1))[0] == 200
    runner = next(iter(site.runners.values()))
    runner.go.clear()
    with ThreadPoolExecutor(1) as callers:
        asked = callers.submit(site.ask, "/v2/models/a/judge", picture(1))
        site.until(lambda: site.metric("serve_queued_images")['{model="a"}'] == 1)
        for name in ("b", "b"):  # by a guess first, then by what was seen
            status, content, _ = site.ask(f"/v2/models/{name}/judge", picture(1))
            assert (status, "while a judge" in content["error"]) == (503, True)
        assert site.ask("/v2/repository/models/a/unload", b"")[0] == 503
        runner.go.set()
        assert asked.result()[0] == 200
    assert site.ask("/v2/models/b/judge", picture(1))[0] == 200
    assert states(site) == "b"


def test_a_bundle_that_cannot_be_loaded_costs_no_other(small: Bundle, tmp_path: Path) -> None:
    settings = ServeSettings({"part": small.path, "gone": tmp_path / "gone"}, WebSettings(port=0))
    with InferenceServer(settings) as server:
        site = Site(server, {})
        assert site.ask("/v2/models/gone/ready")[0] == 200  # nobody has asked for it
        status, content, _ = site.ask("/v2/models/gone/judge", picture(1))
        assert (status, content["error"].startswith("there is no bundle at")) == (503, True)
        assert site.ask("/v2/models/gone/ready")[0] == 503
        assert site.ask("/v2/models/part/judge", picture(1))[0] == 200


def test_with_a_token_only_its_owner_asks(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVE_TOKEN", "0123456789abcdef")
    site = start(web=WebSettings(port=0, token_from="env:SERVE_TOKEN"))
    for path, body in (("/v2/models/part", None), ("/v2/models/part/judge", picture(1)), ("/metrics", None)):
        assert site.ask(path, body)[0] == 401
        assert site.ask(path, body, {"authorization": "Bearer 0123456789abcdef"})[0] == 200
    assert site.ask("/v2/health/ready")[0] == 200


def test_what_was_asked_before_the_end_is_answered(start: Start) -> None:
    site = start()
    runner = next(iter(site.runners.values()))
    runner.go.clear()
    with ThreadPoolExecutor(2) as callers:
        asked = callers.submit(site.ask, "/v2/models/part/judge", picture(200))
        site.until(lambda: site.metric("serve_queued_images") == {'{model="part"}': 1})
        ending = callers.submit(site.server.__exit__)
        site.until(lambda: site.server.inference.is_draining)
        assert site.ask("/v2/health/ready")[0] == 503
        assert site.ask("/v2/models/part/judge", picture(1))[1] == {"error": "the server is stopping"}
        runner.go.set()
        status, verdict, _ = asked.result()
        ending.result()
    assert (status, verdict["verdict"]) == (200, "anomalous")
    assert runner.entered == 0
    with pytest.raises(ConnectionRefusedError):
        site.ask("/v2")


def test_sigterm_ends_the_command_well(
    small: Bundle, free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(free_port())
    command = [Path(sys.executable).with_name("nnet-edge"), "serve", f"left={small.path}", "--port", port]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serving:
        assert serving.stderr is not None
        said = []
        for line in serving.stderr:
            said.append(line)
            if "serving at" in line:
                break
        assert any(f"left: threshold {small.threshold.value:.6g} on openvino (fp32)" in line for line in said), said
        assert run(["serve", str(small.path), "--port", port]) == 2  # while the other one listens
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith(
            f"nnet-edge: error: the inference server cannot be served on 127.0.0.1:{port} (Address already"
        )
        serving.send_signal(signal.SIGTERM)
        assert serving.stderr.read().splitlines()[-1] == "stopped: what was asked before is answered"
        assert serving.wait(20) == 0


def test_names_sizes_and_places_are_checked(small: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(named_bundles(("runs/left/bundle", "right=runs/b", "runs/third"))) == ["left", "right", "third"]
    with pytest.raises(ConfigError, match="would both be called part: give one a name"):
        named_bundles(("a/part/bundle", "b/part/bundle"))
    with pytest.raises(ConfigError, match="cannot be called stats"):
        named_bundles(("stats=a",))
    assert [parse_bytes(text) for text in ("512M", "1.5G", "2GiB", "64")] == [
        512 * MIB,
        1536 * MIB,
        2048 * MIB,
        64 * MIB,
    ]
    for arguments, words in (
        (["--memory", "much"], "'much' is no amount of memory: give 512M or 2G"),
        (["--memory", "1M"], "memory, bytes, is 1048576"),
        (["--host", "0.0.0.0"], "without a token"),
        (["--port", "70000"], "70000"),
    ):
        assert run(["serve", str(small.path), *arguments]) == 2
        assert words in capsys.readouterr().err
    assert run(["serve", str(tmp_path / "nothing"), "--port", "0"]) == 1
    assert "there is no bundle at" in capsys.readouterr().err.splitlines()[-1]
    assert run(["serve", str(small.path), "--port", "0", "--memory", "64M"]) == 2
    assert "give --memory that much" in capsys.readouterr().err.splitlines()[-1]
