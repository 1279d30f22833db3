"""The command that audits a release, with its pairs and requirements, ready to run: for a shadow that is to go live."""

import shlex
from collections.abc import Sequence

from connector.provenance.recorder import Provenance
from connector.provenance.tables import AuditRow, ReleaseRow
from connector.releases.choice import newest_ready
from connector.states import AuditVerdict, ReleaseState

FIRST_REQUIREMENT = "recall@10>=0.4"  # as the README has it, where nothing was required yet


def next_audit_command(provenance: Provenance, collection: str, rows: Sequence[ReleaseRow]) -> str:
    """Return the command that audits the shadows of a collection, or what is live where there are none.

    Args:
        provenance: where releases and audits are recorded.
        collection: that people say.
        rows: its releases that were not dropped.
    """
    to_audit = newest_ready(rows) or [row for row in rows if row.state in (ReleaseState.READY, ReleaseState.LIVE)]
    return audit_command(provenance, to_audit[-1]) if to_audit else f"modalign audit {collection} --pairs SET"


def failed_audit(provenance: Provenance, row: ReleaseRow) -> AuditRow | None:
    """Return the newest audit of a release if it failed, and the release is as it was then."""
    newest = provenance.audits.newest(row.id)
    if newest and newest[0].verdict == AuditVerdict.FAILED and newest[0].settings.get("revision") == row.revision:
        return newest[0]
    return None


def how_to_pass(provenance: Provenance, row: ReleaseRow) -> str:
    """Say what may let a ready release pass: its audit; after one that failed nothing but a change will."""
    command = audit_command(provenance, row)
    if failed_audit(provenance, row):
        return f"push a better alignment, or require what you can do with: `{command}` requires the same again"
    return f"audit with `{command}`"


def audit_command(provenance: Provenance, row: ReleaseRow) -> str:
    """Return the command that audits a live release, or a ready one with all that are promoted with it.

    It has the pairs and the requirements of its own newest audit, if that required anything, or else of that of what
    is live. If there is none, the pairs are the newest embedding set that was pushed. A drop since a baseline is not
    required again: the baseline may be gone.
    """
    collection = provenance.releases.find(store_id=row.store_id, collection=row.collection, dropped_at=None)
    which = ReleaseState.READY if row.id in {ready.id for ready in newest_ready(collection)} else row.physical_name
    words = [] if row.state == ReleaseState.LIVE else ["--release", which]
    audits = filter(
        None, (provenance.audits.newest(other.id) for other in collection if other.state == ReleaseState.LIVE)
    )
    own = provenance.audits.newest(row.id)
    newest = own if own and own[1].parameters.get("require") else max(audits, key=lambda made: made[0].id, default=None)
    asked = newest[1].parameters if newest else {}
    pushed = [held.name for held in provenance.ledger.sets_in([row.id])]
    words += ["--pairs", asked.get("pairs") or (pushed or ["SET"])[-1]]
    required = [text for text in asked.get("require", ()) if " drop" not in text]
    for requirement in required or [FIRST_REQUIREMENT]:
        words += ["--require", requirement]
    return shlex.join(["modalign", "audit", row.collection, *words])
