"""What holds of the units of every corpus: they are cut alike again, and their entries are those of the whole."""

import pickle
from collections.abc import Callable, Iterable
from dataclasses import fields
from operator import methodcaller
from typing import Any

from connector.corpora.items import Corpus, Entry, PassedOver, Remark, Unit, reached, summed

Said = tuple[type[Entry], dict[str, Any]]
Read = Callable[[Corpus], Iterable[Entry]]


def said(entries: Iterable[Entry], before: int = 0) -> tuple[list[Said], list[Remark]]:
    """Return everything that entries say, what is not compared included, and their remarks.

    `before` rows of the corpus came before.
    """
    said: list[Said] = []
    remarks: list[Remark] = []
    for entry in entries:
        if isinstance(entry, Remark):
            remarks.append(entry)
        else:
            place = "position" if isinstance(entry, PassedOver) else "reached"
            values = {field.name: getattr(entry, field.name) for field in fields(entry)}
            said.append((type(entry), {**values, place: before + reached(entry)}))
    return said, remarks


def joined(corpus: Corpus, units: Iterable[Unit], read: Read) -> tuple[list[Said], list[Remark]]:
    """Return what the entries of the units say, one unit after the other, and their remarks."""
    all_said: list[Said] = []
    all_remarks: list[Remark] = []
    before = 0
    for unit in units:
        entries = list(read(corpus.within(unit)))
        rows = max(map(reached, entries), default=0)
        assert unit.rows is None or rows <= unit.rows
        of_unit, remarks = said(entries, before)
        all_said += of_unit
        all_remarks += remarks
        before += rows if unit.rows is None else unit.rows
    return all_said, all_remarks


def check_units(corpus: Corpus) -> list[Unit]:
    """Check the units of a corpus against the whole, and return them."""
    units = list(corpus.units())
    assert len({unit.name for unit in units}) == len(units)
    assert list(corpus.units()) == units
    assert pickle.loads(pickle.dumps(units)) == units
    for read in (iter, methodcaller("with_captions")):
        (parts, remarks), (whole, of_whole) = joined(corpus, units, read), said(read(corpus))
        assert parts == whole
        assert summed(remarks) == of_whole
    if all(unit.rows is not None for unit in units):
        assert sum(unit.rows or 0 for unit in units) == corpus.total()
    return units
