"""Bootstrap intervals over groups."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from alignment.retrieval.ranks import IntArray, Ranks

Floats = npt.NDArray[np.float64]
VALUES_AT_ONCE = 1 << 14  # that a call of numpy lays out: the call itself costs as much as hundreds


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
    median = LowerMedian(values[:, None], codes)
    medians = median.replicated(np.random.default_rng(seed), replicates)
    low, high = np.quantile(medians, [0.025, 0.975], method="inverted_cdf")
    return Estimate(float(median.whole()[0]), float(low), float(high))


class Statistic(ABC):
    """A statistic of each column of values (n, m), whose groups may be drawn several times or not at all.

    Attributes:
        groups: how many groups there are, g.
        values: how many values are laid out for each replicate.
    """

    groups: int
    values: int

    @abstractmethod
    def weighted(self, times: IntArray) -> Floats:
        """Return the statistic (r, m) of groups that are drawn so many times (r, g)."""

    def whole(self) -> Floats:
        """Return the statistic (m,) of every group once."""
        (whole,) = self.weighted(np.ones((1, self.groups), np.int64))
        return np.asarray(whole, np.float64)

    def replicated(self, rng: np.random.Generator, replicates: int) -> Floats:
        """Return the statistic (replicates, m) of groups that `rng` draws so many times."""
        drawn = times_drawn(self.groups, rng, replicates, values=self.values)
        return np.concatenate([self.weighted(times) for times in drawn])


class Mean(Statistic):
    """The means of the columns of values (n, m); `codes` (n,) numbers the groups of the values from 0."""

    def __init__(self, values: npt.NDArray[np.floating], codes: IntArray):
        self._sizes = np.bincount(codes).astype(np.float64)  # (g,)
        self._sums = np.stack([np.bincount(codes, weights=column) for column in values.T], axis=1)  # (g, m)
        self.groups = self.values = len(self._sizes)

    @override
    def weighted(self, times: IntArray) -> Floats:
        weights = times.astype(np.float64)
        # Each replicate by itself: its digits are the same whatever is drawn beside it.
        means: Floats = np.matmul(weights[:, None], self._sums)[:, 0] / (weights @ self._sizes)[:, None]
        return means


class LowerMedian(Statistic):
    """The lower medians of the columns of values (n, m), infinity included; `codes` (n,) numbers their groups."""

    def __init__(self, values: Ranks, codes: IntArray):
        orders = [np.argsort(column, kind="stable") for column in values.T]
        self._columns = [(column[order], codes[order]) for column, order in zip(values.T, orders, strict=True)]
        self.groups, self.values = int(codes.max()) + 1, len(codes)

    @override
    def weighted(self, times: IntArray) -> Floats:
        medians = []
        for ascending, codes in self._columns:
            reached = np.take(times, codes, axis=1).cumsum(axis=1)  # (r, n)
            medians.append(ascending[[np.searchsorted(row, row[-1] / 2) for row in reached]])
        return np.stack(medians, axis=1)


def times_drawn(groups: int, rng: np.random.Generator, replicates: int, *, values: int = 0) -> Iterator[IntArray]:
    """Yield how many times each of so many groups is drawn (r, g), for some replicates at a time.

    Args:
        groups: how many there are, of which every replicate draws as many.
        rng: draws them; the same groups however many replicates come at a time.
        replicates: how many times groups are drawn.
        values: how many values the caller lays out for each replicate, if more than groups.
    """
    at_once = max(1, VALUES_AT_ONCE // max(groups, values))
    for start in range(0, replicates, at_once):
        rows = min(at_once, replicates - start)
        drawn = rng.integers(groups, size=(rows, groups))
        drawn += groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)
