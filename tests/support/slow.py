"""Which cases of a test every run takes, and which take so long that `make test-all` alone does."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def slow_unless(quick: Callable[[T], bool], cases: Iterable[T]) -> list[Any]:
    """The cases of a parametrized test in their order; those that are not `quick` are marked slow."""
    return [case if quick(case) else pytest.param(*_values(case), marks=pytest.mark.slow) for case in cases]


def _values(case: object) -> tuple[object, ...]:
    return case if isinstance(case, tuple) else (case,)
