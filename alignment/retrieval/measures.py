"""Measures of retrieval as values: what they make of the ranks of one query, and of all queries together.

    recall@K      1 if any relevant item is among the first K, of every query             mean over queries
    found@K       relevant items among the first K / relevant items                        mean
    ndcg@K        sum of 1 / log2(1 + rank) over relevant ranks up to K / its largest value   mean
    r_precision   relevant items among the first R / R, of a query with R relevant items   mean
    mrr           1 / rank of the best relevant item                                       mean
    median_rank   rank of the best relevant item                                           lower median

`recall@K` is what papers on image and text retrieval print (Success@K elsewhere), `found@K` what recall means in
information retrieval. All queries are in the denominator: one without any relevant item adds 0 to a mean and infinity
to the median, and is counted in `Measured.without_relevant`.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignment.errors import MeasureError
from alignment.retrieval.bootstrap import Estimate, bootstrap_mean, bootstrap_median
from alignment.retrieval.ranks import IntArray, Ranks, RelevantRanks

Floats = npt.NDArray[np.float64]

AT_K = ("recall", "found", "ndcg")
WHOLE = ("r_precision", "mrr", "median_rank")
NAME = re.compile(r"([a-z_]+)(?:@([1-9]\d{0,8}))?")


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure that prints as text and parses back.

    >>> str(Measure.parse("ndcg@10")), Measure.parse("mrr") == Measure("mrr")
    ('ndcg@10', True)
    """

    name: str
    k: int | None = None

    def __post_init__(self) -> None:
        if self.name not in (AT_K if self.k is not None else WHOLE) or (self.k is not None and self.k < 1):
            raise MeasureError(self._refusal(str(self)))

    def __str__(self) -> str:
        return self.name if self.k is None else f"{self.name}@{self.k}"

    @classmethod
    def parse(cls, text: str) -> "Measure":
        """Return the measure that prints as `text`.

        Raises:
            MeasureError: there is no such measure.
        """
        match = NAME.fullmatch(text)
        if match is None:
            raise MeasureError(cls._refusal(text))
        return cls(match[1], int(match[2]) if match[2] else None)

    @staticmethod
    def _refusal(text: str) -> str:
        known = ", ".join([*(f"{name}@K" for name in AT_K), *WHOLE])
        return f"unknown measure {text!r}; expected one of {known}, with a K of at least 1"

    def per_query(self, found: RelevantRanks) -> Floats:
        """Measure every query (n,): in [0, 1] where higher is better, or a rank for `median_rank`."""
        if self.name == "median_rank":
            return found.best
        if self.name == "mrr":
            return 1.0 / found.best
        if self.name == "recall":
            return (found.best <= self._k).astype(np.float64)
        if self.name == "ndcg":
            return _ndcg(found, self._k)
        limit = found.counts[found.owners] if self.name == "r_precision" else self._k
        hits = np.bincount(found.owners, found.ranks <= limit, minlength=len(found.counts))
        share: Floats = hits / np.maximum(found.counts, 1)
        return share

    @property
    def _k(self) -> int:
        assert self.k is not None  # as the constructor has seen to
        return self.k

    def estimate(self, values: Floats, groups: IntArray, *, seed: int = 0) -> Estimate:
        """Sum up queries (n,) with a 95% interval from resampled groups (n,)."""
        summed = bootstrap_median if self.name == "median_rank" else bootstrap_mean
        return summed(values, groups, seed=seed)


def _ndcg(found: RelevantRanks, k: int) -> Floats:
    """Järvelin and Kekäläinen (2002), of items that are relevant or not."""
    with np.errstate(divide="ignore"):
        gains = np.where(found.ranks <= k, 1 / np.log2(1 + found.ranks), 0.0)
    gained = np.bincount(found.owners, gains, minlength=len(found.counts))
    deepest = min(k, int(found.counts.max(initial=1)))
    largest = np.cumsum(1 / np.log2(1 + np.arange(1.0, deepest + 1)))  # (deepest,)
    normalised: Floats = gained / largest[np.clip(found.counts, 1, deepest) - 1]
    return normalised


@dataclass(frozen=True, slots=True)
class Measured:
    """A measure of some queries.

    Attributes:
        estimate: with its 95% interval, which says nothing where `groups` is 1.
        queries: how many there are; all of them are in the denominator.
        without_relevant: how many of those have no relevant item to find; they count as misses.
        groups: that the interval was resampled from.
    """

    measure: Measure
    estimate: Estimate
    queries: int
    without_relevant: int
    groups: int


def measured(measure: Measure, found: RelevantRanks, groups: IntArray, *, seed: int = 0) -> Measured:
    """Measure n queries, of the groups (n,).

    Raises:
        MeasureError: there are none.
    """
    if not len(found.counts):
        raise MeasureError(f"{measure} of no queries; expected at least one")
    return Measured(
        measure,
        measure.estimate(measure.per_query(found), groups, seed=seed),
        len(found.counts),
        int((found.counts == 0).sum()),
        len(np.unique(groups)),
    )


def by_stratum(
    measure: Measure, found: RelevantRanks, groups: IntArray, values: Sequence[Hashable], *, seed: int = 0
) -> dict[Hashable, Measured]:
    """Measure the queries of each payload value apart, those without a value under None; the most queries first.

    Args:
        measure: what.
        found: n queries.
        groups: of the queries (n,).
        values: of a payload field, one a query.
    """
    places: dict[Hashable, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    strata = {}
    for value, its in sorted(places.items(), key=lambda stratum: -len(stratum[1])):
        mask = np.zeros(len(found.counts), dtype=bool)
        mask[its] = True
        strata[value] = measured(measure, found.where(mask), groups[mask], seed=seed)
    return strata


@dataclass(frozen=True, slots=True)
class Change:
    """What a measure has become between two audits, over the queries of both.

    Attributes:
        before, after: the measure of each.
        difference: `after - before` with its 95% interval.
        queries: that both audits asked.
        only_before, only_after: queries of one audit alone, which take no part.
    """

    measure: Measure
    before: float
    after: float
    difference: Estimate
    queries: int
    only_before: int
    only_after: int

    @property
    def significant(self) -> bool:
        """Whether the interval of the difference leaves 0 out."""
        return not self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True, slots=True)
class PerQueryValues:
    """What one audit has of each query: its key, its group, and what a measure makes of it (n,)."""

    keys: Sequence[str]
    groups: Sequence[str]
    values: Floats


def change(
    measure: Measure, before: PerQueryValues, after: PerQueryValues, *, seed: int = 0, replicates: int = 1000
) -> Change:
    """Compare two audits by a paired bootstrap over the queries that both asked.

    Groups, those of `after`, are drawn, the same ones for both audits, so that what is hard for both blurs nothing.

    Raises:
        MeasureError: the audits share no query.
    """
    places = {key: place for place, key in enumerate(before.keys)}
    pairs = [(places[key], place) for place, key in enumerate(after.keys) if key in places]
    if not pairs:
        raise MeasureError(f"{measure}: the audits share no query; ask both with the same pairs")
    old, new = before.values[[a for a, _ in pairs]], after.values[[b for _, b in pairs]]  # (n,), (n,)
    codes = np.unique([after.groups[b] for _, b in pairs], return_inverse=True)[1]
    summed = _LowerMedian if measure.name == "median_rank" else _Mean
    of_old, of_new = summed(old, codes), summed(new, codes)
    rng, number = np.random.default_rng(seed), int(codes.max()) + 1
    differences = np.empty(replicates)
    for replicate in range(replicates):
        times = np.bincount(rng.integers(number, size=number), minlength=number)  # (g,)
        differences[replicate] = _minus(of_new.drawn(times), of_old.drawn(times))
    once = np.ones(number, dtype=np.int64)
    low, high = np.quantile(differences, [0.025, 0.975], method="inverted_cdf")
    value_before, value_after = of_old.drawn(once), of_new.drawn(once)
    return Change(
        measure,
        value_before,
        value_after,
        Estimate(_minus(value_after, value_before), float(low), float(high)),
        len(pairs),
        len(before.keys) - len(pairs),
        len(after.keys) - len(pairs),
    )


def _minus(one: float, other: float) -> float:
    """The difference, 0 of two infinities: neither audit finds the item."""
    return 0.0 if one == other else one - other


class _Mean:
    """The mean of values (n,) of which each group is taken some times."""

    def __init__(self, values: Floats, codes: IntArray):
        self._sums, self._sizes = np.bincount(codes, weights=values), np.bincount(codes)

    def drawn(self, times: IntArray) -> float:
        return float(self._sums @ times / (self._sizes @ times))


class _LowerMedian:
    """The lower median, which needs no mean with infinity."""

    def __init__(self, values: Ranks, codes: IntArray):
        order = np.argsort(values, kind="stable")
        self._ascending, self._codes = values[order], codes[order]

    def drawn(self, times: IntArray) -> float:
        reached = np.cumsum(times[self._codes])
        return float(self._ascending[np.searchsorted(reached, reached[-1] / 2)])
