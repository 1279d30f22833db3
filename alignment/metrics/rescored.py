"""Lowerings that search candidates in an order that Qdrant knows and rescore them exactly."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from alignment.metrics.arrays import Array, Scores, Vectors
from alignment.metrics.lowering import Lowering

if TYPE_CHECKING:
    from alignment.metrics.metric import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored(Lowering, ABC):
    """A lowering that finds candidates; the metric itself, over their aligned vectors, orders them.

    Attributes:
        metric: what orders them.
    """

    metric: "Metric"

    @property
    @abstractmethod
    def page(self) -> int:
        """How many candidates a search fetches at first."""

    @property
    @abstractmethod
    def budget(self) -> int:
        """How many candidates a search fetches at most, unless told otherwise."""

    @property
    @override
    def magnitude(self) -> float:
        return 1.0

    @override
    def sizes(self, vectors: Array) -> Scores:
        """Return 0 (n,): no score is made of these vectors."""
        return np.zeros(vectors.shape[0])

    @override
    def floors(self, scores: Scores, queries: Scores, items: Scores) -> Scores:
        return self.tied(scores)

    def bound(self, tail: float) -> float | None:
        """Return a score that no item exceeds whose raw score is no better than `tail`; None: there is no bound."""
        return None

    def column_of(self, offset: float) -> float | None:
        """Return what to take off raw scores of candidates for `bound` to hold of scores that are lower by `offset`.

        Off minus the squared distance under Euclid. None: candidates are found without the offset, and only rescoring
        takes it off.
        """
        return None

    def rescore(self, query: Vectors, items: Vectors) -> Scores:
        """Score one aligned `query` (d,) against the aligned vectors of its candidates (c, d): (c,)."""
        scores: Scores = self.metric.score(query[None], items)[0]
        return scores
