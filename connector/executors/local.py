"""Tasks worked on in this process, one after the other."""

from collections.abc import Iterable, Iterator

from typing_extensions import override

from connector.executors.contract import Executor, Factory, Outcome, P, T


class LocalExecutor(Executor):
    """Works on tasks in order, when their outcomes are asked for. Nothing is serialised, or worked on twice.

    The parts of an outcome are made while they are read, so a result may be larger than memory. What a worker raises is
    raised there, unchanged, and ends the job: what fails in this process fails here again.
    """

    @override
    def map(self, factory: Factory[T, P], tasks: Iterable[T]) -> Iterator[Outcome[T, P]]:
        worker = factory()
        for position, task in enumerate(tasks):
            yield Outcome(position, task, worker(task))
