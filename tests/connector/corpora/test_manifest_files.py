"""Manifests as files: their bytes, encodings, and what is damaged."""

import csv
import json
import os
from dataclasses import astuple
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connector.corpora import csv_manifest
from connector.corpora.formats import open_corpus
from connector.corpora.items import Item
from connector.corpora.row_checks import RESERVED
from connector.errors import CorpusError
from tests.support.corpora import (
    SUFFIXES,
    every_reader,
    items,
    read,
    reasons,
    rejects,
    remarks,
    write_lines,
    write_rows,
)
from tests.support.errors import raises

# Bytes


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".parquet"])
def test_a_byte_order_mark_means_nothing(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [{"key": "a", "caption": "c"}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [item.key for item in read(path) if isinstance(item, Item)] == ["a#0"]
    assert rejects(read(path)) == []


def test_blank_lines_mean_nothing_but_count_as_lines(tmp_path: Path) -> None:
    entries = read(
        write_lines(tmp_path, "", '{"key": "a", "caption": "c"}\r', "   ", "\t\r", '{"key": "b", "caption": "c"}', "")
    )
    assert [(item.key, item.position) for item in items(entries)] == [("a#0", 2), ("b#0", 5)]
    assert rejects(entries) == []


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b"null",
        b'"key"',
        b"key,caption",
        b'{"key": "a" "caption": "c"}',
        b"\x00",
        b"\xff\xfe{",
        b'{"key": "\xff", "caption": "c"}',
        b'{"key": "\\ud800", "caption": "c"}',
        b'{"key": "a", "caption": "\\udfff"}',
    ],
)
def test_a_line_that_is_no_json_object_in_utf8_is_refused_alone(line: bytes, tmp_path: Path) -> None:
    entries = read(write_lines(tmp_path, {"key": "a", "caption": "c"}, line, {"key": "b", "caption": "c"}))
    assert [item.key for item in items(entries)] == ["a#0", "b#0"]
    assert reasons(entries) == [(2, "row-unreadable")]


@every_reader
def test_bytes_that_are_no_utf8_refuse_their_own_row(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [{"key": key, "caption": f"caption {key}"} for key in ("aa", "bb", "cc")])
    if suffix == ".parquet":
        broken = pa.array([b"caption aa", b"caption \xff\xfe", b"caption cc"], pa.binary()).view(pa.string())
        pq.write_table(pa.table({"key": ["aa", "bb", "cc"], "caption": broken}), path)
    else:
        path.write_bytes(path.read_bytes().replace(b"caption bb", b"caption \xff\xfe"))
    entries = read(path)
    assert [item.key for item in items(entries)] == ["aa#0", "cc#0"]
    assert reasons(entries) == [(2, "row-unreadable")]


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("\ud800")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)


@pytest.mark.slow
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20).filter(lambda line: b"\n" not in line),
            st.fixed_dictionaries(
                {}, optional=dict.fromkeys(("key", "image", "caption", "group", "modality", "x"), ANYTHING)
            ),
            st.fixed_dictionaries({"key": st.text(max_size=3), "caption": st.text(max_size=3)}),
        ),
        max_size=6,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_file_everything_that_is_said_of_it_can_be_stored(
    tmp_path: Path, lines: list[bytes | dict[str, Any]]
) -> None:
    for one in read(write_lines(tmp_path, '{"key": "first", "caption": "caf\u00e9"}', *lines)):
        text = json.dumps(astuple(one), default=str, allow_nan=False, ensure_ascii=False)
        text.encode()
        assert "\\u0000" not in text.replace("\\\\", "")
        if isinstance(one, Item):
            assert one.key.startswith(str(one.key.rpartition("#")[0]))
            assert one.content
            assert not RESERVED & one.payload.keys()


# CSV


def test_a_tab_separates_in_a_tsv_and_a_comma_in_a_csv(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text("key\tcaption\na\tone, two\n")
    (tmp_path / "m.CSV").write_text("key,caption\na,one\ttwo\n")
    assert [item.content for item in items(read(tmp_path / "m.tsv"))] == ["one, two"]
    assert [item.content for item in items(read(tmp_path / "m.CSV"))] == ["one\ttwo"]


def test_records_of_another_length_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("key,caption\na,one\nb\nc,one,two\n\nd,four\n")
    entries = read(tmp_path / "m.csv")
    assert [(item.key, item.position) for item in items(entries)] == [("a#0", 1), ("d#0", 4)]
    assert reasons(entries) == [(2, "row-unreadable"), (3, "row-unreadable")]
    assert "2 fields" in rejects(entries)[0].detail
    assert open_corpus(tmp_path / "m.csv").total() == 4


def test_a_quote_that_is_never_closed_is_refused_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = csv.field_size_limit()
    monkeypatch.setattr(csv_manifest, "LONGEST_FIELD", 1000)
    (tmp_path / "m.csv").write_text('key,caption\na,"never closed\n' + "".join(f"b{i},fine\n" for i in range(400)))
    try:
        entries = read(tmp_path / "m.csv")
        assert "row-unreadable" in {reason for _, reason in reasons(entries)}
        assert len(items(entries)) > 100
        assert open_corpus(tmp_path / "m.csv").total() == items(entries)[-1].position
    finally:
        csv.field_size_limit(limit)


def test_quoted_fields_may_hold_lines(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b'key,caption\r\na,"one\r\ntwo"\r\nb,three\r\n')
    entries = items(read(tmp_path / "m.csv"))
    assert [(item.content, item.position) for item in entries] == [("one\r\ntwo", 1), ("three", 2)]


# Parquet


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("us", "Mars/Phobos"), 1),
        (pa.timestamp("us", "+25:99"), 1),
        (pa.timestamp("s"), 10**15),
        (pa.timestamp("ns"), -(2**62)),
        (pa.date64(), 10**16),
        (pa.duration("s"), 10**15),
    ],
    ids=str,
)
def test_odd_timestamps_refuse_their_own_field(kind: pa.DataType, value: int, tmp_path: Path) -> None:
    times = pa.array([value, None], pa.int64()).view(kind)
    pq.write_table(pa.table({"key": ["a", "b"], "caption": ["c", "d"], "when": times}), tmp_path / "m.parquet")
    entries = read(tmp_path / "m.parquet")
    assert [(item.key, "when" in item.payload) for item in items(entries)] == [("a#0", False), ("b#0", False)]
    assert reasons(entries) == [(1, "payload-not-json")]


def test_a_corpus_whose_path_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    path.write_text('{"key": "a", "caption": "b"}')
    with raises(CorpusError, "caf\\udce9", "UTF-8"):
        read(path)


def test_dates_are_texts_that_an_index_can_read(tmp_path: Path) -> None:
    table = {"key": ["a"], "caption": ["c"], "when": [datetime(2024, 2, 29, tzinfo=UTC)], "day": [date(2024, 2, 29)]}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    (item,) = items(read(tmp_path / "m.parquet"))
    assert item.payload == {"caption": "c", "when": "2024-02-29T00:00:00+00:00", "day": "2024-02-29"}


def test_columns_of_bytes_are_left_out_and_named_once(tmp_path: Path) -> None:
    nested = pa.array([[{"mask": b"x"}]] * 2)
    table = {"key": ["a", "b"], "image": ["a.png", "b.png"], "raw": [b"\x00"] * 2, "masks": nested, "year": [1, 2]}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    entries = read(tmp_path / "m.parquet")
    assert [sorted(item.payload) for item in items(entries)] == [["image", "year"]] * 2
    assert rejects(entries) == []
    assert [str(remark).rpartition(" ")[2] for remark in remarks(entries)] == ["raw", "masks"]


def test_a_value_that_python_cannot_hold_refuses_its_own_field(tmp_path: Path) -> None:
    when = pa.array([0, 2**62, 0], pa.timestamp("us"))  # beyond the year 9999
    pq.write_table(pa.table({"key": ["a", "b", "c"], "caption": ["c"] * 3, "when": when}), tmp_path / "m.parquet")
    entries = read(tmp_path / "m.parquet")
    assert reasons(entries) == [(2, "payload-not-json")]
    assert [(item.key, item.payload.get("when")) for item in items(entries)] == [
        ("a#0", "1970-01-01T00:00:00"),
        ("b#0", None),
        ("c#0", "1970-01-01T00:00:00"),
    ]


def test_a_truncated_parquet_file_is_no_corpus(tmp_path: Path) -> None:
    path = write_rows(tmp_path, ".parquet", [{"key": str(i), "caption": f"text {i}"} for i in range(100)])
    content = path.read_bytes()
    for length in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with raises(CorpusError, path):
            read(path)
        with raises(CorpusError, path):
            open_corpus(path).total()


def test_damage_within_a_parquet_file_ends_it_with_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    keys = [f"{i:06d}" for i in range(3000)]
    table = pa.table({"key": keys, "caption": [f"text {k}" for k in keys]})
    pq.write_table(table, path, row_group_size=1024, compression="zstd", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xaa" * column.total_compressed_size
    path.write_bytes(content)
    entries = read(path)
    assert [item.key for item in items(entries)] == [f"{key}#0" for key in keys[:1024]]
    assert reasons(entries) == [(1025, "file-truncated")]
