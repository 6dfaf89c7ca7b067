"""Ray: a cluster that is there already, or one of this machine's cores that lasts as long as the command.

The local one listens on the loopback alone, with a token of its own, no dashboard and no usage statistics, and keeps its files
in a folder that is deleted afterwards.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError, StreamError, missing_library
from nnet_edge.machine import usable_cores

if TYPE_CHECKING:
    from typing_extensions import Self

QUIET = {  # inherited by workers: threads that wait sleep
    "GOMP_SPINCOUNT": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "error",
}  # fmt: skip
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
LOCAL = {  # read at the import of ray
    LOOPBACK: "0",  # its node is 127.0.0.1; _node_ip_address would be turned into an outer address
    "RAY_AUTH_MODE": "token",
    "RAY_worker_niceness": "0",  # else 15, and whatever else runs here goes first; `nice` is an option of nnet-edge train
}
TOKEN = "RAY_AUTH_TOKEN"  # else one is written into ~/.ray
SMALLEST_STORE = 80 << 20  # bytes of shared memory: what tasks pass is small
CONNECT_S = 5.0
LONGEST_FOLDER = 40  # letters: sockets lie below, and their paths end at 107


def require_listener(host: str, port: int) -> None:
    """Raise ConfigError where nobody listens: Ray would try for minutes."""
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster answers at {host}:{port} ({error.strerror or error}): is it started?"
        ) from error


class WorkerLostError(StreamError):
    """A worker that died while it worked, or whose machine did."""


class Cluster:
    """A Ray cluster; `with` connects to it, or starts and stops it.

    `address` is that of a running one ("auto", HOST:PORT, ray://HOST:PORT); None: one of `cpus` of this machine's cores.
    Entering raises MissingExtraError and ConfigError.
    """

    def __init__(self, address: str | None = None, cpus: int | None = None) -> None:
        self._address, self._cpus = address, cpus
        self._folder: Path | None = None
        self._environment: dict[str, str | None] = {}
        self._tasks: set[Any] = set()
        self._functions: dict[Callable[..., Any], Any] = {}  # exported once

    def __enter__(self) -> Self:
        changes = dict(QUIET) if self._address else {**QUIET, **LOCAL, TOKEN: secrets.token_hex(32)}
        host, _, port = (self._address or "").rpartition(":")
        if port.isdecimal() and "/" not in host:
            require_listener(host, int(port))
            if host in ("127.0.0.1", "localhost"):
                changes[LOOPBACK] = LOCAL[LOOPBACK]
        self._environment = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            try:
                import ray
            except ImportError as error:
                raise missing_library("ray", "ray", error) from error
            self._ray = ray
            handler = signal.getsignal(signal.SIGTERM)
            try:
                self._connect()
            finally:
                with suppress(ValueError):  # not the main thread
                    signal.signal(signal.SIGTERM, handler)  # Ray puts its own there
        except BaseException:
            self.__exit__()
            raise
        return self

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
        try:
            if self._address:
                self._ray.init(self._address, **quiet)
                return
            above = tempfile.gettempdir()
            self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir=above if len(above) <= LONGEST_FOLDER else "/tmp"))
            self._ray.init("local", num_cpus=self._cpus or usable_cores(), include_dashboard=False,
                           object_store_memory=SMALLEST_STORE, _temp_dir=str(self._folder), **quiet)  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, AssertionError) as error:
            what = f"the Ray cluster at {self._address} does not answer" if self._address else "Ray does not start here"
            raise ConfigError(f"{what} ({' '.join(str(error).split())[:300]})") from error

    def __exit__(self, *about: object) -> None:
        if hasattr(self, "_ray") and self._ray.is_initialized():
            for task in self._tasks:
                with suppress(Exception):
                    self._ray.cancel(task, force=True)
            self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        for name, value in self._environment.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})

    @property
    def cpus(self) -> int:
        """Processors of all its machines now."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def require(self, cpus: float, gpus: float) -> None:
        """Raise ConfigError unless the local cluster can ever give so much; another one may grow."""
        have = self._ray.cluster_resources()
        for what, asked, given in (("cpus", cpus, have.get("CPU", 0)), ("gpus", gpus, have.get("GPU", 0))):
            if self._folder is not None and asked > given:
                raise ConfigError(
                    f"{what} is {asked:g}, and this machine gives {given:g}: ask for less, or name --address"
                )

    def submit(self, function: Callable[..., Any], *arguments: Any, cpus: float, gpus: float = 0.0) -> Any:
        """A task that runs `function` in a process of its own, once."""
        once = self._functions.setdefault(function, self._ray.remote(max_calls=1, max_retries=0)(function))
        return self._known(once.options(num_cpus=cpus, num_gpus=gpus).remote(*arguments))

    def actor(self, kind: type, cpus: float) -> Any:
        """An object of the class in a process of its own; `call` its methods."""
        return self._ray.remote(kind).options(num_cpus=cpus, max_restarts=0).remote()

    def call(self, actor: Any, method: str, *arguments: Any) -> Any:
        """A task that calls this method."""
        return self._known(getattr(actor, method).remote(*arguments))

    def stop(self, actor: Any) -> None:
        """End the actor's process."""
        self._ray.kill(actor)

    def _known(self, task: Any) -> Any:
        self._tasks.add(task)
        return task

    def wait(self, tasks: Sequence[Any], timeout_s: float) -> list[Any]:
        """The tasks that have ended, one at least unless the time is over."""
        return list(self._ray.wait(list(tasks), num_returns=1, timeout=timeout_s)[0])

    def result(self, task: Any) -> Any:
        """What the task gave. Raises WorkerLostError, and what the task raised."""
        self._tasks.discard(task)
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(f"its worker was lost: {' '.join(str(error).split())[:200]}") from error
