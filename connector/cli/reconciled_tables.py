"""What `verify` and `repair` print of releases, and the exit code where anything differs."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from alignment.plurals import counted
from connector.cli.group import FAILED
from connector.cli.tables import print_table, show
from connector.progress import say

if TYPE_CHECKING:
    from connector.releases.reconcile import ReconcileReport


def reconciled_rows(found: Iterable["ReconcileReport"]) -> list[dict[str, Any]]:
    """Lay out what reconciliations found, a release a row; without numbers where nothing could be compared."""
    rows = []
    for each in found:
        numbers = {
            "points": each.points,
            "ledger": each.recorded,
            "embedding_sets": each.held,
            "missing": each.missing.count,
            "differing": each.differing.count,
            "orphans": each.orphans.count,
            "unrecorded": each.unrecorded.count,
            "settings": len(each.settings),
            "vectors_compared": each.vectors,
            "seed": each.seed,
        }
        known = numbers if each.broken is None else dict.fromkeys(numbers)
        rows.append(
            {
                "release": each.name,
                "consistent": each.consistent,
                **known,
                "replicas": each.replicas,
                "lost": each.lost,
                "away": each.away,
                "not_compared": each.not_compared,
                "broken": each.broken,
            }
        )
    return rows


def reconciled_examples(found: Iterable["ReconcileReport"]) -> dict[str, dict[str, list[str]]]:
    """Name a few of the items that differ, by release and kind, and all settings."""
    return {
        each.name: {
            kind: getattr(each, kind).examples
            for kind in ("missing", "differing", "orphans", "unrecorded")
            if getattr(each, kind).count
        }
        | ({"settings": each.settings} if each.settings else {})
        for each in found
        if not each.consistent
    }


def print_reconciled(reports: Sequence["ReconcileReport"]) -> None:
    """Print what reconciliations found: a release a row, why one could not be compared, and a few of the items."""
    hidden = {"replicas", "lost", "away", "not_compared", "broken", "seed"}
    short = {"embedding_sets": "sets", "vectors_compared": "vectors"}
    rows = [
        {short.get(name, name): value for name, value in row.items() if name not in hidden}
        for row in reconciled_rows(reports)
    ]
    print_table(rows, "verified against SQL and embedding sets; the number of vectors that were compared")
    for seed in sorted({report.seed for report in reports if report.seed is not None}):
        say(f"the sample of vectors was drawn with --seed {seed}")
    for report in reports:
        if report.broken is not None:
            show(f"{report.name}: broken: {report.broken}")
        for fault in (*report.replicas, *report.lost):
            show(f"{report.name}: {fault}")
        if report.has_other_counts_alone and not report.replicas:
            show(
                f"{report.name}: the collection holds {counted(report.points, 'point')}, the ledger counts {report.recorded}, the "
                f"embedding sets {report.held}. Embedding sets that share keys replace each other's points"
            )
        if report.has_orphans_elsewhere:
            say(
                f"{report.name}: a node holds points that no embedding set has, and the node that was asked does not: "
                "run `modalign repair` with MODALIGN_QDRANT_URL naming the node with the most points"
            )
        for sentence in report.not_compared:
            say(f"{report.name}: {sentence}")
        if report.away:
            say(f"{report.name}: away, so that its replicas there were not compared: {', '.join(report.away)}")
    for name, kinds in reconciled_examples(reports).items():
        for sentence in kinds.pop("settings", []):
            say(f"{name}: {sentence}")
        for kind, examples in kinds.items():
            say(f"{name}: {kind}, for example {', '.join(examples)}")


def reconciled_document(reports: "Sequence[ReconcileReport]") -> dict[str, Any]:
    """Lay out as JSON what reconciliations found."""
    return {"verified": reconciled_rows(reports), "examples": reconciled_examples(reports)}


def exit_for_differences(reports: "Sequence[ReconcileReport]") -> None:
    """Exit with 1 if anything differs or is broken."""
    if not all(report.consistent for report in reports):
        sys.exit(FAILED)
