"""Each choice: of a test over several parameters, the cases that together show every value once.

The criterion has that name in the theory of tests (Ammann and Offutt, *Introduction to Software Testing*). A test of
every combination of 17 metrics, two stores and two offsets has 68 cases, of which 17 show every value.
"""

from collections.abc import Hashable, Mapping, Sequence

import pytest


def values_of(test: pytest.Function) -> dict[Hashable, str]:
    """Return the value that a case of a test has of each parameter; what one `parametrize` gives together is one."""
    left, values = dict(test.callspec.params), dict[Hashable, str]()
    for mark in test.iter_markers("parametrize"):
        names = mark.args[0]
        together = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
        values[tuple(together)] = repr([left.pop(name, None) for name in together])
    return values | {name: repr(value) for name, value in left.items()}


def repeats(cases: Sequence[Mapping[Hashable, str]]) -> list[int]:
    """Return the positions of the cases that show no value for the first time.

    Args:
        cases: of each case, the value of every parameter.

    >>> repeats([{"metric": metric, "store": store} for metric in ("dot", "js", "w1") for store in ("edge", "memory")])
    [1, 2, 5]
    """
    unseen = {value for case in cases for value in case.items()}
    left = dict(enumerate(cases))
    while unseen:
        shows_most = max(left, key=lambda position: len(unseen & left[position].items()))
        unseen -= left.pop(shows_most).items()
    return list(left)
