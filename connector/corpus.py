"""Corpora: streams of items and rejects, read from files in constant memory.

A manifest (JSONL, CSV or Parquet) has a row per image with its captions, or a row per caption:

    key      names the row; required
    image    path of the image, relative to the manifest; may be left out for a text without an image
    caption  a text or, in JSONL and Parquet, a list of texts; may be left out for an image without a text
    group    items of one group describe the same thing; the key where it is left out

Everything else becomes payload. Consecutive rows of one key add captions to one image (a CSV has no lists). The
image is keyed by the row's key, captions by `KEY#0`, `KEY#1`, ...

A folder is read as a corpus too: every image with the lines of the `.txt` file of the same stem as its captions.
"""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.embeddings import Modality
from connector.errors import CorpusError

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".ico", ".jfif", ".jpeg", ".jpg", ".pgm"}
    | {".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
# What the connector writes into every payload itself.
RESERVED = frozenset(("modality", "content_sha256", "split"))
MOST_CAPTIONS = 1000  # of one key; more in a row means that the key column is not a key
LONGEST_FIELD = 1 << 24  # characters: a caption beyond 16 MiB is a broken file


@dataclass(frozen=True, slots=True)
class Item:
    """One image or one caption.

    Attributes:
        content: path of the image, or the caption itself.
        source, position: the file and the row (from 1) it comes from.
    """

    modality: Modality
    key: str
    group: str
    content: Path | str
    payload: Mapping[str, Any]
    source: str
    position: int


@dataclass(frozen=True, slots=True)
class Reject:
    """An item or row that was refused, and why.

    Attributes:
        stage: `read`, `decode`, `encode` or `write`.
        reason: a short name that can be counted.
        detail: what exactly was wrong, for people.
    """

    source: str
    position: int
    stage: str
    reason: str
    detail: str
    key: str | None = None
    modality: Modality | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a manifest as it was read, before anything is believed of it."""

    position: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Corpus(ABC):
    """A stream of items from files. Iterating again reads again."""

    path: Path

    @abstractmethod
    def __iter__(self) -> Iterator[Item | Reject]:
        """Yield items and rejects in the order of the files."""

    @abstractmethod
    def total(self) -> int:
        """Return the number of rows, for a progress bar; positions run up to it."""


class Manifest(Corpus):
    """A file with a row per image or caption."""

    @abstractmethod
    def rows(self) -> Iterator[Row | Reject]:
        """Yield the rows of the file."""

    def __iter__(self) -> Iterator[Item | Reject]:
        entry: _Entry | None = None
        for row in self.rows():
            if isinstance(row, Reject):
                yield row
                continue
            try:
                read = _Entry.from_row(self.path, row)
                if entry is None or entry.key != read.key:
                    entry = None
                    yield from read.items()
                else:
                    yield from read.items(after=entry)
            except _RowError as error:
                key = _printable(str(row.fields.get("key") or "")) or None
                yield Reject(str(self.path), row.position, "read", error.reason, str(error), key)
            else:
                entry = read.joined(entry)


class JsonLines(Manifest):
    """A JSONL manifest: one JSON object a line."""

    def rows(self) -> Iterator[Row | Reject]:
        """Yield the lines that hold a JSON object; blank lines mean nothing."""
        with _opened(self.path) as file:
            for position, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    fields = json.loads(line.decode("utf-8-sig" if position == 1 else "utf-8"))
                    if not isinstance(fields, dict):
                        raise ValueError(f"expected a JSON object, got {type(fields).__name__}")
                except (ValueError, RecursionError) as error:
                    yield Reject(str(self.path), position, "read", "row-unreadable", str(error))
                else:
                    yield Row(position, fields)

    def total(self) -> int:
        """Count the lines."""
        with _opened(self.path) as file:
            return sum(1 for _ in file)


class Csv(Manifest):
    """A CSV manifest (a TSV by its suffix) with a header."""

    def rows(self) -> Iterator[Row | Reject]:
        """Yield the records; an empty field is a missing one."""
        csv.field_size_limit(LONGEST_FIELD)
        with self._text() as file:
            reader = csv.DictReader(file, dialect=self._dialect)
            try:
                _require_columns(self.path, reader.fieldnames or [])
            except csv.Error as error:
                raise CorpusError(f"manifest {self.path}: the header cannot be read: {error}") from error
            position = 0
            records = iter(reader)
            while True:
                position += 1
                try:
                    record = next(records)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Reject(str(self.path), position, "read", "row-unreadable", str(error))
                    continue
                if None in record or None in record.values():
                    yield Reject(
                        str(self.path), position, "read", "row-unreadable",
                        f"expected {len(reader.fieldnames or [])} fields as in the header",
                    )  # fmt: skip
                    continue
                yield Row(position, {name: value for name, value in record.items() if value != ""})

    def total(self) -> int:
        """Count the records."""
        csv.field_size_limit(LONGEST_FIELD)
        try:
            with self._text() as file:
                return max(0, sum(1 for record in csv.reader(file, self._dialect) if record) - 1)
        except csv.Error:
            return 0  # iterating says what is wrong and where

    @property
    def _dialect(self) -> str:
        return "excel-tab" if self.path.suffix.lower() == ".tsv" else "excel"

    def _text(self) -> Any:
        _opened(self.path).close()
        # Bytes that are no UTF-8 pass as surrogates, so that only their own row is refused.
        return self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


class Parquet(Manifest):
    """A Parquet manifest."""

    def rows(self) -> Iterator[Row | Reject]:
        """Yield the rows; a null is a missing field."""
        with self._file() as file:
            _require_columns(self.path, file.schema_arrow.names)
            position = 0
            try:
                for batch in file.iter_batches(batch_size=1024):
                    for record in _records(batch):
                        position += 1
                        if isinstance(record, Exception):
                            yield Reject(str(self.path), position, "read", "row-unreadable", str(record))
                        else:
                            yield Row(position, {k: v for k, v in record.items() if v is not None})
            except (OSError, pa.ArrowException) as error:
                yield Reject(str(self.path), position + 1, "read", "file-truncated", str(error))

    def total(self) -> int:
        """Read the count from the footer."""
        with self._file() as file:
            return int(file.metadata.num_rows)

    def _file(self) -> Any:
        _opened(self.path).close()
        try:
            return pq.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(f"{self.path} is not a Parquet file: {error}") from error


class Folder(Corpus):
    """A folder of images, each with the lines of the `.txt` file of the same stem as captions."""

    def __iter__(self) -> Iterator[Item | Reject]:
        position = 0
        for found in self._files():
            if isinstance(found, Reject):
                yield found
            else:
                position += 1
                yield from self._items(*found, position)

    def _items(self, image: Path, captions: Path | None, position: int) -> Iterator[Item | Reject]:
        try:
            str(image).encode()
        except UnicodeEncodeError as error:
            source, detail = _printable(str(image)), f"rename the file: {error}"
            yield Reject(source, position, "read", "path-not-unicode", detail)
            return
        key = image.relative_to(self.path).as_posix()
        yield Item("image", key, key, image, {"image": str(image)}, str(image), position)
        if captions is None:
            return
        try:
            if (size := captions.stat().st_size) > LONGEST_FIELD:
                raise ValueError(f"{size} bytes are no captions")
            if "\0" in (text := captions.read_text(encoding="utf-8-sig")):
                raise ValueError("a NUL character in a text")
        except (OSError, ValueError) as error:
            yield Reject(str(captions), position, "read", "row-unreadable", str(error), key, "text")
            return
        for number, caption in enumerate(filter(None, map(str.strip, text.split("\n")))):
            payload = {"caption": caption}
            yield Item("text", f"{key}#{number}", key, caption, payload, str(captions), position)

    def total(self) -> int:
        """Count the images."""
        return sum(not isinstance(found, Reject) for found in self._files())

    def _files(self) -> Iterator[tuple[Path, Path | None] | Reject]:
        """Walk images with their captions depth first in a stable order, one directory in memory at a time."""
        stack: list[tuple[Path, frozenset[Path]]] = [(self.path, frozenset())]
        while stack:
            directory, above = stack.pop()
            try:
                if (here := directory.resolve()) in above:
                    raise OSError("a link to a folder that holds it")
                entries = sorted(directory.iterdir(), key=lambda entry: entry.name)
            except OSError as error:
                yield Reject(_printable(str(directory)), 0, "read", "folder-unreadable", str(error))
                continue
            stack += [(entry, above | {here}) for entry in reversed(entries) if entry.is_dir()]
            files = [entry for entry in entries if not entry.is_dir()]
            captions = {file.stem: file for file in files if file.suffix.lower() == ".txt"}
            images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
            yield from ((image, captions.get(image.stem)) for image in images)
            for stem in sorted(captions.keys() - {image.stem for image in images}):
                yield Reject(
                    _printable(str(captions[stem])), 0, "read", "caption-without-image",
                    f"expected an image of the same stem beside {_printable(captions[stem].name)}",
                )  # fmt: skip


READERS: dict[str, type[Corpus]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".csv": Csv,
    ".tsv": Csv,
    ".parquet": Parquet,
}


def open_corpus(path: Path | str) -> Corpus:
    """Open the corpus at `path`: a manifest by its suffix, or a folder of images.

    Raises:
        CorpusError: nothing there, or nothing that is a corpus.
    """
    path = Path(path).absolute()
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise CorpusError(f"corpus {path} does not exist")
    try:
        return READERS[path.suffix.lower()](path)
    except KeyError:
        raise CorpusError(
            f"corpus {path}: expected a folder of images or a file ending in {', '.join(READERS)}, "
            f"got {path.suffix or 'no suffix'}"
        ) from None


class _RowError(ValueError):
    """A row that cannot be used: the reason as a name, the message for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a row means, and what earlier rows of the same key have said already."""

    source: str
    position: int
    key: str
    group: str
    image: str | None
    resolved: Path | None
    captions: tuple[str, ...]
    payload: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_row(cls, manifest: Path, row: Row) -> "_Entry":
        fields = dict(row.fields)
        key = _text(fields, "key")
        if not key:
            raise _RowError("key-missing", "expected a value under 'key', which names the row for ever")
        image = _text(fields, "image")
        captions = fields.pop("caption", None)
        captions = [] if captions is None else captions if isinstance(captions, list) else [captions]
        if any(not isinstance(caption, str) or len(caption) > LONGEST_FIELD for caption in captions):
            raise _RowError("caption-not-text", "expected 'caption' to be a text or a list of texts")
        captions = tuple(filter(None, map(str.strip, captions)))
        if not image and not captions:
            raise _RowError("row-without-image-or-caption", "expected an image, a caption or both")
        group = _text(fields, "group") or key
        if taken := RESERVED & fields.keys():
            raise _RowError("payload-name-reserved", f"rename the columns {', '.join(sorted(taken))}")
        try:
            json.dumps(fields, allow_nan=False)
            for fault in _unstorable(fields):
                raise ValueError(fault)
        except (TypeError, ValueError, RecursionError) as error:
            raise _RowError("payload-not-json", f"payload cannot be stored: {error}") from error
        for fault in _unstorable([key, group, image, *captions]):
            raise _RowError("row-unreadable", fault)
        try:
            json.dumps([str(manifest), key, group, image, captions, fields], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _RowError("row-unreadable", f"text that is not valid Unicode: {error}") from error
        resolved = manifest.parent / image if image else None
        return cls(str(manifest), row.position, key, group, image, resolved, captions, fields)

    def items(self, after: "_Entry | None" = None) -> Iterator[Item]:
        """Yield the image, unless an earlier row has, and the captions, counting on."""
        if after and ((self.image and after.image and self.image != after.image) or self.group != after.group):
            raise _RowError("key-duplicate", f"key {self.key!r} stands in the row before with another image or group")
        if after and set(self.captions) & set(after.captions):
            raise _RowError("key-duplicate", f"key {self.key!r} stands in an earlier row with the same caption")
        if after and len(after.captions) + len(self.captions) > MOST_CAPTIONS:
            raise _RowError("key-duplicate", f"key {self.key!r} has more than {MOST_CAPTIONS} captions")
        if after and not self.captions:
            raise _RowError("key-duplicate", f"key {self.key!r} stands in the row before")
        if self.resolved and not (after and after.image):
            payload = {"image": str(self.resolved), **self.payload}
            yield Item("image", self.key, self.group, self.resolved, payload, self.source, self.position)
        for number, caption in enumerate(self.captions, start=len(after.captions) if after else 0):
            payload = {"caption": caption, **self.payload}
            key = f"{self.key}#{number}"
            yield Item("text", key, self.group, caption, payload, self.source, self.position)

    def joined(self, earlier: "_Entry | None") -> "_Entry":
        """Remember this row and the `earlier` ones of its key as one."""
        if earlier is None:
            return self
        return _Entry(
            self.source, self.position, self.key, self.group, earlier.image or self.image,
            earlier.resolved or self.resolved, earlier.captions + self.captions, self.payload,
        )  # fmt: skip


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.pop(name, None)
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise _RowError(f"{name}-not-text", f"expected '{name}' to be a text, got {type(value).__name__}")


def _unstorable(value: Any) -> Iterator[str]:
    """Name what JSON can say and databases cannot hold."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _unstorable(name)
            yield from _unstorable(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _unstorable(inner)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        yield "an integer beyond 64 bits"
    elif isinstance(value, str) and "\0" in value:
        yield "a NUL character in a text"


def _printable(text: str) -> str:
    """Write NUL and what is no Unicode as an escape, so that a reject can be printed and stored."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _records(batch: pa.RecordBatch) -> list[Any]:
    """Turn a batch into a dictionary a row, or an exception for a row that holds what Python cannot."""
    try:
        records: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [error]
        half = batch.num_rows // 2
        return _records(batch.slice(0, half)) + _records(batch.slice(half))
    return records


def _require_columns(path: Path, names: Sequence[str]) -> None:
    if "key" not in names or not {"image", "caption"} & set(names):
        raise CorpusError(
            f"manifest {path}: expected the columns key and image or caption (and group, if wanted), "
            f"got {', '.join(names) or 'none'}"
        )
    if twice := {name for name in names if names.count(name) > 1}:
        raise CorpusError(f"manifest {path}: the columns {', '.join(sorted(twice))} stand there twice; rename one")


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise CorpusError(f"corpus {path} cannot be read: {error.strerror}") from error
