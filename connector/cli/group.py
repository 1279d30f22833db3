"""The command group, exit codes and what every command needs."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignment.errors import MetricError, TrainingError
from connector.cli.options import home_options
from connector.errors import FilterError, RequirementError, SettingsError
from connector.progress import say
from connector.safe_text import redacted

if TYPE_CHECKING:
    from datetime import datetime

    from connector.home import Home
    from connector.provenance.runs import RunResult
    from connector.settings import Settings

FAILED, USAGE, REQUIREMENT, REJECTED, INTERRUPTED = 1, 2, 3, 4, 130
# What only the command line can be wrong about.
USAGE_ERRORS = (FilterError, MetricError, RequirementError, SettingsError, TrainingError)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="modalign")
def cli() -> None:
    """Align image and text embeddings, serve them from Qdrant, prove it with Recall@K.

    A corpus is encoded once into an embedding set; an alignment is fitted on embedding sets; a release is one
    alignment under one metric in one Qdrant collection; search and audit read releases; SQL remembers everything.

    Start with `modalign demo`. Exit codes: 0 done, 1 failed, 2 usage, 3 an audit's requirement was not met, what
    it audits is broken, or no audit allows a promotion, 4 done but more items were rejected than --max-rejects allows,
    130 interrupted.
    """


@cli.group()
def db() -> None:
    """The provenance database."""


@db.command()
@home_options
def upgrade(**where: Any) -> None:
    """Create or upgrade the tables; run it once for a new home and after every update of modalign."""
    from connector.provenance.database import upgrade as upgrade_database

    settings = _settings(where)
    upgrade_database(settings.database_url)
    say(f"{redacted(settings.database_url)} is up to date")


def _confirmation(what: str, yes: bool) -> Callable[[str], bool]:
    """Return how to ask whether to delete; without a terminal there is nobody to ask."""
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"{what} deletes only what somebody agrees to: add --yes, or run it in a terminal")

    def confirm(question: str) -> bool:
        if yes:
            say(question.removesuffix("?"))
        return yes or click.confirm(question, err=True)

    return confirm


def _settings(where: Mapping[str, Any]) -> "Settings":
    from connector.settings import Settings

    return Settings.load(**where)


def _home(where: Mapping[str, Any]) -> "Home":
    from connector.home import Home

    return Home(_settings(where))


def _exit_for_rejects(result: "RunResult[object]", allowed: int) -> None:
    refused = result.counts.get("rejected", 0)
    if refused:
        say(f"{refused} rejected; see `modalign rejects {result.run}`")
    if refused > allowed:
        sys.exit(REJECTED)


def _minute(moment: "datetime | None") -> str | None:
    return moment.isoformat(timespec="minutes") if moment else None


def _shortest(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
