"""Leases of locks: a process that works keeps its own. tests/connector/releases/test_promotion_lock.py has the rest."""

import time
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from connector.provenance import heartbeat
from connector.provenance.leases import promotion_lock
from connector.provenance.recorder import Provenance
from connector.provenance.tables import LeaseRow, RunRow, now


def started(provenance: Provenance) -> int:
    """A run that goes on, on another host."""
    with provenance.runs.start("promote", {}) as run:
        pass
    with provenance.database.session() as session:
        values = {"outcome": "running", "host": "far away"}
        session.execute(update(RunRow).where(RunRow.id == run.id).values(**values))
    return run.id


def beat_at(provenance: Provenance, moment_ago: timedelta) -> None:
    with provenance.database.session() as session:
        session.execute(update(LeaseRow).values(heartbeat_at=now() - moment_ago))


def test_a_process_sends_heartbeats_while_it_works(provenance: Provenance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LEASE_SECONDS", 0.04)
    with promotion_lock(provenance.database, 1, "things", started(provenance)):
        beat_at(provenance, timedelta(days=1))
        for _ in range(1000):
            time.sleep(0.01)
            with provenance.database.session() as session:
                sent = session.scalars(select(LeaseRow.heartbeat_at)).one()
            if sent is not None and sent > now() - timedelta(minutes=1):
                break
        else:
            pytest.fail("no heartbeat")
