"""The metrics that Qdrant compares by itself, and one-dimensional transport, which sorting turns into one of them."""

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from alignment.distance import Distance
from alignment.metrics.arrays import Array, array_namespace, ascending, negated_distance
from alignment.metrics.lowering import Lowering
from alignment.metrics.metric import Metric

# A shorter vector has no direction; as torch.nn.functional.normalize has it.
SHORTEST = 1e-12


@dataclass(frozen=True, slots=True)
class Cosine(Metric):
    """Cosine similarity, `<q, x> / (|q| |x|)`, in [-1, 1]; a zero vector scores 0.

    >>> import numpy as np
    >>> Cosine().score(np.array([[1.0, 0.0]]), np.array([[3.0, 0.0], [0.0, 2.0]]))
    array([[1., 0.]])
    """

    name: ClassVar[str] = "cosine"
    symmetric: ClassVar[bool] = True

    @override
    def score(self, queries: Array, items: Array) -> Array:
        return normalized(queries) @ normalized(items).T

    @override
    def lower(self, dim: int) -> Lowering:
        return Lowering(Distance.COSINE, dim)


@dataclass(frozen=True, slots=True)
class Dot(Metric):
    """Inner product, `<q, x>`, unbounded.

    >>> import numpy as np
    >>> Dot().score(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]))
    array([[11.]])
    """

    name: ClassVar[str] = "dot"
    symmetric: ClassVar[bool] = True

    @override
    def score(self, queries: Array, items: Array) -> Array:
        return queries @ items.T

    @override
    def lower(self, dim: int) -> Lowering:
        return Lowering(Distance.DOT, dim)


@dataclass(frozen=True, slots=True)
class Euclid(Metric):
    """Negated Euclidean distance, `-sqrt(sum (q_i - x_i)^2)`, at most 0.

    >>> import numpy as np
    >>> Euclid().score(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]))
    array([[-5.]])
    """

    name: ClassVar[str] = "euclid"
    symmetric: ClassVar[bool] = True

    @override
    def score(self, queries: Array, items: Array) -> Array:
        return negated_distance(queries, items, 2)

    @override
    def lower(self, dim: int) -> Lowering:
        return Lowering(Distance.EUCLID, dim)


@dataclass(frozen=True, slots=True)
class Manhattan(Metric):
    """Negated Manhattan distance, `-sum |q_i - x_i|`, at most 0.

    >>> import numpy as np
    >>> Manhattan().score(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]))
    array([[-7.]])
    """

    name: ClassVar[str] = "manhattan"
    symmetric: ClassVar[bool] = True

    @override
    def score(self, queries: Array, items: Array) -> Array:
        return negated_distance(queries, items, 1)

    @override
    def lower(self, dim: int) -> Lowering:
        return Lowering(Distance.MANHATTAN, dim)


@dataclass(frozen=True, slots=True)
class Wasserstein1(Metric):
    """Negated one-dimensional Wasserstein-1 distance between the coordinates of two vectors, at most 0.

    The coordinates are taken as samples of equal weight: `-mean |sort(q)_i - sort(x)_i|` (Villani, Topics in Optimal
    Transportation, 2003, theorem 2.18). It sees which values a vector holds, and not where.

    >>> import numpy as np
    >>> Wasserstein1().score(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 2.0]]))
    array([[-0., -1.]])
    """

    name: ClassVar[str] = "w1"
    symmetric: ClassVar[bool] = True

    @override
    def score(self, queries: Array, items: Array) -> Array:
        return negated_distance(ascending(queries), ascending(items), 1) / queries.shape[1]

    @override
    def lower(self, dim: int) -> Lowering:
        return SortedLowering(Distance.MANHATTAN, dim)


@dataclass(frozen=True, slots=True)
class SortedLowering(Lowering):
    """Stores and queries ascending coordinates, divided by their number."""

    @override
    def item(self, X: Array) -> Array:
        return ascending(X) / self.dim


def normalized(X: Array) -> Array:
    """Bring vectors (n, d) to length 1; a zero vector stays one."""
    xp = array_namespace(X)
    return X / xp.maximum(xp.linalg.vector_norm(X, axis=1, keepdims=True), SHORTEST)
