"""Texts of the outside world, as file names and errors of other libraries, made fit for terminals, JSON and metrics."""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, what turns the direction of writing, and halves of surrogate pairs,
# in which Python keeps the bytes of a file name that are not UTF-8.
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
BREAKS = re.compile(r"\s*[\t\n\v\f\r]\s*")


def printable(text: str) -> str:
    """`text` with each character that a terminal would obey, or UTF-8 cannot hold, written out: \\x1b, \\u202e."""
    return UNPRINTABLE.sub(lambda found: written_out(ord(found[0])), text)


def written_out(code: int) -> str:
    r"""The escape of a character; for a byte that is not UTF-8 it is that of the byte, as \xe4."""
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{byte:02x}" if byte < 256 else f"\\u{code:04x}"


def one_line(text: str) -> str:
    """`text` printable and on one line."""
    return printable(BREAKS.sub(" ", text))


def safe_cell(value: object) -> object:
    """The value as a table for spreadsheets holds it: text that one would compute is quoted by an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "@", "-", "\t", "\r") else value
