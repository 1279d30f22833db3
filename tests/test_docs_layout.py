"""The docs can be read at 100 columns, and cells of tables hold a dozen words or little more."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")] if page.name != "cli.md")
COLUMNS, WORDS = 100, 14
QUOTED = re.compile(r"`[^`]*`|\]\([^)]*\)")


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are no code and no picture, with their numbers."""
    in_code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        in_code ^= (fence := line.lstrip().startswith("```"))
        if not (in_code or fence or line.startswith("![")):
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_and_cells_are_short(page: Path) -> None:
    rows = {number: line for number, line in prose(page) if line.startswith("|")}
    long_lines = [number for number, line in prose(page) if number not in rows and len(line) > COLUMNS]
    cells = [(number, QUOTED.sub("x", cell)) for number, line in rows.items() for cell in line.split("|")]
    long_cells = [(number, cell) for number, cell in cells if len(re.findall(r"[^\W\d_][\w'-]*", cell)) > WORDS]
    assert (long_lines, long_cells) == ([], [])
