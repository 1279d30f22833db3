"""Rows of an embedding set in memory."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.modality import Modality
from alignment.vectors import FloatArray

# Everything of a row but its vector, which is 90% of the bytes.
IDENTITY = ["key", "group", "content_sha256", "payload"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of one modality: n keys, groups, content hashes, payloads as JSON text, vectors (n, d) float32."""

    modality: Modality
    keys: list[str]
    groups: list[str]
    content_sha256: list[str]
    payloads: list[str]
    vectors: FloatArray

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Iterable[int]) -> "Rows":
        """Return the rows with these numbers, in this order."""
        index = list(rows)
        keys, groups, hashes, payloads = ([column[i] for i in index] for column in self.identity())
        return Rows(self.modality, keys, groups, hashes, payloads, self.vectors[index])

    def digest(self) -> str:
        """SHA-256 over everything these rows hold, vectors included."""
        sha = hashlib.sha256(json.dumps([self.modality, *self.identity()]).encode())
        sha.update(np.ascontiguousarray(self.vectors).data)
        return sha.hexdigest()

    def identity(self) -> tuple[list[str], list[str], list[str], list[str]]:
        """Everything of the rows but their vectors, in the order of `IDENTITY`."""
        return self.keys, self.groups, self.content_sha256, self.payloads

    @classmethod
    def concatenate(cls, parts: Sequence["Rows"]) -> "Rows":
        """Join parts of one modality, at least one, in their order."""
        keys, groups, hashes, payloads = (
            [value for part in columns for value in part]
            for columns in zip(*(part.identity() for part in parts), strict=True)
        )
        vectors = np.concatenate([part.vectors for part in parts])
        return cls(parts[0].modality, keys, groups, hashes, payloads, vectors)
