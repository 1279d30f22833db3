"""One of several parts of a corpus."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from connector.corpora.items import Corpus, Item
from connector.rejects import Reject


@dataclass(frozen=True, slots=True)
class Part(Corpus):
    """The items of a corpus whose keys hash to `number` (from 1) of `of`; all parts together are the corpus.

    >>> [Part.number_of("image-7", 4), Part.number_of("image-8", 4)]
    [1, 4]
    """

    corpus: Corpus
    number: int
    of: int

    def __iter__(self) -> Iterator[Item | Reject]:
        for entry in self.corpus:
            mine = entry.key if isinstance(entry, Item) else f"{entry.source}\0{entry.position}"
            if self.number_of(mine, self.of) == self.number:
                yield entry

    def total(self) -> int | None:
        """Return the number of rows of the whole corpus, all of which a part reads, where it is known."""
        return self.corpus.total()

    @staticmethod
    def number_of(key: str, of: int) -> int:
        """Return which part an item of this key is in."""
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % of + 1
