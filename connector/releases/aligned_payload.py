"""Aligned vectors in the payload, for metrics that rescore."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import pybase64

from alignment.errors import WeightsError
from alignment.metrics import Metric
from connector.errors import StrangePointError
from connector.stores.points import Hit, Payload, Record

ALIGNED = "aligned"


def packed(vector: npt.NDArray[np.floating]) -> str:
    """Pack an aligned vector (d,) into the text that a payload carries: float32, little-endian, base64."""
    return pybase64.b64encode_as_string(np.ascontiguousarray(vector, "<f4").tobytes())


def unpacked(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Unpack aligned vectors (n, d)."""
    return np.frombuffer(b"".join(map(pybase64.b64decode, texts)), "<f4").reshape(len(texts), -1)


def without_aligned(payload: Payload) -> Payload:
    """Return a payload without the vector that it carries."""
    return {name: value for name, value in payload.items() if name != ALIGNED}


def carried(points: Sequence[Hit | Record], dim: int) -> npt.NDArray[np.float32]:
    """Return the aligned vectors (n, dim) that points carry in their payloads.

    Raises:
        StrangePointError: a point carries none, or one of another length.
    """
    texts = [point.payload.get(ALIGNED) for point in points]
    length = len(packed(np.zeros(dim, np.float32)))
    for point, text in zip(points, texts, strict=True):
        if not isinstance(text, str) or len(text) != length:
            raise StrangePointError(point.id, f"carries no aligned vector of {dim} dimensions")
    try:
        return unpacked(cast(Sequence[str], texts)).reshape(len(points), dim)
    except ValueError:
        raise StrangePointError(points[0].id, "or one of those read with it carries no aligned vector") from None


def check_finite(metric: Metric, lowered: npt.NDArray[np.floating]) -> None:
    """Raise a `WeightsError` if `metric` lowered finite aligned vectors to values that are not finite."""
    if not np.isfinite(lowered).all():
        raise WeightsError(
            f"metric {metric} gives vectors that are not finite: its weights have diverged or are damaged; fit the "
            "alignment again"
        )
