"""Parquet shards of an embedding set."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alignment.arrow import look_for_pandas
from alignment.durable import write_durably
from alignment.errors import EmbeddingSetError, VectorError
from alignment.modality import Modality
from alignment.object_storage import as_remote, is_remote
from alignment.sets.cards import Dtype
from alignment.sets.rows import IDENTITY, Rows
from alignment.vectors import FloatArray

T = TypeVar("T")

REQUESTS = 16  # shards of which columns are read at a time from object storage
WHOLE_SHARDS = 3  # and whole ones, with their vectors

# Embeddings are noise to a compressor; text compresses well. Nobody asks for the least and the largest of their values,
# and finding them takes two fifths of the time of writing.
PARQUET: Mapping[str, Any] = {
    "compression": {**dict.fromkeys(IDENTITY, "zstd"), "vector.list.element": "none"},
    "use_dictionary": ["group"],
    "write_statistics": list(IDENTITY),
    "write_page_checksum": True,
}


def shard_paths(directory: Path, modality: Modality) -> list[Path]:
    """Return the shard files of `modality` in `directory`, oldest first."""
    return sorted(directory.glob(f"{modality}-*.parquet"))


def source(path: Path, *, whole: bool = False) -> Any:
    """Return what pyarrow reads a shard from: its path, or an object, of which it reads all or the ranges it needs."""
    remote = as_remote(path)
    if remote is None:
        return path
    return pa.BufferReader(remote.read_bytes()) if whole else remote.ranges()


def read_ahead(shards: Iterable[Path], read: Callable[[Path], T], most: int = REQUESTS) -> Iterator[T]:
    """Yield what `read` returns for each shard, in order. In object storage `most` are read at a time, by threads."""
    shards = list(shards)
    if not shards or not is_remote(shards[0]):
        yield from map(read, shards)
        return
    with ThreadPoolExecutor(most) as threads:
        running: deque[Future[T]] = deque()
        try:
            for shard in shards:
                running.append(threads.submit(read, shard))
                if len(running) >= most:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def shard_rows(path: Path, dim: int) -> int:
    """Return the number of rows of a shard with vectors of dimension `dim`, from its footer."""
    try:
        with pq.ParquetFile(source(path)) as file:
            rows, layout = int(file.metadata.num_rows), file.schema_arrow
    except (OSError, pa.ArrowException, MemoryError) as error:
        raise _unreadable(path, error) from error
    vector = layout.field("vector").type if "vector" in layout.names else None
    if vector is not None and pa.types.is_fixed_size_list(vector) and vector.list_size != dim:
        raise EmbeddingSetError(
            f"shard {path}: expected vectors of dimension {dim}, as the card says, got {vector.list_size}; encode the "
            "corpus into a new set"
        )
    return rows


def read_shard(path: Path, modality: Modality) -> Rows:
    """Return all rows of the shard at `path`."""
    return rows_of(modality, read_columns(path, [*IDENTITY, "vector"]))


def shard_batches(path: Path, modality: Modality, size: int) -> Iterator[tuple[int, Rows]]:
    """Yield `(first row, rows)` of a shard, at most `size` rows at a time."""
    rows = read_shard(path, modality)
    for start in range(0, len(rows), size):
        yield start, rows.take(range(start, min(start + size, len(rows))))


def write_shard(path: Path, rows: Rows, dtype: Dtype) -> None:
    """Write `rows` to `path`: complete and durable, or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table_of(rows, dtype), sink, **PARQUET)
    write_durably(path, sink.getvalue())


def read_columns(path: Path, columns: list[str]) -> pa.Table:
    """Read some columns of a shard; each page is verified against its checksum.

    Raises:
        EmbeddingSetError: the file is damaged, or no shard: columns are missing, of another type, or hold nulls.
    """
    try:
        # Buffering ahead joins the ranges of columns to one request, and needs a thread.
        with pq.ParquetFile(
            source(path, whole="vector" in columns), page_checksum_verification=True, pre_buffer=is_remote(path)
        ) as file:
            types = {field.name: field.type for field in file.schema_arrow}
            if missing := {*IDENTITY, "vector"} - types.keys():
                raise EmbeddingSetError(
                    f"{path} is no shard of an embedding set: it has no column {', '.join(sorted(missing))}"
                )
            vectors = types.pop("vector")
            numbers = pa.types.is_fixed_size_list(vectors) and pa.types.is_floating(vectors.value_type)
            if not numbers or not all(types[name] == pa.string() for name in IDENTITY):
                raise EmbeddingSetError(f"{path} is no shard of an embedding set: a column is of another type")
            table = _read(file, columns)
            if gaps := [name for name in columns if table.column(name).null_count]:
                raise EmbeddingSetError(
                    f"{path} is no shard of an embedding set: {', '.join(gaps)} of some rows is null"
                )
            return table
    except (OSError, pa.ArrowException, UnicodeDecodeError, MemoryError) as error:
        raise _unreadable(path, error) from error


def _read(file: pq.ParquetFile, columns: list[str]) -> pa.Table:
    try:
        return file.read(columns=columns)
    except pa.ArrowException as error:
        if type(error) is not pa.ArrowException:  # of no kind: no thread could be started
            raise
        return file.read(columns=columns, use_threads=False)


def _unreadable(path: Path, error: Exception) -> EmbeddingSetError:
    """Say that a shard is damaged only where its content proves it. Deleting a sound one would lose its rows."""
    if _proves_damage(path, error):
        return EmbeddingSetError(
            f"shard {path} is damaged ({error}); delete it and run the command that made the set again, "
            "`modalign encode` or `modalign import`",
            code="shard-damaged",
        )
    return EmbeddingSetError(
        f"shard {path} could not be read ({error}), which does not say that it is damaged; see that the file can be "
        "read and that there is enough memory and room for threads, and run the command again",
        code="shard-unreadable",
    )


def _proves_damage(path: Path, error: Exception) -> bool:
    """Whether reading failed because of what the file holds, and not for want of rights, memory or threads."""
    if isinstance(error, MemoryError) or type(error) is pa.ArrowException or "alloc" in str(error).lower():
        return False
    return path.is_file() and not (isinstance(error, OSError) and error.errno is not None)


def rows_of(modality: Modality, table: pa.Table | pa.RecordBatch) -> Rows:
    """Take rows out of an Arrow table in the layout of a shard."""
    keys, groups, hashes, payloads = (table.column(name).to_pylist() for name in IDENTITY)
    return Rows(modality, keys, groups, hashes, payloads, vectors_of(table))


def vectors_of(table: pa.Table | pa.RecordBatch) -> FloatArray:
    """Return the vectors (n, d) of an Arrow table in the layout of a shard, float32."""
    vectors = table.column("vector")
    if isinstance(vectors, pa.ChunkedArray):
        vectors = vectors.combine_chunks()
    dim = vectors.type.list_size
    numbers = vectors.values.slice(vectors.offset * dim, len(vectors) * dim)  # `flatten` imports pyarrow.compute
    read = numbers.to_numpy(zero_copy_only=False) if numbers.null_count else np.from_dlpack(numbers)
    flat: FloatArray = read.astype(np.float32)
    return flat.reshape(-1, dim)


def table_of(rows: Rows, dtype: Dtype) -> pa.Table:
    """Lay rows out as a shard with vectors of `dtype`.

    Raises:
        VectorError: a value is too large for `dtype`.
    """
    dim = rows.vectors.shape[1]
    with np.errstate(over="ignore"):
        stored = rows.vectors.astype(dtype)
    if len(overflown := np.flatnonzero((np.isinf(stored) & np.isfinite(rows.vectors)).any(axis=1))):
        raise VectorError(
            f"{len(overflown)} {rows.modality} vectors, the first of key {rows.keys[overflown[0]]!r}, have values "
            f"beyond the {np.finfo(dtype).max:g} that {dtype} can hold; store float32"
        )
    look_for_pandas()
    flat = pa.array(stored.reshape(-1))
    columns = [pa.array(column, pa.string()) for column in rows.identity()]
    return pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, dim)], names=[*IDENTITY, "vector"])
