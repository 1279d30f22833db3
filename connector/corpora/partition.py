"""One part of a corpus that several machines share."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from connector.corpora.items import Corpus, Entry, Item, PassedOver, Remark, reached
from connector.errors import CorpusError
from connector.rejects import OF_FIELDS, Reject


@dataclass(frozen=True, slots=True)
class CorpusPart(Corpus):
    """The items of a corpus whose keys hash to part `number` (from 1) of `of` parts. All parts make up the corpus.

    >>> [CorpusPart.number_of("image-7", 4), CorpusPart.number_of("image-8", 4)]
    [1, 4]
    """

    corpus: Corpus
    number: int
    of: int

    def __iter__(self) -> Iterator[Entry]:
        """Yield the items of this part, and its share of the rejects and files that are passed over.

        What other parts report and may hide items is passed over here, uncounted: the items may be this part's.

        Raises:
            CorpusError: the whole corpus is empty.
        """
        empty = True
        for entry in self.corpus.with_captions():
            empty = empty and isinstance(entry, PassedOver | Remark)
            if self.number_of(_hashed(entry), self.of) == self.number:
                yield entry
            elif isinstance(entry, Reject) and entry.reason not in OF_FIELDS:
                yield PassedOver(entry.source, reached(entry), may_hide=True, counted=False)
            elif isinstance(entry, PassedOver) and entry.may_hide:
                yield replace(entry, counted=False)
        if empty:
            raise CorpusError(f"corpus {self.corpus.path} is empty: expected at least one image or caption")

    def total(self) -> int | None:
        """Return the number of rows of the whole corpus, which every part reads; None if unknown."""
        return self.corpus.total()

    @staticmethod
    def number_of(key: str, of: int) -> int:
        """Return the part (from 1) of `of` parts that an item with this key belongs to."""
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % of + 1


def _hashed(entry: Entry) -> str:
    if isinstance(entry, Item):
        return entry.key
    if isinstance(entry, Remark):
        return entry.text
    return f"{entry.source}\0{entry.position}" if isinstance(entry, Reject) else entry.name
