"""What one collection of seen and unseen items finds under a metric, without and with an offset for the seen.

Production searches all items at once, and there those of the fit crowd out new ones. What finds most among held-out
items alone need not find most in production; so the advice of a comparison rests on this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignment.comparison.paired_bootstrap import Floats, Hits, WholeHits, estimate
from alignment.fitting.seen_unseen import DirectionScores, WholeRecall
from alignment.modality import DIRECTIONS, Modality
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.cutoffs import KS, RECALL
from alignment.retrieval.kinds import HARMONIC, SEEN, UNSEEN
from alignment.retrieval.ranks import IntArray
from alignment.retrieval.seen_unseen import SeenUnseenCurve, curve

KINDS = (SEEN, UNSEEN, HARMONIC)


@dataclass(frozen=True, slots=True)
class WholeCollection:
    """Recalls of one collection of seen and unseen items under a metric.

    Attributes:
        offsets: of seen items by their modality, in the unit of the metric; 0 for none.
        recalls: by direction, without an offset and with it.
        estimates: with the offset, means of both directions: by kind and by name such as `recall@10`.
        curves: by direction, if they were asked for.
        hits: with the offset.
        samples: Recall@10 on resampled groups by kind, means of both directions (b,).
    """

    offsets: Mapping[Modality, float]
    recalls: Mapping[str, WholeRecall]
    estimates: Mapping[str, Mapping[str, Estimate]]
    curves: Mapping[str, SeenUnseenCurve]
    hits: WholeHits = field(repr=False)
    samples: Mapping[str, Floats] = field(repr=False)

    @property
    def judged(self) -> Estimate:
        """The harmonic mean of seen and unseen Recall@10, mean of both directions."""
        return self.estimates[HARMONIC][RECALL]

    @property
    def has_offset(self) -> bool:
        """Whether seen items of either modality have an offset."""
        return any(self.offsets.values())

    def mean(self, place: int) -> dict[str, Any]:
        """Average both directions without an offset, `place` 0, or with it, 1; laid out as `WholeRecall.at`."""
        layouts = [recall.at(place) for recall in self.recalls.values()]
        mean: dict[str, Any] = {
            kind: {name: float(np.mean([each[kind][name] for each in layouts])) for name in layouts[0][kind]}
            for kind in KINDS
        }
        return mean | {name: float(np.mean([each[name] for each in layouts])) for name in ("first_places", "fair")}


def hits_of(
    scored: Sequence[DirectionScores], offsets: Mapping[Modality, float], seen: IntArray, unseen: IntArray
) -> WholeHits:
    """Count the hits under the offsets of seen items.

    Args:
        scored: by direction.
        offsets: by the modality of the items.
        seen, unseen: groups to draw from, ascending.
    """
    own = [offsets.get(target, 0.0) for _, target in DIRECTIONS.values()]
    one, other = scored
    return WholeHits(
        Hits.of((one.seen.ranks(own[0]), other.seen.ranks(own[1])), (one.groups[0], other.groups[0]), seen),
        Hits.of((one.unseen.ranks(own[0]), other.unseen.ranks(own[1])), (one.groups[1], other.groups[1]), unseen),
    )


def whole_collection(
    scored: Sequence[DirectionScores],
    offsets: Mapping[Modality, float],
    seen: IntArray,
    unseen: IntArray,
    *,
    seed: int,
    with_curves: bool = False,
) -> WholeCollection:
    """Measure what follows from the scores of both directions.

    Args:
        scored, offsets, seen, unseen: as for `hits_of`.
        seed: of the intervals.
        with_curves: compute the seen-unseen curves too.
    """
    hits = hits_of(scored, offsets, seen, unseen)
    values, samples = hits.recalls()[:, -1], hits.resampled(seed)[:, :, -1]  # (3, 3) and (b, 3, 3)
    estimates = {
        kind: {f"recall@{k}": estimate(values[row, column], samples[:, row, column]) for column, k in enumerate(KS)}
        for row, kind in enumerate(KINDS)
    }
    recalls, curves = {}, {}
    for (direction, (_, target)), scores in zip(DIRECTIONS.items(), scored, strict=True):
        offset = offsets.get(target, 0.0)
        recalls[direction] = scores.recall(np.array([0.0, offset]))
        if with_curves:
            curves[direction] = curve(scores.seen, scores.unseen, [offset])
    taken = {target: offsets.get(target, 0.0) for _, target in DIRECTIONS.values()}
    at_10 = {kind: samples[:, row, -1] for row, kind in enumerate(KINDS)}
    return WholeCollection(taken, recalls, estimates, curves, hits, at_10)
