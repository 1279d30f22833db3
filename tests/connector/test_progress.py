"""Progress as lines and as a bar: never beyond its total, and one of something is no plural."""

import io
import re
import sys
from collections.abc import Callable

import pytest

from connector import progress as progressing
from connector.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


def test_one_is_no_plural(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for count, words in ((1, "1 query"), (0, "0 queries"), (1_200, "1,200 queries")):
        with progress("audit", None, "query") as advance:
            advance(count)
        assert stream.getvalue().splitlines()[-1].startswith(f"audit: {words} in ")


def test_progress_within_another_is_a_bar_below_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    with progress("audit", 3, "query") as advance:
        with progress("read", None, "point") as read:
            read(5)
        advance(3)
        (bars,) = progressing._shown
        assert bars
        assert [(task.description, task.completed) for task in bars.tasks] == [("audit", 3)]
    assert progressing._shown == []
    assert "audit" in stderr.getvalue().splitlines()[-2]


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
