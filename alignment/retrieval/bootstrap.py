"""Bootstrap intervals over groups."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignment.retrieval.ranks import IntArray, Ranks

Floats = npt.NDArray[np.float64]
DRAWS_AT_ONCE = 1 << 14  # that a call of numpy lays out: the call itself costs as much as hundreds


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
    _, codes = np.unique(groups, return_inverse=True)
    means = Mean(values, codes).replicated(np.random.default_rng(seed), replicates)
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
    means = [
        Mean(values[:, None], np.unique(groups, return_inverse=True)[1]).replicated(rng, replicates)[:, 0]
        for values, groups in (one, other)
    ]
    low, high = np.percentile(combine(*means), [2.5, 97.5])
    value = combine(*(np.array([values.mean()]) for values, _ in (one, other)))[0]
    return Estimate(float(value), float(low), float(high))


def bootstrap_median(values: Ranks, groups: IntArray, *, seed: int = 0, replicates: int = 1000) -> Estimate:
    """Estimate the median of `values` (n,), infinity included, with a 95% interval from resampled whole groups.

    Of an even number of values it is the lower middle one, so that it needs no mean with infinity.
    """
    _, codes = np.unique(groups, return_inverse=True)
    medians = LowerMedian(values, codes).replicated(np.random.default_rng(seed), replicates)
    low, high = np.quantile(medians, [0.025, 0.975], method="inverted_cdf")
    return Estimate(float(np.sort(values)[(len(values) - 1) // 2]), float(low), float(high))


class Mean:
    """The means of the columns of values (n, m), where groups are drawn several times or not at all."""

    def __init__(self, values: npt.NDArray[np.floating], codes: IntArray):
        """Add up the values of each group; `codes` (n,) numbers the groups of the values from 0."""
        self._sizes = np.bincount(codes).astype(np.float64)  # (g,)
        self._sums = np.stack([np.bincount(codes, weights=column) for column in values.T], axis=1)  # (g, m)

    def weighted(self, times: IntArray) -> Floats:
        """Return the means (r, m) over groups that are drawn so many times (r, g)."""
        weights = times.astype(np.float64)
        # Each replicate by itself: its digits are the same whatever is drawn beside it.
        means: Floats = np.matmul(weights[:, None], self._sums)[:, 0] / (weights @ self._sizes)[:, None]
        return means

    def replicated(self, rng: np.random.Generator, replicates: int) -> Floats:
        """Return the means over groups drawn so many times (replicates, m)."""
        drawn = times_drawn(len(self._sizes), rng, replicates)
        return np.concatenate([self.weighted(times) for times in drawn])


class LowerMedian:
    """The lower median of values (n,), infinity included, where groups are drawn several times or not at all."""

    def __init__(self, values: Ranks, codes: IntArray):
        """Order the values; `codes` (n,) numbers their groups from 0."""
        order = np.argsort(values, kind="stable")
        self._ascending, self._codes = values[order], codes[order]

    def weighted(self, times: IntArray) -> Floats:
        """Return the medians (r,) over groups that are drawn so many times (r, g)."""
        reached = np.take(times, self._codes, axis=1).cumsum(axis=1)  # (r, n)
        return self._ascending[[np.searchsorted(row, row[-1] / 2) for row in reached]]

    def replicated(self, rng: np.random.Generator, replicates: int) -> Floats:
        """Return the medians over groups drawn so many times (replicates,)."""
        drawn = times_drawn(int(self._codes.max()) + 1, rng, replicates, values=len(self._codes))
        return np.concatenate([self.weighted(times) for times in drawn])


def times_drawn(groups: int, rng: np.random.Generator, replicates: int, *, values: int = 0) -> Iterator[IntArray]:
    """Yield how many times each of so many groups is drawn (r, g), for some replicates at a time.

    Args:
        groups: how many there are, of which every replicate draws as many.
        rng: draws them; the same groups however many replicates come at a time.
        replicates: how many times groups are drawn.
        values: how many values the caller lays out for each replicate, if more than groups.
    """
    at_once = max(1, DRAWS_AT_ONCE // max(groups, values))
    for start in range(0, replicates, at_once):
        rows = min(at_once, replicates - start)
        drawn = rng.integers(groups, size=(rows, groups))
        drawn += groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)
