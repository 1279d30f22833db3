"""The metrics that Qdrant compares by itself, and one-dimensional transport, which sorting turns into one of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from alignment.metrics.lowering import Distance, Lowering, Scores, Vectors
from alignment.metrics.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cosine(Metric):
    """Cosine similarity, `<q, x> / (|q| |x|)`, in [-1, 1].

    >>> Cosine().score(np.array([[1.0, 0.0]]), np.array([[3.0, 0.0], [0.0, 2.0]]))
    array([[1., 0.]])
    """

    name: ClassVar[str] = "cosine"
    symmetric: ClassVar[bool] = True

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of unnormalised `queries` (n, d) and `items` (m, d)."""
        q = queries / np.linalg.norm(queries, axis=1, keepdims=True)  # (n, d)
        x = items / np.linalg.norm(items, axis=1, keepdims=True)  # (m, d)
        scores: Scores = q @ x.T
        return scores

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors; a zero vector scores 0."""
        from torch.nn.functional import normalize

        return normalize(queries, dim=1) @ normalize(items, dim=1).T

    def lower(self, dim: int) -> Lowering:
        """Native: Qdrant normalises on write and compares by inner product."""
        return Lowering(Distance.COSINE, dim)


@dataclass(frozen=True, slots=True)
class Dot(Metric):
    """Inner product, `<q, x>`, unbounded.

    >>> Dot().score(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]))
    array([[11.]])
    """

    name: ClassVar[str] = "dot"
    symmetric: ClassVar[bool] = True

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        return queries @ items.T

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors."""
        return queries @ items.T

    def lower(self, dim: int) -> Lowering:
        """Native."""
        return Lowering(Distance.DOT, dim)


@dataclass(frozen=True, slots=True)
class Euclid(Metric):
    """Negated Euclidean distance, `-sqrt(sum (q_i - x_i)^2)`, at most 0.

    >>> Euclid().score(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]))
    array([[-5.]])
    """

    name: ClassVar[str] = "euclid"
    symmetric: ClassVar[bool] = True

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        return _negated_distance(queries, items, "euclidean")

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors; the gradient between equal vectors is 0."""
        return _negated_norm(queries, items, 2.0)

    def lower(self, dim: int) -> Lowering:
        """Native."""
        return Lowering(Distance.EUCLID, dim)


@dataclass(frozen=True, slots=True)
class Manhattan(Metric):
    """Negated Manhattan distance, `-sum |q_i - x_i|`, at most 0.

    >>> Manhattan().score(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]))
    array([[-7.]])
    """

    name: ClassVar[str] = "manhattan"
    symmetric: ClassVar[bool] = True

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        return _negated_distance(queries, items, "cityblock")

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors; the gradient between equal coordinates is 0."""
        return _negated_norm(queries, items, 1.0)

    def lower(self, dim: int) -> Lowering:
        """Native."""
        return Lowering(Distance.MANHATTAN, dim)


@dataclass(frozen=True, slots=True)
class Wasserstein1(Metric):
    """Negated one-dimensional Wasserstein-1 distance between the coordinates of two vectors, at most 0.

    The coordinates are taken as samples of equal weight: `-mean |sort(q)_i - sort(x)_i|` (Villani, Topics in Optimal
    Transportation, 2003, theorem 2.18). It sees which values a vector holds, and not where.

    >>> Wasserstein1().score(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 2.0]]))
    array([[-0., -1.]])
    """

    name: ClassVar[str] = "w1"
    symmetric: ClassVar[bool] = True

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        total = _negated_distance(np.sort(queries, axis=1), np.sort(items, axis=1), "cityblock")
        scores: Scores = total / queries.shape[1]
        return scores

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors."""
        return _negated_norm(queries.sort(dim=1).values, items.sort(dim=1).values, 1.0) / queries.shape[1]

    def lower(self, dim: int) -> Lowering:
        """Sorted coordinates over their number, Manhattan."""
        return SortedLowering(Distance.MANHATTAN, dim)


@dataclass(frozen=True, slots=True)
class SortedLowering(Lowering):
    """Stores and asks with sorted coordinates, divided by their number."""

    def item(self, X: Vectors) -> Vectors:
        """(n, d), ascending."""
        ordered: Vectors = np.sort(X, axis=1) / np.float32(self.dim)
        return ordered

    def query(self, X: Vectors) -> Vectors:
        """(n, d), ascending."""
        return self.item(X)

    def item_tensor(self, X: "Tensor") -> "Tensor":
        """(n, d), ascending."""
        return X.sort(dim=1).values / self.dim

    def query_tensor(self, X: "Tensor") -> "Tensor":
        """(n, d), ascending."""
        return self.item_tensor(X)


def _negated_distance(queries: Vectors, items: Vectors, distance: str) -> Scores:
    from scipy.spatial.distance import cdist  # here, because scipy takes as long to import as all of `--help`

    dtype = np.result_type(queries, items)
    distances: Scores = cdist(queries.astype(np.float64), items.astype(np.float64), distance)
    return -distances.astype(dtype)


def _negated_norm(queries: "Tensor", items: "Tensor", p: float) -> "Tensor":
    from torch import cdist

    # Through a matrix product, equal vectors would come out apart, and with an infinite gradient.
    return -cdist(queries, items, p=p, compute_mode="donot_use_mm_for_euclid_dist")
