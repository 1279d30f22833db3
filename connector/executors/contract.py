"""What an executor does: it has tasks worked on, and hands over their outcomes as they complete.

A *factory* makes a *worker*, which is called with one task after the other and holds what it has loaded. The worker
yields a task's result in parts, for example Arrow record batches in the order of the rows. Wherever a worker may be in
another process, factory, tasks and parts are serialised: none of them holds an open file, lock or connection.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from alignment.errors import DeviceError, MissingPackageError
from alignment.plurals import counted
from connector.errors import CorpusChangedError, EncoderError, MismatchError, SettingsError

T = TypeVar("T")
P = TypeVar("P")

Worker: TypeAlias = Callable[[T], Iterable[P]]
Factory: TypeAlias = Callable[[], Callable[[T], Iterable[P]]]

# What concerns every task alike. Every other error is one of the task that was worked on.
CONCERNS_JOB = (CorpusChangedError, DeviceError, EncoderError, MismatchError, MissingPackageError, SettingsError)
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no result.

    Attributes:
        kind: name of the exception's class, such as `OSError`.
        message: what it said, or how the last worker died.
        node: address of the machine where the last attempt failed; empty where it is not known.
        attempts: how many times the task was begun.
    """

    kind: str
    message: str
    node: str
    attempts: int

    def __str__(self) -> str:
        where = f", at last on {self.node}" if self.node else ""
        return f"failed {counted(self.attempts, 'time')}{where}: {self.kind}: {self.message}"


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T, P]):
    """What became of one task.

    Attributes:
        position: of the task among all tasks of the job, from 0.
        task: what was to be done.
        parts: of its result, in order; take them once, before the next outcome. Empty after a failure.
        failure: why there is no result; None if there is one.
    """

    position: int
    task: T
    parts: Iterable[P]
    failure: Failure | None = None


class Executor(Protocol):
    """Has tasks worked on."""

    def map(self, factory: Factory[T, P], tasks: Iterable[T]) -> Iterator[Outcome[T, P]]:
        """Yield the outcome of each task once, as they complete, not necessarily in the order of the tasks.

        Tasks are taken from `tasks` a bounded number ahead of the outcomes that were yielded. Close the iterator to
        end the job early.

        Args:
            factory: called once a worker. Arrays in it are read-only in other processes, and shared by those of one
                machine.
            tasks: what is to be done. `str` of one names it in messages.

        Raises:
            ModalignError: one of `CONCERNS_JOB`, from the factory or from any task.
        """
        ...
