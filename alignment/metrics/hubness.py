"""Hubness correction as a column of the vectors that a Dot collection holds."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from alignment.errors import MetricError
from alignment.metrics.learned import missing
from alignment.metrics.lowering import (
    SPREAD,
    Distance,
    Guarantee,
    Lowering,
    Scores,
    Vectors,
    with_column,
    with_column_tensor,
)
from alignment.metrics.metric import Metric, Weights
from alignment.modality import OTHER, Modality

if TYPE_CHECKING:
    from torch import Tensor
# Reference queries that an alignment keeps for each modality: enough for a stable mean of the nearest 128.
BANK = 8192
ITEMS_AT_ONCE = 1024
# Raised when the column itself changes; the version of what it stands beside counts on top.
OWN_VERSION = 1


def bank_name(modality: Modality) -> str:
    """Name of the aligned training vectors of a modality among an alignment's weights."""
    return f"nnn/{modality}"


@dataclass(frozen=True, slots=True)
class Nnn(Metric):
    """Nearest-neighbour normalisation (arXiv 2410.24114): `s(q, x) - alpha * mean of the k largest s(r, x)`.

    The reference queries r are training vectors of the modality that the item is not of. An item that is near to many
    queries, a hub, is taken back by as much.

    Attributes:
        base: a metric that lowers exactly to Dot.
        k: how many of the nearest reference queries count.
        alpha: how much of their mean is taken off.
        bank: reference queries (r, d); None in a metric that was only parsed.
    """

    base: Metric
    k: int = 128
    alpha: float = 0.75
    bank: Any = field(default=None, compare=False, repr=False)
    name: ClassVar[str] = "nnn"

    def __post_init__(self) -> None:
        if not self.applies(self.base):
            raise MetricError(f"nnn needs a metric that lowers exactly to Dot, and {self.base} does not; try dot+nnn")
        if self.k < 1 or not 0 < self.alpha < np.inf:
            raise MetricError(f"nnn: expected k of at least 1 and alpha above 0, got k={self.k} and alpha={self.alpha}")

    def __str__(self) -> str:
        return f"{self.base}+nnn(k={self.k},alpha={self.alpha})"

    def floats_per_pair(self, dim: int) -> int:
        """As the metric that it stands on."""
        return self.base.floats_per_pair(dim)

    @staticmethod
    def applies(base: Metric) -> bool:
        """Whether `base` lowers exactly to Dot."""
        lowering = base.lower(2)
        return (lowering.distance, lowering.guarantee) == (Distance.DOT, Guarantee.EXACT) and not isinstance(base, Nnn)

    def bind(self, weights: Weights, items: Modality, device: str = "auto") -> Self:
        """Take the reference queries for items of one modality."""
        bank = weights.get(bank_name(OTHER[items]))
        if bank is None:
            raise missing(self)
        if len(bank) < self.k:
            raise MetricError(f"metric {self}: the alignment holds {len(bank)} reference queries, choose a lower k")
        return replace(self, base=self.base.bind(weights, items, device), bank=bank)

    def bias(self, items: Vectors) -> Vectors:
        """`alpha * mean of the k largest s(r, x)`, (m,)."""
        if self.bank is None:
            raise missing(self)
        bias = np.empty(len(items), items.dtype)
        for start in range(0, len(items), ITEMS_AT_ONCE):
            scores = self.base.score(self.bank.astype(items.dtype), items[start : start + ITEMS_AT_ONCE])  # (r, c)
            nearest = np.partition(scores, len(scores) - self.k, axis=0)[len(scores) - self.k :]  # (k, c)
            bias[start : start + ITEMS_AT_ONCE] = self.alpha * nearest.mean(axis=0)
        return bias

    def score(self, queries: Vectors, items: Vectors) -> Scores:
        """Scores (n, m) of `queries` (n, d) and `items` (m, d)."""
        return self.base.score(queries, items) - self.bias(items)

    def similarity(self, queries: "Tensor", items: "Tensor") -> "Tensor":
        """The same from tensors."""
        return self.base.similarity(queries, items) - self.bias_tensor(items)

    def bias_tensor(self, items: "Tensor") -> "Tensor":
        """`bias` of tensors, (m,)."""
        import torch

        if self.bank is None:
            raise missing(self)
        bank = torch.as_tensor(self.bank, dtype=items.dtype, device=items.device)
        return self.alpha * self.base.similarity(bank, items).topk(self.k, dim=0).values.mean(dim=0)

    def lower(self, dim: int) -> Lowering:
        """Item `[x, -bias]`, query `[q, 1]`, Dot."""
        base = self.base.lower(dim)
        return BiasedLowering(
            Distance.DOT, base.dim + SPREAD, version=base.version + OWN_VERSION - 1, metric=self, base=base
        )


@dataclass(frozen=True, slots=True)
class BiasedLowering(Lowering):
    """The vectors of another lowering with one more column."""

    metric: Any = None
    base: Lowering = field(default_factory=lambda: Lowering(Distance.DOT, 1))

    def item(self, X: Vectors) -> Vectors:
        """(n, D + SPREAD)."""
        bias = self.metric.bias(X.astype(np.float64))
        return with_column(self.base.item(X), -bias)

    def query(self, X: Vectors) -> Vectors:
        """(n, D + SPREAD)."""
        return with_column(self.base.query(X), np.ones(len(X)))

    def offset(self, X: Vectors) -> Scores | None:
        """What the other lowering adds."""
        return self.base.offset(X)

    def item_tensor(self, X: "Tensor") -> "Tensor":
        """(n, D + SPREAD)."""
        return with_column_tensor(self.base.item_tensor(X), -self.metric.bias_tensor(X))

    def query_tensor(self, X: "Tensor") -> "Tensor":
        """(n, D + SPREAD)."""
        return with_column_tensor(self.base.query_tensor(X), X.new_ones(X.shape[0]))

    def offset_tensor(self, X: "Tensor") -> "Tensor | None":
        """What the other lowering adds."""
        return self.base.offset_tensor(X)
