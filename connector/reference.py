"""The truth of an audit: the metric itself, over the vectors that the store gives back, all of them.

Two passes over the points, a page at a time: the first scores what is relevant and keeps the best scores, the second
counts what stands before. What is held are the queries, a page, a block of scores, and a number for each relevant pair:
never queries times points.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignment.metrics import METRICS, Distance, Lowering, Metric, Rescored
from alignment.recall import CHUNK_SCORES, Codes, RelevantRanks
from alignment.vectors import FloatArray
from connector.candidates import ALIGNED, unpacked
from connector.galleries import NOWHERE, Asked
from connector.store import Record

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
        kept: vectors that were asked for, by id: aligned ones where points carry them, as they are stored where not.
    """

    whole: RelevantRanks
    gallery: RelevantRanks
    best: Scores
    sizes: Codes
    kept: dict[str, FloatArray]


def vectors_of(lowering: Lowering, page: Sequence[Record]) -> FloatArray:
    """The vectors (c, d) that the metric compares, of points that were read with their stored vectors."""
    if isinstance(lowering, Rescored):
        return unpacked([record.payload[ALIGNED] for record in page])
    return np.stack([record.vector for record in page if record.vector is not None])


def truth(
    lowering: Lowering,
    asked: Asked,
    aligned: FloatArray,
    depth: int,
    pages: Pages,
    *,
    keep: Collection[str] = (),
    chunk_scores: int = CHUNK_SCORES,
) -> Truth:
    """Rank the relevant points of every query exactly.

    Irrelevant points whose score float32 cannot tell from that of a relevant one stand before it.

    Args:
        lowering: of the points that are asked for.
        asked: n queries of the other modality.
        aligned: their vectors (n, d).
        depth: how many of the best scores to keep.
        pages: reads all points of the modality with their vectors, a page at a time; called twice.
        keep: ids of points whose vectors to keep.
        chunk_scores: how many scores are held at once.
    """
    codes = {group: code for code, group in enumerate(dict.fromkeys(asked.rows.groups))}
    wanted = np.array([codes[group] for group in asked.rows.groups], np.int64)  # (n,)
    pass_ = _Pass(lowering, aligned, wanted, asked.parts, codes, asked, chunk_scores)
    best = np.full((len(aligned), depth), -np.inf)
    sizes, kept, relevant = np.zeros(asked.gallery.parts(), np.int64), {}, _Relevant(len(aligned))
    for page in pages():
        items = vectors_of(lowering, page)
        wishes = [number for number, record in enumerate(page) if record.id in keep]
        kept.update({page[number].id: items[number].copy() for number in wishes})
        for block in pass_.blocks(page, items):
            relevant.add(block)
            top = block.scores
            if top.shape[1] > depth:
                top = -np.partition(-top, depth - 1, axis=1)[:, :depth]
            joined = np.concatenate([best[block.rows], top], axis=1)
            best[block.rows] = -np.sort(-joined, axis=1)[:, :depth]
        placed = asked.gallery.placed(page)
        sizes += np.bincount(placed[placed != NOWHERE], minlength=len(sizes))
    relevant.close(lowering)
    for page in pages():
        for block in pass_.blocks(page, vectors_of(lowering, page)):
            relevant.count_before(block, is_whole=asked.gallery.is_whole)
    best[np.isneginf(best)] = np.nan
    return Truth(*relevant.ranks(is_whole=asked.gallery.is_whole), best, sizes, kept)


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
class _Pass:
    """Scores pages, a block of queries at a time. Both passes see the same blocks, so equal scores come out equal."""

    lowering: Lowering
    aligned: FloatArray
    wanted: Codes
    parts: Codes
    codes: dict[str, int]
    asked: Asked
    chunk_scores: int

    def blocks(self, page: Sequence[Record], items: FloatArray) -> Iterator[_Block]:
        groups = np.array([self.codes.get(record.payload["group"], NOWHERE) for record in page], np.int64)
        placed = self.asked.gallery.placed(page)
        step = max(1, self.chunk_scores // len(page))
        for start in range(0, len(self.aligned), step):
            rows = slice(start, start + step)
            yield _Block(
                rows,
                self._score(self.aligned[rows], items),
                self.wanted[rows, None] == groups,
                self.parts[rows, None] == placed,
            )

    def _score(self, aligned: FloatArray, items: FloatArray) -> Scores:
        if isinstance(self.lowering, Rescored):
            return self.lowering.metric.score(aligned, items)
        return NATIVE[self.lowering.distance].score(self.lowering.query(aligned), items)


class _Relevant:
    """The relevant pairs of n queries, and how many irrelevant points stand before each."""

    def __init__(self, n: int):
        self._n = n
        self._found: list[tuple[Codes, Scores, Mask]] = [(np.empty(0, np.int64), np.empty(0), np.empty(0, bool))]

    def add(self, block: _Block) -> None:
        """Remember the relevant pairs of a block."""
        rows, columns = np.nonzero(block.relevant)
        self._found.append((rows + block.rows.start, block.scores[rows, columns], block.inside[rows, columns]))

    def close(self, lowering: Lowering) -> None:
        """Put pairs in order, those of a query together and the best first."""
        queries, scores, inside = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        order = np.lexsort((-scores, queries))
        self._queries, self._inside = queries[order], inside[order]
        self._floors = lowering.tied(scores[order])  # (t,), rounding never flatters
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

    def _ranked(self, before: Codes, mask: Mask) -> RelevantRanks:
        counts = np.bincount(self._queries[mask], minlength=self._n)
        place = np.arange(mask.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return RelevantRanks(before[mask] + place + 1.0, counts)


def _at_least(scores: Scores, floors: Scores) -> Codes:
    """How many of the scores (m,) are no worse than each floor (t,); what is no number is best."""
    return len(scores) - np.searchsorted(np.sort(scores), floors, side="left")
