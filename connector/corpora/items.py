"""Items, and the `Corpus` contract of all readers: a stream of items and rejects."""

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
LONGEST_FIELD = 1 << 24  # characters; a longer caption means a broken file


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
    def __iter__(self) -> Iterator[Item | Reject]:
        """Yield items and rejects in the order of the files."""

    @abstractmethod
    def total(self) -> int | None:
        """Return the number of rows, which is the last position; None where counting would cost a whole read."""
