"""A connection to Ray: to processes of this machine that are started for it, or to a cluster that runs."""

import logging
import os
import shutil
import socket
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
import ray._private.worker

from connector.errors import ConnectorError, ExecutorError, MismatchError, SettingsError
from connector.executors.placement import Placement

_log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0  # for a cluster's host to answer at all
# Ray's own words go to its files. Its driver reports no usage.
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


@contextmanager
def connected(placement: Placement, modules: Iterable[str] = ()) -> Iterator[None]:
    """Connect this process to Ray as `placement` says, until the block ends.

    A program that is connected already stays so: for `auto`, its connection is used.

    Args:
        placement: not `local`.
        modules: as of `connector.executors.opening.open_executor`.

    Raises:
        SettingsError: this program is connected to another cluster.
        ExecutorError: the cluster cannot be reached, or was lost within the block.
        MismatchError: it runs another version of Python or Ray.
    """
    if ray.is_initialized():
        if placement.processes or placement.address:
            raise SettingsError(
                f"--on {placement.on}: this program is connected to a Ray cluster; expected none, so call "
                "ray.shutdown() first, or use that cluster with --on auto",
                code="on",
            )
        yield
        return
    # Ray prints what it thinks of its processes on stdout, which belongs to the command's own output.
    printing, ray._private.worker._worker_logs_enabled = ray._private.worker._worker_logs_enabled, False
    try:
        if placement.processes:
            with _own_processes(placement.processes):
                yield
        else:
            with _cluster(placement, modules):
                yield
    finally:
        ray._private.worker._worker_logs_enabled = printing


@contextmanager
def _own_processes(count: int) -> Iterator[None]:
    with _environment({"RAY_USAGE_STATS_ENABLED": "0"}), _named_errors("--on local"):
        context: Any = ray.init(address="local", num_cpus=count, include_dashboard=False, **QUIET)
        try:
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)


@contextmanager
def _cluster(placement: Placement, modules: Iterable[str]) -> Iterator[None]:
    where = f"--on {placement.on}"
    _raise_if_unreachable(where, placement.address or _recorded_address())
    files = [str(path) for path in map(_own_file, dict.fromkeys(modules)) if path]
    runtime_env = {"py_modules": files} if files else None
    address = placement.on if placement.address else "auto"
    with _named_errors(where):
        ray.init(address=address, runtime_env=runtime_env, **QUIET)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _recorded_address() -> tuple[str, int] | None:
    """Return the address that the environment of a cluster's machine names, if it does."""
    host, colon, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
    return (host.strip("[]"), int(port)) if colon and port.isdigit() and "/" not in host else None


def _raise_if_unreachable(where: str, address: tuple[str, int] | None) -> None:
    """Find out within seconds that nobody answers; Ray takes minutes."""
    if address is None:
        return
    try:
        socket.create_connection(address, CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(where, error) from error


def _unreachable(where: str, error: BaseException) -> ExecutorError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ExecutorError(
        f"{where}: no Ray cluster answers: {reason}; expected one that runs. A cluster's head answers ray:// on port "
        "10001 unless it was started otherwise; auto is for a machine of the cluster; --on local needs none",
        code="cluster-unreachable",
    )


@contextmanager
def _named_errors(where: str) -> Iterator[None]:
    """Give errors of the connection words of modalign."""
    entered = ray.is_initialized
    try:
        yield
    except ConnectorError:
        raise
    except ConnectionError as error:
        if not entered():
            raise _unreachable(where, error) from error
        raise
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "ersion mismatch" not in text:
            raise
        raise MismatchError(
            f"{where}: {text}; expected the same versions of Ray and Python here and in the cluster: install those of "
            "the cluster here, or run this command there with --on auto",
            code="worker-version",
        ) from error


def _own_file(module: str) -> Path | None:
    """Return the file or directory of a top-level module that no package installed; None: workers have their own."""
    try:
        spec = find_spec(module)
    except ValueError:
        return None
    if spec is None or not spec.origin or spec.origin in ("built-in", "frozen"):
        return None
    path = Path(spec.origin).resolve()
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")}
    if installed & set(path.parents):
        return None
    return path.parent if spec.submodule_search_locations else path
