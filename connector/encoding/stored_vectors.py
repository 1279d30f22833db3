"""What a vector becomes in the type that an embedding set stores."""

import numpy as np
import numpy.typing as npt

from alignment.sets.cards import Dtype
from alignment.vectors import FloatArray
from connector.rejects import Reason

TOLERANCE = 0.01  # of a vector's norm; rounding to normal numbers of float16 changes at most 0.0005 of it


def rows_lost_in(X: FloatArray, dtype: Dtype) -> dict[int, Reason]:
    """Say which rows of `X` (n, d), finite float32, `dtype` cannot hold, and why.

    >>> rows_lost_in(np.array([[1, 2], [1e5, 1], [1e-9, 1e-9]], np.float32), "float16")
    {1: <Reason.VECTOR_OVERFLOW: 'vector-overflow'>, 2: <Reason.VECTOR_UNDERFLOW: 'vector-underflow'>}
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored: npt.NDArray[np.float64] = X.astype(dtype).astype(np.float64)
        changed = np.linalg.norm(stored - X, axis=1) > TOLERANCE * np.linalg.norm(X.astype(np.float64), axis=1)
    overflown: npt.NDArray[np.bool_] = np.isinf(stored).max(axis=1)
    return {
        int(row): Reason.VECTOR_OVERFLOW if overflown[row] else Reason.VECTOR_UNDERFLOW
        for row in np.flatnonzero(changed | overflown)
    }
