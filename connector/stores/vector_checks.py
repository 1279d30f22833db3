"""Vectors that a collection cannot hold, or would silently change."""

from collections.abc import Mapping

import numpy as np

from alignment.distance import Distance
from alignment.errors import VectorError
from alignment.vectors import ZERO, invalid_rows, rows_lost_in
from connector.errors import CollectionNotFoundError, Refusal
from connector.rejects import Reason
from connector.stores.collection import VectorConfig
from connector.stores.layout import Datatype
from connector.stores.points import Points


def check_vectors(name: str, points: Points, vectors: Mapping[str, VectorConfig], datatype: Datatype) -> None:
    """Return if a collection of these named vectors and this datatype takes all vectors of `points`.

    Raises:
        CollectionNotFoundError: the collection has no such named vector.
        VectorError: a vector has another dimension, is not finite as float32, is zero under Cosine, or has values that
            are no integers of a collection of uint8; or there is not one payload for each.
    """
    config = vectors.get(points.vector_name)
    if config is None:
        raise CollectionNotFoundError(
            f"collection {name} has no vector {points.vector_name!r}; it has {', '.join(sorted(vectors))}"
        )
    expected = (len(points.ids), config.dim)
    if points.vectors.shape != expected or len(points.payloads) != len(points.ids):
        raise VectorError(
            f"collection {name}: expected vectors of shape {expected} with a payload each, got "
            f"{points.vectors.shape} with {len(points.payloads)} payloads"
        )
    if datatype == "uint8":
        _check_uint8(name, points)
    harmful = {
        row: reason
        for row, reason in invalid_rows(points.vectors).items()
        if reason != ZERO or config.distance is Distance.COSINE
    }
    if harmful:
        row, reason = next(iter(harmful.items()))
        raise VectorError(
            f"collection {name}: {len(harmful)} of {len(points.ids)} vectors cannot be stored under "
            f"{config.distance}, the first is point {points.ids[row]}: {reason}"
        )


def lost_as_float16(name: str, points: Points, config: VectorConfig, datatype: Datatype) -> dict[int, Refusal]:
    """Say which vectors a collection of float16 cannot hold, and why. Under Cosine they are normalised before."""
    if datatype != "float16" or config.distance is Distance.COSINE:
        return {}
    largest = np.abs(points.vectors).max(axis=1, initial=0)
    return {
        row: Refusal(Reason(reason), f"{name} stores float16, and the vector's largest value is {largest[row]:g}")
        for row, reason in rows_lost_in(points.vectors, "float16").items()
    }


def _check_uint8(name: str, points: Points) -> None:
    X = points.vectors
    valid = (X >= 0) & (X <= 255) & (np.floor(X) == X)
    if not valid.all():
        row, column = np.argwhere(~valid)[0]
        raise VectorError(
            f"collection {name} stores uint8, which holds whole numbers from 0 to 255; point {points.ids[row]} has "
            f"{X[row, column]}: push into a new collection with another datatype"
        )
