"""What a collection holds of one modality: how many seen items, and which groups have seen or unseen ones."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from connector.releases.points import FITTED
from connector.stores.points import Record

Mask = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.int64]


def seen_among(page: Sequence[Record]) -> Mask:
    """Say of each point of a page (n,) whether the fit saw it, as the push recorded."""
    return np.array([record.payload.get("split") == FITTED for record in page], bool)


@dataclass(slots=True)
class Census:
    """Counts points, and remembers 64 bits of the name of each group, so that millions of groups fit into memory.

    Attributes:
        items: points counted.
        seen: how many of them the fit saw.
    """

    items: int = 0
    seen: int = 0
    _groups: dict[bool, list[Hashes]] = field(default_factory=lambda: {True: [], False: []})

    def add(self, page: Sequence[Record]) -> None:
        """Count the points of a page."""
        seen, groups = seen_among(page), _hashes([record.payload["group"] for record in page])
        self.items += len(page)
        self.seen += int(seen.sum())
        for kind, parts in self._groups.items():
            parts.append(groups[seen == kind])

    def join(self, other: "Census") -> None:
        """Count what another census counted, of other points."""
        self.items += other.items
        self.seen += other.seen
        for kind, parts in self._groups.items():
            parts.extend(other._groups[kind])

    def has(self, groups: Sequence[str], *, seen: bool) -> Mask:
        """Say of each of n groups whether it has seen items, or unseen ones (n,)."""
        joined = np.unique(np.concatenate([np.empty(0, np.int64), *self._groups[seen]]))
        self._groups[seen] = [joined]
        return np.isin(_hashes(groups), joined)

    @property
    def fair(self) -> float:
        """Share of the items that the fit saw: so many first places would be fair; 0 of no items."""
        return self.seen / self.items if self.items else 0.0


def _hashes(groups: Sequence[str]) -> Hashes:
    hashed = (hashlib.blake2b(group.encode(), digest_size=8).digest() for group in groups)  # the same in each process
    return np.frombuffer(b"".join(hashed), np.int64)
