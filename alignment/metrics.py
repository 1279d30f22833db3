"""Metrics as values: how two aligned vectors are compared, and how Qdrant is made to compare them that way.

A metric prints as text and parses back, compares and hashes, so it can stand in SQL, in collection metadata and
on the command line. Adding one is one class here: CONTRIBUTING.md has the steps.

    >>> parse("euclid")
    Euclid()
    >>> str(parse("euclid"))
    'euclid'
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from alignment.errors import MetricError

Scores = npt.NDArray[np.floating]
Vectors = npt.NDArray[np.floating]


class Distance(StrEnum):
    """The comparisons that Qdrant indexes natively, by Qdrant's own names."""

    COSINE = "Cosine"
    DOT = "Dot"
    EUCLID = "Euclid"
    MANHATTAN = "Manhattan"

    @property
    def higher_is_better(self) -> bool:
        """Whether Qdrant returns a similarity under this distance; Euclid and Manhattan return distances."""
        return self in (Distance.COSINE, Distance.DOT)


@dataclass(frozen=True, slots=True)
class Lowering:
    """A metric expressed in what Qdrant can index.

    This class is the lowering of the metrics that Qdrant knows: vectors are stored and queried as they are.

    Attributes:
        distance: the native distance of the collection.
        dim: dimension of the stored vectors.
        exact: whether the native order is the metric's own order, ties aside.
        version: raised when `item` or `query` change, so that older releases are recognised and refused.
    """

    distance: Distance
    dim: int
    exact: bool = True
    version: int = 1

    def item(self, X: Vectors) -> Vectors:
        """Turn aligned vectors (n, d) into the vectors to store (n, dim)."""
        return X

    def query(self, X: Vectors) -> Vectors:
        """Turn aligned vectors (n, d) into the vectors to query with (n, dim)."""
        return X

    def score(self, raw: float) -> float:
        """Turn Qdrant's raw score into the metric's own score, where higher is always better."""
        return raw if self.distance.higher_is_better else -raw


@dataclass(frozen=True, slots=True)
class Metric(ABC):
    """How two aligned vectors are compared. Higher is always better: distances are negated."""

    name: ClassVar[str]

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Compare `queries` (n, d) with `items` (m, d): scores (n, m) in the dtype of the input."""

    @abstractmethod
    def lower(self, dim: int) -> Lowering:
        """Express this metric over aligned vectors of dimension `dim` in what Qdrant can index."""


@dataclass(frozen=True, slots=True)
class Cosine(Metric):
    """Cosine similarity, `<q, x> / (|q| |x|)`, in [-1, 1].

    >>> Cosine().score(np.array([[1.0, 0.0]]), np.array([[3.0, 0.0], [0.0, 2.0]]))
    array([[1., 0.]])
    """

    name: ClassVar[str] = "cosine"

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of unnormalised `queries` (n, d) and `items` (m, d)."""
        q = queries / np.linalg.norm(queries, axis=1, keepdims=True)  # (n, d)
        x = items / np.linalg.norm(items, axis=1, keepdims=True)  # (m, d)
        scores: Scores = q @ x.T
        return scores

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

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
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

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        return _negated_distance(queries, items, "euclidean")

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

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        return _negated_distance(queries, items, "cityblock")

    def lower(self, dim: int) -> Lowering:
        """Native."""
        return Lowering(Distance.MANHATTAN, dim)


def _negated_distance(queries: Vectors, items: Vectors, distance: str) -> Scores:
    from scipy.spatial.distance import cdist  # here, because scipy takes as long to import as all of `--help`

    dtype = np.result_type(queries, items)
    distances: Scores = cdist(queries.astype(np.float64), items.astype(np.float64), distance)
    return -distances.astype(dtype)


METRICS: dict[str, Metric] = {metric.name: metric for metric in (Cosine(), Dot(), Euclid(), Manhattan())}


def parse(text: str) -> Metric:
    """Return the metric that prints as `text`.

    Raises:
        MetricError: there is no such metric.
    """
    try:
        return METRICS[text]
    except KeyError:
        raise MetricError(f"unknown metric {text!r}; expected one of {', '.join(METRICS)}") from None
