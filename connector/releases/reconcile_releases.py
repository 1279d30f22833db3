"""Reconcile all releases of a collection, or of a home."""

import logging

from alignment.errors import ModalignError
from connector.errors import ProvenanceError, StoreBusyError, StoreUnavailableError
from connector.progress import progress
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.releases.promotion import Lifecycle
from connector.releases.reconcile import ReconcileReport, reconcile
from connector.releases.release import LIVE, READY, load_release
from connector.stores.contract import Store

_log = logging.getLogger(__name__)


def reconcile_releases(
    provenance: Provenance,
    store: Store,
    collection: str | None = None,
    *,
    device: str = "auto",
    repair: Run | None = None,
    delete_orphans: bool = False,
) -> list[ReconcileReport]:
    """Reconcile the live and ready releases, of `collection` or of all; see `reconcile`.

    A release that cannot be compared, because its alignment is gone say, is reported as `broken`. Those in other
    stores are named in a warning.

    Raises:
        CollectionNotFoundError: there is no release of `collection`.
        StoreUnavailableError, StoreBusyError, ProvenanceError: a database cannot be used.
    """
    if collection is None:
        rows = provenance.releases.find(store_url=provenance.database.stored(store.url))
    else:
        rows = Lifecycle(provenance, store, collection).rows()
    if repair is None:
        _name_others(provenance, store, collection)
    reports = []
    for row in rows:
        if row.state not in (LIVE, READY):
            continue
        try:
            release = load_release(provenance, store, row, device=device)
            with progress(f"verify {release.name}", row.points, "rows") as advance:
                report = reconcile(
                    release, store, provenance, advance=advance, repair=repair, delete_orphans=delete_orphans
                )
        except (StoreUnavailableError, StoreBusyError, ProvenanceError):  # not the fault of the release
            raise
        except ModalignError as error:
            report = ReconcileReport(row.physical_name, broken=str(error))
        reports.append(report)
    return reports


def _name_others(provenance: Provenance, store: Store, collection: str | None) -> None:
    here = provenance.database.stored(store.url)
    for row in provenance.releases.find(**({} if collection is None else {"collection": collection})):
        if row.state in (LIVE, READY) and row.store_url != here:
            _log.warning(
                "release %s (%s) is in the store %s and was not compared; run `modalign verify` on that store too",
                row.physical_name,
                row.state,
                row.store_url,
            )
