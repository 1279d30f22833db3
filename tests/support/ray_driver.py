"""A program that has tasks worked on: `python -m tests.support.ray_driver ON [MODULE]`.

Prints a line for each outcome: the task, and what its worker found in the attribute ANSWER of the module. Task 1 kills
its worker each time.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

from alignment.errors import ModalignError
from connector.executors.opening import open_executor


class Asking:
    """Workers that look up a module's answer, or the number of their process."""

    def __init__(self, module: str | None):
        self.module = module

    def __call__(self) -> Callable[[int], Iterator[int]]:
        return self.work

    def work(self, task: int) -> Iterator[int]:
        if task == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        yield importlib.import_module(self.module).ANSWER if self.module else os.getpid()


def main(on: str, module: str | None = None) -> None:
    modules = [module, "numpy", "connector"] if module else []
    try:
        with open_executor(on, modules=modules) as executor:
            assert executor is not None
            for outcome in executor.map(Asking(module), range(4 if module else 1_000_000)):
                print(outcome.task, outcome.failure.kind if outcome.failure else next(iter(outcome.parts)), flush=True)  # noqa: T201
    except ModalignError as error:
        print(error.code, error)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
