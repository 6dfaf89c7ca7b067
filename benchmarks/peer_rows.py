"""Rows of other methods, read from the files that `nnet-edge bench peers` leaves."""

from __future__ import annotations

import json
from pathlib import Path

from nnet_edge.benchmarks.accuracy_table import ROW_SCHEMA, AccuracyRow, row_from
from nnet_edge.errors import ConfigError, DataError


def read_peer_rows(folder: Path) -> list[AccuracyRow]:
    """The rows under `folder`: every JSON file that says it is one (schemas/accuracy_row.json).

    Raises ConfigError when there is no such folder or it holds no row, DataError for a file that cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"--peers {folder} is no folder: give the one that bench peers filled")
    rows = []
    for path in sorted(folder.rglob("*.json")):
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(known, dict) and known.get("schema") == ROW_SCHEMA:
                rows.append(row_from(known, str(path)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} cannot be read as a row of a peer ({error}): delete it or run the peer again"
            ) from error
    if not rows:
        raise ConfigError(f"--peers {folder} holds no row: run bench peers with it as --out")
    return rows
