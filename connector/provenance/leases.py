"""Claims in SQL: several processes, on one machine or many, share the steps of one ingest.

An ingest in N parts has the steps

    0          begin: create the releases
    1 ... N    the parts, in any order and at the same time
    N + 1      finish: verify the releases and make them live

PostgreSQL locks the row that a process claims, and others pass over it (FOR UPDATE SKIP LOCKED). SQLite has one writer
at a time: a claim waits until the one before is written, which is milliseconds. A claim ends with its run: on the same
host as soon as anybody asks, from another one when nothing was heard of it for `LEASE` seconds.

By the same means one process at a time changes which releases of a collection are live: see `switching`.
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event, Thread
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, text, update
from sqlalchemy.orm import Session

from connector.errors import ClaimHeldError, ClaimLostError, ProvenanceError
from connector.progress import say
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run, mark_killed
from connector.provenance.tables import ClaimRow, RunRow, UtcDateTime

LEASE = 120.0  # seconds; a process is heard of four times in between
PATIENCE = 60.0  # seconds that a switch waits for another one
POLL = 0.2
BEGIN = 0
ALONE = -1  # the one step of what is no ingest


class Lease:
    """A claim while its process lives: a thread says so in SQL again and again."""

    def __init__(self, provenance: Provenance, work: str, step: int, run_id: int):
        self.step = step
        self._provenance = provenance
        self._mine = (ClaimRow.work == work, ClaimRow.step == step, ClaimRow.run_id == run_id)
        self._failure: ProvenanceError | None = None
        self._over = Event()
        self._thread = Thread(target=self._say, daemon=True)
        self._thread.start()

    def _say(self) -> None:
        while not self._over.wait(LEASE / 4):
            try:
                self.renew()
            except ProvenanceError as error:
                self._failure = error
                return

    def renew(self) -> None:
        """Be heard of now; whoever was stopped for long finds out by this whether the claim is still his.

        Raises:
            ClaimLostError: another process has taken it over.
            ProvenanceError: the database could not be told.
        """
        with self._provenance.database.session() as session:
            heard = session.execute(update(ClaimRow).where(*self._mine).values(heard_at=_moment(session)))
        if not heard.rowcount:  # type: ignore[attr-defined]  # what an UPDATE returns has it
            what = f"step {self.step} was" if self.step != ALONE else "what this process was at has been"
            raise ClaimLostError(
                f"{what} taken over, because nothing was heard of this process for {LEASE:.0f} s; run the same command "
                "again, it takes what is left"
            )

    def forget(self) -> None:
        """Take the claim away, if it is still this process's."""
        with self._provenance.database.session() as session:
            session.execute(delete(ClaimRow).where(*self._mine))

    def require(self) -> None:
        """Raise what has ended the claim, if anything has.

        Raises:
            ClaimLostError: another process has taken it over.
            ProvenanceError: the database could not be told.
        """
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Say no more."""
        self._over.set()
        self._thread.join()


@dataclass(frozen=True, slots=True)
class Claims:
    """The steps of one ingest in `parts` parts, as `run` sees them."""

    provenance: Provenance
    work: str
    parts: int
    run: Run

    @classmethod
    def of(cls, provenance: Provenance, what: Mapping[str, Any], parts: int, run: Run) -> "Claims":
        """Join the ingest that `what` identifies, or begin it: one that is not finished goes on."""
        identity = json.dumps({**what, "parts": parts}, sort_keys=True).encode()
        claims = cls(provenance, hashlib.sha256(identity).hexdigest(), parts, run)
        with _alone(provenance) as session:
            if not session.scalar(select(func.count()).where(ClaimRow.work == claims.work)):
                steps = [{"work": claims.work, "step": step, "done": False} for step in range(parts + 2)]
                session.execute(insert(ClaimRow), steps)
        return claims

    @property
    def finish(self) -> int:
        """The last step."""
        return self.parts + 1

    def take(self, passed_over: Collection[int] = ()) -> int | None:
        """Claim a step that can be done now and that nobody has; None if there is none, but for those `passed_over`."""
        with _exclusive(self.provenance) as session:
            mark_killed(session)
            session.flush()
            moment = _moment(session)
            left = self._left(session)
            if BEGIN in left:
                left = [BEGIN]
            elif left != [self.finish]:
                left = [step for step in left if step != self.finish]
            free = or_(
                ClaimRow.run_id.is_(None),
                RunRow.outcome != "running",
                ClaimRow.heard_at < moment - timedelta(seconds=LEASE),
            )
            query = select(ClaimRow).outerjoin(RunRow, RunRow.id == ClaimRow.run_id)
            query = query.where(ClaimRow.work == self.work, ClaimRow.step.in_(set(left) - set(passed_over)), free)
            query = query.where(~ClaimRow.done).order_by(ClaimRow.step).limit(1)
            row = session.scalars(query.with_for_update(skip_locked=True, of=ClaimRow)).one_or_none()
            if row is None:
                return None
            row.run_id, row.heard_at = self.run.id, moment
            return row.step

    @contextmanager
    def holding(self, step: int) -> Iterator[Lease]:
        """Be heard of while the block works on a claimed step, and note that it is done when the block ends well.

        After the last step nothing is left to remember: the same ingest begins anew when it is run again.
        """
        held = Lease(self.provenance, self.work, step, self.run.id)
        try:
            yield held
        finally:
            held.close()
        held.require()
        if step == self.finish:
            self.forget()
            return
        with self.provenance.database.session() as session:
            session.execute(update(ClaimRow).where(*held._mine).values(done=True, run_id=None))

    def give_back(self, step: int) -> None:
        """Let others have a step that was claimed."""
        mine = (ClaimRow.work == self.work, ClaimRow.step == step, ClaimRow.run_id == self.run.id)
        with self.provenance.database.session() as session:
            session.execute(update(ClaimRow).where(*mine).values(run_id=None))

    def left(self) -> list[int]:
        """Return the steps that are not done; none once somebody has finished."""
        with self.provenance.database.session() as session:
            return self._left(session)

    def _left(self, session: Session) -> list[int]:
        query = select(ClaimRow.step).where(ClaimRow.work == self.work, ~ClaimRow.done)
        return list(session.scalars(query.order_by(ClaimRow.step)))

    def forget(self) -> None:
        """Forget what is done: the same ingest begins anew when it is run again."""
        with self.provenance.database.session() as session:
            session.execute(delete(ClaimRow).where(ClaimRow.work == self.work))


@contextmanager
def promotion_lock(
    provenance: Provenance, store_url: str, collection: str, run_id: int, *, patience: float | None = None
) -> Iterator[Lease]:
    """Let nobody else change which releases of a collection are live, or drop any, while the block does.

    Whoever is at it is waited for, `patience` or else `PATIENCE` seconds at most. What the block is going to change it
    has to read within.

    Raises:
        ClaimHeldError: another process is still at it.
    """
    what = json.dumps({"switching": collection, "store": store_url}, sort_keys=True).encode()
    work, begun, told = hashlib.sha256(what).hexdigest(), time.monotonic(), False
    while other := _taken(provenance, work, run_id):
        who = f"run {other.id}, a {other.command} on {other.host}, is changing which releases of {collection} are live"
        if time.monotonic() - begun >= (PATIENCE if patience is None else patience):
            raise ClaimHeldError(
                f"{who}: let it end, look at `modalign status {collection}`, and run the same command again if it is "
                f"still meant; one that runs no more is passed over {LEASE:.0f} s after it was last heard of"
            )
        if not told:
            say(f"{who}; waiting for it")
            told = True
        time.sleep(POLL)
    held = Lease(provenance, work, ALONE, run_id)
    try:
        yield held
    finally:
        held.close()
        with suppress(ProvenanceError):  # then it ends with the run, and what went wrong must be heard
            held.forget()


def _taken(provenance: Provenance, work: str, run_id: int) -> RunRow | None:
    """Claim `work` as a whole; return the run that has it, if one does."""
    with _alone(provenance) as session:
        mark_killed(session)
        session.flush()
        moment = _moment(session)
        row = session.scalars(select(ClaimRow).where(ClaimRow.work == work).with_for_update()).one_or_none()
        if row is None:
            session.add(ClaimRow(work=work, step=ALONE, run_id=run_id, done=False, heard_at=moment))
            return None
        other = session.get(RunRow, row.run_id)
        if other and other.outcome == "running" and row.heard_at and row.heard_at >= moment - timedelta(seconds=LEASE):
            return other
        row.run_id, row.heard_at = run_id, moment
        return None


@contextmanager
def _exclusive(provenance: Provenance) -> Iterator[Session]:
    """Open a transaction that, on SQLite, nobody else writes beside."""
    with provenance.database.session() as session:
        if session.get_bind().dialect.name == "sqlite":
            session.execute(text("BEGIN IMMEDIATE"))
        yield session


@contextmanager
def _alone(provenance: Provenance) -> Iterator[Session]:
    """Open a transaction that no other process begins to claim anything beside."""
    with _exclusive(provenance) as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("LOCK TABLE claim IN SHARE ROW EXCLUSIVE MODE"))
        yield session


def _moment(session: Session) -> datetime:
    """Return the time by the database's clock, which all machines share."""
    return session.scalars(select(func.current_timestamp(type_=UtcDateTime()))).one()
