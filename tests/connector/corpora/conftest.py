"""Fixtures of the readers' tests."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def impatient() -> Iterator[None]:
    """Fail after ten seconds: opening a pipe waits for a writer, and there is none."""

    def waited(*_: object) -> None:
        pytest.fail("it waits")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
