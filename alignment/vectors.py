"""Rows of vectors: which are invalid, which a stored type cannot hold, and how to normalise them."""

import numpy as np
import numpy.typing as npt

from alignment.errors import VectorError

FloatArray = npt.NDArray[np.float32]

# How far float32 may move a unit vector in the arithmetic of a projection.
ROUNDING = 4 * float(np.finfo(np.float32).eps)

NOT_FINITE = "vector-not-finite"
ZERO = "vector-zero"
OVERFLOW = "vector-overflow"
UNDERFLOW = "vector-underflow"

LARGEST_SQUARE = float(np.finfo(np.float32).max) ** 2
SMALLEST_SQUARE = float(np.finfo(np.float32).tiny)
# How far a stored type may move a vector, as a share of its norm. Rounding to normal numbers of float16 moves it by
# at most 0.0005.
STORED_ROUNDING = 0.01


def invalid_rows(X: npt.NDArray[np.floating]) -> dict[int, str]:
    """Say which rows of `X` (n, d) cannot be aligned or stored, and why: `{row: reason}`.

    A row is judged after the cast to float32, the type in which it is stored: a value or a norm beyond
    3.4e38 becomes infinite there, and one whose norm underflows becomes zero.

    >>> invalid_rows(np.array([[1.0, 0.0], [np.nan, 1.0], [0.0, 0.0]]))
    {1: 'vector-not-finite', 2: 'vector-zero'}
    """
    with np.errstate(over="ignore", invalid="ignore"):
        Z = X.astype(np.float32, copy=False)
        squares = np.einsum("nd,nd->n", Z, Z, dtype=np.float64)  # (n,)
    finite = squares < LARGEST_SQUARE  # (n,); not so for NaN
    bad = np.flatnonzero(~finite | (squares < SMALLEST_SQUARE))
    return {int(row): ZERO if finite[row] else NOT_FINITE for row in bad}


def rows_lost_in(X: FloatArray, dtype: str) -> dict[int, str]:
    """Say which rows of `X` (n, d), finite float32, the type `dtype` cannot hold, and why: `{row: reason}`.

    >>> rows_lost_in(np.array([[1, 2], [1e5, 1], [1e-9, 1e-9]], np.float32), "float16")
    {1: 'vector-overflow', 2: 'vector-underflow'}
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored: npt.NDArray[np.float64] = X.astype(dtype).astype(np.float64)
        norms = np.linalg.norm(X.astype(np.float64), axis=1)
        changed = np.linalg.norm(stored - X, axis=1) > STORED_ROUNDING * norms
    overflown: npt.NDArray[np.bool_] = np.isinf(stored).max(axis=1)
    return {int(row): OVERFLOW if overflown[row] else UNDERFLOW for row in np.flatnonzero(changed | overflown)}


def check_sound(X: npt.NDArray[np.floating], what: str) -> None:
    """Raise a `VectorError` that names the first unusable rows of `X` (n, d), if there are any."""
    if found := invalid_rows(X):
        rows = ", ".join(f"row {row}: {reason}" for row, reason in list(found.items())[:3])
        raise VectorError(
            f"{what}: expected finite vectors with a norm above zero, got {len(found)} of {len(X)} that are "
            f"not ({rows}); leave those rows out or encode them again"
        )


def l2_normalize(X: npt.NDArray[np.floating]) -> FloatArray:
    """Scale every row of `X` (n, d) to Euclidean norm 1, as float32.

    >>> l2_normalize(np.array([[3.0, 4.0]]))
    array([[0.6, 0.8]], dtype=float32)
    """
    # Squares are summed in float64, because the square of a sound float32 can overflow.
    norms = np.sqrt(np.einsum("nd,nd->n", X, X, dtype=np.float64))[:, None]  # (n, 1)
    scaled: FloatArray = np.divide(X, norms, dtype=np.float32, casting="unsafe")
    return scaled
