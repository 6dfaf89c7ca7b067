"""The machine that a pack is for: its wheels by their tags, and its environment as markers see it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nnet_edge.errors import ConfigError

EXTRAS = {
    "cpu": ("cpu",),
    "rtx": ("rtx", "gpu"),
    "jetson": ("gpu",),
}  # a Jetson has TensorRT from JetPack, never from pip
SYSTEMS = {"cpu": "x86_64", "rtx": "x86_64", "jetson": "aarch64"}
OLDEST_GLIBC, PYTHON = 17, re.compile(r"3\.(1[0-9]|[2-9][0-9])")
HINTS = {
    "cpu": "",
    "rtx": 'command -v nvcc >/dev/null || echo "note: nvcc is not there: engines need the CUDA toolkit"\n',
    "jetson": '"$prefix/env/bin/python" -c "import tensorrt" 2>/dev/null ||\n'
    '    echo "note: TensorRT is not there: it comes from JetPack (apt-get install tensorrt), never from pip"\n',
}


@dataclass(frozen=True)
class Target:
    """A Linux machine, as pip sees it. Raises ConfigError for a Python that nnet-edge does not run on."""

    kind: str  # of EXTRAS
    python: str  # "3.12"
    glibc: int = 35  # 2.x; 35 is Ubuntu 22.04 and JetPack 6
    more: tuple[str, ...] = ()  # extras

    def __post_init__(self) -> None:
        if PYTHON.fullmatch(self.python) is None:
            raise ConfigError(f"--python {self.python}: give the box's version from 3.10 on, as 3.12")

    @property
    def machine(self) -> str:
        """The processor's name."""
        return SYSTEMS[self.kind]

    @property
    def extras(self) -> tuple[str, ...]:
        """The extras of nnet-edge that are installed."""
        return tuple(dict.fromkeys((*EXTRAS[self.kind], *self.more)))

    @property
    def words(self) -> str:
        """For messages."""
        return f"Python {self.python} on Linux {self.machine} with glibc 2.{self.glibc}"

    def pip_tags(self) -> list[str]:
        """What tells pip which wheels fit."""
        names = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, OLDEST_GLIBC - 1, -1)]
        platforms = [part for name in (*names, f"manylinux2014_{self.machine}") for part in ("--platform", name)]
        return ["--implementation", "cp", "--python-version", self.python, "--only-binary", ":all:", *platforms]

    def environment(self) -> dict[str, str]:
        """The values of markers."""
        return {
            "os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": self.machine,
            "platform_release": "5.15.148-tegra" if self.kind == "jetson" else "6.8.0", "platform_version": "",
            "python_version": self.python, "python_full_version": f"{self.python}.9",
            "implementation_name": "cpython", "implementation_version": f"{self.python}.9",
            "platform_python_implementation": "CPython",
        }  # fmt: skip
