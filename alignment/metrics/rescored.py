"""Lowerings that search candidates in an order that Qdrant knows and rescore them exactly."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from alignment.metrics.arrays import Scores, Vectors
from alignment.metrics.lowering import Lowering

if TYPE_CHECKING:
    from alignment.metrics.metric import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored(Lowering):
    """A lowering that finds candidates; the metric itself, over their aligned vectors, orders them.

    Attributes:
        metric: what orders them.
        page: how many candidates a search fetches at first.
        budget: how many it fetches at most, unless told otherwise.
        magnitude: of the numbers that a score is made of, where it may itself be smaller than what they round to.
    """

    metric: "Metric"
    page: ClassVar[int]
    budget: ClassVar[int]
    magnitude: ClassVar[float] = 1.0

    def bound(self, tail: float) -> float | None:
        """Return a score that no item exceeds whose raw score is no better than `tail`; None: there is no bound."""
        return None

    def rescore(self, query: Vectors, items: Vectors) -> Scores:
        """Score one aligned `query` (d,) against the aligned vectors of its candidates (c, d): (c,)."""
        scores: Scores = self.metric.score(query[None], items)[0]
        return scores
