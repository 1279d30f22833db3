"""Pairs of images and texts as the closed forms take them: read some rows at a time, and never held."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignment.fitting.moments import Floats, Moments, Sums
from alignment.retrieval.grouped import GroupedEmbeddings, PairRows, drawn
from alignment.vectors import FloatArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK_ROWS = 8192
# Rows that are prepared at a time on a CPU: they stay in its cache from one step to the next.
CACHED_ROWS = 256
# Norms are at least this, so that a row of zeros stays one.
SHORTEST = 1e-12

Cells = npt.NDArray[np.int64]


class Pairs:
    """n pairs as unit vectors less their mean, float64 on a device: X (n, d_x) of images and Y (n, d_y) of texts.

    Args:
        data: where they are read.
        rows: of its images and of its texts, (n,) each and in the order of their groups; None: those of all pairs.
        moments: gives them, with products or without, where reading the pairs would be a waste.

    Attributes:
        dims: d_x and d_y.
    """

    def __init__(
        self,
        data: GroupedEmbeddings,
        device: "torch.device",
        rows: PairRows | None = None,
        moments: Callable[[bool], Moments] | None = None,
    ):
        self._data, self._device = data, device
        self._rows = data.pair_rows() if rows is None else rows
        self._gather = moments or self._read
        self._moments: Moments | None = None
        self.dims = data.image.dim, data.text.dim

    def __len__(self) -> int:
        return len(self._rows[0])

    @cached_property
    def means(self) -> "tuple[Tensor, Tensor]":
        """What is taken off the unit vectors, (d_x,) and (d_y,)."""
        x, y = self._tensors(*self._moments_with(products=False).means)
        return x, y

    @cached_property
    def products(self) -> "tuple[Tensor, Tensor, Tensor]":
        """`X'X`, `Y'Y` and `X'Y`."""
        xx, yy, xy = self._tensors(*self._moments_with(products=True).products)
        return xx, yy, xy

    def drawn(self, most: int) -> "tuple[Tensor, Tensor]":
        """Return X and Y of at most so many pairs: see `drawn` of `alignment.retrieval.grouped`."""
        sides = zip((self._data.image, self._data.text), self._drawn_rows(most), self.means, strict=True)
        X, Y = (_Memory(len(rows), side.dim, self._device).units(side.take(rows), mean) for side, rows, mean in sides)
        return X, Y

    def reserve(self, most: int) -> None:
        """Say that so many pairs will be drawn: see `ModalityEmbeddings.reserve`."""
        for side, rows in zip((self._data.image, self._data.text), self._drawn_rows(most), strict=True):
            side.reserve(rows)

    def _drawn_rows(self, most: int) -> PairRows:
        chosen = drawn(self._data.image.groups[self._rows[0]], most)
        return self._rows[0][chosen], self._rows[1][chosen]

    def _moments_with(self, *, products: bool) -> Moments:
        if self._moments is None or (products and not self._moments.products):
            self._moments = self._gather(products)
        return self._moments

    def _read(self, products: bool) -> Moments:
        cells = np.zeros(len(self), np.int64)
        return cell_moments(self._data, self._rows, cells, 1, self._device, products=products)[0]

    def _tensors(self, *arrays: Floats) -> "Iterator[Tensor]":
        import torch

        return (torch.from_numpy(array).to(self._device) for array in arrays)


def cell_moments(
    data: GroupedEmbeddings, rows: PairRows, cells: Cells, count: int, device: "torch.device", *, products: bool
) -> list[Moments]:
    """Return the moments of the pairs of each of `count` cells, in one pass over the data.

    Args:
        data: where the pairs are read, in the order of its images where these are on disk.
        rows: of its images and of its texts, (n,) each.
        cells: the number of each pair's cell (n,).
        count: how many cells there are.
        device: where products are computed.
        products: whether these are wanted.
    """
    sides = data.image, data.text
    order = np.argsort(rows[0], kind="stable") if data.image.is_stored else np.arange(len(cells))
    memory = [_Memory(min(len(order), BLOCK_ROWS), side.dim, device) for side in sides]
    sums: list[Sums] = []
    for start in range(0, len(order), BLOCK_ROWS):
        block = order[start : start + BLOCK_ROWS]
        block = block[np.argsort(cells[block], kind="stable")]
        raw = [side.take(own[block]) for side, own in zip(sides, rows, strict=True)]
        if not sums:
            x, y = (own.units(some, None).mean(dim=0) for own, some in zip(memory, raw, strict=True))
            sums = [Sums((x, y), products=products) for _ in range(count)]
        X, Y = (own.units(some, shift) for own, some, shift in zip(memory, raw, (x, y), strict=True))
        ends = np.searchsorted(cells[block], np.arange(count + 1))
        for own, first, end in zip(sums, ends, ends[1:], strict=False):
            own.add(X[first:end], Y[first:end])
    for side in sides:
        side.release()
    return [own.moments() for own in sums]


class _Memory:
    """Memory for the unit vectors of one side, float64, some rows at a time."""

    def __init__(self, rows: int, dim: int, device: "torch.device"):
        import torch

        self._rows = torch.empty(rows, dim, dtype=torch.float64, device=device)
        self._at_once = CACHED_ROWS if device.type == "cpu" else BLOCK_ROWS

    def units(self, vectors: FloatArray, shift: "Tensor | None") -> "Tensor":
        """Scale vectors (n, d) to length 1, take off a shift (d,), and return them; they replace those from before."""
        import torch

        raw = torch.from_numpy(vectors)
        for start in range(0, len(raw), self._at_once):
            some = raw[start : start + self._at_once]
            Z = self._rows[start : start + len(some)]
            Z.copy_(some)
            Z.div_(torch.linalg.vector_norm(Z, dim=1, keepdim=True).clamp_(min=SHORTEST))
            if shift is not None:
                Z.sub_(shift)
        return self._rows[: len(raw)]
