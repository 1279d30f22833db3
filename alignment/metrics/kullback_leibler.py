"""Kullback-Leibler divergences, one a direction."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from alignment.metrics.divergences import Divergence
from alignment.metrics.lowering import SPREAD, Distance, Lowering, Scores, Vectors, with_column, with_column_tensor
from alignment.metrics.metric import refuse

if TYPE_CHECKING:
    from torch import Tensor


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

    def relative(self, X: Vectors) -> Vectors:
        """Smoothed distributions as multiples of the uniform one, D p: (n, D), each has mean 1."""
        relative: Vectors = self._smoothed(self.distributions(X))
        return relative

    def relative_densities(self, X: "Tensor") -> "Tensor":
        """The same from tensors; what cannot be mapped counts as empty."""
        relative: Tensor = self._smoothed(self.densities(X))
        return relative

    def relative_tensor(self, X: "Tensor") -> "Tensor":
        """The same from tensors none of which is zero, in float64; what `relative` refuses becomes NaN."""
        relative: Tensor = self._smoothed(self.distributions_tensor(X))
        return relative

    def _smoothed(self, P: Any) -> Any:
        return (1 - self.smoothing) * P.shape[1] * P + self.smoothing

    @abstractmethod
    def lower(self, dim: int) -> Lowering:
        """Dot."""


@dataclass(frozen=True, slots=True)
class KullbackQueryItem(Kullback):
    """Negated Kullback-Leibler divergence of the item from the query, `-KL(query || item) = -sum q_i ln(q_i / x_i)`.

    In nats, at most 0, of smoothed distributions (Kullback and Leibler 1951).

    >>> round(float(KullbackQueryItem(smoothing=0.5).score(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))[0, 0]), 4)
    -0.8047
    """

    name: ClassVar[str] = "kl-query-item"

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        q, x = self.relative(queries), self.relative(items)
        scores: Scores = (q @ np.log(x).T - (q * np.log(q)).sum(axis=1)[:, None]) / q.shape[1]
        return scores

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors."""
        q, x = self.relative_densities(queries), self.relative_densities(items)
        return (q @ x.log().T - (q * q.log()).sum(dim=1, keepdim=True)) / q.shape[1]

    def lower(self, dim: int) -> Lowering:
        """Item `ln x`, query `q`, Dot; the query's own entropy is added to the score."""
        return QueryItemLowering(Distance.DOT, self.width(dim), version=2, metric=self)


@dataclass(frozen=True, slots=True)
class QueryItemLowering(Lowering):
    """`-KL(q || x) = <q, ln x> - sum q ln q`, relative to the uniform distribution, which keeps numbers small.

    Items and queries are scaled alike, because quantization has one scale for both. A constant `c` is taken from the
    logarithms of all items, which changes no order. Under the map `split` half the coordinates are empty in every
    item; around their middle items point in all directions, and a walk along the graph finds more.
    """

    metric: Kullback = KullbackQueryItem()

    @property
    def middle(self) -> float:
        """`c`: halfway between the logarithms of an empty coordinate and of an average one."""
        return float(np.log(self.metric.smoothing)) / 2 if self.metric.map == "split" else 0.0

    def item(self, X: Vectors) -> Vectors:
        """`(ln(D x) - c) / sqrt(D)`, (n, D)."""
        R = self.metric.relative(X.astype(np.float64))
        stored: Vectors = ((np.log(R) - self.middle) / np.sqrt(R.shape[1])).astype(np.float32)
        return stored

    def query(self, X: Vectors) -> Vectors:
        """`sqrt(D) q`, (n, D)."""
        R = self.metric.relative(X.astype(np.float64))
        asked: Vectors = (R / np.sqrt(R.shape[1])).astype(np.float32)
        return asked

    def offset(self, X: Vectors) -> Scores:
        """`c - sum q ln(D q)`, (n,)."""
        R = self.metric.relative(X.astype(np.float64))
        offset: Scores = self.middle - (R * np.log(R)).mean(axis=1)
        return offset

    def item_tensor(self, X: "Tensor") -> "Tensor":
        """(n, D)."""
        R = self.metric.relative_tensor(X)
        stored: Tensor = (R.log() - self.middle) / self.dim**0.5
        return stored.float()

    def query_tensor(self, X: "Tensor") -> "Tensor":
        """(n, D)."""
        asked: Tensor = self.metric.relative_tensor(X) / self.dim**0.5
        return asked.float()

    def offset_tensor(self, X: "Tensor") -> "Tensor":
        """(n,)."""
        R = self.metric.relative_tensor(X)
        offset: Tensor = self.middle - (R * R.log()).mean(dim=1)
        return offset.float()


@dataclass(frozen=True, slots=True)
class KullbackItemQuery(Kullback):
    """Negated Kullback-Leibler divergence of the query from the item, `-KL(item || query) = -sum x_i ln(x_i / q_i)`.

    In nats, at most 0, of smoothed distributions (Kullback and Leibler 1951).

    >>> round(float(KullbackItemQuery(smoothing=0.5).score(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))[0, 0]), 4)
    -0.8047
    """

    name: ClassVar[str] = "kl-item-query"

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        q, x = self.relative(queries), self.relative(items)
        scores: Scores = (np.log(q) @ x.T - (x * np.log(x)).sum(axis=1)) / q.shape[1]
        return scores

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors."""
        q, x = self.relative_densities(queries), self.relative_densities(items)
        return (q.log() @ x.T - (x * x.log()).sum(dim=1)) / q.shape[1]

    def lower(self, dim: int) -> Lowering:
        """Item `[x - u, -sum x ln x]`, query `[ln q, 1]` with u uniform, Dot; a constant of the query is added."""
        return ItemQueryLowering(Distance.DOT, self.width(dim) + 2 * SPREAD, version=2, metric=self)


# Squared length of a stored item. Of distributions with more peaks than this has room for only the graph suffers.
SQUARED_LENGTH = 8.0


@dataclass(frozen=True, slots=True)
class ItemQueryLowering(Lowering):
    """`-KL(x || q) = <x, ln q> - sum x ln x`, relative to the uniform distribution u.

    Qdrant links items by their products with each other, and those of items with peaks are the largest, though queries
    want items without. So another column brings all items to one length, where the largest products are those of the
    nearest items; queries are 0 there (the reduction of Bachrach et al. 2014).
    """

    metric: Kullback = KullbackItemQuery()

    def item(self, X: Vectors) -> Vectors:
        """`[sqrt(D) x - 1 / sqrt(D), -sum x ln(D x), what is left of the length]`, (n, D + 2 SPREAD)."""
        R = self.metric.relative(X.astype(np.float64))
        scored = with_column((R - 1) / np.sqrt(R.shape[1]), -(R * np.log(R)).mean(axis=1))
        left = SQUARED_LENGTH - (scored.astype(np.float64) ** 2).sum(axis=1)
        return with_column(scored, np.sqrt(np.maximum(left, 0)))

    def query(self, X: Vectors) -> Vectors:
        """`[ln(D q) / sqrt(D), 1, 0]`, (n, D + 2 SPREAD)."""
        L = np.log(self.metric.relative(X.astype(np.float64)))
        scored = with_column(L / np.sqrt(L.shape[1]), np.ones(len(L)))
        return with_column(scored, np.zeros(len(L)))

    def offset(self, X: Vectors) -> Scores:
        """`sum ln(D q) / D`, (n,)."""
        offset: Scores = np.log(self.metric.relative(X.astype(np.float64))).mean(axis=1)
        return offset

    def item_tensor(self, X: "Tensor") -> "Tensor":
        """(n, D + 2 SPREAD)."""
        R = self.metric.relative_tensor(X)
        scored = with_column_tensor((R - 1) / R.shape[1] ** 0.5, -(R * R.log()).mean(dim=1))
        left = SQUARED_LENGTH - scored.double().square().sum(dim=1)
        return with_column_tensor(scored, left.clamp(min=0).sqrt())

    def query_tensor(self, X: "Tensor") -> "Tensor":
        """(n, D + 2 SPREAD)."""
        L = self.metric.relative_tensor(X).log()
        scored = with_column_tensor(L / L.shape[1] ** 0.5, L.new_ones(L.shape[0]))
        return with_column_tensor(scored, L.new_zeros(L.shape[0]))

    def offset_tensor(self, X: "Tensor") -> "Tensor":
        """(n,)."""
        return self.metric.relative_tensor(X).log().mean(dim=1).float()
