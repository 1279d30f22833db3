import importlib.metadata
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from alignment.errors import MissingPackageError, ModalignError
from connector.errors import EncoderError, ExecutorError, MismatchError, OutOfResourcesError
from connector.executors import ray_executor
from connector.executors.contract import ATTEMPTS, Outcome
from connector.executors.opening import open_executor
from connector.executors.placement import Placement
from connector.executors.ray_executor import IN_FLIGHT, RayExecutor
from tests.support.errors import raises
from tests.support.ray_clusters import STORE_BYTES, RayCluster

pytestmark = pytest.mark.cluster

Work = Callable[[int], Iterator[tuple[int, int]]]


@pytest.fixture(scope="module")
def cluster(ray_machines: RayCluster) -> Iterator[Cluster]:
    """The cluster of all tests, and this process connected to it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_machines.environment.items():
            patch.setenv(name, value)
        with open_executor("auto"):
            yield ray_machines.machines


@dataclass(frozen=True)
class Working:
    """Workers that yield the task and their process.

    Attributes:
        directory: holds a file for each worker that was made, and each attempt of a task.
        dies: tasks that kill their worker each time.
        dies_once: tasks that kill their worker at the first attempt.
        fails: tasks that raise an `OSError` each time.
        seconds: that a task takes.
        waits_for: how many workers have to have been made before a task from `since` on ends.
    """

    directory: Path
    dies: tuple[int, ...] = ()
    dies_once: tuple[int, ...] = ()
    fails: tuple[int, ...] = ()
    seconds: float = 0.0
    waits_for: int = 0
    since: int = 0

    def __call__(self) -> Work:
        (self.directory / f"worker-{os.getpid()}-{time.monotonic_ns()}").touch()
        return self.work

    def work(self, task: int) -> Iterator[tuple[int, int]]:
        attempts = len(list(self.directory.glob(f"task-{task}-*")))
        (self.directory / f"task-{task}-{time.monotonic_ns()}").touch()
        if task in self.dies or (task in self.dies_once and not attempts):
            os.kill(os.getpid(), signal.SIGKILL)
        if task in self.fails:
            raise OSError("the disk\nis gone")
        time.sleep(self.seconds)
        deadline = time.monotonic() + 60
        while task >= self.since and len(list(self.directory.glob("worker-*"))) < self.waits_for:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield task, os.getpid()

    def attempts(self, task: int) -> int:
        return len(list(self.directory.glob(f"task-{task}-*")))


def results(outcomes: Iterator[Outcome[int, tuple[int, int]]]) -> dict[int, int]:
    """Process of each task; tasks are their own positions, and each has one outcome without failure."""
    processes: dict[int, int] = {}
    for outcome in outcomes:
        assert outcome.failure is None
        assert outcome.position == outcome.task
        assert outcome.task not in processes
        ((task, process),) = outcome.parts
        assert task == outcome.task
        processes[task] = process
    return processes


@pytest.mark.usefixtures("cluster")
class TestWork:
    def test_each_worker_is_made_once_and_each_task_done_once_by_machines_beside_a_head_without_cpus(
        self, tmp_path: Path
    ) -> None:
        factory = Working(tmp_path, waits_for=2)
        processes = results(RayExecutor(Placement("auto")).map(factory, range(8)))
        assert sorted(processes) == list(range(8))
        made = Counter(int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*"))
        assert set(made.values()) == {1}
        assert len(set(processes.values())) == 2 == len(made)
        assert [factory.attempts(task) for task in range(8)] == [1] * 8

    def test_tasks_are_read_a_bounded_number_ahead_and_a_job_ends_early_when_its_iterator_is_closed(
        self, tmp_path: Path
    ) -> None:
        taken: list[int] = []

        def endless() -> Iterator[int]:
            while True:
                taken.append(len(taken))
                yield taken[-1]

        outcomes = RayExecutor(Placement("auto", max_workers=2)).map(Working(tmp_path), endless())
        for count in range(5):
            next(outcomes)
            assert len(taken) <= count + 1 + 2 * IN_FLIGHT
        assert isinstance(outcomes, Iterator)
        outcomes.close()  # type: ignore[attr-defined]

    def test_what_fails_alike_from_the_beginning_ends_after_three_tasks(self, tmp_path: Path) -> None:
        factory = Working(tmp_path, fails=tuple(range(100)))
        with raises(ExecutorError, "OSError", "the disk is gone", code="all-fail"):
            list(RayExecutor(Placement("auto", max_workers=1)).map(factory, range(100)))
        assert [factory.attempts(task) for task in (0, 1, 2, 99)] == [*[ATTEMPTS] * 3, 0]

    def test_arrays_of_the_factory_are_mapped_and_not_copied(self) -> None:
        (outcome,) = RayExecutor(Placement("auto")).map(Mapped(np.arange(1_000_000)), [999_999])
        assert list(outcome.parts) == [(999_999, False, False)]

    def test_a_task_whose_worker_dies_is_done_by_another_one_and_three_deaths_are_a_failure(
        self, tmp_path: Path
    ) -> None:
        factory = Working(tmp_path, dies=(1,), dies_once=(2,), fails=(3,))
        outcomes = {outcome.position: outcome for outcome in RayExecutor(Placement("auto")).map(factory, range(6))}
        assert {position for position, outcome in outcomes.items() if outcome.failure} == {1, 3}
        assert [[task for task, _ in outcomes[task].parts] for task in (0, 2, 4, 5)] == [[0], [2], [4], [5]]
        assert [factory.attempts(task) for task in range(6)] == [1, ATTEMPTS, 2, ATTEMPTS, 1, 1]
        died, failed = outcomes[1].failure, outcomes[3].failure
        assert died
        assert failed
        assert (died.kind, died.attempts) == ("WorkerDied", ATTEMPTS)
        assert (failed.kind, failed.message, failed.attempts) == ("OSError", "the disk is gone", ATTEMPTS)
        assert failed.node

    def test_a_result_that_cannot_be_sent_is_a_failure_of_its_task(self) -> None:
        outcomes = {o.position: o.failure for o in RayExecutor(Placement("auto")).map(Unsendable(), range(2))}
        assert outcomes[0] is None
        assert outcomes[1] is not None
        assert "generator" in outcomes[1].message

    def test_warnings_of_workers_are_logged_here_once(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            list(RayExecutor(Placement("auto")).map(Warner(), range(4)))
        said = [record for record in caplog.records if record.name == "connector.of_the_worker"]
        assert [(record.levelname, record.getMessage()) for record in said] == [("WARNING", "100% slow")]


@dataclass(frozen=True)
class Mapped:
    array: "np.typing.NDArray[np.int64]"

    def __call__(self) -> Callable[[int], Iterator[tuple[int, bool, bool]]]:
        flags = self.array.flags
        return lambda task: iter([(int(self.array[task]), flags.owndata, flags.writeable)])


class Unsendable:
    def __call__(self) -> Callable[[int], Iterator[object]]:
        return lambda task: iter([(number for number in range(3)) if task else task])


class Warner:
    def __call__(self) -> Callable[[int], Iterator[int]]:
        return self.work

    def work(self, task: int) -> Iterator[int]:
        logging.getLogger("connector.of_the_worker").warning("%d%% slow", 100)
        logging.getLogger("connector.of_the_worker").info("not worth it")
        logging.getLogger("of.a.library").warning("noise")
        yield task


@dataclass(frozen=True)
class Raising:
    """A factory, or a worker, that raises an error."""

    error: Exception
    in_worker: bool = False

    def __call__(self) -> Work:
        if not self.in_worker:
            raise self.error
        return self.work

    def work(self, task: int) -> Iterator[tuple[int, int]]:
        raise self.error


@pytest.mark.usefixtures("cluster")
class TestErrorsOfTheJob:
    @pytest.mark.parametrize("in_worker", [False, True])
    @pytest.mark.parametrize(
        "error", [EncoderError("no such model"), MismatchError("fingerprint abc", code="other-encoder")]
    )
    def test_an_encoder_that_cannot_be_loaded_or_is_another_one_ends_the_job_with_its_own_error(
        self, error: ModalignError, in_worker: bool
    ) -> None:
        with raises(type(error), error, code=error.code):
            list(RayExecutor(Placement("auto")).map(Raising(error, in_worker), range(3)))

    def test_an_error_that_nobody_foresaw_while_a_worker_is_made_ends_the_job_and_is_named(self) -> None:
        with raises(ExecutorError, "ZeroDivisionError", "by what", code="worker-start"):
            list(RayExecutor(Placement("auto")).map(Raising(ZeroDivisionError("by what")), range(3)))

    def test_a_lack_of_memory_while_workers_are_made_ends_the_job_where_none_can_be_made(self) -> None:
        with raises(OutOfResourcesError, "MemoryError"):
            list(RayExecutor(Placement("auto")).map(Raising(MemoryError()), range(3)))

    def test_a_worker_that_dies_while_it_is_made_ends_the_job_where_none_can_be_made(self) -> None:
        with raises(ExecutorError, code="worker-start"):
            list(RayExecutor(Placement("auto")).map(Dying(), range(3)))

    def test_a_module_that_workers_lack_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "only_here.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        importlib.import_module("only_here")
        with raises(MissingPackageError, "only_here"):
            list(RayExecutor(Placement("auto")).map(Importing("only_here"), range(3)))

    def test_workers_of_another_modalign_are_refused_with_both_versions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = importlib.metadata.version("modalign")
        (tmp_path / "modalign-9.8.7.dist-info").mkdir()
        (tmp_path / "modalign-9.8.7.dist-info" / "METADATA").write_text("Name: modalign\nVersion: 9.8.7\n")
        monkeypatch.syspath_prepend(tmp_path)
        with raises(MismatchError, "9.8.7", ours, code="worker-version"):
            list(RayExecutor(Placement("auto")).map(Working(tmp_path), range(3)))


class Dying:
    def __call__(self) -> Work:
        os._exit(1)


@dataclass(frozen=True)
class Importing:
    module: str

    def __call__(self) -> Work:
        importlib.import_module(self.module)
        return Raising(OSError()).work


class TestRoom:
    def test_more_workers_than_there_is_room_for_are_said_and_the_work_goes_on(
        self, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(ray_executor, "SAY_SECONDS", 0.0)
        placement = Placement.parse("auto", workers="1:5")
        with caplog.at_level(logging.WARNING):
            assert len(results(RayExecutor(placement).map(Working(tmp_path, seconds=0.1), range(10)))) == 10
        assert any("2 CPU" in record.getMessage() for record in caplog.records)

    @pytest.mark.usefixtures("cluster")
    @pytest.mark.parametrize(
        ("placement", "values"),
        [
            (Placement.parse("auto", gpus_per_worker=1), ["1 GPU", "0 GPU"]),
            (Placement.parse("auto", workers="3:3"), ["at least 3", "2 CPU"]),
        ],
    )
    def test_fewer_workers_than_the_least_are_an_error_after_a_while(
        self, placement: Placement, values: list[str], tmp_path: Path
    ) -> None:
        with raises(ExecutorError, *values, code="no-workers"):
            list(RayExecutor(placement, patience=5.0).map(Working(tmp_path, seconds=0.2), iter(range(10_000))))

    def test_a_machine_that_is_lost_gives_its_tasks_back_and_one_that_joins_takes_some(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        lost = next(node for node in cluster.worker_nodes)
        factory = Working(tmp_path, waits_for=3, since=10)
        outcomes = RayExecutor(Placement("auto", max_workers=2)).map(factory, range(20))
        first = [next(outcomes)]
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("worker-*"))) < 2:  # one on each machine
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.remove_node(lost, allow_graceful=False)
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        processes = results(iter([*first, *outcomes]))
        assert sorted(processes) == list(range(20))
        assert len(list(tmp_path.glob("worker-*"))) >= 3
        assert len(set(processes.values())) >= 2
