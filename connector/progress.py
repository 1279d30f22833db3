"""What is shown while a command works, on stderr: lines, and progress as a bar on a terminal or as lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from typing_extensions import override

from alignment.plurals import counted
from connector.prose import prose_lines
from connector.safe_text import for_terminal

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]


def say(line: str) -> None:
    """Print a line for people on stderr, wrapped on a terminal: see `connector.prose`.

    The library logs instead; the command line shows what it logs this way.

    If nobody reads stderr any more, or its disk is full, the work goes on.
    """
    with suppress(OSError):
        sys.stderr.write("".join(f"{part}\n" for part in prose_lines(for_terminal(line), sys.stderr)))
        sys.stderr.flush()


class StderrHandler(logging.Handler):
    """Shows log records as plain lines on stderr, wherever that is at the moment."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def show_logs() -> None:
    """Show what the library logs, one line on stderr a message."""
    for name in ("alignment", "connector"):
        logging.getLogger(name).handlers = [StderrHandler()]
        logging.getLogger(name).setLevel(logging.INFO)


@contextmanager
def progress(what: str, total: int | None, unit: str = "item") -> Iterator[Advance]:
    """Show how far `what` has come. The block gets a function to call with the number of units done since.

    A total may turn out to be too small, as of a corpus that grows meanwhile: what is done is never shown as more.
    """
    if sys.stderr.isatty():
        with _bar(what, total) as advance:
            yield advance
    else:
        with _lines(what, total, unit) as advance:
            yield advance


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Advance]:
    # rich takes as long to import as all of `--help`
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), Rate()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task(for_terminal(what), total=total)

        def advance(count: int) -> None:
            done = int(bars.tasks[0].completed) + count
            bars.update(task, total=None if total is None else max(total, done), advance=count)

        yield advance


@contextmanager
def _lines(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    started = shown = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        if (moment := time.monotonic()) - shown >= SECONDS_BETWEEN_LINES:
            shown = moment
            rate = done / (moment - started)
            if total is None or done > total:
                say(f"{what}: {counted(done, unit)}, {rate:,.1f}/s")
            else:
                left = f", {(total - done) / rate:,.0f} s left" if rate else ""
                say(f"{what}: {done:,} of {counted(total, unit)}, {rate:,.1f}/s{left}")

    yield advance
    elapsed = time.monotonic() - started
    say(f"{what}: {counted(done, unit)} in {elapsed:.1f} s")
