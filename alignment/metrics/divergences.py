"""Metrics between distributions. Aligned vectors have signs, so how they become distributions is part of the metric.

map        p, over D coordinates that sum to 1
split      [max(z, 0), max(-z, 0)] / |z|_1, with D = 2d: loses nothing of a vector but its length
softmax    exp(z) / sum exp(z), with D = d: nearly flat over unit vectors
l1         z / sum z, with D = d, for vectors that are histograms already: one with a negative value is refused
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from alignment.errors import VectorError
from alignment.metrics.lowering import FLOAT32_ROUNDS, Distance, Guarantee, Lowering, Scores, Vectors
from alignment.metrics.metric import Metric, pairwise, refuse
from alignment.metrics.rescored import Rescored

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
            self._check_distributions(np.asarray((X < 0).any(axis=1)), "a negative value")
            E = X
        total = E.sum(axis=1, keepdims=True)  # (n, 1)
        self._check_distributions(total[:, 0] <= 0, "no value above zero")  # NaN stays NaN
        P: Vectors = np.divide(E, total, out=None if E is X else E)
        return P

    def half_roots(self, X: Vectors) -> Vectors:
        """Return `sqrt(p / 2)` of vectors (n, d), between which Euclid is the Hellinger distance: (n, D) float32."""
        roots: Vectors = np.sqrt(self.distributions(X.astype(np.float64)) / 2).astype(np.float32)
        return roots

    def _check_distributions(self, bad: npt.NDArray[np.bool_], what: str) -> None:
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
