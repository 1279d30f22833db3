"""One part of a corpus that several machines share."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from connector.corpora.items import Corpus, Item
from connector.rejects import Reject


@dataclass(frozen=True, slots=True)
class Part(Corpus):
    """The items of a corpus whose keys hash to part `number` (from 1) of `of` parts. All parts make up the corpus.

    >>> [Part.number_of("image-7", 4), Part.number_of("image-8", 4)]
    [1, 4]
    """

    corpus: Corpus
    number: int
    of: int

    def __iter__(self) -> Iterator[Item | Reject]:
        for entry in self.corpus:
            hashed = entry.key if isinstance(entry, Item) else f"{entry.source}\0{entry.position}"
            if self.number_of(hashed, self.of) == self.number:
                yield entry

    def total(self) -> int | None:
        """Return the number of rows of the whole corpus, which every part reads; None if unknown."""
        return self.corpus.total()

    @staticmethod
    def number_of(key: str, of: int) -> int:
        """Return the part (from 1) of `of` parts that an item with this key belongs to."""
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % of + 1
