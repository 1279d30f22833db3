"""Manifests: rows of files become items. A bad caption or field of payload is refused, and the rest of its row kept."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from typing_extensions import override

from alignment.modality import Modality
from alignment.object_storage import joined
from connector.corpora.columns import Columns
from connector.corpora.items import Corpus, Entry, Item, PassedOver, Remark, Unit, read_units
from connector.corpora.row_checks import RowError, check_caption, check_key, check_texts, storable, text_field
from connector.rejects import Reason, Reject, at_line
from connector.safe_text import printable

USUAL = Columns()
MOST_CAPTIONS = 1000  # of one key; more mean that the key column is no key


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A row of a manifest as it was read, before any check.

    Attributes:
        fields: `key`, `image`, `caption` and `group`; all others are payload.
        source: the file that holds it; None: the corpus itself.
        picture: the bytes of the image, if it is no file of its own.
        columns: the names that the file has for these fields, for messages.
        line: where the row begins, in a file that has lines.
        reached: rows of the corpus up to this one, where its files are several; None: `position`.
    """

    position: int
    fields: Mapping[str, Any]
    source: Path | None = None
    picture: bytes | None = None
    columns: Columns = USUAL
    line: int | None = None
    reached: int | None = None


Placed = TypeVar("Placed", bound=ManifestRow | Reject | PassedOver)


def placed(row: Placed, reached: int) -> Placed:
    """Return a row of one of several files, given how many rows of the corpus are read with it."""
    return replace(row, position=reached) if isinstance(row, PassedOver) else replace(row, reached=reached)


@dataclass(frozen=True, slots=True)
class Manifest(Corpus):
    """A file with a row per image or caption, or several of them.

    Attributes:
        unit: what is read of it; None: everything.
    """

    unit: Unit | None = field(default=None, kw_only=True)

    @override
    def within(self, unit: Unit) -> Self:
        return replace(self, unit=unit)

    def begins_anew(self, rest: Unit) -> ManifestRow | None:
        """Return the first row of the rest of the manifest that may be the first of a unit; None: there is none."""
        return first_to_begin(self.path, self.within(rest).rows())

    def _reached(self, row: ManifestRow | Reject | PassedOver | Remark) -> int | None:
        """Return how many rows of the unit are read with this one; None: see the row."""
        if isinstance(row, ManifestRow | Reject) and row.reached is not None:
            return row.reached
        return None if self.unit is None or isinstance(row, Remark) else row.position - self.unit.before

    @abstractmethod
    def rows(self) -> Iterator[ManifestRow | Reject | PassedOver | Remark]:
        """Yield the rows of the files."""

    @override
    def __iter__(self) -> Iterator[Entry]:
        if self.unit is None:
            yield from self._entries()
        else:
            self.unit.check()
            yield from self._entries()
            self.unit.check()

    def _entries(self) -> Iterator[Entry]:
        entry: _ManifestEntry | None = None
        for row in self.rows():
            reached = self._reached(row)
            if not isinstance(row, ManifestRow):
                yield row if reached is None or isinstance(row, Remark) else placed(row, reached)
                continue
            try:
                current = _ManifestEntry.from_row(self.path, row)
                if entry is None or entry.key != current.key:
                    entry = None
                    yield from _with_reached(reached, current.items())
                else:
                    yield from _with_reached(reached, current.items(after=entry))
            except RowError as error:
                key = printable(str(row.fields.get("key") or "")) or None
                detail = at_line(row.line, str(error))
                source = str(row.source or self.path)
                yield Reject(source, row.position, "read", error.reason, detail, key, reached=reached)
            else:
                entry = current.joined(entry)


class Shards(Manifest):
    """A manifest of several files that are its units, because none goes on with the last rows of another."""

    @abstractmethod
    def rows_of(self, unit: Unit) -> Iterator[ManifestRow | Reject | PassedOver | Remark]:
        """Yield the rows of a file."""

    @override
    def rows(self) -> Iterator[ManifestRow | Reject | PassedOver | Remark]:
        for unit in self.units() if self.unit is None else [self.unit]:
            yield from self.rows_of(unit)

    @override
    def __iter__(self) -> Iterator[Entry]:
        return read_units(self, iter) if self.unit is None else Manifest.__iter__(self)

    @override
    def with_captions(self) -> Iterator[Entry]:
        return read_units(self, Manifest.with_captions) if self.unit is None else Manifest.with_captions(self)


def first_to_begin(manifest: Path, rows: Iterable[ManifestRow | Reject | PassedOver | Remark]) -> ManifestRow | None:
    """Return the first row from which on a manifest can be read alone, as if it began there; None: there is none.

    It has another key than the row before. The rows of that key are known from their first on, so that it is known
    whether they give an item, with which all that waits for captions of an earlier key ends; and so does this row.
    """
    entry: _ManifestEntry | None = None
    is_known = gives_items = False
    for row in rows:
        if not isinstance(row, ManifestRow):
            continue
        try:
            current = _ManifestEntry.from_row(manifest, row)
            if entry is None or current.key == entry.key:
                gives_items |= _gives_items(current, entry)
                entry = current.joined(entry)
                continue
        except RowError:
            continue
        begins = _gives_items(current)
        if is_known and gives_items and begins:
            return row
        entry, is_known, gives_items = current, True, begins
    return None


def _gives_items(row: "_ManifestEntry", after: "_ManifestEntry | None" = None) -> bool:
    return any(isinstance(entry, Item) for entry in row.items(after))


def _with_reached(reached: int | None, entries: Iterable[Item | Reject]) -> Iterator[Item | Reject]:
    return iter(entries) if reached is None else (replace(entry, reached=reached) for entry in entries)


@dataclass(frozen=True, slots=True)
class _ManifestEntry:
    """A checked row, or the merged rows of one key so far, with the payload of the one that gives the image.

    Attributes:
        shown: what the image shows: its path, or the SHA-256 of its bytes if it is no file of its own.
        captions: texts; in the place of one that cannot be used, its error, so that the others keep their numbers.
        refused: why the image or fields of the payload are left out.
    """

    source: str
    position: int
    key: str
    group: str
    image: str | None
    resolved: Path | None
    picture: bytes | None
    shown: str | None
    captions: tuple[str | RowError, ...]
    columns: Columns
    line: int | None
    payload: dict[str, Any] = field(default_factory=dict)
    refused: tuple[tuple[RowError, Modality | None], ...] = ()

    @classmethod
    def from_row(cls, manifest: Path, row: ManifestRow) -> "_ManifestEntry":
        fields, columns = dict(row.fields), row.columns
        key = check_key(fields, columns.key)
        refused: list[tuple[RowError, Modality | None]] = []
        image = None
        try:
            image = text_field(fields, "image", columns.image)
            check_texts(image)
        except RowError as error:
            image = None
            refused.append((error, "image"))
        captions = fields.pop("caption", None)
        captions = [] if captions is None else captions if isinstance(captions, list) else [captions]
        if len(captions) > MOST_CAPTIONS:
            raise RowError(Reason.KEY_DUPLICATE, _too_many(columns, key))
        captions = tuple(filter(None, (_checked(caption, columns.caption) for caption in captions)))
        if not image and not captions and not refused:
            raise RowError(Reason.ROW_WITHOUT_IMAGE_OR_CAPTION, printable(f"expected {columns.items_in_words}"))
        group = text_field(fields, "group", columns.group) or key
        source = row.source or manifest
        check_texts(str(source), key, group)
        payload, faults = storable(fields)
        refused += [(fault, None) for fault in faults]
        resolved = joined(manifest.parent, image) if image else None
        shown = image if row.picture is None else hashlib.sha256(row.picture).hexdigest()
        return cls(
            *(str(source), row.position, key, group, image, resolved, row.picture, shown if image else None),
            *(captions, columns, row.line, payload, tuple(refused)),
        )

    @property
    def texts(self) -> list[str]:
        """The captions that can be used."""
        return [caption for caption in self.captions if isinstance(caption, str)]

    @property
    def keyed_by_content(self) -> bool:
        """Whether the key is the SHA-256 of the picture."""
        return self.picture is not None and self.key == self.shown

    def items(self, after: "_ManifestEntry | None" = None) -> Iterator[Item | Reject]:
        """Yield the image, unless an earlier row did, and the captions, numbered on from the rows before.

        An image that an earlier row gave is refused if this row says something else of it.
        """
        if after:
            self._check_after(after)
        for error, modality in self.refused:
            yield self._reject(error, self.key, modality)
        if self.resolved and not (after and after.image):
            payload = {"image": str(self.resolved), **self.payload}
            content = self.resolved if self.picture is None else self.picture
            yield self._item("image", self.key, content, payload)
        elif self.image and after and not self.payload.items() <= after.payload.items():
            differing = [name for name in self.payload if self.payload[name] != after.payload.get(name)]
            detail = (
                f"an earlier row gives this image with other values of {', '.join(map(repr, differing))}; name the "
                "image in one row of its key, or give each row the same values"
            )
            yield self._reject(RowError(Reason.KEY_DUPLICATE, detail), self.key, "image")
        for number, caption in enumerate(self.captions, start=len(after.captions) if after else 0):
            key = f"{self.key}#{number}"
            if isinstance(caption, RowError):
                yield self._reject(caption, key, "text")
            else:
                payload = {"caption": caption, **self.payload}
                yield self._item("text", key, caption, payload)

    def _item(self, modality: Modality, key: str, content: Path | bytes | str, payload: dict[str, Any]) -> Item:
        whence = (self.source, self.position, self.line, self.keyed_by_content)
        return Item(modality, key, self.group, content, payload, *whence)

    def _check_after(self, after: "_ManifestEntry") -> None:
        """Raise a `RowError` if this row cannot go on with the rows of its key before it."""
        own = self.columns.key_in_words(self.key)
        if (self.shown and after.shown and self.shown != after.shown) or self.group != after.group:
            detail = f"the row before has {own} with another image or group; give each item a key of its own"
            if self.image == after.image and self.group == after.group:
                detail = f"the row before has {own} with another picture; name a column of keys with --key"
            raise RowError(Reason.KEY_DUPLICATE, detail)
        if not set(self.texts).isdisjoint(after.texts):
            raise RowError(Reason.KEY_DUPLICATE, f"an earlier row has {own} and the same caption")
        if len(after.captions) + len(self.captions) > MOST_CAPTIONS:
            raise RowError(Reason.KEY_DUPLICATE, _too_many(self.columns, self.key))
        if not self.captions:
            detail = (
                f"expected a caption in {self.columns.captions_in_words}: the row before has {own} too, and "
                "further rows of a key add captions"
            )
            raise RowError(Reason.CAPTION_EMPTY, printable(detail))

    def _reject(self, error: RowError, key: str, modality: Modality | None) -> Reject:
        detail = at_line(self.line, printable(str(error)))
        return Reject(self.source, self.position, "read", error.reason, detail, key, modality)

    def joined(self, earlier: "_ManifestEntry | None") -> "_ManifestEntry":
        """Merge this row with the `earlier` ones of its key."""
        if earlier is None:
            return self
        return replace(
            self,
            image=earlier.image or self.image,
            resolved=earlier.resolved or self.resolved,
            picture=None,
            shown=earlier.shown or self.shown,
            captions=earlier.captions + self.captions,
            payload=earlier.payload if earlier.image else self.payload,
        )


def _too_many(columns: Columns, key: str) -> str:
    return f"{columns.key_in_words(key)} has more than {MOST_CAPTIONS} captions"


def _checked(caption: Any, columns: Sequence[str]) -> str | RowError:
    try:
        return check_caption(caption, columns)
    except RowError as error:
        return error
