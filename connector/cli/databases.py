"""Commands on the provenance database: db upgrade, db merge-stores."""

import sys
from collections.abc import Mapping
from typing import Any

import click

from connector.cli.group import FAILED, cli
from connector.cli.opening import confirmation, load_settings, open_home
from connector.cli.options import home_options, json_option, yes_option
from connector.cli.tables import print_result
from connector.progress import say
from connector.requests import MergeStoresRequest
from connector.safe_text import redacted


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


@db.command()
@click.argument("address")
@yes_option
@json_option
@home_options
def merge_stores(address: str, yes: bool, as_json: bool, where: Mapping[str, Any]) -> None:
    """Record that ADDRESS, as status --json names it, and MODALIGN_QDRANT_URL are one server.

    Releases of one collection become one: with the embedding sets, audits and promotions of both, and of each set with
    the ledger that was written last. Compare it with Qdrant afterwards: `modalign verify`.
    """
    confirm = confirmation("modalign db merge-stores", yes)
    with open_home(where) as home:
        result = home.merge_stores(
            MergeStoresRequest(address=address), confirm=lambda found: confirm(f"merge {found}?")
        )
    print_result(result, {"merged": result.counts["releases"]}, as_json)
    if not result.value:
        sys.exit(FAILED)
