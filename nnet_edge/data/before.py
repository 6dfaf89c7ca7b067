"""What an earlier training saw of the images of one that goes on from it.

The threshold is chosen on parts that no training saw. So what the earlier one learned cannot be held out, and what it held out
stays held out; of new parts some are held out as ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnet_edge.data.images import file_hash, fingerprint


@dataclass(frozen=True)
class Before:
    """The images that an earlier training learned, and those that it held out."""

    learned: frozenset[Path] = frozenset()
    held_out: frozenset[Path] = frozenset()


def seen_before(facts: Mapping[str, Any], paths: Sequence[Path], own: Sequence[Path]) -> Before:
    """What of `paths` the training saw whose facts (the manifest's "data") those are, by what the files hold.

    A bundle that does not name the files that it learned may have learned all of `own`, the images without those that are
    added now, and all of `paths` where their fingerprint is that of its own.
    """
    held_hashes, hashes = set(facts.get("held_out_files", ())), {path: hash_of(path) for path in paths}
    held_out = frozenset(path for path, found in hashes.items() if found in held_hashes)
    learned: Collection[Path]
    if "learned_files" in facts:
        learned_hashes = set(facts["learned_files"])
        learned = [path for path, found in hashes.items() if found in learned_hashes]
    else:
        learned = paths if fingerprint(paths) == facts["fingerprint"] else own
    return Before(frozenset(learned) - held_out, held_out)


def hash_of(path: Path) -> str:
    """Of the file's content; "" of one that cannot be read, which is said when its picture is wanted."""
    try:
        return file_hash(path)
    except OSError:
        return ""
