"""What a fit saw: the items that sit on their own partners, as opposed to all that come later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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
    """

    contents: Prefixes = field(default_factory=_no_prefixes)

    def __len__(self) -> int:
        return len(self.contents)

    @classmethod
    def of(cls, content_sha256: Sequence[str]) -> "SeenItems":
        """Record the contents of the rows that took part in a fit."""
        return cls(np.unique(prefixes(content_sha256)))

    def holds(self, content_sha256: Sequence[str]) -> Mask:
        """Say for each of n contents whether the fit saw it: (n,) bool."""
        return np.isin(prefixes(content_sha256), self.contents)

    def tensors(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Everything it holds, by name; nothing where nothing is recorded."""
        return {"contents": self.contents} if len(self) else {}
