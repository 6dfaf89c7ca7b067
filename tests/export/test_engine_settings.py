"""Targets, profiles and limits: what can be meant is parsed, the rest is one sentence."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.export import engine_settings
from nnet_edge.export.engine_settings import EngineSettings, Profile, Target, parse_target


def test_cards_are_named_once_and_in_order() -> None:
    target = parse_target("rtx:sm120,sm86,sm120")
    assert target == Target("rtx:sm86,sm120", "tensorrt_rtx", ("8.6", "12.0"))
    assert target.slug == "rtx-sm86-sm120"
    assert not target.needs_gpu


def test_local_takes_the_tensorrt_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_settings, "installed_flavours", lambda: ("tensorrt_rtx",))
    assert parse_target("local") == Target("local", "tensorrt_rtx")
    assert parse_target("local").needs_gpu
    monkeypatch.setattr(engine_settings, "installed_flavours", lambda: ())
    with pytest.raises(
        MissingExtraError, match=r"neither TensorRT nor TensorRT-RTX is installed: pip install .* or pip"
    ):
        parse_target("local")


def test_a_jetsons_engine_is_built_on_the_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"only on that Jetson; copy the bundle there"):
        parse_target("jetson", tmp_path / "absent")
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.0\n")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert parse_target("jetson", release) == Target("jetson", "tensorrt")


@pytest.mark.parametrize("text", ["rtx:8.6", "rtx:orin", "rtx:sm86,", "rtx:sm8"])
def test_cards_are_written_by_their_number(text: str) -> None:
    with pytest.raises(ConfigError, match="cards are written as sm75, sm80, sm86, sm89, sm120, sm121, not as"):
        parse_target(text)


def test_tensorrt_rtx_itself_says_which_cards_it_builds_for() -> None:
    """A later one may know more than today's: see `set_compatibility`."""
    assert parse_target("rtx:sm90,sm86").compute_capabilities == ("8.6", "9.0")
    assert parse_target("rtx:sm121,sm87").name == "rtx:sm87,sm121"


@pytest.mark.parametrize("text", ["", "rtx", "rtx:", "cloud", "tensorrt:sm86"])
def test_a_target_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(ConfigError, match="is unknown: choose local, jetson or rtx:"):
        parse_target(text)


@pytest.mark.parametrize(("text", "batches"), [("8", (1, 8, 8)), ("1,8,32", (1, 8, 32)), ("4, 4, 4", (4, 4, 4))])
def test_batches(text: str, batches: tuple[int, int, int]) -> None:
    assert Profile.parse(text).as_tuple() == batches


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8,4,2", "do not ascend"),
        ("0", "from 1 to 256"),
        ("1,8", "has 2 numbers"),
        ("many", "is no batch"),
        ("1,8,999", "256"),
    ],
)
def test_batches_that_cannot_be_meant(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Profile.parse(text)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"workspace_mib": 0}, "workspace"),
        ({"optimization": 6}, "from 0 to 5"),
        ({"hardware_compatibility": "all"}, "is unknown"),
        ({"hardware_compatibility": "ampere_plus"}, "no hardware compatibility levels: name the cards"),
        ({"version_compatible": True}, "builds no version compatible engines"),
    ],
)
def test_settings_that_cannot_be_meant(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        EngineSettings(parse_target("rtx:sm86"), **changes)  # type: ignore[arg-type]
