"""Corpora are cut into units that several processes can read: their entries are those of the whole, whatever it holds.

`check_units` compares everything that the entries say. Sizes of units are random.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connector.corpora import bounded_lines, line_ranges, tables
from connector.corpora.items import Corpus, Item
from connector.corpora.row_checks import parse_json
from connector.corpora.tables import JsonLines
from connector.errors import CorpusChangedError, CorpusError
from tests.support.corpora import write_lines
from tests.support.errors import raises
from tests.support.units_contract import check_units

again = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@contextmanager
def small(size: int) -> Iterator[None]:
    """Let units have some `size` bytes, and lines at most 150."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(line_ranges, "UNIT_BYTES", size)
        patched.setattr(line_ranges, "BLOCK", 7)
        patched.setattr(bounded_lines, "LONGEST_LINE", 150)
        yield


def check_whole(corpus: Corpus) -> None:
    """Check the units of a corpus, and that what cannot be read as a whole cannot be cut."""
    try:
        list(corpus)
    except CorpusError as error:
        with raises(CorpusError, error):
            list(corpus.units())
    else:
        check_units(corpus)


TEXTS = st.sampled_from(["a dog", "", "zwei Katzen \N{CAT FACE}", "x" * 200, "\r", "\u2028", "y" * 60])
ROWS = st.fixed_dictionaries(
    {"key": st.sampled_from("abc")},
    optional={
        "image": st.sampled_from(["1.png", "2.png"]),
        "caption": TEXTS | st.lists(TEXTS, max_size=3) | st.just(4),
        "group": st.sampled_from(["", "g", "h"]),
        "Image": st.just("1.png"),
        "year": st.sampled_from([1999, float("nan")]),
    },
)
JSON_LINES = st.one_of(
    ROWS.map(lambda row: json.dumps(row, ensure_ascii=False).encode()),
    ROWS.map(lambda row: json.dumps(row).encode()[:-3]),
    st.sampled_from([b"", b" ", b"[]", b"\r", b'{"caption": "no key"}', b"\xff\xfe", b"{" * 400]),
)


ENDED_LINES = st.lists(st.tuples(JSON_LINES, st.sampled_from([b"\n", b"\n", b"\r\n"])).map(b"".join), max_size=30)
SIZES = st.integers(1, 400)
MARKS = st.sampled_from([b"", b"\xef\xbb\xbf"])


@given(lines=ENDED_LINES, mark=MARKS, is_cut=st.booleans(), size=SIZES, group=st.none() | st.just("group"))
@again
def test_units_of_jsonl_are_the_whole(
    lines: list[bytes],
    mark: bytes,
    is_cut: bool,
    size: int,
    group: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "m.jsonl"
    path.write_bytes((mark + b"".join(lines))[: -1 if is_cut else None])
    with small(size):
        check_whole(JsonLines(path, group=group))


CUNNING = {
    "a caption of a key that comes again": [
        {"key": "b", "image": "1.png"},
        {"key": "a", "caption": 4},
        {"key": "a", "caption": "refused, because its group is another", "group": "g"},
        {"key": "b", "caption": "of the image"},
        {"key": "c", "caption": "the end"},
    ],
    "a refused row within a key": [
        {"key": "a", "caption": "first"},
        {"key": "a", "caption": "first"},
        {"key": "", "caption": "of no key"},
        {"key": "a", "caption": "second"},
        {"key": "b", "caption": "alone"},
    ],
    "rejects between an image and its captions": [
        {"key": "a", "caption": "first"},
        {"key": "b", "image": "1.png", "year": float("nan")},
        {"key": "b", "caption": 4},
        {"key": "c", "caption": 4},
        {"key": "b", "caption": "of the image"},
    ],
}


@pytest.mark.parametrize("rows", CUNNING.values(), ids=CUNNING)
def test_units_of_rows_that_hang_together_are_the_whole(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = write_lines(tmp_path, *({"key": key, "caption": "before"} for key in "xyz"), *rows)
    for size in range(1, path.stat().st_size, 7):
        with small(size):
            check_units(JsonLines(path))


def test_units_are_cut_where_the_key_changes(tmp_path: Path) -> None:
    rows = [{"key": f"{number // 5}", "caption": f"text {number}"} for number in range(1000)]
    corpus = JsonLines(write_lines(tmp_path, *rows))
    with small(2000):
        units = check_units(corpus)
        sizes = [unit.stop - unit.start for unit in units]
        firsts = [next(iter(corpus.within(unit))) for unit in units]
    assert max(sizes) < 2500
    assert len(units) > 10
    assert all(isinstance(first, Item) and first.key.endswith("#0") for first in firsts)


def test_cutting_and_reading_units_costs_one_parse_of_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 20_000
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f'{{"key": "{number // 3}", "caption": "text {number}"}}\n' for number in range(rows)))
    parsed: list[int] = []

    def parse(text: str) -> Any:
        parsed.append(len(text))
        return parse_json(text)

    monkeypatch.setattr(tables, "parse_json", parse)
    monkeypatch.setattr(tables, "ROWS_PROBED", 100)
    monkeypatch.setattr(line_ranges, "UNIT_BYTES", path.stat().st_size // 50)
    corpus = JsonLines(path)
    units = list(corpus.units())
    assert sum(1 for unit in units for _ in corpus.within(unit)) == rows
    assert len(units) > 40
    assert len(parsed) <= 1.05 * rows


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "replaced": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "appended to": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_after_it_was_cut_is_an_error_and_never_other_rows(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    path = write_lines(tmp_path, *({"key": f"{number}", "caption": "c"} for number in range(100)))
    corpus = JsonLines(path)
    with small(100):
        _, unit, *_ = corpus.units()
    before = list(corpus.within(unit))
    time.sleep(0.01)  # a file system may tell times only so well
    change(path)
    assert before
    with raises(CorpusChangedError, path):
        list(corpus.within(unit))


def test_a_file_that_changes_while_a_unit_is_read_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path, *({"key": f"{number}", "caption": "c"} for number in range(100)))
    corpus = JsonLines(path)
    with small(1000):
        unit = next(iter(corpus.units()))
    entries = iter(corpus.within(unit))
    next(entries)
    os.truncate(path, 500)
    with raises(CorpusChangedError, path):
        list(entries)
