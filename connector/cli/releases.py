"""Commands on releases: promote, rollback, drop, verify, repair."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from alignment.plurals import counted
from connector.cli.group import FAILED, cli
from connector.cli.opening import confirmation, open_home, say_if_new
from connector.cli.options import METRIC_HELP, home_options, json_option, yes_option
from connector.cli.reconciled_tables import exit_for_differences, print_reconciled, reconciled_document
from connector.cli.tables import print_json, print_table, show, switched_rows, with_blanks
from connector.progress import say
from connector.requests import (
    ORPHAN_SHARE,
    DropRequest,
    PromoteRequest,
    RepairRequest,
    RollbackRequest,
)

if TYPE_CHECKING:
    from connector.home import Home
    from connector.provenance.runs import RunResult
    from connector.releases.promotion import AliasSwitch
    from connector.releases.reconcile import ReconcileReport


request_option = click.option(
    "--request",
    metavar="ID",
    help="Name this request. Run again with the same name, it finishes what it began, and does nothing else.",
)


@cli.command()
@click.argument("collection")
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help=METRIC_HELP + "  [default: all]")
@click.option(
    "--release",
    "releases",
    multiple=True,
    metavar="RELEASE",
    help="This ready release; `ready`: those of the newest alignment. May be repeated.  [default: ready]",
)
@click.option("--force", is_flag=True, help="Promote whatever the audits say. Who forced it and why is recorded.")
@click.option("--reason", metavar="TEXT", help="Why it is forced.")
@request_option
@json_option
@home_options
def promote(force: bool, reason: str | None, as_json: bool, where: Mapping[str, Any], **given: Any) -> None:
    """Make the ready releases of COLLECTION live, in place of the live ones.

    They are verified first: exact counts against SQL, and a sample of vectors and payloads against the embedding sets.
    The newest audit of each must have passed its requirements, and nothing may have been written since. Filters must
    find the same as before: the same payload indexes, and values of the same types. Otherwise the exit code is 3.
    Every other difference of the layouts is named.

    Where no ready release is newer than what is live, nothing changes and the exit code is 0.

    The releases that were live are retired; `rollback` brings them back. The aliases of all metrics are switched in one
    request, which a server that is killed may have carried out in part. Run it again after a crash: it finishes.
    """
    if force != bool(reason and reason.strip()):
        raise click.UsageError("expected --force together with --reason TEXT, or neither")
    with open_home(where) as home:
        result = home.promote(PromoteRequest(reason=reason, **given))
    for switched in result.value:
        if switched.refused:
            say(f"forced by {switched.promotion.forced_by}: {switched.refused}")
        for difference in switched.differences:
            say(difference)
        for worse in switched.worse:
            say(f"{switched.row.physical_name} is worse than what was live: {worse}")
        if switched.worse:
            say(f"`modalign rollback {switched.row.collection}` brings back what was live")
    if not result.value:
        collection = given["collection"]
        say(
            f"no ready release of {collection} is newer than what is live: push with another alignment, `modalign push "
            f"SET --alignment ALIGNMENT --into {collection}`, or name an older ready one of `modalign status {collection}`"
        )
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
@click.option(
    "--to",
    multiple=True,
    metavar="RELEASE",
    help="Return to this release, which was live once. May be repeated.  [default: what the last promotion replaced]",
)
@request_option
@json_option
@home_options
def rollback(as_json: bool, where: Mapping[str, Any], **given: Any) -> None:
    """Undo the last promotion of COLLECTION: the releases that were live before it are live again.

    They are verified first. They lack what was pushed since the promotion: push the embedding sets with their alignment
    again. Run it again after a crash: it finishes. A promotion is undone once; --to goes back further.
    """
    if given["to"] and given["metrics"]:
        raise click.UsageError("expected --to or --metric, got both")
    with open_home(where) as home:
        result = home.rollback(RollbackRequest(**given))
    for switched in result.value:
        for sentence in (*switched.lacks, *switched.differences):
            say(sentence)
    _print_switched(result, as_json)


@cli.command()
@click.argument("collection")
@click.option(
    "--release", "names", multiple=True, metavar="RELEASE", help="This release, as status names it. May be repeated."
)
@click.option("--retired", is_flag=True, help="All retired releases.")
@click.option(
    "--taken-over", is_flag=True, help="All releases, live or not, that another database has: SQL alone forgets them."
)
@yes_option
@json_option
@home_options
def drop(
    collection: str,
    names: tuple[str, ...],
    retired: bool,
    taken_over: bool,
    yes: bool,
    as_json: bool,
    where: Mapping[str, Any],
) -> None:
    """Drop releases of COLLECTION that are not live, with their points. Embedding sets and alignments stay."""
    if [bool(names), retired, taken_over].count(True) != 1:
        raise click.UsageError("expected one of --release, --retired and --taken-over")
    with open_home(where) as home:
        if taken_over:
            releases = dict.fromkeys(home.taken_over(collection), "SQL forgets it, the other database keeps its points")
        else:
            droppable = home.droppable(collection, names=names, retired=retired)
            releases = {name: "a rollback would return to it" if back else "" for name, back in droppable.items()}
        for name, consequence in releases.items():
            say(f"{name}{': ' * bool(consequence)}{consequence}")
        verb = "forget" if taken_over else "drop"
        question = f"{verb} {counted(releases, 'release')} of {collection}?"
        if releases and not confirmation("modalign drop", yes)(question):
            say("nothing was dropped")
            sys.exit(FAILED)
        request = DropRequest(collection=collection, releases=list(releases), taken_over=taken_over)
        result = home.drop(request) if releases else None
    if as_json:
        print_json({"run": result.run if result else None, "dropped": list(releases)})
    else:
        print_table([{"dropped": name} for name in releases], f"{collection}")


full_option = click.option("--full", is_flag=True, help="Compare all vectors, not a sample of them.")


@cli.command()
@click.argument("collection", required=False)
@full_option
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    help="Compare the same sample again as a run that printed this seed.  [default: another one each time]",
)
@json_option
@home_options
def verify(collection: str | None, full: bool, seed: int | None, as_json: bool, where: Mapping[str, Any]) -> None:
    """Compare SQL, collections and embedding sets, of COLLECTION or all. Exit with 1 if they differ.

    What live and ready releases should hold is computed again from the embedding sets: missing, differing and orphaned
    points, all payloads, and a sample of vectors that moves with each run. One wrong vector in the sample makes it
    compare all of them. A release that cannot be compared, for example because its alignment
    is gone, is named with the reason.
    """
    with open_home(where) as home:
        say_if_new(home, collection)
        reports = home.verify(collection, seed=seed, full=full)
    _print_reports(reports, as_json)


@cli.command()
@click.argument("collection", required=False)
@click.option(
    "--delete-orphans",
    "orphans",
    type=click.IntRange(1),
    metavar="N",
    help=f"Delete orphans without a question if there are exactly N. Needed for more than {ORPHAN_SHARE:.0%} of a release.",
)
@full_option
@yes_option
@json_option
@home_options
def repair(
    collection: str | None, orphans: int | None, full: bool, yes: bool, as_json: bool, where: Mapping[str, Any]
) -> None:
    """Verify, repair collections and SQL from the embedding sets where they differ, and verify again.

    Orphans, points that no embedding set holds, are deleted after a count and a question.
    """
    with open_home(where) as home:
        reports = repaired(home, collection, yes, orphans, full)
    _print_reports(reports, as_json)


def repaired(
    home: "Home", collection: str | None, yes: bool, orphans: int | None, full: bool
) -> "list[ReconcileReport]":
    """Verify, repair what differs, and return what is found then; asks before orphans are deleted."""
    reports = home.verify(collection, full=full)
    if all(report.consistent for report in reports):
        return reports
    full = full or any(report.wrong_vectors for report in reports)  # the sample of the repair may have none of them
    if orphans is None and (found := sum(report.orphans.count for report in reports)):
        if many := [report for report in reports if report.orphans.count > ORPHAN_SHARE * report.points]:
            for report in many:
                say(
                    f"{report.name}: no embedding set that was pushed into it holds {report.orphans.count:,} of its "
                    f"{counted(report.points, 'point')}, more than {ORPHAN_SHARE:.0%}: a set may be missing from SQL; push it again"
                )
            say(f"nothing was deleted; to delete all of them, add --delete-orphans {found}")
        elif confirmation("repair", yes)(f"delete {counted(found, 'point')} that no embedding set holds?"):
            orphans = found
        else:
            say("nothing was deleted")
    return home.repair(RepairRequest(collection=collection, delete_orphans=orphans, full=full)).value


def _print_reports(reports: "Sequence[ReconcileReport]", as_json: bool) -> None:
    if as_json:
        print_json(reconciled_document(reports))
    else:
        print_reconciled(reports)
    exit_for_differences(reports)


def _print_switched(result: "RunResult[list[AliasSwitch]]", as_json: bool) -> None:
    rows = switched_rows(result)
    if as_json:
        print_json({"run": result.run, "switched": rows})
    elif rows:
        shown = [{name: value for name, value in row.items() if name not in ("differences", "worse")} for row in rows]
        print_table(with_blanks(shown), f"run {result.run}")
    else:
        show(f"run {result.run}: nothing is left to switch")
