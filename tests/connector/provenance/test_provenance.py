"""The provenance database, over SQLite and a real PostgreSQL."""

import hashlib
import os
import random
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text

from alignment.modality import Modality
from alignment.model.alignment import Alignment, AlignmentCard
from alignment.model.projections import Projection
from alignment.sets.cards import EncoderCard, SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from connector.audits.strata import stratum
from connector.errors import NotMigratedError, ProvenanceError
from connector.provenance.database import Database, alembic_config, downgrade, upgrade
from connector.provenance.recorder import Provenance
from connector.provenance.runs import MAX_DETAIL_CHARACTERS, REJECTS_A_COMMIT
from connector.provenance.tables import (
    AlignmentRow,
    AuditRow,
    Base,
    BatchRow,
    EmbeddingSetRow,
    EncoderRow,
    MeasureRow,
    PromotionRow,
    RejectRow,
    ReleaseRow,
    RunRow,
)
from connector.rejects import Reason, Reject

IMAGE = EncoderCard("fake-image:1", hashlib.sha256(b"image").hexdigest(), 4)
TEXT = EncoderCard("fake-text:1", hashlib.sha256(b"text").hexdigest(), 3)
CARDS: dict[Modality, EncoderCard] = {"image": IMAGE, "text": TEXT}
# Names that file systems allow and databases refuse: bytes that are no UTF-8, and NUL.
ODD, ESCAPED = "caf\udce9\0.png", "caf\\udce9\\0.png"


def embedding_set(path: Path, **changes: Any) -> EmbeddingSet:
    card = SetCard(path.name, "corpus.jsonl", dict(CARDS), counts={"image": 5, "text": 9}, complete=True)
    return EmbeddingSet(path, replace(card, **{"fingerprint": "1" * 64, **changes}))


def alignment(seed: int = 0, **changes: Any) -> Alignment:
    rng = np.random.default_rng(seed)
    card = AlignmentCard(
        encoders=dict(CARDS),
        method="ridge",
        hyperparameters={"alpha": 0.1},
        metrics=["cosine"],
        sets=["1" * 64],
        pairs=100,
        hold_out=HoldOut(0.25, 3),
        held_out_recall={"cosine": {"text->image": {"1": 0.5}}},
        candidates=[{"alpha": 0.1, "score": 0.4}],
    )
    weights: dict[Modality, Projection] = {
        modality: Projection(encoder.dim, None, rng.standard_normal((encoder.dim, 2)).astype(np.float32))
        for modality, encoder in CARDS.items()
    }
    return Alignment(replace(card, **changes), weights)


def release(provenance: Provenance, physical_name: str = "c.cosine.1", **changes: Any) -> ReleaseRow:
    alignment_id = provenance.artifacts.record_alignment("a", Path("alignments/a"), alignment())
    values: dict[str, Any] = {
        "store_url": "edge:qdrant",
        "collection": "c",
        "metric": "cosine",
        "physical_name": physical_name,
        "alignment_id": alignment_id,
        "distance": "Cosine",
        "dim": 2,
        "lowering_version": 1,
        "settings": {"m": 16},
        "state": "building",
        "points": 0,
        "created_at": datetime(2024, 5, 1, tzinfo=UTC),
    }
    return provenance.releases.save(ReleaseRow(**{**values, **changes}))


def count(provenance: Provenance, table: type[Base]) -> int:
    with provenance.database.session() as session:
        return len(session.scalars(select(table)).all())


def tables(provenance: Provenance) -> set[str]:
    return set(inspect(provenance.database.engine).get_table_names())


class TestMigrations:
    def test_models_equal_migrations(self, database_url: str) -> None:
        upgrade(database_url)
        command.check(alembic_config(database_url))
        with Provenance(Database(database_url)) as provenance, provenance.database.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, Base.metadata) == []

    def test_a_model_that_no_migration_knows_would_be_noticed(self, database_url: str) -> None:
        upgrade(database_url)
        with Provenance(Database(database_url)) as provenance:
            with provenance.database.session() as session:
                session.execute(text("ALTER TABLE measure DROP COLUMN queries"))
            with provenance.database.engine.connect() as connection:
                found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
        assert [(what, table) for what, _, table, *_ in found] == [("add_column", "measure")]

    def test_upgrading_twice_changes_nothing(self, database_url: str) -> None:
        upgrade(database_url)
        with Provenance.open(database_url) as provenance, provenance.runs.start("encode", {}):
            pass
        upgrade(database_url)
        with Provenance.open(database_url) as provenance:
            assert [run.command for run in provenance.runs.newest(10)] == ["encode"]

    def test_down_to_nothing_and_up_again(self, database_url: str) -> None:
        upgrade(database_url)
        with Provenance(Database(database_url)) as provenance:
            assert tables(provenance) == {*Base.metadata.tables, "alembic_version"}
        downgrade(database_url, "base")
        with Provenance(Database(database_url)) as provenance:
            assert tables(provenance) == {"alembic_version"}
        with pytest.raises(NotMigratedError):
            Provenance.open(database_url)
        upgrade(database_url)
        with Provenance.open(database_url) as provenance:
            assert provenance.runs.newest(10) == []

    def test_audits_survive_the_migration_that_gave_them_parts(self, database_url: str, tmp_path: Path) -> None:
        upgrade(database_url)
        whole = {"direction": "t", "name": "recall@5", "value": 1 / 3, "low": 0.1, "high": 0.9, "queries": 77}
        with Provenance.open(database_url) as provenance:
            released, set_id = release(provenance), provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
            with provenance.runs.start("audit", {}) as run:
                audit_id = provenance.audits.record(
                    run_id=run.id,
                    release_id=released.id,
                    set_id=set_id,
                    verdict="passed",
                    settings={"k": [5]},
                    per_query={"t": b"packed"},
                    measures=[MeasureRow(**of, **whole) for of in ({}, {"stage": "index"}, {"stratum": "language=de"})],
                )
        downgrade(database_url, "0003")
        lines = "SELECT audit_id, direction, name, value, low, high, queries FROM measure"
        with Provenance(Database(database_url)) as provenance:
            assert "per_query" not in tables(provenance)
            with provenance.database.session() as session:
                assert [tuple(row) for row in session.execute(text(lines))] == [(audit_id, *whole.values())]
                double = (
                    "INSERT INTO measure (audit_id, direction, name, value, queries) VALUES (:id, 't', :name, 1, 7)"
                )
                session.execute(text(double), {"id": audit_id, "name": "mrr"})  # as an older modalign writes it
                session.commit()
            with pytest.raises(ProvenanceError, match=r"(?i)unique"), provenance.database.session() as session:
                session.execute(text(double), {"id": audit_id, "name": "mrr"})
        upgrade(database_url)
        with Provenance.open(database_url) as provenance:
            audit = provenance.audits.get(audit_id)
            assert (audit.verdict, audit.settings, audit.release_id) == ("passed", {"k": [5]}, released.id)
            kept = provenance.audits.measures([audit_id])[audit_id]
            assert sorted((m.stage, m.stratum, m.name, m.value, m.low, m.high, m.queries) for m in kept) == [
                ("", "", "mrr", 1.0, None, None, 7),
                ("", "", "recall@5", 1 / 3, 0.1, 0.9, 77),
            ]
            assert provenance.audits.per_query(audit_id) == {}
            with provenance.database.session() as session:  # of several parts again
                session.add(MeasureRow(audit_id=audit_id, stage="index", **whole))
                session.commit()

    def test_a_database_that_was_never_upgraded(self, database_url: str) -> None:
        with pytest.raises(NotMigratedError, match=r"migration \d{4}, found none; run `modalign db upgrade`"):
            Provenance.open(database_url)

    def test_opening_creates_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(NotMigratedError):
            Provenance.open(f"sqlite:///{tmp_path / 'new' / 'x.db'}")
        assert list(tmp_path.iterdir()) == []

    def test_a_database_of_another_version(self, provenance: Provenance) -> None:
        with provenance.database.session() as session:
            session.execute(text("UPDATE alembic_version SET version_num = 'ffff'"))
        with pytest.raises(NotMigratedError, match=r"migration \d{4}, found ffff; run `modalign db upgrade`"):
            Provenance.open(provenance.database.url)

    def test_a_database_of_an_unknown_version_is_not_upgraded(self, provenance: Provenance) -> None:
        with provenance.runs.start("encode", {}):
            pass
        with provenance.database.session() as session:
            session.execute(text("UPDATE alembic_version SET version_num = 'ffff'"))
        with pytest.raises(ProvenanceError, match=r"'ffff'; it was made by a newer modalign, or is not modalign's"):
            upgrade(provenance.database.url)
        with provenance.database.session() as session:
            assert session.scalars(text("SELECT version_num FROM alembic_version")).all() == ["ffff"]
        assert [run.command for run in provenance.runs.newest(10)] == ["encode"]


class TestUnreachable:
    @pytest.mark.parametrize("password", ["s3cret", "s3%2Fcret", "s3/cret", "s3:cret", "p%40s3cret"])
    @pytest.mark.parametrize("operation", [Provenance.open, upgrade])
    def test_the_password_is_never_shown(self, password: str, operation: Callable[[str], Any]) -> None:
        pytest.importorskip("psycopg", reason="needs the extra `postgres`")
        with pytest.raises(
            ProvenanceError, match=r"database postgresql://me:\*\*\*@127\.0\.0\.1:1/x\?connect_timeout=2: "
        ) as raised:
            operation(f"postgresql://me:{password}@127.0.0.1:1/x?connect_timeout=2")
        assert password not in str(raised.value)
        assert "cret" not in str(raised.value)

    def test_a_password_with_an_at_sign_is_never_shown(self) -> None:
        with pytest.raises(ProvenanceError, match=r"postgresql://me:\*\*\*@h/x: .*%40") as raised:
            Provenance.open("postgresql://me:half@s3cret@h/x")
        assert "half" not in str(raised.value)
        assert "cret" not in str(raised.value)

    def test_a_password_in_the_query_is_never_shown(self) -> None:
        pytest.importorskip("psycopg", reason="needs the extra `postgres`")
        with pytest.raises(ProvenanceError, match="MODALIGN_DATABASE_URL") as raised:
            Provenance.open("postgresql://me@127.0.0.1:1/x?password=s3cret")
        assert "s3cret" not in str(raised.value)

    @pytest.mark.parametrize(
        "url", ["nope://me:s3cret@h/x", "postgresql://me:s3cret@h:port/x", "mysql://me:s3cret@h/x", "", "x.db"]
    )
    @pytest.mark.parametrize("operation", [Provenance.open, upgrade])
    def test_urls_that_cannot_be_meant(self, url: str, operation: Callable[[str], Any]) -> None:
        with pytest.raises(ProvenanceError, match="expected an SQLAlchemy URL such as sqlite:///PATH") as raised:
            operation(url)
        assert "s3cret" not in str(raised.value)

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "x.db").write_bytes(b"hello" * 1000)
        for operation in (Provenance.open, upgrade):
            with pytest.raises(ProvenanceError, match="not a database"):
                operation(f"sqlite:///{tmp_path / 'x.db'}")

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ProvenanceError, match="unable to open"):
            Provenance.open(f"sqlite:///{tmp_path}")


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
        assert (row.outcome, row.error) == (outcome, f"{type(error).__name__}: {error}")
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

    def test_one_of_an_earlier_process_of_the_same_number_was_killed(self, provenance: Provenance) -> None:
        """In a container every process may be number 1."""
        with provenance.runs.start("encode", {}) as run:
            pass
        with provenance.database.session() as session:
            row = session.get_one(RunRow, run.id)
            row.outcome, row.started_at = "running", row.started_at - timedelta(days=1)
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
        with pytest.raises(ProvenanceError, match=r"there is no run 99; `modalign status` lists the runs"):
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


class TestLedger:
    @pytest.fixture
    def places(self, provenance: Provenance, tmp_path: Path) -> tuple[int, int, int, int]:
        """Two releases, a set and a run."""
        first, second = release(provenance), release(provenance, "c.cosine.2")
        set_id = provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        with provenance.runs.start("push", {}) as run:
            pass
        return first.id, second.id, set_id, run.id

    def test_what_is_written_is_read(self, provenance: Provenance, places: tuple[int, int, int, int]) -> None:
        first, second, set_id, run = places
        batches = {("image-0", 0): ("d0", 256), ("image-0", 256): ("d1", 10), ("text-0", 0): ("d2", 7)}
        provenance.ledger.write(first, set_id, run, batches)
        assert provenance.ledger.entries(first, set_id) == batches
        assert provenance.ledger.entries(second, set_id) == {}
        assert provenance.ledger.points(first) == 273
        assert provenance.ledger.points(second) == 0
        provenance.ledger.write(first, set_id, run, {})
        assert provenance.ledger.entries(first, set_id) == batches

    def test_a_batch_replaces_what_stood_at_its_place(
        self, provenance: Provenance, places: tuple[int, int, int, int]
    ) -> None:
        first, second, set_id, run = places
        for written in (first, second):
            provenance.ledger.write(written, set_id, run, {("a", 0): ("old", 5), ("a", 5): ("keep", 1)})
        provenance.ledger.write(first, set_id, run, {("a", 0): ("new", 4), ("b", 0): ("more", 2)})
        assert provenance.ledger.entries(first, set_id) == {
            ("a", 0): ("new", 4),
            ("a", 5): ("keep", 1),
            ("b", 0): ("more", 2),
        }
        assert provenance.ledger.points(first) == 7
        assert provenance.ledger.entries(second, set_id) == {("a", 0): ("old", 5), ("a", 5): ("keep", 1)}

    def test_batches_are_forgotten_one_by_one_or_all(
        self, provenance: Provenance, places: tuple[int, int, int, int], tmp_path: Path
    ) -> None:
        first, second, set_id, run = places
        other_set = provenance.artifacts.record_set(embedding_set(tmp_path / "other"))
        for written in (first, second):
            provenance.ledger.write(written, set_id, run, {("a", 0): ("x", 5), ("a", 5): ("y", 1)})
        provenance.ledger.write(first, other_set, run, {("a", 0): ("z", 100)})
        provenance.ledger.remove(first, set_id, [("a", 0), ("missing", 0)])
        assert provenance.ledger.entries(first, set_id) == {("a", 5): ("y", 1)}
        assert provenance.ledger.points(first) == 101
        provenance.ledger.clear(first)
        assert provenance.ledger.entries(first, set_id) == provenance.ledger.entries(first, other_set) == {}
        assert provenance.ledger.points(second) == 6

    def test_each_line_names_its_run(self, provenance: Provenance, places: tuple[int, int, int, int]) -> None:
        first, _, set_id, run = places
        provenance.ledger.write(first, set_id, run, {("a", 0): ("x", 5)})
        with provenance.database.session() as session:
            row = session.scalars(select(BatchRow)).one()
        assert row.run_id == run
        assert datetime.now(UTC) - row.written_at < timedelta(minutes=1)


class TestArtifacts:
    def test_a_set_is_recorded_once_and_updated(self, provenance: Provenance, tmp_path: Path) -> None:
        first = provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        only_text: dict[Modality, EncoderCard] = {"text": TEXT}
        changed = embedding_set(
            tmp_path / "s", fingerprint="2" * 64, corpus="new", encoders=only_text, counts={"text": 11}
        )
        assert provenance.artifacts.record_set(changed) == first
        assert provenance.artifacts.record_set(embedding_set(tmp_path / "t")) != first
        with provenance.database.session() as session:
            row = session.get_one(EmbeddingSetRow, first)
            texts = session.scalars(select(EncoderRow.id).where(EncoderRow.modality == "text")).one()
        assert (row.name, row.path, row.corpus, row.fingerprint) == ("s", str(tmp_path / "s"), "new", "2" * 64)
        assert (row.image_count, row.text_count) == (0, 11)
        assert (row.image_encoder_id, row.text_encoder_id) == (None, texts)

    def test_a_set_of_a_corpus_that_no_database_can_name(self, provenance: Provenance, tmp_path: Path) -> None:
        odd = embedding_set(tmp_path / ODD, corpus=f"/data/{ODD}")
        first = provenance.artifacts.record_set(replace(odd, card=replace(odd.card, name="s")))
        assert provenance.artifacts.record_set(replace(odd, card=replace(odd.card, name="s"))) == first
        with provenance.database.session() as session:
            row = session.get_one(EmbeddingSetRow, first)
        assert (row.corpus, row.path) == (f"/data/{ESCAPED}", str(tmp_path / ESCAPED))

    def test_an_encoder_is_recorded_once(self, provenance: Provenance, tmp_path: Path) -> None:
        provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        provenance.artifacts.record_set(embedding_set(tmp_path / "t"))
        provenance.artifacts.record_alignment("a", tmp_path / "a", alignment())
        with provenance.database.session() as session:
            rows = session.scalars(select(EncoderRow).order_by(EncoderRow.modality)).all()
        assert [(row.modality, row.spec, row.fingerprint, row.dim) for row in rows] == [
            ("image", IMAGE.spec, IMAGE.fingerprint, 4),
            ("text", TEXT.spec, TEXT.fingerprint, 3),
        ]

    def test_one_model_of_two_modalities_is_two_encoders(self, provenance: Provenance, tmp_path: Path) -> None:
        both: dict[Modality, EncoderCard] = {"image": IMAGE, "text": IMAGE}
        provenance.artifacts.record_set(embedding_set(tmp_path / "s", encoders=both))
        assert count(provenance, EncoderRow) == 2

    def test_an_alignment_is_recorded_once_and_updated(self, provenance: Provenance, tmp_path: Path) -> None:
        first = provenance.artifacts.record_alignment("a", tmp_path / "a", alignment())
        created = provenance.artifacts.alignment(first).created_at
        assert provenance.artifacts.record_alignment("b", tmp_path / "b", alignment(method="cca")) == first
        assert provenance.artifacts.record_alignment("c", tmp_path / "c", alignment(seed=1)) != first
        row = provenance.artifacts.alignment(first)
        assert (row.name, row.path, row.method, row.dim) == ("b", str(tmp_path / "b"), "cca", 2)
        assert (row.fingerprint, row.created_at) == (alignment().fingerprint, created)
        assert row.image_encoder_id != row.text_encoder_id

    def test_the_card_of_an_alignment_comes_back(self, provenance: Provenance, tmp_path: Path) -> None:
        row = provenance.artifacts.alignment(provenance.artifacts.record_alignment("a", tmp_path / "a", alignment()))
        assert row.card["encoders"]["text"] == {"spec": TEXT.spec, "fingerprint": TEXT.fingerprint, "dim": 3}
        assert row.card["hold_out"] == {"fraction": 0.25, "seed": 3}
        assert row.card["held_out_recall"] == {"cosine": {"text->image": {"1": 0.5}}}
        assert row.card["candidates"] == [{"alpha": 0.1, "score": 0.4}]

    def test_an_unknown_alignment(self, provenance: Provenance) -> None:
        with pytest.raises(ProvenanceError):
            provenance.artifacts.alignment(12345)

    def test_a_home_can_be_moved(self, database_url: str, tmp_path: Path) -> None:
        upgrade(database_url)
        with Provenance.open(database_url, home=tmp_path / "old") as provenance:
            first = provenance.artifacts.record_set(embedding_set(tmp_path / "old" / "sets" / "s"))
            outside = provenance.artifacts.record_set(embedding_set(tmp_path / "elsewhere"))
        with Provenance.open(database_url, home=tmp_path / "new") as provenance:
            assert provenance.artifacts.record_set(embedding_set(tmp_path / "new" / "sets" / "s")) == first
            with provenance.database.session() as session:
                paths = {i: session.get_one(EmbeddingSetRow, i).path for i in (first, outside)}
            assert paths == {first: "sets/s", outside: str(tmp_path / "elsewhere")}
            assert provenance.database.located(paths[first]) == tmp_path / "new" / "sets" / "s"
            assert provenance.database.located(paths[outside]) == tmp_path / "elsewhere"
            assert provenance.database.stored(f"edge:{tmp_path / 'new' / 'qdrant'}") == "edge:qdrant"
            assert provenance.database.stored("http://host:6333") == "http://host:6333"


class TestReleases:
    def test_one_is_saved_and_found(self, provenance: Provenance) -> None:
        first = release(provenance)
        second = release(provenance, "c.dot.1", metric="dot", state="live")
        assert first.id < second.id
        assert [row.physical_name for row in provenance.releases.find()] == ["c.cosine.1", "c.dot.1"]
        assert [row.id for row in provenance.releases.find(state="live", collection="c")] == [second.id]
        assert provenance.releases.find(collection="other") == []
        [row] = provenance.releases.find(metric="cosine")
        assert (row.settings, row.dim, row.points) == ({"m": 16}, 2, 0)
        assert row.created_at == datetime(2024, 5, 1, tzinfo=UTC)

    def test_one_is_updated_in_place(self, provenance: Provenance) -> None:
        row = release(provenance)
        before = row.updated_at
        row.state, row.points, row.settings = "live", 42, {"m": 8, "deep": {"list": [1, None, "ü", 0.5]}}
        provenance.releases.save(row)
        [found] = provenance.releases.find()
        assert (found.id, found.state, found.points) == (row.id, "live", 42)
        assert found.settings == {"m": 8, "deep": {"list": [1, None, "ü", 0.5]}}
        assert found.updated_at > before

    def test_a_physical_name_is_unique_in_its_store(self, provenance: Provenance) -> None:
        release(provenance)
        with pytest.raises(ProvenanceError, match=r"(?i)unique"):
            release(provenance)
        release(provenance, store_url="http://other:6333")
        assert count(provenance, ReleaseRow) == 2


class TestAudits:
    def test_one_is_recorded_with_its_measures(self, provenance: Provenance, tmp_path: Path) -> None:
        released, set_id = release(provenance), provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        with provenance.runs.start("audit", {}) as run:
            audit_id = provenance.audits.record(
                run_id=run.id,
                release_id=released.id,
                set_id=set_id,
                verdict="passed",
                settings={"k": [1, 5], "indexed": 100},
                per_query={"t": b"packed"},
                measures=[
                    MeasureRow(direction="t", name="recall@5", value=1 / 3, low=0.1, high=0.9, queries=77),
                    MeasureRow(
                        direction="t", stage="index", name="recall@5", value=1.0, low=None, high=None, queries=7
                    ),
                ],
            )
        with provenance.database.session() as session:
            audit = session.get_one(AuditRow, audit_id)
            measures = session.scalars(select(MeasureRow).order_by(MeasureRow.id)).all()
        assert (audit.run_id, audit.release_id, audit.embedding_set_id) == (run.id, released.id, set_id)
        assert (audit.verdict, audit.settings) == ("passed", {"k": [1, 5], "indexed": 100})
        assert [(m.audit_id, m.stage, m.name, m.value, m.low, m.high, m.queries) for m in measures] == [
            (audit_id, "", "recall@5", 1 / 3, 0.1, 0.9, 77),
            (audit_id, "index", "recall@5", 1.0, None, None, 7),
        ]
        assert provenance.audits.per_query(audit_id) == {"t": b"packed"}

    def test_the_longest_names_of_parts_can_be_indexed(self, provenance: Provenance, tmp_path: Path) -> None:
        released, set_id = release(provenance), provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        rng = random.Random(0)  # what does not compress
        parts = [stratum("field", "".join(chr(rng.randrange(0x20000, 0x2A000)) for _ in range(5000))) for _ in "ab"]
        rows = [MeasureRow(direction="d", stratum=part, name="n", value=0.5, queries=1) for part in parts]
        with provenance.runs.start("audit", {}) as run:
            number = provenance.audits.record(
                run_id=run.id,
                release_id=released.id,
                set_id=set_id,
                verdict="measured",
                settings={},
                measures=rows,
                per_query={},
            )
        assert [row.stratum for row in provenance.audits.measures([number])[number]] == parts

    def test_one_with_a_measure_that_is_refused_is_not_recorded(self, provenance: Provenance, tmp_path: Path) -> None:
        released, set_id = release(provenance), provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        twice = [MeasureRow(direction="d", name="n", value=v, queries=1) for v in (0.1, 0.2)]
        with provenance.runs.start("audit", {}) as run, pytest.raises(ProvenanceError, match=r"(?i)unique"):
            provenance.audits.record(
                run_id=run.id,
                release_id=released.id,
                set_id=set_id,
                verdict="failed",
                settings={},
                measures=twice,
                per_query={},
            )
        assert (count(provenance, AuditRow), count(provenance, MeasureRow)) == (0, 0)


class TestPromotions:
    def begun(self, provenance: Provenance, run: int, row: ReleaseRow, previous: ReleaseRow | None) -> PromotionRow:
        promotion = PromotionRow(
            kind="promote",
            store_url=row.store_url,
            collection=row.collection,
            metric=row.metric,
            release_id=row.id,
            previous_id=previous.id if previous else None,
            run_id=run,
            started_at=datetime(2024, 5, 1, tzinfo=UTC),
        )
        provenance.releases.begin_promotions([promotion])
        return promotion

    def test_one_is_begun_and_finished(self, provenance: Provenance) -> None:
        old, new = release(provenance, "c.1", state="live"), release(provenance, "c.2", state="ready")
        other = release(provenance, "c.3", state="live", metric="dot")
        with provenance.runs.start("promote", {}) as run:
            promotion = self.begun(provenance, run.id, new, old)
            assert [found.id for found in provenance.releases.unfinished_promotions(collection="c")] == [promotion.id]
            assert {row.id: row.state for row in provenance.releases.find()} == {
                old.id: "live",
                new.id: "ready",
                other.id: "live",
            }
            for _ in range(2):
                provenance.releases.finish_promotions([promotion], run.id)
                assert {row.id: row.state for row in provenance.releases.find()} == {
                    old.id: "retired",
                    new.id: "live",
                    other.id: "live",
                }
        assert provenance.releases.unfinished_promotions() == []
        (found,) = provenance.releases.promotions(release_id=new.id)
        assert found.finished_at is not None
        assert found.finished_at > found.started_at

    def test_one_without_a_previous_release(self, provenance: Provenance) -> None:
        new = release(provenance, state="ready")
        with provenance.runs.start("promote", {}) as run:
            provenance.releases.finish_promotions([self.begun(provenance, run.id, new, None)], run.id)
        assert [row.state for row in provenance.releases.find()] == ["live"]

    def test_a_drop_forgets_what_was_held_and_keeps_the_release(self, provenance: Provenance, tmp_path: Path) -> None:
        dropped, set_id = (
            release(provenance, state="ready"),
            provenance.artifacts.record_set(embedding_set(tmp_path / "s")),
        )
        with provenance.runs.start("push", {}) as run:
            provenance.ledger.write(dropped.id, set_id, run.id, {("image-000000.parquet", 0): ("d", 3)})
            self.begun(provenance, run.id, dropped, None)
        provenance.releases.begin_drop(dropped.id)
        (row,) = provenance.releases.find()
        assert (row.state, row.drop_begun_at is None, row.dropped_at) == ("retired", False, None)
        assert provenance.ledger.points(dropped.id) == 3
        provenance.releases.finish_drop(dropped.id)
        (row,) = provenance.releases.find()
        assert (row.state, row.points, row.dropped_at is None) == ("retired", 0, False)
        assert (provenance.ledger.points(dropped.id), provenance.releases.promotions()) == (0, [])

    def test_what_one_release_holds_and_another_does_not(self, provenance: Provenance, tmp_path: Path) -> None:
        first, second = release(provenance, "c.1"), release(provenance, "c.2")
        set_id = provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        assert (provenance.ledger.last_write(first.id), provenance.ledger.sets_in([first.id])) == (
            None,
            [],
        )
        with provenance.runs.start("push", {}) as run:
            lines = {("shard", 0): ("same", 5), ("shard", 5): ("another", 7), ("shard", 12): ("more", 2)}
            provenance.ledger.write(first.id, set_id, run.id, lines)
            provenance.ledger.write(
                second.id, set_id, run.id, {("shard", 0): ("same", 5), ("shard", 5): ("otherwise", 7)}
            )
        assert provenance.ledger.points_beyond(first.id, set_id, second.id) == 9
        assert provenance.ledger.points_beyond(second.id, set_id, first.id) == 7
        assert [row.id for row in provenance.ledger.sets_in([second.id])] == [set_id]
        assert set(provenance.artifacts.encoders(provenance.ledger.sets_in([second.id])[0])) == {
            "image",
            "text",
        }
        written = provenance.ledger.last_write(first.id)
        assert written is not None
        assert provenance.runs.newest(1)[0].started_at <= written

    def test_the_newest_audit(self, provenance: Provenance, tmp_path: Path) -> None:
        audited, set_id = release(provenance), provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        assert provenance.audits.newest(audited.id) is None
        for verdict in ("passed", "failed"):
            with provenance.runs.start("audit", {}) as run:
                provenance.audits.record(
                    run_id=run.id,
                    release_id=audited.id,
                    set_id=set_id,
                    verdict=verdict,
                    settings={},
                    measures=[],
                    per_query={},
                )
        found = provenance.audits.newest(audited.id)
        assert found is not None
        assert (found[0].verdict, found[1].id) == ("failed", run.id)


class TestTypes:
    @pytest.mark.parametrize("hours", [0, 9, -5])
    def test_times_are_utc(self, provenance: Provenance, hours: int) -> None:
        moment = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=timezone(timedelta(hours=hours)))
        release(provenance, created_at=moment)
        [row] = provenance.releases.find()
        assert row.created_at == moment
        assert row.created_at.utcoffset() == timedelta(0)

    def test_times_are_utc_wherever_the_server_is(self, database_url: str) -> None:
        if database_url.startswith("sqlite"):
            pytest.skip("SQLite has no time zone")
        upgrade(database_url)
        with Provenance(Database(database_url)) as provenance, provenance.database.session() as session:
            name = session.connection().engine.url.database
            session.execute(text(f"ALTER DATABASE {name} SET timezone TO 'Asia/Tokyo'"))
        with Provenance.open(database_url) as provenance:
            release(provenance, created_at=datetime(2024, 5, 1, 12, tzinfo=UTC))
            [row] = provenance.releases.find()
        assert row.created_at.isoformat() == "2024-05-01T12:00:00+00:00"

    @pytest.mark.parametrize(
        "value",
        [{}, {"a": []}, {"n": 2**53, "f": 1e-9, "t": True, "null": None}, {"ü": "🖼 \\ \" '"}, {"a": {"b": [[1], {}]}}],
    )
    def test_json_comes_back_as_it_was(self, provenance: Provenance, value: dict[str, Any]) -> None:
        with provenance.runs.start("x", value):
            pass
        release(provenance, settings=value)
        assert provenance.runs.newest(1)[0].parameters == value
        assert provenance.releases.find()[0].settings == value

    def test_what_json_has_no_word_for_becomes_text(self, provenance: Provenance) -> None:
        with provenance.runs.start("x", {"path": Path("a"), "at": datetime(2024, 1, 1, tzinfo=UTC), "t": (1, 2)}):
            pass
        assert provenance.runs.newest(1)[0].parameters == {
            "path": "a",
            "at": "2024-01-01 00:00:00+00:00",
            "t": [1, 2],
        }


class TestIntegrity:
    @pytest.mark.parametrize(
        "row",
        [
            lambda: MeasureRow(audit_id=99, direction="d", name="n", value=1.0, queries=1),
            lambda: RejectRow(run_id=99, source="s", position=1, stage="read", reason="r", detail="d"),
            lambda: AlignmentRow(
                name="a",
                fingerprint="f",
                path="p",
                method="m",
                dim=1,
                image_encoder_id=99,
                text_encoder_id=99,
                card={},
                created_at=datetime.now(UTC),
            ),
        ],
        ids=["measure", "reject", "alignment"],
    )
    def test_rows_belong_to_rows(self, provenance: Provenance, row: Callable[[], Base]) -> None:
        def add() -> None:
            with provenance.database.session() as session:
                session.add(row())

        with pytest.raises(ProvenanceError, match=r"(?i)foreign key"):
            add()

    def test_what_is_referred_to_cannot_go(self, provenance: Provenance) -> None:
        release(provenance)

        def delete() -> None:
            with provenance.database.session() as session:
                session.execute(text("DELETE FROM alignment"))

        with pytest.raises(ProvenanceError, match=r"(?i)foreign key"):
            delete()
        assert count(provenance, AlignmentRow) == 1

    def test_a_block_that_raises_leaves_nothing(self, provenance: Provenance) -> None:
        def fail() -> None:
            with provenance.database.session() as session:
                session.add(EncoderRow(modality="text", spec="s", fingerprint="f", dim=1))
                session.flush()
                raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            fail()
        assert count(provenance, EncoderRow) == 0

    def test_sqlite_survives_a_power_cut_and_lets_readers_in(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'x.db'}"
        upgrade(url)
        with Provenance.open(url) as provenance, provenance.database.session() as session:
            pragmas = {
                name: session.execute(text(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
            session.add(EncoderRow(modality="text", spec="s", fingerprint="f", dim=1))
            session.flush()
            reader = sqlite3.connect(tmp_path / "x.db")
            assert reader.execute("SELECT count(*) FROM encoder").fetchone() == (0,)
            reader.close()
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}
