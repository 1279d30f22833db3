"""From the value of `--on` to the executor that it names."""

import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from alignment.packages import missing_package
from connector.executors.contract import Executor
from connector.executors.placement import LOCAL, Placement


@contextmanager
def open_executor(
    on: str = LOCAL,
    *,
    workers: str | None = None,
    gpus_per_worker: float = 0.0,
    modules: Iterable[str] = (),
) -> Iterator[Executor | None]:
    """Open the executor that `on` names, and end it and what it started with the block; None: `on` is this process.

    The work of this process goes through no executor: it streams, and nothing is serialised.

    Args:
        on: `local`: this process. `local:N`: N processes of this machine. `ray://HOST:PORT`: a cluster, from outside.
            `auto`: the cluster that this machine belongs to.
        workers: `MIN:MAX`. Fewer than MIN workers for a while are an error; None: 1, and as many as there is room for.
        gpus_per_worker: share of a GPU, 0 to 1, or whole GPUs.
        modules: names of top-level modules that workers import. Those that are files of yours, and of no installed
            package, are sent to them.

    Raises:
        SettingsError: a value is malformed.
        MissingPackageError: Ray is needed and not installed.
        ExecutorError: the cluster cannot be reached.
        MismatchError: it runs another version of Python or Ray.
    """
    placement = Placement.parse(on, workers=workers, gpus_per_worker=gpus_per_worker)
    if on == LOCAL:
        yield None
        return
    if placement.processes:
        _guard_ports()
    try:
        # Ray is an extra, and takes a second to import.
        from connector.executors.ray_connection import connected
        from connector.executors.ray_executor import RayExecutor
    except ImportError as error:
        raise missing_package(error, f"--on {on}") from error
    with connected(placement, modules):
        yield RayExecutor(placement)


def _guard_ports() -> None:
    """Let Ray's processes on this machine answer this process alone: their ports are open to the network.

    Ray reads this once, when it is imported. A program that has imported it before has chosen for itself.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
