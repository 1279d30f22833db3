"""Embeddings computed elsewhere, read as a corpus whose items are vectors.

Three layouts: the folder of clip-retrieval, a `.npy` array with a table, and tables with vector columns. Arrays are
memory-mapped and never unpickled. Tables are read batch by batch.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from typing_extensions import override

from alignment.modality import MODALITIES, Modality
from alignment.names import did_you_mean
from alignment.object_storage import located
from connector.corpora.columns import Columns
from connector.corpora.items import Corpus, Item, Vector
from connector.corpora.opening import check_access, listed
from connector.corpora.row_checks import (
    RowError,
    check_key,
    check_texts,
    storable,
    text_field,
    without_collisions,
)
from connector.corpora.vector_tables import Vectors, VectorTable, is_vector
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.resources import raise_lack
from connector.safe_text import printable

FOLDERS: Mapping[Modality, str] = {"image": "img_emb", "text": "text_emb"}  # of clip-retrieval
# Columns of a table that are read as what, unless others are named: the first that is there.
USUAL = {"key": ("key", "image_path"), "group": ("group",), "image": ("image", "image_path"), "caption": ("caption",)}


@dataclass(frozen=True, slots=True)
class VectorFiles(Corpus):
    """Vectors whose table names them as a manifest does.

    The image of a row gets the key of the row, its text gets `KEY#0`, and consecutive rows with the same key go on to
    `KEY#1`, ... All other columns become payload, `image_path` as `image`.

    Attributes:
        modalities: the modalities of the vectors.
        parts: tables with their vectors, in order.
        key, group, image, caption: columns of the table; None: the usual names.
    """

    format = "vectors"

    modalities: tuple[Modality, ...] = ()
    parts: tuple[VectorTable, ...] = ()
    key: str | None = None
    group: str | None = None
    image: str | None = None
    caption: str | None = None

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        return vectors_at(path)

    @override
    def total(self) -> int:
        """Count the rows; raises a `CorpusError` if arrays and tables differ in length."""
        return sum(part.rows() for part in self.parts)

    def dims(self) -> dict[Modality, int]:
        """Return the dimension of the vectors of each modality.

        Raises:
            CorpusError: parts differ in dimension, or no part has a vector.
        """
        dims: dict[Modality, int] = {}
        for modality in self.modalities:
            by_part = {part.table: dim for part in self.parts if (dim := part.dim(modality))}
            if len(set(by_part.values())) != 1:
                received = ", ".join(f"{table.name}: {dim}" for table, dim in by_part.items()) or "no vector"
                raise CorpusError(f"{self.path}: expected {modality} vectors of one dimension, got {received}")
            dims[modality] = next(iter(by_part.values()))
        return dims

    @override
    def __iter__(self) -> Iterator[Item | Reject]:
        dims = self.dims()
        self.total()  # checks the lengths before the first row is yielded
        before, run = 0, _Run()
        for part in self.parts:
            for entry in self._of_part(part, dims, run):
                yield replace(entry, reached=before + entry.position)
                if isinstance(entry, Reject) and entry.reason == Reason.FILE_TRUNCATED:
                    return  # rows of a key go on from one part to the next
            before += part.rows()

    def _of_part(self, part: VectorTable, dims: Mapping[Modality, int], run: "_Run") -> Iterator[Item | Reject]:
        naming = _Naming.of(part, key=self.key, group=self.group, image=self.image, caption=self.caption)
        position = 0
        try:
            for rows, vectors in part.batches(dims):
                for row, record in enumerate(rows):
                    position += 1
                    try:
                        entry = naming.entry(part.table, record)
                    except RowError as error:
                        key = printable(str(record.get(naming.key)))
                        yield Reject(str(part.table), position, "read", error.reason, printable(str(error)), key)
                    else:
                        number = run.number(entry.key)
                        for fault in entry.faults:
                            yield Reject(entry.source, position, "read", fault.reason, str(fault), entry.key)
                        for modality in self.modalities:
                            for item in entry.items(modality, vectors[modality], row, number, position):
                                yield from run.once(item, number)
        except (OSError, pa.ArrowException) as error:
            raise_lack(error, f"reading {part.table}")
            yield Reject(str(part.table), position + 1, "read", Reason.FILE_TRUNCATED, str(error))


@dataclass(frozen=True, slots=True)
class _VectorEntry:
    """The checked fields of a row of the table; `faults` say which fields are left out."""

    source: str
    key: str
    group: str
    image: str | None
    caption: str | None
    payload: dict[str, Any]
    faults: list[RowError]

    def items(
        self, modality: Modality, vectors: Vectors, row: int, number: int, position: int
    ) -> Iterator[Item | Reject]:
        """Yield the item of the vector in `row`, or its reject; `number` rows of this key came before."""
        key = self.key if modality == "image" else f"{self.key}#{number}"
        if reason := vectors.faults.get(row):
            detail = "expected a finite vector of the common dimension with a norm above 0"
            yield Reject(self.source, position, "read", Reason(reason), detail, key, modality)
        else:
            given = {"image": self.image if modality == "image" else None, "caption": self.caption}
            payload = {**{name: text for name, text in given.items() if text}, **self.payload}
            content = Vector(vectors.values[row].tobytes())
            yield Item(modality, key, self.group, content, payload, self.source, position)


@dataclass(frozen=True, slots=True)
class _Naming:
    """The columns of a table with keys, groups, paths of images and captions; None: there is none."""

    key: str
    group: str | None
    image: str | None
    caption: str | None

    @classmethod
    def of(cls, part: VectorTable, **named: str | None) -> "_Naming":
        """Return the columns that were named, and those of the usual names.

        Raises:
            CorpusError: the table has no column of a name that was given, or none of keys.
            SettingsError: a column holds captions and keys or images at once.
        """
        names = part.schema().names
        shown = printable(", ".join(names)) or "none"
        for role, name in named.items():
            if name is not None and name not in names:
                raise CorpusError(
                    f"{part.table}: --{role} names the column {printable(repr(name))}, which is not there"
                    f"{did_you_mean(name, names)}; its columns: {shown}"
                )
        found: dict[str, Any] = {}
        for role, usual in USUAL.items():
            found[role] = next((name for name in (named[role] or "", *usual) if name in names), None)
        if found["key"] is None:
            raise CorpusError(
                f"{part.table}: expected a column {' or '.join(USUAL['key'])} that names the rows, got {shown}; name "
                "one with --key"
            )
        return cls(**found)

    def entry(self, table: Path, record: Any) -> _VectorEntry:
        """Check a record; raises a `RowError` if it cannot be used."""
        fields = {name: value for name, value in record.items() if value is not None}
        columns = {"key": self.key, "group": self.group, "image": self.image, "caption": self.caption}
        given = {role: fields.get(name) for role, name in columns.items() if name}
        for name in columns.values():
            fields.pop(name or "", None)
        key = check_key(given, self.key)
        group, image, caption = (text_field(given, name, columns[name]) for name in ("group", "image", "caption"))
        check_texts(str(table), key, group, image, caption)
        payload, faults = storable(without_collisions(fields))
        return _VectorEntry(str(table), key, group or key, image, caption, payload, faults)


@dataclass(slots=True)
class _Run:
    """Counts consecutive rows with the same key."""

    key: str | None = None
    count: int = 0
    image: Item | None = None

    def once(self, item: Item | Reject, number: int) -> Iterator[Item | Reject]:
        """Yield an item, unless it is the image that an earlier row of its key gave; another image is a reject."""
        if isinstance(item, Reject) or item.modality == "text":
            yield item
        elif not number or self.image is None:
            self.image = item
            yield item
        elif _without_caption(item) != _without_caption(self.image):
            detail = "an earlier row has this key with another vector, payload or group; make keys unique"
            yield Reject(item.source, item.position, "read", Reason.KEY_DUPLICATE, detail, item.key, item.modality)

    def number(self, key: str) -> int:
        """Return the number of rows directly before that have this `key`."""
        self.count = self.count + 1 if key == self.key else 0
        if not self.count:
            self.image = None
        self.key = key
        return self.count


def _without_caption(image: Item) -> Item:
    """Return what all rows of an image have to agree on: not where they are, nor their captions."""
    payload = {name: value for name, value in image.payload.items() if name != "caption"}
    return replace(image, position=0, source="", payload=payload)


def vectors_at(path: Path) -> bool:
    """Whether `path` is a `.npy` file or a folder of clip-retrieval."""
    return path.suffix.lower() == ".npy" or any((path / folder).is_dir() for folder in FOLDERS.values())


def open_vectors(
    path: Path | str,
    modalities: Sequence[Modality],
    *,
    columns: Mapping[Modality, str] | None = None,
    metadata: Path | None = None,
    key: str | None = None,
    group: str | None = None,
    image: str | None = None,
    caption: str | None = None,
) -> VectorFiles:
    """Open the vectors at `path`: clip-retrieval's folder, a `.npy`, a `.parquet` or a folder of these.

    Args:
        path: the vectors.
        modalities: the modalities of the vectors.
        columns: vector column by modality; optional for one modality and a single vector column.
        metadata: table of a `.npy`; None: the Parquet file of the same name.
        key: column of the keys; None: `key` or `image_path`.
        group: column of the groups; None: `group`, or the key.
        image: column of the paths of images, which become payload; None: `image` or `image_path`.
        caption: column of the captions, which become payload; None: `caption`.

    Raises:
        CorpusError: the path does not exist, or does not hold vectors of these modalities.
        SettingsError: a column is named for two things.
    """
    path, chosen = located(path), tuple(m for m in MODALITIES if m in modalities)
    Columns.of(key, image, (caption,) if caption else (), group)
    check_access(path)
    if not path.exists():
        raise CorpusError(f"vectors {path} do not exist; name a .npy, a .parquet or a folder")
    if path.suffix.lower() == ".npy":
        if len(chosen) != 1:
            raise CorpusError(f"{path} holds vectors of one modality; expected one encoder, got {' and '.join(chosen)}")
        parts = [VectorTable(metadata or path.with_suffix(".parquet"), arrays={chosen[0]: path})]
    elif vectors_at(path):
        parts = list(_clip_retrieval(path, chosen))
    elif (
        tables := [path]
        if path.suffix.lower() == ".parquet"
        else sorted(entry for entry in listed(path) if entry.suffix.lower() == ".parquet")
    ):
        parts = [VectorTable(table, columns=_columns(table, chosen, columns or {})) for table in tables]
    else:
        raise CorpusError(
            f"{path}: expected a .npy, a .parquet, a folder of .parquet files, or a folder of clip-retrieval with "
            f"{' and '.join(FOLDERS.values())}"
        )
    return VectorFiles(path, chosen, tuple(parts), key, group, image, caption)


def _clip_retrieval(path: Path, modalities: Sequence[Modality]) -> Iterator[VectorTable]:
    tables = _numbered(path / "metadata", ".parquet")
    arrays = {modality: _numbered(path / FOLDERS[modality], ".npy") for modality in modalities}
    for files in (tables, *arrays.values()):
        if files.keys() != tables.keys() or not tables:
            raise CorpusError(
                f"{path}: expected {' and '.join(FOLDERS[m] for m in modalities)} with an array for every table in "
                f"metadata; tables {sorted(tables) or 'none'}, arrays {sorted(files) or 'none'}"
            )
    for number in sorted(tables, key=lambda digits: (int(digits), digits)):
        yield VectorTable(tables[number], arrays={modality: files[number] for modality, files in arrays.items()})


def _numbered(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files by the digits at the end of their names, as they are written: 0 is not 00."""
    by_digits: dict[str, Path] = {}
    for path in sorted(entry for entry in listed(folder) if entry.suffix.lower() == suffix):
        match = re.search(r"(\d+)$", path.stem)
        if match is None:
            raise CorpusError(f"{path}: expected a number at the end of the name, which pairs arrays with tables")
        if (other := by_digits.setdefault(match[1], path)) != path:
            raise CorpusError(f"{folder}: expected one file of number {match[1]}, got {other.name} and {path.name}")
    return by_digits


def _columns(table: Path, modalities: Sequence[Modality], requested: Mapping[Modality, str]) -> dict[Modality, str]:
    schema = VectorTable(table).schema()
    vectors = [name for name in schema.names if is_vector(schema, name)]
    if not requested and len(modalities) == len(vectors) == 1:
        return {modalities[0]: vectors[0]}
    if wrong := [m for m in modalities if requested.get(m) not in vectors]:
        raise CorpusError(
            f"{table}: expected a column of {wrong[0]} vectors, lists of float16, float32 or float64, got "
            f"{requested.get(wrong[0]) or 'no name'}; its vector columns: {', '.join(vectors) or 'none'}; "
            "name them with --image-vectors and --text-vectors"
        )
    return {modality: requested[modality] for modality in modalities}
