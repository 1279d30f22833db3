"""Lines that are too long are refused, and never held in memory."""

import tracemalloc
from pathlib import Path

import pytest

from connector.corpora import bounded_lines
from connector.corpora.formats import open_corpus
from tests.support.corpora import items, read, reasons, rejects


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(bounded_lines, "LONGEST_LINE", 100_000)
    return 100_000


# A line of 20 MB, and what is read after it, by the position of each.
LONG = 20_000_000
LONG_LINES = {
    ".jsonl": ('{"key": "a", "caption": "one"}\n{"key": "', '\n{"key": "c", "caption": "two"}\n'),
    ".csv": ("key,caption\na,one\nb,", "\nc,two\n"),
    ".tsv": ("key\tcaption\na\tone\nb\t", "\r\nc\ttwo\r\n"),
    ".token": ("a.jpg#0\tone\nb.jpg#0\t", "\nc.jpg#0\ttwo\n"),
}


@pytest.mark.parametrize("suffix", LONG_LINES)
@pytest.mark.parametrize("last", [False, True])
def test_a_line_without_end_is_a_reject_and_never_in_memory(
    tmp_path: Path, suffix: str, last: bool, short_lines: int
) -> None:
    path, (before, after) = tmp_path / f"m{suffix}", LONG_LINES[suffix]
    path.write_text(before + "x" * LONG + after * (not last), newline="")
    (tmp_path / "a.jpg").touch()
    tracemalloc.start()
    entries = read(path)
    total = open_corpus(path).total()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [item.position for item in items(entries) if item.modality == "text"] == [1, 3][: 1 if last else 2]
    assert reasons(entries) == [(2, "line-too-long")]
    line = 3 if suffix in (".csv", ".tsv") else 2  # their header is a line and no record
    detail = rejects(entries)[0].detail
    assert f"line {line} " in detail
    assert f"{short_lines}" in detail.removeprefix(f"line {line} ")
    assert total == 2 if last else 3
    assert peak < LONG / 4


def test_the_longest_line_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"key": "a", "caption": "one"}\n'
    monkeypatch.setattr(bounded_lines, "LONGEST_LINE", len(line))
    (tmp_path / "m.jsonl").write_text(line + line.replace('"a"', '"bb"') + line.replace('"a"', '"c"'))
    entries = read(tmp_path / "m.jsonl")
    assert [item.key for item in items(entries)] == ["a#0", "c#0"]
    detail = rejects(entries)[0].detail
    assert detail.startswith("line 2 ")
    assert f"{len(line) + 1}," in detail


def test_a_record_of_many_lines_is_refused_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_lines, "LONGEST_LINE", 1000)
    endless = 'b,"two' + '\n","' * 2000 + '"\n'
    (tmp_path / "m.csv").write_text(f"key,caption\na,one\n{endless}c,three\n" + "d,four\n" * 1000)
    entries = read(tmp_path / "m.csv")
    assert items(entries)[0].key == "a#0"
    assert "d#0" in {item.key for item in items(entries)}
    first = rejects(entries)[0]
    assert (first.position, first.reason) == (2, "line-too-long")
    assert "line 25" in first.detail
    assert "quote" in first.detail
