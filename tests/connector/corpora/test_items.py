"""Captions of images: whoever finds an image can name it, whatever the format and the order of rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from alignment.modality import Modality
from connector.corpora.formats import open_corpus
from connector.corpora.items import LONGEST_CAPTION, MOST_WAITING, Corpus, Entry, Item, with_first_captions
from connector.rejects import Reason, Reject
from tests.support.corpora import every_reader, items, rejects, write_lines, write_rows
from tests.support.fakes import fake_pairs


def item(modality: Modality, key: str, caption: str | None = None) -> Item:
    payload = {"year": 1999} | ({} if caption is None else {"caption": caption})
    return Item(modality, key, key, caption or Path("a.png"), payload, "rows", 1)


def titles(corpus: Corpus) -> dict[str, Any]:
    return {i.key: i.payload.get("caption") for i in items(corpus.with_captions()) if i.modality == "image"}


@every_reader
def test_images_of_manifests_carry_their_first_caption(suffix: str, tmp_path: Path) -> None:
    rows: Sequence[dict[str, Any]] = [
        {"key": "in its row", "image": "a.png", "caption": "a"},
        {"key": "in rows after it", "image": "b.png"},
        {"key": "in rows after it", "caption": "b"},
        {"key": "in rows after it", "caption": "not the first"},
        {"key": "in a row before it", "caption": "c"},
        {"key": "in a row before it", "image": "c.png", "caption": "not the first"},
        {"key": "none", "image": "d.png"},
        {"key": "of another", "caption": "e"},
        {"key": "the last", "image": "f.png"},
    ]
    expected = {"in its row": "a", "in rows after it": "b", "in a row before it": "c", "none": None, "the last": None}
    assert titles(open_corpus(write_rows(tmp_path, suffix, rows))) == expected


def test_every_other_column_is_payload_of_the_image_and_of_its_captions(tmp_path: Path) -> None:
    row = {"key": "k", "image": "a.png", "caption": ["one", "two"], "title": "A thing", "price": 4.5, "tags": ["x"]}
    image, *texts = items(open_corpus(write_lines(tmp_path, row)).with_captions())
    others = {"title": "A thing", "price": 4.5, "tags": ["x"]}
    assert image.payload == {"image": str(tmp_path / "a.png"), "caption": "one", **others}
    assert [text.payload for text in texts] == [{"caption": "one", **others}, {"caption": "two", **others}]


def test_a_caption_that_is_refused_leaves_the_image_which_carries_the_next_one(tmp_path: Path) -> None:
    captions = ["x" * (LONGEST_CAPTION + 1), 4, "the first good one", "another"]
    corpus = open_corpus(write_lines(tmp_path, {"key": "k", "image": "a.png", "caption": captions}))
    assert titles(corpus) == {"k": "the first good one"}
    assert [reject.reason for reject in rejects(corpus)] == [Reason.CAPTION_TOO_LONG, Reason.CAPTION_NOT_TEXT]


def test_images_of_a_folder_carry_their_first_caption(tmp_path: Path) -> None:
    first, second = fake_pairs(tmp_path, 2)
    first.image.with_suffix(".txt").write_text("\none\ntwo\n")
    found = titles(open_corpus(tmp_path / "images"))
    assert found == {first.image.name: "one", second.image.name: None}


def test_an_image_whose_caption_follows_too_late_is_not_waited_for() -> None:
    refused: list[Entry] = [Reject("rows", n, "read", Reason.ROW_UNREADABLE, "") for n in range(MOST_WAITING)]
    read: list[int] = []

    def entries() -> Iterator[Entry]:
        for number, entry in enumerate([item("image", "a"), *refused, *refused, item("text", "a#0", "late")]):
            read.append(number)
            yield entry

    found = with_first_captions(entries())
    assert next(found) == item("image", "a")
    assert len(read) == MOST_WAITING + 1
    assert len(list(found)) == 2 * MOST_WAITING + 1


ENTRIES = st.lists(
    st.one_of(
        st.builds(item, st.just("image"), st.sampled_from("abc")),
        st.builds(item, st.just("text"), st.sampled_from(["a#0", "a#1", "b#0", "c#0"]), st.sampled_from("uvw")),
        st.just(Reject("rows", 2, "read", Reason.ROW_UNREADABLE, "")),
    )
)


@given(ENTRIES)
def test_nothing_is_lost_or_changed_but_the_captions_of_images(entries: list[Entry]) -> None:
    found = list(with_first_captions(entries))
    before, after = ([i for i in items(some) if i.modality == "image"] for some in (entries, found))
    assert [i.key for i in after] == [i.key for i in before]
    back = iter(before)
    assert [next(back) if isinstance(e, Item) and e.modality == "image" else e for e in found] == entries
    own = {i.key.partition("#")[0]: set[str]() for i in items(entries)}
    for i in items(entries):
        own[i.key.partition("#")[0]] |= {i.payload["caption"]} if i.modality == "text" else set()
    assert all(i.payload.get("caption") in {None, *own[i.key]} for i in after)
    assert all({**i.payload, "caption": None} == {"year": 1999, "caption": None} for i in after)
