"""Pairs of images and texts as the closed forms take them: some rows at a time, so that they need little memory."""

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignment.vectors import FloatArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alignment.retrieval.grouped import GroupedEmbeddings

BLOCK_ROWS = 8192


class Pairs:
    """n pairs as unit vectors less their mean, float64 on a device: X (n, d_x) of images and Y (n, d_y) of texts.

    Attributes:
        dims: d_x and d_y.
        means: what is taken off, (d_x,) and (d_y,); None where nothing is.
    """

    def __init__(
        self,
        X: FloatArray,
        Y: FloatArray,
        rows: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
        device: "torch.device",
        *,
        centred: bool = True,
    ):
        self._sides, self._rows, self._device = (X, Y), rows, device
        self.dims = X.shape[1], Y.shape[1]
        self.means: tuple[Tensor, Tensor] | None = None
        if centred:
            x, y = self._block(slice(0, 0))
            sums = x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1])
            for block in self.blocks():
                for total, side in zip(sums, block, strict=True):
                    total.add_(side.sum(dim=0))
            self.means = sums[0] / len(self), sums[1] / len(self)

    @classmethod
    def of(cls, data: "GroupedEmbeddings", device: "torch.device", *, centred: bool = True) -> "Pairs":
        """Pair the items of each group; see `GroupedEmbeddings.pair_rows`."""
        return cls(data.image.vectors, data.text.vectors, data.pair_rows(), device, centred=centred)

    def __len__(self) -> int:
        return len(self._rows[0])

    def blocks(self) -> "Iterator[tuple[Tensor, Tensor]]":
        """Yield X and Y some rows at a time."""
        for start in range(0, len(self), BLOCK_ROWS):
            yield self._block(slice(start, start + BLOCK_ROWS))

    @cached_property
    def products(self) -> "tuple[Tensor, Tensor, Tensor]":
        """`X'X`, `Y'Y` and `X'Y`."""
        d_x, d_y = self.dims
        zeros = next(self.blocks())[0].new_zeros
        products = zeros(d_x, d_x), zeros(d_y, d_y), zeros(d_x, d_y)
        for X, Y in self.blocks():
            for product, left, right in zip(products, (X, Y, X), (X, Y, Y), strict=True):
                product.addmm_(left.T, right)
        return products

    def spread(self, most: int) -> "tuple[Tensor, Tensor]":
        """X and Y of at most so many pairs, evenly spread."""
        return self._block(slice(0, None, max(1, -(-len(self) // most))))

    def _block(self, part: slice) -> "tuple[Tensor, Tensor]":
        import torch
        from torch.nn.functional import normalize

        block = []
        for number, (side, rows) in enumerate(zip(self._sides, self._rows, strict=True)):
            Z = normalize(torch.from_numpy(side[rows[part]]).to(self._device, torch.float64), dim=1)
            block.append(Z if self.means is None else Z - self.means[number])
        return block[0], block[1]
