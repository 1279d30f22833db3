"""Rank correlation: the chance of it is what it says."""

import numpy as np

from alignment.comparison.rank_correlation import spearman


def test_a_rank_correlation_by_chance_is_not_rare(rng: np.random.Generator) -> None:
    chances = [spearman(rng.standard_normal(8), rng.standard_normal(8), seed=seed)[1] for seed in range(200)]
    assert 0.01 <= np.mean(np.array(chances) < 0.05) <= 0.11
