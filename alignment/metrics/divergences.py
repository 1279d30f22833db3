"""Metrics between distributions. Aligned vectors have signs, so how they become distributions is part of the metric.

map        p, over D coordinates that sum to 1
split      [max(z, 0), max(-z, 0)] / |z|_1, with D = 2d: loses nothing of a vector but its length
softmax    exp(z) / sum exp(z), with D = d: nearly flat over unit vectors
l1         z / sum z, with D = d, for vectors that are histograms already: one with a negative value is refused
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from alignment.errors import VectorError
from alignment.metrics.lowering import (
    FLOAT32_ROUNDS,
    SPREAD,
    Distance,
    Guarantee,
    Lowering,
    Rescored,
    Scores,
    Vectors,
    with_column,
    with_column_tensor,
)
from alignment.metrics.metric import Metric, pairwise, refuse

if TYPE_CHECKING:
    from torch import Tensor

MAPS = ("split", "softmax", "l1")


@dataclass(frozen=True, slots=True)
class Divergence(Metric):
    """A metric between distributions.

    Attributes:
        map: how a vector becomes a distribution: `split`, `softmax` or `l1`.
    """

    map: str = "split"

    def __post_init__(self) -> None:
        if self.map not in MAPS:
            raise refuse(self, "map", f"to be one of {', '.join(MAPS)}")

    def width(self, dim: int) -> int:
        """Number of coordinates of the distributions of vectors of dimension `dim`."""
        return 2 * dim if self.map == "split" else dim

    def distributions(self, X: Vectors) -> Vectors:
        """Map vectors (n, d) to distributions (n, D): non-negative, each sums to 1.

        Raises:
            VectorError: a vector has no distribution: all zero, or negative under `l1`.
        """
        if self.map == "softmax":
            E = np.exp(X - X.max(axis=1, keepdims=True, initial=-np.inf))
        elif self.map == "split":
            E = np.empty((len(X), 2 * X.shape[1]), X.dtype)
            np.maximum(X, 0, out=E[:, : X.shape[1]])
            np.maximum(-X, 0, out=E[:, X.shape[1] :])
        else:
            self._require_distributions(np.asarray((X < 0).any(axis=1)), "a negative value")
            E = X
        total = E.sum(axis=1, keepdims=True)  # (n, 1)
        self._require_distributions(total[:, 0] <= 0, "no value above zero")  # NaN stays NaN
        P: Vectors = np.divide(E, total, out=None if E is X else E)
        return P

    def half_roots(self, X: Vectors) -> Vectors:
        """Return `sqrt(p / 2)` of vectors (n, d), between which Euclid is the Hellinger distance: (n, D) float32."""
        roots: Vectors = np.sqrt(self.distributions(X.astype(np.float64)) / 2).astype(np.float32)
        return roots

    def _require_distributions(self, bad: npt.NDArray[np.bool_], what: str) -> None:
        if bad.any():
            rows = np.flatnonzero(bad)
            raise VectorError(
                f"metric {self}: expected vectors that the map {self.map} turns into distributions, got {len(rows)} of "
                f"{len(bad)} with {what}, the first is row {rows[0]}; use map=split, which takes any vector but zero"
            )

    def densities(self, X: "Tensor") -> "Tensor":
        """Map tensors (n, d) like `distributions`; what cannot be mapped becomes zero instead of an error."""
        if self.map == "softmax":
            return X.softmax(dim=1)
        import torch

        E = torch.cat([X.relu(), (-X).relu()], dim=1) if self.map == "split" else X.relu()
        return E / E.sum(dim=1, keepdim=True).clamp(min=torch.finfo(X.dtype).tiny)

    def distributions_tensor(self, X: "Tensor") -> "Tensor":
        """Map tensors (n, d), none of them zero, like `distributions`, in float64; what that refuses becomes NaN."""
        P = self.densities(X.double())
        return P.masked_fill((X < 0).any(dim=1, keepdim=True), float("nan")) if self.map == "l1" else P

    def half_roots_tensor(self, X: "Tensor") -> "Tensor":
        """`half_roots` of tensors."""
        return (self.distributions_tensor(X) / 2).sqrt().float()


@dataclass(frozen=True, slots=True)
class Hellinger(Divergence):
    """Negated Hellinger distance, `-sqrt(sum (sqrt p_i - sqrt q_i)^2 / 2)`, in [-1, 0].

    >>> Hellinger().score(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    array([[-0., -1.]])
    """

    name: ClassVar[str] = "hellinger"
    symmetric: ClassVar[bool] = True

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        roots = np.sqrt(self.distributions(items))  # (m, D)
        return pairwise(
            np.sqrt(self.distributions(queries)), roots, lambda q, x: -np.sqrt(((q - x) ** 2).sum(axis=1) / 2)
        )

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors; gradients at zero coordinates and between equal vectors are 0."""
        from torch import cdist

        q, x = safe_root(self.densities(queries)), safe_root(self.densities(items))
        return -cdist(q, x, compute_mode="donot_use_mm_for_euclid_dist") / 2**0.5

    def lower(self, dim: int) -> Lowering:
        """`sqrt(p / 2)`, Euclid."""
        return RootLowering(Distance.EUCLID, self.width(dim), metric=self)


@dataclass(frozen=True, slots=True)
class RootLowering(Lowering):
    """Stores and asks with `sqrt(p / 2)`, between which Euclid is the Hellinger distance."""

    metric: Divergence = Hellinger()

    def item(self, X: Vectors) -> Vectors:
        """(n, D)."""
        return self.metric.half_roots(X)

    def query(self, X: Vectors) -> Vectors:
        """(n, D)."""
        return self.metric.half_roots(X)

    def item_tensor(self, X: "Tensor") -> "Tensor":
        """(n, D)."""
        return self.metric.half_roots_tensor(X)

    def query_tensor(self, X: "Tensor") -> "Tensor":
        """(n, D)."""
        return self.metric.half_roots_tensor(X)


@dataclass(frozen=True, slots=True)
class ChiSquare(Divergence):
    """Negated chi-square distance, `-sum (p_i - q_i)^2 / (p_i + q_i)`, in [-2, 0]; 0 / 0 counts as 0.

    The symmetric form that histograms are compared by (Puzicha, Hofmann and Buhmann 1997, there with a factor 1/2).

    >>> ChiSquare().score(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])).round(4)
    array([[-0.    , -2.    , -0.6667]])
    """

    name: ClassVar[str] = "chi2"
    symmetric: ClassVar[bool] = True

    def floats_per_pair(self, dim: int) -> int:
        """All coordinates of a pair stand beside each other."""
        return 8 * self.width(dim)

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""

        def compare(q: Vectors, x: Vectors) -> Scores:
            total = np.maximum(q + x, np.finfo(x.dtype).tiny)  # (c, D); a mask would cost ten times as much
            scores: Scores = -((q - x) ** 2 / total).sum(axis=1)
            return scores

        return pairwise(self.distributions(queries), self.distributions(items), compare)

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors; holds n x m x D numbers."""
        q, x = self.densities(queries)[:, None], self.densities(items)[None]
        total = q + x  # (n, m, D)
        return -((q - x) ** 2 / total.masked_fill(total == 0, 1.0)).sum(dim=2)

    def lower(self, dim: int) -> Lowering:
        """Candidates in the order of the Hellinger distance H: `2 H^2 <= chi2 <= 4 H^2`."""
        return CertifiedLowering(Distance.EUCLID, self.width(dim), metric=self, least=2.0)


@dataclass(frozen=True, slots=True)
class JensenShannon(Divergence):
    """Negated Jensen-Shannon divergence, `-(KL(p, m) + KL(q, m)) / 2` with `m = (p + q) / 2`, in nats: [-ln 2, 0].

    Lin 1991. Its square root is a distance; the order is the same.

    >>> JensenShannon().score(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])).round(4)
    array([[ 0.    , -0.6931]])
    """

    name: ClassVar[str] = "js"
    symmetric: ClassVar[bool] = True

    def floats_per_pair(self, dim: int) -> int:
        """All coordinates of a pair stand beside each other."""
        return 8 * self.width(dim)

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        # As entropies, `H(m) - (H(p) + H(q)) / 2`: one logarithm a coordinate of a pair. They cancel, and in float32
        # that would leave noise of 1e-7, more than close vectors are apart.
        P, Q = (self.distributions(side.astype(np.float64)) for side in (items, queries))
        own = _information(Q)[:, None] + _information(P)[None]  # (n, m)
        both = pairwise(Q, P, lambda q, x: _information(q + x))  # of p + q, which sums to 2
        scores: Scores = np.minimum(both / 2 - np.log(2) - own / 2, 0.0)  # rounds to either side
        return scores.astype(np.result_type(queries, items))

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors; holds n x m x D numbers."""
        q, x = self.densities(queries)[:, None], self.densities(items)[None]
        m = (q + x) / 2  # (n, m, D)

        def relative(p: "Tensor") -> "Tensor":
            present = p > 0
            ratio = (p / m.masked_fill(m == 0, 1.0)).masked_fill(~present, 1.0)
            return (p * ratio.log()).sum(dim=2)

        return -(relative(q) + relative(x)) / 2

    def lower(self, dim: int) -> Lowering:
        """Candidates in the order of the Hellinger distance H: `ln 2 H^2 <= JS <= H^2`."""
        return CertifiedLowering(Distance.EUCLID, self.width(dim), metric=self, least=float(np.log(2)))


@dataclass(frozen=True, slots=True)
class CertifiedLowering(Rescored):
    """Candidates in the order of the Hellinger distance H, and the bound `score <= -least * H^2` on those unseen.

    From `(sqrt p - sqrt q)^2 <= (p - q)^2 / (p + q) <= 2 (sqrt p - sqrt q)^2` for each coordinate, because
    `(sqrt p + sqrt q)^2` lies between p + q and twice that; for Jensen-Shannon, Topsøe 2000 has the like.

    Attributes:
        least: the least ratio of the divergence to H^2.
    """

    least: float = 0.0
    guarantee: ClassVar[Guarantee] = Guarantee.CERTIFIED
    page: ClassVar[int] = 128
    budget: ClassVar[int] = 8192
    magnitude: ClassVar[float] = 0.0

    def item(self, X: Vectors) -> Vectors:
        """`sqrt(p / 2)`, (n, D)."""
        assert isinstance(self.metric, Divergence)
        return self.metric.half_roots(X)

    def query(self, X: Vectors) -> Vectors:
        """`sqrt(q / 2)`, (n, D)."""
        return self.item(X)

    def item_tensor(self, X: "Tensor") -> "Tensor":
        """(n, D)."""
        assert isinstance(self.metric, Divergence)
        return self.metric.half_roots_tensor(X)

    def query_tensor(self, X: "Tensor") -> "Tensor":
        """(n, D)."""
        return self.item_tensor(X)

    def bound(self, tail: float) -> float:
        """What an item at distance `tail` scores at best, with more than float32 rounds to spare."""
        nearest = max(0.0, tail * (1 - 1e-5 - self.dim * FLOAT32_ROUNDS) - 1e-6)
        return -self.least * nearest**2


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


def _information(X: Vectors) -> Vectors:
    """`sum x ln x` by row (n, D), where 0 ln 0 is 0: (n,)."""
    terms = np.maximum(X, np.finfo(X.dtype).tiny)  # instead of a mask, which would cost ten times as much
    np.log(terms, out=terms)
    terms *= X
    information: Vectors = terms.sum(axis=1)
    return information


def safe_root(P: "Tensor") -> "Tensor":
    """Square root with gradient 0, instead of infinite, where P is 0."""
    absent = P == 0
    return P.masked_fill(absent, 1.0).sqrt().masked_fill(absent, 0.0)
