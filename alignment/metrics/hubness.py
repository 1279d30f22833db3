"""Hubness correction as a column of the vectors that a Dot collection holds."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from array_api_compat import is_torch_array
from typing_extensions import override

from alignment.distance import Distance
from alignment.errors import MetricError
from alignment.metrics.arrays import Array, array_namespace, mean_of_largest
from alignment.metrics.learned import missing
from alignment.metrics.lowering import SPREAD, Guarantee, Lowering, with_column
from alignment.metrics.metric import Metric, Weights
from alignment.modality import OTHER, Modality

# Reference queries that an alignment keeps for each modality: enough for a stable mean of the nearest 128.
BANK = 8192
ITEMS_AT_ONCE = 1024
# Raise this when the column itself changes; the version of the lowering beside it is added.
OWN_VERSION = 1


def bank_name(modality: Modality) -> str:
    """Name of the aligned training vectors of a modality among an alignment's weights."""
    return f"nnn/{modality}"


@dataclass(frozen=True, slots=True)
class Nnn(Metric):
    """Nearest-neighbour normalisation (arXiv 2410.24114): `s(q, x) - alpha * mean of the k largest s(r, x)`.

    The reference queries r are training vectors of the modality that the item is not of. An item that is near to many
    queries, a hub, is ranked lower by as much.

    Attributes:
        base: a metric that lowers exactly to Dot.
        k: number of nearest reference queries.
        alpha: share of their mean score that is subtracted.
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

    @override
    def floats_per_pair(self, dim: int) -> int:
        return self.base.floats_per_pair(dim)

    @staticmethod
    def applies(base: Metric) -> bool:
        """Whether `base` lowers exactly to Dot."""
        lowering = base.lower(2)
        return (lowering.distance, lowering.guarantee) == (Distance.DOT, Guarantee.EXACT) and not isinstance(base, Nnn)

    @override
    def bind(self, weights: Weights, items: Modality, device: str = "auto") -> Self:
        bank = weights.get(bank_name(OTHER[items]))
        if bank is None:
            raise missing(self)
        if len(bank) < self.k:
            raise MetricError(f"metric {self}: the alignment holds {len(bank)} reference queries, choose a lower k")
        return replace(self, base=self.base.bind(weights, items, device), bank=bank)

    def bias(self, items: Array) -> Array:
        """`alpha * mean of the k largest s(r, x)`, (m,)."""
        if self.bank is None:
            raise missing(self)
        xp = array_namespace(items)
        bank = xp.asarray(self.bank, dtype=items.dtype, device=items.device)
        if is_torch_array(items):  # all at once: an exported graph has no loops
            return self._bias(bank, items)
        starts = range(0, max(1, len(items)), ITEMS_AT_ONCE)
        return np.concatenate([self._bias(bank, items[start : start + ITEMS_AT_ONCE]) for start in starts])

    def _bias(self, bank: Array, items: Array) -> Array:
        return self.alpha * mean_of_largest(self.base.score(bank, items), self.k)

    @override
    def score(self, queries: Array, items: Array) -> Array:
        return self.base.score(queries, items) - self.bias(items)

    @override
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

    @override
    def item(self, X: Array) -> Array:
        """`[item, -bias]`, (n, D + SPREAD)."""
        # A graph computes in float32, as its weights are.
        bias = self.metric.bias(X if is_torch_array(X) else X.astype(np.float64))
        return with_column(self.base.item(X), -bias)

    @override
    def query(self, X: Array) -> Array:
        """`[query, 1]`, (n, D + SPREAD)."""
        return with_column(self.base.query(X), array_namespace(X).ones_like(X[:, 0]))

    @override
    def offset(self, X: Array) -> Array | None:
        return self.base.offset(X)
