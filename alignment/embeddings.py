"""Embedding sets: an encoded corpus on disk, written shard by shard, read without filling the memory.

An embedding set is a directory:

    card.json               what was encoded with what: the last thing written, and the first thing read
    image-000000.parquet    rows of one modality: key, group, content_sha256, payload (JSON), vector
    text-000000.parquet     ...

A shard appears by atomic rename after it is durable, so a killed writer leaves whole shards only.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self, get_args
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from alignment.errors import EmbeddingSetError, SetBusyError, VectorError
from alignment.vectors import FloatArray

# Directories under construction; one that nobody has touched for so long was left by a process that was killed.
BUILDING, ABANDONED_SECONDS = ".tmp", 3600

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
Dtype = Literal["float32", "float16"]

CARD = "card.json"
FORMAT = 1
# Everything of a row but its vector, which is 90% of the bytes.
IDENTITY = ["key", "group", "content_sha256", "payload"]

# Most shards that a sample is read from.
SAMPLED_SHARDS = 16


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """Which encoder made the vectors of one modality: its spec, its SHA-256 fingerprint, its dimension."""

    spec: str
    fingerprint: str
    dim: int

    def __str__(self) -> str:
        return f"{self.spec} (fingerprint {self.fingerprint[:12]}, {self.dim}-d)"


@dataclass(frozen=True, slots=True)
class SetCard:
    """What an embedding set holds.

    Attributes:
        corpus: where the items came from.
        encoders: one card a modality.
        counts: rows a modality; meaningful once `complete`.
        complete: whether the last encode reached the end of its corpus.
        fingerprint: SHA-256 over encoders and rows without their vectors, which follow from encoder and content;
            independent of the order of the rows; empty until complete.
        modalign: version that wrote the card.
    """

    name: str
    corpus: str
    encoders: dict[Modality, EncoderCard]
    dtype: Dtype = "float32"
    counts: dict[Modality, int] = field(default_factory=dict)
    complete: bool = False
    fingerprint: str = ""
    modalign: str = field(default_factory=lambda: version("modalign"))
    format: int = FORMAT

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the card of the embedding set in `directory`.

        Raises:
            EmbeddingSetError: there is no such card, or it is damaged or of another format.
        """
        path = directory / CARD
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format"] != FORMAT:
                raise EmbeddingSetError(
                    f"{directory}: expected an embedding set of format {FORMAT}, got format {raw['format']}; "
                    "read it with the modalign version that wrote it, or encode the corpus again"
                )
            raw["encoders"] = {m: EncoderCard(**card) for m, card in raw["encoders"].items()}
            whole_numbers = all(isinstance(count, int) for count in raw["counts"].values())
            if not whole_numbers or not isinstance(raw["complete"], bool) or raw["dtype"] not in get_args(Dtype):
                raise ValueError("counts, complete or dtype is not what it can be")
            return cls(**raw)
        except (FileNotFoundError, NotADirectoryError):
            raise EmbeddingSetError(
                f"{directory} is not an embedding set: it has no {CARD}; make one with `modalign encode`"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EmbeddingSetError(
                f"{path} is damaged ({error}); restore it or encode the corpus into a new set"
            ) from error

    def write(self, directory: Path) -> None:
        """Replace the card in `directory` atomically."""
        write_durably(directory / CARD, (json.dumps(asdict(self), indent=2) + "\n").encode())


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


@dataclass(frozen=True, slots=True)
class EmbeddingSet:
    """A complete embedding set, opened for reading."""

    path: Path
    card: SetCard

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the embedding set at `path`.

        Raises:
            EmbeddingSetError: no embedding set, an incomplete one, or one whose shards disagree with its card.
        """
        path = Path(path)
        card = SetCard.read(path)
        if not card.complete:
            raise EmbeddingSetError(
                f"embedding set {path} is incomplete: its encode was interrupted; run the same `modalign encode` "
                "again, it goes on after the last whole shard"
            )
        opened = cls(path, card)
        for modality, expected in card.counts.items():
            encoder = card.encoders.get(modality)
            found = sum(shard_rows(shard, encoder.dim if encoder else 0) for shard in opened.shards(modality))
            if found != expected:
                raise EmbeddingSetError(
                    f"embedding set {path}: the card promises {expected} {modality} rows, the shards hold {found}; "
                    "run the same `modalign encode` again to mend it"
                )
        return opened

    def shards(self, modality: Modality) -> list[Path]:
        """Return the shard files of `modality`, oldest first."""
        return shard_paths(self.path, modality)

    def rows(self) -> int:
        """Count the rows of a set that may be incomplete."""
        if self.card.complete:
            return sum(self.card.counts.values())
        encoders = self.card.encoders
        return sum(shard_rows(shard, encoders[m].dim) for m in encoders for shard in self.shards(m))

    def batches(self, modality: Modality, size: int) -> Iterator[tuple[str, int, Rows]]:
        """Yield `(shard file name, first row, rows)` of `modality`, at most `size` rows at a time."""
        for shard in self.shards(modality):
            for start, rows in shard_batches(shard, modality, size):
                yield shard.name, start, rows

    def sample(self, modality: Modality, count: int) -> Rows:
        """Read some rows of `modality`, about `count` in all, spread evenly over the set; few shards are read."""
        shards = self.shards(modality)
        shards = [shards[place] for place in _spread(len(shards), SAMPLED_SHARDS)]
        parts = []
        for shard in shards:
            rows = read_shard(shard, modality)
            parts.append(rows.take(_spread(len(rows), -(-count // len(shards)))))
        return Rows.concatenate(parts)

    def read(self, modality: Modality) -> Iterator[Rows]:
        """Yield every row of `modality`, a shard at a time.

        Raises:
            EmbeddingSetError: the set holds no row of this modality.
        """
        if not (shards := self.shards(modality)):
            raise EmbeddingSetError(
                f"embedding set {self.path} holds no {modality} rows; encode a corpus that has some"
            )
        yield from (read_shard(shard, modality) for shard in shards)

    def load(self, modality: Modality) -> Rows:
        """Read every row of `modality` into memory.

        Raises:
            EmbeddingSetError: the set holds no row of this modality.
        """
        return Rows.concatenate(list(self.read(modality)))

    def labels(self, modality: Modality) -> Iterator[tuple[list[str], list[str]]]:
        """Yield keys and groups of every row of `modality`, a shard at a time; vectors are not read."""
        for shard in self.shards(modality):
            table = _read(shard, ["key", "group"])
            yield table.column("key").to_pylist(), table.column("group").to_pylist()


class SetWriter:
    """An embedding set, opened for writing by one process.

    Use as a context manager. Rows are appended as whole shards; a row whose key stands in a newer shard too is
    superseded, and leaves its shard with `drop`. `finish` makes the set complete.

    Attributes:
        path: directory of the set.
        card: what stands in its card now.
    """

    def __init__(self, path: Path, *, corpus: str, encoders: Mapping[Modality, EncoderCard], dtype: Dtype = "float32"):
        self.path = path
        self.card = SetCard(path.name, corpus, dict(encoders), dtype)
        self._made = False
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SetBusyError(
                f"embedding set {self.path} is being written by another process; wait for it or stop it"
            ) from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and self._made and [entry.name for entry in self.path.iterdir()] == [CARD]:
                shutil.rmtree(self.path)  # a set that never got a row is none
        finally:
            self._lock.release()

    def _open(self) -> None:
        leftovers = set(self.path.glob("*.tmp"))  # of a writer that was killed, maybe before its first card
        if self.path.exists() and (not self.path.is_dir() or set(self.path.iterdir()) - leftovers):
            self._reopen(SetCard.read(self.path))
        else:
            self.path.mkdir(exist_ok=True)
            self.card.write(self.path)
            self._made = True
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)

    def _reopen(self, existing: SetCard) -> None:
        if existing.dtype != self.card.dtype:
            raise EmbeddingSetError(
                f"embedding set {self.path} stores {existing.dtype}, asked for {self.card.dtype}; "
                "name another --set or keep the type"
            )
        for modality in MODALITIES:
            old, new = existing.encoders.get(modality), self.card.encoders.get(modality)
            if old and new and old != new:
                raise EmbeddingSetError(
                    f"embedding set {self.path} holds {modality} vectors of {old}, asked to add vectors of {new}; "
                    "vectors of two encoders cannot be mixed: name another --set"
                )
        self.card = replace(existing, corpus=self.card.corpus, encoders={**existing.encoders, **self.card.encoders})

    def append(self, rows: Rows) -> Path:
        """Write `rows` as a new shard: durable and visible when this returns."""
        if self.card.complete:
            self.card = replace(self.card, complete=False, fingerprint="")
        self.card.write(self.path)
        existing = shard_paths(self.path, rows.modality)
        number = int(existing[-1].stem.rpartition("-")[2]) + 1 if existing else 0
        path = self.path / f"{rows.modality}-{number:06d}.parquet"
        write_shard(path, rows, self.card.dtype)
        return path

    def drop(self, shard: Path, modality: Modality, rows: set[int]) -> None:
        """Rewrite `shard` without the rows with these numbers; the file goes when no row is left."""
        table = read_shard(shard, modality)
        kept = [row for row in range(len(table)) if row not in rows]
        if kept:
            write_shard(shard, table.take(kept), self.card.dtype)
        else:
            shard.unlink()

    def finish(self) -> None:
        """Count and fingerprint what is there and mark the set complete; changes nothing if nothing changed."""
        counts: dict[Modality, int] = {}
        total = int.from_bytes(hashlib.sha256(repr(sorted(self.card.encoders.items())).encode()).digest())
        for modality in MODALITIES:
            counts[modality] = 0
            for _, identity in self.identities(modality):
                for row in zip(*identity.to_pydict().values(), strict=True):
                    digest = hashlib.sha256(json.dumps([modality, *row]).encode()).digest()
                    # A sum does not depend on the order of the rows, which tells a set's history, not its content.
                    total = (total + int.from_bytes(digest)) % 2**256
                    counts[modality] += 1
        finished = replace(self.card, counts=counts, complete=True, fingerprint=f"{total:064x}")
        if finished != SetCard.read(self.path):
            finished.write(self.path)
        self.card = finished

    def identities(self, modality: Modality) -> Iterator[tuple[Path, pa.Table]]:
        """Yield every shard of `modality` with its columns except the vectors, oldest first."""
        for shard in shard_paths(self.path, modality):
            yield shard, _read(shard, IDENTITY)


@dataclass(frozen=True, slots=True)
class HoldOut:
    """Which groups are held out from a fit: decided by a hash of the group alone.

    So a group stays on its side when the corpus grows, in every embedding set, without a list of names.

    >>> HoldOut(fraction=0.5).held_out(["a", "b", "c", "d"])
    array([ True, False,  True,  True])
    """

    fraction: float = 0.25
    seed: int = 0

    def held_out(self, groups: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Say for each of n groups whether it is held out: (n,) bool."""
        salt = f"{self.seed}\0".encode()
        draws = [int.from_bytes(hashlib.sha256(salt + group.encode()).digest()[:8]) / 2**64 for group in groups]
        return np.array(draws, dtype=np.float64) < self.fraction


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly spread."""
    return list(range(0, count, -(-count // most))) if count else []


def shard_paths(directory: Path, modality: Modality) -> list[Path]:
    """Return the shard files of `modality` in `directory`, oldest first."""
    return sorted(directory.glob(f"{modality}-*.parquet"))


def shard_rows(path: Path, dim: int) -> int:
    """Return the number of rows of a shard with vectors of dimension `dim`, from its footer."""
    try:
        with pq.ParquetFile(path) as file:
            rows, layout = int(file.metadata.num_rows), file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    vector = layout.field("vector").type if "vector" in layout.names else None
    if vector is not None and pa.types.is_fixed_size_list(vector) and vector.list_size != dim:
        raise EmbeddingSetError(
            f"shard {path}: expected vectors of dimension {dim}, as the card says, got {vector.list_size}; encode the "
            "corpus into a new set"
        )
    return rows


def read_shard(path: Path, modality: Modality) -> Rows:
    """Read a whole shard."""
    return Rows.from_arrow(modality, _read(path, [*IDENTITY, "vector"]))


def shard_batches(path: Path, modality: Modality, size: int) -> Iterator[tuple[int, Rows]]:
    """Yield `(first row, rows)` of a shard, at most `size` rows at a time."""
    rows = read_shard(path, modality)
    for start in range(0, len(rows), size):
        yield start, rows.take(range(start, min(start + size, len(rows))))


def write_shard(path: Path, rows: Rows, dtype: Dtype) -> None:
    """Write `rows` to `path`: complete and durable, or not at all."""
    sink = pa.BufferOutputStream()
    # Embeddings are noise to a compressor; text compresses well.
    compression = {**dict.fromkeys(IDENTITY, "zstd"), "vector.list.element": "none"}
    pq.write_table(
        rows.to_arrow(dtype), sink, compression=compression, use_dictionary=["group"], write_page_checksum=True
    )
    write_durably(path, sink.getvalue())


def write_durably(path: Path, content: Any) -> None:
    """Replace the file at `path` by `content` (bytes) atomically; after a power cut it is the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory to fill, which becomes `path` as a whole when the block ends, and nothing when it raises.

    Of several that make the same one the first wins, and the others are refused.

    Raises:
        FileExistsError: `path` is there, and no empty directory.
    """
    path = path.absolute()
    _require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*{BUILDING}"):
        with suppress(FileNotFoundError):  # whoever fills it may be ready just now
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    building = path.with_name(f".{path.name}.{uuid4().hex}{BUILDING}")
    building.mkdir()
    try:
        yield building
        _require_free(path)
        if path.exists():
            path.rmdir()  # an empty one, which not every system replaces
        building.rename(path)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(path) from None
        raise
    sync_directory(path.parent)


def _require_free(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(path)


def sync_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no directories
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            types = {field.name: field.type for field in file.schema_arrow}
            if missing := {*IDENTITY, "vector"} - types.keys():
                raise EmbeddingSetError(
                    f"{path} is no shard of an embedding set: it has no column {', '.join(sorted(missing))}"
                )
            vectors = types.pop("vector")
            numbers = pa.types.is_fixed_size_list(vectors) and pa.types.is_floating(vectors.value_type)
            if not numbers or not all(types[name] == pa.string() for name in IDENTITY):
                raise EmbeddingSetError(f"{path} is no shard of an embedding set: a column is of another type")
            table = file.read(columns=columns)
            if gaps := [name for name in columns if table.column(name).null_count]:
                raise EmbeddingSetError(
                    f"{path} is no shard of an embedding set: {', '.join(gaps)} of some rows is null"
                )
            return table
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> EmbeddingSetError:
    return EmbeddingSetError(
        f"shard {path} cannot be read ({error}); delete it and run the same `modalign encode` again"
    )
