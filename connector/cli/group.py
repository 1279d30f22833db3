"""The command group, exit codes, and what every command needs."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignment.plurals import counted
from connector.cli.options import home_options
from connector.progress import say
from connector.prose import prose_lines
from connector.safe_text import for_terminal, redacted

if TYPE_CHECKING:
    from datetime import datetime

    from connector.home import Home
    from connector.provenance.runs import RunResult
    from connector.settings import Settings

FAILED, USAGE, REQUIREMENT, REJECTED, INTERRUPTED = 1, 2, 3, 4, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="modalign")
def cli() -> None:
    """Align image and text embeddings, serve them from Qdrant, and measure Recall@K.

    `encode` turns a corpus into an embedding set. `fit` fits an alignment on embedding sets. `push` writes a release:
    one alignment under one metric in one Qdrant collection. `search` and `audit` read releases. SQL records every run.

    Start with `modalign demo`. Exit codes: 0 done; 1 failed; 2 usage; 3 an audit's requirement was not met, its
    release is broken, or no audit allows a promotion; 4 done, but more items were rejected than --max-rejects allows;
    130 interrupted.

    Tables are as wide as the terminal, or 80 columns in a pipe or a file; COLUMNS sets another width. What has no room
    in a row stands below it, and no name is broken. Sentences are wrapped on a terminal, and are one line each in a
    pipe or a file. Programs read --json, which has all columns and exact names.
    """


@cli.group()
def db() -> None:
    """Commands on the provenance database."""


@db.command()
@home_options
def upgrade(where: Mapping[str, Any]) -> None:
    """Create or upgrade the tables. Run it after every update of modalign, and once for PostgreSQL.

    `encode` and `import` create the tables of a new home in SQLite by themselves.
    """
    from connector.provenance.database import upgrade as upgrade_database

    settings = load_settings(where)
    upgrade_database(settings.database_url)
    say(f"{redacted(settings.database_url)} is up to date")


def load_settings(where: Mapping[str, Any]) -> "Settings":
    """Return the settings, given what `home_options` hands over."""
    from connector.settings import Settings

    return Settings.load(**where)


def open_home(where: Mapping[str, Any]) -> "Home":
    """Open the home, given what `home_options` hands over."""
    from connector.home import Home

    return Home(load_settings(where))


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
        say(f"{counted(rejected, 'reject')}; see `modalign rejects {result.run}`")
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
