"""Batches of groups for the training loop."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alignment.fitting.training import Training
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import IntArray
from alignment.vectors import FloatArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Share of a device's free memory that embeddings may take; what does not fit streams from the host.
RESIDENT = 0.5


@dataclass(frozen=True, slots=True)
class Mixing:
    """Shares (n, 1) of the pairs of a batch, and the rows that they are mixed with (n,)."""

    share: Any
    partner: Any


class CentredRows:
    """Unit vectors less their mean, some rows at a time, on the device where they fit and from the host where not."""

    def __init__(self, vectors: FloatArray, mean: FloatArray | None, device: "torch.device"):
        import torch

        self._mean = None if mean is None else torch.from_numpy(mean).to(device)
        self._vectors = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
        self.resident = device.type != "cuda" or vectors.nbytes < RESIDENT * torch.cuda.mem_get_info(device)[0]
        if self.resident:
            self._vectors = self._vectors.to(device)

    def __call__(self, rows: npt.NDArray[np.int64], device: "torch.device") -> "Tensor":
        """Return rows (c, d) on `device`."""
        import torch
        from torch.nn.functional import normalize

        if self.resident:
            chosen = self._vectors[torch.from_numpy(rows).to(device)]
        else:
            chosen = self._vectors[torch.from_numpy(rows)].pin_memory().to(device, non_blocking=True)
        Z = normalize(chosen, dim=1)
        return Z if self._mean is None else Z - self._mean


Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def batches(groups: IntArray, data: GroupedEmbeddings, training: Training, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield rows of images and of texts, one of each for every group of a batch; groups and their items shuffled."""
    chosen = [_one_of_each(side.groups, groups, rng) for side in (data.image, data.text)]
    order = rng.permutation(len(groups))
    for start in range(0, len(order), training.batch):
        rows = order[start : start + training.batch]
        if len(rows) > 1:
            yield chosen[0][rows], chosen[1][rows]


def _one_of_each(codes: IntArray, groups: IntArray, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A random row for each of `groups`."""
    shuffled = rng.permutation(len(codes))
    present, first = np.unique(codes[shuffled], return_index=True)
    rows: npt.NDArray[np.int64] = shuffled[first[np.searchsorted(present, groups)]]
    return rows
