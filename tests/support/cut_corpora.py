"""A corpus of given entries, cut into units of given sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from connector.corpora.formats import open_corpus
from connector.corpora.items import Corpus, Entry, Item, Unit
from connector.rejects import Reason, Reject
from tests.support.fakes import fake_pairs


@dataclass(frozen=True, slots=True)
class Cut(Corpus):
    """A corpus of given entries in units of given sizes."""

    entries: Sequence[Entry]
    sizes: Sequence[int]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def units(self) -> Iterator[Unit]:
        for number in range(len(self.sizes)):
            yield Unit(f"{number}")

    def within(self, unit: Unit) -> "Cut":
        first = sum(self.sizes[: int(unit.name)])
        return Cut(self.path, self.entries[first : first + self.sizes[int(unit.name)]], [])

    def total(self) -> int:
        return len(self.entries)


def cut_corpus(directory: Path) -> Cut:
    """Images, captions, equal captions, an image that breaks and a row that was refused, in five units."""
    pairs = fake_pairs(directory, 30, seed=2)
    pairs[4].image.write_bytes(b"broken")
    entries: list[Entry] = []
    for number, pair in enumerate(pairs):
        entries.append(Item("image", pair.key, pair.key, pair.image, {}, "list", number + 1))
        if number % 3 == 0:
            text = "the same" if number % 2 else f"red {number}"
            entries.append(Item("text", f"{pair.key}#0", pair.key, text, {"caption": text}, "list", number + 1))
        if number == 11:
            entries.append(Reject("list", number + 1, "read", Reason.KEY_MISSING, "no key"))
    return Cut(directory, entries, [17, 0, 6, 9, len(entries) - 32])


@dataclass(frozen=True, slots=True)
class InRows(Corpus):
    """A manifest in units of seven entries, at the ends of keys; or one of these units."""

    only: int | None = None

    def _entries(self) -> list[list[Entry]]:
        found: list[list[Entry]] = [[]]
        for entry in open_corpus(self.path):
            if len(found[-1]) >= 7 and isinstance(entry, Item) and entry.modality == "image":
                found.append([])
            found[-1].append(entry)
        return found

    def __iter__(self) -> Iterator[Entry]:
        units = self._entries()
        return (entry for of_unit in (units if self.only is None else [units[self.only]]) for entry in of_unit)

    def units(self) -> Iterator[Unit]:
        for number in range(len(self._entries())):
            yield Unit(f"{number}")

    def within(self, unit: Unit) -> "InRows":
        return InRows(self.path, int(unit.name))

    def total(self) -> int | None:
        return None
