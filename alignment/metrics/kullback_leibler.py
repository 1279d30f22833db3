"""Kullback-Leibler divergences, one a direction."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from alignment.distance import Distance
from alignment.metrics.arrays import Array, array_namespace, in_float64
from alignment.metrics.divergences import Divergence
from alignment.metrics.lowering import SPREAD, Lowering, with_column
from alignment.metrics.metric import refuse


@dataclass(frozen=True, slots=True)
class Kullback(Divergence):
    """What both directions of the Kullback-Leibler divergence share.

    Attributes:
        smoothing: share of the uniform distribution that every distribution is mixed with, from 1e-6 to below 1:
            without it one empty coordinate makes the divergence infinite.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        Divergence.__post_init__(self)
        if not 1e-6 <= self.smoothing < 1:
            raise refuse(self, "smoothing", "of at least 1e-6 and below 1")

    def relative(self, X: Array) -> Array:
        """Smoothed distributions as multiples of the uniform one, D p: (n, D), each has mean 1."""
        P = self.distributions(X)
        return (1 - self.smoothing) * P.shape[1] * P + self.smoothing

    def relative_or_nan(self, X: Array) -> Array:
        """`relative` in float64, as lowerings need it; of a tensor, a row that has no distribution is NaN."""
        P = self.distributions_or_nan(X)
        return (1 - self.smoothing) * P.shape[1] * P + self.smoothing

    @abstractmethod
    @override
    def lower(self, dim: int) -> Lowering: ...


@dataclass(frozen=True, slots=True)
class KullbackQueryItem(Kullback):
    """Negated Kullback-Leibler divergence of the item from the query, `-KL(query || item) = -sum q_i ln(q_i / x_i)`.

    In nats, at most 0, of smoothed distributions (Kullback and Leibler 1951).

    >>> round(float(KullbackQueryItem(smoothing=0.5).score(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))[0, 0]), 4)
    -0.8047
    """

    name: ClassVar[str] = "kl-query-item"

    @override
    def score(self, queries: Array, items: Array) -> Array:
        xp = array_namespace(queries)
        q, x = self.relative(queries), self.relative(items)
        return (q @ xp.log(x).T - xp.sum(q * xp.log(q), axis=1)[:, None]) / q.shape[1]

    @override
    def lower(self, dim: int) -> Lowering:
        return QueryItemLowering(Distance.DOT, self.width(dim), version=2, metric=self)


@dataclass(frozen=True, slots=True)
class QueryItemLowering(Lowering):
    """`-KL(q || x) = <q, ln x> - sum q ln q`, relative to the uniform distribution, which keeps numbers small.

    Items and queries are scaled alike, because quantization has one scale for both. A constant `c` is taken from the
    logarithms of all items, which changes no order. Under the map `split` half the coordinates are empty in every
    item; around their middle items point in all directions, and an HNSW search finds more.
    """

    metric: Kullback = KullbackQueryItem()

    @property
    def middle(self) -> float:
        """`c`: halfway between the logarithms of an empty coordinate and of an average one."""
        return float(np.log(self.metric.smoothing)) / 2 if self.metric.map == "split" else 0.0

    @override
    def item(self, X: Array) -> Array:
        """`(ln(D x) - c) / sqrt(D)`, (n, D)."""
        xp, R = array_namespace(X), self.metric.relative_or_nan(X)
        return xp.astype((xp.log(R) - self.middle) / R.shape[1] ** 0.5, xp.float32)

    @override
    def query(self, X: Array) -> Array:
        """`sqrt(D) q`, (n, D)."""
        xp, R = array_namespace(X), self.metric.relative_or_nan(X)
        return xp.astype(R / R.shape[1] ** 0.5, xp.float32)

    @override
    def offset(self, X: Array) -> Array:
        """`c - sum q ln(D q)`, (n,)."""
        xp, R = array_namespace(X), self.metric.relative_or_nan(X)
        return self.middle - xp.mean(R * xp.log(R), axis=1)


@dataclass(frozen=True, slots=True)
class KullbackItemQuery(Kullback):
    """Negated Kullback-Leibler divergence of the query from the item, `-KL(item || query) = -sum x_i ln(x_i / q_i)`.

    In nats, at most 0, of smoothed distributions (Kullback and Leibler 1951).

    >>> round(float(KullbackItemQuery(smoothing=0.5).score(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))[0, 0]), 4)
    -0.8047
    """

    name: ClassVar[str] = "kl-item-query"

    @override
    def score(self, queries: Array, items: Array) -> Array:
        xp = array_namespace(queries)
        q, x = self.relative(queries), self.relative(items)
        return (xp.log(q) @ x.T - xp.sum(x * xp.log(x), axis=1)) / q.shape[1]

    @override
    def lower(self, dim: int) -> Lowering:
        return ItemQueryLowering(Distance.DOT, self.width(dim) + 2 * SPREAD, version=2, metric=self)


# Squared length of a stored item. An item whose distribution has higher peaks is longer: scores stay exact, and only
# the HNSW graph suffers.
SQUARED_LENGTH = 8.0


@dataclass(frozen=True, slots=True)
class ItemQueryLowering(Lowering):
    """`-KL(x || q) = <x, ln q> - sum x ln x`, relative to the uniform distribution u: an offset of the query is added.

    Qdrant links items by their products with each other, and those of items with peaks are the largest, though queries
    want items without. So another column brings all items to one length, where the largest products are those of the
    nearest items; queries are 0 there (the reduction of Bachrach et al. 2014).
    """

    metric: Kullback = KullbackItemQuery()

    @override
    def item(self, X: Array) -> Array:
        """`[sqrt(D) x - 1 / sqrt(D), -sum x ln(D x), what is left of the length]`, (n, D + 2 SPREAD)."""
        xp, R = array_namespace(X), self.metric.relative_or_nan(X)
        scored = with_column((R - 1) / R.shape[1] ** 0.5, -xp.mean(R * xp.log(R), axis=1))
        left = SQUARED_LENGTH - xp.sum(in_float64(scored) ** 2, axis=1)
        return with_column(scored, xp.sqrt(xp.maximum(left, 0.0)))

    @override
    def query(self, X: Array) -> Array:
        """`[ln(D q) / sqrt(D), 1, 0]`, (n, D + 2 SPREAD)."""
        xp = array_namespace(X)
        L = xp.log(self.metric.relative_or_nan(X))
        scored = with_column(L / L.shape[1] ** 0.5, xp.ones_like(L[:, 0]))
        return with_column(scored, xp.zeros_like(L[:, 0]))

    @override
    def offset(self, X: Array) -> Array:
        """`sum ln(D q) / D`, (n,)."""
        xp = array_namespace(X)
        return xp.mean(xp.log(self.metric.relative_or_nan(X)), axis=1)
