"""What a fit finds: recalls with their intervals, counts and chance, as rows for the card of an alignment.

Held-out items are searched for among themselves, which tells fits apart; and in one collection with those of the fit,
which is what production does.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.fitting.seen_unseen import DirectionScores, SeenUnseen
from alignment.metrics import Metric
from alignment.modality import DIRECTIONS, Modality
from alignment.retrieval.bootstrap import Estimate, bootstrap_means, bootstrap_of_two
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.kinds import HARMONIC, HELD_OUT, SEEN, UNSEEN
from alignment.retrieval.ranks import IntArray, Ranks, chance_recall_at
from alignment.retrieval.seen_unseen import harmonic_mean


def held_out_rows(
    metric: Metric, aligned: GroupedEmbeddings, both: tuple[Ranks, Ranks], *, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield a row a direction: held-out items among themselves.

    Args:
        metric: that ranked them.
        aligned: held-out items.
        both: ranks of the queries of both directions.
        seed: of the intervals.
    """
    for (direction, (modality, target)), ranks in zip(DIRECTIONS.items(), both, strict=True):
        queries, items = aligned.side(modality).groups, aligned.side(target).groups
        yield _row(metric, direction, HELD_OUT, _estimates(ranks, queries, seed), queries, items)


def whole_rows(
    metric: Metric,
    scored: Sequence[DirectionScores],
    offsets: Mapping[Modality, float],
    both: SeenUnseen,
    *,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Yield rows a direction: unseen items, seen items and the harmonic mean, in one collection of all.

    Args:
        metric: that scored them.
        scored: by direction.
        offsets: of seen items, by their modality.
        both: the items.
        seed: of the intervals.
    """
    for (direction, (_, target)), scores in zip(DIRECTIONS.items(), scored, strict=True):
        offset, items = offsets.get(target, 0.0), both.data.side(target).groups
        kinds = {UNSEEN: (scores.unseen, scores.groups[1]), SEEN: (scores.seen, scores.groups[0])}
        ranks = {kind: (own.ranks(offset), groups) for kind, (own, groups) in kinds.items()}
        for kind, (of_kind, groups) in ranks.items():
            yield _row(metric, direction, kind, _estimates(of_kind, groups, seed), groups, items)
        means = [
            bootstrap_of_two(harmonic_mean, *(((r <= k).astype(np.float64), g) for r, g in ranks.values()), seed=seed)
            for k in KS
        ]
        queries = np.concatenate([groups for _, groups in ranks.values()])
        yield _row(metric, direction, HARMONIC, means, queries, items)


def _estimates(ranks: Ranks, groups: IntArray, seed: int) -> list[Estimate]:
    return bootstrap_means((ranks[:, None] <= np.array(KS)).astype(np.float64), groups, seed=seed)


def _row(
    metric: Metric, direction: str, about: str, estimates: Sequence[Estimate], queries: IntArray, items: IntArray
) -> dict[str, Any]:
    known, counts = np.unique(items, return_counts=True)
    relevant = counts[np.searchsorted(known, queries)]
    recalls = {
        f"recall@{k}": {
            "value": round(estimate.value, 6),
            "low": round(estimate.low, 6),
            "high": round(estimate.high, 6),
            "chance": round(chance_recall_at(k, relevant, len(items)), 6),
        }
        for k, estimate in zip(KS, estimates, strict=True)
    }
    counts_of = {"queries": len(queries), "items": len(items)}
    return {"metric": str(metric), "direction": direction, "about": about, **counts_of, **recalls}
