"""The command `status`: which alignment is live where, what is to be done, and the last runs."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import click

from connector.cli.cluster_tables import print_replicas, replicas_document
from connector.cli.group import cli
from connector.cli.opening import minute, open_home, say_if_new
from connector.cli.options import home_options, json_option
from connector.cli.reconciled_tables import exit_for_differences, print_reconciled, reconciled_document
from connector.cli.tables import print_json, print_table, show, with_blanks
from connector.errors import CollectionNotFoundError, StoreError
from connector.progress import say
from connector.provenance.counts import in_words
from connector.states import ReleaseState

if TYPE_CHECKING:
    from connector.home import Home
    from connector.provenance.tables import RunRow
    from connector.releases.status import ReleaseStatus, StoredRelease
    from connector.stores.replicas import Replicas

SHORT = 8  # characters of a fingerprint, as many as the name of a release ends with


@cli.command()
@click.argument("collection", required=False)
@click.option("-n", "limit", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="Runs to show.")
@click.option("--verify", is_flag=True, hidden=True, help="Old name of `modalign verify`.")
@click.option("--repair", is_flag=True, hidden=True, help="Old name of `modalign repair`.")
@click.option("--yes", is_flag=True, hidden=True, help="For --repair: do not ask before deleting anything.")
@json_option
@home_options
def status(
    collection: str | None, limit: int, verify: bool, repair: bool, yes: bool, as_json: bool, where: Mapping[str, Any]
) -> None:
    """Show which alignment is live, all releases, of COLLECTION or all, what is to be done, and the last runs.

    The lag is the number of rows of the embedding sets that a release does not hold, rejected rows among them: they are
    not pushed yet. Points are counted exactly in Qdrant, in a cluster in the smallest replica of each shard; where they
    or an alias are not as SQL says, a line tells what to do. Of a COLLECTION, shows its own runs alone and, in a cluster,
    its shards and replicas, which nodes are away, and what is possible now.
    """
    for given, name in ((verify, "verify"), (repair, "repair")):
        if given:
            say(f"--{name} is now `modalign {name}`; the old name goes in the next release")
    with open_home(where) as home:
        reports = home.verify(collection) if verify and not repair else None
        if repair:
            from connector.cli.releases import repaired  # loads all requests, for an old name of another command

            reports = repaired(home, collection, yes, None, False)
        say_if_new(home, collection)
        shown = home.status(collection, runs=limit)
        stored = _stored(home, collection)
        replicas = {} if collection is None else _replicas(home, collection)
    releases = [_release_row(release, (stored or {}).get(release.row.id)) for release in shown.releases]
    runs = [_run_row(run) for run in shown.runs]
    if as_json:
        document: dict[str, Any] = {"releases": releases, "runs": runs}
        document["replicas"] = replicas_document(replicas)
        print_json(document | ({} if reports is None else reconciled_document(reports)))
    else:
        _print_releases(releases)
        _print_alignments(shown.releases)
        print_replicas(replicas)
        if reports is not None:
            print_reconciled(reports)
        _print_runs(runs, collection)
    exit_for_differences(reports or [])


def _stored(home: "Home", collection: str | None) -> "dict[int, StoredRelease] | None":
    """Return what the store says of releases; None, and say so, if it cannot be asked: SQL has the rest."""
    try:
        return home.stored(collection)
    except StoreError as error:
        say(f"points were not counted, because the store cannot be asked: {error}")
        return None


def _replicas(home: "Home", collection: str) -> "dict[str, Replicas]":
    """Return the replicas of a collection; say so if its store cannot be asked: SQL has the rest of the status."""
    try:
        return home.replicas(collection)
    except CollectionNotFoundError:  # no release of it is in this store
        return {}
    except StoreError as error:
        say(f"the store does not tell of shards and replicas: {error}")
        return {}


def _release_row(release: "ReleaseStatus", stored: "StoredRelease | None") -> dict[str, Any]:
    row, lag = release.row, release.lag
    return {
        "collection": row.collection,
        "metric": row.metric,
        "state": row.state,
        "alignment": release.alignment.name,
        "alignment_fingerprint": release.alignment.fingerprint,
        "encoders": {modality: encoder.spec for modality, encoder in release.encoders.items()},
        "points": row.points,
        "stored": stored.points if stored else None,
        "hnsw_ef": row.hnsw_ef,
        "hnsw_recall": row.hnsw_recall,
        "lag": lag.rows if lag else None,
        "lag_since": minute(lag.since) if lag else None,
        "physical_name": row.physical_name,
        "store": release.store,
        "pending": release.pending,
        "faults": [*release.faults, *(stored.faults if stored else ())],
        "not_compared": list(stored.not_compared) if stored else [],
    }


def _print_releases(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of releases for each collection, what is live first, and below it what is to be done about them."""
    if not rows:
        print_table([], "releases")
    states = list(ReleaseState)
    several_stores = len({row["store"] for row in rows}) > 1
    for collection in dict.fromkeys(row["collection"] for row in rows):
        of_collection = [row for row in rows if row["collection"] == collection]
        of_collection.sort(key=lambda row: states.index(row["state"]))
        live = list(_live(of_collection))
        hidden = set() if several_stores else {"store"}
        if live and len({row["alignment_fingerprint"] for row in of_collection}) == 1:
            hidden.add("alignment")  # the title names it
        print_table(
            with_blanks(_shown_release(row, hidden) for row in of_collection),
            f"{collection}: {', '.join(live) or 'nothing is live'}",
        )
        sentences = [f"{row['physical_name']}: {sentence}" for row in of_collection for sentence in _said(row)]
        for sentence in sentences:
            show(sentence, rest="  ")
        if sentences:
            show("")


def _said(row: Mapping[str, Any]) -> list[str]:
    return [*row["faults"], *row["not_compared"], *filter(None, [row["pending"]])]


def _live(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say which alignments are live; under which metrics, where there are several."""
    live = [row for row in rows if row["state"] == ReleaseState.LIVE]
    fingerprints = dict.fromkeys(row["alignment_fingerprint"] for row in live)
    for fingerprint in fingerprints:
        of_alignment = [row for row in live if row["alignment_fingerprint"] == fingerprint]
        metrics = ", ".join(dict.fromkeys(row["metric"] for row in of_alignment))
        yield f"alignment {of_alignment[0]['alignment']} is live" + f" under {metrics}" * (len(fingerprints) > 1)


def _shown_release(row: Mapping[str, Any], hidden: Set[str]) -> dict[str, Any]:
    """Lay out for people what is in the JSON document of a release, without some columns."""
    columns = ("metric", "state", "alignment", "points", "stored", "lag", "lag_since", "hnsw_ef", "hnsw_recall")
    shown = {name: row[name] for name in columns} | {"release": row["physical_name"], "store": row["store"]}
    if row["stored"] == row["points"]:
        del shown["stored"]
    return {name: value for name, value in shown.items() if name not in hidden}


def _print_alignments(releases: "Iterable[ReleaseStatus]") -> None:
    """Print which encoders the alignments of the releases take."""
    alignments = {release.alignment.id: (release.alignment, release.encoders) for release in releases}
    rows = [
        {
            "alignment": alignment.name,
            "fingerprint": alignment.fingerprint[:SHORT],
            "method": alignment.method,
            **{f"{modality} encoder": encoder.spec for modality, encoder in encoders.items()},
        }
        for alignment, encoders in alignments.values()
    ]
    if rows:
        print_table(rows, "alignments of these releases")


def _run_row(run: "RunRow") -> dict[str, Any]:
    return {
        "run": run.id,
        "command": run.command,
        "outcome": run.outcome,
        "started": run.started_at.isoformat(timespec="seconds"),
        "counts": run.counts,
        "error": run.error or "",
    }


def _print_runs(rows: Iterable[Mapping[str, Any]], collection: str | None) -> None:
    shown = [
        {
            **row,
            "counts": in_words(row["counts"]),
            "started": row["started"][:16].replace("T", " "),
            "error": textwrap.shorten(row["error"], 60, break_on_hyphens=False),
        }
        for row in rows
    ]
    of = "" if collection is None else f" of {collection}"
    print_table(shown, f"runs{of} (times are UTC; --json has errors in full)")
