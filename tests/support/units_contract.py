"""What holds of the units of every corpus: they are cut alike again, and their entries are those of the whole."""

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

from connector.corpora.items import Corpus, Entry, PassedOver, Unit, reached

Said = tuple[type[Entry], dict[str, Any]]


def said(entry: Entry, before: int = 0) -> Said:
    """Return everything that an entry says, what is not compared included; `before` rows came before its unit."""
    said = {field.name: getattr(entry, field.name) for field in fields(entry)}
    place = "position" if isinstance(entry, PassedOver) else "reached"
    return type(entry), {**said, place: before + reached(entry)}


def joined(corpus: Corpus, read: Callable[[Corpus], Iterable[Entry]] = iter) -> Iterator[Said]:
    """Yield what the entries of the units say, one unit after the other."""
    before = 0
    for unit in corpus.units():
        last = 0
        for entry in read(corpus.within(unit)):
            last = max(last, reached(entry))
            yield said(entry, before)
        assert unit.rows is None or last <= unit.rows
        before += last if unit.rows is None else unit.rows


def check_units(corpus: Corpus) -> list[Unit]:
    """Check the units of a corpus against the whole, and return them."""
    units = list(corpus.units())
    assert len({unit.name for unit in units}) == len(units)
    assert list(corpus.units()) == units
    assert [pickle.loads(pickle.dumps(unit)) for unit in units] == units
    assert list(joined(corpus)) == list(map(said, corpus))
    assert list(joined(corpus, Corpus.with_captions)) == list(map(said, corpus.with_captions()))
    if all(unit.rows is not None for unit in units):
        assert sum(unit.rows or 0 for unit in units) == corpus.total()
    return units
