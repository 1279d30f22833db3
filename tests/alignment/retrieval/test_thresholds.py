"""Thresholds hold as people compute them, in decimal numbers."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.retrieval.thresholds import TOLERANCE, holds

DECIMALS = st.decimals(-1, 1, places=6)


@given(DECIMALS, DECIMALS, DECIMALS, st.sampled_from([">=", "<=", ">", "<"]))
def test_a_difference_compares_as_its_decimals_do(a: Decimal, b: Decimal, bound: Decimal, comparison: str) -> None:
    exact = {">=": a - b >= bound, "<=": a - b <= bound, ">": a - b > bound, "<": a - b < bound}
    assert holds(float(a) - float(b), comparison, float(bound)) == exact[comparison]


@pytest.mark.parametrize("n", range(1, 60))
def test_a_mean_of_tenths_reaches_that_tenth(n: int) -> None:
    assert holds(sum([0.1] * n) / n, ">=", 0.1)
    assert not holds(sum([0.1] * n) / n, "<", 0.1)


def test_the_tolerance_is_far_below_the_resolution_of_a_measure() -> None:
    queries = 1_000_000
    assert 1 / queries > 100 * TOLERANCE
    assert not holds(0.5 - 1 / queries, ">=", 0.5)
    assert holds(1e6 + 1e-4, "<=", 1e6)
    assert not holds(1e6 + 1, "<=", 1e6)
