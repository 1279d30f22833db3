"""Results as one table: for a terminal, for machines, and in a page of the docs."""

import os
import platform
import re
import textwrap
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment.plurals import counted
from bench.row import CONFIDENCE, TURNS, Result, Row
from connector.cli.table_layout import table_lines

WIDTH = 80
PROSE_WIDTH = 100  # of a page
BEGIN, END = "<!-- {}: written by python -m bench -->", "<!-- end of {} -->"  # of what a section of a page holds
FIGURES = "figures"
HEAD = ("what", "against", "ratio", "interval", "goal", "verdict")
LEGEND = (
    f"A ratio is the median over {TURNS} turns or more, unless it says how many, in which both sides alternate. Its "
    f"interval holds the median of ever more turns with a probability of {CONFIDENCE:.0%} or more (sign test). Met, "
    "missed: the whole interval lies on that side of the goal; unclear: the goal lies within. Ratios of time and "
    "memory are at most their goal, ratios of rates at least."
)


def lines(results: Sequence[Result]) -> list[str]:
    """Lay results out in lines of 80 cells."""
    rows = []
    for result in results:
        cells = dict(zip(HEAD, _cells(result), strict=True))
        rows.append({**cells, "note": result.note, "asked": result.row.asked})
    head, body = table_lines(rows, WIDTH)
    return [*head, *body, "", *textwrap.wrap(LEGEND, WIDTH), *textwrap.wrap(f"{machine()}.", WIDTH)]


def document(results: Iterable[Result]) -> dict[str, Any]:
    """Return results as JSON can hold them; what both sides took is in seconds, MiB or a count a turn."""
    return {"machine": machine(), "rows": [_row_document(result) for result in results]}


def _row_document(result: Result) -> dict[str, Any]:
    row = result.row
    measured: dict[str, Any] = {"verdict": result.verdict, "note": result.note}
    if result.ours:
        measured |= {"ratio": result.ratio, "interval": result.interval, "ours": result.ours, "theirs": result.theirs}
    asked = {"what": row.title, "against": row.against, "asked": row.asked, "unit": row.unit, "goal": row.goal}
    return {**asked, "at_least": row.at_least, **measured}


def write(page: Path, results: Sequence[Result], rows: Sequence[Row]) -> None:
    """Put results into the table of a page, its section `figures`; rows that were not measured now stay as they are.

    Args:
        page: a Markdown file.
        results: what was measured now.
        rows: every row that the table shall have, in its order.
    """
    old = section(page, FIGURES)
    # Of another goal, or beside something else, a row is another one.
    known = {_compared(line): line for line in old.splitlines() if line.startswith("| ")}
    measured = [_line([*_cells(result)[:-1], _last(result)]) for result in results]
    known |= {_compared(line): line for line in measured}
    table = [_line(HEAD), _line(["---"] * len(HEAD))]
    missing = [_line(_cells(Result(row, (), (), ""))) for row in rows]
    table += [known.get(_compared(line), line) for line in missing]
    asked = [
        line
        for row in rows
        for line in textwrap.wrap(f"- *{row.title}*: {row.asked}", PROSE_WIDTH, subsequent_indent="  ")
    ]
    prose = [*textwrap.wrap(LEGEND, PROSE_WIDTH), "", "What both sides are asked:", "", *asked]
    where = textwrap.wrap(f"Measured on {machine()}.", PROSE_WIDTH)
    write_section(page, FIGURES, "\n".join([*where, "", *table, "", *prose]))


def section(page: Path, name: str) -> str:
    """Return what stands in a section of a page, between its marks.

    Raises:
        ValueError: the page has no such section.
    """
    begin, end = BEGIN.format(name), END.format(name)
    _, found, rest = page.read_text(encoding="utf-8").partition(begin)
    text, ended, _ = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{page}: expected the lines {begin!r} and {end!r}")
    return text.strip()


def write_section(page: Path, name: str, text: str) -> None:
    """Put a text in the place of what stands in a section of a page.

    Raises:
        ValueError: the page has no such section.
    """
    section(page, name)
    begin, end = BEGIN.format(name), END.format(name)
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def machine() -> str:
    """Describe this machine and how busy it is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{cores} cores of {_processor()}, {memory:.0f} GiB of memory, {platform.system()}, Python "
        f"{platform.python_version()}, qdrant-edge-py {version('qdrant-edge-py')}, load {os.getloadavg()[0]:.1f}"
    )


def _processor() -> str:
    """Name the processor as Linux does, or as Python does elsewhere."""
    information = Path("/proc/cpuinfo")
    found = information.exists() and re.search(r"model name\s*:\s*(.+)", information.read_text(encoding="utf-8"))
    return found[1] if found else platform.processor() or platform.machine()


def _cells(result: Result) -> tuple[str, ...]:
    """The cells of HEAD."""
    row = result.row
    goal = f"{'≥' if row.at_least else '≤'} {row.goal:g}"
    if not result.ours:
        return row.title, row.against, "", "", goal, result.verdict
    interval = "–".join(f"{bound:.3g}" for bound in result.interval or ())
    return row.title, row.against, f"{result.ratio:.3g}", interval, goal, result.verdict


def _compared(line: str) -> tuple[str, ...]:
    """Return the cells of a line that say what is compared: what, against, goal."""
    cells = line.split(" | ")
    return cells[0], cells[1], cells[4]


def _last(result: Result) -> str:
    """The verdict with the note, and the number of turns where there were few."""
    notes = [result.note] * bool(result.note)
    if 0 < len(result.ours) < TURNS:
        notes.append(counted(len(result.ours), "turn"))
    return f"{result.verdict}: {', '.join(notes)}" if notes else result.verdict


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
