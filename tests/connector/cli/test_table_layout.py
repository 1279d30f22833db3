"""Tables fit the width that they are given, and break no word."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from connector.cli.table_layout import field_lines, table_lines
from connector.prose import wrap

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "M"]), min_size=1, max_size=60)
TEXTS = st.lists(WORDS, max_size=12).map(" ".join)
VALUES = TEXTS | st.integers(0, 10**9) | st.floats(0, 1) | st.none()
NAMES = st.sampled_from(["release", "metric", "points", "lag since", "error", "image encoder"])


def laid_out(rows: Sequence[Mapping[str, object]], width: int) -> list[str]:
    head, body = table_lines(rows, width)
    return [*head, *body]


@pytest.mark.slow
@given(st.lists(st.dictionaries(NAMES, VALUES), max_size=4), st.integers(20, 200))
@example([{"release": "a" * 90, "error": "b " * 80}], 80)
@example([{"release": "猫" * 30, "error": "猫 " * 80}], 80)
def test_every_word_stands_whole_in_a_line_that_fits_or_is_as_long_as_the_word(
    rows: list[Mapping[str, object]], width: int
) -> None:
    lines = laid_out(rows, width)
    texts = [value for row in rows for value in row.values() if isinstance(value, str)]
    words = {word for text in texts for word in text.split()}
    shown = {word for line in lines for word in line.split()}
    assert words <= shown
    longest = max(map(cell_len, words), default=0)
    for line in lines:
        # A column that is left alone stands where it is: with two cells to the left of it.
        assert cell_len(line) <= max(width, longest + 2)


@given(st.lists(st.dictionaries(NAMES, st.sampled_from(["", None, "x", 0, 0.0])), min_size=1, max_size=4))
def test_a_column_is_left_out_where_it_is_empty_in_every_row(rows: list[Mapping[str, object]]) -> None:
    head, _ = table_lines(rows, 200)
    for name in ("release", "metric", "points", "lag since", "error", "image encoder"):
        filled = any(row.get(name) not in ("", None) for row in rows)
        assert (name in "".join(head)) == filled  # a zero is no gap


def test_what_has_no_room_beside_the_others_stands_below_its_row() -> None:
    name = "our-spring-catalogue-of-stamps.chi2-map-split.8ecd3cd7"
    rows = [
        {"collection": "our-spring-catalogue-of-stamps", "release": name, "points": 1990},
        {"collection": "b", "release": "", "points": 7},
    ]
    assert laid_out(rows, 80)[2:] == [
        "  our-spring-catalogue-of-stamps     1990",
        f"    release   {name}",
        "  b                                     7",
    ]


def test_a_name_that_leaves_no_room_for_the_others_stands_below_them() -> None:
    name = "our-spring-catalogue-of-stamps.chi2-map-split.8ecd3cd7"
    rows = [{"release": name, "points": 1990, "ledger": 1990, "missing": 0, "orphans": 0, "differing": 0}]
    assert laid_out(rows, 80)[2:] == [
        "    1990     1990         0         0           0",
        f"    release   {name}",
    ]


def test_texts_wrap_in_their_column_where_there_is_room() -> None:
    rows = [{"run": 7, "counts": "3,980 points unchanged, 1,990 points written", "error": ""}]
    assert laid_out(rows, 40)[2:] == ["    7  3,980 points unchanged, 1,990", "       points written"]


@pytest.mark.parametrize(("width", "gap"), [(21, 3), (20, 2), (19, 2)])
def test_columns_move_together_before_anything_wraps(width: int, gap: int) -> None:
    between = " " * gap
    assert laid_out([{"a": "one", "b": "two words", "c": 3}], width)[2] == f"  one{between}two words{between}3"


@given(TEXTS, st.integers(1, 100))
def test_a_wrapped_text_is_the_same_text(text: str, width: int) -> None:
    lines = wrap(text.split(" "), width)
    assert " ".join(lines) == text
    assert all(cell_len(line) <= width or " " not in line for line in lines)


def test_fields_stand_under_each_other_without_the_empty_ones() -> None:
    lines = list(field_lines({"set": "a", "image encoder": "b", "text encoder": ""}, 80))
    assert lines == ["  set             a", "  image encoder   b"]
    longer = "x" * 79
    assert list(field_lines({"set": longer}, 80)) == ["  set", f" {longer}"]
