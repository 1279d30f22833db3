"""Calibrated stacking: a constant taken off the scores of items that the fit saw, so that new items are found too.

Chao, Changpinyo, Gong and Sha, ECCV 2016. The fit puts seen items on their own partners, and there they crowd out items
that came later. Whether an item was seen is its last coordinate: 1 or 0. Queries have no such coordinate.

score of the metric            with the offset o of a seen item     Qdrant compares
s, lowered to Dot or Cosine    s - o                                Dot, one more column
-d, lowered to Manhattan       -(d + o)                             Manhattan, one more column
-d, lowered to Euclid          -sqrt(d^2 + o)                       Euclid, one more column
s, rescored                    s - o                                candidates with one more column, then rescored
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from typing_extensions import override

from alignment.errors import MetricError
from alignment.metrics.arrays import Array, Scores
from alignment.metrics.lowering import Distance, Guarantee, Lowering
from alignment.metrics.metric import Metric


def is_squared(metric: Metric, dim: int) -> bool:
    """Whether the offset is taken off minus the squared distance, because Euclid can carry no other."""
    lowering = metric.lower(dim)
    return lowering.guarantee is Guarantee.EXACT and lowering.distance is Distance.EUCLID


@dataclass(frozen=True, slots=True)
class SeenOffset(Metric):
    """A metric whose scores of seen items are lower by an offset.

    It prints as `base`: the offset belongs to the alignment, and a release keeps the name of its metric.

    Attributes:
        base: a metric with its weights.
        offset: at least 0, in the unit of its scores; of squared distances where it lowers exactly to Euclid.
    """

    base: Metric
    offset: float
    name: ClassVar[str] = "seen-offset"

    def __post_init__(self) -> None:
        if isinstance(self.base, SeenOffset) or not 0 <= self.offset < np.inf:
            raise MetricError(f"expected an offset of at least 0 for {self.base}, got {self.offset}")

    def __str__(self) -> str:
        return str(self.base)

    @override
    def floats_per_pair(self, dim: int) -> int:
        return self.base.floats_per_pair(dim)

    @override
    def score(self, queries: Array, items: Array) -> Array:
        """Compare queries (n, d) with items (m, d + 1), whose last coordinate is 1 if seen and 0 if not: (n, m)."""
        own = self.base.score(queries, items[:, :-1])
        taken = self.offset * items[None, :, -1]
        if is_squared(self.base, queries.shape[1]):
            return -(array_namespace(own).sqrt(own**2 + taken))
        return own - taken

    @override
    def lower(self, dim: int) -> Lowering:
        raise NotImplementedError


def with_seen(items: Array, seen: Any) -> Array:
    """Put a last coordinate beside the vectors of items (n, d): 1 where `seen` (n,), 0 elsewhere."""
    xp = array_namespace(items)
    return xp.concat([items, xp.asarray(seen, dtype=items.dtype)[:, None]], axis=1)


def own_score(metric: Metric, ranked: Scores, seen: Any) -> Scores:
    """Return the scores of the metric itself, of `ranked` scores with the offset taken off and whether seen."""
    raise NotImplementedError
