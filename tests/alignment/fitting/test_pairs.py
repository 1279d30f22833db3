"""Pairs: what closed forms see, some rows at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.fitting import pairs as module
from alignment.fitting.pairs import Pairs
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings, drawn
from alignment.vectors import l2_normalize
from tests.support.pairs import paired

CPU = torch.device("cpu")


@pytest.mark.parametrize("cached", [1, 3, 100])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_products_are_those_of_all_pairs_less_their_means(
    block: int, cached: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    monkeypatch.setattr(module, "CACHED_ROWS", cached)
    image = ModalityEmbeddings(rng.standard_normal((9, 4)).astype(np.float32), np.arange(9) // 2)
    text = ModalityEmbeddings(rng.standard_normal((5, 3)).astype(np.float32), np.arange(5))
    data = GroupedEmbeddings(image, text)
    made = Pairs(data, CPU)
    X, Y = (l2_normalize(side).astype(np.float64) for side in data.pairs())
    for mean, side in zip(made.means, (X, Y), strict=True):
        np.testing.assert_allclose(mean.numpy(), side.mean(axis=0), atol=1e-7)
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    for product, expected in zip(made.products, (X.T @ X, Y.T @ Y, X.T @ Y), strict=True):
        np.testing.assert_allclose(product.numpy(), expected, atol=1e-6)
    assert (len(made), made.dims) == (9, (4, 3))
    for found, expected in zip(made.drawn(100), (X, Y), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)


def test_a_vector_of_zeros_stays_one(rng: np.random.Generator) -> None:
    X, Y = (rng.standard_normal((9, d)).astype(np.float32) for d in (4, 3))
    X[3] = 0
    made = Pairs(paired(X, Y), CPU)
    np.testing.assert_allclose(made.drawn(9)[0].numpy()[3], -made.means[0].numpy())


def test_the_pairs_that_are_drawn_do_not_depend_on_the_order_of_the_rows(rng: np.random.Generator) -> None:
    X, Y = (rng.standard_normal((90, d)).astype(np.float32) for d in (4, 3))
    order = rng.permutation(90)
    one, other = Pairs(paired(X, Y), CPU), Pairs(paired(X[order], Y[order], order), CPU)
    for found, expected in zip(one.drawn(40), other.drawn(40), strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-12)
        assert len(found) == 40


@pytest.mark.slow
@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 30), st.integers(1, 50))
def test_what_is_drawn_of_a_part_is_drawn_of_the_whole_or_comes_after_it(
    seed: int, items: int, groups: int, most: int
) -> None:
    """So that folds, which overlap, draw few pairs together."""
    rng = np.random.default_rng(seed)
    codes = np.sort(rng.integers(0, groups, items))
    kept = np.flatnonzero(np.isin(codes, rng.permutation(groups)[: 1 + groups // 2]))
    of_whole, of_part = drawn(codes, most), kept[drawn(codes[kept], most)]
    assert len(of_whole) == min(most, items)
    assert len(np.unique(of_part)) == len(of_part) == min(most, len(kept))
    assert set(of_whole[np.isin(of_whole, kept)]) <= set(of_part)


def test_what_is_drawn_is_spread_over_the_groups_and_within_them() -> None:
    few, many = np.repeat(np.arange(4), 1000), np.arange(4000)
    for codes in (few, many):
        chosen = drawn(codes, 400)
        assert np.abs(np.histogram(chosen, 4, (0, 4000))[0] - 100).max() < 40


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


@settings(max_examples=50)
@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)), st.lists(st.integers(0, 12)))
def test_items_are_kept_and_left_out_by_their_groups(images: list[int], texts: list[int], chosen: list[int]) -> None:
    sides = [
        ModalityEmbeddings(np.arange(len(codes), dtype=np.float32)[:, None], np.array(codes, np.int64))
        for codes in (images, texts)
    ]
    data, groups = GroupedEmbeddings(*sides), np.array(chosen, np.int64)
    both = sorted(set(images) & set(texts))
    assert data.groups.tolist() == both
    for found, kept in ((data.only(groups), set(chosen)), (data.without(groups), set(both) - set(chosen))):
        for side, codes in ((found.image, images), (found.text, texts)):
            rows = [row for row, code in enumerate(codes) if code in kept]
            assert side.groups.tolist() == [codes[row] for row in rows]
            assert side.vectors[:, 0].tolist() == rows


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 80))
def test_items_are_left_out_of_the_largest_groups(seed: int, sizes: list[int], most: int) -> None:
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    side = ModalityEmbeddings(np.arange(len(codes), dtype=np.float32)[:, None], codes)
    kept = GroupedEmbeddings(side, side).bounded(most).image
    assert len(kept.groups) == min(len(codes), max(most, len(sizes)))
    counts = np.bincount(kept.groups)
    assert (counts >= 1).all()
    assert all(own == size or own >= counts.max() - 1 for own, size in zip(counts, sizes, strict=True))
    np.testing.assert_array_equal(kept.vectors[:, 0], np.sort(kept.vectors[:, 0]))
