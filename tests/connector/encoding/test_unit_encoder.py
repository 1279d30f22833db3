"""A worker's half of an encode: what it yields of a unit, and that it depends on nothing but the unit."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from alignment.modality import MODALITIES
from connector.corpora.formats import open_corpus
from connector.corpora.items import Corpus, Item
from connector.encoding.known_contents import KnownContents, digests
from connector.encoding.unit_encoder import Content, EncodedItem, Group, UnitEncoder
from connector.rejects import Reason, Reject
from tests.support.cut_corpora import Cut, cut_corpus
from tests.support.encoding import BATCH, CountingImages, CountingTexts, Encoders

UNITS = 5


@pytest.fixture
def corpus(tmp_path: Path) -> Cut:
    return cut_corpus(tmp_path)


class Worker:
    """Encodes with encoders that count."""

    def __init__(self, known: KnownContents | None = None) -> None:
        self.images, self.texts = CountingImages(), CountingTexts()
        encoders: Encoders = {"image": self.images, "text": self.texts}
        self._encoder = UnitEncoder(encoders, known or KnownContents(), BATCH, 1 << 20)

    def groups(self, units: Sequence[Corpus]) -> list[Group]:
        return list(self._encoder.groups(self._encoder.windows(units)))


def plain(groups: Sequence[Group]) -> list[list[object]]:
    """Groups as values that can be compared."""
    return [[_plain(row) for row in group] for group in groups]


def _plain(row: object) -> object:
    if isinstance(row, EncodedItem) and isinstance(row.content, Content):
        content = row.content
        vector = None if content.vector is None else content.vector.tolist()
        return row.item, row.payload, content.sha256, vector, content.copied, content.truncated
    return row


def encoded(groups: Sequence[Group]) -> list[tuple[Item, Content]]:
    """The items of `groups` whose content was read."""
    rows = [row for group in groups for row in group if isinstance(row, EncodedItem)]
    return [(row.item, row.content) for row in rows if isinstance(row.content, Content)]


def contents(groups: Sequence[Group]) -> KnownContents:
    """The contents of `groups` as those that a set holds."""
    return KnownContents(
        {m: np.sort(digests([c.sha256 for item, c in encoded(groups) if item.modality == m])) for m in MODALITIES}
    )


def units_of(corpus: Cut) -> list[Corpus]:
    return [corpus.within(unit) for unit in corpus.units()]


def test_a_unit_gives_the_same_alone_and_among_others(corpus: Cut) -> None:
    units = units_of(corpus)
    worker = Worker()
    together = plain(worker.groups(units))
    alone = [group for unit in units for group in plain(Worker().groups([unit]))]
    assert together == alone
    assert [group for group in together if not group] == [[]] * UNITS
    assert max(worker.images.batches) == BATCH
    keys = [row.item.key for group in Worker().groups(units) for row in group if isinstance(row, EncodedItem)]
    assert sorted(keys) == sorted(entry.key for entry in corpus.entries if isinstance(entry, Item))


def test_a_pass_that_goes_on_after_any_group_makes_the_same_batches(corpus: Cut) -> None:
    units = units_of(corpus)
    groups = Worker().groups(units)
    vectors = {item.key: content.vector for item, content in encoded(groups)}
    assert len(vectors) == 39
    for cut in range(len(groups)):
        again = Worker(contents(groups[:cut]))
        for item, content in encoded(again.groups(units)):
            if content.vector is not None:
                np.testing.assert_array_equal(content.vector, vectors[item.key])
        left = [content for item, content in encoded(groups[cut:]) if item.modality == "image"]
        assert sum(again.images.batches) == len(left)
        assert again.images.batches.count(BATCH) >= len(left) // BATCH - UNITS + 1


def test_known_contents_are_neither_prepared_nor_embedded(corpus: Cut) -> None:
    units = units_of(corpus)
    again = Worker(contents(Worker().groups(units)))
    again.images.prepare = again.texts.prepare = None  # type: ignore[method-assign, assignment]
    groups = again.groups(units)
    assert again.images.batches == again.texts.batches == []
    assert [content.vector for _, content in encoded(groups)] == [None] * 39
    rows = [row for group in groups for row in group if isinstance(row, EncodedItem)]
    assert [row.item.position for row in rows if isinstance(row.content, Reject)] == [5]


def test_equal_content_of_a_unit_is_embedded_once_its_batch_is_done(tmp_path: Path) -> None:
    entries = [Item("text", f"{n}", f"{n}", f"red {n % BATCH}", {}, "list", n + 1) for n in range(3 * BATCH)]
    worker = Worker()
    groups = worker.groups([Cut(tmp_path, entries, [])])
    assert worker.texts.batches == [BATCH]
    assert [content.copied for _, content in encoded(groups)] == [False] * BATCH + [True] * 2 * BATCH


def test_what_is_refused_because_its_key_came_before_is_not_embedded(tmp_path: Path) -> None:
    rows = [{"key": f"k{number % 3}", "caption": f"caption {number}"} for number in range(9)]
    path = tmp_path / "shuffled.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    worker = Worker()
    groups = worker.groups([open_corpus(path)])
    items = [row for group in groups for row in group if isinstance(row, EncodedItem)]
    assert [isinstance(row.content, Content) for row in items] == [True] * 3 + [False] * 6
    assert {row.content.reason for row in items if isinstance(row.content, Reject)} == {Reason.KEY_DUPLICATE}
    assert sum(worker.texts.batches) == 3
