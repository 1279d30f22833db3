"""Which store of SQL a `Store` is, by whatever address it was reached.

A collection's metadata say of which store and release it is. The uid of a store is random and in one database alone, so
it tells databases apart, too. Collections of older versions do not say it: they are found by their names and by the
address of the store, and say it after the next write.

Reading records nothing. Commands that write call `record_store` first, which also records a new address.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignment.names import names_there
from connector.errors import AccessDeniedError, CollectionNotFoundError, MismatchError, StoreUnavailableError
from connector.provenance.recorder import Provenance
from connector.provenance.stores import NO_STORE
from connector.provenance.tables import ReleaseRow
from connector.safe_text import split_urls

if TYPE_CHECKING:
    from connector.stores.contract import Store

OWNER = "modalign_release"  # in the metadata of a collection: its store and its release in SQL
FOREIGN, TWICE = "collection-of-another-database", "store-known-twice"

_log = logging.getLogger(__name__)


def here(provenance: Provenance, store: "Store") -> int:
    """Return the id of a store in SQL; `NO_STORE`: SQL does not know it."""
    if (known := provenance.stores.resolved.get(store)) is not None:
        return known
    resolved = _resolve(provenance, store)
    if resolved != NO_STORE:
        provenance.stores.resolved[store] = resolved
    return resolved


def record_store(provenance: Provenance, store: "Store", *, take_over: bool = False) -> int:
    """Return the id of a store in SQL; record the store and its address first, if they are new.

    Args:
        provenance: where it is recorded.
        store: that is going to be written.
        take_over: it is a new one, although its collections may be those of a store with another address.

    Raises:
        MismatchError: SQL does not know the address, and the collections do not say whose they are.
    """
    resolved = here(provenance, store)
    if resolved == NO_STORE and not take_over and (rows := _perhaps_here(provenance, store)):
        raise MismatchError(
            f"{store.url} has collection {rows[0].physical_name}, which does not say whose it is, and SQL knows one of "
            f"that name at {provenance.stores.address(rows[0].store_id)}: {_merging(provenance, rows[0].store_id)}; if "
            "they are two servers, take the collection over: `modalign push --take-over`",
            code=TWICE,
        )
    at = set(provenance.stores.at([store.url])) - {resolved}
    if resolved == NO_STORE or not any(may_be_here(provenance, store_id) for store_id in at):
        resolved = provenance.stores.record(store.url, resolved)
        provenance.stores.resolved[store] = resolved
    return resolved


def recorded_releases(
    provenance: Provenance, url: str, open_store: "Callable[[], Store]", collection: str, **where: Any
) -> list[ReleaseRow]:
    """Return the releases of a collection that SQL records in the store at `url`, which may be several addresses.

    At a known address SQL alone is read: a process that has an embedded store open does not block this one. Otherwise
    the store is opened, and says which one it is.
    """
    at = provenance.stores.at(split_urls(url))
    store_id = at[0] if len(at) == 1 else here(provenance, open_store())
    return provenance.releases.find(store_id=store_id, collection=collection, **where)


def elsewhere(provenance: Provenance, store: "Store", collection: str) -> str:
    """Say in which other stores SQL has releases of a collection, and how to say that one is this one; may be empty."""
    resolved = here(provenance, store)
    rows = [row for row in provenance.releases.find(collection=collection, dropped_at=None) if row.store_id != resolved]
    if not rows:
        return ""
    stores = ", ".join(sorted({provenance.stores.address(row.store_id) for row in rows}))
    hint = f"; {_merging(provenance, rows[0].store_id)}" if may_be_here(provenance, rows[0].store_id) else ""
    return f"SQL has it in the store {stores}{hint}"


def no_release(
    provenance: Provenance, store: "Store | None", collection: str, *, what: str = "release"
) -> CollectionNotFoundError:
    """Return the error that says that a collection has no release in a store, or in any, and which collections have.

    Args:
        provenance: where releases are recorded.
        store: None: any.
        collection: the name that users give.
        what: of the release that is missing.
    """
    where = {} if store is None else {"store_id": here(provenance, store)}
    rows = provenance.releases.find(dropped_at=None, **where)
    of_it = [f"{row.physical_name} ({row.state})" for row in rows if row.collection == collection]
    known = ", ".join(of_it) or names_there(collection, sorted({row.collection for row in rows}))
    place = "SQL" if store is None else f"the store {store.url}"
    other = "" if store is None or of_it else elsewhere(provenance, store, collection)
    advice = other or ("`modalign status` shows all" if of_it else "make one with `modalign push`")
    return CollectionNotFoundError(f"no {what} of collection {collection!r} in {place}; it has {known}; {advice}")


def lost_collection(provenance: Provenance, row: ReleaseRow) -> str:
    """Say that the collection of a release is gone, and which embedding sets make it anew."""
    sets = ", ".join(embedding_set.name for embedding_set in provenance.ledger.sets_in([row.id]))
    again = f"push its embedding sets again: {sets}" if sets else "nothing was recorded of it; push into it"
    return f"collection {row.physical_name} is not in the store; {again}"


def owner(provenance: Provenance, row: ReleaseRow) -> dict[str, Any]:
    """Return what a collection's metadata say of its release in SQL."""
    return {OWNER: {"store": provenance.stores.uid(row.store_id), "release": row.id}}


def check_owner(provenance: Provenance, store: "Store", name: str, store_id: int) -> bool:
    """Say whether the collection `name` says that it is of a store; one of an older version says nothing.

    Raises:
        MismatchError: another database claims it, or another store of this one.
        CollectionNotFoundError: there is no such collection.
    """
    claim = _claim(store.metadata(name))
    if claim is None:
        return False
    claiming = provenance.stores.ids().get(claim)
    if claiming is None:
        rows = provenance.releases.find(physical_name=name, store_id=store_id, dropped_at=None)
        forget = f". Otherwise let SQL forget it: `modalign drop {rows[0].collection} --taken-over`" if rows else ""
        raise MismatchError(
            f"collection {name} at {store.url} is of another modalign database, which calls this store "
            f"{claim[:8]}: work with that database, or push into a collection of another name. If that database is "
            f"lost, take the collection over: `modalign push --take-over`{forget}",
            code=FOREIGN,
        )
    if claiming != store_id:
        raise MismatchError(
            f"collection {name} at {store.url} is of the store {provenance.stores.address(claiming)}, expected "
            f"{provenance.stores.address(store_id)}: {_merging(provenance, store_id)}",
            code=TWICE,
        )
    return True


def claim_fault(provenance: Provenance, store: "Store", row: ReleaseRow) -> str | None:
    """Say that the collection of a release does not say any more whose it is, so that another database may take it.

    None: it does; or no collection of its store ever did, as before they were claimed.
    """
    if _claim(store.metadata(row.physical_name)) is not None or not provenance.stores.is_claimed(row.store_id):
        return None
    return (
        f"collection {row.physical_name} does not say any more of which release it is; run `modalign repair "
        f"{row.collection}`"
    )


def claim_collection(provenance: Provenance, store: "Store", row: ReleaseRow, *, take_over: bool = False) -> None:
    """Let the collection of a release say that it is this one's, if it does not yet.

    Args:
        provenance: where the release is recorded.
        store: where the collection is.
        row: the release.
        take_over: also if another database claims it.

    Raises: as `check_owner`.
    """
    try:
        claimed = check_owner(provenance, store, row.physical_name, row.store_id)
    except MismatchError as error:
        if not (take_over and error.code == FOREIGN):
            raise
        _log.warning("collection %s is taken over from another database", row.physical_name)
        claimed = False
    if claimed:
        return
    try:
        store.add_metadata(row.physical_name, owner(provenance, row))
    except AccessDeniedError as error:  # points may be written with fewer rights
        if take_over:
            raise
        _log.warning("collection %s does not say of which release it is: %s", row.physical_name, error)
    else:
        provenance.stores.mark_claimed(row.store_id)


def _resolve(provenance: Provenance, store: "Store") -> int:
    """Find the store by what its collections say, then by its address."""
    rows = provenance.releases.find(dropped_at=None)
    claims, ids = _claims(provenance, store, rows), provenance.stores.ids()
    at, claiming = provenance.stores.at(store.addresses), {ids[claim] for claim in claims.values() if claim in ids}
    silent = {row.store_id for row in rows if row.store_id in at and claims.get(row.physical_name, "") is None}
    found = claiming | silent
    if not found:
        if at and len(store.addresses) > 1:
            _refuse_an_empty_one(store, [row for row in rows if row.store_id in at and row.points])
        return at[0] if at else NO_STORE
    resolved = min(found, key=lambda store_id: (store_id not in at, store_id))
    for other in sorted((found | {store_id for store_id in at if may_be_here(provenance, store_id)}) - {resolved}):
        _log.warning(
            "%s is the store %s, and SQL knows it as %s, too: %s",
            store.url,
            provenance.stores.address(resolved),
            provenance.stores.address(other),
            _merging(provenance, other),
        )
    return resolved


def _refuse_an_empty_one(store: "Store", rows: Sequence[ReleaseRow]) -> None:
    """Refuse an address at which nothing is of what SQL records, if it is one of several: the others may be its place.

    Which cluster an address is of can be compared only with one that answers.
    """
    if rows:
        raise MismatchError(
            f"{store.url} answers, and has none of the collections that SQL records at {', '.join(store.addresses)}, "
            f"such as {rows[0].physical_name}: it may be another server. Run the same command when the other addresses "
            f"answer; if {store.url} is the right one and has lost its collections, name it alone in "
            "MODALIGN_QDRANT_URL",
            code="address-of-another-store",
        )


def claiming_stores(provenance: Provenance, store: "Store") -> set[int]:
    """Return the stores of SQL that collections of a store say they are of."""
    claims, ids = _claims(provenance, store, provenance.releases.find()), provenance.stores.ids()
    return {ids[claim] for claim in claims.values() if claim in ids}


def _claims(provenance: Provenance, store: "Store", rows: Iterable[ReleaseRow]) -> dict[str, str | None]:
    """Return what the collections of these releases say, of those that are here.

    One that cannot be read now, because a node is away say, is waited for only if neither another one nor the address
    tells which store it is.
    """
    names = {row.physical_name for row in rows}
    claims: dict[str, str | None] = {}
    unreadable = []
    for name in store.collections():
        if name in names:
            try:
                claims[name] = _claim(store.metadata(name, retry=False))
            except StoreUnavailableError:
                unreadable.append(name)
            except CollectionNotFoundError:  # it was dropped meanwhile
                continue
    if not any(claims.values()):
        at_known_address = provenance.stores.at(store.addresses)
        claims |= {name: None if at_known_address else _claim(store.metadata(name)) for name in unreadable}
    return claims


def _claim(metadata: Mapping[str, Any]) -> str | None:
    """Return the uid of the store that a collection says it is of; None: it says nothing."""
    if (claim := metadata.get(OWNER)) is None:
        return None
    return str(claim.get("store")) if isinstance(claim, dict) else str(claim)


def may_be_here(provenance: Provenance, store_id: int) -> bool:
    """Say whether a store has releases of which no collection says that it is its own: its server is not known."""
    return not provenance.stores.is_claimed(store_id) and bool(
        provenance.releases.find(store_id=store_id, dropped_at=None)
    )


def _perhaps_here(provenance: Provenance, store: "Store") -> list[ReleaseRow]:
    """Return releases of other stores whose names collections have that do not say whose they are."""
    rows = [row for row in provenance.releases.find(dropped_at=None) if may_be_here(provenance, row.store_id)]
    claims = _claims(provenance, store, rows)
    return [row for row in rows if claims.get(row.physical_name, "") is None]


def _merging(provenance: Provenance, store_id: int) -> str:
    address = provenance.stores.address(store_id)
    return f"if both are one server, run `modalign db merge-stores {address}` to make them one in SQL"
