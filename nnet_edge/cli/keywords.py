"""Options of a command as keywords: false_rejects for --false-rejects, and what one would type for their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from nnet_edge.errors import ConfigError
from nnet_edge.settings.reader import unknown_key


def options_of(command: click.Command) -> dict[str, click.Option]:
    """The options of the command by their keywords."""
    found = {}
    for option in command.params:
        if isinstance(option, click.Option):
            found[max(option.opts, key=len).lstrip("-").replace("-", "_")] = option
    return found


def arguments_of(options: Mapping[str, click.Option], values: Mapping[str, Any], where: str) -> list[str]:
    """What to type for the values of these options. Raises ConfigError for a value that no option could have."""
    found: list[str] = []
    for key in sorted(values):  # a key of settings does not depend on the order of options
        option, value = options[key], values[key]
        name = max(option.opts, key=len)
        if isinstance(value, Mapping) and option.multiple:
            value = [f"{inner}={text_of(part)}" for inner, part in value.items()]
        if option.is_flag != isinstance(value, bool) or isinstance(value, Mapping):
            kind = "true or false" if option.is_flag else "a text or a number"
            raise ConfigError(f"{where}: {key} is {value!r}: it must be {kind}")
        if isinstance(value, bool):
            found += [name] if value else []
        else:
            for part in value if isinstance(value, list | tuple) else [value]:
                found += [name, text_of(part)]
    return found


def text_of(value: Any) -> str:
    """The value as one types it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parsed(command: click.Command, words: Sequence[str], keywords: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the command would be given, had `words` been typed and the keywords as its options; None is one not typed.

    Raises ConfigError for an unknown keyword, and for a value that the command would refuse.
    """
    options, given = options_of(command), {key: value for key, value in keywords.items() if value is not None}
    for key in given:
        if key not in options:
            raise ConfigError(unknown_key(key, list(options), where))
    arguments = arguments_of(options, given, where)
    try:
        return command.make_context(command.name, [*arguments, "--", *words]).params
    except click.UsageError as error:
        raise ConfigError(f"{where}: {' '.join(error.format_message().split())}") from error
