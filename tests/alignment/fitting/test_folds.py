"""Folds: what is fitted without a part adds up the moments of the others."""

import numpy as np
import pytest
import torch

from alignment.fitting import folds as module
from alignment.fitting.folds import Folds
from alignment.fitting.pairs import Pairs, cell_moments
from tests.support.pairs import paired

CPU = torch.device("cpu")


@pytest.mark.parametrize(("groups", "count"), [(12, 4), (13, 4), (15, 4), (7, 3), (4, 2)])
def test_what_is_left_without_a_part_is_what_its_own_pairs_give(
    groups: int, count: int, rng: np.random.Generator
) -> None:
    codes = rng.permutation(np.repeat(np.arange(groups) * 3, 2))
    data = paired(rng.standard_normal((2 * groups, 5)), rng.standard_normal((2 * groups, 4)), codes)
    made = Folds(data, count, 0, CPU)
    assert sorted(np.concatenate(made.parts)) == sorted(set(codes))
    for part in (*made.parts, made.left_out):
        found, expected = made.without(part), Pairs(data.only(np.setdiff1d(data.groups, part)), CPU)
        assert len(found) == len(expected) == 2 * (groups - len(part))
        for own, wanted in zip((*found.products, *found.means), (*expected.products, *expected.means), strict=True):
            np.testing.assert_allclose(own.numpy(), wanted.numpy(), atol=1e-12)
        for own, wanted in zip(found.drawn(100), expected.drawn(100), strict=True):
            np.testing.assert_allclose(own.numpy(), wanted.numpy(), atol=1e-12)
    for own, wanted in zip(made.pairs().products, Pairs(data, CPU).products, strict=True):
        np.testing.assert_allclose(own.numpy(), wanted.numpy(), atol=1e-12)


def test_one_pass_over_the_pairs_serves_every_fold(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[bool] = []

    def counted(*arguments: object, products: bool) -> object:
        passes.append(products)
        return cell_moments(*arguments, products=products)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "cell_moments", counted)
    made = Folds(paired(rng.standard_normal((20, 5)), rng.standard_normal((20, 4))), 4, 0, CPU)
    for part in made.parts:
        assert made.without(part).products
        assert made.without(part).means
    assert made.pairs().products
    assert passes == [True]
