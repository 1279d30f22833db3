"""Leases in SQL: several processes, on one machine or many, share the steps of one ingest.

An ingest in N parts has the steps

    0          begin: create the releases
    1 ... N    the parts, in any order and at the same time
    N + 1      finish: verify the releases and make them live

PostgreSQL locks the row that a process leases, and others skip it (FOR UPDATE SKIP LOCKED). SQLite has one writer at a
time: a process waits until the one before has written, which takes milliseconds. A lease ends with its run. Processes
on the same host notice that at once. Processes on other hosts notice it when the run, or the lease, had no heartbeat
for `connector.provenance.heartbeat.LEASE_SECONDS`.

The same table holds locks, which let one process at a time do something: see `promotion_lock`, `creation_lock`,
`repair_lock` and `orphan_lock`.
"""

import hashlib
import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from connector.errors import LeaseHeldError, LeaseLostError, ProvenanceError
from connector.provenance import heartbeat
from connector.provenance.database import Database
from connector.provenance.heartbeat import Heartbeat, database_now
from connector.provenance.runs import Run, mark_killed
from connector.provenance.tables import LOCK_STEP, LeaseRow, RunRow

_log = logging.getLogger(__name__)

LOCK_TIMEOUT_SECONDS = 60.0  # how long a process waits for another one
POLL_SECONDS = 0.2
BEGIN = 0


class Lease:
    """A lease of one step while its process lives. A thread sends heartbeats."""

    def __init__(self, database: Database, job: str, step: int, run_id: int):
        self._step = step
        self._database = database
        self._mine = (LeaseRow.job == job, LeaseRow.step == step, LeaseRow.run_id == run_id)
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
            what = "the lock" if self._step == LOCK_STEP else f"step {self._step}"
            raise LeaseLostError(
                f"{what} was taken over by another process, because this one sent no heartbeat for "
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

    def mark_done(self) -> None:
        """Record that the step is done, if this process still holds its lease."""
        with self._database.session() as session:
            session.execute(update(LeaseRow).where(*self._mine).values(done=True, run_id=None))

    def remove(self) -> None:
        """Remove the row of the lease, if this process still holds it."""
        with self._database.session() as session:
            session.execute(delete(LeaseRow).where(*self._mine))


@dataclass(frozen=True, slots=True)
class IngestSteps:
    """The steps of one ingest in `parts` parts, as `run` sees them."""

    database: Database
    job: str
    parts: int
    run: Run

    @classmethod
    def join(cls, database: Database, identity: Mapping[str, Any], parts: int, run: Run) -> "IngestSteps":
        """Join the ingest that `identity` names, or start it. An unfinished one goes on."""
        steps = cls(database, _digest({**identity, "parts": parts}), parts, run)
        with database.write_session(LeaseRow) as session:
            if not session.scalar(select(func.count()).where(LeaseRow.job == steps.job)):
                rows = [{"job": steps.job, "step": step, "done": False} for step in range(parts + 2)]
                session.execute(insert(LeaseRow), rows)
        return steps

    @property
    def finish(self) -> int:
        """The last step."""
        return self.parts + 1

    def acquire(self, skip: Collection[int] = ()) -> int | None:
        """Lease a step that can be done now and that no process holds; None if there is none apart from `skip`."""
        with self.database.write_session() as session:
            mark_killed(session)
            session.flush()
            moment = database_now(session)
            open_steps = self._open(session)
            if BEGIN in open_steps:
                open_steps = [BEGIN]
            elif open_steps != [self.finish]:
                open_steps = [step for step in open_steps if step != self.finish]
            free = or_(
                LeaseRow.run_id.is_(None),
                RunRow.outcome != "running",
                LeaseRow.heartbeat_at < moment - timedelta(seconds=heartbeat.LEASE_SECONDS),
            )
            query = select(LeaseRow).outerjoin(RunRow, RunRow.id == LeaseRow.run_id)
            query = query.where(LeaseRow.job == self.job, LeaseRow.step.in_(set(open_steps) - set(skip)), free)
            query = query.where(~LeaseRow.done).order_by(LeaseRow.step).limit(1)
            row = session.scalars(query.with_for_update(skip_locked=True, of=LeaseRow)).one_or_none()
            if row is None:
                return None
            row.run_id, row.heartbeat_at = self.run.id, moment
            return row.step

    @contextmanager
    def lease(self, step: int) -> Iterator[Lease]:
        """Send heartbeats while the block works on an acquired step. The step is done when the block ends well.

        After the last step the job is removed: the same ingest starts anew when it is run again.
        """
        held = Lease(self.database, self.job, step, self.run.id)
        try:
            yield held
        finally:
            held.close()
        held.raise_if_lost()
        if step == self.finish:
            self.forget()
        else:
            held.mark_done()

    def release(self, step: int) -> None:
        """Let other processes acquire a step that this one has acquired."""
        mine = (LeaseRow.job == self.job, LeaseRow.step == step, LeaseRow.run_id == self.run.id)
        with self.database.session() as session:
            session.execute(update(LeaseRow).where(*mine).values(run_id=None))

    def open(self) -> list[int]:
        """Return the steps that are not done. There are none once any process has finished the job."""
        with self.database.session() as session:
            return self._open(session)

    def _open(self, session: Session) -> list[int]:
        query = select(LeaseRow.step).where(LeaseRow.job == self.job, ~LeaseRow.done)
        return list(session.scalars(query.order_by(LeaseRow.step)))

    def forget(self) -> None:
        """Remove the job: the same ingest starts anew when it is run again."""
        with self.database.session() as session:
            session.execute(delete(LeaseRow).where(LeaseRow.job == self.job))


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
    held = Lease(database, job, LOCK_STEP, run_id)
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
        if other and other.outcome == "running" and row.heartbeat_at and row.heartbeat_at >= oldest:
            return other
        row.run_id, row.heartbeat_at = run_id, moment
        return None


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
