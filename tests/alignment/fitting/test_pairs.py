"""Pairs: what closed forms see, some rows at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.fitting import pairs as module
from alignment.fitting.pairs import Pairs
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.vectors import l2_normalize

CPU = torch.device("cpu")


@pytest.mark.parametrize("cached", [1, 3, 100])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_blocks_are_the_whole(
    block: int, cached: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    monkeypatch.setattr(module, "CACHED_ROWS", cached)
    image = ModalityEmbeddings(rng.standard_normal((9, 4)).astype(np.float32), np.arange(9) // 2)
    text = ModalityEmbeddings(rng.standard_normal((5, 3)).astype(np.float32), np.arange(5))
    data = GroupedEmbeddings(image, text)
    made = Pairs.of(data, CPU)
    X, Y = (l2_normalize(side).astype(np.float64) for side in data.pairs())
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    blocks = [(X.clone(), Y.clone()) for X, Y in made.blocks()]
    found = [torch.cat(sides).numpy() for sides in zip(*blocks, strict=True)]
    for side, expected in zip(found, (X, Y), strict=True):
        np.testing.assert_allclose(side, expected, atol=1e-7)
    for product, expected in zip(made.products, (X.T @ X, Y.T @ Y, X.T @ Y), strict=True):
        np.testing.assert_allclose(product.numpy(), expected, atol=1e-6)
    assert (len(made), made.dims) == (9, (4, 3))
    np.testing.assert_allclose(made.spread(4)[0].numpy(), X[::3], atol=1e-7)
    assert [len(side) for side in made.spread(100)] == [9, 9]


def test_pairs_that_are_not_centred_are_unit_vectors_in_whatever_order_they_are_read(rng: np.random.Generator) -> None:
    X, Y = (rng.standard_normal((9, d)).astype(np.float32) for d in (4, 3))
    X[3] = 0
    rows = rng.permutation(9)
    made = Pairs(X, Y, (rows, rows), CPU, centred=False)
    expected = np.where(np.arange(9)[:, None] == 3, 0, l2_normalize(np.where(X == 0, 1, X)))[rows]
    np.testing.assert_allclose(made.spread(4)[0].numpy(), expected[::3], atol=1e-7)
    for _ in range(2):
        ((found, _other),) = made.blocks()
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)
    assert made.means is None


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_a_pair_is_of_one_group_and_every_item_takes_part(seed: int, groups: int, images: int, texts: int) -> None:
    rng = np.random.default_rng(seed)
    sides = [
        ModalityEmbeddings(
            np.zeros((0, 1), np.float32),
            rng.permutation(np.repeat(np.arange(groups), rng.integers(1, most + 1, groups))),
        )
        for most in (images, texts)
    ]
    data = GroupedEmbeddings(sides[0], sides[1])
    x, y = data.pair_rows()
    np.testing.assert_array_equal(data.image.groups[x], data.text.groups[y])
    for rows, side in ((x, data.image), (y, data.text)):
        assert set(rows.tolist()) == set(range(len(side.groups)))
    counts = [np.bincount(side.groups) for side in sides]
    assert len(x) == np.maximum(*counts).sum()
