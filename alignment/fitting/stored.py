"""Vectors that stay on disk while something is fitted on them: read a part at a time, in the order of the disk.

Few rows are needed again and again, those that candidates are measured on. They are reserved before the others are
read, and kept when their part comes by: so one pass serves all.
"""

import tempfile
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import Self

import numpy as np
from typing_extensions import override

from alignment.errors import FitError
from alignment.modality import Modality
from alignment.model.projections import Projection
from alignment.plurals import counted
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings, Rows
from alignment.retrieval.ranks import IntArray
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.shards import read_columns, shard_rows, vectors_of
from alignment.vectors import FloatArray, invalid_rows

# Bytes of decoded parts that are kept for what asks next, a modality.
CACHED_BYTES = 1 << 28
# Rows of a part of a file of vectors.
FILE_ROWS = 4096
# Rows that are asked for at once while one checks whether the texts lie in the order of the images.
ASKED_ROWS = 8192
# Parts may be read so many times before it is better to write the vectors anew in the order that they are asked in.
READ_AGAIN = 2


class Parts(ABC):
    """The n vectors of one modality, cut into parts.

    Attributes:
        starts: the first row of every part, and n (p + 1,).
        dim: coordinates of a vector.
        dtype: that they are stored in.
    """

    starts: IntArray
    dim: int
    dtype: str

    @abstractmethod
    def read(self, part: int) -> FloatArray:
        """Return the vectors (m, d) of the part with this number."""

    def of_rows(self, rows: Rows) -> IntArray:
        """Return the number of the part that each row is in."""
        return np.searchsorted(self.starts, rows, side="right") - 1


class ShardParts(Parts):
    """The shards of embedding sets of the same encoder, one after the other."""

    def __init__(self, sets: Sequence[EmbeddingSet], modality: Modality):
        self._paths = [path for embedding_set in sets for path in embedding_set.shards(modality)]
        self._modality = modality
        card = sets[0].card
        self.dim, self.dtype = card.encoders[modality].dim, card.dtype
        self.starts = np.array([0, *accumulate(shard_rows(path, self.dim) for path in self._paths)], np.int64)

    @override
    def read(self, part: int) -> FloatArray:
        """Return the vectors of a shard.

        Raises:
            FitError: some of them cannot be used.
        """
        path = self._paths[part]
        vectors = vectors_of(read_columns(path, ["vector"]))
        if invalid := invalid_rows(vectors):
            row = next(iter(invalid))
            refuse(invalid, self._modality, read_columns(path, ["key"]).column("key")[row].as_py())
        return vectors


class FileParts(Parts):
    """Vectors in a file of this process, in another order than those that it was made of."""

    def __init__(self, source: Parts, rows: Rows):
        """Write the vectors of `rows` (n,) of `source`, in this order, and read each part of it once.

        Raises:
            FitError: there is no room for the file.
        """
        self.dim, self.dtype = source.dim, source.dtype
        self.starts = np.array([*range(0, len(rows), FILE_ROWS), len(rows)], np.int64)
        self._row_bytes = source.dim * np.dtype(source.dtype).itemsize
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it is closed with this object
            weakref.finalize(self, self._file.close)
            self._write(source, rows)
        except OSError as error:
            raise FitError(
                f"captions do not lie in the order of the images, and sorting their vectors takes a file of "
                f"{len(rows) * self._row_bytes / 2**30:.1f} GiB in {tempfile.gettempdir()}: {error}; make room there, "
                "or name another directory by the variable TMPDIR"
            ) from error

    def _write(self, source: Parts, rows: Rows) -> None:
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], source.starts)
        for part in np.flatnonzero(np.diff(ends)):
            places = order[ends[part] : ends[part + 1]]
            places = np.sort(places)
            vectors = source.read(int(part))[rows[places] - source.starts[part]].astype(self.dtype)
            for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):
                self._file.seek(int(places[run[0]]) * self._row_bytes)
                self._file.write(vectors[run].tobytes())

    @override
    def read(self, part: int) -> FloatArray:
        self._file.seek(int(self.starts[part]) * self._row_bytes)
        stored = self._file.read(int(self.starts[part + 1] - self.starts[part]) * self._row_bytes)
        return np.frombuffer(stored, self.dtype).astype(np.float32).reshape(-1, self.dim)


class StoredVectors:
    """Vectors (n, d) that are read by row: those that are reserved once, the others a part at a time."""

    def __init__(self, parts: Parts):
        self.parts = parts
        self._cached: OrderedDict[int, FloatArray] = OrderedDict()
        self._cached_bytes = 0
        self._reserved = np.empty(0, np.int64)
        self._kept = np.empty((0, parts.dim), np.float32)
        self._is_kept = np.empty(0, np.bool_)

    def __len__(self) -> int:
        return int(self.parts.starts[-1])

    def reserve(self, rows: Rows) -> None:
        """Say that these rows are asked for later: they are kept when their part is read."""
        reserved = np.union1d(self._reserved, rows)
        kept, is_kept = np.empty((len(reserved), self.parts.dim), np.float32), np.zeros(len(reserved), np.bool_)
        if self._is_kept.any():
            before = np.searchsorted(reserved, self._reserved)
            kept[before], is_kept[before] = self._kept, self._is_kept
        self._reserved, self._kept, self._is_kept = reserved, kept, is_kept

    def take(self, rows: Rows) -> FloatArray:
        """Return the vectors of rows (n,) in their order, (n, d)."""
        vectors = np.empty((len(rows), self.parts.dim), np.float32)
        place = np.minimum(np.searchsorted(self._reserved, rows), max(0, len(self._reserved) - 1))
        is_kept = np.zeros(len(rows), np.bool_)
        if len(self._reserved):
            is_kept = (self._reserved[place] == rows) & self._is_kept[place]
            vectors[is_kept] = self._kept[place[is_kept]]
        others = np.flatnonzero(~is_kept)
        parts = self.parts.of_rows(rows[others])
        order = np.argsort(parts, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(parts[order])) + 1):
            if len(some):
                part, into = int(parts[some[0]]), others[some]
                vectors[into] = self._part(part)[rows[into] - self.parts.starts[part]]
        return vectors

    def release(self) -> None:
        """Forget all parts; rows that are reserved stay."""
        self._cached.clear()
        self._cached_bytes = 0

    def _part(self, number: int) -> FloatArray:
        if number in self._cached:
            self._cached.move_to_end(number)
            return self._cached[number]
        vectors = self.parts.read(number)
        start, end = np.searchsorted(self._reserved, self.parts.starts[number : number + 2])
        self._kept[start:end] = vectors[self._reserved[start:end] - self.parts.starts[number]]
        self._is_kept[start:end] = True
        self._cached[number] = vectors
        self._cached_bytes += vectors.nbytes
        while self._cached_bytes > CACHED_BYTES and len(self._cached) > 1:
            self._cached_bytes -= self._cached.popitem(last=False)[1].nbytes
        return vectors


class StoredEmbeddings(ModalityEmbeddings):
    """Vectors on disk with the codes of their groups. `vectors` reads them all, `take` some.

    Args:
        source: where they are read.
        rows: which of its rows (n,), ascending.
        groups: codes (n,).
        projection: that they are mapped by when they are read; None: they come as they are.
    """

    source: StoredVectors
    rows: Rows
    projection: Projection | None

    __slots__ = ("projection", "rows", "source")

    def __init__(self, source: StoredVectors, rows: Rows, groups: IntArray, projection: Projection | None = None):
        for name, value in (("source", source), ("rows", rows), ("groups", groups), ("projection", projection)):
            object.__setattr__(self, name, value)

    @property
    def vectors(self) -> FloatArray:
        """All vectors (n, d), read now."""
        return self.take(np.arange(len(self.rows)))

    @property
    @override
    def dim(self) -> int:
        return self.source.parts.dim if self.projection is None else self.projection.out_dim

    @property
    @override
    def is_stored(self) -> bool:
        return True

    @override
    def take(self, rows: Rows) -> FloatArray:
        vectors = self.source.take(self.rows[rows])
        return vectors if self.projection is None else self.projection.unchecked(vectors)

    @override
    def reserve(self, rows: Rows) -> None:
        self.source.reserve(self.rows[rows])

    @override
    def release(self) -> None:
        self.source.release()

    @override
    def where(self, mask: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> Self:
        return type(self)(self.source, self.rows[mask], self.groups[mask], self.projection)

    @override
    def joined(self, other: ModalityEmbeddings) -> ModalityEmbeddings:
        assert isinstance(other, StoredEmbeddings)
        rows, groups = np.concatenate([self.rows, other.rows]), np.concatenate([self.groups, other.groups])
        return type(self)(self.source, rows, groups, self.projection)

    @override
    def project(self, projection: Projection) -> ModalityEmbeddings:
        return type(self)(self.source, self.rows, self.groups, projection)


def refuse(invalid: dict[int, str], modality: Modality, first: str) -> None:
    """Raise a `FitError` about vectors that cannot be used, by the key of the first."""
    reason = next(iter(invalid.values()))
    raise FitError(
        f"{counted(len(invalid), f'{modality} vector')} cannot be used, the first is key {first!r}: {reason}; encode "
        "those items again or remove them"
    )


def in_order_of_images(data: GroupedEmbeddings) -> GroupedEmbeddings:
    """Return stored embeddings whose texts can be read in the order of their images.

    Sets that were encoded together are returned as they are. Where texts lie in another order, reading them would read
    the whole set many times: then their vectors are written to a temporary file, in the order of the images.
    """
    image, text = data.image, data.text
    assert isinstance(image, StoredEmbeddings)
    assert isinstance(text, StoredEmbeddings)
    first = np.full(1 + max(int(image.groups.max()), int(text.groups.max())), len(image.rows))
    first[image.groups[::-1]] = np.arange(len(image.rows))[::-1]
    order = np.argsort(first[text.groups], kind="stable")
    parts = text.source.parts.of_rows(text.rows)
    asked = range(0, len(order), ASKED_ROWS)
    reads = sum(len(np.unique(parts[order[start : start + ASKED_ROWS]])) for start in asked)
    if reads <= READ_AGAIN * (len(np.unique(parts)) + len(asked)):
        return data
    source = StoredVectors(FileParts(text.source.parts, text.rows[order]))
    return GroupedEmbeddings(image, StoredEmbeddings(source, np.arange(len(order)), text.groups[order]))
