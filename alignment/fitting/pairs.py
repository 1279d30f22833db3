"""Pairs of images and texts as the closed forms take them: some rows at a time, so that they need little memory."""

from collections.abc import Iterator, Sequence
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
# Rows that are prepared at a time on a CPU: they stay in its cache from one step to the next.
CACHED_ROWS = 256
# Norms are at least this, so that a row of zeros stays one.
SHORTEST = 1e-12


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
        self._sides = _Side(X, rows[0], device), _Side(Y, rows[1], device)
        self.dims = X.shape[1], Y.shape[1]
        self.means: tuple[Tensor, Tensor] | None = None
        if centred:
            sums = [side.empty(1)[0].zero_() for side in self._sides]
            for block in self.blocks():
                for total, Z in zip(sums, block, strict=True):
                    total.add_(Z.sum(dim=0))
            self.means = sums[0] / len(self), sums[1] / len(self)

    @classmethod
    def of(cls, data: "GroupedEmbeddings", device: "torch.device", *, centred: bool = True) -> "Pairs":
        """Pair the items of each group; see `GroupedEmbeddings.pair_rows`."""
        return cls(data.image.vectors, data.text.vectors, data.pair_rows(), device, centred=centred)

    def __len__(self) -> int:
        return len(self._sides[0])

    def blocks(self) -> "Iterator[tuple[Tensor, Tensor]]":
        """Yield X and Y some rows at a time. The next ones replace them in their memory."""
        memory = [side.empty(min(len(self), BLOCK_ROWS)) for side in self._sides]
        for start in range(0, len(self), BLOCK_ROWS):
            yield self._read(slice(start, start + BLOCK_ROWS), memory)

    @cached_property
    def products(self) -> "tuple[Tensor, Tensor, Tensor]":
        """`X'X`, `Y'Y` and `X'Y`."""
        d_x, d_y = self.dims
        zeros = self._sides[0].empty(0).new_zeros
        products = zeros(d_x, d_x), zeros(d_y, d_y), zeros(d_x, d_y)
        for X, Y in self.blocks():
            for product, left, right in zip(products, (X, Y, X), (X, Y, Y), strict=True):
                product.addmm_(left.T, right)
        return products

    def spread(self, most: int) -> "tuple[Tensor, Tensor]":
        """X and Y of at most so many pairs, evenly spread."""
        part = slice(0, None, max(1, -(-len(self) // most)))
        return self._read(part, [side.empty(len(range(len(self))[part])) for side in self._sides])

    def _read(self, part: slice, memory: "Sequence[Tensor]") -> "tuple[Tensor, Tensor]":
        X, Y = (
            side.read(part, into, mean)
            for side, into, mean in zip(self._sides, memory, self.means or (None, None), strict=True)
        )
        return X, Y


class _Side:
    """One side of the pairs."""

    def __init__(self, vectors: FloatArray, rows: npt.NDArray[np.int64], device: "torch.device"):
        import torch

        self._vectors, self._rows, self._device = vectors, rows, device
        self._norms = torch.zeros(len(rows), 1, dtype=torch.float64, device=device)  # those that are not known are 0

    def __len__(self) -> int:
        return len(self._rows)

    def empty(self, rows: int) -> "Tensor":
        """Return memory for so many rows, (rows, d)."""
        import torch

        return torch.empty(rows, self._vectors.shape[1], dtype=torch.float64, device=self._device)

    def read(self, part: slice, memory: "Tensor", mean: "Tensor | None") -> "Tensor":
        """Write a part of the unit vectors, less a mean (d,), into memory for as many rows or more; return them there.

        Norms are computed once.
        """
        import torch

        rows, norms = self._rows[part], self._norms[part]
        at_once = CACHED_ROWS if self._device.type == "cpu" else BLOCK_ROWS
        for start in range(0, len(rows), at_once):
            some = slice(start, start + at_once)
            own = norms[some]
            Z = memory[start : start + len(own)]
            Z.copy_(torch.from_numpy(self._vectors[rows[some]]))
            if not own.all():
                torch.linalg.vector_norm(Z, dim=1, keepdim=True, out=own)
                own.clamp_(min=SHORTEST)
            Z.div_(own)
            if mean is not None:
                Z.sub_(mean)
        return memory[: len(rows)]
