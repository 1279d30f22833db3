"""Progress as lines and as a bar: never beyond its total, and one of something is no plural."""

import io
import logging
import re
import sys
from collections.abc import Callable, Iterator

import pytest

from connector import progress as progressing
from connector.progress import progress, show_logs


@pytest.fixture
def command_line() -> Iterator[None]:
    """What a library logs is shown, as commands show it."""
    loggers = [logging.getLogger(name) for name in ("alignment", "connector")]
    before = [(logger.handlers, logger.level) for logger in loggers]
    show_logs()
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.level = handlers, level


@pytest.mark.parametrize("terminal", [False, True])
def test_a_program_of_somebody_elses_is_told_by_logging_alone(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(logging.getLogger("connector"), "handlers", [])  # those of commands that ran in this process
    monkeypatch.setattr(sys, "stderr", stderr)
    with caplog.at_level(logging.INFO, "connector"), progress("push", 3, "row") as advance:
        advance(3)
    assert stderr.getvalue() == ""
    assert "push: 3 rows in " in caplog.text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("command_line")
@pytest.mark.parametrize("stream", [io.StringIO, Terminal], ids=["lines", "bar"])
@pytest.mark.parametrize("steps", [[3, 4], [7, 1, 5], [12]])
def test_what_is_done_is_never_more_than_the_total(
    stream: Callable[[], io.StringIO], steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus may grow while it is read, and a total may be an estimate."""
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(progressing, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with progress("read", 7, "row") as advance:
        for step in steps:
            advance(step)
    shown = re.findall(r"([\d,]+)(?: of |/)([\d,]+)(?!/s)\b", stderr.getvalue())
    assert all(int(done) <= int(total) for done, total in shown)
    assert not re.findall(r"-\d+ s left", stderr.getvalue())
    assert str(sum(steps)) in stderr.getvalue()


@pytest.mark.usefixtures("command_line")
def test_one_is_no_plural(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for count, words in ((1, "1 query"), (0, "0 queries"), (1_200, "1,200 queries")):
        with progress("audit", None, "query") as advance:
            advance(count)
        assert stream.getvalue().splitlines()[-1].startswith(f"audit: {words} in ")


@pytest.mark.usefixtures("command_line")
def test_progress_within_another_is_a_bar_below_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    with progress("audit", 3, "query") as advance:
        with progress("read", None, "point") as read:
            read(5)
        advance(3)
    assert "read" in stderr.getvalue()
    assert re.search(r"audit .*[m ]3/3[\x1b ]", stderr.getvalue().splitlines()[-2])
    with progress("verify", 2, "point") as advance:
        advance(2)
    assert re.search(r"verify .*[m ]2/2[\x1b ]", stderr.getvalue().splitlines()[-2])


@pytest.mark.usefixtures("command_line")
@pytest.mark.parametrize(("seconds", "said"), [(1e9, []), (0.0, ["read: 5 points, ", "read: 5 points in "])])
def test_progress_within_another_says_nothing_unless_it_takes_long(
    seconds: float, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(progressing, "SECONDS_BETWEEN_LINES", seconds)
    with progress("audit", None, "query"), progress("read", None, "point") as read:
        read(5)
    lines = stderr.getvalue().splitlines()
    assert len(lines) == len(said) + 1
    assert all(
        line.startswith(beginning) for line, beginning in zip(lines, [*said, "audit: 0 queries in "], strict=True)
    )


@pytest.mark.usefixtures("command_line")
@pytest.mark.parametrize(
    ("term", "no_color", "styled"), [("xterm", "", True), ("xterm", "1", False), ("dumb", "", False)]
)
def test_a_bar_has_styles_where_a_terminal_may_be_sent_them(
    term: str, no_color: str, styled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    with progress("read", 7, "row") as advance:
        advance(7)
    assert "7/7" in stderr.getvalue()
    assert bool(re.search("\x1b\\[[0-9;]*m", stderr.getvalue())) is styled
