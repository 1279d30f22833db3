"""Measures of retrieval: what they make of the ranks of each query, and how two audits of them are compared.

recall@K      1 if any relevant item is among the first K; else 0
found@K       relevant items among the first K / relevant items
ndcg@K        sum of 1 / log2(1 + rank) over relevant ranks up to K / its largest possible value
r_precision   relevant items among the first R / R, of a query with R relevant items
mrr           1 / rank of the best relevant item
median_rank   rank of the best relevant item; infinity where none is found

`recall@K` is what papers on image and text retrieval print (Success@K elsewhere). `found@K` is what recall means in
information retrieval. A query without any relevant item counts as a miss: 0, or infinity for a rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignment.errors import MeasureError
from alignment.retrieval.bootstrap import Estimate, LowerMedian, Mean, Statistic
from alignment.retrieval.ranks import IntArray, RelevantRanks
from alignment.retrieval.thresholds import holds

Floats = npt.NDArray[np.float64]


def recall(relevant: RelevantRanks, k: int) -> Floats:
    """Say of each query (n,) whether a relevant item is among the first `k`: 1 or 0."""
    return (relevant.best <= k).astype(np.float64)


def found(relevant: RelevantRanks, k: int) -> Floats:
    """Return the share of each query's relevant items among the first `k` (n,), in [0, 1]."""
    return _share_up_to(relevant, k)


def r_precision(relevant: RelevantRanks) -> Floats:
    """Return the share of each query's R relevant items among the first R (n,), in [0, 1]."""
    return _share_up_to(relevant, relevant.counts[relevant.owners])


def reciprocal_rank(relevant: RelevantRanks) -> Floats:
    """Return 1 / rank of each query's best relevant item (n,), in [0, 1]."""
    return 1.0 / relevant.best


def ndcg(relevant: RelevantRanks, k: int) -> Floats:
    """Return the normalised discounted cumulative gain of each query's first `k` (n,), in [0, 1].

    Järvelin and Kekäläinen (2002), for items that are relevant or not.
    """
    with np.errstate(divide="ignore"):
        gains = np.where(relevant.ranks <= k, 1 / np.log2(1 + relevant.ranks), 0.0)
    gained = np.bincount(relevant.owners, gains, minlength=len(relevant.counts))
    deepest = min(k, int(relevant.counts.max(initial=1)))
    largest = np.cumsum(1 / np.log2(1 + np.arange(1.0, deepest + 1)))  # (deepest,)
    normalised: Floats = gained / largest[np.clip(relevant.counts, 1, deepest) - 1]
    return normalised


def _share_up_to(relevant: RelevantRanks, limit: int | IntArray) -> Floats:
    hits = np.bincount(relevant.owners, relevant.ranks <= limit, minlength=len(relevant.counts))
    share: Floats = hits / np.maximum(relevant.counts, 1)
    return share


@dataclass(frozen=True, slots=True)
class Change:
    """How a measure differs between two audits, over the queries of both.

    Attributes:
        before, after: the value in each audit.
        difference: `after - before` with its 95% interval.
        p_drop: one-sided p-value of a drop: of all replicates, and the value itself, the share without a drop.
        queries: how many queries both audits have.
        only_before, only_after: queries of one audit alone, which take no part.
    """

    before: float
    after: float
    difference: Estimate
    p_drop: float
    queries: int
    only_before: int
    only_after: int

    @property
    def significant(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return holds(self.difference.low, ">", 0) or holds(self.difference.high, "<", 0)


@dataclass(frozen=True, slots=True)
class PerQueryValues:
    """The n queries of one audit: their keys, their groups, and the value of a measure for each (n,)."""

    keys: Sequence[str]
    groups: Sequence[str]
    values: Floats


def change(
    before: PerQueryValues, after: PerQueryValues, *, is_rank: bool = False, seed: int = 0, replicates: int = 1000
) -> Change:
    """Compare two audits by a paired bootstrap over the queries that both have.

    Each replicate draws groups, those of `after`, and takes the same ones from both audits, so that queries that are
    hard for both do not widen the interval.

    Args:
        before: the earlier audit.
        after: the later audit.
        is_rank: compare lower medians instead of means, because ranks may be infinite.
        seed: of the bootstrap.
        replicates: how many times groups are drawn.

    Raises:
        MeasureError: the audits share no query.
    """
    return change_of_two(lambda value: value, [(before, after)], is_rank=is_rank, seed=seed, replicates=replicates)


def change_of_two(
    combine: Callable[..., Floats],
    kinds: Sequence[tuple[PerQueryValues, PerQueryValues]],
    *,
    is_rank: bool = False,
    seed: int = 0,
    replicates: int = 1000,
) -> Change:
    """Compare what `combine` makes of the means of one or two kinds of queries, as `change` does.

    Args:
        combine: of the means of each kind, (r,) each, to (r,).
        kinds: the queries of the earlier and of the later audit, of each kind. Groups of a kind are drawn by
            themselves.
        is_rank: take lower medians instead of means.
        seed: of the bootstrap.
        replicates: how many times groups are drawn.

    Raises:
        MeasureError: the audits share no query of a kind.
    """
    paired = [_paired(before, after, is_rank=is_rank) for before, after in kinds]
    rng = np.random.default_rng(seed)
    drawn = [statistic.replicated(rng, replicates).T for statistic, _ in paired]  # (2, replicates) of each kind
    old, new = (combine(*values) for values in zip(*drawn, strict=True))
    differences = _minus(new, old)  # (replicates,)
    low, high = np.quantile(differences, [0.025, 0.975], method="inverted_cdf")
    whole = [statistic.whole()[:, None] for statistic, _ in paired]
    old, new = (combine(*values) for values in zip(*whole, strict=True))
    shared = sum(queries for _, queries in paired)
    return Change(
        float(old[0]),
        float(new[0]),
        Estimate(float(_minus(new, old)[0]), float(low), float(high)),
        (1 + int((differences >= 0).sum())) / (1 + replicates),
        shared,
        sum(len(before.keys) for before, _ in kinds) - shared,
        sum(len(after.keys) for _, after in kinds) - shared,
    )


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Say which of several tests are significant so that one false alarm or more comes at this level at most.

    Holm (1979): the smallest p-value is compared with level / n, the next with level / (n - 1), until one is larger.

    >>> holm([0.03, 0.01, 0.04])
    [False, True, False]
    """
    p, count = np.asarray(p_values, np.float64), len(p_values)
    order = np.argsort(p, kind="stable")
    passed = np.logical_and.accumulate(p[order] * np.arange(count, 0, -1) <= level)
    significant = set(order[passed].tolist())
    return [place in significant for place in range(count)]


def _paired(before: PerQueryValues, after: PerQueryValues, *, is_rank: bool) -> tuple[Statistic, int]:
    """Return the statistic of the earlier and of the later audit over the queries that both have, and their number."""
    places = {key: place for place, key in enumerate(before.keys)}
    pairs = [(places[key], place) for place, key in enumerate(after.keys) if key in places]
    if not pairs:
        raise MeasureError("the audits share no query; ask both with the same pairs")
    values = np.stack([before.values[[a for a, _ in pairs]], after.values[[b for _, b in pairs]]], axis=1)  # (n, 2)
    codes = np.unique([after.groups[b] for _, b in pairs], return_inverse=True)[1]
    return (LowerMedian if is_rank else Mean)(values, codes), len(pairs)


def _minus(one: Floats, other: Floats) -> Floats:
    """Subtract. Two infinities give 0: neither audit finds the item."""
    with np.errstate(invalid="ignore"):
        difference: Floats = np.where(one == other, 0.0, one - other)
    return difference
