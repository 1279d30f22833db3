"""What workers and Ray report, as errors of modalign."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RaySystemError

from alignment.errors import MissingPackageError, ModalignError
from alignment.packages import missing_package
from connector.errors import EMBED, ConnectorError, ExecutorError, MismatchError, OutOfResourcesError
from connector.executors.contract import CONCERNS_JOB
from connector.executors.ray_worker import versions

RUN_AGAIN = "what is done is kept, so run the same command again"
CLUSTER_LOST = "cluster-lost"
LONGEST_REASON = 300  # characters

_DEATH = re.compile(r"The actor (?:is dead|died) because (.+?)(?= Worker exit type| Node Id| the actor's node|$)")


@contextmanager
def lost_cluster_is_named() -> Iterator[None]:
    """Raise an `ExecutorError` where Ray says that the cluster does not answer any more."""
    try:
        yield
    except ConnectorError:
        raise
    except (ConnectionError, RaySystemError) as error:
        raise cluster_lost(error) from error


def cluster_lost(error: BaseException) -> ExecutorError:
    """Return the error that says that the cluster does not answer any more."""
    return ExecutorError(
        f"the Ray cluster does not answer any more: {one_line(error)}; {RUN_AGAIN} when it does", code=CLUSTER_LOST
    )


def one_line(error: object) -> str:
    """Return what an error says, without line breaks."""
    return " ".join(str(error).split())


def why_dead(error: object) -> str:
    """Return why an actor died, of what Ray says.

    >>> why_dead("Died.\\n pid: 7\\nThe actor is dead because its worker process has died. Worker exit type: X")
    'its worker process has died'
    >>> why_dead("Failed.\\nTraceback (most recent call last):\\n  File\\nOSError: [Errno 28] No space left\\n")
    'OSError: [Errno 28] No space left'
    """
    if "Traceback (most recent call last)" in str(error):  # whose cause stands at its end
        error = str(error).strip().splitlines()[-1]
    text = one_line(error)
    match = _DEATH.search(text)
    return (match[1] if match else text)[:LONGEST_REASON].rstrip(".")


def job_error(failure: Mapping[str, Any], node: str) -> ModalignError | None:
    """Return the error that ends the job, of what a worker's code raised; None: it is one of the task."""
    if "builtins.ImportError" in failure["kinds"]:
        return missing_package(_import_error(failure), f"worker on {node}")
    if failure["code"] == EMBED:
        return None
    for kind in CONCERNS_JOB:
        if f"{kind.__module__}.{kind.__qualname__}" in failure["kinds"]:
            return kind(f"worker on {node}: {failure['message']}", code=failure["code"])
    return None


def start_error(failure: Mapping[str, Any], node: str) -> ModalignError:
    """Return the error of what a factory raised."""
    if error := job_error(failure, node):
        return error
    kind = OutOfResourcesError if failure["lack"] else ExecutorError
    return kind(
        f"worker on {node} could not be made: {failure['kind']}: {failure['message']}",
        code=None if failure["lack"] else "worker-start",
    )


def version_error(found: Mapping[str, str], node: str) -> ModalignError:
    """Return the error that says that a worker has other versions than the driver."""
    expected = versions()
    if not found["modalign"]:
        return MissingPackageError(
            f"worker on {node}: modalign is not installed; expected version {expected['modalign']}: install it on "
            "every machine of the cluster, with what the encoders need"
        )
    has, wanted = (", ".join(f"{name} {version}" for name, version in both.items()) for both in (found, expected))
    return MismatchError(
        f"worker on {node} has {has}; expected {wanted}, as here: install the same on every machine of the cluster",
        code="worker-version",
    )


def _import_error(failure: Mapping[str, Any]) -> ImportError:
    kind = ModuleNotFoundError if "builtins.ModuleNotFoundError" in failure["kinds"] else ImportError
    return kind(failure["message"], name=failure["module"])
