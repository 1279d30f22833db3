"""Runs: one execution of a command, its counts, its rejects and what it gives back."""

import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from connector.provenance.tables import RejectRow, RunRow, now
from connector.rejects import Reject

if TYPE_CHECKING:
    from connector.provenance.recorder import Provenance


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class RunResult(Generic[T_co]):
    """What a run that ended well gives back: its number in SQL, its counts, and its value."""

    run: int
    counts: Mapping[str, int]
    value: T_co


STARTED = now()  # of this process, as good as
REJECTS_A_COMMIT = 256
# Commands that write into releases.
WRITING = ("push", "ingest", "delete", "repair")
LONGEST_DETAIL = 2000  # characters of an error or a reject's detail that are kept


@dataclass(slots=True)
class Run:
    """One execution of a command, while it runs. Hand refused items to `reject`.

    Count in `counts`, and by `count` what stages that overlap count under one name.
    """

    id: int
    counts: Counter[str] = field(default_factory=Counter)
    _provenance: "Provenance | None" = None
    _rejects: list[RejectRow] = field(default_factory=list)
    _counting: Lock = field(default_factory=Lock)

    def count(self, name: str, number: int) -> None:
        """Add `number` to a count, from any thread."""
        with self._counting:
            self.counts[name] += number

    def reject(self, refused: Reject) -> None:
        """Record a refused item."""
        row = RejectRow(run_id=self.id, **asdict(refused))
        row.detail = row.detail[:LONGEST_DETAIL]
        with self._counting:
            self.counts["rejected"] += 1
            self._rejects.append(row)
            if len(self._rejects) >= REJECTS_A_COMMIT:
                self._write()

    def flush(self) -> None:
        """Write the rejects that were collected."""
        with self._counting:
            self._write()

    def _write(self) -> None:
        if self._rejects and self._provenance:
            with self._provenance.session() as session:
                session.add_all(self._rejects)
            self._rejects = []


def mark_killed(session: Session) -> None:
    """Say of the runs on this host whose process has gone that they were killed."""
    host, pid = platform.node(), os.getpid()
    for other in session.scalars(select(RunRow).where(RunRow.outcome == "running", RunRow.host == host)):
        # Containers give every process the same number: a run of ours that is older than we are is not ours.
        if not _alive(other.pid) or (other.pid == pid and other.started_at < STARTED):
            other.outcome, other.finished_at = "killed", now()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
