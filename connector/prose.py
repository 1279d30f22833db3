"""Sentences for people: wrapped on a terminal, one line each elsewhere, where logs and programs read line by line.

A sentence is wrapped between its words. Commands stay whole, so that they can be copied: one between backticks counts
as one word, and a line that begins with a blank is never wrapped.
"""

import os
import re
import shutil
from collections.abc import Iterable
from typing import TextIO

USUAL_WIDTH = 80
_WORD = re.compile(r"(?:`[^`]*`|[^ ])+")


def prose_lines(sentence: str, stream: TextIO, *, first: str = "", rest: str = "") -> list[str]:
    """Return the lines in which a sentence stands in a stream, the first and the others behind their indents."""
    width = terminal_width(stream)
    if width is None or sentence.startswith(" ") or len(first) + len(sentence) <= width // 2:  # cells are 2 at most
        return [f"{first}{sentence}"]
    return [
        f"{rest if number else first}{line}"
        for number, line in enumerate(wrap(_WORD.findall(sentence), width - max(len(first), len(rest))))
    ]


def cell_len(text: str) -> int:
    """Return how many cells of a terminal a line takes; without control characters, ASCII takes one each."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # rich takes long to import, and most lines are ASCII

    return cell_len(text)


def wrap(words: Iterable[str], width: int) -> list[str]:
    """Join words with blanks to lines of `width` cells at most, unless one word is longer.

    >>> wrap(["a", "red", "heart"], 5)
    ['a red', 'heart']
    """
    lines: list[str] = []
    used = 0
    for word in words:
        length = cell_len(word)
        if lines and used + 1 + length <= width:
            lines[-1] += f" {word}"
            used += 1 + length
        else:
            lines.append(word)
            used = length
    return lines


def takes_styles() -> bool:
    """Whether a terminal may be sent bold and colours: not if it is a dumb one, or NO_COLOR is set."""
    return os.environ.get("TERM") not in ("dumb", "unknown") and not os.environ.get("NO_COLOR")


def terminal_width(stream: TextIO) -> int | None:
    """Return the cells of a line of the terminal that a stream goes to, or of COLUMNS; None: it is no terminal."""
    if not stream.isatty():
        return None
    if "COLUMNS" in os.environ:
        return shutil.get_terminal_size((USUAL_WIDTH, 24)).columns
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL_WIDTH
    except OSError:
        return USUAL_WIDTH
