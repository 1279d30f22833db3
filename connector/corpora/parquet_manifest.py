"""Parquet manifests: one file, or a folder of files with the same columns, as Hugging Face datasets have them.

A picture may be a path, the bytes of its file, or `struct<bytes, path>` as the library `datasets` writes it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from pathlib import Path
from typing import Any

import pyarrow as pa
from typing_extensions import override

from connector.corpora.columns import Columns
from connector.corpora.file_state import FileState
from connector.corpora.items import Entry, Remark, Unit, read_units
from connector.corpora.manifest import ManifestRow, first_to_begin
from connector.corpora.opening import check_access, listed, parquet_file
from connector.corpora.row_checks import RowError
from connector.corpora.tables import Table
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.resources import raise_lack
from connector.safe_text import printable

UNIT_ROWS = 4096  # as many pictures take an encoder minutes; a larger row group stays whole
UNIT_BYTES = 256 << 20
BATCH_ROWS = 1024
BATCH_PICTURES = 32  # rows that hold pictures, which may have megabytes each


@dataclass(frozen=True, slots=True)
class Parquet(Table):
    """A Parquet manifest, or a folder of them.

    Without a column of keys, the key of a picture that the file holds is the SHA-256 of its bytes: paths within such
    files are often missing, or all alike.
    """

    format = "parquet"
    suffixes = (".parquet",)

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        return path.suffix.lower() in cls.suffixes if not path.is_dir() else bool(_tables(path))

    @property
    @override
    def columns(self) -> Columns:
        columns = Columns.of(self.key, self.image, self.caption, self.group)
        for path in [file.path for file in self.unit.files[:1]] if self.unit else self._files()[:1]:
            with parquet_file(path) as file:
                schema = file.schema_arrow
            if self.key is None and columns.key not in schema.names and columns.image in _pictures(schema):
                return replace(columns, key=columns.image)
        return columns

    @override
    def units(self) -> Iterator[Unit]:
        """Cut where a row group begins, before the first row from which on reading may begin anew.

        A unit names the first file, which says what the key is, and those that it is read from.
        """
        columns, files = self.columns, self._files()
        states = [FileState.of(file) for file in files]
        start, stop, rows, least = (0, 0), (0, 0), 0, 1
        of_groups = size = 0  # rows and bytes of the row groups that begin in the unit, or a few rows before it
        for place, group_rows, group_size in _groups(files, columns):
            if place > start and (of_groups >= least * UNIT_ROWS or size >= least * UNIT_BYTES):
                least *= 2  # where reading may begin nowhere, or a file is damaged, it is soon not tried any more
                if row := self._begins_anew(columns, files, place):
                    skipped = (row.reached or 1) - 1
                    stop = files.index(row.source or self.path), row.position - 1
                    yield _unit(states, start, stop, rows + skipped)
                    start, rows, least = stop, -skipped, 1
                    of_groups = size = 0
            stop, rows = (place[0], place[1] + group_rows), rows + group_rows
            of_groups, size = of_groups + group_rows, size + group_size
        if files:
            yield _unit(states, start, stop, rows)

    def _begins_anew(self, columns: Columns, files: Sequence[Path], place: "_Place") -> ManifestRow | None:
        """Return the first row from `place` on that may be the first of a unit; None: there is none before damage."""
        number, start = place
        spans = ((path, 0 if other else start, None) for other, path in enumerate(files[number:]))
        rows = (row for row in self._within(columns, spans) if isinstance(row, ManifestRow))
        return first_to_begin(self.path, (self.named(columns, row) for row in rows))

    @override
    def names(self) -> Iterator[str]:
        for path in self._files():
            with parquet_file(path) as file:
                yield from file.schema_arrow.names

    @override
    def __iter__(self) -> Iterator[Entry]:
        return read_units(self, iter) if self.unit is None else Table.__iter__(self)

    @override
    def with_captions(self) -> Iterator[Entry]:
        return read_units(self, Table.with_captions) if self.unit is None else Table.with_captions(self)

    @override
    def records(self, columns: Columns) -> Iterator[ManifestRow | Reject | Remark]:
        """Yield the rows; a null field is missing. Columns of bytes other than that of the images are left out.

        Damage ends a unit, because captions of a key go on from one row group and file to the next.
        """
        for unit in self.units() if self.unit is None else [self.unit]:
            paths = [file.path for file in unit.files[1:]]
            starts, stops = [unit.start] + [0] * len(paths), [None] * (len(paths) - 1) + [unit.stop]
            yield from self._within(columns, zip(paths, starts, stops, strict=False))

    def _within(self, columns: Columns, spans: Iterable["_Span"]) -> Iterator[ManifestRow | Reject | Remark]:
        before, left_out = 0, dict[str, None]()
        for path, start, stop in spans:
            position = start
            with parquet_file(path) as file:
                schema = file.schema_arrow
                _check(path, columns, schema)
                unused = [field.name for field in schema if _holds_bytes(field.type) and field.name != columns.image]
                left_out |= dict.fromkeys(unused)
                names = [name for name in schema.names if name not in unused]
                rows = BATCH_PICTURES if columns.image in _pictures(schema) else BATCH_ROWS
                try:
                    for batch in _batches(file, rows, names, start, stop):
                        for record in records(batch):
                            position += 1
                            fields = {name: _plain(value) for name, value in record.items() if value is not None}
                            yield ManifestRow(position, fields, path, reached=before + position - start)
                except (OSError, pa.ArrowException) as error:
                    raise_lack(error, f"reading {path}")
                    where, detail = (str(path), position + 1), printable(str(error))
                    yield Reject(*where, "read", Reason.FILE_TRUNCATED, detail, reached=before + position - start + 1)
                    return
            before += position - start
        for name in left_out:
            yield Remark(f"{self.path}: a column of bytes is no payload and is left out: {printable(name)}")

    @override
    def named(self, columns: Columns, row: ManifestRow) -> ManifestRow:
        """Take the picture out of its column. As a payload, it is the path of the file with that within it."""
        if columns.image is None:
            return Table.named(self, columns, row)
        picture = row.fields.get(columns.image)
        content, path = picture, None
        if isinstance(picture, dict):
            content, path = picture.get("bytes"), picture.get("path") or None
        if not isinstance(content, bytes):
            return Table.named(self, columns, replace(row, fields={**row.fields, columns.image: path or content}))
        within = f"{row.source}/{path or row.position}"
        named = Table.named(self, columns, replace(row, fields={**row.fields, columns.image: within}, picture=content))
        if columns.key == columns.image:
            # A picture without the path that --key asks for has no key: its hash would be another kind of name.
            key = path if self.key else hashlib.sha256(content).hexdigest()
            return replace(named, fields={**named.fields, "key": key})
        return named

    @override
    def total(self) -> int:
        count = 0
        for path in self._files():
            with parquet_file(path) as file:
                count += int(file.metadata.num_rows)
        return count

    def _files(self) -> list[Path]:
        check_access(self.path)
        return _tables(self.path) if self.path.is_dir() else [self.path]


_Place = tuple[int, int]  # number of a file, and how many of its rows come before
_Span = tuple[Path, int, int | None]  # a file, how many of its rows come before, and at which they end; None: the last


def _unit(states: Sequence[FileState], start: _Place, stop: _Place, rows: int) -> Unit:
    name = f"{states[start[0]].path.name}, row {start[1] + 1}"
    return Unit(name, rows, (states[0], *states[start[0] : stop[0] + 1]), start[1], stop[1])


def _groups(files: Sequence[Path], columns: Columns) -> Iterator[tuple[_Place, int, int]]:
    """Yield where each row group begins, how many rows it has, and how many bytes."""
    for number, path in enumerate(files):
        with parquet_file(path) as file:
            _check(path, columns, file.schema_arrow)
            first = 0
            for group in map(file.metadata.row_group, range(file.num_row_groups)):
                yield (number, first), group.num_rows, group.total_byte_size
                first += group.num_rows


def _batches(file: Any, size: int, names: Sequence[str], start: int, stop: int | None) -> Iterator[pa.RecordBatch]:
    """Read the rows from `start` to before `stop` of a file, in batches of at most `size`."""
    groups: list[int] = []
    at = end = 0
    for number in range(file.num_row_groups):
        first, end = end, end + file.metadata.row_group(number).num_rows
        if end > start and (stop is None or first < stop):
            at = at if groups else first
            groups.append(number)
    for batch in file.iter_batches(size, row_groups=groups, columns=names) if groups else ():
        low = max(0, start - at)
        high = batch.num_rows if stop is None else min(batch.num_rows, stop - at)
        at += batch.num_rows
        if low < high:
            yield batch.slice(low, high - low)
        if stop is not None and at >= stop:
            return


def records(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Convert a batch to a dictionary a row. A value that Python cannot represent becomes a `RowError`."""
    try:
        columns = [_in_microseconds(column) for column in batch.columns]
        rows: list[dict[str, Any]] = pa.record_batch(columns, batch.schema.names).to_pylist()
    except _UNREPRESENTABLE:
        if batch.num_rows == 1:
            return [{name: _value(batch.column(number)) for number, name in enumerate(batch.schema.names)}]
        half = batch.num_rows // 2
        return records(batch.slice(0, half)) + records(batch.slice(half))
    return rows


def _value(column: pa.Array) -> Any:
    try:
        return _in_microseconds(column)[0].as_py()
    except _UNREPRESENTABLE as error:
        return RowError(Reason.ROW_UNREADABLE, str(error))


def _in_microseconds(column: pa.Array) -> pa.Array:
    """Convert nanoseconds, which Python's types do not have: pyarrow makes pandas' own, where that is installed.

    Raises a `ValueError` if a value is no whole number of microseconds.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return column.cast(pa.timestamp("us", kind.tz))
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return column.cast(pa.duration("us"))
    return column.cast(pa.time64("us")) if kind == pa.time64("ns") else column


_UNREPRESENTABLE = (ValueError, OverflowError, KeyError)  # KeyError: a time zone that does not exist


def _check(path: Path, columns: Columns, schema: pa.Schema) -> None:
    """Raise a `CorpusError` if a file lacks columns, or holds pictures in a column that nobody named."""
    pictures = _pictures(schema)
    if pictures and columns.image not in schema.names and "--image" not in columns.named:
        raise CorpusError(
            f"manifest {path}: the column {printable(repr(pictures[0]))} holds pictures; name it with --image, or name "
            "another column of images"
        )
    columns.check(path, schema.names)


def _pictures(schema: pa.Schema) -> list[str]:
    """Return the columns that hold files: bytes, or `struct<bytes, path>`."""
    return [
        field.name
        for field in schema
        if _is_bytes(field.type) or (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of this type hold bytes, at any depth."""
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    return _is_bytes(kind) or any(map(_holds_bytes, inner))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _plain(value: Any) -> Any:
    """Return dates and times as texts of ISO 8601, which JSON can hold, and anything else as it is."""
    return value.isoformat() if isinstance(value, date | time) else value


def _tables(folder: Path) -> list[Path]:
    return sorted(entry for entry in listed(folder) if entry.suffix.lower() in Parquet.suffixes and entry.is_file())
