"""Items, and the `Corpus` contract of all readers: a stream of items, rejects, remarks and files passed over."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from alignment.modality import Modality
from connector.corpora.file_state import FileState
from connector.errors import CorpusError
from connector.rejects import Reject

LONGEST_FIELD = 1 << 24  # bytes of a file of captions or metadata, characters of a field; longer ones are damage
# Bytes of UTF-8, some 20 pages. A tokenizer takes about 400 bytes of memory for each before it truncates, and holds a
# whole batch at a time.
LONGEST_CAPTION = 1 << 16
NOUNS: dict[Modality, str] = {"image": "image", "text": "caption"}  # what an item of a corpus is called
MOST_WAITING = 1000  # entries that an image without a caption keeps in memory


@dataclass(frozen=True, slots=True)
class Vector:
    """A raw embedding computed elsewhere.

    Attributes:
        values: d values as little-endian float32.
        sha256: of the content that was embedded, 64 hexadecimal digits; None: not known, and the values are hashed.
    """

    values: bytes
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One image or one caption.

    Attributes:
        content: the path of the image, the bytes of its file, the caption, or the embedding of either.
        source, position: the file that it comes from, and the row in it (from 1).
        line: where the row begins, in a file that has lines; for messages.
        keyed_by_content: the key of the image is the SHA-256 of its file, as where a corpus has none; for messages.
        reached: rows of the corpus up to this one, where its files are several; None: `position`.
    """

    modality: Modality
    key: str
    group: str
    content: Path | bytes | str | Vector
    payload: Mapping[str, Any]
    source: str
    position: int
    line: int | None = field(default=None, compare=False)
    keyed_by_content: bool = field(default=False, compare=False)
    reached: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file, or a part of one, that a reader does not use.

    Attributes:
        name: the file, or the member of an archive.
        position: rows of the corpus before it.
        may_hide: whether it may hold items, so that an item that was not met may still be there.
        counted: whether it is reported as a file that was passed over.
    """

    name: str
    position: int = 0
    may_hide: bool = False
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Remark:
    """What people should know of the corpus as a whole. Whoever reads it says it at the end, see `summed`.

    >>> print(Remark("captions with quotes, which are kept", 12, "row 5"))
    captions with quotes, which are kept: 12, the first in row 5

    Attributes:
        text: what is the case, and what to do.
        count: how often; 0: that is not counted.
        first: where it is met first.
    """

    text: str
    count: int = 0
    first: str = ""

    def __str__(self) -> str:
        count = f": {self.count}" if self.count else ""
        return f"{self.text}{count}{', the first in ' if self.first else ''}{self.first}"


Entry = Item | Reject | PassedOver | Remark


def summed(remarks: Iterable[Remark]) -> list[Remark]:
    """Make one remark of those of the same text, which units of a corpus have, with the sum of their counts.

    >>> summed([Remark("rows without a group", 2), Remark("quotes", 1, "row 5"), Remark("rows without a group", 3)])
    [Remark(text='rows without a group', count=5, first=''), Remark(text='quotes', count=1, first='row 5')]
    """
    sums: dict[str, Remark] = {}
    for remark in remarks:
        before = sums.setdefault(remark.text, replace(remark, count=0))
        sums[remark.text] = replace(before, count=before.count + remark.count)
    return list(sums.values())


def reached(entry: Entry) -> int:
    """Return how many rows of the corpus, or of the unit that is read alone, are read with this entry."""
    if isinstance(entry, Remark):
        return 0
    if isinstance(entry, PassedOver) or entry.reached is None:
        return entry.position
    return entry.reached


def empty(path: Path) -> CorpusError:
    """Return the error of a corpus that holds nothing."""
    return CorpusError(f"corpus {path} is empty: expected at least one image or caption")


Listed = tuple[Path, Path | None] | Reject | Path


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of a corpus that one process reads at a time. A plain value, which another process can be given.

    Attributes:
        name: unique in its corpus. A corpus that has not changed is cut into equal units again.
        rows: how many rows of the corpus it has; None: that is known once it is read.
        files: what it is read from, as that was when the corpus was cut; see `check`.
        start, stop: where it begins and ends, in bytes, rows or entries, as its reader counts.
        before, lines: how many rows and lines of its file are before it.
        listing: the files of a folder: images with their captions, caption files that are refused, and all others.
    """

    name: str
    rows: int | None = None
    files: tuple[FileState, ...] = ()
    start: int = 0
    stop: int = 0
    before: int = 0
    lines: int = 0
    listing: "tuple[Listed, ...]" = ()

    def __str__(self) -> str:
        return self.name

    def check(self) -> None:
        """Raise a `CorpusChangedError` if a file is another one now: other rows may be at its places."""
        for file in self.files:
            file.check()


@dataclass(frozen=True, slots=True)
class Corpus(ABC):
    """A stream of items from files. Iterating again reads again.

    `units` cuts it. The entries of its units, one after the other, are its own, with the same positions, lines and
    details. So all rows of one key are in one unit, and no entry is in two. `reached` begins at 0 in each unit, and
    remarks are to be `summed`.

    Attributes:
        format: name for `--format`.
        suffixes: lower-case file suffixes that decide for this format without a look inside.
    """

    format: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()

    path: Path

    @classmethod
    def fits(cls, path: Path) -> bool:
        """Whether `path` looks like this format by its name and first bytes."""
        return path.suffix.lower() in cls.suffixes

    @abstractmethod
    def __iter__(self) -> Iterator[Entry]:
        """Yield items, rejects and files that are passed over, in the order of the files, and remarks at the end.

        A row or file that cannot be read is a reject, so that nothing is taken for gone because it was not read.
        """

    def with_captions(self) -> Iterator[Entry]:
        """Yield the entries; each image carries the first caption of its key as payload, see `with_first_captions`."""
        return with_first_captions(self)

    def units(self) -> Iterator[Unit]:
        """Cut the corpus, in the order of its entries. What is wrong with it as a whole is an error here.

        Raises:
            CorpusError: the corpus cannot be read, or lacks columns.
        """
        yield Unit("whole")

    def within(self, unit: Unit) -> Self:
        """Return a corpus of the entries of one unit alone. What was checked of the whole is not checked again."""
        return self

    @abstractmethod
    def total(self) -> int | None:
        """Return the number of rows, which the last entry reaches; None where counting would cost a whole read."""


def read_units(corpus: Corpus, read: Callable[[Corpus], Iterable[Entry]]) -> Iterator[Entry]:
    """Read the units of a corpus one after the other, with `reached` counted on; their remarks come last."""
    before, remarks = 0, list[Remark]()
    for unit in corpus.units():
        last = 0
        for entry in read(corpus.within(unit)):
            if isinstance(entry, Remark):
                remarks.append(entry)
                continue
            last = max(last, reached(entry))
            rows = before + reached(entry)
            yield replace(entry, position=rows) if isinstance(entry, PassedOver) else replace(entry, reached=rows)
        before += last if unit.rows is None else unit.rows
    yield from summed(remarks)


def with_first_captions(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Give each image the first caption of its key as payload `caption`, so that whoever finds the image can name it.

    The image and the captions of a key follow each other, in any order, and the order stays. An image waits for the
    caption that follows it, and up to `MOST_WAITING` entries wait behind it.
    """
    key: str | None = None
    caption: str | None = None
    waiting: list[Entry] = []
    for entry in entries:
        if isinstance(entry, Item):
            of_key = entry.key if entry.modality == "image" else entry.key.rpartition("#")[0]
            if of_key != key:
                yield from waiting
                key, caption, waiting = of_key, None, []
            caption = caption or entry.payload.get("caption")
        waiting.append(entry)
        nothing_waits = len(waiting) == 1 and not _is_image(entry)
        if caption is not None or nothing_waits or len(waiting) > MOST_WAITING:
            yield from (_named(each, caption) for each in waiting)
            waiting = []
    yield from waiting


def _is_image(entry: Entry) -> bool:
    return isinstance(entry, Item) and entry.modality == "image"


def _named(entry: Entry, caption: str | None) -> Entry:
    if isinstance(entry, Item) and entry.modality == "image" and caption is not None:
        return replace(entry, payload={"caption": caption, **entry.payload})
    return entry
