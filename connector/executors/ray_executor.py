"""Tasks worked on by actors of Ray: as many as there is room for, and new ones where some die."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError
from typing_extensions import override

from alignment.errors import ModalignError
from alignment.plurals import counted
from connector.errors import ExecutorError, OutOfResourcesError
from connector.executors import ray_worker
from connector.executors.contract import ATTEMPTS, Executor, Factory, Failure, Outcome, P, T
from connector.executors.placement import Placement
from connector.executors.ray_connection import HeadNode
from connector.executors.ray_failures import (
    RUN_AGAIN,
    job_error,
    lost_cluster_is_named,
    one_line,
    start_error,
    version_error,
    why_dead,
)
from connector.executors.ray_room import Room
from connector.executors.ray_worker import RayWorker, versions

_log = logging.getLogger(__name__)

IN_FLIGHT = 2  # tasks a worker: one that it does, and one to go on with while the driver is busy
TICK_SECONDS = 1.0
# Until it is said that fewer workers than asked for have started: where there is no room for all, and where there is.
SAY_SECONDS = 10.0
SAY_SLOW_SECONDS = 60.0
PATIENCE_SECONDS = 600.0  # a cluster may take minutes to add machines
FAILED_STARTS = 3  # in a row, while no worker lives
SAME_FAILURES = 3  # tasks that failed each time by the same error, before any has ended: so would all others
DIED = "WorkerDied"  # which may be the machine's fault

cloudpickle.register_pickle_by_value(ray_worker)


class RayExecutor(Executor):
    """Has tasks worked on by the cluster that this process is connected to.

    Args:
        placement: how many workers, and what each needs.
        patience: seconds for which fewer workers than `min_workers` are waited for.
    """

    def __init__(self, placement: Placement, patience: float = PATIENCE_SECONDS):
        self._placement = placement
        self._patience = patience

    @override
    def map(self, factory: Factory[T, P], tasks: Iterable[T]) -> Iterator[Outcome[T, P]]:
        """Yield outcomes as they complete, as `Executor.map` says.

        A task whose worker dies, or that raises an error of its own, is given to a worker again. One that has failed
        three times is an outcome with a failure, and the others go on.

        Raises:
            ExecutorError: fewer workers than asked for could be had, the cluster was lost, or the first tasks have all
                failed by the same error.
            OutOfResourcesError: no machine has the memory that a worker needs.
            MismatchError: a worker has another version of modalign or Python.
            ModalignError: one of `CONCERNS_JOB`, from any worker.
        """
        with lost_cluster_is_named():
            job = _Job(self._placement, self._patience, factory, tasks)
            try:
                yield from job.outcomes()
            finally:
                job.close()


@dataclass(slots=True)
class _Attempted(Generic[T]):
    """A task, and how many times it failed."""

    position: int
    task: T
    failed: int = 0


@dataclass(slots=True, eq=False)
class _Hired(Generic[T]):
    """An actor.

    Attributes:
        starting: its answer to the first call; None once that is there.
        running: its answers to tasks, which it does in this order.
    """

    actor: Any
    starting: Any
    node: str = ""
    running: deque[tuple[Any, _Attempted[T]]] = field(default_factory=deque)

    @property
    def next_answer(self) -> Any:
        """What it answers next; None: it has nothing to do."""
        return self.starting or (self.running[0][0] if self.running else None)

    def end(self) -> None:
        """End the actor, and what it is doing."""
        with suppress(Exception):  # it, or the cluster, may be gone
            ray.kill(self.actor)


class _Job(Generic[T, P]):
    """One call of `RayExecutor.map`."""

    def __init__(self, placement: Placement, patience: float, factory: Factory[T, P], tasks: Iterable[T]):
        self._placement = placement
        self._patience = patience
        self._factory = ray.put(factory)  # once: workers map the arrays in it, and do not copy them
        self._tasks = (_Attempted(position, task) for position, task in enumerate(tasks))
        self._queue: deque[_Attempted[T]] = deque()
        self._hired: list[_Hired[T]] = []
        self._room = Room(placement)
        self._head = HeadNode.of_this_connection()
        self._failed_starts = 0
        self._any_ended = False
        self._failed_by: Counter[tuple[str, str]] = Counter()  # tasks, by kind and message of the last failure
        self._said: set[tuple[str, str]] = set()
        self._began = self._enough_at = time.monotonic()
        self._said_fewer = False
        self._actor_class = ray.remote(
            num_cpus=1, num_gpus=placement.gpus_per_worker, max_restarts=0, max_task_retries=0
        )(RayWorker)
        if not placement.gpus_per_worker and (gpus := self._room.gpus()):
            _log.warning("no worker uses one of the %g GPUs of the cluster without --gpus-per-worker", gpus)

    def outcomes(self) -> Iterator[Outcome[T, P]]:
        """Do the tasks."""
        while True:
            self._head.raise_if_lost()
            self._hire()
            self._give()
            answers = {hired.next_answer: hired for hired in self._hired if hired.next_answer is not None}
            if not any(hired.running for hired in self._hired) and not self._queue:
                return
            ready, _ = ray.wait(list(answers), num_returns=1, timeout=TICK_SECONDS)
            for answer in ready:
                if answers[answer].starting:
                    self._take_start(answers[answer])
                elif outcome := self._take_result(answers[answer]):
                    yield outcome
            self._look_at_numbers()

    def close(self) -> None:
        """End the actors."""
        if self._head.answers and ray.is_initialized():  # Ray would wait for it, or for another cluster
            for hired in self._hired:
                hired.end()
        self._hired = []

    def _hire(self) -> None:
        """Have as many actors as there are tasks for, no more than are allowed."""
        most = self._room.most_workers()
        at_hand = len(self._queue) + sum(len(hired.running) for hired in self._hired)
        self._queue.extend(islice(self._tasks, max(IN_FLIGHT * most - at_hand, 0)))
        at_hand = len(self._queue) + sum(len(hired.running) for hired in self._hired)
        for _ in range(min(most, at_hand) - len(self._hired)):
            actor: Any = self._actor_class.remote()
            with_gpu = self._placement.gpus_per_worker > 0
            self._hired.append(_Hired(actor, actor.start.remote(versions(), [self._factory], with_gpu)))

    def _give(self) -> None:
        """Give tasks to actors: one to each, then another one to each."""
        for count in range(1, IN_FLIGHT + 1):
            for hired in self._hired:
                if self._queue and not hired.starting and len(hired.running) < count:
                    attempted = self._queue.popleft()
                    hired.running.append((hired.actor.run.remote(attempted.task), attempted))

    def _take_start(self, hired: _Hired[T]) -> None:
        try:
            report = ray.get(hired.starting)
        except RayError as error:
            lost = ExecutorError(f"a worker died while it started: {why_dead(error)}", code="worker-start")
            self._failed_start(hired, lost)
            return
        hired.node, hired.starting = report["node"], None
        self._say(report)
        if found := report.get("versions"):
            raise version_error(found, hired.node)
        if report["error"]:
            failure = start_error(report["error"], hired.node)
            if not isinstance(failure, OutOfResourcesError):
                raise failure
            self._failed_start(hired, failure)
            return
        self._failed_starts = 0

    def _failed_start(self, hired: _Hired[T], error: ModalignError) -> None:
        """Let another actor be hired, unless none can be started."""
        self._dismiss(hired)
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS and not self._started():
            raise error
        _log.warning("%s; another one is started", error)

    def _take_result(self, hired: _Hired[T]) -> Outcome[T, P] | None:
        """Return the outcome of the task that an actor did; None: the task is begun again."""
        answer, attempted = hired.running.popleft()
        try:
            report = ray.get(answer)
        except RayTaskError as error:  # the task cannot be sent, or its result not returned
            return self._failed(attempted, type(error.cause).__name__, one_line(error.cause), hired.node)
        except RayError as error:  # the actor died, or the machine that held the result
            self._dismiss(hired)
            return self._failed(attempted, DIED, why_dead(error), hired.node)
        self._say(report)
        if failure := report["error"]:
            if error_of_job := job_error(failure, hired.node):
                raise error_of_job
            return self._failed(attempted, failure["kind"], failure["message"], hired.node)
        self._any_ended = True
        return Outcome(attempted.position, attempted.task, report["parts"])

    def _failed(self, attempted: _Attempted[T], kind: str, message: str, node: str) -> Outcome[T, P] | None:
        attempted.failed += 1
        failure = Failure(kind, message, node, attempted.failed)
        if attempted.failed < ATTEMPTS:
            _log.warning("%s: %s; it is begun again", attempted.task, failure)
            self._queue.appendleft(attempted)
            return None
        self._failed_by[kind, message] += 1
        if self._failed_by[kind, message] >= SAME_FAILURES and not self._any_ended and kind != DIED:
            raise ExecutorError(
                f"the first {SAME_FAILURES} of the work, such as {attempted.task}, {failure}; every other would fail "
                f"alike: mend the cause, then {RUN_AGAIN}",
                code="all-fail",
            )
        return Outcome(attempted.position, attempted.task, (), failure)

    def _dismiss(self, hired: _Hired[T]) -> None:
        """End an actor. Tasks that it had not begun go back; that is no failure of theirs."""
        self._hired.remove(hired)
        self._queue.extendleft(attempted for _, attempted in reversed(hired.running))
        hired.end()

    def _say(self, report: dict[str, Any]) -> None:
        """Log what a worker logged; once what several say."""
        for name, level, message in report["log"]:
            if (name, message) not in self._said:
                self._said.add((name, message))
                logging.getLogger(name).log(level, "%s", message)

    def _started(self) -> int:
        return sum(not hired.starting for hired in self._hired)

    def _look_at_numbers(self) -> None:
        """Say that fewer workers than asked for have started, and raise if they are too few for long."""
        now, started = time.monotonic(), self._started()
        needed = min(self._placement.min_workers, len(self._hired))
        if started >= needed:
            self._enough_at = now
        elif now - self._enough_at > self._patience or (not self._room.may_grow and self._room.fits() < needed):
            raise ExecutorError(
                f"{counted(started, 'worker')} could be started; expected at least {needed}, each with "
                f"{self._room.one_worker}; {self._room.in_words()}: ask for less with --workers and "
                f"--gpus-per-worker, or add machines; {RUN_AGAIN}",
                code="no-workers",
            )
        if started == len(self._hired) or self._said_fewer:
            return
        if now - self._began > (SAY_SLOW_SECONDS if self._room.fits() >= len(self._hired) else SAY_SECONDS):
            self._said_fewer = True
            _log.warning(
                "%d of %s started so far, each with %s; %s. Others join when there is room",
                started,
                counted(len(self._hired), "worker"),
                self._room.one_worker,
                self._room.in_words(),
            )
