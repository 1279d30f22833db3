"""Batches of groups for the training loop.

Where vectors are on disk, the order of an epoch is drawn in two steps, because any order would read the whole set for
every batch: runs of groups that lie beside each other are shuffled, and then the groups of some runs at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alignment.fitting.stored import CACHED_BYTES, StoredEmbeddings
from alignment.fitting.training import Training
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import IntArray
from alignment.vectors import FloatArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Share of a device's free memory that embeddings may take; what does not fit streams from the host.
RESIDENT = 0.5
# Groups beside each other on disk that are shuffled as one, and how many such runs are mixed at most.
RUN_GROUPS, RUNS_MIXED = 1024, 16


@dataclass(frozen=True, slots=True)
class Mixing:
    """Shares (n, 1) of the pairs of a batch, and the rows that they are mixed with (n,)."""

    share: Any
    partner: Any


class CentredRows:
    """Unit vectors less their mean, some rows at a time, on the device where they fit and from the host where not."""

    def __init__(self, side: ModalityEmbeddings, mean: FloatArray | None, device: "torch.device"):
        import torch

        self._mean = None if mean is None else torch.from_numpy(mean).to(device)
        self._side, self._vectors, self.resident = side, None, False
        if not side.is_stored:
            vectors = torch.from_numpy(np.ascontiguousarray(side.vectors, np.float32))
            free = RESIDENT * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else np.inf
            self.resident = vectors.nbytes < free
            self._vectors = vectors.to(device) if self.resident else vectors

    def __call__(self, rows: npt.NDArray[np.int64], device: "torch.device") -> "Tensor":
        """Return rows (c, d) on `device`."""
        import torch
        from torch.nn.functional import normalize

        if self._vectors is None:
            chosen = torch.from_numpy(self._side.take(rows))
        else:
            chosen = self._vectors[torch.from_numpy(rows).to(self._vectors.device)]
        if chosen.device != device:
            chosen = chosen.pin_memory().to(device, non_blocking=True)
        Z = normalize(chosen, dim=1)
        return Z if self._mean is None else Z - self._mean


Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def batches(groups: IntArray, data: GroupedEmbeddings, training: Training, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield rows of images and of texts, one of each for every group of a batch; groups and their items shuffled."""
    chosen = [_one_of_each(side.groups, groups, rng) for side in (data.image, data.text)]
    order = _shuffled(data, chosen[0], rng)
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


def _shuffled(data: GroupedEmbeddings, images: npt.NDArray[np.int64], rng: np.random.Generator) -> IntArray:
    """Return the places of n groups, of which these rows of images (n,) were chosen, in random order."""
    sides = [side for side in (data.image, data.text) if isinstance(side, StoredEmbeddings)]
    if not sides:
        return rng.permutation(len(images))
    runs = np.array_split(np.argsort(images, kind="stable"), -(-len(images) // RUN_GROUPS))
    of_run = max(len(side.source) * side.source.parts.dim for side in sides) * np.float32().itemsize / len(runs)
    # Runs begin and end within a part, so one is counted twice.
    mixed = int(np.clip(CACHED_BYTES / (2 * of_run), 1, RUNS_MIXED))
    order = [runs[number] for number in rng.permutation(len(runs))]
    parts = [np.concatenate(order[start : start + mixed]) for start in range(0, len(order), mixed)]
    return np.concatenate([rng.permutation(part) for part in parts])
