"""Lowerings: the vectors that Qdrant stores and is queried with to find a metric's best items."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np

from alignment.distance import Distance
from alignment.metrics.arrays import Array, Scores, array_namespace

# How far, at most, each addition of float32 rounds, relative to the sum: sums of d terms may be wrong by d times that.
FLOAT32_ROUNDS = 2.0**-24
# Columns that one number beside a vector is spread over.
SPREAD = 16


class Guarantee(StrEnum):
    """What a lowering guarantees about the order in which Qdrant returns items.

    Exact: it is the metric's own order. The others fetch more candidates and rescore them. Certified: a bound proves,
    usually after few candidates, that no better item is left. Bounded: there is such a bound, and often it proves
    nothing within the candidates fetched. Measured: there is no bound; audits measure the loss.
    """

    EXACT = "exact"
    CERTIFIED = "certified"
    BOUNDED = "bounded"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Lowering:
    """A metric whose order Qdrant can compute itself.

    As it stands, this is the lowering of the metrics that Qdrant knows: vectors are stored and queried as they are.
    `item`, `query` and `offset` take tensors too, for exported graphs. A row that they refuse in an array is NaN in a
    tensor. They must not use `len(X)`, which a graph would hold as a constant; `X.shape[0]` is fine.

    Attributes:
        distance: the native distance of the collection.
        dim: dimension of a stored vector.
        version: raised when `item`, `query` or `offset` change, so that older releases are recognised and refused.
        marks_seen: whether an item has a last coordinate that queries lack, 1 if the fit saw it and 0 if not; see
            `alignment.metrics.seen_offset`.
    """

    distance: Distance
    dim: int
    version: int = 1
    marks_seen: ClassVar[bool] = False

    @property
    def guarantee(self) -> Guarantee:
        """What it guarantees about the order in which Qdrant returns items."""
        return Guarantee.EXACT

    @property
    def offset_of_seen(self) -> float:
        """What is taken off the scores of items that the fit saw; of their squares, where `squares_offset`."""
        return 0.0

    @property
    def candidates_without_offset(self) -> bool:
        """Whether candidates are found without that offset, so that only rescoring takes it off."""
        return False

    @property
    def squares_offset(self) -> bool:
        """Whether an offset for seen items is taken off minus the squared distance: Euclid can carry no other."""
        return self.guarantee is Guarantee.EXACT and self.distance is Distance.EUCLID

    @property
    def magnitude(self) -> float:
        """Of the numbers that a score is made of, where it may itself be smaller than what they round to."""
        return 0.0

    def item_dim(self, dim: int) -> int:
        """Coordinates of an item beside queries of dimension `dim`: one more where items say whether they were seen."""
        return dim + self.marks_seen

    def item(self, X: Array) -> Array:
        """Turn aligned vectors (n, `item_dim`) into the vectors to store (n, dim), float32."""
        return X

    def query(self, X: Array) -> Array:
        """Turn aligned vectors (n, d) into the vectors to query with (n, dim), float32: as `item` does."""
        return self.item(X)

    def offset(self, X: Array) -> Array | None:
        """Return what is added to every score of a query, (n,); None: nothing."""
        return None

    def score(self, raw: float, offset: float = 0.0) -> float:
        """Turn Qdrant's raw score into the score that items rank by, where higher is always better."""
        return (raw if self.distance.higher_is_better else -raw) + offset

    def taken_off(self, score: float, *, seen: bool) -> float:
        """Return what was taken off the metric's own score, at least 0, of an item that ranks by `score`.

        0 but for items that the fit saw, where the alignment has an offset for them.
        """
        return 0.0

    def sizes(self, vectors: Array) -> Scores:
        """Return the lengths (n,) of vectors of `item` or `query`, in the norm of the distance that compares them."""
        sizes: Scores = np.linalg.norm(vectors, ord=1 if self.distance is Distance.MANHATTAN else 2, axis=1)
        return sizes

    def floors(self, scores: Scores, queries: Scores, items: Scores) -> Scores:
        """Return the lowest scores that may equal `scores` but for rounding, of queries and items of these `sizes`.

        Sums cancel: the rounding error of their terms may exceed the score itself.
        """
        sizes = {Distance.COSINE: np.ones(1), Distance.DOT: queries * items}.get(self.distance, queries + items)
        lowest: Scores = np.minimum(self.tied(scores), scores - 1e-6 * sizes)
        return lowest

    def tied(self, scores: Scores | float) -> Scores:
        """Return the lowest scores that are as good as `scores`, as far as float32 can tell."""
        lowest: Scores = scores - 1e-6 * np.maximum(self.magnitude, np.abs(scores))
        return lowest


def with_column(X: Array, column: Array) -> Array:
    """Put a `column` (n,) beside vectors (n, d), spread evenly: (n, d + SPREAD) float32.

    Between two results, products of the columns add up to what they were: `<[X, a], [Y, b]> = <X, Y> + a b`. In one
    column a number would dwarf the coordinates beside it, and quantization, which has one scale for all, would lose
    those.

    >>> with_column(np.zeros((1, 1)), np.array([3.0])) @ with_column(np.zeros((1, 1)), np.array([2.0])).T
    array([[6.]], dtype=float32)
    """
    xp = array_namespace(X)
    spread: Any = xp.astype(column / SPREAD**0.5, xp.float32)[:, None]
    return xp.concat([xp.astype(X, xp.float32), *[spread] * SPREAD], axis=1)
