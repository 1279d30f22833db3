"""Embeddings that were computed elsewhere, read as a corpus whose items are vectors.

Three layouts: the folder that clip-retrieval writes, an array with a table beside it, and tables with vector columns.
Arrays are memory-mapped and never unpickled, tables are read batch by batch.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alignment.modality import MODALITIES, Modality
from alignment.vectors import FloatArray, invalid_rows
from connector.corpora.items import Corpus, Item, Vector
from connector.corpora.manifest import (
    RowError,
    check_key,
    check_storable,
    parquet_file,
    records,
    text_field,
    without_collisions,
)
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.safe_text import printable

BATCH_ROWS = 1024
FOLDERS: Mapping[Modality, str] = {"image": "img_emb", "text": "text_emb"}  # of clip-retrieval
KEYS = ("key", "image_path")
WRONG_DIMENSION = Reason.VECTOR_DIMENSION


@dataclass(frozen=True, slots=True)
class Part:
    """A table with the vectors of its rows, in arrays beside it or in columns of its own."""

    table: Path
    arrays: Mapping[Modality, Path] = field(default_factory=dict)
    columns: Mapping[Modality, str] = field(default_factory=dict)

    def schema(self) -> pa.Schema:
        """Return the columns of the table."""
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
            if (found := len(_array(path))) != count:
                raise CorpusError(f"{path} has {found} rows, {self.table} has {count}; they do not belong together")
        return count

    def dim(self, modality: Modality) -> int | None:
        """Return the dimension of the vectors; None where no row says it."""
        if modality in self.arrays:
            return int(_array(self.arrays[modality]).shape[1])
        column = self.columns[modality]
        with parquet_file(self.table) as file:
            kind = file.schema_arrow.field(column).type
            if pa.types.is_fixed_size_list(kind):
                return int(kind.list_size)
            for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
                if lengths := [length for length in pc.list_value_length(batch.column(0)).to_pylist() if length]:
                    return int(lengths[0])
        return None

    def batches(self, dims: Mapping[Modality, int]) -> "Iterator[tuple[list[Any], dict[Modality, _Vectors]]]":
        """Yield records with their vectors, which are of these dimensions."""
        arrays = {modality: _array(path) for modality, path in self.arrays.items()}
        start = 0
        with parquet_file(self.table) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                stop = start + batch.num_rows
                vectors = {m: _Vectors.of(array[start:stop]) for m, array in arrays.items()}
                vectors |= {m: _from_column(batch.column(name), dims[m]) for m, name in self.columns.items()}
                yield records(batch.select([n for n in batch.schema.names if not _is_vector(batch.schema, n)])), vectors
                start = stop


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Some rows of vectors (n, d) float32, little-endian, and what is wrong with which of them."""

    values: FloatArray
    faults: Mapping[int, str]

    @classmethod
    def of(cls, values: npt.NDArray[np.floating], wrong: Sequence[int] = ()) -> "_Vectors":
        with np.errstate(over="ignore", invalid="ignore"):  # infinite then, and a fault
            cast = np.ascontiguousarray(values).astype("<f4")
        return cls(cast, {**invalid_rows(cast), **dict.fromkeys(wrong, WRONG_DIMENSION)})


@dataclass(frozen=True, slots=True)
class VectorFiles(Corpus):
    """Vectors with a row of a table each; the table names them as a manifest does.

    Rows are keyed by the column `key`; the image of a row has that key, its text `KEY#0`, and consecutive rows of one
    key count on. `image_path` or `image`, `caption` and everything else become payload.

    Attributes:
        modalities: what the vectors are of.
        parts: tables with their vectors, in their order.
        key, group: columns of the table; None: the usual ones.
    """

    format = "vectors"

    modalities: tuple[Modality, ...] = ()
    parts: tuple[Part, ...] = ()
    key: str | None = None
    group: str | None = None

    @classmethod
    def fits(cls, path: Path) -> bool:
        """Look for arrays."""
        return vectors_at(path)

    def total(self) -> int:
        """Count the rows, and check that arrays and tables belong together."""
        return sum(part.rows() for part in self.parts)

    def dims(self) -> dict[Modality, int]:
        """Return the dimension of the vectors of each modality.

        Raises:
            CorpusError: parts of different dimensions, or none that says one.
        """
        found: dict[Modality, int] = {}
        for modality in self.modalities:
            by_part = {part.table: dim for part in self.parts if (dim := part.dim(modality))}
            if len(set(by_part.values())) != 1:
                said = ", ".join(f"{table.name}: {dim}" for table, dim in by_part.items()) or "no vector at all"
                raise CorpusError(f"{self.path}: expected {modality} vectors of one dimension, got {said}")
            found[modality] = next(iter(by_part.values()))
        return found

    def __iter__(self) -> Iterator[Item | Reject]:
        dims = self.dims()
        self.total()  # before the first row is taken
        position, run = 0, _Run()
        for part in self.parts:
            named = _Naming.of(part, self.key, self.group)
            try:
                for rows, vectors in part.batches(dims):
                    for row, record in enumerate(rows):
                        position += 1
                        try:
                            entry = named.entry(part.table, record)
                        except RowError as error:
                            key = printable(str(record.get(named.key))) if isinstance(record, dict) else None
                            yield Reject(str(part.table), position, "read", error.reason, printable(str(error)), key)
                        else:
                            number = run.number(entry.key)
                            for modality in self.modalities:
                                yield from entry.found(modality, vectors[modality], row, number, position)
            except (OSError, pa.ArrowException) as error:
                yield Reject(str(part.table), position + 1, "read", Reason.FILE_TRUNCATED, str(error))
                return  # the rows of the parts behind it would get other positions


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a table says of a vector."""

    source: str
    key: str
    group: str
    image: str | None
    caption: str | None
    payload: dict[str, Any]

    def found(
        self, modality: Modality, vectors: _Vectors, row: int, number: int, position: int
    ) -> Iterator[Item | Reject]:
        """Yield the vector in `row`; `number` rows of this key came before."""
        key = self.key if modality == "image" else f"{self.key}#{number}"
        if reason := vectors.faults.get(row):
            detail = "expected a finite vector with a norm above zero, of the dimension of the others"
            yield Reject(self.source, position, "read", Reason(reason), detail, key, modality)
        elif modality == "text" or not number:  # further rows of a key bring further captions of its image
            name, text = ("image", self.image) if modality == "image" else ("caption", self.caption)
            payload = {name: text, **self.payload} if text else self.payload
            content = Vector(vectors.values[row].tobytes())
            yield Item(modality, key, self.group, content, payload, self.source, position)


@dataclass(frozen=True, slots=True)
class _Naming:
    """Which columns of a table name its rows."""

    key: str
    group: str | None

    @classmethod
    def of(cls, part: Part, key: str | None, group: str | None) -> "_Naming":
        names = part.schema().names
        known = next((name for name in ((key,) if key else KEYS) if name in names), None)
        if known is None or (group and group not in names):
            raise CorpusError(
                f"{part.table}: expected a column {group if known else key or ' or '.join(KEYS)} that names the "
                f"{'groups' if known else 'rows'}, got {', '.join(names) or 'none'}; name one with "
                f"{'--group' if known else '--key'}"
            )
        return cls(known, group or ("group" if "group" in names else None))

    def entry(self, table: Path, record: Any) -> _Entry:
        """Read a record; raises a `RowError` if it cannot be used."""
        if isinstance(record, Exception):
            raise RowError(Reason.ROW_UNREADABLE, str(record))
        fields = {name: value for name, value in record.items() if value is not None}
        given = {"key": fields.get(self.key), "group": fields.get(self.group) if self.group else None}
        given["image"] = fields.pop("image", None) or fields.pop("image_path", None)
        given["caption"] = fields.pop("caption", None)
        for name in (self.key, self.group):
            fields.pop(name or "", None)
        key = check_key(given)
        group, image, caption = (text_field(given, name) for name in ("group", "image", "caption"))
        payload = without_collisions(fields)
        check_storable([str(table), key, group, image, caption], payload)
        return _Entry(str(table), key, group or key, image, caption, payload)


@dataclass(slots=True)
class _Run:
    """Counts consecutive rows of one key."""

    key: str | None = None
    count: int = 0

    def number(self, key: str) -> int:
        """Return how many rows of `key` came just before."""
        self.count = self.count + 1 if key == self.key else 0
        self.key = key
        return self.count


def vectors_at(path: Path) -> bool:
    """Whether arrays lie at `path`, as a file or as clip-retrieval's folder."""
    return path.suffix.lower() == ".npy" or any((path / folder).is_dir() for folder in FOLDERS.values())


def open_vectors(
    path: Path | str,
    modalities: Sequence[Modality],
    *,
    columns: Mapping[Modality, str] | None = None,
    metadata: Path | None = None,
    key: str | None = None,
    group: str | None = None,
) -> VectorFiles:
    """Open the vectors at `path`: clip-retrieval's folder, a `.npy`, a `.parquet` or a folder of these.

    Args:
        path: what to open.
        modalities: what the vectors are of.
        columns: the vector columns of a table; not needed where there is but one, and one modality.
        metadata: table of a `.npy`; None: the Parquet file of the same name.
        key: the column that names the rows; None: `key` or `image_path`.
        group: the column that names groups; None: `group`, or the key.

    Raises:
        CorpusError: nothing there, or nothing that holds vectors of these modalities.
    """
    path, chosen = Path(path).absolute(), tuple(m for m in MODALITIES if m in modalities)
    if not path.exists():
        raise CorpusError(f"vectors {path} do not exist")
    if path.suffix.lower() == ".npy":
        if len(chosen) != 1:
            raise CorpusError(f"{path} holds the vectors of one modality, asked for {' and '.join(chosen)}")
        parts = [Part(metadata or path.with_suffix(".parquet"), arrays={chosen[0]: path})]
    elif vectors_at(path):
        parts = list(_clip_retrieval(path, chosen))
    elif tables := [path] if path.suffix.lower() == ".parquet" else sorted(path.glob("*.parquet")):
        parts = [Part(table, columns=_columns(table, chosen, columns or {})) for table in tables]
    else:
        raise CorpusError(
            f"{path}: expected a .npy, a .parquet, a folder of .parquet files, or a folder of clip-retrieval with "
            f"{' and '.join(FOLDERS.values())}"
        )
    return VectorFiles(path, chosen, tuple(parts), key, group)


def _clip_retrieval(path: Path, modalities: Sequence[Modality]) -> Iterator[Part]:
    tables = _numbered(path / "metadata", ".parquet")
    arrays = {modality: _numbered(path / FOLDERS[modality], ".npy") for modality in modalities}
    for found in (tables, *arrays.values()):
        if found.keys() != tables.keys() or not tables:
            raise CorpusError(
                f"{path}: expected {' and '.join(FOLDERS[m] for m in modalities)} with an array for every table in "
                f"metadata; tables {sorted(tables) or 'none'}, arrays {sorted(found) or 'none'}"
            )
    for number in sorted(tables):
        yield Part(tables[number], arrays={modality: each[number] for modality, each in arrays.items()})


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    found = {}
    for path in folder.glob(f"*{suffix}"):
        if number := re.search(r"(\d+)$", path.stem):
            found[int(number[1])] = path
    return found


def _columns(table: Path, modalities: Sequence[Modality], asked: Mapping[Modality, str]) -> dict[Modality, str]:
    schema = Part(table).schema()
    vectors = [name for name in schema.names if _is_vector(schema, name)]
    if not asked and len(modalities) == len(vectors) == 1:
        return {modalities[0]: vectors[0]}
    if wrong := [m for m in modalities if asked.get(m) not in vectors]:
        raise CorpusError(
            f"{table}: expected a column of {wrong[0]} vectors, lists of float16, float32 or float64, got "
            f"{asked.get(wrong[0]) or 'no name'}; its vector columns: {', '.join(vectors) or 'none'}; name them with "
            "--image-vectors and --text-vectors"
        )
    return {modality: asked[modality] for modality in modalities}


def _is_vector(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and bool(pa.types.is_floating(kind.value_type))


def _from_column(column: pa.Array, dim: int) -> _Vectors:
    """Take vectors of dimension `dim` out of a column of lists; a list of another length is wrong."""
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    right = lengths == dim
    flat = column.filter(pa.array(right)).flatten().to_numpy(zero_copy_only=False)
    values = np.ones((len(column), dim), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        values[right] = flat.reshape(-1, dim)
    return _Vectors.of(values, np.flatnonzero(~right).tolist())


def _array(path: Path) -> npt.NDArray[np.floating]:
    try:
        # Maps the file, and takes no objects, which would have to be unpickled.
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy reads the header as Python source, and raises whatever that does
        raise CorpusError(f"{path} is no array of numpy, or was cut off: {error}") from error
    if array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        raise CorpusError(f"{path}: expected vectors (n, d) of floats, got {array.dtype} {array.shape}")
    return array
