from collections.abc import Callable, Iterator

import pytest

from connector.executors.local import LocalExecutor


class Counting:
    """A factory of workers that count to their task, and note what they do."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def __call__(self) -> Callable[[int], Iterator[int]]:
        self.log.append("loaded")
        return self.count

    def count(self, task: int) -> Iterator[int]:
        for number in range(task):
            self.log.append(f"{number} of {task}")
            yield number


def test_results_are_made_while_they_are_read_by_one_worker() -> None:
    factory = Counting()
    outcomes = LocalExecutor().map(factory, iter([1, 2]))
    assert factory.log == []
    first = next(outcomes)
    assert factory.log == ["loaded"]
    assert list(first.parts) == [0]
    second = next(outcomes)
    parts = iter(second.parts)
    assert next(parts) == 0
    assert factory.log == ["loaded", "0 of 1", "0 of 2"]
    assert list(parts) == [1]
    assert [(o.position, o.task, o.failure) for o in (first, second)] == [(0, 1, None), (1, 2, None)]
    assert list(outcomes) == []


def test_tasks_are_not_read_ahead_of_their_outcomes() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for task in range(3):
            taken.append(task)
            yield task

    outcomes = LocalExecutor().map(Counting(), tasks())
    next(outcomes)
    assert taken == [0]


def test_an_error_of_a_worker_is_raised_unchanged_where_its_parts_are_read() -> None:
    def broken(task: int) -> Iterator[int]:
        yield task
        raise OSError("disk")

    outcome = next(LocalExecutor().map(lambda: broken, [7]))
    parts = iter(outcome.parts)
    assert next(parts) == 7
    with pytest.raises(OSError, match="disk"):
        next(parts)
