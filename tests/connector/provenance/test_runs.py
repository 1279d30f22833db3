"""Runs and their rejects."""

import os
import platform
import signal
import time
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from connector.errors import ProvenanceError
from connector.provenance import heartbeat
from connector.provenance.heartbeat import LEASE_SECONDS
from connector.provenance.recorder import Provenance
from connector.provenance.runs import MAX_DETAIL_CHARACTERS, REJECTS_A_COMMIT, WRITING_COMMANDS
from connector.provenance.tables import (
    RejectRow,
    RunRow,
    now,
)
from connector.rejects import Reason, Reject
from tests.support.errors import raises
from tests.support.rows import ESCAPED, ODD, count


def encode_until_killed(url: str, started: Connection) -> None:
    with Provenance.open(url) as provenance, provenance.runs.start("encode", {"set": "s"}):
        started.send(os.getpid())
        signal.pause()


class TestRuns:
    def test_done(self, provenance: Provenance) -> None:
        before = datetime.now(UTC)
        with provenance.runs.start("push", {"collection": "c", "k": 3, "path": Path("a/b"), "none": None}) as run:
            run.counts["written"] += 7
            [running] = provenance.runs.newest(1)
            assert (running.outcome, running.finished_at, running.counts) == ("running", None, {})
        [row] = provenance.runs.newest(10)
        assert (row.id, row.command, row.outcome, row.error) == (run.id, "push", "done", None)
        assert row.parameters == {"collection": "c", "k": 3, "path": "a/b", "none": None}
        assert row.counts == {"written": 7}
        assert row.pid == os.getpid()
        assert row.finished_at is not None
        assert before <= row.started_at <= row.finished_at <= datetime.now(UTC)

    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (ValueError("no good"), "failed"),
            (KeyboardInterrupt(), "interrupted"),
            (SystemExit(3), "interrupted"),
            (GeneratorExit(), "failed"),
        ],
    )
    def test_what_raises_is_recorded_and_raised_on(
        self, provenance: Provenance, error: BaseException, outcome: str
    ) -> None:
        def work() -> None:
            with provenance.runs.start("encode", {}) as run:
                run.counts["encoded"] += 2
                run.reject(Reject("a", 1, "read", Reason.KEY_MISSING, "d"))
                raise error

        with pytest.raises(type(error)):
            work()
        [row] = provenance.runs.newest(10)
        says = None if outcome == "interrupted" else f"{type(error).__name__}: {error}"
        assert (row.outcome, row.error) == (outcome, says)
        assert row.counts == {"encoded": 2, "rejected": 1}
        assert row.finished_at is not None
        assert len(provenance.runs.rejects(row.id)) == 1

    def test_an_error_holds_no_password_and_is_cut(self, provenance: Provenance) -> None:
        def work() -> None:
            with provenance.runs.start("push", {}):
                raise OSError("cannot reach http://me:s3cret@db:6333/ " + "x" * 5000)

        with pytest.raises(OSError, match="s3cret"):
            work()
        [row] = provenance.runs.newest(1)
        assert row.error is not None
        assert row.error.startswith("OSError: cannot reach http://***@db:6333/ xxx")
        assert len(row.error) == MAX_DETAIL_CHARACTERS

    def test_an_error_that_no_database_takes_does_not_hide_itself(self, provenance: Provenance) -> None:
        def work() -> None:
            with provenance.runs.start("encode", {"path": ODD}):
                raise OSError(f"cannot read {ODD}")

        with pytest.raises(OSError, match="cannot read caf"):
            work()
        [row] = provenance.runs.newest(1)
        assert (row.outcome, row.error) == ("failed", f"OSError: cannot read {ESCAPED}")
        assert row.parameters == {"path": ODD}

    def test_one_that_was_killed_is_found_by_the_next(
        self, provenance: Provenance, processes: ForkServerContext
    ) -> None:
        ours, theirs = processes.Pipe()
        child = processes.Process(target=encode_until_killed, args=(provenance.database.url, theirs), daemon=True)
        child.start()
        assert ours.poll(60)
        pid = ours.recv()
        with provenance.runs.start("push", {}):
            pass
        # While it lives it is running, whoever starts.
        assert {run.pid: run.outcome for run in provenance.runs.newest(10)} == {
            pid: "running",
            os.getpid(): "done",
        }
        child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        with provenance.runs.start("push", {}):
            pass
        killed = provenance.runs.newest(10)[-1]
        assert (killed.pid, killed.outcome, killed.error, killed.counts) == (pid, "killed", None, {})
        assert killed.finished_at is not None
        assert [run.outcome for run in provenance.runs.newest(10)] == ["done", "done", "killed"]

    @pytest.mark.parametrize(
        ("host", "silent", "error"),
        [
            (platform.node(), 0, None),
            ("elsewhere", LEASE_SECONDS + 5, "sent no heartbeat"),
            ("elsewhere", 5, "running"),
        ],
    )
    def test_one_whose_process_is_gone_is_told_as_killed_before_anything_else_runs(
        self, provenance: Provenance, host: str, silent: float, error: str | None
    ) -> None:
        with provenance.runs.start("encode", {}) as run:
            pass
        with provenance.database.session() as session:
            row = session.get_one(RunRow, run.id)
            row.outcome, row.host, row.pid = "running", host, 2**22 + 1
            row.heartbeat_at = now() - timedelta(seconds=silent)
        [told] = provenance.runs.newest(10)
        if error == "running":
            assert (told.outcome, told.error) == ("running", None)
        else:
            assert (told.outcome, (error or "") in (told.error or "")) == ("killed", True)
        assert provenance.runs.get(run.id).outcome == "running"  # who only reads writes nothing

    def test_those_of_a_collection(self, provenance: Provenance) -> None:
        given: list[tuple[str, dict[str, Any]]] = [
            ("push", {"into": "shop"}),
            ("push", {"into": "shops", "set": "shop"}),
            ("audit", {"collection": "shop"}),
            ("encode", {"set": "shop"}),
            ("repair", {"collection": None}),
            ("repair", {"collection": "other"}),
            ("ingest", {"into": "shop", "corpus": "c"}),
        ]
        runs = []
        for command, parameters in given:
            with provenance.runs.start(command, parameters) as run:
                runs.append(run.id)
        of_shop = [runs[place] for place in (6, 4, 2, 0)]
        assert [row.id for row in provenance.runs.newest(10, "shop")] == of_shop
        assert [row.id for row in provenance.runs.newest(2, "shop")] == of_shop[:2]
        assert [row.id for row in provenance.runs.newest(10, "nothing")] == [runs[4]]

    def test_one_of_an_earlier_process_of_the_same_number_was_killed(self, provenance: Provenance) -> None:
        """In a container every process may be number 1."""
        with provenance.runs.start("encode", {}) as run:
            pass
        with provenance.database.session() as session:
            row = session.get_one(RunRow, run.id)
            row.outcome = "running"
        with provenance.runs.start("encode", {}):
            pass
        assert [row.outcome for row in provenance.runs.newest(10)] == ["done", "killed"]

    def test_one_on_another_host_is_left_alone(self, provenance: Provenance) -> None:
        with provenance.runs.start("encode", {}) as run:
            pass
        with provenance.database.session() as session:
            row = session.get_one(RunRow, run.id)
            row.outcome, row.host, row.pid = "running", "elsewhere", 2**22 + 1
        with provenance.runs.start("encode", {}):
            pass
        assert [row.outcome for row in provenance.runs.newest(10)] == ["done", "running"]

    @pytest.mark.parametrize("command", WRITING_COMMANDS)
    def test_a_dead_writer_of_another_host_writes_no_longer(self, provenance: Provenance, command: str) -> None:
        """Nobody there marks it: its heartbeats end with it, and the clock of that host does not count."""
        with provenance.runs.start(command, {"into": "things"}) as run:
            pass
        with provenance.database.session() as session:
            row = session.get_one(RunRow, run.id)
            row.outcome, row.host, row.started_at = "running", "elsewhere", now() - timedelta(days=2)
        assert [row.id for row in provenance.runs.writers("things")] == [run.id]
        for silent in (now() - timedelta(seconds=LEASE_SECONDS + 5), None):  # None: of an older modalign
            with provenance.database.session() as session:
                row = session.get_one(RunRow, run.id)
                row.outcome, row.heartbeat_at, row.started_at = "running", silent, now() + timedelta(days=2)
            assert provenance.runs.writers("things") == []
            assert provenance.runs.get(run.id).outcome == "killed"

    def test_one_that_was_stopped_and_goes_on_runs_again(
        self, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(heartbeat, "LEASE_SECONDS", 0.04)
        with provenance.runs.start("push", {}) as run:
            with provenance.database.session() as session:  # as another host does
                session.get_one(RunRow, run.id).outcome = "killed"
            for _ in range(1000):
                if provenance.runs.get(run.id).outcome == "running":
                    break
                time.sleep(0.01)
            assert [row.id for row in provenance.runs.writers("things")] == [run.id]
        assert provenance.runs.get(run.id).outcome == "done"

    def test_two_at_once_in_one_process(self, provenance: Provenance) -> None:
        with provenance.runs.start("audit", {}), provenance.runs.start("push", {}):
            assert [row.outcome for row in provenance.runs.newest(10)] == ["running", "running"]
        assert [row.outcome for row in provenance.runs.newest(10)] == ["done", "done"]

    def test_the_newest_come_first(self, provenance: Provenance) -> None:
        for name in ("a", "b", "c"):
            with provenance.runs.start(name, {}):
                pass
        assert [run.command for run in provenance.runs.newest(2)] == ["c", "b"]


class TestRejects:
    def test_they_come_back_in_their_order(self, provenance: Provenance) -> None:
        n = REJECTS_A_COMMIT + 10
        with provenance.runs.start("encode", {}) as run:
            for i in range(n):
                run.reject(Reject("m.jsonl", i, "decode", Reason.IMAGE_BROKEN, f"number {i}", f"k{i}", "image"))
            assert count(provenance, RejectRow) == REJECTS_A_COMMIT
        rows = provenance.runs.rejects(run.id)
        assert [(row.position, row.key, row.detail) for row in rows] == [(i, f"k{i}", f"number {i}") for i in range(n)]
        assert {(r.source, r.stage, r.reason, r.modality) for r in rows} == {
            ("m.jsonl", "decode", Reason.IMAGE_BROKEN, "image")
        }
        with raises(ProvenanceError, 99, code="no-such-run"):
            provenance.runs.rejects(99)
        assert provenance.runs.newest(1)[0].counts == {"rejected": n}

    def test_they_survive_names_that_no_database_takes(self, provenance: Provenance) -> None:
        with provenance.runs.start("encode", {}) as run:
            run.reject(Reject(ODD, 1, "read", Reason.IMAGE_MISSING, f"nothing at {ODD}", ODD, "image"))
            run.reject(Reject("ü", 2, "read", Reason.ROW_UNREADABLE, "d" * 9999))
        odd, plain = provenance.runs.rejects(run.id)
        assert (odd.source, odd.key, odd.detail) == (ESCAPED, ESCAPED, f"nothing at {ESCAPED}")
        assert (plain.source, plain.key, plain.modality) == ("ü", None, None)
        assert plain.detail == "d" * MAX_DETAIL_CHARACTERS

    def test_the_last_run_that_has_some(self, provenance: Provenance) -> None:
        assert provenance.runs.last_with_rejects() is None
        with provenance.runs.start("encode", {}) as first:
            first.reject(Reject("a", 1, "read", Reason.KEY_MISSING, "d"))
        with provenance.runs.start("encode", {}):
            pass
        assert provenance.runs.last_with_rejects() == first.id
