"""Where and how a source decodes its pictures: on the processor, there with an eye for torn video, or on a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nnet_edge.errors import ConfigError
from nnet_edge.settings.registry import Flag

CHECKED = "checked"
ON_GPU = re.compile(r"gpu(?::(\d+))?")


@dataclass(frozen=True)
class DecodeOptions:
    """Where the JPEGs, or the video, of a source are decoded."""

    decode: str = "cpu"  # cpu, checked (no torn pictures of video), gpu or gpu:N (JPEGs a little different)

    def __post_init__(self) -> None:
        if self.decode not in ("cpu", CHECKED) and not ON_GPU.fullmatch(self.decode):
            raise ConfigError(
                f"decode is {self.decode!r}: it must be cpu, checked, gpu or gpu:N, N as --gpu counts them"
            )

    @property
    def is_checked(self) -> bool:
        """Whether the processor decodes video so that torn pictures are told; every JPEG is looked at anyway."""
        return self.decode == CHECKED

    @property
    def gpu(self) -> int | None:
        """The GPU that decodes; None: the processor."""
        found = ON_GPU.fullmatch(self.decode)
        return None if found is None else int(found[1] or 0)


DECODE_HELP = (
    "Where JPEGs and video are decoded: cpu (default), checked (on the processor too; torn pictures of video are counted, not "
    "judged), gpu or gpu:N. Scores of JPEGs move a little on a GPU."
)
DECODE_FLAG = Flag("--decode", DECODE_HELP, lambda typed, asked: {"decode": typed}, "text", "cpu|checked|gpu|gpu:N")
