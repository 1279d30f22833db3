"""Tables with the vectors of their rows, in arrays beside them or in columns of their own, read batch by batch.

Arrays are memory-mapped and never unpickled.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.arrow import look_for_pandas
from alignment.errors import StorageError
from alignment.modality import Modality
from alignment.object_storage import RemoteFile, as_remote
from alignment.vectors import FloatArray, invalid_rows
from connector.corpora.opening import parquet_file
from connector.corpora.parquet_manifest import records
from connector.errors import CorpusError
from connector.rejects import Reason

BATCH_ROWS = 1024
WRONG_DIMENSION = Reason.VECTOR_DIMENSION


@dataclass(frozen=True, slots=True)
class VectorTable:
    """A table with the vectors of its rows, in arrays beside it or in columns of its own."""

    table: Path
    arrays: Mapping[Modality, Path] = field(default_factory=dict)
    columns: Mapping[Modality, str] = field(default_factory=dict)

    def schema(self) -> pa.Schema:
        """Return the schema of the table."""
        with parquet_file(self.table) as file:
            return file.schema_arrow

    def rows(self) -> int:
        """Count the rows of the table.

        Raises:
            CorpusError: an array has another number of rows.
        """
        with parquet_file(self.table) as file:
            count = int(file.metadata.num_rows)
        for path in self.arrays.values():
            if (length := len(array_of(path))) != count:
                raise CorpusError(f"{path}: expected {count} rows as in {self.table}, got {length}")
        return count

    def dim(self, modality: Modality) -> int | None:
        """Return the dimension of the vectors; None if no row has a vector."""
        if modality in self.arrays:
            return int(array_of(self.arrays[modality]).shape[1])
        column = self.columns[modality]
        with parquet_file(self.table) as file:
            kind = file.schema_arrow.field(column).type
            if pa.types.is_fixed_size_list(kind):
                return int(kind.list_size)
            for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
                if lengths := [length for length in batch.column(0).value_lengths().to_pylist() if length]:
                    return int(lengths[0])
        return None

    def batches(self, dims: Mapping[Modality, int]) -> "Iterator[tuple[list[Any], dict[Modality, Vectors]]]":
        """Yield batches of records with their vectors of dimensions `dims`."""
        arrays = {modality: array_of(path) for modality, path in self.arrays.items()}
        start = 0
        with parquet_file(self.table) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                stop = start + batch.num_rows
                vectors = {m: Vectors.of(array[start:stop]) for m, array in arrays.items()}
                vectors |= {m: Vectors.of_lists(batch.column(name), dims[m]) for m, name in self.columns.items()}
                yield records(batch.select([n for n in batch.schema.names if not is_vector(batch.schema, n)])), vectors
                start = stop


@dataclass(frozen=True, slots=True)
class Vectors:
    """A batch of vectors (n, d) as little-endian float32, and the reason for each invalid row."""

    values: FloatArray
    faults: Mapping[int, str]

    @classmethod
    def of(cls, values: npt.NDArray[np.floating], wrong: Sequence[int] = ()) -> "Vectors":
        """Convert vectors (n, d) of any floats; rows in `wrong` have another dimension."""
        with np.errstate(over="ignore", invalid="ignore"):  # becomes infinite, which is a fault
            cast = np.ascontiguousarray(values).astype("<f4")
        return cls(cast, {**invalid_rows(cast), **dict.fromkeys(wrong, WRONG_DIMENSION)})

    @classmethod
    def of_lists(cls, column: pa.Array, dim: int) -> "Vectors":
        """Convert a column of lists of floats to vectors of dimension `dim`; a list of another length is a fault."""
        look_for_pandas()
        lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
        has_dim = lengths == dim
        flat = column.filter(pa.array(has_dim)).flatten().to_numpy(zero_copy_only=False)
        values = np.ones((len(column), dim), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            values[has_dim] = flat.reshape(-1, dim)
        return cls.of(values, np.flatnonzero(~has_dim).tolist())


def is_vector(schema: pa.Schema, name: str) -> bool:
    """Whether a column holds lists of floats."""
    kind = schema.field(name).type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and bool(pa.types.is_floating(kind.value_type))


@dataclass(frozen=True, slots=True)
class ObjectArray:
    """The array of a `.npy` object in object storage, of which a slice of rows is one request."""

    file: RemoteFile
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @classmethod
    def of(cls, file: RemoteFile) -> "ObjectArray":
        """Read the header; raises a `ValueError` if this is no array, one of objects, or not all of one."""
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = readers[version](file)
        if by_columns or dtype.hasobject:
            raise ValueError(f"expected rows of numbers one after the other, got {dtype}")
        array = cls(file, shape, dtype, file.tell())
        if file.length < array.offset + array.nbytes:
            raise ValueError(f"expected {array.nbytes} bytes of numbers, got {file.length - array.offset}")
        return array

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> npt.NDArray[np.floating]:
        start, stop, _ = rows.indices(len(self))
        row = self.dtype.itemsize * self.shape[1]
        self.file.seek(self.offset + start * row)
        content = self.file.read((stop - start) * row)
        return np.frombuffer(content, self.dtype).reshape(-1, self.shape[1])


def array_of(path: Path) -> "npt.NDArray[np.floating] | ObjectArray":
    """Map the array of a `.npy` file (n, d) of floats; raises a `CorpusError` if it holds anything else."""
    array: Any
    try:
        # Maps the file. It refuses object arrays, which would have to be unpickled.
        remote = as_remote(path)
        array = ObjectArray.of(remote.ranges()) if remote else np.lib.format.open_memmap(path, mode="r")
    except StorageError:
        raise
    except Exception as error:  # numpy parses the header as Python source, which may raise anything
        raise CorpusError(f"{path} is no array of numpy, or is truncated: {error}") from error
    if array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        raise CorpusError(f"{path}: expected vectors (n, d) of floats, got {array.dtype} {array.shape}")
    if (left := path.stat().st_size - array.offset - array.nbytes) > 0:
        raise CorpusError(
            f"{path}: {left} bytes follow the array {array.shape}, a second array perhaps, which would not be read; "
            "save one array a file"
        )
    found: npt.NDArray[np.floating] | ObjectArray = array
    return found
