"""Keys that another unit of the corpus has: what is refused for them is encoded once, whatever the number of passes."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typing_extensions import override

from alignment.sets.cards import SetCard
from connector.corpora.items import Entry, Item
from connector.encoding.set_index import REFUSED
from connector.errors import CorpusError
from tests.support.cut_corpora import Cut
from tests.support.encoding import CountingImages, CountingTexts, Encoders, RecordingRun, encode_with, stored
from tests.support.errors import raises
from tests.support.fakes import NAN_WORD
from tests.support.shuffling import Shuffling


class Shortsighted(CountingTexts):
    """Reads five words."""

    @override
    def truncates(self, text: str) -> bool:
        return len(text.split()) > 5


LONG = "another caption that is longer than it reads"
INVALID = f"a caption of {NAN_WORD}"


def captions(directory: Path, *units: dict[str, str]) -> Cut:
    """A corpus whose units have such captions by key."""
    entries: list[Entry] = [
        Item("text", key, key, text, {"caption": text}, "list", number)
        for number, (key, text) in enumerate((pair for unit in units for pair in unit.items()), 1)
    ]
    return Cut(directory, entries, [len(unit) for unit in units])


def encoded(corpus: Cut, path: Path) -> tuple[RecordingRun, int]:
    """Encode with an encoder that counts; return the run, and how many items were embedded."""
    images, texts = CountingImages(), Shortsighted()
    encoders: Encoders = {"image": images, "text": texts}
    return encode_with(corpus, path, encoders), sum(images.batches + texts.batches)


def kept(path: Path) -> list[str]:
    return sorted(file.name for file in (path / REFUSED).glob("*"))


def test_an_unchanged_corpus_is_not_embedded_again(tmp_path: Path) -> None:
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    Image.new("RGB", (8, 8), (200, 10, 10)).save(one)
    Image.new("RGB", (8, 8), (10, 200, 10)).save(other)
    first = captions(tmp_path, {"a": "red", "b": "green"}, {"c": "blue", "a": "crimson", "b": "green"}, {"a": LONG})
    image = Item("image", "a", "a", one, {}, "list", 7)
    corpus = Cut(tmp_path, [*first.entries, image, replace(image, content=other, position=8)], [*first.sizes, 1, 1])
    run, embedded = encoded(corpus, tmp_path / "s")
    assert (embedded, [(reject.key, reject.position) for reject in run.refused]) == (
        8,
        [("a", 4), ("b", 5), ("a", 6), ("a", 8)],
    )
    assert kept(tmp_path / "s") == ["image-000000.parquet", "text-000000.parquet"]
    for _ in range(2):
        again, embedded = encoded(corpus, tmp_path / "s")
        assert (embedded, again.refused, again.counts["already_in_set"]) == (0, run.refused, 4)
    texts = stored(tmp_path / "s", "text")
    assert {key: payload["caption"] for key, (_, _, payload, _) in texts.items()} == {
        **{"a": "red", "b": "green", "c": "blue"}
    }


def test_the_vector_is_there_when_the_item_comes_first_and_goes_when_nobody_is_refused(tmp_path: Path) -> None:
    encoded(captions(tmp_path, {"a": "red", "b": "green"}, {"a": LONG}), tmp_path / "s")
    assert SetCard.read(tmp_path / "s").truncated == 0
    run, embedded = encoded(captions(tmp_path, {"b": "green"}, {"a": LONG}), tmp_path / "s")
    assert (embedded, run.refused, run.counts["reused"], run.counts["truncated"]) == (0, [], 1, 1)
    assert SetCard.read(tmp_path / "s").truncated == 1
    fresh = tmp_path / "fresh" / "s"
    encoded(captions(tmp_path, {"b": "green"}, {"a": LONG}), fresh)
    assert stored(tmp_path / "s", "text") == stored(fresh, "text")
    assert kept(tmp_path / "s") == []


def test_a_vector_stays_while_its_unit_cannot_be_read(tmp_path: Path, fake_encoders: None) -> None:
    corpus = captions(tmp_path, {"a": "red", "b": "green"}, {"a": "crimson"})
    encoded(corpus, tmp_path / "s")
    with raises(CorpusError, "unit 1", code="units-failed"):
        encode_with(corpus, tmp_path / "s", {"text": CountingTexts()}, executor=Shuffling(fails=("1",)))
    assert kept(tmp_path / "s") == ["text-000000.parquet"]
    assert encoded(corpus, tmp_path / "s")[1] == 0


@pytest.mark.parametrize("text", ["red", INVALID])
def test_nothing_is_kept_that_the_set_has_or_no_set_can_have(tmp_path: Path, text: str) -> None:
    run, _ = encoded(captions(tmp_path, {"a": "red"}, {"a": text}), tmp_path / "s")
    assert [reject.reason for reject in run.refused] == ["key-duplicate"]
    assert kept(tmp_path / "s") == []


def test_more_of_them_are_kept_in_several_shards(tmp_path: Path) -> None:
    first = {f"{number}": f"red {number}" for number in range(25)}
    twins = {key: f"green {key}" for key in first}
    corpus = captions(tmp_path, first, twins)
    assert encoded(corpus, tmp_path / "s")[1] == 50
    assert kept(tmp_path / "s") == [f"text-{number:06}.parquet" for number in range(3)]
    fewer = captions(tmp_path, first, {key: text for key, text in twins.items() if int(key) < 12})
    assert encoded(fewer, tmp_path / "s")[1] == 0
    assert kept(tmp_path / "s") == [f"text-{number:06}.parquet" for number in range(2)]
    more = captions(tmp_path, first, {**twins, "7": "yellow"})
    assert encoded(more, tmp_path / "s")[1] == 14  # thirteen that were dropped, and a new one
    assert encoded(more, tmp_path / "s")[1] == 0
