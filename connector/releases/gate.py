"""The gate before a promotion: the newest audit of a release has to allow it."""

from alignment.plurals import counted
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AuditRow, ReleaseRow
from connector.releases.chain import search_settings
from connector.states import AuditVerdict
from connector.stores.contract import Store


def newest_audit(provenance: Provenance, store: Store, row: ReleaseRow) -> tuple[AuditRow | None, str | None]:
    """Return the newest audit of a release and why it does not allow a promotion; None: it does."""
    newest = provenance.audits.newest(row.id)
    if newest is None:
        return None, f"release {row.physical_name} was never audited"
    audit, run = newest
    reason = _verdict(audit) or _change_since(store, row, audit)
    return audit, f"release {row.physical_name}: its newest audit, of run {run.id}, {reason}" if reason else None


def _verdict(audit: AuditRow) -> str | None:
    """Say why the verdict itself does not allow it. Only one that is known to allow it does."""
    match audit.verdict:
        case AuditVerdict.PASSED:
            return None
        case AuditVerdict.MEASURED:
            return "required nothing"
        case AuditVerdict.BROKEN:
            return f"found it broken: {audit.settings.get('broken')}"
        case AuditVerdict.FAILED:
            return f"has failed: {', '.join(audit.settings.get('failed_requirements', []))}"
    return f"has the verdict {audit.verdict!r}, which does not allow a promotion: expected {AuditVerdict.PASSED!s}"


def _change_since(store: Store, row: ReleaseRow, audit: AuditRow) -> str | None:
    """Say what has changed in the release since the audit began."""
    seen, points = audit.settings, store.count(row.physical_name, consistent=True)
    # Revisions are counted by the database. Clocks of hosts that write and audit may differ.
    if (revision := seen.get("revision", 0)) != row.revision:
        return f"saw revision {revision} of the release, written to or rolled back since: it is at {row.revision}"
    if row.needs_tuning:
        return "was made while a push into the release was not finished; push its embedding sets again"
    if seen.get("points") != points:
        return f"saw {counted(seen.get('points', 0), 'point')}, it holds {points:,}"
    if seen.get("served_with") != (present := search_settings(row)):
        return f"searched with {seen.get('served_with')}, production would with {present}"
    return None
