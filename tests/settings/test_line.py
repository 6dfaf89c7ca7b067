"""A line's settings file: every key checked, errors that name the place, a schema that agrees with the reader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError
from nnet_edge.frame import Crop
from nnet_edge.runtime.sinks import MqttSettings
from nnet_edge.runtime.sources.addresses import read_credentials
from nnet_edge.settings.line import line_settings, read_line_config, read_toml, schema
from nnet_edge.settings.policy import Policy, When
from nnet_edge.settings.secrets import read_secret
from nnet_edge.settings.stream import Smoothing

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "line.toml"
SMALL: dict[str, Any] = {"bundle": "b", "stream": [{"name": "left", "camera": {"address": "0"}}]}

CROPS = [{"name": f"c{number}", "x": 0, "y": 0, "width": 9, "height": 9} for number in range(65)]


def read(table: dict[str, Any], **overrides: Any) -> Any:
    return line_settings(table, "line.toml", Path("/line"), overrides)


def stream(**keys: Any) -> dict[str, Any]:
    return SMALL | {"stream": [SMALL["stream"][0] | keys]}


def test_a_small_file_is_enough() -> None:
    settings = read(SMALL)
    assert settings.bundle == Path("/line/b")
    assert settings.streams[0].camera.address == "0"
    assert settings.web is None


def test_every_kind_of_value_is_read() -> None:
    verdict = {"threshold": 1, "smoothing": {"n": 2, "m": 3}, "regions_of_interest": [[[0, 0], [9, 0], [9, 9.5]]],
               "crops": [{"name": "a", "x": 1, "y": 2, "width": 3, "height": 4}], "interest_picture": "mask.png"}  # fmt: skip
    (found,) = read(stream(verdict=verdict, lane={"policy": "paced:5"})).streams
    assert found.verdict.threshold == 1.0
    assert found.verdict.smoothing == Smoothing(2, 3)
    assert found.verdict.regions_of_interest == (((0.0, 0.0), (9.0, 0.0), (9.0, 9.5)),)
    assert found.verdict.crops == (Crop("a", 1, 2, 3, 4),)
    assert found.verdict.interest_picture == Path("/line/mask.png")
    assert found.buffer.policy == Policy(When.PACED, 5.0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (SMALL | {"bundel": "x"}, "line.toml has a key 'bundel' that is unknown: did you mean bundle?"),
        (
            stream(camera={"adress": "0"}),
            "[[stream]] 'left': camera has a key 'adress' that is unknown: did you mean address?",
        ),
        (stream(camera={}), "[[stream]] 'left': camera lacks address: give it"),
        (stream(camera={"address": "0", "width": "640"}), "camera: width is '640': it must be a whole number"),
        (stream(camera={"address": "0", "width": True}), "width is True: it must be a whole number"),
        (stream(camera={"address": "0", "width": 640}), "a width needs a height"),
        (stream(lane={"policy": "newest"}), "lane: policy: the policy 'newest' is unknown"),
        (stream(verdict={"smoothing": {"n": 4, "m": 3}}), "verdict: smoothing: n of n-of-m is 4"),
        (
            stream(verdict={"regions_of_interest": [[[0, 0], [1]]]}),
            "regions_of_interest[0][1] has 1 values: it must have 2",
        ),
        (stream(verdict={"crops": CROPS}), "verdict: 65 crops are too many: give 64 at most"),
        (stream(name="a/b"), "a stream cannot be called 'a/b'"),
        (SMALL | {"stream": SMALL["stream"] * 2}, "two streams are called 'left'"),
        (SMALL | {"stream": SMALL["stream"][0]}, "write [[stream]], with two brackets"),
        ({"stream": SMALL["stream"]}, "the line has no bundle"),
        ({"bundle": "b"}, "the line has no stream"),
        (SMALL | {"precision": "int4"}, "precision 'int4' is unknown"),
        (SMALL | {"runner": {"kind": "vulkan"}}, "runner: runner 'vulkan' is unknown"),
        (SMALL | {"sink": [{"path": "x"}]}, "[[sink]] number 1 lacks its kind: choose gpio, history, "),
        (SMALL | {"sink": [{"kind": "mqqt"}]}, "[[sink]] number 1: sink 'mqqt' is unknown: did you mean mqtt?"),
        (SMALL | {"sink": [{"kind": "mqtt"}]}, "[[sink]] number 1 lacks host: give it"),
        (SMALL | {"sink": [{"kind": "webhook", "url": "http://h/?key=1"}]}, "use token_from"),
        (
            SMALL | {"sink": [{"kind": "video", "path": "a.mp4", "must_deliver": "s"}]},
            "cannot be made to deliver later",
        ),
        (SMALL | {"sink": [{"kind": "json-lines", "path": "a"}] * 2}, "two sinks are called 'json-lines'"),
        (SMALL | {"web": {"host": "0.0.0.0"}}, "where others reach it, without a token"),
        (SMALL | {"web": {"addable": ["file"]}}, "no source_folder says where they are"),
        (SMALL | {"drift": {"psi": 0}}, "drift: psi is 0.0"),
    ],
)
def test_errors_name_the_place_and_what_to_do(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(table)
    assert str(caught.value).startswith("line.toml")
    assert words in str(caught.value)


def test_a_secret_that_was_written_out_is_refused_and_not_repeated() -> None:
    secret = "s3cret-password"
    sink = {"kind": "mqtt", "host": "h", "user": "u", "password_from": secret}
    for table in (SMALL | {"sink": [sink]}, SMALL | {"web": {"token_from": secret}},
                  stream(camera={"address": "rtsp://h/", "credentials": secret})):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            read(table)
        assert secret not in str(caught.value)


def test_the_deadline_that_was_typed_stands_over_the_file() -> None:
    assert read(SMALL | {"deadline_s": 0.5}, deadline_s=0.1).deadline_s == 0.1
    assert read(SMALL | {"deadline_s": 0.5}, deadline_s=None).deadline_s == 0.5


def test_flags_stand_over_the_file() -> None:
    settings = read(SMALL | {"runner": {"threads": 2}, "precision": "int8"}, bundle=Path("/other"), threshold=0.4,
                    runner={"kind": "openvino", "hint": None}, precision=None)  # fmt: skip
    assert settings.bundle == Path("/other")
    assert (settings.runner.kind, settings.runner.threads) == ("openvino", 2)
    assert settings.streams[0].verdict.threshold == 0.4
    assert settings.precision == "int8"


def test_every_sink_that_can_must_deliver_when_the_flag_says_so() -> None:
    sinks = [{"kind": "json-lines", "path": "a"}, {"kind": "video", "path": "a.mp4"},
             {"kind": "webhook", "url": "http://h/x", "must_deliver": "/own"}]  # fmt: skip
    settings = read(SMALL | {"sink": sinks}, must_deliver=Path("/spools"))
    assert [sink.must_deliver for sink in settings.sinks] == [Path("/spools/json-lines"), None, Path("/own")]


def test_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    file = tmp_path / "line.toml"
    file.write_text(
        'bundle = "b"\n[[stream]]\nname = "a"\ncamera.address = "photos"\ncamera.credentials = "file:keys/camera"\n'
        '[[sink]]\nkind = "mqtt"\nhost = "h"\nuser = "u"\npassword_from = "file:/keys/mqtt"\nmust_deliver = "spool"\n'
    )
    settings = read_line_config(file)
    assert settings.bundle == tmp_path / "b"
    assert settings.streams[0].camera.address == str(tmp_path / "photos")
    assert settings.streams[0].camera.credentials == f"file:{tmp_path}/keys/camera"
    (sink,) = settings.sinks
    assert isinstance(sink, MqttSettings)
    assert (sink.password_from, sink.must_deliver) == ("file:/keys/mqtt", tmp_path / "spool")


@pytest.mark.parametrize(
    ("content", "words"), [(b"a = ", "is not valid TOML"), (b"\xff", "is not UTF-8"), (None, "cannot be read")]
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "line.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_line_config(file)


def test_the_schema_takes_what_the_reader_takes_and_refuses_unknown_keys() -> None:
    check = jsonschema.Draft202012Validator(schema())
    check.check_schema(schema())
    check.validate(SMALL)
    check.validate(read_toml(EXAMPLE))
    for wrong in (SMALL | {"bundel": "x"}, stream(camera={"adress": "0"}), SMALL | {"sink": [{"kind": "mqtt"}]},
                  stream(lane={"policy": "newest"}), SMALL | {"web": {"port": "80"}}):  # fmt: skip
        assert not check.is_valid(wrong)


def test_the_example_can_be_read_and_its_schema_is_up_to_date() -> None:
    settings = read_line_config(EXAMPLE)
    assert len(settings.streams) > 1
    assert {sink.kind for sink in settings.sinks} == {"json-lines", "rejects", "mqtt", "history", "webhook"}
    assert json.loads(EXAMPLE.with_name("line.schema.json").read_text(encoding="utf-8")) == schema()


def test_the_example_with_a_plc_can_be_read_and_says_who_triggers() -> None:
    table = read_toml(EXAMPLE.with_name("plc.toml"))
    jsonschema.Draft202012Validator(schema()).validate(table)
    settings = read_line_config(EXAMPLE.with_name("plc.toml"))
    assert [sink.kind for sink in settings.sinks] == ["modbus", "opcua", "json-lines"]
    assert settings.under("m10").streams[0].verdict.threshold == 0.4
    assert {"stream left, triggered", "recipe m8 at the start", "recipe m10"} <= set(settings.lines())
    table["sink"][0]["name"] = "other"
    with pytest.raises(
        ConfigError, match="stream 'left' is triggered by 'plc', which nobody is: choose any, camera, page"
    ):
        line_settings(table, "plc.toml", Path())
    table["sink"][0]["name"] = "plc"
    table["stream"].append({"name": "right", "camera": {"address": "0"}, "trigger": {}})
    with pytest.raises(
        ConfigError, match="the sink 'plc' must say whose parts it shows: give it one stream of left, right"
    ):
        line_settings(table, "plc.toml", Path())


def test_config_check_says_what_the_line_would_be(
    trained_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(trained_run / "bundle", tmp_path / "b"))
    file = tmp_path / "line.toml"
    text = 'bundle = "b"\n{}[[stream]]\nname = "left"\ncamera.address = "0"\n{}[web]\n'

    def check(more: str = "", of_stream: str = "", *flags: str) -> tuple[int, str]:
        file.write_text(text.format(more, of_stream))
        code = run(["config", "check", str(file), *flags])
        found = capfd.readouterr()
        return code, found.out + found.err

    code, said = check()
    assert code == 0
    assert "page on 127.0.0.1:8080, without a token, this machine only" in said
    assert "is whole: nnet.onnx on openvino, threshold" in said
    code, said = check('precision = "int8"\n')
    assert (code, "line.toml: bundle: " in said, "holds no int8 graph: make one with nnet-edge calibrate" in said) == (
        1, True, True)  # fmt: skip
    code, said = check('[runner]\nkind = "tensorrt"\n')
    assert code == 1
    assert "holds no engine for this machine" in said
    code, said = check("", "verdict.adapt = 2\n")
    assert (code, "[[stream]] 'left': verdict: adapt on 2 pictures is too few" in said) == (2, True)
    assert check("", "verdict.adapt = 50\n")[0] == 0
    code, said = check("", 'bundle = "c"\n')
    assert (code, "there is no bundle at" in said) == (1, True)
    (bundle / "nnet.onnx").write_bytes(b"altered")
    assert "was altered after it was written" in check()[1]
    assert check("", "", "--without-bundle")[0] == 0


def test_config_check_tells_what_is_absent_and_paths_that_may_come_start_at_the_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "line.toml"
    table = '[[stream]]\nname = "{0}"\ncamera.address = "{0}"\n'
    file.write_text('bundle = "b"\n' + "".join(map(table.format, ("cam0", "clip.mp4", "synthetic", "7"))))
    assert run(["config", "check", str(file), "--without-bundle"]) == 0
    notes = [line for line in capfd.readouterr().out.splitlines() if line.startswith("note")]
    assert len(notes) == 2
    assert f"stream cam0: there is no source '{tmp_path}/cam0'" in notes[0]
    assert notes[0].endswith("it is tried until it is there")
    assert notes[1].endswith("the line would be refused")


def test_config_has_a_schema_and_single_source_options_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "line.toml"
    file.write_text('bundle = "c"\n[[stream]]\nname = "left"\ncamera.address = "0"\n')
    assert run(["config", "schema"]) == 0
    assert json.loads(capfd.readouterr().out) == schema()
    assert run(["stream", "0", "--config", str(file)]) == 2
    assert run(["stream", "--config", str(file), "--video", "x.mp4"]) == 2
    assert "--video belongs to a single source" in capfd.readouterr().err
    assert run(["stream", "--config", str(file), "--credentials", "env:LOGIN"]) == 2
    assert "--credentials belongs to a single source" in capfd.readouterr().err


BOM = "\ufeff"  # which Windows' Notepad writes before the text


def test_texts_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text(f'{BOM}bundle = "b"\n[[stream]]\nname = "cam"\ncamera.address = "0"\n', "utf-8")
    assert read_line_config(tmp_path / "line.toml").bundle == tmp_path / "b"
    (tmp_path / "login").write_text(f"{BOM}me:secret\r\n", "utf-8")
    assert read_credentials(f"file:{tmp_path / 'login'}") == ("me", "secret")
    assert read_secret("token_from", f"file:{tmp_path / 'login'}") == "me:secret"
