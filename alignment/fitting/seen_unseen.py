"""What a whole collection finds, of items that a fit saw and of items that it did not, and the offset between them.

A fit puts its own items on their partners, so in one collection they crowd out those that come later. How much follows
from cross-validation: under the projections of a fold, the folds that it was fitted on are seen and the one that it was
not fitted on is unseen. Queries about unseen items are their own captions or images; queries about seen ones are
paraphrases (`alignment.retrieval.paraphrases`), because an own caption would be found whatever the offset.

An offset is a share of the gap: of the mean score of a pair in the fit less that of a pair outside of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment import distributed
from alignment.metrics import Metric
from alignment.metrics.seen_offset import is_squared
from alignment.modality import DIRECTIONS
from alignment.model.projections import Projection
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.kinds import HARMONIC, SEEN, UNSEEN
from alignment.retrieval.paraphrases import paraphrased
from alignment.retrieval.ranks import IntArray, TieFloors
from alignment.retrieval.seen_unseen import SeenUnseenScores, harmonic_mean, signed_squares

Floats = npt.NDArray[np.float64]
Projections = tuple[Projection, Projection]

# Shares of the gap that are tried. Further up, paraphrases no longer stand for what people ask: under `asif` they lose
# nothing where parts of captions lose .03 of Recall@10 (docs/alignment-figures.md).
SHARES = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2)
# Recall@10 that seen items may lose to the offset at most.
COST = 0.01
# Groups on either side that a gap is estimated from, at least.
FEWEST_GROUPS = 30
# Unseen groups that candidates are judged with, at most: ranking is quadratic.
MOST_GROUPS = 500
# Items of a modality that recalls are measured with, at most: a group may have any number of them.
MOST_ITEMS = 1 << 15
PAIRS_AT_ONCE = 32
SCORES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class WholeRecall:
    """Recall@K of one direction in a whole collection, by the offset of its seen items.

    Attributes:
        offsets: of each of o values (o,), ascending, as shares of the gap or in the unit of the metric.
        seen, unseen: Recall@1, 5 and 10 of queries about either (o, 3).
        first_places: share of the first places that go to seen items (o,), of queries that ask about seen items as
            often as there are seen items.
        fair: share of seen items among all items.
        queries: about seen and about unseen items.
    """

    offsets: Floats
    seen: Floats
    unseen: Floats
    first_places: Floats
    fair: float
    queries: tuple[int, int]

    def harmonic(self, place: int, k: int = KS[-1]) -> float:
        """The harmonic mean of both recalls at the offset with this number."""
        column = KS.index(k)
        return harmonic_mean(float(self.seen[place, column]), float(self.unseen[place, column]))

    @property
    def best(self) -> int:
        """The number of the offset with the largest harmonic mean, of those that cost seen items at most `COST`."""
        affordable = np.flatnonzero(self.seen[:, -1] >= self.seen[0, -1] - COST)
        return int(max(affordable, key=lambda place: self.harmonic(int(place))))

    def averaged(self, other: "WholeRecall", weight: float) -> "WholeRecall":
        """Average with the same of other folds, which count `weight` times as much."""

        def mean(one: Any, two: Any) -> Any:
            return (one + weight * two) / (1 + weight)

        return WholeRecall(
            self.offsets,
            mean(self.seen, other.seen),
            mean(self.unseen, other.unseen),
            mean(self.first_places, other.first_places),
            mean(self.fair, other.fair),
            (self.queries[0] + other.queries[0], self.queries[1] + other.queries[1]),
        )

    def agreed(self) -> "WholeRecall":
        """Take the numbers of rank 0 where several processes have measured: rounding may tell theirs apart."""
        seen, unseen, first = (distributed.broadcast_array(v) for v in (self.seen, self.unseen, self.first_places))
        return replace(self, seen=seen, unseen=unseen, first_places=first)

    def at(self, place: int) -> dict[str, Any]:
        """Lay out the recalls at one offset for a card."""
        recalls = {
            kind: {f"recall@{k}": round(float(values[place, column]), 6) for column, k in enumerate(KS)}
            for kind, values in ((SEEN, self.seen), (UNSEEN, self.unseen))
        }
        recalls[HARMONIC] = {f"recall@{k}": round(self.harmonic(place, k), 6) for k in KS}
        first = {"first_places": round(float(self.first_places[place]), 6), "fair": round(self.fair, 6)}
        return {"seen_offset": round(float(self.offsets[place]), 6), **recalls, **first, "queries": list(self.queries)}


@dataclass(frozen=True, slots=True)
class SeenUnseen:
    """Items of both kinds, for projections that saw the one and not the other.

    Attributes:
        data: raw vectors of both.
        unseen: groups that the projections did not see.
    """

    data: GroupedEmbeddings
    unseen: IntArray

    @classmethod
    def sampled(
        cls, seen: GroupedEmbeddings, unseen: GroupedEmbeddings, seed: int, *, most: int = MOST_GROUPS
    ) -> "SeenUnseen":
        """Draw at most so many unseen groups, and as large a share of the seen ones: the mix stays what it is.

        Of all of these at most `MOST_ITEMS` a modality.
        """
        groups, others = unseen.groups, seen.groups
        share = min(1.0, most / max(1, len(groups)))
        rng = np.random.default_rng(seed)
        if share < 1:
            groups = rng.permutation(groups)[:most]
            others = rng.permutation(others)[: round(share * len(others))]
        one, other = seen.only(others), unseen.only(groups)
        both = GroupedEmbeddings(one.image.joined(other.image), one.text.joined(other.text))
        return cls(both.bounded(MOST_ITEMS), groups)

    def read(self) -> "SeenUnseen":
        """Return the same in memory."""
        return SeenUnseen(self.data.read(), self.unseen)

    @property
    def is_measurable(self) -> bool:
        """Whether there are groups enough on either side to speak of a gap."""
        return min(len(self.unseen), len(self.data.groups) - len(self.unseen)) >= FEWEST_GROUPS

    def gaps(self, aligned: GroupedEmbeddings, metrics: Sequence[Metric]) -> list[float]:
        """Return the mean score of a seen pair less that of an unseen one, by direction and at least 0.

        Args:
            aligned: `data` in the shared space.
            metrics: that compare with the items of each direction.
        """
        images, texts = aligned.pair_rows()
        rows = {"image": images, "text": texts}
        is_unseen = np.isin(aligned.image.groups[images], self.unseen)
        gaps = []
        for (modality, target), metric in zip(DIRECTIONS.values(), metrics, strict=True):
            queries, items = (aligned.side(m).vectors[rows[m]] for m in (modality, target))
            scores = pair_scores(metric, queries, items)
            sound = np.isfinite(scores)
            kinds = [scores[sound & mask] for mask in (~is_unseen, is_unseen)]
            gaps.append(max(0.0, float(kinds[0].mean() - kinds[1].mean())) if all(map(len, kinds)) else 0.0)
        return gaps

    def shares(self, chosen: float | None) -> Sequence[float]:
        """Return the shares of the gap to try: the one that is `chosen`, or many; 0 alone where there is no gap."""
        if not self.is_measurable:
            return (0.0,)
        return SHARES if chosen is None else (chosen,)

    def recalls(
        self,
        projections: Projections,
        aligned: GroupedEmbeddings,
        metrics: Sequence[Metric],
        offsets: Sequence[Floats],
        *,
        seed: int,
    ) -> list[WholeRecall]:
        """Measure every direction under the offsets (o,) of its seen items, in the unit of its metric.

        Args:
            projections, aligned, metrics, seed: as for `scores`.
            offsets: by direction.
        """
        scored = self.scores(projections, aligned, metrics, seed=seed)
        return [scores.recall(own) for scores, own in zip(scored, offsets, strict=True)]

    def scores(
        self,
        projections: Projections,
        aligned: GroupedEmbeddings,
        metrics: Sequence[Metric],
        *,
        seed: int,
        asked: IntArray | None = None,
    ) -> "list[DirectionScores]":
        """Score queries about seen and about unseen items with all items, in every direction.

        Args:
            projections: of the raw `data`.
            aligned: the same data in the shared space.
            metrics: by direction.
            seed: of the paraphrases, and of which seen items are asked about: as many as unseen ones.
            asked: unseen groups to query with; None: all.
        """
        scored = []
        for (modality, target), metric in zip(DIRECTIONS.values(), metrics, strict=True):
            items, side = aligned.side(target), aligned.side(modality)
            is_seen_item, is_seen = (~np.isin(rows.groups, self.unseen) for rows in (items, side))
            about_unseen = side.where(~is_seen if asked is None else np.isin(side.groups, asked))
            chosen = np.argsort(side.groups, kind="stable")  # whatever the order of the rows
            chosen = chosen[is_seen[chosen]]
            if len(chosen) > (most := max(FEWEST_GROUPS, len(about_unseen.groups))):
                chosen = np.random.default_rng(seed).permutation(chosen)[:most]
            moved = paraphrased(self.data.side(modality).vectors[chosen], seed=seed)
            about_seen = ModalityEmbeddings(projections[modality == "text"].unchecked(moved), side.groups[chosen])
            of_seen, of_unseen = (
                _scored(metric, queries, items, is_seen_item) for queries in (about_seen, about_unseen)
            )
            groups = about_seen.groups, about_unseen.groups
            scored.append(DirectionScores(of_seen, of_unseen, groups, float(is_seen_item.mean())))
        return scored


@dataclass(frozen=True, slots=True)
class DirectionScores:
    """The best scores of the queries of one direction, from which what they find under any offset follows.

    Attributes:
        seen, unseen: of queries about either.
        groups: of the queries about seen and about unseen items.
        fair: share of seen items among all items.
    """

    seen: SeenUnseenScores
    unseen: SeenUnseenScores
    groups: tuple[IntArray, IntArray]
    fair: float

    def recall(self, offsets: Floats) -> WholeRecall:
        """Measure the recalls under offsets (o,) in the unit of the metric."""
        kinds = self.seen, self.unseen
        ranked = [[scores.ranks(float(offset)) for offset in offsets] for scores in kinds]
        seen, unseen = (np.array([[np.mean(r <= k) for k in KS] for r in ranks]) for ranks in ranked)
        first = [[scores.finds_seen_first(float(offset)).mean() for offset in offsets] for scores in kinds]
        queries = len(self.groups[0]), len(self.groups[1])
        first_places = np.average(first, axis=0, weights=[self.fair, 1 - self.fair])
        return WholeRecall(offsets, seen, unseen, first_places, self.fair, queries)


def pair_scores(metric: Metric, queries: npt.NDArray[Any], items: npt.NDArray[Any]) -> Floats:
    """Score n queries (n, d) with one item each (n, d): (n,), minus the square where offsets are taken off squares."""
    squared, scores = is_squared(metric, queries.shape[1]), []
    for start in range(0, len(queries), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        scores.append(np.diagonal(metric.score(queries[part], items[part])))
    joined = np.concatenate(scores or [np.empty(0)]).astype(np.float64)
    return signed_squares(joined) if squared else joined


def _scored(
    metric: Metric, queries: ModalityEmbeddings, items: ModalityEmbeddings, is_seen: npt.NDArray[np.bool_]
) -> SeenUnseenScores:
    scored = SeenUnseenScores.empty(len(queries.groups), KS[-1])
    floors = TieFloors(metric, queries.vectors, items.vectors)
    squared, step = is_squared(metric, items.vectors.shape[1]), max(1, SCORES_AT_ONCE // max(1, len(items.groups)))
    for start in range(0, len(queries.groups), step):
        rows = slice(start, start + step)
        relevant = queries.groups[rows, None] == items.groups[None]
        scores = metric.score(queries.vectors[rows], items.vectors).astype(np.float64)
        scored.add(
            signed_squares(scores) if squared else scores,
            relevant,
            is_seen,
            floors=partial(floors.of, rows=rows),
            rows=rows,
            squared=squared,
        )
    return scored
