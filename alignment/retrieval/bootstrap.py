"""Bootstrap intervals over groups."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignment.retrieval.ranks import IntArray, Ranks

Floats = npt.NDArray[np.float64]
DRAWS_AT_ONCE = 1 << 12  # groups that one call of numpy draws: the call itself costs as much as hundreds


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(
    values: npt.NDArray[np.floating], groups: IntArray, *, seed: int = 0, replicates: int = 1000
) -> Estimate:
    """Estimate the mean of `values` (n,) with a 95% percentile interval, by resampling whole groups.

    Queries of one group (five captions of one image) are not independent, so groups are drawn, not queries.
    """
    (estimate,) = bootstrap_means(values[:, None], groups, seed=seed, replicates=replicates)
    return estimate


def bootstrap_means(
    values: npt.NDArray[np.floating], groups: IntArray, *, seed: int = 0, replicates: int = 1000
) -> list[Estimate]:
    """Estimate the means of the columns of `values` (n, m) as `bootstrap_mean` does, all from the same draws."""
    means = _replicated_means(values, groups, np.random.default_rng(seed), replicates)
    lows, highs = np.percentile(means, [2.5, 97.5], axis=0)
    averages = [column.mean() for column in np.ascontiguousarray(values.T)]  # the same digits as of one alone
    return [
        Estimate(float(value), float(low), float(high)) for value, low, high in zip(averages, lows, highs, strict=True)
    ]


def bootstrap_of_two(
    combine: Callable[[Floats, Floats], Floats],
    one: tuple[Floats, IntArray],
    other: tuple[Floats, IntArray],
    *,
    seed: int = 0,
    replicates: int = 1000,
) -> Estimate:
    """Estimate what `combine` makes of two means over different queries, such as their harmonic mean.

    Args:
        combine: of means (r,) and (r,) to (r,).
        one, other: values (n,) with the groups of their queries (n,). Groups of either are drawn by themselves.
        seed: of the bootstrap.
        replicates: how many times groups are drawn.
    """
    rng = np.random.default_rng(seed)
    means = [_replicated_means(values[:, None], groups, rng, replicates)[:, 0] for values, groups in (one, other)]
    low, high = np.percentile(combine(*means), [2.5, 97.5])
    value = combine(*(np.array([values.mean()]) for values, _ in (one, other)))[0]
    return Estimate(float(value), float(low), float(high))


def _replicated_means(
    values: npt.NDArray[np.floating], groups: IntArray, rng: np.random.Generator, replicates: int
) -> Floats:
    """Return the means of the columns of `values` (n, m) over groups drawn so many times (replicates, m)."""
    _, codes = np.unique(groups, return_inverse=True)
    sizes = np.bincount(codes).astype(np.float64)  # (g,)
    sums = np.stack([np.bincount(codes, weights=column) for column in values.T], axis=1)  # (g, m)
    means = []
    for drawn in _times_drawn(len(sizes), rng, replicates):
        times = drawn.astype(np.float64)
        # Each replicate by itself: its digits are the same whatever is drawn beside it.
        means.append(np.matmul(times[:, None], sums)[:, 0] / (times @ sizes)[:, None])
    return np.concatenate(means)


def _times_drawn(groups: int, rng: np.random.Generator, replicates: int) -> Iterator[IntArray]:
    """Yield how many times each of so many groups is drawn (r, g), for some replicates at a time."""
    at_once = max(1, DRAWS_AT_ONCE // groups)
    for start in range(0, replicates, at_once):
        rows = min(at_once, replicates - start)
        drawn = rng.integers(groups, size=(rows, groups))
        drawn += groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)


def bootstrap_median(values: Ranks, groups: IntArray, *, seed: int = 0, replicates: int = 1000) -> Estimate:
    """Estimate the median of `values` (n,), infinity included, with a 95% interval from resampled whole groups.

    Of an even number of values it is the lower middle one, so that it needs no mean with infinity.
    """
    order = np.argsort(values, kind="stable")
    _, codes = np.unique(groups, return_inverse=True)
    ascending, number = values[order], int(codes.max()) + 1
    rng = np.random.default_rng(seed)
    codes, medians = codes[order], []
    for drawn in _times_drawn(number, rng, replicates):
        for times in drawn:
            reached = np.cumsum(times[codes])  # (n,)
            medians.append(ascending[np.searchsorted(reached, reached[-1] / 2)])
    low, high = np.quantile(medians, [0.025, 0.975], method="inverted_cdf")
    return Estimate(float(ascending[(len(values) - 1) // 2]), float(low), float(high))
