"""The metric as a value, and its printed form.

    name                            cosine
    name(parameter=value,...)       chi2(map=split)
    name+nnn(...)                   dot+nnn(k=64,alpha=0.75)

Every parameter is printed, so that a later default cannot change what a recorded metric means.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

from alignment.errors import MetricError
from alignment.metrics.arrays import Array, Vectors
from alignment.metrics.lowering import Lowering
from alignment.modality import Modality
from alignment.value_kinds import kind_named

Weights = Mapping[str, Vectors]
M = TypeVar("M", bound="Metric")

WORD = r"[a-z][a-z0-9-]*"
ARGUMENTS = re.compile(rf"({WORD})(?:\(([^()]*)\))?")


@dataclass(frozen=True, slots=True)
class Metric(ABC):
    """How two aligned vectors are compared. Higher is always better: distances and divergences are negated.

    The first argument of a metric that is not symmetric is the query, of either modality.
    """

    name: ClassVar[str]
    symmetric: ClassVar[bool] = False  # whether queries and items may change places

    def __str__(self) -> str:
        return self.name + printed(self)

    def floats_per_pair(self, dim: int) -> int:
        """How many numbers `score` holds of tensors for a pair of vectors of dimension `dim`, about."""
        return 1

    @abstractmethod
    def score(self, queries: Array, items: Array) -> Array:
        """Compare `queries` (n, d) with `items` (m, d), arrays or tensors: scores (n, m) in the dtype of the input.

        Of tensors, gradients are finite everywhere, also between equal vectors and at zero coordinates.
        """

    @abstractmethod
    def lower(self, dim: int) -> Lowering:
        """Express this metric over aligned vectors of dimension `dim` in what Qdrant can index."""

    def bind(self, weights: Weights, items: Modality, device: str = "auto") -> Self:
        """Return this metric with its learned weights, ready to score items of one modality.

        Args:
            weights: all weights that an alignment holds for its metrics, by `str(metric)/tensor`.
            items: modality of the items; queries have either.
            device: where a learned metric computes.

        Raises:
            MetricError: it needs weights that are not there.
            WeightsError: they are damaged.
        """
        return self


def printed(metric: Any) -> str:
    """Print the parameters of a metric: `(map=split)`, or nothing where there are none."""
    values = [f"{field.name}={getattr(metric, field.name)}" for field in fields(metric) if field.compare]
    return f"({','.join(values)})" if values else ""


def arguments(text: str) -> tuple[str, dict[str, str]]:
    """Split `name(parameter=value,...)` into its name and its parameters.

    >>> arguments("chi2(map=split)")
    ('chi2', {'map': 'split'})

    Raises:
        ValueError: it cannot be read.
    """
    match = ARGUMENTS.fullmatch(text)
    if match is None:
        raise ValueError(text)
    given: dict[str, str] = {}
    for part in (match[2] or "").split(",") if match[2] else ():
        name, _, value = part.strip().partition("=")
        if not value or name in given:
            raise ValueError(text)
        given[name] = value
    return match[1], given


def with_parameters(metric: M, given: Mapping[str, str]) -> M:
    """Return `metric` with the parameters of `given`, read as the types of its own.

    Raises:
        MetricError: it has no such parameter, or not with such a value.
    """
    own = {field.name: getattr(metric, field.name) for field in fields(metric) if field.compare}
    known = {name: type(value) for name, value in own.items() if not isinstance(value, Metric)}
    values = {}
    for name, value in given.items():
        try:
            values[name] = known[name](value)
        except KeyError:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise MetricError(f"metric {metric.name} has no parameter {name!r}; {has}") from None
        except ValueError:
            kind = kind_named(known[name])
            raise MetricError(f"{metric.name}: expected {name} to be {kind}, got {value!r}") from None
    return replace(metric, **values)


def refuse(metric: Any, name: str, expected: str) -> MetricError:
    """Say which parameter of a metric is wrong."""
    return MetricError(f"{metric.name}: expected {name} {expected}, got {getattr(metric, name)!r}")
