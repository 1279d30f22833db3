"""The offsets of an alignment: the chosen share of the gap, in the unit of every metric.

The gap under a metric is between training pairs under the final projections and pairs of one fold under a fit that
never saw them. The two fits have spaces of their own; an orthogonal rotation (Schönemann 1966) of the rows that both
saw brings the second into the first, so that metrics with weights of the first can compare there too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alignment.fitting.cross_validation import Candidate
from alignment.fitting.folds import Folds
from alignment.fitting.methods import FitSpec, Fitter, Projections
from alignment.fitting.seen_unseen import COST, SHARES, DirectionScores, SeenUnseen
from alignment.metrics import Metric
from alignment.modality import DIRECTIONS, MODALITIES, Modality
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.vectors import FloatArray, l2_normalize

if TYPE_CHECKING:
    import torch

# Queries beyond `COST` that one fold may lose under the final fit and the metric that the share was chosen under. Of
# the fewest there are, a single one is three times `COST`. Over all folds `COST` holds as it stands: see
# `WholeRecall.best`.
ROUNDED = 2
Offsets = dict[str, dict[Modality, float]]


@dataclass(frozen=True, slots=True)
class FittedMetrics:
    """Metrics with their weights over aligned vectors, by the modality of their items."""

    metrics: Sequence[Metric]
    weights: Mapping[str, npt.NDArray[Any]]

    def by_direction(self, metric: Metric) -> list[Metric]:
        """Return a metric as it scores the items of each direction."""
        return [metric.bind(self.weights, target) for _, target in DIRECTIONS.values()]


@dataclass(frozen=True, slots=True)
class GapSample:
    """Pairs inside and outside of a fit in one space, from which the offset under any metric follows.

    Attributes:
        shares: of the gap, by the modality of the items.
        both: raw vectors.
        projections: the final ones.
        aligned: `both` in their space.
        reference: the metric that `shares` were chosen under; None where they were given.
        seed: of the paraphrases.
        interrupted: Ctrl-C ended the training of the second fit, and its gap is the best guess so far.
    """

    shares: Mapping[Modality, float]
    both: SeenUnseen
    projections: Projections
    aligned: GroupedEmbeddings
    reference: Metric | None
    seed: int
    interrupted: bool

    @classmethod
    def drawn(
        cls,
        chosen: Candidate,
        known: GroupedEmbeddings,
        projections: Projections,
        folds: int,
        device: "torch.device",
        task: FitSpec,
        parts: Folds | None = None,
    ) -> "GapSample | None":
        """Fit once more without one of `folds` parts of the groups; None where the chosen share of the gap is 0.

        Args:
            chosen: what `projections` were fitted as.
            known: the training data.
            projections: fitted on all of it.
            folds: one of so many parts of the groups is left out.
            device, task: of the fit.
            parts: these folds of `known`, where somebody else needs them, too.
        """
        if not any(chosen.shares.values()):
            return None
        parts = parts or Folds(known, folds, task.seed, device)
        fitting = known.without(parts.left_out)
        fitter = Fitter(chosen.method, fitting, device, task, parts.without(parts.left_out))
        other = fitter.fit(chosen.hyperparameters)
        both = left_out_sample(parts, task.seed).read()
        aligned = _as_if_unseen(both, projections, other)
        reference = task.metrics[0] if task.seen_offset is None else None
        return cls(chosen.shares, both, projections, aligned, reference, task.seed, fitter.interrupted)

    def offsets(self, by_direction: Sequence[Metric]) -> dict[Modality, float]:
        """Return the offset of the items of each modality; nothing where both are 0.

        The folds of a cross-validation judge by fits on some of the groups, and under one metric. So a share is made
        smaller until, under the final fit, it costs seen items at most `COST`, but for `ROUNDED` queries; and under
        another metric at most `COST`, or what it costs there if that is more.

        Args:
            by_direction: a metric with its weights, as it scores the items of each direction.
        """
        gaps, targets = self.both.gaps(self.aligned, by_direction), [target for _, target in DIRECTIONS.values()]
        shares = [self.shares[target] for target in targets]
        if self.reference is not None:
            shares = self._affordable(self.reference, by_direction, gaps)
        own = {target: round(share * gap, 9) for target, share, gap in zip(targets, shares, gaps, strict=True)}
        return {modality: own[modality] for modality in MODALITIES} if any(own.values()) else {}

    def _affordable(self, reference: Metric, by_direction: Sequence[Metric], gaps: Sequence[float]) -> list[float]:
        """Return the largest share of each direction, up to the chosen one, that costs seen items no more than that."""
        references = [reference] * len(DIRECTIONS)
        scored = [
            self.both.scores(self.projections, self.aligned, metrics, seed=self.seed)
            for metrics in (references, by_direction)
        ]
        own_gaps = self.both.gaps(self.aligned, references)
        shares = []
        for (_, target), *scores, own_gap, gap in zip(DIRECTIONS.values(), *scored, own_gaps, gaps, strict=True):
            tried = np.array([share for share in SHARES if share < self.shares[target]] + [self.shares[target]])
            under_reference, under_metric = (
                _costs(score, each * tried) for score, each in zip(scores, (own_gap, gap), strict=True)
            )
            slack = ROUNDED / scores[0].recall(tried[:1]).queries[0]
            affordable = tried <= tried[under_reference <= COST + slack].max()
            most = max(COST, under_reference[affordable].max())
            shares.append(float(tried[affordable & (under_metric <= most)].max()))
        return shares


def left_out_sample(parts: Folds, seed: int) -> SeenUnseen:
    """Return some of the groups that are left out, and some of the others."""
    data, left_out = parts.data, parts.left_out
    return SeenUnseen.sampled(data.without(left_out), data.only(left_out), seed)


def _costs(scores: DirectionScores, offsets: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the Recall@10 that seen items lose to each of the offsets (o,), the first of which is 0."""
    recall = scores.recall(offsets)
    costs: npt.NDArray[np.float64] = recall.seen[0, -1] - recall.seen[:, -1]
    return costs


def seen_offsets(
    chosen: Candidate,
    known: GroupedEmbeddings,
    projections: Projections,
    fitted: FittedMetrics,
    folds: int,
    device: "torch.device",
    task: FitSpec,
    parts: Folds | None = None,
) -> Offsets:
    """Return the offset of seen items by metric and by the modality of the items; of metrics without any, nothing.

    Args:
        chosen, known, projections, folds, device, task, parts: as for `GapSample.drawn`.
        fitted: the metrics to have offsets, in the space of `projections`.
    """
    sample = GapSample.drawn(chosen, known, projections, folds, device, task, parts)
    if sample is None:
        return {}
    offsets = {str(metric): sample.offsets(fitted.by_direction(metric)) for metric in fitted.metrics}
    return {metric: own for metric, own in offsets.items() if own}


def _as_if_unseen(both: SeenUnseen, projections: Projections, other: Projections) -> GroupedEmbeddings:
    """Align seen groups by `projections`, and unseen ones by `other`, which is rotated into the space of the first."""
    ours, theirs = both.data.project(projections), both.data.project(other)
    is_unseen = [np.isin(side.groups, both.unseen) for side in (ours.image, ours.text)]
    rows = [
        (one.vectors[~mask], two.vectors[~mask])
        for one, two, mask in zip((ours.image, ours.text), (theirs.image, theirs.text), is_unseen, strict=True)
    ]
    rotation = rotation_between(
        *(np.concatenate(side) for side in zip(*((two, one) for one, two in rows), strict=True))
    )
    image, text = (
        ModalityEmbeddings(np.where(mask[:, None], l2_normalize(two.vectors @ rotation), one.vectors), one.groups)
        for one, two, mask in zip((ours.image, ours.text), (theirs.image, theirs.text), is_unseen, strict=True)
    )
    return GroupedEmbeddings(image, text)


def rotation_between(one: FloatArray, other: FloatArray) -> FloatArray:
    """Return the rotation (d, e) that brings rows (n, d) nearest to rows (n, e); rows that are not finite are left out.

    Where d and e differ, directions without a counterpart are lost.
    """
    sound = np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1)
    left, _, right = np.linalg.svd(one[sound].T.astype(np.float64) @ other[sound], full_matrices=False)
    rotation: FloatArray = (left @ right).astype(np.float32)
    return rotation
