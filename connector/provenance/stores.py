"""Stores in SQL: their uids, and the addresses by which they were reached."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4
from weakref import WeakKeyDictionary

from sqlalchemy import func, select, update

from connector.provenance.database import Database
from connector.provenance.tables import StoreAddressRow, StoreRow

PORTS = {"http": 6333, "https": 6333, "grpc": 6334, "grpcs": 6334}
NO_STORE = 0  # the id of a store that SQL does not know


class Stores:
    """The stores in SQL. `connector.releases.store_identity` says which of them a `Store` is.

    Attributes:
        resolved: the id of each `Store` object, once it is known.
    """

    def __init__(self, database: Database):
        self._database = database
        self.resolved: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def ids(self) -> dict[str, int]:
        """Return the id of each store by its uid; of one that was merged, the id of the other."""
        query = select(StoreRow.uid, func.coalesce(StoreRow.merged_into_id, StoreRow.id))
        with self._database.session() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def is_claimed(self, store_id: int) -> bool:
        """Say whether a collection has the uid of a store in its metadata."""
        with self._database.session() as session:
            return session.get_one(StoreRow, store_id).claimed

    def mark_claimed(self, store_id: int) -> None:
        """Record that a collection has the uid of a store in its metadata."""
        with self._database.session() as session:
            session.execute(update(StoreRow).where(StoreRow.id == store_id).values(claimed=True))

    def uid(self, store_id: int) -> str:
        """Return the uid of a store."""
        with self._database.session() as session:
            return session.get_one(StoreRow, store_id).uid

    def addresses(self) -> dict[str, int]:
        """Return the store of each address, the newest address last."""
        query = select(StoreAddressRow.address, StoreAddressRow.store_id).order_by(StoreAddressRow.id)
        with self._database.session() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def address(self, store_id: int) -> str:
        """Return the newest address of a store, for people; its uid if it has none."""
        query = select(StoreAddressRow.address).where(StoreAddressRow.store_id == store_id)
        with self._database.session() as session:
            newest = session.scalars(query.order_by(StoreAddressRow.id.desc())).first()
            return newest or (session.get_one(StoreRow, store_id).uid if store_id else "")

    def at(self, addresses: Iterable[str]) -> list[int]:
        """Return the stores that were reached by these addresses, however they were spelled."""
        wanted = {self._spelled(address) for address in addresses}
        return sorted({store_id for known, store_id in self.addresses().items() if self._spelled(known) in wanted})

    def record(self, address: str, store_id: int = NO_STORE) -> int:
        """Record that a store was reached by an address, which may have been another one's before; return its id.

        Args:
            address: of the store, without secrets.
            store_id: of the store; `NO_STORE`: the one that has this address, or else a new one.
        """
        stored = self._database.stored(address)
        with self._database.write_session(StoreRow, StoreAddressRow) as session:
            known = session.scalars(select(StoreAddressRow).where(StoreAddressRow.address == stored)).one_or_none()
            if known is not None and store_id in (NO_STORE, known.store_id):
                return known.store_id
            if known is not None:
                session.delete(known)
                session.flush()
            if store_id == NO_STORE:
                row = StoreRow(uid=uuid4().hex)
                session.add(row)
                session.flush()
                store_id = row.id
            session.add(StoreAddressRow(store_id=store_id, address=stored))
        return store_id

    def _spelled(self, address: str) -> str:
        """Return an address in one of its spellings: ports named, no user, no slash at its end, links followed."""
        if address.startswith("edge:"):
            return f"edge:{self._database.located(address.removeprefix('edge:')).resolve()}"
        try:
            parts = urlsplit(address)
            port = parts.port or PORTS[parts.scheme]
        except (ValueError, KeyError):  # of a store that somebody added
            return address
        return f"{parts.scheme}://{parts.hostname}:{port}{parts.path.rstrip('/')}"
