"""Moments of pairs: all that linear closed forms need of them, added up from parts in any order and any grouping.

Products are kept about the mean, and moments are added by the difference of their means (Chan, Golub and LeVeque 1983):
plain sums of squares would lose the digits in which encodings differ, because most of them point the same way.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Moments of n pairs: plain arrays, to be sent between processes and added.

    Attributes:
        pairs: n.
        means: of X (d_x,) and of Y (d_y,); of no pairs, any.
        products: `X'X`, `Y'Y` and `X'Y` of the pairs less their means; empty: not wanted.
    """

    pairs: int
    means: tuple[Floats, Floats]
    products: tuple[Floats, ...]

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of the pairs of both.

        Raises:
            ValueError: they are of other dimensions, or one of them has no products.
        """
        pairs = self.pairs + other.pairs
        share = other.pairs / max(1, pairs)
        x, y = (theirs - own for own, theirs in zip(self.means, other.means, strict=True))
        apart = ((x, x), (y, y), (x, y))[: max(len(self.products), len(other.products))]
        products = tuple(
            own + theirs + self.pairs * share * np.outer(left, right)
            for own, theirs, (left, right) in zip(self.products, other.products, apart, strict=True)
        )
        return Moments(pairs, (self.means[0] + share * x, self.means[1] + share * y), products)


class Sums:
    """Moments of pairs that come some rows at a time, on a device.

    Args:
        shift: near the means, (d_x,) and (d_y,): pairs come less it.
        products: whether these are wanted.
    """

    def __init__(self, shift: "tuple[Tensor, Tensor]", *, products: bool):
        import torch

        self._pairs, self._shift = 0, shift
        self._sums = [torch.zeros_like(side) for side in shift]
        x, y = (len(side) for side in shift)
        shapes = ((x, x), (y, y), (x, y)) if products else ()
        self._products = [shift[0].new_zeros(shape) for shape in shapes]

    def add(self, X: "Tensor", Y: "Tensor") -> None:
        """Add n pairs, (n, d_x) and (n, d_y), less the shift."""
        self._pairs += len(X)
        for total, side in zip(self._sums, (X, Y), strict=True):
            total.add_(side.sum(dim=0))
        for product, left, right in zip(self._products, (X, Y, X), (X, Y, Y), strict=False):
            product.addmm_(left.T, right)

    def moments(self) -> Moments:
        """Return the moments of what was added so far."""
        x, y = (total / max(1, self._pairs) for total in self._sums)
        means = (_array(self._shift[0] + x), _array(self._shift[1] + y))
        apart = ((x, x), (y, y), (x, y))[: len(self._products)]
        products = tuple(
            _array(product.addr(left, right, alpha=-self._pairs))
            for product, (left, right) in zip(self._products, apart, strict=True)
        )
        return Moments(self._pairs, means, products)


def _array(tensor: "Tensor") -> Floats:
    array: Floats = tensor.cpu().numpy()
    return array
