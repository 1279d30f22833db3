"""What a finished fit finds of the groups that it did not see: among themselves, and beside items that it saw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from alignment.fitting.cross_validation import Progress
from alignment.fitting.methods import Projections
from alignment.fitting.recall_estimates import held_out_rows, whole_rows
from alignment.fitting.seen_offsets import FittedMetrics, Offsets
from alignment.fitting.seen_unseen import MOST_ITEMS, SeenUnseen, WholeRecall
from alignment.fitting.split import Split
from alignment.metrics import Metric
from alignment.modality import DIRECTIONS, MODALITIES
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import Ranks, recall_at

# Groups to report recall on, at most: ranking is quadratic, and some metrics cost hundreds of times what cosine does.
HELD_OUT_GROUPS = 2_000


@dataclass(frozen=True, slots=True)
class HeldOutRecall:
    """Recalls as the card of an alignment has them, in its fields of these names.

    Attributes:
        held_out_recall: of held-out items among themselves, by metric.
        whole_recall: of one collection, by direction: without an offset, and with that of the alignment.
        recall_estimates: both with intervals, counts and chance, in rows.
    """

    held_out_recall: dict[str, dict[str, dict[str, float]]]
    whole_recall: dict[str, Any]
    recall_estimates: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class HeldOutSamples:
    """The items that recall is measured with, before they are aligned.

    Attributes:
        held_out: held-out groups, at most `HELD_OUT_GROUPS`.
        whole: some of them in one collection with some groups of the fit.
        seed: of the samples, and of the intervals.
    """

    held_out: GroupedEmbeddings
    whole: SeenUnseen
    seed: int

    @classmethod
    def reserved(cls, split: Split, seed: int, progress: Progress) -> Self:
        """Draw the samples; vectors that stay in their shards are then read along with those of the fit."""
        held_out = _sampled(split.test, seed, progress).reserve()
        whole = SeenUnseen.sampled(split.training, split.test, seed, most=HELD_OUT_GROUPS)
        whole.data.reserve()
        return cls(held_out, whole, seed)

    def recall(
        self, projections: Projections, fitted: FittedMetrics, reference: Metric, offsets: Offsets, progress: Progress
    ) -> HeldOutRecall:
        """Measure both samples in the space of `projections`.

        Args:
            projections: those of the alignment.
            fitted: its metrics, which rank the held-out items.
            reference: ranks the items of one collection.
            offsets: of seen items, by metric.
            progress: called with a line for each direction of the whole collection.
        """
        whole, whole_estimates = self._whole(projections, reference, offsets)
        _report_whole(whole, progress)
        aligned = self.held_out.read().project(projections)
        ranks = {
            metric: aligned.ranks({side: metric.bind(fitted.weights, side) for side in MODALITIES})
            for metric in fitted.metrics
        }
        estimates = [
            row for metric, own in ranks.items() for row in held_out_rows(metric, aligned, own, seed=self.seed)
        ]
        return HeldOutRecall(
            {str(metric): recall_table(own) for metric, own in ranks.items()},
            {direction: [recall.at(place) for place in range(2)] for direction, recall in whole.items()},
            [*estimates, *whole_estimates],
        )

    def _whole(
        self, projections: Projections, metric: Metric, offsets: Offsets
    ) -> tuple[dict[str, WholeRecall], list[dict[str, Any]]]:
        """Measure one collection: by direction without and with the offset, and in rows."""
        own, both = offsets.get(str(metric), {}), self.whole.read()
        scored = both.scores(projections, both.data.project(projections), [metric] * len(DIRECTIONS), seed=self.seed)
        measured = {
            direction: scores.recall(np.array([0.0, own.get(target, 0.0)]))
            for (direction, (_, target)), scores in zip(DIRECTIONS.items(), scored, strict=True)
        }
        return measured, list(whole_rows(metric, scored, own, both, seed=self.seed))


def _sampled(test: GroupedEmbeddings, seed: int, progress: Progress) -> GroupedEmbeddings:
    """Return at most `HELD_OUT_GROUPS` of the held-out groups, and at most `MOST_ITEMS` of their items a modality."""
    groups = test.groups
    chosen = np.random.default_rng(seed).permutation(groups)[:HELD_OUT_GROUPS]
    if len(chosen) < len(groups):
        share = f"{len(chosen):,} of {len(groups):,} held-out groups"
        progress(f"recall is measured on {share}; an audit asks with all of them")
    return test.only(chosen).bounded(MOST_ITEMS)


def _report_whole(whole: Mapping[str, WholeRecall], progress: Progress) -> None:
    """Say how new items are found beside known ones, without the offset and with the one that the alignment holds."""
    for direction, recall in whole.items():
        before, after = (
            f"{recall.unseen[place, -1]:.3f} unseen, {recall.seen[place, -1]:.3f} seen" for place in (0, 1)
        )
        progress(
            f"{direction} in one collection, Recall@{KS[-1]}: {after}, harmonic mean {recall.harmonic(1):.3f}; without "
            f"an offset {before}; offset {recall.offsets[1]:.4g}"
        )


def recall_table(both: tuple[Ranks, Ranks]) -> dict[str, dict[str, float]]:
    """Recall@1/5/10 of both directions, by name."""
    return {
        direction: {f"recall@{k}": round(recall_at(side, k), 6) for k in KS}
        for direction, side in zip(DIRECTIONS, both, strict=True)
    }
