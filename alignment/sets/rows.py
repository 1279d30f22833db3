"""Rows of an embedding set in memory."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from alignment.errors import VectorError
from alignment.interrupts import uninterrupted
from alignment.modality import Modality
from alignment.sets.cards import Dtype
from alignment.vectors import FloatArray

# Everything of a row but its vector, which is 90% of the bytes.
IDENTITY = ["key", "group", "content_sha256", "payload"]

# At its first conversion, pyarrow tries to import pandas, and loses a Ctrl-C that comes meanwhile.
with uninterrupted():
    pa.array([0.0]).to_numpy(zero_copy_only=False)


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
        keys, groups, hashes, payloads = ([column[i] for i in index] for column in self._identity())
        return Rows(self.modality, keys, groups, hashes, payloads, self.vectors[index])

    def digest(self) -> str:
        """SHA-256 over everything these rows hold, vectors included."""
        sha = hashlib.sha256(json.dumps([self.modality, *self._identity()]).encode())
        sha.update(np.ascontiguousarray(self.vectors).data)
        return sha.hexdigest()

    def _identity(self) -> tuple[list[str], list[str], list[str], list[str]]:
        return self.keys, self.groups, self.content_sha256, self.payloads

    @classmethod
    def concatenate(cls, parts: Sequence["Rows"]) -> "Rows":
        """Join parts of one modality, at least one, in their order."""
        keys, groups, hashes, payloads = (
            [value for part in columns for value in part]
            for columns in zip(*(part._identity() for part in parts), strict=True)
        )
        vectors = np.concatenate([part.vectors for part in parts])
        return cls(parts[0].modality, keys, groups, hashes, payloads, vectors)

    @classmethod
    def from_arrow(cls, modality: Modality, table: pa.Table | pa.RecordBatch) -> "Rows":
        """Take rows out of an Arrow table in the layout of a shard."""
        vectors = table.column("vector")
        if isinstance(vectors, pa.ChunkedArray):
            vectors = vectors.combine_chunks()
        flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        keys, groups, hashes, payloads = (table.column(name).to_pylist() for name in IDENTITY)
        return cls(modality, keys, groups, hashes, payloads, flat.reshape(-1, vectors.type.list_size))

    def to_arrow(self, dtype: Dtype) -> pa.Table:
        """Lay the rows out as a shard with vectors of `dtype`.

        Raises:
            VectorError: a value is too large for `dtype`.
        """
        dim = self.vectors.shape[1]
        with np.errstate(over="ignore"):
            stored = self.vectors.astype(dtype)
        if len(overflown := np.flatnonzero((np.isinf(stored) & np.isfinite(self.vectors)).any(axis=1))):
            raise VectorError(
                f"{len(overflown)} {self.modality} vectors, the first of key {self.keys[overflown[0]]!r}, have values "
                f"beyond the {np.finfo(dtype).max:g} that {dtype} can hold; store float32"
            )
        flat = pa.array(stored.reshape(-1))
        columns = [pa.array(column, pa.string()) for column in self._identity()]
        return pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, dim)], names=[*IDENTITY, "vector"])
