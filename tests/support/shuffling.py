"""An executor that completes tasks in a random order, and fails as it is told."""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random

from connector.executors.contract import Executor, Factory, Failure, Outcome, P, T


@dataclass
class Shuffling(Executor):
    """Completes tasks in a random order. Everything is serialised, as on its way to another process.

    Attributes:
        seed: of the order.
        fails: names of tasks that fail.
        dies_after: outcomes, then the process of the driver is interrupted; None: it is not.
        worked: names of the tasks that workers began.
    """

    seed: int = 0
    fails: tuple[str, ...] = ()
    dies_after: int | None = None
    worked: list[str] = field(default_factory=list)

    def map(self, factory: Factory[T, P], tasks: Iterable[T]) -> Iterator[Outcome[T, P]]:
        worker = pickle.loads(pickle.dumps(factory))()
        numbered = list(enumerate(tasks))
        Random(self.seed).shuffle(numbered)
        for count, (position, task) in enumerate(numbered):
            if count == self.dies_after:
                raise KeyboardInterrupt
            self.worked.append(str(task))
            if str(task) in self.fails:
                yield Outcome(position, task, (), Failure("OSError", "disk", "node", 3))
            else:
                yield Outcome(position, task, pickle.loads(pickle.dumps(list(worker(task)))))
