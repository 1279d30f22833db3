"""Tables as lines of text that fit a width. No word is ever broken, so that a name can be copied from where it stands.

A table that is too wide wraps texts at their blanks. Columns that still do not fit stand below each row, under their
names. A word that is longer than the width has a line of its own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from connector.prose import cell_len, wrap
from connector.safe_text import for_terminal

GAPS = (3, 2)  # cells between two columns, where there is room for three and where there is not
INDENT = 2
READABLE = 24  # cells below which a text is not wrapped within its column


class Column(NamedTuple):
    """A column of a table: its name and a text for each row; numbers stand to the right."""

    name: str
    cells: Sequence[str]
    numeric: bool

    @property
    def widest(self) -> int:
        """The width at which nothing wraps."""
        return max(map(cell_len, (self.name, *self.cells)))

    @property
    def longest_word(self) -> int:
        """The width of its longest word, which is never broken."""
        return max(cell_len(word) for text in (self.name, *self.cells) for word in text.split(" "))

    @property
    def narrowest(self) -> int:
        """The least width at which no word is broken and texts stay readable."""
        return max(self.longest_word, min(READABLE, max(map(cell_len, self.cells))))

    def lines(self, text: str, width: int, height: int) -> list[str]:
        """Lay the name or a cell out in `height` lines of `width` cells."""
        wrapped = wrap(text.split(" "), width)
        padded = [" " * (width - cell_len(line)) for line in wrapped]
        aligned = [p + line if self.numeric else line + p for line, p in zip(wrapped, padded, strict=True)]
        return aligned + [" " * width] * (height - len(aligned))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the columns of rows, without those that are empty in every row."""
    columns = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if cells := [text_of(value) for value in values if text_of(value)]:
            numeric = all(isinstance(value, (int, float)) for value in values if value is not None)
            cells = [text_of(value) for value in values]
            columns.append(Column(for_terminal(name), cells, numeric))
    return columns


def text_of(value: Any) -> str:
    """Return what stands in a cell: one line, without what a terminal would obey."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else for_terminal(str(value))


def table_lines(rows: Sequence[Mapping[str, Any]], width: int, rule: str = "─") -> tuple[list[str], list[str]]:
    """Lay rows out as a table; return the lines of its head and those of its body.

    Args:
        rows: by name of the column.
        width: cells of a line.
        rule: character of the line below the head.
    """
    columns = columns_of(rows)
    if not columns:
        return [], []
    inside = [*columns]
    while (fitting := _fitting(inside, width - INDENT)) is None:
        # The first column says what a row is of: it stays, unless it leaves no room for others.
        movable = inside[1:] if inside[0].narrowest <= width // 2 else inside
        inside.remove(max(reversed(movable), key=lambda column: column.narrowest))
    widths, gap = fitting
    below = [column for column in columns if column not in inside]
    head = _row_lines(inside, [column.name for column in inside], widths, gap)
    head.append(" " + rule * min(sum(widths) + gap * (len(widths) - 1) + 2, width - 1))
    body = []
    for row in range(len(rows)):
        body += _row_lines(inside, [column.cells[row] for column in inside], widths, gap)
        body += field_lines({column.name: column.cells[row] for column in below}, width, indent=2 * INDENT)
    return head, body


def field_lines(fields: Mapping[str, str], width: int, *, indent: int = INDENT) -> Iterator[str]:
    """Yield names with their texts, a pair a line or more, without empty texts."""
    shown = {name: text for name, text in fields.items() if text}
    longest = max(map(cell_len, shown), default=0)
    hang = indent + longest + GAPS[0]
    for name, text in shown.items():
        start = " " * indent + name + " " * (longest - cell_len(name) + GAPS[0])
        word = max(map(cell_len, text.split(" ")))
        if hang + word > width:  # the text has lines of its own, as far to the left as it needs
            yield start.rstrip()
            start, left = "", max(0, min(2 * indent, width - word))
        else:
            left = hang
        lines = wrap(text.split(" "), width - left)
        yield (start or " " * left) + lines[0]
        yield from (" " * left + line for line in lines[1:])


def _fitting(columns: Sequence[Column], room: int) -> tuple[list[int], int] | None:
    """Return how wide each column is within `room` cells, and the gap between them; None: they do not fit.

    One column always does.
    """
    if len(columns) == 1:
        return [max(columns[0].longest_word, min(columns[0].widest, room))], 0
    widths = [column.widest for column in columns]
    between = len(columns) - 1
    for gap in GAPS:
        if sum(widths) + gap * between <= room:
            return widths, gap
    least = [column.narrowest for column in columns]
    excess = sum(widths) + gap * between - room
    if excess > sum(widths) - sum(least):
        return None
    for _ in range(excess):  # take a cell from the widest of those that can give one
        place = max((p for p in range(len(columns)) if widths[p] > least[p]), key=lambda p: widths[p])
        widths[place] -= 1
    return widths, gap


def _row_lines(columns: Sequence[Column], texts: Iterable[str], widths: Sequence[int], gap: int) -> list[str]:
    listed = list(texts)
    height = max(len(wrap(text.split(" "), width)) for text, width in zip(listed, widths, strict=True))
    laid = [c.lines(text, width, height) for c, text, width in zip(columns, listed, widths, strict=True)]
    return [(" " * INDENT + (" " * gap).join(parts)).rstrip() for parts in zip(*laid, strict=True)]
