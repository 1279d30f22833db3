"""The command line in this process: how a command ended, and what it printed where."""

import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import click
import pytest

from connector.cli import main as cli
from connector.cli.reference import commands
from connector.encoding import loading
from tests.support.fakes import fake_entry_points

# Items of the corpus that the shared home holds.
N = 60
COMMANDS = dict(commands())
SPECS = ["--image-encoder", "fake-image:small", "--text-encoder", "fake-text:small"]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    styled: bool = False  # whether it printed escapes, such as bold, which `out` and `err` lack

    @property
    def document(self) -> Any:
        """What stands on stdout, which must be JSON and nothing else, as strict readers take it."""

        def refuse(name: str) -> Any:
            raise ValueError(f"{name} is no JSON")

        return json.loads(self.out, parse_constant=refuse)

    @property
    def error(self) -> str:
        """The one line that says what was wrong, without the code that an error of modalign has."""
        assert self.code in (1, 2)
        assert "Traceback" not in self.err
        starts = ("modalign: ",) if self.code == 1 else ("modalign: ", "Error: ")
        (line,) = [line for line in self.err.splitlines() if line.startswith(starts)]
        assert self.err.splitlines()[-1] == line
        assert self.out == ""
        return re.sub(r" \[[a-z-]+\]$", "", line)

    @property
    def error_code(self) -> str:
        """The code at the end of that line."""
        return self.err.splitlines()[-1].rpartition("[")[2].removesuffix("]")


class _Terminal(StringIO):
    """What is printed on a terminal."""

    def isatty(self) -> bool:
        return True


def modalign(*arguments: object, terminal: int | None = None, kind: str = "dumb") -> Ended:
    """Run the command line in this process, with the fake encoders; on a terminal of so many columns, if given."""
    out, err = (StringIO(), StringIO()) if terminal is None else (_Terminal(), _Terminal())
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        if terminal is not None:
            patched.setenv("COLUMNS", str(terminal))
            patched.setenv("TERM", kind)  # a dumb one's progress bars are drawn once, at their end
        patched.setattr(loading, "entry_points", fake_entry_points)
        patched.setattr(sys, "argv", ["modalign", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code
    assert isinstance(code, int)
    printed, said = out.getvalue(), err.getvalue()
    return Ended(code, click.unstyle(printed), click.unstyle(said), styled="\x1b" in printed + said)


def done(*arguments: object) -> Ended:
    ended = modalign(*arguments)
    assert ended.code == 0, ended.err
    return ended
