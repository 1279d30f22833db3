"""What a corpus is a stream of: items, and rejects with a named reason."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alignment.modality import Modality
from connector.rejects import Reject

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".ico", ".jfif", ".jpeg", ".jpg", ".pgm"}
    | {".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
LONGEST_FIELD = 1 << 24  # characters: a caption beyond 16 MiB is a broken file


@dataclass(frozen=True, slots=True)
class Vector:
    """A raw embedding that was computed elsewhere: its d values as float32, little-endian."""

    values: bytes


@dataclass(frozen=True, slots=True)
class Item:
    """One image or one caption.

    Attributes:
        content: path of the image or the bytes of its file, the caption itself, or an embedding of either.
        source, position: the file and the row (from 1) it comes from.
    """

    modality: Modality
    key: str
    group: str
    content: Path | bytes | str | Vector
    payload: Mapping[str, Any]
    source: str
    position: int


@dataclass(frozen=True, slots=True)
class Corpus(ABC):
    """A stream of items from files. Iterating again reads again.

    Attributes:
        format: its name for `--format`.
        suffixes: of files that are this format, whatever they hold; lower case.
    """

    format: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()

    path: Path

    @classmethod
    def fits(cls, path: Path) -> bool:
        """Whether `path` looks like this format, by its name and its first bytes."""
        return path.suffix.lower() in cls.suffixes

    @abstractmethod
    def __iter__(self) -> Iterator[Item | Reject]:
        """Yield items and rejects in the order of the files."""

    @abstractmethod
    def total(self) -> int | None:
        """Return the number of rows, for a progress bar; positions run up to it. None: counting costs a whole read."""
