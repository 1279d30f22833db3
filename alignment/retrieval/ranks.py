"""Ranks, and the measures computed from them: Recall@K, mean reciprocal rank, and chance.

An item is relevant if it is of the query's group. A rank is that of the best relevant item. An irrelevant item with the
same score, or without a score (NaN), counts as ranked above it, so ties never flatter. `ranks` takes scores for the
same that float32 cannot tell apart, as audits do: those of equal captions may differ by rounding. A query without a
relevant item has rank infinity: it counts as a miss and never vanishes from a mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.metrics import Metric

Ranks = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Scores held at once by the chunked functions: 2^24 float32 are 64 MiB.
CHUNK_SCORES = 1 << 24


def group_codes(*sides: Sequence[str]) -> list[IntArray]:
    """Number the groups of several lists: equal groups get equal codes.

    >>> [codes.tolist() for codes in group_codes(["b", "a"], ["a", "c"])]
    [[1, 0], [0, 2]]
    """
    # No NumPy array of texts: it would pad them all to the longest, and take "a" and "a\0" for equal.
    code = {group: number for number, group in enumerate(sorted({group for side in sides for group in side}))}
    return [np.array([code[group] for group in side], dtype=np.int64) for side in sides]


def ranks(
    queries: npt.NDArray[np.floating],
    items: npt.NDArray[np.floating],
    query_groups: IntArray,
    item_groups: IntArray,
    *,
    metric: Metric,
    chunk_scores: int = CHUNK_SCORES,
) -> Ranks:
    """Rank the best relevant item of every query by all items, without ever holding an n x m matrix.

    Args:
        queries: aligned vectors (n, d).
        items: aligned vectors (m, d).
        query_groups: group codes (n,).
        item_groups: group codes (m,).
        metric: how they are compared.
        chunk_scores: how many scores are held at once.

    Returns:
        ranks (n,), from 1; infinity where no item is relevant.
    """
    step = max(1, chunk_scores // max(1, len(items)))
    result, floors = np.full(len(queries), np.inf), TieFloors(metric, queries, items)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        scores = metric.score(queries[rows], items)  # (c, m)
        relevant = query_groups[rows, None] == item_groups[None, :]  # (c, m)
        best = np.where(relevant & ~np.isnan(scores), scores, -np.inf).max(axis=1, initial=-np.inf)  # (c,)
        before = (~(scores < floors.of(best, rows)[:, None]) & ~relevant).sum(axis=1)  # (c,), NaN included
        result[rows] = np.where(relevant.any(axis=1), before + 1.0, np.inf)
    return result


class TieFloors:
    """The lowest scores that may be the same as others but for rounding, in comparisons of n queries with m items.

    Attributes:
        lowering: of the metric.
        queries: sizes (n,) of the queries.
        largest: size of the largest item.
    """

    def __init__(self, metric: Metric, queries: npt.NDArray[np.floating], items: npt.NDArray[np.floating]):
        self.lowering = metric.lower(queries.shape[1])
        self.queries = np.nan_to_num(self.lowering.sizes(queries))  # NaN, of a row that could not be aligned
        self.largest = np.nan_to_num(self.lowering.sizes(items)).max(initial=0.0, keepdims=True)

    def of(self, scores: npt.NDArray[Any], rows: slice) -> npt.NDArray[Any]:
        """Return those of one score (c,) of each of some queries."""
        return self.lowering.floors(scores, self.queries[rows], self.largest)


@dataclass(frozen=True, slots=True)
class RelevantRanks:
    """Where the relevant items of every query stand.

    Attributes:
        ranks: of all relevant items, those of a query together and ascending (t,); infinity for one that was not found.
        counts: how many of them each query has (n,), also 0.
    """

    ranks: Ranks
    counts: IntArray

    @property
    def owners(self) -> IntArray:
        """Number of the query that each rank belongs to (t,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def best(self) -> Ranks:
        """Ranks of the best relevant items (n,); infinity where no item is relevant."""
        best = np.full(len(self.counts), np.inf)
        has = self.counts > 0
        best[has] = self.ranks[(np.cumsum(self.counts) - self.counts)[has]]
        return best

    def where(self, mask: npt.NDArray[np.bool_]) -> "RelevantRanks":
        """Keep the queries where `mask` (n,) is true."""
        return RelevantRanks(self.ranks[mask[self.owners]], self.counts[mask])


def relevant_ranks(
    queries: npt.NDArray[np.floating],
    items: npt.NDArray[np.floating],
    query_groups: IntArray,
    item_groups: IntArray,
    *,
    metric: Metric,
    chunk_scores: int = CHUNK_SCORES,
) -> RelevantRanks:
    """Rank every relevant item of every query exactly, in the memory of a chunk and of the ranks themselves.

    The arguments are those of `ranks`. Irrelevant items of the very same score count as ranked above a relevant one;
    `best` of the result equals the result of `ranks` but for scores that differ by rounding.
    """
    step = max(1, chunk_scores // max(1, len(items)))
    parts, counts = [np.empty(0)], np.zeros(len(queries), dtype=np.int64)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        scores = metric.score(queries[rows], items)  # (c, m)
        relevant = query_groups[rows, None] == item_groups[None, :]  # (c, m)
        scores[relevant & np.isnan(scores)] = -np.inf
        counts[rows] = relevant.sum(axis=1)
        ascending = np.sort(scores, axis=1)  # NaN of irrelevant items stand last, which is best
        for row, row_scores, mask in zip(ascending, scores, relevant, strict=True):
            own = np.sort(row_scores[mask])[::-1]  # best first
            at_least = len(row) - np.searchsorted(row, own, side="left")  # items, relevant ones among them
            own_at_least = len(own) - np.searchsorted(own[::-1], own, side="left")
            parts.append(at_least - own_at_least + np.arange(1.0, len(own) + 1))
    return RelevantRanks(np.concatenate(parts), counts)


def top_k(
    queries: npt.NDArray[np.floating],
    items: npt.NDArray[np.floating],
    k: int,
    *,
    metric: Metric,
    chunk_scores: int = CHUNK_SCORES,
    device: str | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.floating]]:
    """Find the `k` best items of every query by brute force: indices and scores, both (n, min(k, m)), best first.

    Args:
        queries: aligned vectors (n, d).
        items: aligned vectors (m, d).
        k: how many.
        metric: how they are compared.
        chunk_scores: how many scores are held at once.
        device: of torch, on which scores are computed and all items have to fit; None: numpy.
    """
    if device is not None:
        return _top_k_on(device, queries, items, k, metric=metric, chunk_scores=chunk_scores)
    k = min(k, len(items))
    step = max(1, chunk_scores // max(1, len(items)))
    indices = [np.empty((0, k), dtype=np.int64)]
    values = [np.empty((0, k), dtype=np.result_type(queries, items))]
    for start in range(0, len(queries), step):
        scores = metric.score(queries[start : start + step], items)  # (c, m)
        nearest = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, nearest, axis=1), axis=1, kind="stable")
        indices.append(np.take_along_axis(nearest, order, axis=1))
        values.append(np.take_along_axis(scores, indices[-1], axis=1))
    return np.concatenate(indices), np.concatenate(values)


def _top_k_on(
    device: str,
    queries: npt.NDArray[np.floating],
    items: npt.NDArray[np.floating],
    k: int,
    *,
    metric: Metric,
    chunk_scores: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.floating]]:
    import torch  # here, because it takes a second to import

    k, step = min(k, len(items)), max(1, chunk_scores // max(1, len(items)))
    indices = np.empty((len(queries), k), dtype=np.int64)
    values = np.empty((len(queries), k), dtype=np.result_type(queries, items))
    with torch.inference_mode():
        items_there = torch.from_numpy(items).to(device)
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            scores = metric.score(torch.from_numpy(queries[rows]).to(device), items_there)  # (c, m)
            # NaN, the best to torch, has to come last.
            best = scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).topk(k, dim=1)
            indices[rows], values[rows] = best.indices.cpu().numpy(), best.values.cpu().numpy()
    return indices, values


def recall_at(ranks: Ranks, k: int) -> float:
    """Recall@K of cross-modal retrieval: the share of queries with a relevant item among the first `k`.

    >>> recall_at(np.array([1.0, 7.0, np.inf]), 5)
    0.3333333333333333
    """
    return float(np.mean(ranks <= k))


def chance_recall_at(k: int, relevant: IntArray, items: int) -> float:
    """Expected Recall@K of a random order: one minus the hypergeometric chance to draw no relevant item.

    Args:
        k: length of the list.
        relevant: how many of the items are relevant to each query (n,).
        items: how many items there are.

    >>> round(chance_recall_at(10, np.array([1, 1]), 100), 12)
    0.1
    """
    draws = np.arange(min(k, items))
    numbers, queries = np.unique(relevant, return_counts=True)
    chances = [
        1.0 - (np.clip(items - number - draws, 0, None) / (items - draws)).prod() if number else 0.0
        for number in numbers
    ]
    return float(np.average(chances, weights=queries))
