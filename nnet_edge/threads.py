"""How the threads of native libraries share a machine with others: how many, how they wait, who goes first."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

from nnet_edge.errors import ConfigError

SPINS = "GOMP_SPINCOUNT"  # of GNU OpenMP, which torch's wheels bring; KMP_BLOCKTIME means nothing to it
FEW_SPINS = "1000"  # some microseconds, of 300,000 by default
WAITING = (SPINS, "OMP_WAIT_POLICY")
BLAS = "OPENBLAS_NUM_THREADS"  # of NumPy's wheels
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's waiting threads sleep soon, unless the user has said how they wait; read when torch is imported, not later.

    They spin otherwise: beside one other busy program a training step then takes 5 to 20 times as long.
    """
    if not any(name in environment for name in WAITING):
        environment[SPINS] = FEW_SPINS


def spare_blas(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let NumPy's products compute on one thread, unless the user has said on how many; read when NumPy is imported.

    A line has none, and the others spin for a while when they start: 6 % of a start.
    """
    if not any(name in environment for name in (BLAS, "OMP_NUM_THREADS")):
        environment[BLAS] = "1"


def limit_threads(count: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch compute on `count` threads, in this process and in those that it starts."""
    environment.update(dict.fromkeys(COUNTS, str(count)))
    if torch := sys.modules.get("torch"):  # it has read them already
        torch.set_num_threads(count)


def give_way(niceness: int) -> None:
    """Let programs of a lower niceness go first, 0 to 19. Raises ConfigError where the system has no such thing."""
    if not hasattr(os, "setpriority"):
        raise ConfigError("--nice: this system has no niceness; leave it out")
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
