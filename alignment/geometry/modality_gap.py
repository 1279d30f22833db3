"""The modality gap: how far aligned images and texts lie apart as clouds, whatever their pairs.

It ignores pairs, and can be 0 at chance Recall@K: `alignment.geometry.geometry` always gives Recall@K beside it.
"""

from dataclasses import asdict, dataclass

import numpy as np

from alignment.geometry.transport import (
    GapDistance,
    Halves,
    centroid_squared,
    in_blocks,
    points_matched,
    wasserstein_squared,
)
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import IntArray
from alignment.vectors import FloatArray

# Points of a half, where the gap is one number of many.
MOST = 500
SOLVER = "linear_sum_assignment"


@dataclass(frozen=True, slots=True)
class Gap(GapDistance):
    """The Wasserstein-2 distance of images and texts; unit vectors are at most 2 apart, and 0 is no gap.

    Attributes:
        centroid: distance of the mean image from the mean text, over all groups of both halves.
        centred: the same distance after every sample has been moved to its own mean: what no shift would close.
        n: points of a half.
        seed: of the halves.
        matched: points that transport matched at once; fewer than n where a half was cut into blocks, see `in_blocks`.
        solver: of the transport, by its name in SciPy.
    """

    centroid: float
    centred: GapDistance
    n: int
    seed: int
    matched: int
    solver: str = SOLVER


def modality_gap(aligned: GroupedEmbeddings, *, seed: int = 0, most: int = MOST) -> Gap | None:
    """Measure the gap of aligned unit vectors on at most `most` points a half. None of fewer than four groups."""
    halves = halves_of(aligned, seed=seed, most=most)
    return None if halves is None else gap_of(halves, seed=seed)


def gap_of(halves: Halves, *, seed: int) -> Gap:
    """Measure the gap of halves that were drawn with `seed`."""
    squares = halves.squares_of(in_blocks(wasserstein_squared))
    images, texts = np.concatenate(halves.images), np.concatenate(halves.texts)
    n = len(halves.images[0])
    return Gap(
        **asdict(GapDistance.of(squares)),
        centroid=float(np.sqrt(centroid_squared(images, texts))),
        centred=GapDistance.of(squares - halves.squares_of(in_blocks(centroid_squared))),
        n=n,
        seed=seed,
        matched=points_matched(n),
    )


def halves_of(aligned: GroupedEmbeddings, *, seed: int, most: int) -> Halves | None:
    """Draw two disjoint samples of at most `most` groups, one image and one text of each; None of under four groups."""
    sound = aligned.sound()
    groups = np.random.default_rng(seed).permutation(sound.groups)
    n = min(most, len(groups) // 2)
    if n < 2:
        return None
    first, second = groups[:n], groups[n : 2 * n]
    images, texts = ((one_each(side, first), one_each(side, second)) for side in (sound.image, sound.text))
    return Halves(images, texts)


def one_each(side: ModalityEmbeddings, groups: IntArray) -> FloatArray:
    """The first vector of every group (n, d)."""
    order = np.argsort(side.groups, kind="stable")
    chosen: FloatArray = side.vectors[order[np.searchsorted(side.groups[order], groups)]]
    return chosen
