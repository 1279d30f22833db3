"""A connection to Ray: to processes of this machine that are started for it, or to a cluster that runs."""

import logging
import os
import shutil
import signal
import socket
import sysconfig
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import ray
import ray._private.worker
import ray.util.client

from connector.errors import ConnectorError, ExecutorError, MismatchError, SettingsError
from connector.executors.placement import Placement
from connector.executors.ray_failures import CLUSTER_LOST, cluster_lost, one_line

_log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0  # for a cluster's host to answer at all
CONNECT_ATTEMPTS = 3  # where the head answers, but serves no client
HEAD_SECONDS = 5.0  # between two tries of a cluster's head, and for its answer
OF_MODALIGN = ("alignment", "connector")  # which every worker has, and which may be no installed files here
LOST_SECONDS = 40.0  # until a head that does not answer is lost
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


class HeadNode:
    """The head of a cluster.

    Ray ends the whole process when the head has not answered for a minute, so whether it does is found out here before.
    A client of ray:// is told by Ray itself.

    Args:
        address: `HOST:PORT`; empty: nothing is tried.
        every: seconds between two tries.
        patience: seconds until a head that does not answer is lost.

    Attributes:
        answers: whether it did when it was last tried.
    """

    def __init__(self, address: str, *, every: float = HEAD_SECONDS, patience: float = LOST_SECONDS) -> None:
        self.answers = True
        self._address = _host_and_port(address)
        self._every = every
        self._patience = patience
        self._tried_at = time.monotonic()

    @classmethod
    def of_this_connection(cls) -> Self:
        """Return the head of the cluster that this process is connected to."""
        return cls("" if ray.util.client.ray.is_connected() else ray.get_runtime_context().gcs_address)

    def raise_if_lost(self) -> None:
        """Try it now and then, and wait for it for a while.

        Raises:
            ExecutorError: it does not answer any more.
        """
        if self._address is None or time.monotonic() - self._tried_at < self._every:
            return
        deadline = time.monotonic() + self._patience
        while True:
            try:
                socket.create_connection(self._address, HEAD_SECONDS).close()
            except OSError as error:
                self.answers = False
                if time.monotonic() > deadline:
                    raise cluster_lost(error) from error
                time.sleep(min(1.0, self._patience / 4))
            else:
                self.answers, self._tried_at = True, time.monotonic()
                return


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this program does at SIGTERM while it connects: Ray would have it abort with a stack trace."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:  # None: a handler that is not Python's
            with suppress(ValueError):  # another thread than the main one may not
                signal.signal(signal.SIGTERM, before)


def _start(count: int) -> Any:
    try:
        with _own_sigterm():
            return ray.init(address="local", num_cpus=count, include_dashboard=False, **QUIET)
    except Exception as error:
        if type(error) is not Exception:  # what Ray raises where its processes do not come up in time is of no kind
            raise
        raise ExecutorError(
            f"--on local:{count}: Ray's processes did not start: {one_line(error)}; the machine may be busy: run the "
            "same command again, what is done is not done again",
            code="ray-start",
        ) from error


@contextmanager
def _own_processes(count: int) -> Iterator[None]:
    with _environment({"RAY_USAGE_STATS_ENABLED": "0"}), _named_errors("--on local"):
        context = _start(count)
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them becomes an error
            _init(address, runtime_env)
        lost = False
        try:
            yield
        except ExecutorError as error:
            lost = error.code == CLUSTER_LOST
            raise
        finally:
            if not lost:  # Ray would wait for the cluster
                ray.shutdown()


def _init(address: str, runtime_env: dict[str, Any] | None) -> None:
    for attempt in range(1, CONNECT_ATTEMPTS + 1):
        try:
            with _own_sigterm():
                ray.init(address=address, runtime_env=runtime_env, **QUIET)
            return
        except ConnectionAbortedError:  # a busy head starts a client's process too slowly
            if attempt == CONNECT_ATTEMPTS:
                raise


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
    return _host_and_port(os.environ.get("RAY_ADDRESS", ""))


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, colon, port = address.rpartition(":")
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
    reason = one_line(str(error).strip().rpartition("\n")[2]) or type(error).__name__  # it may end a traceback
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
    if module in OF_MODALIGN:
        return None
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
