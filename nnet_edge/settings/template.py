"""A commented settings file to begin a line with, made from the schema: what is asked for, and every other key, off."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nnet_edge.settings.camera import common_keys, defaults_of, kind_of
from nnet_edge.settings.line import schema
from nnet_edge.settings.registry import SOURCES

HEAD = """\
# An inspection line: nnet-edge stream --config {name}
# nnet-edge config check {name} says what is wrong with it without running anything. A key behind # is off: it shows its
# default, or <what it takes>. Relative paths start at this file's folder.
"""
PLACE = 36  # column of what is said of a key
SINKS = ("json-lines", "rejects")  # that a new line has
SINK_VALUES = {"json-lines": {"path": "verdicts.jsonl"}, "rejects": {"folder": "rejects"}}
TAKES = {
    "string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "array": "list",
    "object": "table",
}  # fmt: skip
LEFT_OUT = ("adapted", "weight")  # which no person writes


def commented_settings(name: str, bundle: str, sources: Mapping[str, str], page: Mapping[str, Any] | None) -> str:
    """The text of a settings file called `name`: a stream for each of the sources (name -> address), the page where asked for.

    Two sinks are on: verdicts as JSON lines, and pictures of rejects.
    """
    whole = schema()["properties"]
    lines = [HEAD.format(name=name), *keys_of(whole, {"bundle": bundle})]
    lines += section("runner", whole["runner"])
    stream = whole["stream"]["items"]["properties"]
    for number, (stream_name, address) in enumerate(sources.items()):
        lines += ["", "[[stream]]", *keys_of(stream, {"name": stream_name})]
        lines += [
            "[stream.camera]",
            *keys_of(keys_of_camera(stream["camera"]["properties"], address), {"address": address}),
        ]
        if not number:  # said once
            lines += section("stream.lane", stream["lane"])
            lines += section("stream.verdict", stream["verdict"])
    kinds = {kind["properties"]["kind"]["const"]: kind for kind in whole["sink"]["items"]["oneOf"]}
    common = set.intersection(*(set(kind["properties"]) for kind in kinds.values()))
    for number, kind in enumerate((*SINKS, *(name for name in kinds if name not in SINKS))):
        keys = kinds[kind]["properties"]
        shown = (
            keys if not number else {key: about for key, about in keys.items() if key == "kind" or key not in common}
        )
        values = {"kind": kind, **SINK_VALUES.get(kind, {})}
        is_on = kind in SINKS
        lines += ["", f"# {kinds[kind]['description']}", *behind_a_mark(["[[sink]]"], is_on)]
        lines += keys_of(shown, values if is_on else {}, {"kind": json.dumps(kind)})
    lines += section("web", whole["web"], page)
    lines += section("drift", whole["drift"])
    return "\n".join(lines) + "\n"


def section(name: str, about: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> list[str]:
    """A table with all its keys; without values all of it is off, its name too."""
    head = ["", f"# {about['description']}", *behind_a_mark([f"[{name}]"], values is not None)]
    return [*head, *keys_of(about["properties"], values or {})]


def behind_a_mark(lines: list[str], is_on: bool) -> list[str]:
    """The lines, as comments unless they are on."""
    return lines if is_on else [f"# {line}" for line in lines]


def keys_of(
    properties: Mapping[str, Any], values: Mapping[str, Any], shown: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A line for each key that is no table of its own: those with a value first, the others off, with their defaults."""
    for key in (*values, *(key for key in properties if key not in values)):
        about = properties[key]
        if key.startswith("$") or key in LEFT_OUT or is_table(about):
            continue
        value = (
            json.dumps(values[key], ensure_ascii=False)
            if key in values
            else (shown or {}).get(key) or example_of(about)
        )
        line = f"{'' if key in values else '# '}{key} = {value}"
        yield f"{line:<{PLACE}} # {about['description']}"


def is_table(about: Mapping[str, Any]) -> bool:
    """Whether the key holds tables, which have a section of their own."""
    content = about.get("items", about) if about.get("type") == "array" else about
    return "properties" in content or "oneOf" in content


def example_of(about: Mapping[str, Any]) -> str:
    """The default, or what the key takes."""
    if "default" in about:
        return json.dumps(about["default"], ensure_ascii=False)
    if "enum" in about:
        return f"<{', '.join(map(json.dumps, about['enum']))}>"
    return f"<{TAKES[about['type']]}>"


def keys_of_camera(properties: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Those keys of a camera that a source at the address has."""
    kind = kind_of(address)
    kinds = SOURCES if kind is None else [kind]
    known = {*common_keys(), *(name for one in kinds for name in defaults_of(one))}
    return {key: about for key, about in properties.items() if key in known}
