"""Paraphrases: how near to their item they are, and that they are asked alike each time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignment.retrieval.paraphrases import SAME, paraphrased


@given(n=st.integers(0, 5), d=st.integers(2, 64), seed=st.integers(0, 9), size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_paraphrase_is_a_unit_vector_at_a_fixed_cosine_with_its_item(n: int, d: int, seed: int, size: float) -> None:
    X = (size * np.random.default_rng(seed).standard_normal((n, d))).astype(np.float32)
    made = paraphrased(X, seed=seed)
    assert made.shape == X.shape
    assert made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    cosines = np.einsum("nd,nd->n", made, X / np.linalg.norm(X, axis=1, keepdims=True))
    np.testing.assert_allclose(cosines, SAME, atol=1e-4)


def test_paraphrases_follow_from_the_items_and_the_seed_whatever_their_order() -> None:
    X = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    made, order = paraphrased(X, seed=1), [4, 2, 0, 1, 5, 3]
    np.testing.assert_allclose(paraphrased(X[order], seed=1), made[order], atol=1e-5)
    assert not np.allclose(paraphrased(X, seed=2), made)


def test_coordinates_that_no_embedding_uses_change_nothing_but_rounding() -> None:
    X = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    wide = np.concatenate([X, np.zeros((40, 300), np.float32)], axis=1)
    moved = paraphrased(wide)
    np.testing.assert_allclose(moved[:, 8:], 0, atol=1e-4)


def test_one_item_alone_is_moved_too() -> None:
    moved = paraphrased(np.array([[1.0, 2.0, 3.0]], np.float32))
    assert np.isfinite(moved).all()
