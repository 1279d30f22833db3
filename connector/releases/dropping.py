"""Drop releases with their collections, and forget those that another database has taken over.

A drop has three steps: SQL records it, the collection goes, SQL forgets what it held. `connector.releases.status` names
what was begun and not finished, and the same command finishes it. The collection of a release that another database has
taken over stays: SQL alone forgets it.
"""

from collections.abc import Collection, Sequence

from connector.errors import MismatchError, SettingsError
from connector.provenance.recorder import Provenance
from connector.provenance.releases import PROMOTE
from connector.provenance.tables import ReleaseRow
from connector.releases.choice import is_undone, named_releases
from connector.releases.promotion import Lifecycle
from connector.releases.rights import check_may_manage
from connector.releases.store_identity import FOREIGN, check_owner
from connector.states import ReleaseState


def droppable(lifecycle: Lifecycle, *, names: Sequence[str] = (), retired: bool = False) -> list[ReleaseRow]:
    """Return the releases with these names, or all that are retired.

    Raises:
        CollectionNotFoundError: there is no release of such a name.
        MismatchError: a release is live, or an alias names it.
        SettingsError: neither or both were given.
        AccessDeniedError: the key may not drop collections, and need not see all aliases.
    """
    if bool(names) == retired:
        raise SettingsError("expected releases by name or all that are retired, got neither or both")
    rows = lifecycle.rows()
    chosen = (
        [row for row in rows if row.state == ReleaseState.RETIRED]
        if retired
        else named_releases(rows, names, lifecycle.collection)
    )
    if chosen:
        check_may_manage(lifecycle.store, f"dropping releases of {lifecycle.collection}")
    aliases: dict[str, str] = {}
    for alias, name in sorted(lifecycle.store.aliases().items()):
        aliases.setdefault(name, alias)
    for row in chosen:
        if row.state == ReleaseState.LIVE or row.physical_name in aliases:
            alias = aliases.get(row.physical_name, "an alias")
            raise MismatchError(
                f"release {row.physical_name} is live: {alias} names it; promote another one, or roll it back, and "
                "drop it then"
            )
    return chosen


def drop(lifecycle: Lifecycle, rows: Sequence[ReleaseRow]) -> None:
    """Drop releases with their collections. Call `droppable` and this under one `exclusive`."""
    present = set(lifecycle.store.collections())
    for row in rows:
        if row.physical_name in present:
            check_owner(lifecycle.provenance, lifecycle.store, row.physical_name, row.store_id)
    for row in rows:
        lifecycle.provenance.releases.begin_drop(row.id)
        lifecycle.store.drop(row.physical_name)
        lifecycle.provenance.releases.finish_drop(row.id)


def taken_over(lifecycle: Lifecycle) -> list[ReleaseRow]:
    """Return the releases, in any state, whose collections say that they are of another database."""
    shown = set(lifecycle.store.collections())
    return [row for row in lifecycle.rows() if row.physical_name in shown and _is_taken_over(lifecycle, row)]


def _is_taken_over(lifecycle: Lifecycle, row: ReleaseRow) -> bool:
    try:
        check_owner(lifecycle.provenance, lifecycle.store, row.physical_name, row.store_id)
    except MismatchError as error:
        if error.code != FOREIGN:
            raise
        return True
    return False


def forget(lifecycle: Lifecycle, names: Collection[str]) -> list[ReleaseRow]:
    """Record of releases that another database has taken over that they are dropped; their collections stay.

    Args:
        names: physical collections; the others are left as they are. Call this under `exclusive`.
    """
    rows = [row for row in taken_over(lifecycle) if row.physical_name in names]
    for row in rows:
        lifecycle.provenance.releases.begin_drop(row.id)
        lifecycle.provenance.releases.finish_drop(row.id)
    return rows


def returns_to(lifecycle: Lifecycle, row: ReleaseRow) -> bool:
    """Say whether a rollback would make this release live."""
    made = lifecycle.provenance.releases.promotions(**lifecycle.place(), metric=row.metric)
    replacing = [promotion for promotion in made if promotion.kind == PROMOTE and promotion.previous_id is not None]
    return bool(replacing) and replacing[-1].previous_id == row.id and not is_undone(replacing[-1], made)


def text_encoders_in_use(provenance: Provenance) -> set[str]:
    """Return the fingerprints of the text encoders of all releases that were not dropped."""
    artifacts = provenance.artifacts
    alignments = {row.alignment_id for row in provenance.releases.find(dropped_at=None)}
    return {artifacts.encoders(artifacts.alignment(number))["text"].fingerprint for number in alignments}
