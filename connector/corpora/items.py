"""Items, and the `Corpus` contract of all readers: a stream of items, rejects and files that are passed over."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alignment.modality import Modality
from connector.rejects import Reject

LONGEST_FIELD = 1 << 24  # bytes of a file of captions or metadata, characters of a field; longer ones are damage
# Bytes of UTF-8, some 20 pages. A tokenizer takes about 400 bytes of memory for each before it truncates, and holds a
# whole batch at a time.
LONGEST_CAPTION = 1 << 16


@dataclass(frozen=True, slots=True)
class Vector:
    """A raw embedding computed elsewhere: d values as little-endian float32."""

    values: bytes


@dataclass(frozen=True, slots=True)
class Item:
    """One image or one caption.

    Attributes:
        content: the path of the image, the bytes of its file, the caption, or the embedding of either.
        source, position: the file that it comes from, and the row in it (from 1).
    """

    modality: Modality
    key: str
    group: str
    content: Path | bytes | str | Vector
    payload: Mapping[str, Any]
    source: str
    position: int


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file, or a part of one, that a reader does not use.

    Attributes:
        name: the file, or the member of an archive.
        position: the row before it.
        may_hide: whether it may hold items, so that an item that was not met may still be there.
        counted: whether it is reported as a file that was passed over.
    """

    name: str
    position: int = 0
    may_hide: bool = False
    counted: bool = True


Entry = Item | Reject | PassedOver


@dataclass(frozen=True, slots=True)
class Corpus(ABC):
    """A stream of items from files. Iterating again reads again.

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
        """Yield items, rejects and files that are passed over, in the order of the files.

        A row or file that cannot be read is a reject, so that nothing is taken for gone because it was not read.
        """

    @abstractmethod
    def total(self) -> int | None:
        """Return the number of rows, which is the last position; None where counting would cost a whole read."""
