"""Making one store in SQL of two that are one server."""

from dataclasses import dataclass

from alignment.plurals import counted
from connector.errors import MismatchError, SettingsError
from connector.provenance.leases import repair_lock
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.store_merge import merge_stores
from connector.provenance.stores import NO_STORE
from connector.provenance.tables import ReleaseRow
from connector.releases.aliases import alias_name
from connector.releases.store_identity import claiming_stores, here, may_be_here
from connector.stores.contract import Store


@dataclass(frozen=True, slots=True)
class StoreMerge:
    """Stores of SQL that are to become the one that a `Store` is.

    Attributes:
        target: their store from then on; `NO_STORE`: that of the first of the sources.
        sources: without the target.
        rows: releases of the sources that were not dropped.
        address: of the `Store`.
    """

    target: int
    sources: list[int]
    rows: list[ReleaseRow]
    address: str

    def __str__(self) -> str:
        names = ", ".join(sorted({row.physical_name for row in self.rows})) or "none"
        return f"{counted(len(self.rows), 'release')} ({names}) into the store at {self.address}"


def find_merge(provenance: Provenance, store: Store, address: str) -> StoreMerge:
    """Return which stores SQL knows at `address`, or by that uid, that are to become the one that `store` is.

    Raises:
        SettingsError: SQL knows no store there.
        MismatchError: collections say that they are two servers.
    """
    known = provenance.stores.at([address]) or [id_ for uid, id_ in provenance.stores.ids().items() if uid == address]
    if not known:
        shown = ", ".join(provenance.stores.addresses()) or "none"
        raise SettingsError(f"SQL knows no store at {address!r}; it knows {shown}")
    target = here(provenance, store)
    sources = [store_id for store_id in known if store_id != target]
    rows = [row for id_ in sources for row in provenance.releases.find(store_id=id_, dropped_at=None)]
    present, claiming = set(store.collections()), claiming_stores(provenance, store)
    for store_id in sources:
        of_store = [row for row in rows if row.store_id == store_id]
        silent = may_be_here(provenance, store_id) and present & {row.physical_name for row in of_store}
        if of_store and not silent and store_id not in claiming:
            raise MismatchError(
                f"the store at {address} is another server than {store.url}: expected here one of its collections "
                f"{', '.join(sorted(row.physical_name for row in of_store))}, or none that says whose it is; reach it "
                "by that address once, so that SQL learns where it is"
            )
    return StoreMerge(target, sources, rows, store.url)


def merge(provenance: Provenance, store: Store, found: StoreMerge, run: Run) -> int:
    """Carry out a merge; return the store that has all releases then."""
    target, sources = found.target, list(found.sources)
    if target == NO_STORE and sources:
        target = provenance.stores.record(store.url, sources.pop(0))
    aliases = store.aliases()
    rows = [row for id_ in (target, *sources) for row in provenance.releases.find(store_id=id_)]
    named = {row.physical_name: aliases.get(alias_name(row.collection, row.metric)) for row in rows}
    served = {name: target_name == name for name, target_name in named.items() if target_name is not None}
    for source in sources:
        with repair_lock(provenance.database, source, run.id), repair_lock(provenance.database, target, run.id):
            merge_stores(provenance.database, source, target, served)
    provenance.stores.resolved.pop(store, None)
    return target
