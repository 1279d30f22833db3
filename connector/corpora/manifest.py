"""Manifests: files with a row per image or caption, read in constant memory."""

import csv
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from connector.corpora.bounded_lines import LineTooLongError, RecordLines, bounded_lines, count_lines
from connector.corpora.items import LONGEST_FIELD, Corpus, Item
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.safe_text import printable

# Names that modalign writes into every payload.
RESERVED = frozenset(("modality", "content_sha256", "split", "aligned"))
OWN_NAMES = RESERVED | {"key", "group", "image", "caption"}
MOST_CAPTIONS = 1000  # of one key; more mean that the key column is no key


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a manifest as it was read, before any check.

    Attributes:
        source: the file that holds it; None: the corpus itself.
        picture: the bytes of the image, if it is no file of its own.
    """

    position: int
    fields: Mapping[str, Any]
    source: Path | None = None
    picture: bytes | None = None


class Manifest(Corpus):
    """A file with a row per image or caption."""

    @abstractmethod
    def rows(self) -> Iterator[Row | Reject]:
        """Yield the rows of the file."""

    @override
    def __iter__(self) -> Iterator[Item | Reject]:
        entry: _Entry | None = None
        for row in self.rows():
            if isinstance(row, Reject):
                yield row
                continue
            try:
                current = _Entry.from_row(self.path, row)
                if entry is None or entry.key != current.key:
                    entry = None
                    yield from current.items()
                else:
                    yield from current.items(after=entry)
            except RowError as error:
                key = printable(str(row.fields.get("key") or "")) or None
                yield Reject(str(row.source or self.path), row.position, "read", error.reason, str(error), key)
            else:
                entry = current.joined(entry)


class JsonLines(Manifest):
    """A JSONL manifest: one JSON object a line."""

    format = "jsonl"
    suffixes = (".jsonl", ".ndjson")

    @override
    def rows(self) -> Iterator[Row | Reject]:
        """Yield a row per line; blank lines are skipped."""
        with opened(self.path) as file:
            for position, line in enumerate(bounded_lines(file), start=1):
                if isinstance(line, LineTooLongError):
                    yield Reject(str(self.path), position, "read", Reason.LINE_TOO_LONG, str(line))
                    continue
                if not line.strip():
                    continue
                try:
                    fields = json.loads(line.decode("utf-8-sig" if position == 1 else "utf-8"))
                    if not isinstance(fields, dict):
                        raise ValueError(f"expected a JSON object, got {type(fields).__name__}")
                except (ValueError, RecursionError) as error:
                    yield Reject(str(self.path), position, "read", Reason.ROW_UNREADABLE, str(error))
                else:
                    yield Row(position, fields)

    @override
    def total(self) -> int:
        with opened(self.path) as file:
            return count_lines(file)


class Csv(Manifest):
    """A CSV manifest (a TSV by its suffix) with a header."""

    format = "csv"
    suffixes = (".csv", ".tsv")

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        """Decide by the suffix, except for the tables of Flickr, which have their own reader."""
        return super().fits(path) and not beginning(path).startswith(b"image_name|")

    @override
    def rows(self) -> Iterator[Row | Reject]:
        """Yield a row per record; an empty field is missing."""
        records = self._records()
        header = next(records, [])
        if isinstance(header, Exception):
            raise CorpusError(f"manifest {self.path}: cannot read the header: {header}") from header
        _check_columns(self.path, header)
        for position, record in enumerate(records, start=1):
            if isinstance(record, Exception):
                reason = Reason.LINE_TOO_LONG if isinstance(record, LineTooLongError) else Reason.ROW_UNREADABLE
                yield Reject(str(self.path), position, "read", reason, str(record))
            elif len(record) != len(header):
                detail = f"expected {len(header)} fields as in the header, got {len(record)}"
                yield Reject(str(self.path), position, "read", Reason.ROW_UNREADABLE, detail)
            else:
                yield Row(position, {name: value for name, value in zip(header, record, strict=True) if value != ""})

    @override
    def total(self) -> int:
        return max(0, sum(1 for _ in self._records()) - 1)

    def _records(self) -> Iterator[list[str] | Exception]:
        """Yield the header and the records; an unreadable one is yielded as its error."""
        csv.field_size_limit(LONGEST_FIELD)
        with self._text() as file:
            lines = RecordLines(file)
            reader = csv.reader(lines, self._dialect)
            while True:
                lines.begin()
                try:
                    record = next(reader)
                except StopIteration:
                    return
                except (csv.Error, LineTooLongError) as error:
                    yield error
                else:
                    if record:
                        yield record

    @property
    def _dialect(self) -> str:
        return "excel-tab" if self.path.suffix.lower() == ".tsv" else "excel"

    def _text(self) -> Any:
        opened(self.path).close()
        # Invalid UTF-8 becomes surrogates, so that only its own row is rejected.
        return self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


class Parquet(Manifest):
    """A Parquet manifest."""

    format = "parquet"
    suffixes = (".parquet",)

    @override
    def rows(self) -> Iterator[Row | Reject]:
        """Yield the rows; a null field is missing."""
        with self._file() as file:
            _check_columns(self.path, file.schema_arrow.names)
            position = 0
            try:
                for batch in file.iter_batches(batch_size=1024):
                    for record in records(batch):
                        position += 1
                        if isinstance(record, Exception):
                            yield Reject(str(self.path), position, "read", Reason.ROW_UNREADABLE, str(record))
                        else:
                            yield Row(position, {k: v for k, v in record.items() if v is not None})
            except (OSError, pa.ArrowException) as error:
                yield Reject(str(self.path), position + 1, "read", Reason.FILE_TRUNCATED, str(error))

    @override
    def total(self) -> int:
        with self._file() as file:
            return int(file.metadata.num_rows)

    def _file(self) -> Any:
        opened(self.path).close()
        return parquet_file(self.path)


class RowError(ValueError):
    """A row that cannot be used, with the reason for its reject."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Entry:
    """A checked row, or the merged rows of one key so far."""

    source: str
    position: int
    key: str
    group: str
    image: str | None
    resolved: Path | None
    picture: bytes | None
    captions: tuple[str, ...]
    payload: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_row(cls, manifest: Path, row: Row) -> "_Entry":
        fields = dict(row.fields)
        key = check_key(fields)
        image = text_field(fields, "image")
        captions = fields.pop("caption", None)
        captions = [] if captions is None else captions if isinstance(captions, list) else [captions]
        if len(captions) > MOST_CAPTIONS:
            raise RowError(Reason.KEY_DUPLICATE, f"key {key!r} has more than {MOST_CAPTIONS} captions")
        if any(not isinstance(caption, str) or len(caption) > LONGEST_FIELD for caption in captions):
            raise RowError(Reason.CAPTION_NOT_TEXT, "expected 'caption' to be a text or a list of texts")
        captions = tuple(filter(None, map(str.strip, captions)))
        if not image and not captions:
            raise RowError(Reason.ROW_WITHOUT_IMAGE_OR_CAPTION, "expected an image, a caption or both")
        group = text_field(fields, "group") or key
        source = row.source or manifest
        check_storable([str(source), key, group, image, *captions], fields)
        resolved = manifest.parent / image if image else None
        return cls(str(source), row.position, key, group, image, resolved, row.picture, captions, fields)

    def items(self, after: "_Entry | None" = None) -> Iterator[Item]:
        """Yield the image, unless an earlier row did, and the captions, numbered on from the rows before."""
        if after and ((self.image and after.image and self.image != after.image) or self.group != after.group):
            raise RowError(Reason.KEY_DUPLICATE, f"the row before has key {self.key!r} with another image or group")
        if after and set(self.captions) & set(after.captions):
            raise RowError(Reason.KEY_DUPLICATE, f"an earlier row has key {self.key!r} and the same caption")
        if after and len(after.captions) + len(self.captions) > MOST_CAPTIONS:
            raise RowError(Reason.KEY_DUPLICATE, f"key {self.key!r} has more than {MOST_CAPTIONS} captions")
        if after and not self.captions:
            raise RowError(Reason.KEY_DUPLICATE, f"the row before has key {self.key!r}, and this one no caption")
        if self.resolved and not (after and after.image):
            payload = {"image": str(self.resolved), **self.payload}
            content = self.resolved if self.picture is None else self.picture
            yield Item("image", self.key, self.group, content, payload, self.source, self.position)
        for number, caption in enumerate(self.captions, start=len(after.captions) if after else 0):
            payload = {"caption": caption, **self.payload}
            key = f"{self.key}#{number}"
            yield Item("text", key, self.group, caption, payload, self.source, self.position)

    def joined(self, earlier: "_Entry | None") -> "_Entry":
        """Merge this row with the `earlier` ones of its key."""
        if earlier is None:
            return self
        return _Entry(
            self.source,
            self.position,
            self.key,
            self.group,
            earlier.image or self.image,
            earlier.resolved or self.resolved,
            None,
            earlier.captions + self.captions,
            self.payload,
        )


def check_key(fields: dict[str, Any]) -> str:
    """Remove the key from `fields` and return it."""
    if key := text_field(fields, "key"):
        return key
    raise RowError(Reason.KEY_MISSING, "expected a value in 'key', the permanent name of the row")


def text_field(fields: dict[str, Any], name: str) -> str | None:
    """Remove a text or an integer from `fields` and return it as a text; None if it is missing or empty."""
    value = fields.pop(name, None)
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RowError(Reason(f"{name}-not-text"), f"expected '{name}' to be a text, got {type(value).__name__}")


def check_storable(texts: Sequence[str | None], payload: Mapping[str, Any]) -> None:
    """Raise a `RowError` if a database cannot store these texts or this payload."""
    if taken := RESERVED & payload.keys():
        raise RowError(Reason.PAYLOAD_NAME_RESERVED, f"rename the columns {', '.join(sorted(taken))}")
    try:
        json.dumps(payload, allow_nan=False)
        for fault in _unstorable(payload):
            raise ValueError(fault)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(Reason.PAYLOAD_NOT_JSON, f"payload cannot be stored: {error}") from error
    for fault in _unstorable(texts):
        raise RowError(Reason.ROW_UNREADABLE, fault)
    try:
        json.dumps([texts, payload], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowError(Reason.ROW_UNREADABLE, f"expected valid Unicode: {error}") from error


def without_collisions(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rename fields whose names modalign uses itself: `split` becomes `corpus_split`.

    For formats whose files are not edited by hand; a row of a manifest is rejected instead.
    """
    return {f"corpus_{name}" if name in OWN_NAMES else name: value for name, value in fields.items()}


def _unstorable(value: Any) -> Iterator[str]:
    """Yield what JSON can express and databases cannot store."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _unstorable(name)
            yield from _unstorable(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _unstorable(inner)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        yield "the integer exceeds 64 bits"
    elif isinstance(value, str) and "\0" in value:
        yield "the text holds a NUL character"


def records(batch: pa.RecordBatch) -> list[Any]:
    """Convert a batch to a dictionary a row. A row that Python cannot represent becomes its exception."""
    try:
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [error]
        half = batch.num_rows // 2
        return records(batch.slice(0, half)) + records(batch.slice(half))
    return rows


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if "key" not in names or not {"image", "caption"} & set(names):
        raise CorpusError(
            f"manifest {path}: expected the columns key and image or caption (group is optional), "
            f"got {', '.join(names) or 'none'}"
        )
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise CorpusError(f"manifest {path}: the columns {', '.join(sorted(duplicates))} occur twice; rename one")


def beginning(path: Path) -> bytes:
    """Return the first 64 kB of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(1 << 16)
    except OSError:
        return b""


def listed(path: Path) -> list[Path]:
    """Return the entries of a directory; empty if it cannot be read."""
    try:
        return list(path.iterdir())
    except OSError:
        return []


def parquet_file(path: Path) -> Any:
    """Open a Parquet file and decode its column names.

    Raises:
        CorpusError: the file is no Parquet file, or is damaged.
    """
    try:
        file = pq.ParquetFile(path)
        _ = file.schema_arrow.names  # decodes them
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} is not a Parquet file: {error}") from error
    return file


def opened(path: Path) -> Any:
    """Open a file of a corpus in binary mode; raises a `CorpusError` if it cannot be read."""
    try:
        return path.open("rb")
    except OSError as error:
        raise CorpusError(f"corpus {path} cannot be read: {error.strerror}") from error
