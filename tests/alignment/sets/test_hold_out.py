"""Which groups are held out."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.sets.hold_out import HoldOut
from tests.support.sets import TEXTS


@given(st.lists(TEXTS, max_size=30), st.floats(0, 1), st.integers(0, 5))
def test_a_group_stays_on_its_side_whatever_else_there_is(groups: list[str], fraction: float, seed: int) -> None:
    hold_out = HoldOut(fraction, seed)
    alone = [bool(hold_out.held_out([group])[0]) for group in groups]
    assert hold_out.held_out(groups).tolist() == alone


def test_the_side_of_a_group_is_its_hash() -> None:
    """Written out, because a change here would move groups of existing alignments to the other side."""
    groups = [f"group {i}" for i in range(100)]
    draws = [int(hashlib.sha256(b"3\x00" + group.encode()).hexdigest()[:16], 16) / float(1 << 64) for group in groups]
    assert HoldOut(0.3, 3).held_out(groups).tolist() == [draw < 0.3 for draw in draws]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.9, 1.0])
def test_the_fraction_is_held_out(fraction: float) -> None:
    share = HoldOut(fraction).held_out([str(i) for i in range(4000)]).mean()
    assert share == pytest.approx(fraction, abs=4 * (0.25 / 4000) ** 0.5)
    if fraction in (0.0, 1.0):
        assert share == fraction


def test_a_larger_fraction_holds_out_more_of_the_same() -> None:
    groups = [str(i) for i in range(200)]
    small, large = HoldOut(0.2).held_out(groups), HoldOut(0.6).held_out(groups)
    assert (large | ~small).all()


def test_another_seed_is_another_split() -> None:
    groups = [str(i) for i in range(200)]
    assert HoldOut(0.5, 0).held_out(groups).tolist() != HoldOut(0.5, 1).held_out(groups).tolist()
