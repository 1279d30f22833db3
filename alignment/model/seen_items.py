"""What a fit saw: the items that sit on their own partners, and where they would stand had the fit not seen them.

Field names: seen and unseen classes of generalised zero-shot learning (Chao, Changpinyo, Gong and Sha, ECCV 2016).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignment.vectors import FloatArray

Mask = npt.NDArray[np.bool_]
Prefixes = npt.NDArray[np.uint64]
# Hexadecimal digits of a SHA-256 that tell contents apart: 64 bits. Of a million seen and a million new items, one new
# one in twenty million is taken for seen.
DIGITS = 16


def _no_prefixes() -> Prefixes:
    return np.empty(0, np.uint64)


def prefixes(content_sha256: Sequence[str]) -> Prefixes:
    """Return the first 64 bits of each of n SHA-256 in hexadecimal, (n,)."""
    return np.array([int(sha[:DIGITS], 16) for sha in content_sha256], np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class SeenItems:
    """The items of one modality that took part in a fit, by their content: a vector follows from nothing else.

    An item that was deleted and added anew is seen; one that has another content since is not.

    Attributes:
        contents: 64 bits of each content's SHA-256, ascending and distinct (n,). Empty where nothing is recorded.
        fold_contents: those of a sample that fold projections are kept of (p,), in no order.
        fold_projections: where that sample stands if it is projected by a fit on other folds, which never saw it, and
            rotated into the shared space: unit vectors (p, d). They stand for queries about seen items.
    """

    contents: Prefixes = field(default_factory=_no_prefixes)
    fold_contents: Prefixes = field(default_factory=_no_prefixes)
    fold_projections: FloatArray = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def __len__(self) -> int:
        return len(self.contents)

    @classmethod
    def of(cls, content_sha256: Sequence[str]) -> "SeenItems":
        """Record the contents of the rows that took part in a fit."""
        return cls(np.unique(prefixes(content_sha256)))

    def holds(self, content_sha256: Sequence[str]) -> Mask:
        """Say for each of n contents whether the fit saw it: (n,) bool."""
        return np.isin(prefixes(content_sha256), self.contents)

    def folded(self, content_sha256: Sequence[str]) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return the numbers (m,) of those of n contents that have a fold projection, and these (m, d)."""
        places = {prefix: place for place, prefix in enumerate(self.fold_contents.tolist())}
        found = [
            (row, places[prefix]) for row, prefix in enumerate(prefixes(content_sha256).tolist()) if prefix in places
        ]
        rows, chosen = np.array(found, np.int64).reshape(-1, 2).T
        return rows, self.fold_projections[chosen]

    def tensors(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Everything it holds, by name; nothing where nothing is recorded."""
        if not len(self):
            return {}
        return {
            "contents": self.contents,
            "fold_contents": self.fold_contents,
            "fold_projections": self.fold_projections,
        }
