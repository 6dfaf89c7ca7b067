"""Reader of settings files: TOML tables to frozen dataclasses, and the JSON schema of the same dataclasses.

An unknown key is an error that offers the nearest name, a value of another type an error that says which is expected. The
dataclasses check values in __post_init__. A dataclass whose tables follow from a registry has its own `from_table` and
`schema`. A field's metadata may hold `key` (its name in the file, where that differs), `choices`, and `entries` (it is a list
of tables, written [[key]]). What the schema says of a field is the comment behind it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import math
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from nnet_edge.errors import ConfigError
from nnet_edge.settings.policy import Policy

T = TypeVar("T")
PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
LARGEST_INT = 2**63 - 1  # what TOML promises
SCHEMA_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}


def build(kind: type[T], table: Mapping[str, Any], where: str, folder: Path) -> T:
    """An object of the dataclass `kind` from a table; `where` names the table, relative paths start at `folder`.

    Raises ConfigError that begins with `where` for a key that is unknown, missing or of another type, and for what the
    dataclass itself refuses.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {table!r}: it must be a table")
    fields = fields_of(kind)
    for key in table:
        if key not in fields:
            raise ConfigError(unknown_key(key, list(fields), where))
    if missing := [key for key, field in fields.items() if key not in table and is_needed(field)]:
        raise ConfigError(f"{where} lacks {missing[0]}: give it")
    hints = typing.get_type_hints(kind)
    values = {fields[key].name: to_field(hints, fields[key], table[key], where, folder) for key in table}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def to_table(settings: Any) -> dict[str, Any]:
    """What `build` makes the same settings of: the keys that differ from their defaults, as TOML holds them."""
    found: dict[str, Any] = {}
    if "to_table" in vars(type(settings)):
        found = settings.to_table()
        return found
    for key, field in fields_of(type(settings)).items():
        value = getattr(settings, field.name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if value != default:
            found[key] = to_plain(value)
    return found


def to_plain(value: Any) -> Any:
    """The value as TOML holds it."""
    if isinstance(value, tuple):
        return [to_plain(part) for part in value]
    if isinstance(value, Policy | Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: to_plain(part) for key, part in value.items()}
    return to_table(value) if dataclasses.is_dataclass(value) else value


def to_field(hints: Mapping[str, Any], field: dataclasses.Field[Any], value: Any, where: str, folder: Path) -> Any:
    """The value of one field of a dataclass. Raises ConfigError that names the table and the key."""
    key, hint = key_of(field), hints[field.name]
    if not field.metadata.get("entries"):
        return to_value(hint, value, f"{where}: {key}", folder)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: [{key}] is one table: write [[{key}]], with two brackets, for each {key}")
    inner, titles = typing.get_args(hint)[0], [title(key, entry, number) for number, entry in enumerate(value)]
    return tuple(to_value(inner, entry, f"{where}: {name}", folder) for name, entry in zip(titles, value, strict=True))


def title(key: str, entry: Any, number: int) -> str:
    """How errors name an entry of a list: by its name where it has one."""
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return f"[[{key}]] {name!r}" if isinstance(name, str) else f"[[{key}]] number {number + 1}"


def unknown_key(key: str, known: list[str], where: str) -> str:
    """The message for an unknown key."""
    from difflib import get_close_matches

    near = get_close_matches(key, known, 1)
    advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"{where} has a key {key!r} that is unknown: {advice}"


def to_value(hint: Any, value: Any, where: str, folder: Path) -> Any:
    """`value` of a settings file as the type `hint`; None only where the type allows it. Raises ConfigError."""
    options = typing.get_args(hint) if is_union(hint) else (hint,)
    if value is None and type(None) in options:
        return None
    (hint,) = (option for option in options if option is not type(None))
    if typing.get_origin(hint) is tuple:
        return to_tuple(hint, value, where, folder)
    if typing.get_origin(hint) is Mapping:
        return to_plain_table(value, where)
    if isinstance(hint, type) and "from_table" in vars(hint):
        return hint.from_table(value, where, folder)  # type: ignore[attr-defined]
    if hint is Path:
        return to_path(of_type(str, value, where), where, folder)
    try:
        if hint is Policy:
            return Policy.from_text(of_type(str, value, where))
        if isinstance(hint, type) and issubclass(hint, Enum):
            return hint(of_type(str, value, where))
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{where} is {value!r}: choose {', '.join(item.value for item in hint)}") from error
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where, folder)
    return of_type(hint, value, where)


def to_tuple(hint: Any, value: Any, where: str, folder: Path) -> tuple[Any, ...]:
    """A list of the file as the tuple type `hint`: of one type and any length, or of a type for each place."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} is {value!r}: it must be a list")
    inner = typing.get_args(hint)
    if inner[-1] is Ellipsis:
        inner = (inner[0],) * len(value)
    if len(inner) != len(value):
        raise ConfigError(f"{where} has {len(value)} values: it must have {len(inner)}")
    pairs = zip(inner, value, strict=True)
    return tuple(to_value(item, part, f"{where}[{number}]", folder) for number, (item, part) in enumerate(pairs))


def to_plain_table(value: Any, where: str) -> dict[str, str | int | float | bool]:
    """A table of texts, numbers and truth values, under any names. Raises ConfigError."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}: it must be a table")
    for key, part in value.items():
        if not isinstance(part, str | int | float):
            raise ConfigError(f"{where}: {key} is {part!r}: it must be a text, a number, true or false")
    return dict(value)


def require_plain(value: Any, where: str) -> None:
    """Raise ConfigError unless numbers are finite and of 64 bits, and texts without NUL and lone surrogates."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            require_plain(key, f"{where}: a key")
            require_plain(item, f"{where}: {key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            require_plain(item, f"{where}[{number}]")
    elif isinstance(value, int) and abs(value) > LARGEST_INT:
        raise ConfigError(f"{where} is a number of {value.bit_length()} bits: it must be one of 64")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value}: it must be a finite number")
    elif isinstance(value, str) and not is_text(value):
        raise ConfigError(f"{where} is {value!a}: it holds a NUL character or half a letter (a lone surrogate)")


def is_text(text: str) -> bool:
    """Whether file systems, logs and JSON take the text: no NUL, no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def to_path(text: str, where: str, folder: Path) -> Path:
    """The path of a file's text, from `folder` on. Raises ConfigError for a home folder of nobody."""
    try:
        return folder / Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{where} is {text!r}: no such user has a home folder here, give the whole path") from error


def of_type(kind: type, value: Any, where: str) -> Any:
    """`value` if it is of that type; an int is a float too. Raises ConfigError."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, Path):  # from a flag
        return str(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where} is {value!r}: it must be {PLAIN[kind]}")
    return value


def schema_of(kind: type, described: str = "") -> dict[str, Any]:
    """The JSON schema (2020-12) of a table that becomes the dataclass `kind`."""
    if "schema" in vars(kind):
        return kind.schema()  # type: ignore[attr-defined]
    hints = typing.get_type_hints(kind)
    fields = fields_of(kind)
    schema: dict[str, Any] = {
        "type": "object",
        "description": (described or kind.__doc__ or "").strip().split("\n")[0].partition(" Raises ")[0],
        "properties": {
            key: schema_of_field(hints[field.name], field, comments_of(kind).get(field.name, ""))
            for key, field in fields.items()
        },
        "additionalProperties": False,
    }
    needed = [key for key, field in fields.items() if is_needed(field)]
    return schema | ({"required": needed} if needed else {})


@functools.cache
def comments_of(kind: type) -> dict[str, str]:
    """Field -> the comment behind it in the source of the dataclass; nothing where there is no source."""
    found: dict[str, str] = {}
    for part in kind.__mro__[-2::-1]:  # what a subclass says stands over its base
        try:
            source = textwrap.dedent(inspect.getsource(part))
        except OSError:
            continue
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines = [comments[row] for row in range(node.lineno, (node.end_lineno or 0) + 1) if row in comments]
                if text := " ".join(line for line in lines if line != "fmt: skip"):
                    found[node.target.id] = re.sub(r"\bNone:", "left out:", text)
    return found


def schema_of_field(hint: Any, field: dataclasses.Field[Any], comment: str = "") -> dict[str, Any]:
    """The schema of one key, with its default where that is a plain value."""
    schema = schema_of_hint(hint)
    default = field.default
    if isinstance(default, Enum | Policy):
        default = str(default.value if isinstance(default, Enum) else default)
    if isinstance(default, str | int | float):
        schema["default"] = default
    if choices := field.metadata.get("choices"):
        schema["enum"] = list(choices)
    if text := field.metadata.get("help") or comment:
        schema["description"] = " ".join([*filter(None, [schema.get("description")]), text[0].upper() + text[1:]])
    return schema


def schema_of_hint(hint: Any) -> dict[str, Any]:
    """The schema of a value of the type `hint`."""
    if is_union(hint):
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if inner[-1] is Ellipsis:
            return {"type": "array", "items": schema_of_hint(inner[0])}
        items = [schema_of_hint(item) for item in inner]
        return {"type": "array", "prefixItems": items, "minItems": len(inner), "maxItems": len(inner)}
    if typing.get_origin(hint) is Mapping:
        return {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
    if hint is Policy:
        return {"type": "string", "pattern": r"^(every-frame|freshest|paced:[0-9.]+)$"}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return schema_of(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [item.value for item in hint]}
    return {"type": SCHEMA_TYPES[hint]}


def fields_of(kind: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of the dataclass by their keys in the file."""
    return {key_of(field): field for field in dataclasses.fields(kind)}


def key_of(field: dataclasses.Field[Any]) -> str:
    """The field's key in the file."""
    return str(field.metadata.get("key", field.name))


def is_needed(field: dataclasses.Field[Any]) -> bool:
    """Whether the field has no default, or an empty one that its metadata calls needed."""
    has_none = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return has_none or bool(field.metadata.get("needed"))


def is_union(hint: Any) -> bool:
    """Whether the type is `X | None`."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
