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


def test_a_paraphrase_follows_from_its_item_and_the_seed_whatever_is_asked_beside_it() -> None:
    X = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    together = paraphrased(X, seed=1)
    np.testing.assert_array_equal(paraphrased(X[[4, 2]], seed=1), together[[4, 2]])
    assert not np.allclose(paraphrased(X, seed=2), together)
