"""Every metric there is, able to score; vectors that are hard to compare; and what Qdrant answers of lowered ones."""

from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alignment.metrics import METRICS, Distance, LearnedMetric, Lowering, Metric, Nnn
from alignment.metrics.divergences import MAPS
from alignment.metrics.lowering import FLOAT32_ROUNDS
from alignment.vectors import invalid_rows, l2_normalize

Matrix = npt.NDArray[np.floating]
Vector = npt.NDArray[np.float64]

DIM = 12


def variants(metric: Metric) -> list[Metric]:
    """The metric itself, or with each map from vectors to distributions."""
    if "map" not in {field.name for field in fields(metric)}:
        return [metric]
    return [replace(metric, map=map_) for map_ in MAPS]  # type: ignore[call-arg]


def ready(metric: Metric, dim: int = DIM, noise: float = 0.3) -> Any:
    """The metric, able to score: with weights away from where they start, and with reference queries."""
    rng = np.random.default_rng(17)
    if isinstance(metric, Nnn):
        bank = l2_normalize(
            np.abs(rng.standard_normal((9, dim))) if nonnegative(metric) else rng.standard_normal((9, dim))
        )
        return replace(metric, base=ready(metric.base, dim), bank=bank)
    if isinstance(metric, LearnedMetric):
        started = metric.start(dim, seed=5)
        with torch.no_grad():
            for parameter in started.module.parameters():
                parameter.add_(torch.from_numpy(noise * rng.standard_normal(parameter.shape)))
        return started
    return metric


def nonnegative(metric: Metric) -> bool:
    """Whether only vectors without negative values can be compared."""
    base = metric.base if isinstance(metric, Nnn) else metric
    return getattr(base, "map", None) == "l1"


UNBOUND = [variant for metric in METRICS.values() for variant in variants(metric)]
UNBOUND += [Nnn(metric, k=4, alpha=0.6) for metric in UNBOUND if Nnn.applies(metric)]
EVERY = [ready(metric) for metric in UNBOUND]


def some(metric: Metric, rng: np.random.Generator, n: int, dim: int = DIM) -> Vector:
    """Unit vectors (n, dim) that the metric compares."""
    X = rng.standard_normal((n, dim))
    X = np.abs(X) if nonnegative(metric) else X
    return np.asarray(X / np.linalg.norm(X, axis=1, keepdims=True))


def doubled(metric: Any) -> Any:
    if isinstance(metric, Nnn):
        return replace(metric, base=doubled(metric.base))
    if isinstance(metric, LearnedMetric):
        return replace(metric, module=deepcopy(metric.module).double())
    return metric


def native(distance_: Distance, asked: Matrix, stored: Matrix) -> npt.NDArray[np.float32]:
    """What Qdrant answers, in float32: https://qdrant.tech/documentation/concepts/collections/."""
    q, x = asked[:, None].astype(np.float32), stored[None].astype(np.float32)
    if distance_ == Distance.COSINE:
        q, x = (l2_normalize(side.reshape(-1, side.shape[-1])).reshape(side.shape) for side in (q, x))
    if distance_ in (Distance.COSINE, Distance.DOT):
        raw = (q * x).sum(axis=2)
    else:
        difference = np.abs(q - x)
        raw = difference.sum(axis=2) if distance_ == Distance.MANHATTAN else np.sqrt((difference**2).sum(axis=2))
    assert raw.dtype == np.float32
    return np.asarray(raw)


def rounding(metric: Metric, lowering: Lowering, asked: Matrix, stored: Matrix) -> Vector:
    """How far float32 may be off, (n, m).

    Both vectors are rounded, and each of D steps of a sum: D + 8 times what one step rounds, relative to the sum of
    what is added, without signs. W'q of the bilinear form is such a sum before that.
    """
    q, x = np.abs(asked).astype(np.float64), np.abs(stored).astype(np.float64)
    if lowering.distance == Distance.DOT:
        scale = q @ x.T
    elif lowering.distance == Distance.COSINE:
        scale = np.ones((len(q), len(x)))
    elif lowering.distance == Distance.MANHATTAN:
        scale = q.sum(axis=1)[:, None] + x.sum(axis=1)
    else:
        scale = np.linalg.norm(q, axis=1)[:, None] + np.linalg.norm(x, axis=1)
    if "bilinear" in str(metric):
        module = metric.base.module if isinstance(metric, Nnn) else metric.module  # type: ignore[attr-defined]
        scale = scale + np.linalg.norm(module.matrix().detach().numpy())
    return np.asarray((lowering.dim + 8) * FLOAT32_ROUNDS * scale)


def plain(rng: np.random.Generator) -> Matrix:
    return rng.standard_normal((14, DIM))


def sparse(rng: np.random.Generator) -> Matrix:
    X = rng.standard_normal((14, DIM)) * (rng.random((14, DIM)) < 0.25)
    X[np.arange(14), rng.integers(DIM, size=14)] = 1.0
    return X


def duplicated(rng: np.random.Generator) -> Matrix:
    return np.repeat(rng.standard_normal((5, DIM)), 3, axis=0)[:14]


def one_hot(rng: np.random.Generator) -> Matrix:
    return np.asarray(rng.choice([-1.0, 1.0], (14, 1)) * np.eye(DIM)[rng.integers(DIM, size=14)])


def nearly_equal(rng: np.random.Generator) -> Matrix:
    return np.asarray(rng.standard_normal(DIM) + 10.0 ** rng.uniform(-7, -1) * rng.standard_normal((14, DIM)))


def wide(rng: np.random.Generator) -> Matrix:
    """Coordinates of forty orders of magnitude, down to the least numbers that float32 has."""
    return rng.choice([-1.0, 1.0], (14, DIM)) * 10.0 ** rng.uniform(-45, 0, (14, DIM))


def flat(rng: np.random.Generator) -> Matrix:
    return rng.choice([-1.0, 1.0], (14, DIM))


VALUES = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([0.0, 1.0, -1.0, 1e-3, -1e-8, 1e-20, 1e-38, 1e-45]))
drawn = arrays(np.float32, (9, DIM), elements=VALUES).map(lambda X: np.delete(X, list(invalid_rows(X)), axis=0))
made = st.tuples(
    st.sampled_from([plain, sparse, duplicated, one_hot, nearly_equal, wide, flat]), st.integers(0, 2**32 - 1)
).map(lambda kind: kind[0](np.random.default_rng(kind[1])))


def hard_sets(metric: Metric, X: Matrix) -> tuple[Matrix, Matrix]:
    """Unit float32 queries and items, some of which are queries as well."""
    X = l2_normalize(np.abs(X) if nonnegative(metric) else X)
    return X[: len(X) // 2], X[len(X) // 3 :]
