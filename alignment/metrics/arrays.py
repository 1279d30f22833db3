"""Arrays of numpy and tensors of torch: metrics are written once over both, in the words of the array API.

Here are their types, and the few computations that the array API has no function for.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import array_api_compat
import numpy as np
import numpy.typing as npt
from array_api_compat import is_torch_array

if TYPE_CHECKING:
    from torch import Tensor

Scores = npt.NDArray[np.floating]
Vectors = npt.NDArray[np.floating]
Array = TypeVar("Array", Vectors, "Tensor")

# Of 512 coordinates each, what a comparison holds of so many stays in a processor's cache.
ITEMS_AT_ONCE = 128


def array_namespace(*arrays: Any) -> Any:
    """Return the functions of the array API for arrays of one library.

    Those of numpy are its own: it follows the standard since 2.0, and array_api_compat takes .1 s to wrap it.
    """
    if any(map(is_torch_array, arrays)):
        return array_api_compat.array_namespace(*arrays)
    return np


def negated_distance(queries: Array, items: Array, p: int) -> Array:
    """Return minus the L1 or L2 distance, by `p`, of queries (n, d) and items (m, d): (n, m) in their dtype.

    Both libraries hold n x m numbers, which no broadcast does. The gradient between equal vectors is 0.
    """
    if is_torch_array(queries):
        import torch

        # Through a matrix product, equal vectors would come out apart, and with an infinite gradient.
        return -torch.cdist(queries, items, p=p, compute_mode="donot_use_mm_for_euclid_dist")
    from scipy.spatial.distance import cdist  # here, because scipy takes as long to import as all of `--help`

    distances = cdist(queries.astype(np.float64), items.astype(np.float64), {1: "cityblock", 2: "euclidean"}[p])
    return -distances.astype(np.result_type(queries, items))


def pairwise(queries: Array, items: Array, compare: Callable[[Any, Any], Any]) -> Array:
    """Score queries (n, d) against items (m, d): (n, m). `compare` scores vectors along their last axis.

    Arrays are compared a query and some items at a time; tensors all at once, because a gradient needs all pairs.
    """
    if is_torch_array(queries):
        return compare(queries[:, None], items[None])
    scores = np.empty((len(queries), len(items)), np.result_type(queries, items))
    for row, query in enumerate(queries):
        for start in range(0, len(items), ITEMS_AT_ONCE):
            scores[row, start : start + ITEMS_AT_ONCE] = compare(query, items[start : start + ITEMS_AT_ONCE])
    return scores


def mean_of_largest(scores: Array, k: int) -> Array:
    """Return the mean of the `k` largest numbers of each column of `scores` (r, c): (c,).

    The array API sorts only in full, which takes several times as long as these.
    """
    if is_torch_array(scores):
        return scores.topk(k, dim=0).values.mean(dim=0)
    return np.partition(scores, len(scores) - k, axis=0)[len(scores) - k :].mean(axis=0)


def ascending(X: Array) -> Array:
    """Sort the coordinates of vectors (n, d); the array API sorts a tensor in a way that ONNX has no operator for."""
    return X.sort(dim=1).values if is_torch_array(X) else np.sort(X, axis=1)


def safe_sqrt(X: Array) -> Array:
    """Square root, with gradient 0 instead of infinity where `X` is 0."""
    xp = array_namespace(X)
    return xp.where(X == 0, 0.0, xp.sqrt(xp.where(X == 0, 1.0, X)))


def in_float64(X: Array) -> Array:
    """Return `X` as float64, or as it is on Apple's mps, which has no float64."""
    xp = array_namespace(X)
    return X if is_torch_array(X) and X.device.type == "mps" else xp.astype(X, xp.float64)
