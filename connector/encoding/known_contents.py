"""The contents that have a vector already, as a worker gets them: sorted hashes, 32 bytes each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignment.modality import Modality

Digests = npt.NDArray[np.bytes_]

DIGEST = np.dtype("S32")


def digests(contents: list[str]) -> Digests:
    """Return SHA-256 in hexadecimal digits as an array (n,) of 32 bytes each."""
    return np.frombuffer(bytes.fromhex("".join(contents)), DIGEST)


@dataclass(frozen=True, slots=True)
class KnownContents:
    """The hashes of contents that an embedding set holds vectors of, by modality: sorted arrays of 32 bytes each.

    They are those at the beginning of a pass, for every unit of it: what a worker encodes depends on nothing that other
    workers do meanwhile.
    """

    sorted_digests: Mapping[Modality, Digests] = field(default_factory=dict)

    def among(self, modality: Modality, contents: list[str]) -> set[str]:
        """Return those of some contents, by SHA-256, that there is a vector of. Thread-safe."""
        known = self.sorted_digests.get(modality)
        if known is None or not len(known) or not contents:
            return set()
        asked = digests(contents)
        places = np.minimum(known.searchsorted(asked), len(known) - 1)
        return {content for content, found in zip(contents, (known[places] == asked).tolist(), strict=True) if found}
