"""Compare a measure with a threshold as people compute: 1.0 to 0.98 is a drop of 0.02, whatever binary makes of it."""

import operator
from collections.abc import Callable, Mapping

# Absolute for values up to 1, relative beyond. Measures of a million queries differ by a thousand times as much.
TOLERANCE = 1e-9

_COMPARISONS: Mapping[str, tuple[Callable[[float, float], bool], int]] = {
    ">=": (operator.ge, -1),
    "<=": (operator.le, 1),
    ">": (operator.gt, 1),
    "<": (operator.lt, -1),
}


def holds(value: float, comparison: str, threshold: float) -> bool:
    """Say whether `value` compares with `threshold` like that. Values within `TOLERANCE` of it are equal to it.

    >>> 1.0 - 0.98 <= 0.02, holds(1.0 - 0.98, "<=", 0.02), holds(1.0 - 0.98, ">", 0.02)
    (False, True, False)
    """
    compare, sign = _COMPARISONS[comparison]
    return compare(value, threshold + sign * TOLERANCE * max(1.0, abs(threshold)))
