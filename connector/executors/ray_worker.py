"""What runs in a worker process of Ray.

The class is sent to the workers by value, so that it can say that a worker lacks modalign, or has another version. It
therefore imports Python and Ray alone, and speaks in dictionaries of plain values.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray

MAX_MESSAGES = 100  # of one task
LOGGERS = ("alignment", "connector")


def versions() -> dict[str, str]:
    """Return what driver and workers must agree on: the version of modalign, empty without it, and of Python."""
    try:
        modalign = version("modalign")
    except PackageNotFoundError:
        modalign = ""
    return {"modalign": modalign, "Python": ".".join(platform.python_version_tuple()[:2])}


class RayWorker:
    """Holds a worker, which a factory makes once, and calls it with tasks."""

    def __init__(self) -> None:
        self._messages = _Messages()
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self._messages)

    def start(self, expected: dict[str, str], factory: list[Any], with_gpu: bool) -> dict[str, Any]:
        """Make the worker.

        Args:
            expected: what `versions` returned in the driver.
            factory: reference to the factory, in a list, because Ray would fetch it before this runs.
            with_gpu: whether this worker may use GPUs: those that Ray has assigned.
        """
        found = versions()
        if found != expected:
            return self._report(versions=found)
        if not with_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # where Ray assigns none, it leaves all visible
        try:
            make: Callable[[], Callable[[Any], Iterable[Any]]] = ray.get(factory[0])
            self._worker = make()
        except (Exception, SystemExit) as error:  # noqa: BLE001  the driver tells them apart
            return self._report(error=error)
        return self._report()

    def run(self, task: object) -> dict[str, Any]:
        """Work on a task, and return the parts of its result."""
        try:
            return self._report(parts=list(self._worker(task)))
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return self._report(error=error)

    def _report(self, *, error: BaseException | None = None, **values: object) -> dict[str, Any]:
        failure = error and {
            "lack": _is_lack(error),
            "kinds": [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__],
            "kind": type(error).__name__,
            "message": " ".join(str(error).split()),
            "code": getattr(error, "code", None),
            "module": getattr(error, "name", None) if isinstance(error, ImportError) else None,
        }
        node = ray.util.get_node_ip_address()
        return {"node": node, "error": failure, "log": self._messages.take(), **values}


def _is_lack(error: BaseException) -> bool:
    from connector.resources import is_lack  # which is there: the versions were compared

    return is_lack(error)


class _Messages(logging.Handler):
    """Keeps warnings and errors until they are taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._kept) < MAX_MESSAGES:
            self._kept.append((record.name, record.levelno, record.getMessage()))

    def take(self) -> list[tuple[str, int, str]]:
        """Return the messages since the last call."""
        kept, self._kept = self._kept, []
        return kept
