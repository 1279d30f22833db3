"""Leases: every step is done once, in the right order, and none is lost with its process."""

import platform
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from connector.errors import LeaseLostError
from connector.provenance import heartbeat
from connector.provenance.leases import BEGIN, IngestSteps
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import LeaseRow, RunRow, now
from tests.support.errors import raises

WHAT = {"corpus": "c", "collection": "things"}


def opened(provenance: Provenance, parts: int = 3) -> IngestSteps:
    """The steps of an ingest, seen by a run that goes on, on another host."""
    with provenance.runs.start("ingest", {}) as run:
        pass
    values = {"outcome": "running", "host": "far away"}
    with provenance.database.session() as session:
        session.execute(update(RunRow).where(RunRow.id == run.id).values(**values))
    return IngestSteps.join(provenance.database, WHAT, parts, Run(run.id))


def end(provenance: Provenance, steps: IngestSteps, outcome: str = "failed") -> None:
    with provenance.database.session() as session:
        session.execute(update(RunRow).where(RunRow.id == steps.run.id).values(outcome=outcome))


def do(steps: IngestSteps) -> int | None:
    step = steps.acquire()
    if step is not None:
        with steps.lease(step):
            pass
    return step


def test_steps_come_in_order_and_the_ingest_begins_anew_after_the_last(provenance: Provenance) -> None:
    steps = opened(provenance)
    assert [do(steps) for _ in range(6)] == [0, 1, 2, 3, 4, None]
    assert steps.open() == []
    assert opened(provenance).open() == [0, 1, 2, 3, 4]


def test_nothing_is_leased_before_the_first_step_is_done(provenance: Provenance) -> None:
    first, second = opened(provenance), opened(provenance)
    assert first.acquire() == BEGIN
    assert second.acquire() is None


def test_the_last_step_is_leased_when_all_parts_are_done(provenance: Provenance) -> None:
    first, second = opened(provenance), opened(provenance)
    assert [do(first), do(first), do(first)] == [0, 1, 2]
    assert first.acquire() == 3
    assert second.acquire() is None
    assert provenance.runs.ingests_in_parts() == [{"steps": 5, "done": 3, "claimed": 1, "open": 1}]


def test_a_lease_ends_with_its_run(provenance: Provenance) -> None:
    first, second = opened(provenance), opened(provenance)
    assert first.acquire() == 0
    end(provenance, first)
    assert second.acquire() == 0


def test_a_lease_ends_with_a_killed_process_of_this_host(provenance: Provenance) -> None:
    first, second = opened(provenance), opened(provenance)
    assert first.acquire() == 0
    with provenance.database.session() as session:
        session.execute(update(RunRow).where(RunRow.id == first.run.id).values(host=platform.node(), pid=2**22 + 1))
    assert second.acquire() == 0
    with provenance.database.session() as session:
        assert session.get_one(RunRow, first.run.id).outcome == "killed"


def test_a_step_of_a_process_that_is_gone_counts_as_open(provenance: Provenance) -> None:
    first = opened(provenance)
    assert first.acquire() == 0
    (before,) = provenance.runs.ingests_in_parts()
    with provenance.database.session() as session:
        session.execute(update(RunRow).where(RunRow.id == first.run.id).values(host=platform.node(), pid=2**22 + 1))
    (after,) = provenance.runs.ingests_in_parts()
    assert (before["claimed"], after["claimed"], after["open"]) == (1, 0, before["open"] + 1)


def test_a_lease_without_heartbeats_is_taken_over_and_its_process_gets_an_error(
    provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(provenance), opened(provenance)
    assert first.acquire() == 0
    assert second.acquire() is None
    long_ago = now() - timedelta(seconds=heartbeat.LEASE_SECONDS + 60)
    with provenance.database.session() as session:
        session.execute(update(LeaseRow).values(heartbeat_at=long_ago))
    assert second.acquire() == 0
    monkeypatch.setattr(heartbeat, "LEASE_SECONDS", 0.04)

    def work() -> None:
        with first.lease(0) as lease:
            for _ in range(1000):
                time.sleep(0.01)
                lease.raise_if_lost()

    with raises(LeaseLostError, "step 0"):
        work()


def test_a_process_sends_heartbeats_while_it_works(provenance: Provenance, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = opened(provenance)
    assert steps.acquire() == 0
    with provenance.database.session() as session:
        session.execute(update(LeaseRow).values(heartbeat_at=now() - timedelta(days=1)))
    monkeypatch.setattr(heartbeat, "LEASE_SECONDS", 0.04)
    with steps.lease(0):
        for _ in range(1000):
            time.sleep(0.01)
            with provenance.database.session() as session:
                sent = session.scalars(select(LeaseRow.heartbeat_at).where(LeaseRow.step == 0)).one()
            if sent is not None and sent > now() - timedelta(minutes=1):
                break
        else:
            pytest.fail("no heartbeat")


def test_a_lease_ends_when_its_run_sends_no_heartbeats(provenance: Provenance) -> None:
    first, second = opened(provenance), opened(provenance)
    assert first.acquire() == 0
    long_ago = now() - timedelta(seconds=heartbeat.LEASE_SECONDS + 60)
    with provenance.database.session() as session:
        session.execute(update(RunRow).where(RunRow.id == first.run.id).values(heartbeat_at=long_ago))
    assert second.acquire() == 0


def test_a_released_step_is_free_and_can_be_skipped(provenance: Provenance) -> None:
    steps = opened(provenance)
    assert do(steps) == 0
    assert steps.acquire() == 1
    steps.release(1)
    assert steps.acquire(skip={1}) == 2


def test_many_at_once_take_every_step_once(provenance: Provenance) -> None:
    first = opened(provenance, 12)
    assert do(first) == 0
    everybody = [first, *(opened(provenance, 12) for _ in range(3))]

    def take_all(steps: IngestSteps) -> list[int]:
        taken = []
        while (step := steps.acquire()) is not None:
            taken.append(step)
        return taken

    with ThreadPoolExecutor(4) as threads:
        taken = [step for steps in threads.map(take_all, everybody) for step in steps]
    assert sorted(taken) == list(range(1, 13))


def test_another_number_of_parts_is_another_ingest(provenance: Provenance) -> None:
    first, second = opened(provenance, 2), opened(provenance, 3)
    assert first.acquire() == second.acquire() == BEGIN
