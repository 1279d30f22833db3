"""Claims: every step once, in the right order, and none lost with its process."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from connector.errors import ClaimLostError
from connector.provenance import leases as claiming
from connector.provenance.leases import BEGIN, Claims
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import ClaimRow, RunRow, now

WHAT = {"corpus": "c", "collection": "things"}


def opened(provenance: Provenance, parts: int = 3, *, host: str | None = None) -> Claims:
    """Claims of a run that goes on, on this host or on another one."""
    with provenance.runs.start("ingest", {}) as run:
        pass
    values = {"outcome": "running"} | ({"host": host} if host else {})
    with provenance.database.session() as session:
        session.execute(update(RunRow).where(RunRow.id == run.id).values(**values))
    return Claims.of(provenance, WHAT, parts, Run(run.id))


def end(provenance: Provenance, claims: Claims, outcome: str = "failed") -> None:
    with provenance.database.session() as session:
        session.execute(update(RunRow).where(RunRow.id == claims.run.id).values(outcome=outcome))


def do(claims: Claims) -> int | None:
    step = claims.take()
    if step is not None:
        with claims.holding(step):
            pass
    return step


def test_steps_come_in_order_and_the_ingest_begins_anew_after_the_last(provenance: Provenance) -> None:
    claims = opened(provenance)
    assert [do(claims) for _ in range(6)] == [0, 1, 2, 3, 4, None]
    assert claims.left() == []
    assert opened(provenance).left() == [0, 1, 2, 3, 4]


def test_nothing_is_claimed_before_the_beginning_is_done(provenance: Provenance) -> None:
    first, second = opened(provenance), opened(provenance)
    assert first.take() == BEGIN
    assert second.take() is None


def test_the_end_is_claimed_when_all_parts_are_done(provenance: Provenance) -> None:
    first, second = opened(provenance), opened(provenance)
    assert [do(first), do(first), do(first)] == [0, 1, 2]
    assert first.take() == 3
    assert second.take() is None
    assert provenance.runs.ingests_in_parts() == [{"steps": 5, "done": 3, "claimed": 1, "open": 1}]


def test_what_a_run_held_when_it_ended_is_free(provenance: Provenance) -> None:
    first, second = opened(provenance), opened(provenance)
    assert first.take() == 0
    end(provenance, first)
    assert second.take() == 0


def test_what_a_process_of_this_host_held_when_it_was_killed_is_free(provenance: Provenance) -> None:
    first, second = opened(provenance), opened(provenance)
    assert first.take() == 0
    with provenance.database.session() as session:
        session.execute(update(RunRow).where(RunRow.id == first.run.id).values(pid=2**22 + 1))
    assert second.take() == 0
    with provenance.database.session() as session:
        assert session.get_one(RunRow, first.run.id).outcome == "killed"


def test_what_nothing_was_heard_of_is_free_and_whoever_had_it_is_told(
    provenance: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(provenance, host="far away"), opened(provenance)
    assert first.take() == 0
    assert second.take() is None
    long_ago = now() - timedelta(seconds=claiming.LEASE + 60)
    with provenance.database.session() as session:
        session.execute(update(ClaimRow).values(heard_at=long_ago))
    assert second.take() == 0
    monkeypatch.setattr(claiming, "LEASE", 0.04)

    def work() -> None:
        with first.holding(0) as held:
            for _ in range(1000):
                held._over.wait(0.01)
                held.require()

    with pytest.raises(ClaimLostError, match="taken over"):
        work()


def test_a_process_is_heard_of_while_it_works(provenance: Provenance, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = opened(provenance)
    assert claims.take() == 0
    with provenance.database.session() as session:
        session.execute(update(ClaimRow).values(heard_at=now() - timedelta(days=1)))
    monkeypatch.setattr(claiming, "LEASE", 0.04)
    with claims.holding(0) as held:
        for _ in range(1000):
            held._over.wait(0.01)
            with provenance.database.session() as session:
                heard = session.scalars(select(ClaimRow.heard_at).where(ClaimRow.step == 0)).one()
            if heard is not None and heard > now() - timedelta(minutes=1):
                break
        else:
            pytest.fail("nothing was heard of it")


def test_what_is_given_back_is_free_and_can_be_passed_over(provenance: Provenance) -> None:
    claims = opened(provenance)
    assert do(claims) == 0
    assert claims.take() == 1
    claims.give_back(1)
    assert claims.take(passed_over={1}) == 2


def test_many_at_once_take_every_step_once(provenance: Provenance) -> None:
    first = opened(provenance, 12)
    assert do(first) == 0
    everybody = [first, *(opened(provenance, 12) for _ in range(3))]

    def take_all(claims: Claims) -> list[int]:
        taken = []
        while (step := claims.take()) is not None:
            taken.append(step)
        return taken

    with ThreadPoolExecutor(4) as threads:
        taken = [step for steps in threads.map(take_all, everybody) for step in steps]
    assert sorted(taken) == list(range(1, 13))


def test_another_number_of_parts_is_another_ingest(provenance: Provenance) -> None:
    first, second = opened(provenance, 2), opened(provenance, 3)
    assert first.take() == second.take() == BEGIN
