"""The modality gap: how far aligned images and texts lie apart as clouds, whatever pairs with what.

A raw Wasserstein distance means nothing alone: in hundreds of dimensions two samples of one distribution are nearly as
far from each other as two of different ones. What samples of one modality are apart is therefore taken off.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignment.labelled import Labelled, Side
from alignment.recall import Codes
from alignment.vectors import FloatArray

# Points of a half: exact transport takes their number cubed, and 500 are a twentieth of a second.
MOST = 500


@dataclass(frozen=True, slots=True)
class Gap:
    """How far images and texts lie apart; unit vectors are at most 2 apart, and 0 is no gap.

    Attributes:
        debiased: `sqrt(max(0, W2^2(X, Y) - (W2^2(X, X') + W2^2(Y, Y')) / 2))` of disjoint halves.
        centroid: distance of the mean image from the mean text, over all groups of both halves.
        raw: `W2(X, Y)`, with all that it has from the size of the sample.
        n: points of a half.
        seed: of the halves.
    """

    debiased: float
    centroid: float
    raw: float
    n: int
    seed: int


def modality_gap(aligned: Labelled, *, seed: int = 0, most: int = MOST) -> Gap | None:
    """Measure the gap of aligned unit vectors, W2 by exact transport under squared Euclidean cost.

    A group gives one image and one text. No group is in two samples that are compared: an image is nearer to its own
    text than to a text of its kind, and would make the gap smaller than it is. None of fewer than four groups.
    """
    sound = aligned.sound()
    groups = np.random.default_rng(seed).permutation(sound.groups)
    n = min(most, len(groups) // 2)
    if n < 2:
        return None
    first, second = groups[:n], groups[n : 2 * n]
    X, Y = ((_one_each(side, first), _one_each(side, second)) for side in (sound.image, sound.text))
    across = (_squared(X[0], Y[1]) + _squared(X[1], Y[0])) / 2
    within = (_squared(*X) + _squared(*Y)) / 2
    centroids = np.concatenate(X).mean(axis=0) - np.concatenate(Y).mean(axis=0)
    return Gap(
        debiased=float(np.sqrt(max(0.0, across - within))),
        centroid=float(np.linalg.norm(centroids)),
        raw=float(np.sqrt(across)),
        n=n,
        seed=seed,
    )


def _one_each(side: Side, groups: Codes) -> FloatArray:
    """The first vector of every group (n, d)."""
    order = np.argsort(side.groups, kind="stable")
    chosen: FloatArray = side.vectors[order[np.searchsorted(side.groups[order], groups)]]
    return chosen


def _squared(X: npt.NDArray[np.floating], Y: npt.NDArray[np.floating]) -> float:
    """`W2^2` of two samples of one size."""
    import ot  # here, because it takes a second to import

    return float(ot.emd2([], [], ot.dist(X.astype(np.float64), Y.astype(np.float64))))
