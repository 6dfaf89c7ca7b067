"""Every key of a line's settings file with values that nobody means: a ConfigError that names the key, never another."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.settings.line import line_settings, read_line_config, schema

ODD = [
    None, True, -1, 0, 10**400, 1 << 20000, math.inf, -math.inf, math.nan, "", "x", "a\0b", "~nosuchuser/x", "\ud800",
    "x" * 5000, "env:", "file:", [], [[]], {}, {"x": 1}, [10**400], ["\0"], b"x",
]  # fmt: skip
Place = tuple[str | int, ...]


def leaves(node: dict[str, Any], path: Place = ()) -> Iterator[Place]:
    """The places of every key that the schema knows, those of each kind of sink and camera included."""
    yield path
    for key, inner in node.get("properties", {}).items():
        yield from leaves(inner, (*path, key))
    for kind in node.get("oneOf", node.get("anyOf", ())):
        yield from leaves(kind, path)
    if "items" in node and isinstance(node["items"], dict):
        yield from leaves(node["items"], (*path, 0))


def with_value(path: Place, value: object) -> dict[str, Any]:
    """A small valid table with `value` at that place."""
    table: dict[str, Any] = {"bundle": "b", "stream": [{"name": "a", "camera": {"address": "0"}}]}
    node: Any = copy.deepcopy(table)
    root = node
    for place, following in itertools.pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(node, list):
            if not node:
                node.append(empty)
            node = node[0]
        else:
            node = node.setdefault(place, empty)
    if isinstance(node, list):
        node[:] = [value]
    else:
        node[path[-1]] = value
    return root  # type: ignore[no-any-return]


PLACES = sorted({path for path in leaves(schema()) if path}, key=str)


def test_the_places_are_those_of_the_whole_file() -> None:
    assert {path[0] for path in PLACES} == set(schema()["properties"])
    assert len(PLACES) > 80


@pytest.mark.parametrize(
    "value", ODD, ids=lambda value: ascii(value)[:30] if not isinstance(value, int) else str(value % 97)
)
def test_an_odd_value_is_refused_in_words_or_is_fine(value: object) -> None:
    for path in PLACES:
        with suppress(ConfigError):
            line_settings(with_value(path, value), "line.toml", Path("/folder"), {})


@pytest.mark.parametrize("text", ["x = 0x" + "f" * 9000, "x = " + "1" * 9000, "x = " + "[" * 9000, "x = 1e999"])
def test_a_file_of_odd_numbers_is_refused_in_words(tmp_path: Path, text: str) -> None:
    file = tmp_path / "line.toml"
    file.write_text(f'bundle = "b"\n{text}\n')
    with pytest.raises(ConfigError):
        read_line_config(file)
