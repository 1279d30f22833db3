"""Two processes that change at once which release is live: one waits or is told, and nobody acts on what was."""

import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from connector.errors import LeaseHeldError, LeaseLostError
from connector.provenance import heartbeat, leases
from connector.provenance.leases import promotion_lock
from connector.provenance.recorder import Provenance
from connector.provenance.tables import LeaseRow, RunRow, now
from connector.releases.promotion import Lifecycle, PromotionOverride
from connector.releases.store_identity import record_store
from connector.stores.qdrant import QdrantStore
from tests.support.faulty_server import Fault, FaultyServer, Request, running
from tests.support.runner import Runner
from tests.support.world import COLLECTION, KINDS, World, opened_world, pairs

FORCED = PromotionOverride("me", "why not")
SECONDS = 60.0


def started(provenance: Provenance, command: str = "promote", **changes: Any) -> int:
    """A run that goes on, on another host."""
    with provenance.runs.start(command, {}) as run:
        pass
    with provenance.database.session() as session:
        session.execute(
            update(RunRow).where(RunRow.id == run.id).values(**{"outcome": "running", "host": "far away"} | changes)
        )
    return run.id


class TestSwitching:
    def test_another_one_is_told_who_is_at_it(self, provenance: Provenance) -> None:
        first, second = started(provenance), started(provenance)
        with promotion_lock(provenance.database, 1, "things", first):
            with (
                pytest.raises(
                    LeaseHeldError, match=rf"run {first}, a promote on .*, is changing .* of things are live"
                ),
                promotion_lock(provenance.database, 1, "things", second, timeout=0),
            ):
                raise AssertionError("both are at it")
            for other in ((1, "others"), (2, "things")):
                with promotion_lock(provenance.database, *other, second, timeout=0):
                    pass
        with promotion_lock(provenance.database, 1, "things", second, timeout=0):
            pass

    def test_it_waits_and_says_so(self, provenance: Provenance, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        first, second = started(provenance), started(provenance)
        order: list[str] = []

        def follow() -> None:
            with promotion_lock(provenance.database, 1, "things", second):
                order.append("second")

        thread = threading.Thread(target=follow)
        with promotion_lock(provenance.database, 1, "things", first):
            thread.start()
            thread.join(3 * leases.POLL_SECONDS)
            assert thread.is_alive()
            order.append("first")
        thread.join(SECONDS)
        assert order == ["first", "second"]
        assert sum("waiting for it" in message for message in caplog.messages) == 1

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_it_is_free_after_a_failure(self, provenance: Provenance, error: type[BaseException]) -> None:
        first, second = started(provenance), started(provenance)
        with pytest.raises(error), promotion_lock(provenance.database, 1, "things", first):
            raise error
        with promotion_lock(provenance.database, 1, "things", second, timeout=0):
            pass

    @pytest.mark.parametrize(
        "values", [{"outcome": "failed"}, {"host": platform.node(), "pid": 2**22 + 1}], ids=["ended", "killed"]
    )
    def test_what_a_dead_process_was_at_is_free(self, provenance: Provenance, values: dict[str, Any]) -> None:
        first, second = started(provenance), started(provenance)
        dead = promotion_lock(provenance.database, 1, "things", first)
        dead.__enter__()
        with provenance.database.session() as session:
            session.execute(update(RunRow).where(RunRow.id == first).values(**values))
        with promotion_lock(provenance.database, 1, "things", second, timeout=0):
            pass
        dead.__exit__(None, None, None)

    def test_whoever_was_stopped_for_long_finds_out_before_it_acts(self, provenance: Provenance) -> None:
        first, second = started(provenance), started(provenance)
        with promotion_lock(provenance.database, 1, "things", first) as held:
            held.heartbeat()
            long_ago = now() - timedelta(seconds=heartbeat.LEASE_SECONDS + 5)
            with provenance.database.session() as session:
                session.execute(update(LeaseRow).values(heartbeat_at=long_ago))
            with promotion_lock(provenance.database, 1, "things", second, timeout=0):
                with pytest.raises(LeaseLostError, match="the lock was taken over"):
                    held.heartbeat()
                held.remove()  # is not what the other one holds
                with provenance.database.session() as session:
                    assert session.scalars(select(LeaseRow.run_id)).all() == [second]


@pytest.mark.parametrize("kind", KINDS)
class TestPushes:
    @pytest.fixture
    def world(self, kind: str, tmp_path: Path) -> Iterator[World]:
        with opened_world(kind, tmp_path) as opened:
            opened.alignment()
            opened.alignment("b", turn=1)
            yield opened

    @pytest.mark.slow
    def test_a_push_takes_no_promotion_back_that_came_meanwhile(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = world.push(world.set("s", *pairs(6))).releases[0]
        shadow = world.push(world.set("s", *pairs(6)), "b").releases[0]
        upsert: Callable[..., None] = world.store.upsert
        lifecycle = Lifecycle(world.provenance, world.store, COLLECTION)

        def promoting(*args: Any) -> None:
            if world.states()[old.name][0] == "live":
                with world.provenance.runs.start("promote", {}) as run:
                    lifecycle.promote(run.id, forced=FORCED)
            upsert(*args)

        monkeypatch.setattr(world.store, "upsert", promoting)
        world.push(world.set("t", *pairs(3, prefix="t")))
        assert world.states() == {old.name: ("retired", 18), shadow.name: ("live", 18)}
        assert world.store.aliases() == {f"{COLLECTION}.cosine": shadow.name}

    @pytest.mark.slow
    def test_a_push_makes_nothing_live_while_somebody_switches(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "LOCK_TIMEOUT_SECONDS", 0.0)
        place = record_store(world.provenance, world.store), COLLECTION
        with (
            promotion_lock(world.provenance.database, *place, started(world.provenance)),
            pytest.raises(LeaseHeldError, match="is changing which releases of things are live"),
        ):
            world.push(world.set("s", *pairs(6)))
        assert world.store.aliases() == {}
        (live,) = world.push(world.set("s", *pairs(6))).releases
        with promotion_lock(world.provenance.database, *place, started(world.provenance)):
            world.push(world.set("s", *pairs(7)))  # is live: there is nothing to wait for
        assert world.states() == {live.name: ("live", 14)}


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
class TestTwoProcesses:
    """The first one is stopped after it has read what is live, and before it has said what is going to be."""

    @pytest.fixture
    def server(self) -> Iterator[FaultyServer]:
        with running(FaultyServer()) as server:
            yield server

    @pytest.fixture
    def world(self, server: FaultyServer, tmp_path: Path) -> Iterator[World]:
        with QdrantStore.connect(server.url) as store:
            world = World(tmp_path / "home", store)
            with world.provenance:
                for turn, name in enumerate("abc"):
                    world.push(world.set("s", *pairs(6)), world.alignment(name, turn=turn))
                yield world

    @pytest.fixture
    def names(self, world: World) -> list[str]:
        return [row.physical_name for row in world.provenance.releases.find()]

    @pytest.fixture
    def stopped(self, server: FaultyServer, names: list[str]) -> tuple[threading.Event, threading.Event]:
        """Stops whoever counts the second release, once: `reached` says so, `go` lets it go on."""
        reached, go = threading.Event(), threading.Event()

        def stopping(request: Request) -> Fault | None:
            if request.path == f"/collections/{names[1]}/points/count" and not reached.is_set():
                reached.set()
                assert go.wait(SECONDS)
            return None

        server.fail = stopping
        return reached, go

    def promoting(self, world: World, server: FaultyServer, name: str) -> list[str]:
        return ["promote", COLLECTION, "--release", name, "--force", "--reason", "x", *self.where(world, server)]

    def where(self, world: World, server: FaultyServer) -> list[str]:
        return ["--home", str(world.home), "--qdrant-url", server.url]

    def history(self, world: World) -> list[tuple[str, str, str | None, bool]]:
        names = {row.id: row.physical_name for row in world.provenance.releases.find()}
        return [
            (p.kind, names[p.release_id], names.get(p.previous_id or 0), p.finished_at is not None)
            for p in world.provenance.releases.promotions()
        ]

    def expect_live(self, world: World, name: str) -> None:
        assert [row.physical_name for row in world.provenance.releases.find(state="live")] == [name]
        assert world.store.aliases() == {f"{COLLECTION}.cosine": name}

    @pytest.mark.slow
    def test_two_promotions_come_one_after_the_other(
        self,
        processes: ForkServerContext,
        tmp_path: Path,
        world: World,
        server: FaultyServer,
        names: list[str],
        stopped: tuple[threading.Event, threading.Event],
    ) -> None:
        reached, go = stopped
        one, two = Runner(processes, tmp_path / "one"), Runner(processes, tmp_path / "two")
        first = one.start(*self.promoting(world, server, names[1]))
        assert reached.wait(SECONDS)
        second = two.start(*self.promoting(world, server, names[2]))
        wait_for(lambda: "waiting for it" in two.errors)
        assert self.history(world) == []
        go.set()
        assert (one.finish(first), two.finish(second)) == (0, 0), one.errors + two.errors
        assert self.history(world) == [
            ("promote", names[1], names[0], True),
            ("promote", names[2], names[1], True),
        ]
        self.expect_live(world, names[2])

    @pytest.mark.slow
    def test_a_rollback_is_told_of_the_promotion(
        self,
        processes: ForkServerContext,
        tmp_path: Path,
        world: World,
        server: FaultyServer,
        names: list[str],
        stopped: tuple[threading.Event, threading.Event],
    ) -> None:
        with world.provenance.runs.start("promote", {}) as run:
            Lifecycle(world.provenance, world.store, COLLECTION).promote(run.id, names=[names[2]], forced=FORCED)
        reached, go = stopped
        one, two = Runner(processes, tmp_path / "one"), Runner(processes, tmp_path / "two")
        first = one.start(*self.promoting(world, server, names[1]))
        assert reached.wait(SECONDS)
        back = ["rollback", COLLECTION, *self.where(world, server)]
        assert two.run(*back) == 1
        assert "is changing which releases of things are live: wait until it ends, look at" in two.errors
        go.set()
        assert one.finish(first) == 0, one.errors
        self.expect_live(world, names[1])
        assert two.run(*back) == 0, two.errors
        self.expect_live(world, names[2])
        assert self.history(world)[1:] == [
            ("promote", names[1], names[2], True),
            ("rollback", names[2], names[1], True),
        ]

    @pytest.mark.slow
    def test_one_that_is_killed_is_not_waited_for(
        self,
        processes: ForkServerContext,
        tmp_path: Path,
        world: World,
        server: FaultyServer,
        names: list[str],
        stopped: tuple[threading.Event, threading.Event],
    ) -> None:
        reached, go = stopped
        one, two = Runner(processes, tmp_path / "one"), Runner(processes, tmp_path / "two")
        first = one.start(*self.promoting(world, server, names[1]))
        assert reached.wait(SECONDS)
        os.killpg(first.pid, signal.SIGKILL)
        assert one.finish(first) == -signal.SIGKILL
        go.set()
        assert two.run(*self.promoting(world, server, names[2])) == 0, two.errors
        assert "waiting" not in two.errors
        assert self.history(world) == [("promote", names[2], names[0], True)]
        self.expect_live(world, names[2])


def wait_for(condition: Callable[[], bool]) -> None:
    over = threading.Event()
    for _ in range(int(SECONDS / 0.05)):
        if condition():
            return
        over.wait(0.05)
    raise AssertionError("it never came")
