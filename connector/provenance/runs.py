"""Runs: one execution of a command, its counts, its rejects and how it ended."""

import json
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib.metadata import version
from threading import Lock
from typing import Any, Generic, TypeVar

from sqlalchemy import JSON, and_, func, or_, select, type_coerce, update
from sqlalchemy.orm import Session

from connector.errors import ProvenanceError
from connector.provenance.database import Database
from connector.provenance.heartbeat import LEASE_SECONDS, Heartbeat, database_now
from connector.provenance.tables import RejectRow, RunRow, now
from connector.rejects import Reject
from connector.safe_text import without_secrets
from connector.states import RunOutcome

REJECTS_A_COMMIT = 256
SOURCES_A_QUERY = 500
WRITING_COMMANDS = ("push", "ingest", "delete", "repair")  # those that write into releases
OF_ALL_COLLECTIONS = ("repair",)  # unless they name one
MAX_DETAIL_CHARACTERS = 2000  # of an error or a reject's detail; longer ones are cut

_OURS: set[tuple[str, int]] = set()  # the runs that this process is executing, by database

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class RunResult(Generic[T_co]):
    """What a run that ended well gives back: its number in SQL, its counts, and its value."""

    run: int
    counts: Mapping[str, int]
    value: T_co


@dataclass(frozen=True, slots=True)
class RunRejects:
    """What a run refused, in the order in which it met the items; no run where none has refused anything."""

    run: int | None
    rows: Sequence[RejectRow]


@dataclass(slots=True)
class Run:
    """One execution of a command, while it runs. Hand refused items to `reject`.

    Count in `counts`; use `count` where several threads count under one name.
    """

    id: int
    counts: Counter[str] = field(default_factory=Counter)
    _database: Database | None = None
    _rejects: list[RejectRow] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def count(self, name: str, number: int) -> None:
        """Add `number` to a count, from any thread."""
        with self._lock:
            self.counts[name] += number

    def reject(self, refused: Reject) -> None:
        """Record a refused item."""
        recorded = asdict(refused)
        del recorded["reached"]  # it is for progress
        row = RejectRow(run_id=self.id, **recorded)
        row.detail = row.detail[:MAX_DETAIL_CHARACTERS]
        with self._lock:
            self.counts["rejected"] += 1
            self._rejects.append(row)
            if len(self._rejects) >= REJECTS_A_COMMIT:
                self._write_rejects()

    def flush(self) -> None:
        """Write the collected rejects to SQL."""
        with self._lock:
            self._write_rejects()

    def _write_rejects(self) -> None:
        if self._rejects and self._database:
            with self._database.session() as session:
                session.add_all(self._rejects)
            self._rejects = []


class Runs:
    """The runs and their rejects in SQL."""

    def __init__(self, database: Database):
        self._database = database

    @contextmanager
    def start(self, command: str, parameters: Mapping[str, Any]) -> Iterator[Run]:
        """Record one execution of `command`: its parameters, its counts and how it ended, also when it raises."""
        with self._database.session() as session:
            mark_killed(session)
            row = RunRow(
                heartbeat_at=database_now(session),
                command=command,
                parameters=json.loads(json.dumps(parameters, default=str)),
                outcome=RunOutcome.RUNNING,
                counts={},
                host=platform.node(),
                pid=os.getpid(),
                version=version("modalign"),
                started_at=now(),
            )
            session.add(row)
        run = Run(row.id, _database=self._database)
        ours = (str(self._database.engine.url), row.id)
        _OURS.add(ours)
        heartbeat = Heartbeat(lambda: self._send_heartbeat(row.id))
        try:
            with closing(heartbeat):
                yield run
        except BaseException as error:
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            says = None if stopped else f"{type(error).__name__}: {error}"  # an interrupt has nothing to say
            with suppress(ProvenanceError):  # if SQL itself failed, the next run on this host marks this one killed
                self._finish(run, RunOutcome.INTERRUPTED if stopped else RunOutcome.FAILED, says)
            raise
        else:
            self._finish(run, RunOutcome.DONE, None)
        finally:
            _OURS.discard(ours)

    def _send_heartbeat(self, run_id: int) -> None:
        """Report that a run goes on; another host may have taken it for dead while its process was stopped."""
        going_on = RunRow.outcome.in_((RunOutcome.RUNNING, RunOutcome.KILLED))
        with self._database.session() as session:
            values = {
                "heartbeat_at": database_now(session),
                "outcome": RunOutcome.RUNNING,
                "finished_at": None,
                "error": None,
            }
            session.execute(update(RunRow).where(RunRow.id == run_id, going_on).values(**values))

    def _finish(self, run: Run, outcome: RunOutcome, error: str | None) -> None:
        run.flush()
        values = {"outcome": outcome, "counts": dict(run.counts), "finished_at": now()}
        values["error"] = without_secrets(error)[:MAX_DETAIL_CHARACTERS] if error else None
        with self._database.session() as session:
            session.execute(update(RunRow).where(RunRow.id == run.id).values(**values))

    def repeats_a_killed_one(self, run_id: int) -> bool:
        """Whether the last run of the same command with the same parameters was killed, or stopped by Ctrl-C.

        Runs that failed do not count: they end as they say, and leave nothing.
        """
        with self._database.session() as session:
            this = session.get_one(RunRow, run_id)
            ended = RunRow.outcome.in_((RunOutcome.DONE, RunOutcome.KILLED, RunOutcome.INTERRUPTED))
            query = select(RunRow).where(RunRow.id < run_id, RunRow.command == this.command, ended)
            earlier = session.scalars(query.order_by(RunRow.id.desc()))
            last = next((run for run in earlier if run.parameters == this.parameters), None)
        return last is not None and last.outcome != RunOutcome.DONE

    def newest(self, limit: int, collection: str | None = None) -> list[RunRow]:
        """Return the newest runs, newest first: of `collection`, among them those of all collections, or of anything.

        A run whose process is gone is `killed`, also where SQL does not say so yet. Nothing is written.
        """
        query = select(RunRow).order_by(RunRow.id.desc()).limit(limit)
        if collection is not None:
            parameters = type_coerce(RunRow.parameters, JSON)
            into, of = (parameters[name].as_string() for name in ("into", "collection"))
            of_all = and_(RunRow.command.in_(OF_ALL_COLLECTIONS), of.is_(None))
            query = query.where(or_(into == collection, of == collection, of_all))
        with self._database.session() as session:
            rows = list(session.scalars(query))
            gone = {row.id: why for row, why in _gone(session)}
        for row in rows:  # they belong to no session any more
            if row.id in gone:
                row.outcome, row.error = RunOutcome.KILLED, gone[row.id]
        return rows

    def get(self, run_id: int) -> RunRow:
        """Return a run.

        Raises:
            ProvenanceError: there is no such run.
        """
        with self._database.session() as session:
            row = session.get(RunRow, run_id)
        if row is None:
            newest = ", ".join(str(run.id) for run in reversed(self.newest(3))) or "none"
            raise ProvenanceError(
                f"there is no run {run_id}; the newest are {newest}; `modalign status` lists the runs",
                code="no-such-run",
            )
        return row

    def rejects(self, run_id: int) -> list[RejectRow]:
        """Return the items that a run refused, in the order in which it met them.

        Raises:
            ProvenanceError: there is no such run.
        """
        self.get(run_id)
        with self._database.session() as session:
            return list(session.scalars(select(RejectRow).where(RejectRow.run_id == run_id).order_by(RejectRow.id)))

    def write_rejects_of(self, sources: Sequence[str]) -> Iterator[RejectRow]:
        """Yield what all runs refused to write of the rows of these files."""
        with self._database.session() as session:
            for start in range(0, len(sources), SOURCES_A_QUERY):
                of_sources = RejectRow.source.in_(sources[start : start + SOURCES_A_QUERY])
                yield from session.scalars(select(RejectRow).where(RejectRow.stage == "write", of_sources))

    def last_with_rejects(self) -> int | None:
        """Return the number of the newest run that refused an item."""
        with self._database.session() as session:
            return session.scalar(select(func.max(RejectRow.run_id)))

    def writers(self, collection: str) -> list[RunRow]:
        """Return the runs that are writing into releases of `collection` now, as far as heartbeats tell."""
        with self._database.session() as session:
            mark_killed(session)
            query = select(RunRow).where(RunRow.outcome == RunOutcome.RUNNING, RunRow.command.in_(WRITING_COMMANDS))
            running = list(session.scalars(query.order_by(RunRow.id)))
        targets = {row.id: row.parameters.get("into", row.parameters.get("collection")) for row in running}
        # A deletion from an embedding set reaches all collections that the set was pushed into.
        return [row for row in running if row.command == "delete" or targets[row.id] in (None, collection)]


def mark_killed(session: Session) -> None:
    """Mark the runs as killed whose process is gone from this host, or sends no heartbeats any more."""
    for other, why in _gone(session):
        other.outcome, other.finished_at, other.error = RunOutcome.KILLED, now(), why


def _gone(session: Session) -> Iterator[tuple[RunRow, str | None]]:
    """Yield the running runs whose process is gone from this host; or sends no heartbeats, which is said."""
    host, pid, database = platform.node(), os.getpid(), str(session.get_bind().engine.url)
    oldest = database_now(session) - timedelta(seconds=LEASE_SECONDS)
    for other in session.scalars(select(RunRow).where(RunRow.outcome == RunOutcome.RUNNING)):
        if (database, other.id) in _OURS:
            continue
        # In containers every process may have the same number: a run of this one's that it did not start is another's.
        if other.host == host and (not _alive(other.pid) or other.pid == pid):
            yield other, other.error
        elif other.heartbeat_at is None or other.heartbeat_at < oldest:
            yield other, f"its process on host {other.host} sent no heartbeat for {LEASE_SECONDS:.0f} s"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
