"""Exact search by the metric itself, over all vectors that the store gives back: what every stage is measured against.

Relevant pairs are scored first; then all points are read, a page at a time, to score all pairs and count the points
that rank before the relevant ones. Memory holds the queries, a page, a block of scores, and a number for each relevant
pair: never queries times points.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from alignment.distance import Distance
from alignment.metrics import METRICS, Lowering, Metric, Rescored
from alignment.retrieval.ranks import CHUNK_SCORES, IntArray, RelevantRanks
from alignment.vectors import FloatArray
from connector.audits.census import Census
from connector.audits.galleries import NOT_IN_GALLERY, QuerySet
from connector.releases.aligned_payload import carried
from connector.stores.points import Record

# Of more relevant items a query, what stands before them is counted in sorted scores instead of one after the other.
FEW = 16
NATIVE: dict[Distance, Metric] = {
    Distance.COSINE: METRICS["cosine"],
    Distance.DOT: METRICS["dot"],
    Distance.EUCLID: METRICS["euclid"],
    Distance.MANHATTAN: METRICS["manhattan"],
}

Scores = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Pages = Callable[[], Iterator[list[Record]]]


@dataclass(frozen=True, slots=True)
class Truth:
    """What exact search by the metric itself finds.

    Attributes:
        whole: where the relevant items of each of n queries stand among all points.
        gallery: the same among the query's part of the gallery.
        best: scores of the best points of all (n, depth), best first; NaN where there are fewer. Without the offset of
            a lowering: it is the same for all points, and would hide what the scores round to.
        sizes: how many points the parts of the gallery hold (parts,).
        kept: vectors of the points to keep, by id: aligned where points carry aligned vectors, else as stored.
        largest: size of the largest point, as `Lowering.sizes` has it.
        census: which points the fit saw.
    """

    whole: RelevantRanks
    gallery: RelevantRanks
    best: Scores
    sizes: IntArray
    kept: dict[str, FloatArray]
    largest: float
    census: Census

    def where(self, mask: Mask) -> "Truth":
        """Keep the queries where `mask` (n,) is true."""
        whole, gallery = self.whole.where(mask), self.gallery.where(mask)
        return replace(self, whole=whole, gallery=gallery, best=self.best[mask])


def vectors_of(lowering: Lowering, page: Sequence[Record], dim: int) -> FloatArray:
    """Return the vectors that the metric compares, of points that were read with their stored vectors.

    Aligned ones where points carry them, of as many coordinates as items have beside queries of `dim`; stored ones
    (c, d) where not.

    Raises:
        StrangePointError: a point does not carry one.
    """
    if isinstance(lowering, Rescored):
        return carried(page, lowering.item_dim(dim))
    return np.stack([record.vector for record in page if record.vector is not None])


def own_scores(lowering: Lowering, aligned: FloatArray, items: FloatArray) -> Scores:
    """Score aligned queries (n, d) against what `vectors_of` returned (m, d): (n, m), higher is better.

    The offset of a lowering is left out: it is the same for all items of a query.
    """
    return _score(lowering, _asking(lowering, aligned), items)


def _asking(lowering: Lowering, aligned: FloatArray) -> FloatArray:
    return aligned if isinstance(lowering, Rescored) else lowering.query(aligned)


def _score(lowering: Lowering, queries: FloatArray, items: FloatArray) -> Scores:
    metric = lowering.metric if isinstance(lowering, Rescored) else NATIVE[lowering.distance]
    return metric.score(queries, items)


def truth(
    lowering: Lowering,
    query_set: QuerySet,
    aligned: FloatArray,
    depth: int,
    pages: Pages,
    *,
    relevant_pages: Pages | None = None,
    keep: Collection[str] = (),
    chunk_scores: int = CHUNK_SCORES,
) -> Truth:
    """Rank the relevant points of every query exactly.

    Irrelevant points whose score float32 cannot tell from that of a relevant one stand before it.

    Args:
        lowering: of the points.
        query_set: n queries of the other modality.
        aligned: their vectors (n, d).
        depth: how many of the best scores to keep.
        pages: reads all points of the modality with their vectors, a page at a time; called twice, or once where
            `relevant_pages` finds every relevant point.
        relevant_pages: reads the points of the queries' groups alone, as `pages`. It may miss some, as by a payload
            index that is damaged: they are then found by reading all points.
        keep: ids of points whose vectors to keep.
        chunk_scores: how many scores are held at once.
    """
    scorer = _Scorer(lowering, query_set, aligned, chunk_scores)
    relevant, relevant_points = _Relevant(len(aligned)), 0
    for page in (relevant_pages or pages)():
        items, placed = vectors_of(lowering, page, aligned.shape[1]), query_set.gallery.placed(page)
        relevant_points += scorer.relevant_points(page)
        for pairs in scorer.relevant_pairs(page, items, placed):
            relevant.add(*pairs)
    relevant.close()
    best = np.full((len(aligned), depth), -np.inf)
    largest, sizes = 0.0, np.zeros(query_set.gallery.parts(), np.int64)
    kept: dict[str, FloatArray] = {}
    census = Census()
    for page in pages():
        census.add(page)
        relevant_points -= scorer.relevant_points(page)
        items, placed = vectors_of(lowering, page, aligned.shape[1]), query_set.gallery.placed(page)
        largest = max(largest, float(np.nan_to_num(lowering.sizes(items)).max(initial=0.0)))
        kept |= {record.id: item.copy() for record, item in zip(page, items, strict=True) if record.id in keep}
        sizes += np.bincount(placed[placed != NOT_IN_GALLERY], minlength=len(sizes))
        for block in scorer.blocks(page, items, placed):
            relevant.count_before(block, is_whole=query_set.gallery.is_whole)
            top = block.scores
            if top.shape[1] > depth:
                top = -np.partition(-top, depth - 1, axis=1)[:, :depth]
            joined = np.concatenate([best[block.rows], top], axis=1)
            best[block.rows] = -np.sort(-joined, axis=1)[:, :depth]
    if relevant_points and relevant_pages:
        return truth(lowering, query_set, aligned, depth, pages, keep=keep, chunk_scores=chunk_scores)
    best[np.isneginf(best)] = np.nan
    return Truth(*relevant.ranks(is_whole=query_set.gallery.is_whole), best, sizes, kept, largest, census)


@dataclass(frozen=True, slots=True)
class _Block:
    """Scores (c, m) of some queries against a page, whether pairs are relevant, and whether they are in the gallery.

    Attributes:
        rows: numbers of the queries.
    """

    rows: slice
    scores: Scores
    relevant: Mask
    inside: Mask


class _Scorer:
    """Scores pages against all queries."""

    def __init__(self, lowering: Lowering, query_set: QuerySet, aligned: FloatArray, chunk_scores: int):
        self._lowering, self._query_set, self._aligned, self._chunk_scores = lowering, query_set, aligned, chunk_scores
        self._queries = _asking(lowering, aligned)
        self._of: dict[str, list[int]] = {}  # queries by their group
        for number, group in enumerate(query_set.rows.groups):
            self._of.setdefault(group, []).append(number)
        codes = {group: code for code, group in enumerate(self._of)}
        self._codes, self._wanted = codes, np.array([codes[group] for group in query_set.rows.groups], np.int64)  # (n,)

    def relevant_pairs(
        self, page: Sequence[Record], items: FloatArray, placed: IntArray
    ) -> Iterator[tuple[IntArray, Scores, Scores, Mask]]:
        """Yield numbers of queries, their scores with relevant points of a page, floors of those, and who is inside."""
        its: dict[str, list[int]] = {}
        for number, record in enumerate(page):
            if record.payload["group"] in self._of:
                its.setdefault(record.payload["group"], []).append(number)
        for group, columns in its.items():
            rows = np.array(self._of[group])
            scores = _score(self._lowering, self._queries[rows], items[columns])  # (c, m)
            floors = self._floors(scores, self._queries[rows], items[columns])
            inside = self._query_set.parts[rows, None] == placed[columns]
            yield np.repeat(rows, len(columns)), scores.ravel(), floors.ravel(), inside.ravel()

    def relevant_points(self, page: Sequence[Record]) -> int:
        """Count the points of a page that are relevant to any query."""
        return sum(record.payload["group"] in self._of for record in page)

    def blocks(self, page: Sequence[Record], items: FloatArray, placed: IntArray) -> Iterator[_Block]:
        """Yield all scores of a page, as many queries at once as there may be."""
        groups = np.array([self._codes.get(record.payload["group"], NOT_IN_GALLERY) for record in page], np.int64)
        step = max(1, self._chunk_scores // len(page))
        for start in range(0, len(self._queries), step):
            rows = slice(start, start + step)
            relevant, inside = self._wanted[rows, None] == groups, self._query_set.parts[rows, None] == placed
            yield _Block(rows, _score(self._lowering, self._queries[rows], items), relevant, inside)

    def _floors(self, scores: Scores, queries: FloatArray, items: FloatArray) -> Scores:
        """The lowest scores that may be the same but for rounding, which depends on how many are computed at once."""
        its, theirs = self._lowering.sizes(items), self._lowering.sizes(queries)[:, None]
        return self._lowering.floors(scores, theirs, its)


class _Relevant:
    """The relevant pairs of n queries, and how many irrelevant points stand before each."""

    def __init__(self, n: int):
        self._n = n
        empty = np.empty(0)
        self._found: list[tuple[IntArray, Scores, Scores, Mask]] = [
            (empty.astype(int), empty, empty, empty.astype(bool))
        ]

    def add(self, queries: IntArray, scores: Scores, floors: Scores, inside: Mask) -> None:
        """Add relevant pairs."""
        self._found.append((queries, scores, floors, inside))

    def close(self) -> None:
        """Sort the pairs: those of a query together, the best first."""
        queries, scores, floors, inside = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        floors = np.where(np.isnan(floors), -np.inf, floors)  # behind everything
        order = np.lexsort((-scores, queries))
        self._queries, self._inside, self._floors = queries[order], inside[order], floors[order]
        self._counts = np.bincount(queries, minlength=self._n)
        self._first = np.cumsum(self._counts) - self._counts
        self._before, self._before_inside = np.zeros(len(order), np.int64), np.zeros(len(order), np.int64)

    def count_before(self, block: _Block, *, is_whole: bool) -> None:
        """Count the irrelevant points of a block that score as high as the relevant ones of their query."""
        counts = self._counts[block.rows]
        for place in range(min(FEW, int(counts.max(initial=0)))):
            has = np.flatnonzero(counts > place)
            pairs = self._first[block.rows][has] + place
            ahead = ~(block.scores[has] < self._floors[pairs, None]) & ~block.relevant[has]
            self._before[pairs] += ahead.sum(axis=1)
            if not is_whole:
                self._before_inside[pairs] += (ahead & block.inside[has]).sum(axis=1)
        for row in np.flatnonzero(counts > FEW):
            first = self._first[block.rows][row]
            pairs = np.arange(first + FEW, first + counts[row])
            rivals = ~block.relevant[row]
            self._before[pairs] += _at_least(block.scores[row, rivals], self._floors[pairs])
            if not is_whole:
                within = block.scores[row, rivals & block.inside[row]]
                self._before_inside[pairs] += _at_least(within, self._floors[pairs])

    def ranks(self, *, is_whole: bool) -> tuple[RelevantRanks, RelevantRanks]:
        """Ranks among all points, and among the gallery."""
        among_all = self._ranked(self._before, np.ones(len(self._before), bool))
        return among_all, among_all if is_whole else self._ranked(self._before_inside, self._inside)

    def _ranked(self, before: IntArray, mask: Mask) -> RelevantRanks:
        counts = np.bincount(self._queries[mask], minlength=self._n)
        place = np.arange(mask.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return RelevantRanks(before[mask] + place + 1.0, counts)


def _at_least(scores: Scores, floors: Scores) -> IntArray:
    """Return how many of the scores (m,) are no worse than each floor (t,); NaN counts as best."""
    return len(scores) - np.searchsorted(np.sort(scores), floors, side="left")
