"""What is told while a command works: log records, which the command line shows on stderr, and bars on a terminal."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from typing_extensions import override

from alignment.plurals import counted
from connector.prose import prose_lines, takes_styles
from connector.safe_text import for_terminal

if TYPE_CHECKING:
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]

_log = logging.getLogger(__name__)

_shown: "list[Progress | None]" = []  # the progress that goes on: its bars, or None where it is shown as lines


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
    """Tell how far `what` has come. The block gets a function to call with the number of units done since.

    Lines are logged; on a terminal on which the command line shows them, a bar takes their place. Within the block of
    another it is a further bar while it lasts; as lines it says nothing unless it takes long.

    A total may turn out to be too small, as of a corpus that grows meanwhile: what is done is never shown as more.
    """
    with ExitStack() as stack:
        if _shown and (bars := _shown[0]):
            yield stack.enter_context(_bar(bars, what, total, stays=False))
        elif _on_terminal():
            bars = stack.enter_context(_bars())
            stack.enter_context(_showing(bars))
            yield stack.enter_context(_bar(bars, what, total, stays=True))
        else:
            advance = stack.enter_context(_lines(what, total, unit, brief=bool(_shown)))
            stack.enter_context(_showing(None))
            yield advance


def _on_terminal() -> bool:
    """Whether the command line shows what is logged, and does so on a terminal."""
    handlers = logging.getLogger("connector").handlers
    return any(isinstance(handler, StderrHandler) for handler in handlers) and sys.stderr.isatty()


@contextmanager
def _showing(bars: "Progress | None") -> Iterator[None]:
    _shown.append(bars)
    try:
        yield
    finally:
        _shown.remove(bars)


def _bars() -> "Progress":
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
    console = Console(stderr=True, color_system="auto" if takes_styles() else None)
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


@contextmanager
def _bar(bars: "Progress", what: str, total: int | None, *, stays: bool) -> Iterator[Advance]:
    task = bars.add_task(for_terminal(what), total=total)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bars.update(task, total=None if total is None else max(total, done), advance=count)

    try:
        yield advance
    finally:
        if not stays:
            bars.remove_task(task)


@contextmanager
def _lines(what: str, total: int | None, unit: str, *, brief: bool) -> Iterator[Advance]:
    started = shown = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        if (moment := time.monotonic()) - shown >= SECONDS_BETWEEN_LINES:
            shown = moment
            rate = done / (moment - started)
            if total is None or done > total:
                _log.info("%s: %s, %s/s", what, counted(done, unit), f"{rate:,.1f}")
            else:
                left = f", {(total - done) / rate:,.0f} s left" if rate else ""
                _log.info("%s: %s of %s, %s/s%s", what, f"{done:,}", counted(total, unit), f"{rate:,.1f}", left)

    yield advance
    elapsed = time.monotonic() - started
    if not brief or shown > started:
        _log.info("%s: %s in %.1f s", what, counted(done, unit), elapsed)
