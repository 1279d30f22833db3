"""Locks in SQL: one process, on one machine or many, does something at a time.

A lock is a lease, which ends with its run. Processes on the same host notice that at once. Processes on other hosts
notice it when the run, or the lease, had no heartbeat for `connector.provenance.heartbeat.LEASE_SECONDS`. See
`promotion_lock`, `creation_lock`, `repair_lock`, `orphan_lock`, and for what is in object storage `set_lock` and
`fit_lock`.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select, update

from alignment.errors import AlignmentError, SetBusyError
from alignment.object_storage import is_remote
from connector.errors import LeaseHeldError, LeaseLostError, ProvenanceError
from connector.provenance import heartbeat
from connector.provenance.database import Database
from connector.provenance.heartbeat import Heartbeat, database_now
from connector.provenance.runs import mark_killed
from connector.provenance.tables import LOCK_STEP, LeaseRow, RunRow
from connector.states import RunOutcome

_log = logging.getLogger(__name__)

LOCK_TIMEOUT_SECONDS = 60.0  # how long a process waits for another one
POLL_SECONDS = 0.2


class Lease:
    """A lease of a lock while its process lives. A thread sends heartbeats."""

    def __init__(self, database: Database, job: str, run_id: int):
        self._database = database
        self._mine = (LeaseRow.job == job, LeaseRow.step == LOCK_STEP, LeaseRow.run_id == run_id)
        self._heartbeat = Heartbeat(self.heartbeat)

    def heartbeat(self) -> None:
        """Refresh the heartbeat.

        Raises:
            LeaseLostError: another process has taken the lease over, because this one was stopped for too long.
            ProvenanceError: the database cannot be reached.
        """
        with self._database.session() as session:
            refreshed = session.execute(update(LeaseRow).where(*self._mine).values(heartbeat_at=database_now(session)))
        if not refreshed.rowcount:  # type: ignore[attr-defined]  # the result of an UPDATE has it
            raise LeaseLostError(
                "the lock was taken over by another process, because this one sent no heartbeat for "
                f"{heartbeat.LEASE_SECONDS:.0f} s; run the same command again, it does what is left"
            )

    def raise_if_lost(self) -> None:
        """Raise what ended the lease, if anything has. Does not ask the database.

        Raises:
            LeaseLostError: another process has taken the lease over.
            ProvenanceError: a heartbeat could not be sent.
        """
        if self._heartbeat.failure:
            raise self._heartbeat.failure

    def close(self) -> None:
        """Stop sending heartbeats."""
        self._heartbeat.close()

    def remove(self) -> None:
        """Remove the row of the lease, if this process still holds it."""
        with self._database.session() as session:
            session.execute(delete(LeaseRow).where(*self._mine))


def promotion_lock(
    database: Database, store_id: int, collection: str, run_id: int, *, timeout: float | None = None
) -> AbstractContextManager[Lease]:
    """Let no other process change which releases of a collection are live, or drop any, during the block.

    Read what the block changes inside the block. Args and errors: see `_lock`.
    """
    identity: dict[str, str | int] = {"promotion": collection, "store": store_id}
    return _lock(database, identity, run_id, f"changing which releases of {collection} are live", timeout)


def creation_lock(database: Database, store_id: int, name: str, run_id: int) -> AbstractContextManager[Lease]:
    """Let no other process create the collection `name`, or take its creation back, during the block."""
    return _lock(database, {"creating": name, "store": store_id}, run_id, f"creating collection {name}")


def repair_lock(database: Database, store_id: int, run_id: int) -> AbstractContextManager[Lease]:
    """Let no other process delete items from a store or repair its releases during the block."""
    return _lock(database, {"repair": store_id}, run_id, "deleting items or repairing releases of this store")


def orphan_lock(database: Database, store_id: int, run_id: int) -> AbstractContextManager[Lease]:
    """Let no push into a store begin during the block: whoever deletes orphans does not see what it will write.

    A push has its run recorded before it takes the lock for a moment. So either it waits, or whoever holds the lock
    finds it among the writers.
    """
    return _lock(database, {"orphans": store_id}, run_id, "deleting orphans of this store")


def set_lock(database: Database, path: Path, run_id: int) -> AbstractContextManager[Callable[[], None]] | None:
    """Return the lock for writing the embedding set at a URL; None: on disk the writer locks a file."""
    return _set_lock(database, path, run_id) if is_remote(path) else None


@contextmanager
def _set_lock(database: Database, path: Path, run_id: int) -> Iterator[Callable[[], None]]:
    """Let no other process write the embedding set at a URL during the block; yield what raises once that is lost.

    Raises:
        SetBusyError: another process is writing it.
    """
    with ExitStack() as held:
        try:
            lock = _lock(database, {"set": str(path)}, run_id, f"writing embedding set {path}", timeout=0)
            lease = held.enter_context(lock)
        except LeaseHeldError as error:
            raise SetBusyError(str(error)) from error
        yield lease.raise_if_lost


@contextmanager
def fit_lock(database: Database, path: Path, run_id: int) -> Iterator[None]:
    """Let no other process fit the alignment at a URL during the block.

    Raises:
        AlignmentError: another process is fitting it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(_lock(database, {"fit": str(path)}, run_id, f"fitting {path}", timeout=0))
        except LeaseHeldError as error:
            raise AlignmentError(str(error)) from error
        yield


@contextmanager
def _lock(
    database: Database, identity: Mapping[str, str | int], run_id: int, doing: str, timeout: float | None = None
) -> Iterator[Lease]:
    """Let no other process hold the lock `identity` during the block.

    Args:
        database: where locks are held.
        identity: of the lock.
        run_id: the run that holds it.
        doing: what its holder does, for people.
        timeout: seconds to wait for a process that has the lock; None: `LOCK_TIMEOUT_SECONDS`.

    Raises:
        LeaseHeldError: another process still has the lock.
    """
    job, started, announced = _digest(identity), time.monotonic(), False
    while other := _holder_unless_acquired(database, job, run_id):
        who = f"run {other.id}, a {other.command} on {other.host}, is {doing}"
        if time.monotonic() - started >= (LOCK_TIMEOUT_SECONDS if timeout is None else timeout):
            raise LeaseHeldError(
                f"{who}: wait until it ends, look at `modalign status`, and run the same command again if it is still "
                f"needed; a process that died loses the lock {heartbeat.LEASE_SECONDS:.0f} s after its last heartbeat"
            )
        if not announced:
            _log.info("%s; waiting for it", who)
            announced = True
        time.sleep(POLL_SECONDS)
    held = Lease(database, job, run_id)
    try:
        yield held
    finally:
        held.close()
        with suppress(ProvenanceError):  # the lock ends with the run in any case; an error of the block must be seen
            held.remove()


def _holder_unless_acquired(database: Database, job: str, run_id: int) -> RunRow | None:
    """Acquire the lock `job`; return the run that holds it instead, if one does."""
    with database.write_session(LeaseRow) as session:
        mark_killed(session)
        session.flush()
        moment = database_now(session)
        row = session.scalars(select(LeaseRow).where(LeaseRow.job == job).with_for_update()).one_or_none()
        if row is None:
            session.add(LeaseRow(job=job, step=LOCK_STEP, run_id=run_id, done=False, heartbeat_at=moment))
            return None
        other = session.get(RunRow, row.run_id)
        oldest = moment - timedelta(seconds=heartbeat.LEASE_SECONDS)
        if other and other.outcome == RunOutcome.RUNNING and row.heartbeat_at and row.heartbeat_at >= oldest:
            return other
        row.run_id, row.heartbeat_at = run_id, moment
        return None


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
