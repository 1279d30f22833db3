"""The folds of a cross-validation, and the moments of each from one pass over the pairs."""

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from alignment.errors import FitError
from alignment.fitting.closed_forms import PAIRS
from alignment.fitting.moments import Moments
from alignment.fitting.pairs import Pairs, cell_moments
from alignment.retrieval.grouped import GroupedEmbeddings, is_among
from alignment.retrieval.ranks import IntArray

if TYPE_CHECKING:
    import torch


class Folds:
    """Parts of the groups of some data; what is fitted without one of them adds up the moments of the others.

    Attributes:
        data: all of it.
        parts: groups of each fold, shuffled.
        left_out: what the final fit is compared without, one fold of the smallest size: see `GapSample`.
    """

    def __init__(self, data: GroupedEmbeddings, count: int, seed: int, device: "torch.device"):
        """Cut the groups of `data` into `count` parts.

        Raises:
            FitError: fewer than two folds, or fewer groups than two a fold.
        """
        groups = data.groups
        _check(count, len(groups))
        shuffled = np.random.default_rng(seed).permutation(groups)
        self.data, self._device = data, matrix_device(device)
        self.parts = np.array_split(shuffled, count)
        self.left_out: IntArray = shuffled[: len(shuffled) // count]
        # Cell 0 is what is left out, cell 1 the rest of the first part, and the others are the other parts.
        self._cell_of = np.zeros(int(groups[-1]) + 1, np.int64)
        for number, part in enumerate(self.parts, start=1):
            self._cell_of[part] = number
        self._cell_of[self.left_out] = 0
        self._rows = data.pair_rows()
        self._cells = self._cell_of[data.image.groups[self._rows[0]]]
        self._moments: list[Moments] = []

    def read(self, *, products: bool) -> None:
        """Compute the moments of every part, unless they are known, in one pass over the pairs."""
        if not self._moments or (products and not self._moments[0].products):
            cells = len(self.parts) + 1
            self._moments = cell_moments(self.data, self._rows, self._cells, cells, self._device, products=products)

    def reserve_drawn(self) -> None:
        """Reserve the pairs that closed forms draw of all pairs, and of those that are left without each part."""
        if not self.data.image.is_stored:
            return
        for groups in (*self.parts, self.left_out, self.left_out[:0]):
            self.without(groups).reserve(PAIRS)

    def pairs(self) -> Pairs:
        """Return all pairs."""
        return self.without(self.left_out[:0])

    def without(self, groups: IntArray) -> Pairs:
        """Return the pairs that are not of these groups: a part, or what is left out."""
        left_out = np.unique(self._cell_of[groups])

        def moments(products: bool) -> Moments:
            self.read(products=products)
            return reduce(add, (own for cell, own in enumerate(self._moments) if cell not in left_out))

        kept = ~is_among(self._cells, left_out)
        return Pairs(self.data, self._device, (self._rows[0][kept], self._rows[1][kept]), moments)


def matrix_device(device: "torch.device") -> "torch.device":
    """Return where closed forms decompose matrices.

    Apple's GPU has no float64, and float32 loses the small eigenvalues: there they do so on the CPU.
    """
    import torch

    return torch.device("cpu") if device.type == "mps" else device


def _check(folds: int, groups: int) -> None:
    if folds < 2:
        raise FitError(f"expected at least 2 folds, got {folds}")
    if groups < 2 * folds:
        raise FitError(
            f"cross-validation in {folds} folds needs at least {2 * folds} groups that hold both images and "
            f"texts, got {groups}; add data or lower --folds or --holdout"
        )
