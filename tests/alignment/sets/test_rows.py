"""Rows in memory."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignment.sets.rows import Rows
from tests.support.sets import assert_same, rows, some


def test_rows_are_taken_by_number_in_the_order_asked_for() -> None:
    taken = some("image", 5).take([3, 0, 3])
    assert taken.keys == ["3", "0", "3"]
    np.testing.assert_array_equal(taken.vectors, some("image", 5).vectors[[3, 0, 3]])
    assert len(some("image", 5).take([])) == 0


@given(rows(), st.data())
def test_splitting_and_concatenating_gives_the_rows_back(whole: Rows, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(whole)))
    assert_same(Rows.concatenate([whole.take(range(cut)), whole.take(range(cut, len(whole)))]), whole)


def test_a_digest_tells_rows_apart() -> None:
    base = some("image", 3)
    changes = [
        base,
        replace(base, modality="text"),
        replace(base, keys=["x", *base.keys[1:]]),
        replace(base, groups=["x", *base.groups[1:]]),
        replace(base, content_sha256=["x", *base.content_sha256[1:]]),
        replace(base, payloads=["{}", *base.payloads[1:]]),
        replace(base, vectors=base.vectors + np.float32(1e-3)),
        base.take([0, 2, 1]),
    ]
    assert len({change.digest() for change in changes}) == len(changes)
    assert base.digest() == some("image", 3).digest()
