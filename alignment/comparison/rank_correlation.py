"""Rank correlation of a few values, with the chance of it."""

import numpy as np

from alignment.comparison.paired_bootstrap import Floats

PERMUTATIONS = 9_999


def spearman(x: Floats, y: Floats, *, seed: int) -> tuple[float, float]:
    """Rank correlation of x and y (n,), and how often a random order gives one as far from zero.

    >>> spearman(np.arange(6.0), -np.arange(6.0) ** 3, seed=0)[0]
    -1.0
    """
    # Here, because it takes half a second to import.
    from scipy.stats import permutation_test, rankdata, spearmanr

    a, b = (rankdata(side) - (len(side) + 1) / 2 for side in (x, y))  # centred ranks
    test = permutation_test(
        (a,),
        lambda order, axis: np.abs((order * b).sum(axis=axis)),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(spearmanr(x, y).statistic), float(test.pvalue)
