"""Reconcile all releases of a collection, or of a home."""

import logging
from contextlib import ExitStack, suppress
from typing import Any

from alignment.errors import ModalignError
from alignment.plurals import counted
from connector.errors import (
    AccessDeniedError,
    MismatchError,
    ProvenanceError,
    StoreBusyError,
    StoreError,
    StoreUnavailableError,
)
from connector.progress import progress
from connector.provenance.leases import orphan_lock, promotion_lock, repair_lock
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import ReleaseRow
from connector.releases.aliases import alias_fault, alias_name, make_live
from connector.releases.point_id_set import PointIds
from connector.releases.promotion import Lifecycle
from connector.releases.reconcile import ReconcileReport, delete_orphans, reconcile
from connector.releases.release import Release, load_release
from connector.releases.rights import check_may_manage, check_may_write, present
from connector.releases.store_identity import claim_collection, claim_fault, here, record_store
from connector.states import ReleaseState
from connector.stores.contract import Store

_log = logging.getLogger(__name__)


def reconcile_releases(
    provenance: Provenance,
    store: Store,
    collection: str | None = None,
    *,
    seed: int,
    full: bool = False,
    device: str = "auto",
) -> list[ReconcileReport]:
    """Reconcile the live and ready releases, of `collection` or of all; see `reconcile`.

    A release that cannot be compared, because its alignment is gone say, is reported as `broken`. Those in other
    stores are named in a warning.

    Raises:
        CollectionNotFoundError: there is no release of `collection`.
        AccessDeniedError: the key does not show one of the releases.
        StoreUnavailableError, StoreBusyError, ProvenanceError: a database cannot be used.
    """
    _name_others(provenance, store, collection)
    rows = _rows(provenance, store, collection)
    present(store, rows)
    return [_reconcile(provenance, store, row, device, seed=seed, full=full)[1] for row in rows]


def repair_releases(
    provenance: Provenance,
    store: Store,
    run: Run,
    collection: str | None = None,
    *,
    full: bool = False,
    device: str = "auto",
    orphans: int | None = None,
) -> None:
    """Repair the live and ready releases, of `collection` or of all, from their embedding sets.

    Deletions from the store and other repairs of it wait, and while orphans are deleted pushes too.

    Args:
        provenance: where releases are recorded.
        store: where their collections are.
        run: the run that repairs; counts `repaired`, `restored` and `deleted`.
        collection: of the releases; None: all.
        full: compare all vectors, not a sample; see `reconcile`. The seed of the sample is the number of the run.
        device: where learned metrics compute.
        orphans: delete orphans, if there are exactly so many in all; None: they stay.

    Raises:
        MismatchError: there are more or fewer orphans, or another run is writing into one of the releases: its points
            may look like orphans. None is deleted; everything else is repaired.
        AccessDeniedError: the key does not show one of the releases, or may not write into it. Nothing is repaired.
        CollectionNotFoundError, StoreUnavailableError, StoreBusyError, ProvenanceError: as `reconcile_releases`.
        LeaseHeldError: another process is deleting or repairing.
    """
    rows = _rows(provenance, store, collection)
    check_may_write(store, [row.physical_name for row in present(store, rows)])
    if any(alias_fault(provenance, store, row) for row in rows):
        check_may_manage(store, "restoring aliases")
    with (
        repair_lock(provenance.database, record_store(provenance, store), run.id),
        ExitStack() as stack,
    ):
        repaired: list[tuple[Release, PointIds]] = []
        found = 0
        for row in rows:
            ids = stack.enter_context(PointIds())
            release, report = _reconcile(
                provenance, store, row, device, seed=run.id, full=full, repair=run, orphans=ids
            )
            found += report.orphans.count
            if release is not None and row.state == ReleaseState.LIVE:
                _restore_alias(provenance, store, release, run)
            if release is not None and report.orphans.count:
                repaired.append((release, ids))
        if orphans is None:
            return
        if found != orphans:
            raise MismatchError(
                f"expected {counted(orphans, 'point')} that no embedding set holds, found {found}: none was deleted; "
                "look at `modalign verify`, and name the number that it finds"
            )
        stack.enter_context(orphan_lock(provenance.database, here(provenance, store), run.id))
        for release, ids in repaired:
            _check_at_rest(provenance, release, run)
            delete_orphans(release, store, provenance, ids, run)


def _restore_alias(provenance: Provenance, store: Store, release: Release, run: Run) -> None:
    """Point the alias of a live release to it again, unless a promotion is to be finished."""
    row = release.row
    if alias_fault(provenance, store, row) is None:
        return
    with promotion_lock(provenance.database, row.store_id, row.collection, run.id):
        provenance.releases.refresh(row)  # a promotion may have ended meanwhile
        is_free = alias_name(row.collection, release.metric) not in store.collections()
        if row.state == ReleaseState.LIVE and is_free and make_live(provenance, store, [release]):
            run.counts["restored"] += 1


def _check_at_rest(provenance: Provenance, release: Release, run: Run) -> None:
    """Raise a `MismatchError` if a run other than `run` is writing into a release."""
    for writer in provenance.runs.writers(release.row.collection):
        if writer.id != run.id:
            raise MismatchError(
                f"run {writer.id}, `modalign {writer.command}` on host {writer.host}, is writing into collection "
                f"{release.row.collection}, and its points may look like orphans: none was deleted from "
                f"{release.name}; wait until it ends and run the same command again"
            )


def _rows(provenance: Provenance, store: Store, collection: str | None) -> list[ReleaseRow]:
    if collection is None:
        rows = provenance.releases.find(store_id=here(provenance, store))
    else:
        rows = Lifecycle(provenance, store, collection).rows()
    return [row for row in rows if row.state in (ReleaseState.LIVE, ReleaseState.READY)]


def _reconcile(
    provenance: Provenance, store: Store, row: ReleaseRow, device: str, **options: Any
) -> tuple[Release | None, ReconcileReport]:
    try:
        release = load_release(provenance, store, row, device=device)
        repair, unclaimed = options.get("repair"), claim_fault(provenance, store, row)
        if repair is not None:
            claim_collection(provenance, store, row)
        with progress(f"verify {release.name}", row.points, "row") as advance:
            report = reconcile(release, store, provenance, advance=advance, **options)
        if unclaimed:
            report.settings.append(unclaimed)
            # The key may not allow to restore it.
            if repair is not None and claim_fault(provenance, store, row) is None:
                repair.counts["restored"] += 1
    except (StoreUnavailableError, StoreBusyError, AccessDeniedError, ProvenanceError):  # not the fault of the release
        raise
    except ModalignError as error:
        of_broken = ReconcileReport(row.physical_name, broken=str(error))
        with suppress(StoreError):  # it may be what is broken
            of_broken.replicas = store.replica_differences(row.physical_name)
            of_broken.lost = store.lost_replicas(row.physical_name)
        return None, of_broken
    return release, report


def _name_others(provenance: Provenance, store: Store, collection: str | None) -> None:
    store_id = here(provenance, store)
    for row in provenance.releases.find(**({} if collection is None else {"collection": collection})):
        if row.state in (ReleaseState.LIVE, ReleaseState.READY) and row.store_id != store_id:
            _log.warning(
                "release %s (%s) is in the store %s and was not compared; run `modalign verify` on that store too",
                row.physical_name,
                row.state,
                provenance.stores.address(row.store_id),
            )
