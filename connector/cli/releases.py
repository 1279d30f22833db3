"""Commands on releases: promote, rollback, drop, status."""

import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click

from connector.cli.group import FAILED, _confirmation, _home, _minute, cli
from connector.cli.options import METRIC_HELP, home_options, json_option, yes_option
from connector.cli.tables import print_json, print_table, reconciled_examples, reconciled_rows, switched_rows
from connector.progress import say

if TYPE_CHECKING:
    from connector.home import Home
    from connector.provenance.runs import RunResult
    from connector.releases.promotion import AliasSwitch
    from connector.releases.reconcile import ReconcileReport


@cli.command()
@click.argument("collection")
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help=METRIC_HELP + "  [default: all]")
@click.option(
    "--release",
    "names",
    multiple=True,
    metavar="RELEASE",
    help="This ready release. May be repeated.  [default: those of the newest alignment]",
)
@click.option("--force", is_flag=True, help="Promote whatever the audits say; who did and why is recorded.")
@click.option("--reason", metavar="TEXT", help="Why it is forced.")
@json_option
@home_options
def promote(
    collection: str,
    metrics: tuple[str, ...],
    names: tuple[str, ...],
    force: bool,
    reason: str | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Make the ready releases of COLLECTION live, in place of those that are: one switch for all metrics.

    They are verified first: exact counts against SQL, and a sample of vectors and payloads against the embedding sets.
    The newest audit of each must have passed its requirements, and nothing may have been written since; otherwise the
    exit code is 3. Run it again after a crash: it finishes what it began. What was live is retired, and `rollback`
    brings it back.
    """
    if force != bool(reason and reason.strip()):
        raise click.UsageError("expected --force together with --reason TEXT, or neither")
    with _home(where) as home:
        result = home.promote(collection, metrics=metrics, names=names, reason=reason)
    for switched in result.value:
        if switched.refused:
            say(f"forced by {switched.promotion.forced_by}: {switched.refused}")
    _print_switched(result, as_json)


@cli.command()
@click.argument("collection")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="METRIC",
    help=METRIC_HELP + "  [default: all that the last promotion switched]",
)
@json_option
@home_options
def rollback(collection: str, metrics: tuple[str, ...], as_json: bool, **where: Any) -> None:
    """Undo the last promotion of COLLECTION: what was live before is live again.

    It is verified first. What was pushed since the promotion it has not got: push the embedding sets with its alignment
    again. Run it again after a crash: it finishes what it began.
    """
    with _home(where) as home:
        result = home.rollback(collection, metrics=metrics)
    for switched in result.value:
        for lacking in switched.lacks:
            say(lacking)
    _print_switched(result, as_json)


@cli.command()
@click.argument("collection")
@click.option(
    "--release", "names", multiple=True, metavar="RELEASE", help="This release, as status names it. May be repeated."
)
@click.option("--retired", is_flag=True, help="All retired releases.")
@yes_option
@json_option
@home_options
def drop(collection: str, names: tuple[str, ...], retired: bool, yes: bool, as_json: bool, **where: Any) -> None:
    """Drop releases of COLLECTION that are not live, with their points; embedding sets and alignments stay."""
    with _home(where) as home:
        doomed = home.droppable(collection, names=names, retired=retired)
        for name, returned_to in doomed.items():
            say(f"{name}{': a rollback would return to it' if returned_to else ''}")
        if doomed and not _confirmation("modalign drop", yes)(f"drop {len(doomed)} releases of {collection}?"):
            say("nothing was dropped")
            sys.exit(FAILED)
        result = home.drop(collection, list(doomed)) if doomed else None
    if as_json:
        print_json({"run": result.run if result else None, "dropped": list(doomed)})
    else:
        print_table([{"dropped": name} for name in doomed], f"{collection}")


@cli.command()
@click.argument("collection", required=False)
@click.option(
    "-n", "limit", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="How many runs to show."
)
@click.option(
    "--verify", is_flag=True, help="Reconcile SQL, collections and embedding sets; exit with 1 if they differ."
)
@click.option("--repair", is_flag=True, help="Also mend collections and SQL from the embedding sets, and verify again.")
@yes_option
@json_option
@home_options
def status(
    collection: str | None, limit: int, verify: bool, repair: bool, yes: bool, as_json: bool, **where: Any
) -> None:
    """Show releases, of COLLECTION or all, what is to be done about them, ingests in parts, and the last runs.

    The lag is the number of rows of the embedding sets that a release does not hold, those that it refused among them.

    With --verify everything that live and ready releases should hold is computed again from the embedding sets and
    compared with what they hold: missing, differing and orphaned points, all payloads, vectors of a sample. A release
    that cannot be compared, because its alignment is gone say, is named with the reason, and the others are verified.
    """
    from connector.releases.promotion import pending

    with _home(where) as home:
        reconciled = _reconciled(home, collection, repair, yes) if verify or repair else None
        lag = home.lag()
        releases = [
            {
                "collection": row.collection,
                "metric": row.metric,
                "state": row.state,
                "points": row.points,
                "hnsw_ef": row.hnsw_ef,
                "hnsw_recall": row.hnsw_recall,
                "lag": lag[row.id].rows if row.id in lag else None,
                "lag_since": _minute(lag[row.id].since) if row.id in lag else None,
                "physical_name": row.physical_name,
                "store": row.store_url,
                "pending": pending(home.provenance, row),
            }
            for row in home.provenance.releases.find(**({"collection": collection} if collection else {}))
            if row.dropped_at is None
        ]
        runs = [
            {
                "run": row.id,
                "command": row.command,
                "outcome": row.outcome,
                "started": row.started_at.isoformat(timespec="seconds"),
                "counts": ", ".join(f"{count} {name}" for name, count in row.counts.items() if count),
                "error": row.error or "",
            }
            for row in home.provenance.runs.newest(limit)
        ]
        parts = home.provenance.runs.ingests_in_parts()
    sound = reconciled is None or all(found.consistent for found in reconciled)
    if as_json:
        document: dict[str, Any] = {"releases": releases, "ingests_in_parts": parts, "runs": runs}
        if reconciled is not None:
            document |= {"verified": reconciled_rows(reconciled), "examples": reconciled_examples(reconciled)}
        print_json(document)
        sys.exit(0 if sound else FAILED)
    shown = [
        {name: value for name, value in release.items() if name not in ("store", "pending")} for release in releases
    ]
    print_table(shown, "releases")
    for release in releases:
        if release["pending"]:
            click.echo(f"{release['physical_name']}: {release['pending']}")
    if reconciled is not None:
        rows = [{name: value for name, value in row.items() if name != "broken"} for row in reconciled_rows(reconciled)]
        print_table(rows, "verified against SQL and embedding sets")
        for each in reconciled:
            if each.broken is not None:
                click.echo(f"{each.name}: broken: {each.broken}")
        for name, kinds in reconciled_examples(reconciled).items():
            for kind, examples in kinds.items():
                say(f"{name}: {kind}, for example {', '.join(examples)}")
    if parts:
        print_table(parts, "ingests in parts that are not finished")
    for run in runs:
        run["started"] = str(run["started"])[:16].replace("T", " ")
        run["error"] = textwrap.shorten(str(run["error"]), 60)
    print_table(runs, "runs (times are UTC; --json has errors in full)")
    if not sound:
        sys.exit(FAILED)


def _print_switched(result: "RunResult[list[AliasSwitch]]", as_json: bool) -> None:
    rows = switched_rows(result)
    if as_json:
        print_json({"run": result.run, "switched": rows})
    elif rows:
        print_table(rows, f"run {result.run}")
    else:
        print_table([], f"run {result.run}: everything that was asked for is live already")


def _reconciled(home: "Home", collection: str | None, repair: bool, yes: bool) -> "list[ReconcileReport]":
    found = home.verify(collection)
    if not repair or all(each.consistent for each in found):
        return found
    orphans = sum(each.orphans.count for each in found)
    agreed = orphans > 0 and _confirmation("--repair", yes)(f"delete {orphans} points that no embedding set holds?")
    if orphans and not agreed:
        say("nothing was deleted")
    return home.repair(collection, delete_orphans=agreed).value
