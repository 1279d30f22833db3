"""The hold-out: which groups a fit never sees."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class HoldOut:
    """Which groups are held out from a fit: decided by a hash of the group alone.

    So a group keeps its side as the corpus grows, in every embedding set, without a list of names.

    >>> HoldOut(fraction=0.5).held_out(["a", "b", "c", "d"])
    array([ True, False,  True,  True])
    """

    fraction: float = 0.25
    seed: int = 0

    def held_out(self, groups: Sequence[str]) -> "npt.NDArray[np.bool_]":
        """Say for each of n groups whether it is held out: (n,) bool."""
        import numpy as np  # here, because cards name a hold-out, and who only lists cards need not load numpy

        salt = f"{self.seed}\0".encode()
        draws = [int.from_bytes(hashlib.sha256(salt + group.encode()).digest()[:8]) / 2**64 for group in groups]
        return np.array(draws, dtype=np.float64) < self.fraction
