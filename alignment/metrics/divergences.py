"""Metrics between distributions. Aligned vectors have signs, so how they become distributions is part of the metric.

map        p, over D coordinates that sum to 1
split      [max(z, 0), max(-z, 0)] / |z|_1, with D = 2d: loses nothing of a vector but its length
softmax    exp(z) / sum exp(z), with D = d: nearly flat over unit vectors
l1         z / sum z, with D = d, for vectors that are histograms already: one with a negative value is refused
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from array_api_compat import is_numpy_array
from typing_extensions import override

from alignment.distance import Distance
from alignment.errors import VectorError
from alignment.metrics.arrays import Array, array_namespace, in_float64, negated_distance, pairwise, safe_sqrt
from alignment.metrics.lowering import FLOAT32_ROUNDS, Guarantee, Lowering
from alignment.metrics.metric import Metric, refuse
from alignment.metrics.rescored import Rescored

MAPS = ("split", "softmax", "l1")
# Numbers a coordinate that a comparison of all coordinates of a pair holds, about.
PAIRWISE_COPIES = 8


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

    def distributions(self, X: Array) -> Array:
        """Map vectors (n, d) to distributions (n, D): non-negative, each sums to 1.

        A training step and an exported graph cannot raise: in a tensor, what has no distribution counts as zero.

        Raises:
            VectorError: a vector of an array has no distribution: all zero, or negative under `l1`.
        """
        xp = array_namespace(X)
        if self.map == "softmax":
            E = xp.exp(X - xp.max(X, axis=1, keepdims=True))
        elif self.map == "split":
            E = xp.concat([xp.maximum(X, 0.0), xp.maximum(-X, 0.0)], axis=1)
        else:
            E = xp.maximum(X, 0.0)
        total = xp.sum(E, axis=1, keepdims=True)  # (n, 1)
        if is_numpy_array(X):
            if self.map == "l1":
                self._check_distributions(np.any(X < 0, axis=1), "a negative value")
            self._check_distributions(total[:, 0] <= 0, "no value above zero")  # NaN stays NaN
        return E / xp.where(total == 0, 1.0, total)

    def distributions_or_nan(self, X: Array) -> Array:
        """`distributions` in float64, as lowerings need them; of a tensor, a row that has none is NaN."""
        xp, P = array_namespace(X), self.distributions(in_float64(X))
        return xp.where(xp.any(X < 0, axis=1, keepdims=True), xp.nan, P) if self.map == "l1" else P

    def half_roots(self, X: Array) -> Array:
        """Return `sqrt(p / 2)` of vectors (n, d), between which Euclid is the Hellinger distance: (n, D) float32."""
        xp = array_namespace(X)
        return xp.astype(xp.sqrt(self.distributions_or_nan(X) / 2), xp.float32)

    def _check_distributions(self, bad: npt.NDArray[np.bool_], what: str) -> None:
        if bad.any():
            rows = np.flatnonzero(bad)
            raise VectorError(
                f"metric {self}: expected vectors that the map {self.map} turns into distributions, got {len(rows)} of "
                f"{len(bad)} with {what}, the first is row {rows[0]}; use map=split, which takes any vector but zero"
            )


@dataclass(frozen=True, slots=True)
class Hellinger(Divergence):
    """Negated Hellinger distance, `-sqrt(sum (sqrt p_i - sqrt q_i)^2 / 2)`, in [-1, 0].

    >>> Hellinger().score(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    array([[-0., -1.]])
    """

    name: ClassVar[str] = "hellinger"
    symmetric: ClassVar[bool] = True

    @override
    def score(self, queries: Array, items: Array) -> Array:
        q, x = safe_sqrt(self.distributions(queries)), safe_sqrt(self.distributions(items))
        return negated_distance(q, x, 2) / 2**0.5

    @override
    def lower(self, dim: int) -> Lowering:
        return RootLowering(Distance.EUCLID, self.width(dim), metric=self)


@dataclass(frozen=True, slots=True)
class RootLowering(Lowering):
    """Stores and queries `sqrt(p / 2)`, (n, D), between which Euclid is the Hellinger distance."""

    metric: Divergence = Hellinger()

    @override
    def item(self, X: Array) -> Array:
        return self.metric.half_roots(X)


@dataclass(frozen=True, slots=True)
class ChiSquare(Divergence):
    """Negated chi-square distance, `-sum (p_i - q_i)^2 / (p_i + q_i)`, in [-2, 0]; 0 / 0 counts as 0.

    The symmetric form that histograms are compared by (Puzicha, Hofmann and Buhmann 1997, there with a factor 1/2).

    >>> ChiSquare().score(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])).round(4)
    array([[-0.    , -2.    , -0.6667]])
    """

    name: ClassVar[str] = "chi2"
    symmetric: ClassVar[bool] = True

    @override
    def floats_per_pair(self, dim: int) -> int:
        return PAIRWISE_COPIES * self.width(dim)

    @override
    def score(self, queries: Array, items: Array) -> Array:
        xp = array_namespace(queries)
        # Instead of a mask, which would cost ten times as much.
        tiny = xp.finfo(queries.dtype).smallest_normal
        P, Q = self.distributions(queries), self.distributions(items)
        return pairwise(P, Q, lambda q, x: -xp.sum((q - x) ** 2 / xp.maximum(q + x, tiny), axis=-1))

    @override
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

    @override
    def floats_per_pair(self, dim: int) -> int:
        return PAIRWISE_COPIES * self.width(dim)

    @override
    def score(self, queries: Array, items: Array) -> Array:
        # As entropies, `H(m) - (H(p) + H(q)) / 2`: one logarithm a coordinate of a pair. They cancel, and in float32
        # that would leave noise of 1e-7, more than close vectors are apart.
        xp = array_namespace(queries)
        P, Q = self.distributions(in_float64(queries)), self.distributions(in_float64(items))
        own = _information(P)[:, None] + _information(Q)[None]  # (n, m)
        both = pairwise(P, Q, lambda p, q: _information(p + q))  # of p + q, which sums to 2
        scores = xp.minimum(both / 2 - np.log(2) - own / 2, 0.0)  # rounds to either side
        return xp.astype(scores, xp.result_type(queries, items))

    @override
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

    @override
    def item(self, X: Array) -> Array:
        """`sqrt(p / 2)`, (n, D)."""
        assert isinstance(self.metric, Divergence)
        return self.metric.half_roots(X)

    @override
    def bound(self, tail: float) -> float:
        """What an item at distance `tail` scores at best, with more than float32 rounds to spare."""
        nearest = max(0.0, tail * (1 - 1e-5 - self.dim * FLOAT32_ROUNDS) - 1e-6)
        return -self.least * nearest**2

    @override
    def column_of(self, offset: float) -> float:
        """As `least * H^2` bounds the divergence, `least` times what is taken off here is `offset`."""
        return offset / self.least


def _information(P: Array) -> Array:
    """`sum p ln p` along the last axis, where 0 ln 0 is 0."""
    xp = array_namespace(P)
    # Instead of a mask, which would cost ten times as much.
    return xp.sum(P * xp.log(xp.maximum(P, xp.finfo(P.dtype).smallest_normal)), axis=-1)
