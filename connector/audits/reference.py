"""Exact search by the metric itself, over all vectors that the store gives back: what every stage is measured against.

Relevant pairs are scored first; then all points are read, a page at a time, to score all pairs and count the points
that rank before the relevant ones. Memory holds the queries, a page, a block of scores, and a number for each relevant
pair: never queries times points.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from alignment.distance import Distance
from alignment.metrics import METRICS, Lowering, Metric, Rescored
from alignment.retrieval.ranks import CHUNK_SCORES, IntArray, RelevantRanks
from alignment.vectors import FloatArray
from connector.audits.census import Census
from connector.audits.galleries import NOT_IN_GALLERY, QuerySet
from connector.audits.point_scan import Page, Scan
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
    scan: Scan,
    *,
    relevant: Scan | None = None,
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
        scan: reads all points of the modality; called twice, or once where `relevant` finds every relevant point.
        relevant: reads the points of the queries' groups alone. It may miss some, as by a payload index that is
            damaged: they are then found by reading all points.
        keep: ids of points whose vectors to keep.
        chunk_scores: how many scores are held at once.
    """
    scorer = _Scorer(lowering, query_set, aligned, chunk_scores)
    found = list((relevant or scan)(scorer.relevant_pairs))
    pairs = _Relevant([pair for part in found for pair in part.pairs], len(aligned))
    counter = _Counter(scorer, pairs, depth, frozenset(keep))
    tally = counter([])
    for part in scan(counter):
        tally.join(part)
    if relevant and tally.relevant_points != sum(part.points for part in found):
        return truth(lowering, query_set, aligned, depth, scan, keep=keep, chunk_scores=chunk_scores)
    tally.best[np.isneginf(tally.best)] = np.nan
    ranks = pairs.ranks(tally.before, is_whole=query_set.gallery.is_whole)
    return Truth(*ranks, tally.best, tally.sizes, tally.kept, tally.largest, tally.census)


@dataclass(slots=True)
class _Tally:
    """What is counted of points for n queries with p relevant pairs; the names are those of `Truth`.

    Attributes:
        before: irrelevant points that stand before each pair, among all points and within the gallery (2, p).
        best: -inf where there are fewer.
        relevant_points: how many points are relevant to any query.
    """

    before: IntArray
    best: Scores
    sizes: IntArray
    kept: dict[str, FloatArray] = field(default_factory=dict)
    largest: float = 0.0
    census: Census = field(default_factory=Census)
    relevant_points: int = 0

    def join(self, other: "_Tally") -> None:
        """Count what was counted of other points."""
        self.before += other.before
        self.add_best(other.best, slice(None))
        self.sizes += other.sizes
        self.kept |= other.kept
        self.largest = max(self.largest, other.largest)
        self.census.join(other.census)
        self.relevant_points += other.relevant_points

    def add_best(self, scores: Scores, rows: slice) -> None:
        """Keep the best of the scores (c, m) of some queries."""
        depth = self.best.shape[1]
        if scores.shape[1] > depth:
            scores = -np.partition(-scores, depth - 1, axis=1)[:, :depth]
        joined = np.concatenate([self.best[rows], scores], axis=1)
        self.best[rows] = -np.sort(-joined, axis=1)[:, :depth]


@dataclass(frozen=True, slots=True)
class _Counter:
    """Counts points; the names are those of `truth`."""

    scorer: "_Scorer"
    relevant: "_Relevant"
    depth: int
    keep: frozenset[str]

    def __call__(self, pages: Iterable[Page]) -> _Tally:
        """Count the points of pages."""
        scorer, gallery = self.scorer, self.scorer.query_set.gallery
        before = np.zeros((2, len(self.relevant)), np.int64)
        best = np.full((len(scorer.aligned), self.depth), -np.inf)
        tally = _Tally(before, best, np.zeros(gallery.parts(), np.int64))
        for page in pages:
            tally.census.add(page)
            tally.relevant_points += scorer.relevant_points(page)
            items, placed = scorer.vectors_of(page), gallery.placed(page)
            tally.largest = max(tally.largest, scorer.largest(items))
            of_page = zip(page, items, strict=True)
            tally.kept |= {record.id: item.copy() for record, item in of_page if record.id in self.keep}
            tally.sizes += np.bincount(placed[placed != NOT_IN_GALLERY], minlength=len(tally.sizes))
            for block in scorer.blocks(page, items, placed):
                self.relevant.count_before(block, tally.before, is_whole=gallery.is_whole)
                tally.add_best(block.scores, block.rows)
        return tally


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


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The relevant pairs of pages: numbers of queries, scores, floors of those, and whether they are in the gallery.

    Attributes:
        points: how many points are relevant to any query.
    """

    pairs: list[tuple[IntArray, Scores, Scores, Mask]]
    points: int


class _Scorer:
    """Scores pages against all queries."""

    def __init__(self, lowering: Lowering, query_set: QuerySet, aligned: FloatArray, chunk_scores: int):
        self._lowering, self.query_set, self.aligned, self._chunk_scores = lowering, query_set, aligned, chunk_scores
        self._queries = _asking(lowering, aligned)
        self._of: dict[str, list[int]] = {}  # queries by their group
        for number, group in enumerate(query_set.rows.groups):
            self._of.setdefault(group, []).append(number)
        codes = {group: code for code, group in enumerate(self._of)}
        self._codes, self._wanted = codes, np.array([codes[group] for group in query_set.rows.groups], np.int64)  # (n,)

    def vectors_of(self, page: Page) -> FloatArray:
        """Return the vectors that the metric compares."""
        return vectors_of(self._lowering, page, self.aligned.shape[1])

    def largest(self, items: FloatArray) -> float:
        """Return the size of the largest of some points."""
        return float(np.nan_to_num(self._lowering.sizes(items)).max(initial=0.0))

    def relevant_pairs(self, pages: Iterable[Page]) -> _Pairs:
        """Return the relevant pairs of pages."""
        pairs: list[tuple[IntArray, Scores, Scores, Mask]] = []
        points = 0
        for page in pages:
            pairs += self._pairs_of(page, self.vectors_of(page), self.query_set.gallery.placed(page))
            points += self.relevant_points(page)
        return _Pairs(pairs, points)

    def _pairs_of(
        self, page: Page, items: FloatArray, placed: IntArray
    ) -> Iterator[tuple[IntArray, Scores, Scores, Mask]]:
        its: dict[str, list[int]] = {}
        for number, record in enumerate(page):
            if record.payload["group"] in self._of:
                its.setdefault(record.payload["group"], []).append(number)
        for group, columns in its.items():
            rows = np.array(self._of[group])
            scores = _score(self._lowering, self._queries[rows], items[columns])  # (c, m)
            floors = self._floors(scores, self._queries[rows], items[columns])
            inside = self.query_set.parts[rows, None] == placed[columns]
            yield np.repeat(rows, len(columns)), scores.ravel(), floors.ravel(), inside.ravel()

    def relevant_points(self, page: Page) -> int:
        """Count the points of a page that are relevant to any query."""
        return sum(record.payload["group"] in self._of for record in page)

    def blocks(self, page: Page, items: FloatArray, placed: IntArray) -> Iterator[_Block]:
        """Yield all scores of a page, as many queries at once as there may be."""
        groups = np.array([self._codes.get(record.payload["group"], NOT_IN_GALLERY) for record in page], np.int64)
        step = max(1, self._chunk_scores // len(page))
        for start in range(0, len(self._queries), step):
            rows = slice(start, start + step)
            relevant, inside = self._wanted[rows, None] == groups, self.query_set.parts[rows, None] == placed
            yield _Block(rows, _score(self._lowering, self._queries[rows], items), relevant, inside)

    def _floors(self, scores: Scores, queries: FloatArray, items: FloatArray) -> Scores:
        """The lowest scores that may be the same but for rounding, which depends on how many are computed at once."""
        its, theirs = self._lowering.sizes(items), self._lowering.sizes(queries)[:, None]
        return self._lowering.floors(scores, theirs, its)


class _Relevant:
    """The relevant pairs of n queries: those of a query together, the best first."""

    def __init__(self, pairs: Sequence[tuple[IntArray, Scores, Scores, Mask]], n: int):
        self._n = n
        empty = np.empty(0)
        none = empty.astype(int), empty, empty, empty.astype(bool)
        queries, scores, floors, inside = (np.concatenate(parts) for parts in zip(none, *pairs, strict=True))
        floors = np.where(np.isnan(floors), -np.inf, floors)  # behind everything
        order = np.lexsort((inside, -floors, -scores, queries))  # whatever the order that points were read in
        self._queries, self._inside, self._floors = queries[order], inside[order], floors[order]
        self._counts = np.bincount(queries, minlength=n)
        self._first = np.cumsum(self._counts) - self._counts

    def __len__(self) -> int:
        return len(self._queries)

    def count_before(self, block: _Block, before: IntArray, *, is_whole: bool) -> None:
        """Add to `before` the irrelevant points of a block that score as high as the relevant ones of their query."""
        counts = self._counts[block.rows]
        for place in range(min(FEW, int(counts.max(initial=0)))):
            has = np.flatnonzero(counts > place)
            pairs = self._first[block.rows][has] + place
            ahead = ~(block.scores[has] < self._floors[pairs, None]) & ~block.relevant[has]
            before[0, pairs] += ahead.sum(axis=1)
            if not is_whole:
                before[1, pairs] += (ahead & block.inside[has]).sum(axis=1)
        for row in np.flatnonzero(counts > FEW):
            first = self._first[block.rows][row]
            pairs = np.arange(first + FEW, first + counts[row])
            rivals = ~block.relevant[row]
            before[0, pairs] += _at_least(block.scores[row, rivals], self._floors[pairs])
            if not is_whole:
                within = block.scores[row, rivals & block.inside[row]]
                before[1, pairs] += _at_least(within, self._floors[pairs])

    def ranks(self, before: IntArray, *, is_whole: bool) -> tuple[RelevantRanks, RelevantRanks]:
        """Ranks among all points, and among the gallery."""
        among_all = self._ranked(before[0], np.ones(len(self), bool))
        return among_all, among_all if is_whole else self._ranked(before[1], self._inside)

    def _ranked(self, before: IntArray, mask: Mask) -> RelevantRanks:
        counts = np.bincount(self._queries[mask], minlength=self._n)
        place = np.arange(mask.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return RelevantRanks(before[mask] + place + 1.0, counts)


def _at_least(scores: Scores, floors: Scores) -> IntArray:
    """Return how many of the scores (m,) are no worse than each floor (t,); NaN counts as best."""
    return len(scores) - np.searchsorted(np.sort(scores), floors, side="left")
