"""Calibrated stacking: a constant taken off the scores of items that the fit saw, so that new items are found too.

Chao, Changpinyo, Gong and Sha, ECCV 2016. The fit puts seen items on their own partners, and there they crowd out items
that came later. Whether an item was seen is its last coordinate: 1 or 0. Queries have no such coordinate.

score of the metric            with the offset o of a seen item     Qdrant compares
s, lowered to Dot or Cosine    s - o                                Dot, a further number -o beside 1 of the query
-d, lowered to Manhattan       -(d + o)                             Manhattan, a further number o beside 0
-d, lowered to Euclid          -sqrt(d^2 + o)                       Euclid, a further number sqrt(o) beside 0
s, rescored                    s - o                                candidates with such a number, then rescored

The number is spread over several columns, see `with_column`. Qdrant links items by what it compares them by: Euclid and
Manhattan hold seen and unseen items apart there, as queries want them, and Dot would not. So numbers stand in its
columns too that add up to nothing beside those of a query, and hold the items apart as Euclid does. Measured over
15,000 vectors, three quarters of them seen, with an offset of .15 and `hnsw_ef` 32: HNSW finds .82 of the exact first
ten without them and .92 with them, as under Euclid.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from alignment.distance import Distance
from alignment.errors import MetricError
from alignment.metrics.arrays import Array, array_namespace, safe_sqrt
from alignment.metrics.lowering import FLOAT32_ROUNDS, SPREAD, Guarantee, Lowering, with_column
from alignment.metrics.metric import Metric
from alignment.metrics.native import normalized
from alignment.metrics.rescored import Rescored

# Raise this when the columns themselves change; the version of the lowering before them is added.
OWN_VERSION = 1
# Beside a larger offset, float32 would round too much of a score away.
LARGEST = 10_000.0


def is_squared(metric: Metric, dim: int) -> bool:
    """Whether the offset is taken off minus the squared distance, because Euclid can carry no other."""
    return metric.lower(dim).squares_offset


def carries(metric: Metric) -> bool:
    """Whether an offset can be taken off the scores of `metric`: it rescores, or they are Qdrant's but for the sign."""
    lowering = metric.lower(2)
    return isinstance(lowering, Rescored) or type(lowering).score is Lowering.score


@dataclass(frozen=True, slots=True)
class SeenOffset(Metric):
    """A metric whose scores of seen items are lower by an offset.

    It prints as `base`: the offset belongs to the alignment, and a release keeps the name of its metric.

    >>> import numpy as np
    >>> from alignment.metrics import Dot
    >>> SeenOffset(Dot(), 0.25).score(np.array([[1.0, 0.0]]), np.array([[0.5, 0.0, 1.0], [0.5, 0.0, 0.0]]))
    array([[0.25, 0.5 ]])

    Attributes:
        base: a metric with its weights.
        offset: at least 0, in the unit of its scores; of squared distances where it lowers exactly to Euclid.
    """

    base: Metric
    offset: float
    name: ClassVar[str] = "seen-offset"

    def __post_init__(self) -> None:
        if isinstance(self.base, SeenOffset) or not carries(self.base):
            raise MetricError(
                f"metric {self.base} cannot carry an offset for seen items: its scores are not those of Qdrant, and it "
                "rescores none; fit with --seen-offset 0"
            )
        if not 0 <= self.offset <= LARGEST:
            raise MetricError(
                f"metric {self.base}: expected an offset for seen items from 0 to {LARGEST:g}, got {self.offset}"
            )

    def __str__(self) -> str:
        return str(self.base)

    @override
    def floats_per_pair(self, dim: int) -> int:
        return self.base.floats_per_pair(dim)

    @override
    def score(self, queries: Array, items: Array) -> Array:
        """Compare queries (n, d) with items (m, d + 1), whose last coordinate is 1 if seen and 0 if not: (n, m).

        Raises:
            MetricError: items have another number of coordinates, such as those without the last one.
        """
        if items.shape[1] != queries.shape[1] + 1:
            raise MetricError(
                f"metric {self} with an offset for seen items: expected items of {queries.shape[1] + 1} coordinates, "
                f"the last of which says whether the fit saw them, got {items.shape[1]}; see `with_seen`"
            )
        own = self.base.score(queries, items[:, :-1])
        taken = self.offset * items[None, :, -1]
        return -safe_sqrt(own**2 + taken) if is_squared(self.base, queries.shape[1]) else own - taken

    @override
    def lower(self, dim: int) -> Lowering:
        base = self.base.lower(dim)
        version = base.version + OWN_VERSION - 1
        if isinstance(base, Rescored):
            columns = _Columns(base, self.offset, base.column_of(self.offset))
            return OffsetRescored(columns.distance, columns.dim, version=version, metric=self, columns=columns)
        columns = _Columns(base, self.offset, self.offset)
        return OffsetLowering(columns.distance, columns.dim, version=version, columns=columns)


@dataclass(frozen=True, slots=True)
class _Columns:
    """The vectors of a lowering, and behind them the columns that take an offset off the raw scores of seen items.

    Attributes:
        base: lowers what is compared.
        offset: see `SeenOffset.offset`.
        taken: how much off raw scores, off minus the squared distance under Euclid; None: there are no such columns.
    """

    base: Lowering
    offset: float
    taken: float | None

    @property
    def distance(self) -> Distance:
        """Cosine would normalise the columns away; over unit vectors Dot is the same."""
        turned = self.taken is not None and self.base.distance is Distance.COSINE
        return Distance.DOT if turned else self.base.distance

    @property
    def dim(self) -> int:
        return self.base.dim if self.taken is None else self.base.dim + SPREAD

    def item(self, X: Array) -> Array:
        """Lower items (n, d + 1), the last coordinate of which is 1 of a seen item and 0 of any other."""
        vectors, seen = self.base.item(X[:, :-1]), X[:, -1]
        if self.taken is None:
            return vectors
        if self.distance is Distance.DOT:
            return _apart(self._unit(vectors), seen, self.taken)
        # `with_column` spreads so that squares add up, not numbers.
        number = self.taken**0.5 if self.distance is Distance.EUCLID else self.taken / SPREAD**0.5
        return with_column(vectors, number * seen)

    def query(self, X: Array) -> Array:
        """Lower queries (n, d)."""
        vectors = self.base.query(X)
        if self.taken is None:
            return vectors
        xp = array_namespace(vectors)
        beside = xp.ones_like(vectors[:, 0]) if self.distance is Distance.DOT else xp.zeros_like(vectors[:, 0])
        return with_column(self._unit(vectors), beside)

    def _unit(self, vectors: Array) -> Array:
        return normalized(vectors) if self.base.distance is Distance.COSINE else vectors


def _apart(vectors: Array, seen: Array, taken: float) -> Array:
    """Put the columns of Dot behind vectors (n, d): (n, d + SPREAD) float32.

    Beside a query's, which are equal, they add up to `-taken` of a seen item and 0 of any other. What alternates in
    them makes the product of two items lower by `taken` where only one was seen.
    """
    xp = array_namespace(vectors)
    number = -taken * seen / SPREAD**0.5
    alternating = (taken / 2 / SPREAD) ** 0.5 * (1 - 2 * seen)
    two: list[Any] = [xp.astype(column, xp.float32)[:, None] for column in (number + alternating, number - alternating)]
    return xp.concat([xp.astype(vectors, xp.float32), *two * (SPREAD // 2)], axis=1)


class _WithColumns(Lowering):
    """What lowerings with columns for the offset share, whether Qdrant's order is the metric's or candidates are found.

    Attributes:
        columns: a field of each.
    """

    __slots__ = ()
    columns: _Columns
    marks_seen: ClassVar[bool] = True

    @property
    @override
    def offset_of_seen(self) -> float:
        return self.columns.offset

    @property
    @override
    def magnitude(self) -> float:
        return max(self.columns.base.magnitude, self.offset_of_seen)

    @override
    def item(self, X: Array) -> Array:
        return self.columns.item(X)

    @override
    def query(self, X: Array) -> Array:
        return self.columns.query(X)

    @override
    def offset(self, X: Array) -> Array | None:
        return self.columns.base.offset(X)

    @override
    def taken_off(self, score: float, *, seen: bool) -> float:
        if not seen:
            return 0.0
        if not self.squares_offset:
            return self.offset_of_seen
        own = -(max(0.0, score**2 - self.offset_of_seen) ** 0.5)
        return own - score


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetLowering(_WithColumns):
    """Stores and queries the vectors of an exact lowering, and columns with the offset."""

    columns: _Columns


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetRescored(_WithColumns, Rescored):
    """Finds candidates by the vectors of another lowering and columns with the offset, and rescores them with it."""

    columns: _Columns

    @property
    def _base(self) -> Rescored:
        assert isinstance(self.columns.base, Rescored)
        return self.columns.base

    @property
    @override
    def guarantee(self) -> Guarantee:
        return self._base.guarantee

    @property
    @override
    def candidates_without_offset(self) -> bool:
        return self.columns.taken is None

    @property
    @override
    def page(self) -> int:
        return self._base.page

    @property
    @override
    def budget(self) -> int:
        return self._base.budget

    @override
    def bound(self, tail: float) -> float | None:
        """The bound without the offset, and what float32 rounds beside it.

        An item scores `s - o * seen`, and its raw score is lower by as much as `column_of` says, or not at all.
        """
        own = self._base.bound(tail)
        largest = self.offset_of_seen + self.offset_of_seen**0.5
        return None if own is None else own + self.dim * FLOAT32_ROUNDS * largest


def with_seen(items: Array, seen: Any) -> Array:
    """Put a last coordinate beside the vectors of items (n, d): 1 where `seen` (n,), 0 elsewhere."""
    xp = array_namespace(items)
    return xp.concat([items, xp.asarray(seen, dtype=items.dtype)[:, None]], axis=1)
