"""Rows of manifests, in every format alike: what becomes an item, and what is refused."""

import csv
import io
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connector.corpora import csv_manifest, manifest, parquet_manifest
from connector.corpora.formats import open_corpus
from connector.corpora.items import LONGEST_CAPTION, Item
from connector.corpora.row_checks import RESERVED
from connector.corpora.tables import JsonLines
from connector.errors import CorpusError
from tests.support.corpora import (
    SUFFIXES,
    WRITERS,
    every_reader,
    items,
    placed,
    read,
    reasons,
    rejects,
    typed_reader,
    write_lines,
    write_rows,
)
from tests.support.errors import raises
from tests.support.fakes import fake_pairs, write_manifest


def test_every_reader_is_tested() -> None:
    assert WRITERS.keys() == SUFFIXES.keys()


@every_reader
def test_the_same_content_gives_the_same_items(suffix: str, tmp_path: Path) -> None:
    path = write_rows(
        tmp_path,
        suffix,
        [
            {"key": "a", "image": "images/a.png", "caption": "first", "group": "g", "topic": "cats"},
            {"key": "a", "image": "images/a.png", "caption": 'second, "quoted"\tand\nbroken', "group": "g"},
            {"key": "b", "image": "images/b.png", "topic": "dogs"},
            {"key": "c", "caption": "  a text without an image \N{CAT FACE} "},
        ],
    )
    source, a = str(path), str(tmp_path / "images/a.png")
    opened = open_corpus(path, quoting=True) if suffix == ".tsv" else open_corpus(path)
    second = 'second, "quoted"\tand\nbroken'
    assert [astuple(item)[:7] for item in items(opened)] == [
        ("image", "a", "g", Path(a), {"image": a, "topic": "cats"}, source, 1),
        ("text", "a#0", "g", "first", {"caption": "first", "topic": "cats"}, source, 1),
        ("text", "a#1", "g", second, {"caption": second}, source, 2),
        (
            "image",
            "b",
            "b",
            tmp_path / "images/b.png",
            {"image": str(tmp_path / "images/b.png"), "topic": "dogs"},
            source,
            3,
        ),
        (
            "text",
            "c#0",
            "c",
            "a text without an image \N{CAT FACE}",
            {"caption": "a text without an image \N{CAT FACE}"},
            source,
            4,
        ),
    ]
    assert rejects(opened) == []
    assert opened.total() == 4


@typed_reader
def test_a_list_of_captions_is_one_item_each(suffix: str, tmp_path: Path) -> None:
    path = write_rows(
        tmp_path,
        suffix,
        [
            {"key": "a", "image": "a.png", "caption": ["one", "", "  ", "two"]},
            {"key": "b", "image": "b.png", "caption": []},
        ],
    )
    assert [(i.key, i.content) for i in items(read(path)) if i.modality == "text"] == [("a#0", "one"), ("a#1", "two")]
    assert rejects(read(path)) == []


@typed_reader
def test_types_survive_in_the_payload(suffix: str, tmp_path: Path) -> None:
    extra = {"number": 7, "share": 0.5, "yes": True, "tags": ["x", "y"], "nested": {"deep": [1, 2]}}
    [item] = items(read(write_rows(tmp_path, suffix, [{"key": "a", "caption": "c", **extra}])))
    assert item.payload == {"caption": "c", **extra}


@typed_reader
def test_numbers_are_keys_and_groups_too(suffix: str, tmp_path: Path) -> None:
    [item] = items(read(write_rows(tmp_path, suffix, [{"key": 7, "caption": "c", "group": 12}])))
    assert (item.key, item.group) == ("7#0", "12")


@typed_reader
def test_integers_that_pandas_made_floats_are_keys_and_groups(suffix: str, tmp_path: Path) -> None:
    rows = [{"key": float(n), "caption": "c", "group": group} for n, group in enumerate([12.0, math.nan])]
    entries = read(write_rows(tmp_path, suffix, rows))
    assert [(item.key, item.group) for item in items(entries)] == [("0#0", "12"), ("1#0", "1")]
    assert rejects(entries) == []


@pytest.mark.parametrize(("text", "suffix"), [("3.0", ".csv"), ("3.0", ".tsv"), ("3.0", ".jsonl"), ("03", ".parquet")])
def test_a_text_that_looks_like_a_number_is_the_key_as_it_is(text: str, suffix: str, tmp_path: Path) -> None:
    [item] = items(read(write_rows(tmp_path, suffix, [{"key": text, "caption": "c", "group": text}])))
    assert (item.key, item.group) == (f"{text}#0", text)


@every_reader
@pytest.mark.parametrize("columns", [{}, {"caption": ["caption", "more"]}])
def test_a_column_without_a_caption_gives_none(columns: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    without = {"key": "a", "image": "1.jpg", "caption": None, "more": "b"}
    rows = [without, {"key": "b", "image": "2.jpg", "caption": "c", "more": None}]
    entries = list(open_corpus(write_rows(tmp_path, suffix, rows), **columns))
    assert rejects(entries) == []
    texts = {item.key: item.content for item in items(entries) if item.modality == "text"}
    assert texts == {**({"a#0": "b"} if columns else {}), "b#0": "c"}


@typed_reader
def test_null_within_a_list_of_captions_is_a_reject(suffix: str, tmp_path: Path) -> None:
    entries = read(write_rows(tmp_path, suffix, [{"key": "a", "caption": ["b", None, "c"]}]))
    assert [(reject.reason, reject.key) for reject in rejects(entries)] == [("caption-not-text", "a#1")]
    assert [item.key for item in items(entries)] == ["a#0", "a#2"]


@every_reader
def test_reading_again_reads_again(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [{"key": str(i), "caption": f"text {i}"} for i in range(5)])
    opened = open_corpus(path)
    assert list(opened) == list(opened)
    assert len(list(opened)) == 5


@every_reader
def test_an_empty_corpus_has_no_items(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [{"key": "a", "caption": "c"}])
    if suffix == ".parquet":
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    elif suffix in (".csv", ".tsv"):
        path.write_text(path.read_text().splitlines()[0])
    else:
        path.write_text("")
    assert read(path) == []
    assert open_corpus(path).total() == 0


@every_reader
@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": "a.png", "caption": "c"}, "key-missing"),
        ({"key": "", "caption": "c"}, "key-missing"),
        ({"key": "a"}, "row-without-image-or-caption"),
        ({"key": "a", "image": "", "caption": "   "}, "row-without-image-or-caption"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_alone(
    suffix: str, record: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    columns = {"key": "ok", "image": "ok.png", "caption": "fine"}
    path = write_rows(tmp_path, suffix, [columns, record, {**columns, "key": "after"}])
    entries = read(path)
    assert [item.key for item in items(entries)] == ["ok", "ok#0", "after", "after#0"]
    assert reasons(entries) == [(2, reason)]
    [reject] = rejects(entries)
    assert (reject.source, reject.stage, reject.modality) == (str(path), "read", None)
    assert reject.key == (record.get("key") or None if reason == "key-missing" else "a")
    assert reject.detail


@typed_reader
@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"key": 1.5, "caption": "c"}, "key-not-text"),
        ({"key": True, "caption": "c"}, "key-not-text"),
        ({"key": ["a"], "caption": "c"}, "key-not-text"),
        ({"key": "a", "caption": "c", "group": {"x": 1}}, "group-not-text"),
        ({"key": "a", "image": ["a.png"], "caption": "c"}, "image-not-text"),
        ({"key": "a", "caption": 7}, "caption-not-text"),
        ({"key": "a", "caption": [7]}, "caption-not-text"),
    ],
)
def test_a_row_of_wrong_types_is_refused(suffix: str, record: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert reasons(read(write_rows(tmp_path, suffix, [record]))) == [(1, reason)]


@typed_reader
def test_a_caption_that_cannot_be_used_is_refused_alone_and_keeps_its_number(suffix: str, tmp_path: Path) -> None:
    captions = ["one", None, "", "x" * (LONGEST_CAPTION + 1), "nul \0", "four"]
    entries = read(write_rows(tmp_path, suffix, [{"key": "a", "image": "a.png", "caption": captions, "year": 1999}]))
    assert [(item.key, item.payload["year"]) for item in items(entries)] == [("a", 1999), ("a#0", 1999), ("a#4", 1999)]
    assert [(r.reason, r.key, r.modality) for r in rejects(entries)] == [
        ("caption-not-text", "a#1", "text"),
        ("caption-too-long", "a#2", "text"),
        ("row-unreadable", "a#3", "text"),
    ]


def test_an_image_that_is_no_path_is_refused_alone(tmp_path: Path) -> None:
    entries = read(write_lines(tmp_path, *({"key": "a", "image": image, "caption": "c"} for image in (["a.png"], 7.5))))
    assert [item.key for item in items(entries)] == ["a#0"]
    first = rejects(entries)[0]
    assert (first.reason, first.key, first.modality) == ("image-not-text", "a", "image")


@typed_reader
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), [1.0, float("nan")], {"er": [float("inf")]}])
def test_a_field_that_json_cannot_hold_is_refused_alone(suffix: str, value: Any, tmp_path: Path) -> None:
    row = {"key": "a", "image": "a.png", "caption": "c", "score": value, "year": 1999}
    entries = read(write_rows(tmp_path, suffix, [row, {**row, "key": "b", "score": None}]))
    assert [item.key for item in items(entries)] == ["a", "a#0", "b", "b#0"]
    assert all("score" not in item.payload and item.payload["year"] == 1999 for item in items(entries)[:2])
    (reject,) = rejects(entries)
    assert (reject.reason, reject.key, reject.modality, "'score'" in reject.detail) == (
        "payload-not-json",
        "a",
        None,
        True,
    )


@every_reader
def test_columns_that_modalign_writes_itself_are_renamed_and_none_is_lost(suffix: str, tmp_path: Path) -> None:
    columns = {**dict.fromkeys(sorted(RESERVED), "x"), "corpus_split": "y"}
    entries = read(write_rows(tmp_path, suffix, [{"key": "a", "caption": "c", **columns}]))
    renamed = {f"corpus_{name}": "x" for name in RESERVED - {"split"}}
    ((item,), refused) = items(entries), rejects(entries)
    assert item.payload == {"caption": "c", **renamed, "corpus_corpus_split": "x", "corpus_split": "y"}
    assert refused == []


@pytest.mark.parametrize(
    "payload",
    [
        {"n": 2**63},
        {"n": -(2**63) - 1},
        {"deep": {"n": 2**70}},
        {"list": [1, [2, {"n": 2**64}]]},
        {"text": "a\x00b"},
        {"deep": ["a\x00b"]},
        {"na\x00me": 1},
    ],
)
def test_a_field_that_no_database_can_store_is_refused_alone(payload: dict[str, Any], tmp_path: Path) -> None:
    entries = read(write_lines(tmp_path, {"key": "a", "caption": "c", "year": 1999, **payload}))
    assert reasons(entries) == [(1, "payload-not-json")]
    assert [(item.key, item.payload) for item in items(entries)] == [("a#0", {"caption": "c", "year": 1999})]


def test_what_just_fits_is_kept(tmp_path: Path) -> None:
    payload = {"large": 2**63 - 1, "small": -(2**63), "true": True, "text": "\\u0000", "deep": [None, 1e308]}
    [item] = items(read(write_lines(tmp_path, {"key": "a", "caption": "c", **payload})))
    assert item.payload == {"caption": "c", **payload}


@pytest.mark.parametrize("field", ["key", "image", "caption", "group"])
def test_a_nul_is_no_text(field: str, tmp_path: Path) -> None:
    row = {"key": "a", "image": "a.png", "caption": "c", "group": "g", field: "x\x00y"}
    assert reasons(read(write_lines(tmp_path, row))) == [(1, "row-unreadable")]


def test_integers_of_thousands_of_digits_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    entries = read(write_lines(tmp_path, '{"key": "a", "caption": "c", "n": ' + "9" * 100_000 + "}"))
    assert reasons(entries) == [(1, "row-unreadable")]


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    entries = read(
        write_lines(tmp_path, '{"key": "a", "caption": "c", "deep": ' + deep + "}", {"key": "b", "caption": "c"})
    )
    assert reasons(entries) == [(1, "row-unreadable")]
    assert [item.key for item in items(entries)] == ["b#0"]


# Keys that repeat


@every_reader
def test_consecutive_rows_add_captions_to_one_image(suffix: str, tmp_path: Path) -> None:
    rows = [{"key": "a", "image": "a.png", "caption": f"caption {i}"} for i in range(4)]
    rows += [{"key": "b", "image": "b.png", "caption": "caption 0"}]
    entries = read(write_rows(tmp_path, suffix, rows))
    assert [(item.modality, item.key, item.position) for item in items(entries)] == [
        ("image", "a", 1),
        ("text", "a#0", 1),
        ("text", "a#1", 2),
        ("text", "a#2", 3),
        ("text", "a#3", 4),
        ("image", "b", 5),
        ("text", "b#0", 5),
    ]
    assert rejects(entries) == []


@pytest.mark.parametrize("further", [{"year": 2005}, {"year": 1999, "place": "x"}, {"year": [1999]}])
def test_further_rows_that_say_something_else_of_an_image_are_rejects_of_the_image(
    further: dict[str, Any], tmp_path: Path
) -> None:
    row = {"key": "a", "image": "a.png"}
    entries = read(
        write_lines(
            tmp_path,
            {**row, "caption": "one", "year": 1999},
            {**row, "caption": "two", **further},
            {"key": "a", "caption": "three", **further},
            {**row, "caption": "four", "year": 1999},
            {**row, "caption": "five"},
        )
    )
    assert [item.payload.get("year") for item in items(entries) if item.modality == "image"] == [1999]
    assert [item.content for item in items(entries) if item.modality == "text"] == [
        "one",
        "two",
        "three",
        "four",
        "five",
    ]
    assert [(r.position, r.reason, r.modality) for r in rejects(entries)] == [(2, "key-duplicate", "image")]


def test_a_caption_beyond_its_bound_is_a_reject_by_name(tmp_path: Path) -> None:
    longest = "\u00e9" * (LONGEST_CAPTION // 2)
    rows = [{"key": "a", "caption": longest}, {"key": "b", "caption": f"{longest}x"}, {"key": "c", "caption": "c"}]
    entries = read(write_lines(tmp_path, *rows))
    assert [item.key for item in items(entries)] == ["a#0", "c#0"]
    assert reasons(entries) == [(2, "caption-too-long")]


@pytest.mark.parametrize(
    "line", ['{"key": "a", "key": "b", "caption": "c"}', '{"key": "a", "caption": "c", "x": {"y": 1, "y": 2}}']
)
def test_a_name_that_an_object_has_twice_is_refused(line: str, tmp_path: Path) -> None:
    assert reasons(read(write_lines(tmp_path, line))) == [(1, "row-unreadable")]


def test_an_image_may_follow_its_first_caption(tmp_path: Path) -> None:
    entries = read(write_lines(tmp_path, {"key": "a", "caption": "c"}, {"key": "a", "image": "a.png", "caption": "d"}))
    assert [(item.modality, item.key) for item in items(entries)] == [("text", "a#0"), ("image", "a"), ("text", "a#1")]


@pytest.mark.parametrize(
    "second",
    [
        {"key": "a", "image": "other.png", "caption": "d", "group": "g"},
        {"key": "a", "image": "a.png", "caption": "d", "group": "other"},
        {"key": "a", "image": "a.png", "caption": "c", "group": "g"},
        {"key": "a", "caption": ["e", "c"], "group": "g"},
    ],
)
def test_a_row_that_contradicts_or_repeats_the_one_before_is_refused(second: dict[str, Any], tmp_path: Path) -> None:
    first = {"key": "a", "image": "a.png", "caption": "c", "group": "g"}
    third = {"key": "a", "image": "a.png", "caption": "third", "group": "g"}
    entries = read(write_lines(tmp_path, first, second, third))
    assert reasons(entries) == [(2, "key-duplicate")]
    assert [item.key for item in items(entries)] == ["a", "a#0", "a#1"]


@pytest.mark.parametrize("second", [{"key": "a", "image": "a.png"}, {"key": "a", "caption": " "}])
def test_a_further_row_of_a_key_without_a_caption_is_refused_for_that(second: dict[str, Any], tmp_path: Path) -> None:
    entries = read(write_lines(tmp_path, {"key": "a", "image": "a.png", "caption": "c"}, second))
    assert reasons(entries) == [(2, "caption-empty" if "image" in second else "row-without-image-or-caption")]


def test_a_row_that_repeats_an_earlier_but_one_is_refused(tmp_path: Path) -> None:
    rows = [{"key": "a", "caption": caption} for caption in ("one", "two", "one")]
    assert reasons(read(write_lines(tmp_path, *rows))) == [(3, "key-duplicate")]


def test_a_key_that_names_everything_is_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MOST_CAPTIONS", 10)
    rows = [{"key": "same", "caption": f"caption {i}"} for i in range(13)]
    entries = read(write_lines(tmp_path, *rows))
    assert len(items(entries)) == 10
    assert reasons(entries) == [(11, "key-duplicate"), (12, "key-duplicate"), (13, "key-duplicate")]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.booleans()), max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_every_row_gives_items_or_one_reject_and_keys_in_a_run_are_unique(
    tmp_path: Path, rows: list[tuple[str, int, bool]]
) -> None:
    written = [
        {"key": key, **({"image": f"{key}.png"} if image else {}), "caption": [f"c{i}" for i in range(captions)]}
        for key, captions, image in rows
    ]
    entries = read(write_lines(tmp_path, *written))
    positions = [one.position for one in placed(entries)]
    assert positions == sorted(positions)
    assert set(positions) == set(range(1, len(rows) + 1))
    refused = {reject.position for reject in rejects(entries)}
    assert len(refused) == len(rejects(entries))
    assert not refused & {item.position for item in items(entries)}
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i][0] != rows[start][0]:
            run = [(item.modality, item.key) for item in items(entries) if start < item.position <= i]
            assert len(run) == len(set(run))
            start = i


# Columns


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("names", [["caption"], ["key"], ["Key", "Caption"], ["key", "text"]])
def test_a_manifest_without_its_columns_is_no_corpus(suffix: str, names: list[str], tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [dict.fromkeys(names, "x")])
    with raises(CorpusError, path, "key", "image", "caption", ", ".join(names)):
        read(path)


def test_a_csv_without_a_header_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("")
    with raises(CorpusError, tmp_path / "m.csv", "is empty"):
        read(tmp_path / "m.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_stands_there_twice_is_no_column(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    if suffix == ".csv":
        path.write_text("key,caption,caption\na,one,two\n")
    else:
        columns = [pa.array(["a"]), pa.array(["one"]), pa.array(["two"])]
        pq.write_table(pa.Table.from_arrays(columns, names=["key", "caption", "caption"]), path)
    with raises(CorpusError, path, "caption"):
        read(path)


def test_a_header_without_end_is_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = csv.field_size_limit()
    monkeypatch.setattr(csv_manifest, "LONGEST_FIELD", 1000)
    (tmp_path / "m.csv").write_text("key,caption," + "x" * 2000 + "\na,c,d\n")
    try:
        with raises(CorpusError, tmp_path / "m.csv", 1000):
            read(tmp_path / "m.csv")
    finally:
        csv.field_size_limit(limit)


# Paths


@every_reader
def test_images_are_relative_to_the_manifest(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    absolute = str(tmp_path / "elsewhere.png")
    rows = [{"key": "a", "image": "x/a.png"}, {"key": "b", "image": "../b.png"}, {"key": "c", "image": absolute}]
    path = write_rows(tmp_path / "deep", suffix, rows)
    expected = [tmp_path / "deep/x/a.png", tmp_path / "deep/../b.png", Path(absolute)]
    assert [item.content for item in items(read(path))] == expected
    monkeypatch.chdir(tmp_path)
    assert [item.content for item in items(open_corpus(f"deep/manifest{suffix}"))] == expected


def test_written_manifests_are_read(tmp_path: Path) -> None:
    pairs = fake_pairs(tmp_path, 5, captions=2)
    entries = read(write_manifest(tmp_path / "m.jsonl", pairs, {"key": "extra"}))
    assert [item.key for item in items(entries) if item.modality == "image"] == [pair.key for pair in pairs]
    assert all(item.content.is_file() for item in items(entries) if isinstance(item.content, Path))
    assert reasons(entries) == [(6, "row-without-image-or-caption")]


# Memory


class Counting(io.FileIO):
    """A file that knows how far it was read."""

    reached = 0

    def readinto(self, buffer: Any) -> Any:
        count = super().readinto(buffer)
        Counting.reached = max(Counting.reached, self.tell())
        return count

    def read(self, size: int | None = -1) -> Any:
        content = super().read(-1 if size is None else size)
        Counting.reached = max(Counting.reached, self.tell())
        return content


@every_reader
def test_the_first_item_does_not_read_the_whole_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    words = np.random.default_rng(0).integers(0, 2**62, 20_000)
    path = tmp_path / f"m{suffix}"
    records = [{"key": str(i), "caption": f"caption {word}"} for i, word in enumerate(words)]
    if suffix == ".parquet":
        columns = {name: [record[name] for record in records] for name in ("key", "caption")}
        pq.write_table(pa.table(columns), path, row_group_size=1000, use_dictionary=False)
        original = parquet_manifest.records

        def watched(batch: pa.RecordBatch) -> list[Any]:
            batches.append(batch.num_rows)
            return original(batch)

        monkeypatch.setattr(parquet_manifest, "records", watched)
    else:
        WRITERS[suffix](path, records)

        def opened(self: Path, mode: str = "r", *_: Any, **options: Any) -> Any:
            raw = io.BufferedReader(Counting(str(self)))
            return raw if "b" in mode else io.TextIOWrapper(raw, **options)

        monkeypatch.setattr(Path, "open", opened)
    Counting.reached = 0
    first = next(iter(open_corpus(path)))
    assert isinstance(first, Item)
    assert first.key == "0#0"
    if suffix == ".parquet":
        assert sum(batches) <= 4 * 1024  # one when it is opened, and two where the first unit ends
    else:
        assert 0 < Counting.reached < path.stat().st_size / 3


@every_reader
@pytest.mark.parametrize("name", ["Image", "IMAGE", " image", "image ", "Caption"])
def test_a_column_whose_name_is_ours_but_for_case_or_spaces_is_named(suffix: str, name: str, tmp_path: Path) -> None:
    """Its images would be lost: a row may well have a caption alone."""
    own = name.strip().lower()
    row = {"key": "a", "image": "a.png", "caption": "x"}
    path = write_rows(tmp_path, suffix, [{name if column == own else column: value for column, value in row.items()}])
    if suffix in JsonLines.suffixes:
        assert reasons(read(path)) == [(1, "row-unreadable")]
    else:
        with raises(CorpusError, path, repr(name), own):
            read(path)


@every_reader
def test_a_column_beside_ours_with_a_name_near_to_it_is_payload(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [{"key": "a", "image": "a.png", "Image": "of a dog", "Group": "dogs"}])
    ((item,),) = [items(read(path))]
    assert {name: item.payload[name] for name in ("Image", "Group")} == {"Image": "of a dog", "Group": "dogs"}
