"""Moments of pairs: they add up, however the pairs are cut."""

import operator
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.fitting.moments import Moments, Sums
from tests.support.pairs import Matrix


def moments_of(X: Matrix, Y: Matrix, *, shift: float = 0.0, products: bool = True) -> Moments:
    x, y = (torch.from_numpy(np.full(side.shape[1:], shift)) for side in (X, Y))
    sums = Sums((x, y), products=products)
    sums.add(torch.from_numpy(X - shift), torch.from_numpy(Y - shift))
    return sums.moments()


def expected(X: Matrix, Y: Matrix) -> tuple[list[Matrix], list[Matrix]]:
    means = [X.mean(axis=0), Y.mean(axis=0)]
    X, Y = X - means[0], Y - means[1]
    return means, [X.T @ X, Y.T @ Y, X.T @ Y]


def check(found: Moments, X: Matrix, Y: Matrix, *, rtol: float, atol: float = 0.0) -> None:
    means, products = expected(X, Y)
    assert found.pairs == len(X)
    for own, wanted in zip((*found.means, *found.products), (*means, *products), strict=True):
        np.testing.assert_allclose(own, wanted, rtol=0, atol=atol + rtol * np.abs(wanted).max())


@pytest.mark.slow
@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(any), st.floats(-1, 1))
def test_a_tree_of_parts_is_the_whole(seed: int, sizes: list[int], shift: float) -> None:
    rng = np.random.default_rng(seed)
    X, Y = (rng.standard_normal((sum(sizes), d)) for d in (4, 3))
    ends = np.cumsum([0, *sizes])
    parts = [moments_of(X[a:b], Y[a:b], shift=shift) for a, b in pairwise(ends)]
    tree, chain = (parts[0] + parts[3]) + (parts[2] + parts[1]), reduce(operator.add, parts)
    for found in (tree, chain, moments_of(X, Y, shift=shift)):
        check(found, X, Y, rtol=1e-10, atol=1e-12)


def test_vectors_that_nearly_point_the_same_way_keep_their_digits(rng: np.random.Generator) -> None:
    """Their spread is a millionth of their length: sums of squares alone would have 4 digits of it left."""
    X, Y = (1 + 1e-6 * rng.standard_normal((400, d)) for d in (4, 3))
    parts = [moments_of(X[part::4], Y[part::4], shift=1.0) for part in range(4)]
    check(reduce(operator.add, parts), X, Y, rtol=1e-9)


def test_means_alone_need_no_products(rng: np.random.Generator) -> None:
    X, Y = (rng.standard_normal((9, d)) for d in (4, 3))
    both = moments_of(X[:4], Y[:4], products=False) + moments_of(X[4:], Y[4:], products=False)
    assert both.products == ()
    for own, wanted in zip(both.means, expected(X, Y)[0], strict=True):
        np.testing.assert_allclose(own, wanted)
    with pytest.raises(ValueError, match="argument 2"):
        _ = both + moments_of(X, Y)
