"""Stages that run ahead: in order, bounded, and stopped together, whatever ends them."""

import sys
import threading
import time
from collections.abc import Generator, Iterator

import pytest

from connector.encoding.pipeline import Pipeline


def counting(to: int, made: list[int]) -> Generator[int, None, None]:
    for number in range(to):
        made.append(number)
        yield number


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count(), sys.getswitchinterval()
    yield
    assert (threading.active_count(), sys.getswitchinterval()) == before


def test_values_come_in_their_order() -> None:
    with Pipeline() as pipeline:
        doubled = (2 * value for value in pipeline.ahead(counting(100, []), 3))
        assert list(pipeline.ahead(doubled, 2)) == list(range(0, 200, 2))


def test_a_stage_runs_ahead_and_no_further_than_told() -> None:
    made: list[int] = []
    with Pipeline() as pipeline:
        values = pipeline.ahead(counting(100, made), 4)
        deadline = time.monotonic() + 10
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert made == [0, 1, 2, 3, 4]  # four are handed over, one waits for its place
        assert next(values) == 0


def test_what_a_stage_raises_is_raised_as_itself_after_the_values_before_it() -> None:
    error = KeyError("the very same")

    def failing() -> Generator[int, None, None]:
        yield 1
        raise error

    taken = []

    def take() -> None:
        with Pipeline() as pipeline:
            inner = pipeline.ahead(failing(), 2)
            for value in pipeline.ahead((value for value in inner), 2):
                taken.append(value)  # noqa: PERF402  what came before the error

    with pytest.raises(KeyError) as raised:
        take()
    assert raised.value is error
    assert taken == [1]


def test_whoever_reads_and_fails_stops_every_stage() -> None:
    made: list[int] = []
    closed: list[str] = []

    def forwarding(values: Iterator[int]) -> Generator[int, None, None]:
        try:
            yield from values
        finally:
            closed.append("forwarding")

    def take() -> None:
        with Pipeline() as pipeline:
            for value in pipeline.ahead(forwarding(pipeline.ahead(counting(1_000_000, made), 2)), 2):
                if value == 3:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take()
    assert closed == ["forwarding"]
    assert len(made) < 20


def test_a_stage_that_is_stopped_does_not_take_it_for_the_end_of_its_source() -> None:
    finished: list[bool] = []

    def counting_all(values: Iterator[int]) -> Generator[int, None, None]:
        yield sum(1 for _ in values)
        finished.append(True)

    def endless() -> Generator[int, None, None]:
        while True:
            yield 0

    with Pipeline() as pipeline:
        pipeline.ahead(counting_all(pipeline.ahead(endless(), 1)), 1)
        time.sleep(0.01)
    assert not finished
