"""Manifests: files with a row per image or caption, read in constant memory."""

import codecs
import errno
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from connector.corpora.bounded_lines import LineTooLongError, bounded_lines, count_lines
from connector.corpora.items import Corpus, Entry, Item, PassedOver
from connector.corpora.row_checks import (
    RowError,
    check_caption,
    check_key,
    check_storable,
    misspelt,
    parse_json,
    text_field,
)
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.resources import raise_lack
from connector.safe_text import printable

MOST_CAPTIONS = 1000  # of one key; more mean that the key column is no key


@dataclass(frozen=True, slots=True)
class ManifestRow:
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
    def rows(self) -> Iterator[ManifestRow | Reject | PassedOver]:
        """Yield the rows of the file."""

    @override
    def __iter__(self) -> Iterator[Entry]:
        entry: _ManifestEntry | None = None
        for row in self.rows():
            if not isinstance(row, ManifestRow):
                yield row
                continue
            try:
                current = _ManifestEntry.from_row(self.path, row)
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
    def rows(self) -> Iterator[ManifestRow | Reject]:
        """Yield a row per line; blank lines are skipped."""
        check_utf8(self.path)
        with opened(self.path) as file:
            for position, line in enumerate(bounded_lines(file), start=1):
                if isinstance(line, LineTooLongError):
                    yield Reject(str(self.path), position, "read", Reason.LINE_TOO_LONG, str(line))
                    continue
                if not line.strip():
                    continue
                try:
                    fields = parse_json(line.decode("utf-8-sig" if position == 1 else "utf-8"))
                    if not isinstance(fields, dict):
                        raise ValueError(f"expected a JSON object, got {type(fields).__name__}")
                    if wrong := misspelt(fields):
                        raise ValueError(wrong)
                except ValueError as error:
                    yield Reject(str(self.path), position, "read", Reason.ROW_UNREADABLE, printable(str(error)))
                else:
                    yield ManifestRow(position, fields)

    @override
    def total(self) -> int:
        with opened(self.path) as file:
            return count_lines(file)


class Parquet(Manifest):
    """A Parquet manifest."""

    format = "parquet"
    suffixes = (".parquet",)

    @override
    def rows(self) -> Iterator[ManifestRow | Reject]:
        """Yield the rows; a null field is missing."""
        with self._file() as file:
            check_columns(self.path, file.schema_arrow.names)
            position = 0
            try:
                for batch in file.iter_batches(batch_size=1024):
                    for record in records(batch):
                        position += 1
                        if isinstance(record, Exception):
                            yield Reject(str(self.path), position, "read", Reason.ROW_UNREADABLE, str(record))
                        else:
                            yield ManifestRow(position, {k: v for k, v in record.items() if v is not None})
            except (OSError, pa.ArrowException) as error:
                raise_lack(error, f"reading {self.path}")
                yield Reject(str(self.path), position + 1, "read", Reason.FILE_TRUNCATED, str(error))

    @override
    def total(self) -> int:
        with self._file() as file:
            return int(file.metadata.num_rows)

    def _file(self) -> Any:
        opened(self.path).close()
        return parquet_file(self.path)


@dataclass(frozen=True, slots=True)
class _ManifestEntry:
    """A checked row, or the merged rows of one key so far, with the payload of the one that gives the image."""

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
    def from_row(cls, manifest: Path, row: ManifestRow) -> "_ManifestEntry":
        fields = dict(row.fields)
        key = check_key(fields)
        image = text_field(fields, "image")
        captions = fields.pop("caption", None)
        captions = [] if captions is None else captions if isinstance(captions, list) else [captions]
        if len(captions) > MOST_CAPTIONS:
            raise RowError(Reason.KEY_DUPLICATE, f"key {key!r} has more than {MOST_CAPTIONS} captions")
        if not all(isinstance(caption, str) for caption in captions):
            raise RowError(Reason.CAPTION_NOT_TEXT, "expected 'caption' to be a text or a list of texts")
        captions = tuple(filter(None, map(str.strip, captions)))
        for caption in captions:
            check_caption(caption)
        if not image and not captions:
            raise RowError(Reason.ROW_WITHOUT_IMAGE_OR_CAPTION, "expected an image, a caption or both")
        group = text_field(fields, "group") or key
        source = row.source or manifest
        check_storable([str(source), key, group, image, *captions], fields)
        resolved = manifest.parent / image if image else None
        return cls(str(source), row.position, key, group, image, resolved, row.picture, captions, fields)

    def items(self, after: "_ManifestEntry | None" = None) -> Iterator[Item | Reject]:
        """Yield the image, unless an earlier row did, and the captions, numbered on from the rows before.

        An image that an earlier row gave is refused if this row says something else of it.
        """
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
        elif self.image and after and not self.payload.items() <= after.payload.items():
            differing = [name for name in self.payload if self.payload[name] != after.payload.get(name)]
            detail = (
                f"an earlier row gives this image with other values of {', '.join(map(repr, differing))}; name the "
                "image in one row of its key, or give each row the same values"
            )
            reason = Reason.KEY_DUPLICATE
            yield Reject(self.source, self.position, "read", reason, printable(detail), self.key, "image")
        for number, caption in enumerate(self.captions, start=len(after.captions) if after else 0):
            payload = {"caption": caption, **self.payload}
            key = f"{self.key}#{number}"
            yield Item("text", key, self.group, caption, payload, self.source, self.position)

    def joined(self, earlier: "_ManifestEntry | None") -> "_ManifestEntry":
        """Merge this row with the `earlier` ones of its key."""
        if earlier is None:
            return self
        return _ManifestEntry(
            self.source,
            self.position,
            self.key,
            self.group,
            earlier.image or self.image,
            earlier.resolved or self.resolved,
            None,
            earlier.captions + self.captions,
            earlier.payload if earlier.image else self.payload,
        )


def records(batch: pa.RecordBatch) -> list[Any]:
    """Convert a batch to a dictionary a row. A row that Python cannot represent becomes its exception."""
    try:
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError, KeyError) as error:  # KeyError: a time zone that does not exist
        if batch.num_rows == 1:
            return [error]
        half = batch.num_rows // 2
        return records(batch.slice(0, half)) + records(batch.slice(half))
    return rows


def check_columns(path: Path, names: Sequence[str]) -> None:
    """Raise a `CorpusError` if the columns that a manifest needs are missing or misspelt, or one is there twice."""
    if "key" not in names or not {"image", "caption"} & set(names):
        raise CorpusError(
            f"manifest {path}: expected the columns key and image or caption (group is optional), "
            f"got {printable(', '.join(names)) or 'none'}"
        )
    if wrong := misspelt(names):
        raise CorpusError(f"manifest {path}: column {printable(wrong)}")
    if duplicates := {name for name in names if names.count(name) > 1}:
        shown = printable(", ".join(map(repr, sorted(duplicates))))
        raise CorpusError(f"manifest {path}: expected each column once, got {shown} more than once; rename the others")


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
        raise_lack(error, f"reading {path}")
        raise CorpusError(f"{path} is not a Parquet file: {error}") from error
    return file


def check_access(path: Path) -> None:
    """Raise a `CorpusError` if the system does not say what is at `path`, or lets no one look into the folder there."""
    try:
        if path.exists() and not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise CorpusError(f"corpus {path} cannot be read: {error.strerror}") from error


def opened(path: Path) -> Any:
    """Open a file of a corpus in binary mode; raises a `CorpusError` if it cannot be read."""
    try:
        return path.open("rb")
    except OSError as error:
        raise CorpusError(f"corpus {path} cannot be read: {error.strerror}") from error


def open_text(path: Path) -> IO[str]:
    """Open a file of a corpus as UTF-8. Invalid bytes become surrogates, so that only their own rows are rejected.

    Raises:
        CorpusError: the file cannot be read, or is UTF-16 or UTF-32.
    """
    check_utf8(path)
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def check_utf8(path: Path) -> None:
    """Raise a `CorpusError` if a file cannot be read, or begins as UTF-16 or UTF-32, as spreadsheets write it."""
    with opened(path) as file:
        if file.read(4).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
            raise CorpusError(f"corpus {path}: expected UTF-8, got UTF-16 or UTF-32; save the file as UTF-8")
