"""What every command needs: the settings, the home, a question before it deletes, exits, and short forms."""

import gc
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignment.plurals import counted
from connector.cli.group import REJECTED
from connector.errors import NotMigratedError
from connector.progress import say
from connector.prose import prose_lines
from connector.safe_text import for_terminal

if TYPE_CHECKING:
    from datetime import datetime

    from connector.home import Home
    from connector.provenance.runs import RunResult
    from connector.settings import Settings


def load_settings(where: Mapping[str, Any]) -> "Settings":
    """Return the settings, given what `home_options` hands over."""
    from connector.settings import Settings

    if not gc.isenabled():  # the entry point has disabled it
        gc.freeze()  # what is imported is no garbage
        gc.enable()
    return Settings.load(**where)


def open_home(where: Mapping[str, Any]) -> "Home":
    """Open the home, given what `home_options` hands over."""
    from connector.home import Home

    return Home(load_settings(where))


def say_if_new(home: "Home", name: object = None) -> None:
    """Say how to begin, if nothing was made in a home yet.

    Raises:
        NotMigratedError: nothing was, and something is asked for by `name`.
    """
    if home.is_new:
        if name is not None:
            raise NotMigratedError(home.first_steps, code="home-new")
        say(home.first_steps)


def confirmation(what: str, yes: bool) -> Callable[[str], bool]:
    """Return a function that asks whether to delete; without a terminal there is nobody to ask."""
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"{what} asks before it deletes: add --yes, or run it in a terminal")

    def confirm(question: str) -> bool:
        if yes:
            say(question.removesuffix("?"))
        return yes or click.confirm("\n".join(prose_lines(for_terminal(question), sys.stderr)), err=True)

    return confirm


def exit_for_rejects(result: "RunResult[object]", allowed: int) -> None:
    """Say how many rejects a run recorded, and exit with 4 if they are more than allowed."""
    rejected = result.counts.get("rejected", 0)
    if rejected:
        code = f"; the exit code is {REJECTED}, because --max-rejects is {allowed}" if rejected > allowed else ""
        say(f"{counted(rejected, 'reject')}; see `modalign rejects {result.run}`{code}")
    if rejected > allowed:
        sys.exit(REJECTED)


def minute(moment: "datetime | None") -> str | None:
    """Print a moment to the minute."""
    return moment.isoformat(timespec="minutes") if moment else None


def shortest(path: Path) -> str:
    """Print a path, relative to the working directory if it is below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
