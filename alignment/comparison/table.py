"""The table of a comparison: what was fitted on which encoder pair, and what each fit finds under each metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment.comparison.captions import ByWay, CaptionsAlone
from alignment.comparison.learning_curve import Curve
from alignment.comparison.whole_collection import WholeCollection
from alignment.fitting.cross_validation import Candidate
from alignment.geometry.modality_gap import Gap
from alignment.modality import Modality
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.cutoffs import RECALL
from alignment.sets.cards import EncoderCard


@dataclass(frozen=True, slots=True)
class EncoderPair:
    """Two encoders that some of the sets have in common.

    Attributes:
        name: specs of the image and the text encoder.
        sets: fingerprints of the sets that were joined.
        training_pairs: pairs in the training groups.
        left_out: groups that another encoder pair does not have.
        chance: Recall@K of a random order of the held-out items by K, mean of both directions.
        whole_chance: the same in the whole collection.
        captions: what captions alone find in the space of their encoder.
    """

    name: str
    encoders: Mapping[Modality, EncoderCard]
    sets: list[str]
    training_pairs: int
    left_out: int
    chance: dict[str, float]
    whole_chance: dict[str, float]
    captions: CaptionsAlone | None = None


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A fitted method under one metric.

    Attributes:
        recalls: by direction, or `mean` of both, and by name such as `recall@10`; among the test groups alone.
        learn_seconds: what fitting the metric took; 0 where it has nothing to learn.
        query_microseconds: to project and lower one query of a modality, median.
        stored_floats: numbers that are stored for an item.
        guarantee: of the lowering, see `Guarantee`.
        whole: what training and test groups in one collection find, which the advice rests on; None where that would
            have taken too long.
    """

    metric: str
    recalls: dict[str, dict[str, Estimate]]
    learn_seconds: float
    query_microseconds: dict[Modality, float]
    stored_floats: int
    guarantee: str
    whole: WholeCollection | None

    @property
    def query_cost(self) -> float:
        """Microseconds to project and lower a query, mean of both modalities: what a cheaper choice saves."""
        return float(np.mean(list(self.query_microseconds.values())))

    @property
    def recall(self) -> Estimate:
        """Recall@10 among the test groups alone, mean of both directions."""
        return self.recalls["mean"][RECALL]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A method with its chosen hyperparameters, fitted on the training groups of an encoder pair.

    Attributes:
        chosen: how it validated; with fewer folds than were asked for, the budget cut the search short.
        candidates: how many took part.
        choice_seconds, fit_seconds: what the cross-validation with the choice of an offset, and then the fit took.
        multiply_adds: to project one query of a modality.
        dim: of the shared space.
        gap: of the aligned test groups; None of too few.
        by_way: what the queries of `EncoderPair.captions` find by image, by aligned caption and by both, under the
            reference metric; None: they are too few.
    """

    pair: str
    method: str
    chosen: Candidate
    candidates: int
    choice_seconds: float
    fit_seconds: float
    multiply_adds: dict[Modality, int]
    dim: int
    gap: Gap | None
    rows: list[MetricRow]
    by_way: ByWay | None = None

    @property
    def whole(self) -> WholeCollection:
        """The whole collection under the reference metric, which is always measured."""
        whole = self.rows[0].whole
        if whole is None:
            raise AssertionError("the reference metric comes first, and is measured whatever it takes")
        return whole

    def row(self, metric: str) -> MetricRow | None:
        """The row of a metric, if it was run."""
        return next((row for row in self.rows if row.metric == metric), None)


@dataclass(frozen=True, slots=True)
class NotRun:
    """What is missing from the table, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The table and the learning curves.

    Attributes:
        reference: the metric that hyperparameters were chosen and methods are compared under.
        metrics: those that were asked for, and the reference.
        settings: arguments of `compare`.
        training_groups, test_groups: the same for all encoder pairs.
        not_run: requested or default entries that are not in the table, with the reason.
    """

    pairs: list[EncoderPair]
    reference: str
    metrics: list[str]
    settings: dict[str, Any]
    training_groups: int
    test_groups: int
    fitted: list[Fitted]
    curves: list[Curve]
    not_run: list[NotRun]
    seconds: float

    def by_pair(self, pair: str) -> list[Fitted]:
        """What was fitted on an encoder pair."""
        return [fitted for fitted in self.fitted if fitted.pair == pair]


def best_validated(fitted: Sequence[Fitted]) -> Fitted:
    """What validated best, of those that were validated on the most folds."""
    return max(fitted, key=lambda fit: (fit.chosen.folds, fit.chosen.score))


def best_on_new_items(fitted: Sequence[Fitted]) -> Fitted:
    """What found new items best in cross-validation: for fits of different encoders.

    Queries about known items are made in the space of the encoder, so what these find compares no encoders.
    """

    def validated(fit: Fitted) -> tuple[int, float]:
        return fit.chosen.folds, float(np.mean([recall.unseen[recall.best, -1] for recall in fit.chosen.whole]))

    return max(fitted, key=validated)
