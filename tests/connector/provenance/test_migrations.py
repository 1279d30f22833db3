"""Migrations, over SQLite and a real PostgreSQL."""

import os
import signal
import sqlite3
import sys
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, inspect, text

from connector.errors import NotMigratedError, ProvenanceError
from connector.provenance.database import Database, alembic_config, downgrade, revisions, upgrade
from connector.provenance.recorder import Provenance
from connector.provenance.tables import (
    Base,
    MeasureRow,
)
from tests.support.errors import raises
from tests.support.rows import embedding_set, release


def tables(provenance: Provenance) -> set[str]:
    return set(inspect(provenance.database.engine).get_table_names())


class TestMigrations:
    @pytest.mark.slow
    def test_models_equal_migrations(self, database_url: str) -> None:
        upgrade(database_url)
        with Provenance(Database(database_url)) as provenance, provenance.database.engine.connect() as connection:
            config = alembic_config(provenance.database.engine)
            config.stdout = sys.stdout  # alembic's own is that of whoever imported it first
            command.check(config)
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

    @pytest.mark.slow
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

    @pytest.mark.slow
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
        with raises(NotMigratedError, "modalign db upgrade"):
            Provenance.open(database_url)

    def test_opening_creates_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(NotMigratedError):
            Provenance.open(f"sqlite:///{tmp_path / 'new' / 'x.db'}")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("found", "code"), [("9999", "database-newer"), ("ae1027a6acf", "database-foreign")])
    def test_a_database_of_a_newer_modalign_or_another_program_is_left_alone(
        self, found: str, code: str, provenance: Provenance
    ) -> None:
        with provenance.runs.start("encode", {}):
            pass
        with provenance.database.session() as session:
            session.execute(text("UPDATE alembic_version SET version_num = :found"), {"found": found})
        for operation in (Provenance.open, upgrade, lambda url: downgrade(url, "base")):
            with raises(ProvenanceError, found, revisions()[-1], code=code):
                operation(provenance.database.url)
        with provenance.database.session() as session:
            assert session.scalars(text("SELECT version_num FROM alembic_version")).all() == [found]
        assert [run.command for run in provenance.runs.newest(10)] == ["encode"]

    def test_the_names_of_the_files_are_the_revisions(self, tmp_path: Path) -> None:
        config = alembic_config(Database(f"sqlite:///{tmp_path / 'x.db'}").engine)
        scripts = ScriptDirectory.from_config(config).walk_revisions()
        assert revisions() == [script.revision for script in scripts][::-1]


def upgrade_and_die(url: str, statements: int) -> None:
    """Upgrade, and kill this process after so many statements."""
    done = 0

    @event.listens_for(Engine, "after_cursor_execute")
    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == statements:
            os.kill(os.getpid(), signal.SIGKILL)

    upgrade(url)


def upgrade_together(url: str, start: Barrier) -> None:
    start.wait()
    upgrade(url)


class TestKills:
    @pytest.mark.slow
    @pytest.mark.parametrize("before", [None, "0003"])
    def test_an_upgrade_killed_after_any_statement_leaves_the_database_as_it_was(
        self, before: str | None, database_url: str, processes: ForkServerContext
    ) -> None:
        if before:
            upgrade(database_url, before)
        database, head, killed = Database(database_url), revisions()[-1], 0
        while True:
            process = processes.Process(target=upgrade_and_die, args=(database_url, 1 + 11 * killed))
            process.start()
            process.join()
            if process.exitcode == 0:
                break
            assert (process.exitcode, database.revision()) == (-signal.SIGKILL, before)
            killed += 1
        assert killed >= 3
        assert database.revision() == head
        database.close()
        with Provenance.open(database_url) as provenance:
            assert provenance.runs.newest(10) == []

    @pytest.mark.slow
    def test_several_upgrades_at_once_all_succeed(self, database_url: str, processes: ForkServerContext) -> None:
        start = processes.Barrier(4)
        upgrades = [processes.Process(target=upgrade_together, args=(database_url, start)) for _ in range(4)]
        for process in upgrades:
            process.start()
        for process in upgrades:
            process.join()
        assert [process.exitcode for process in upgrades] == [0, 0, 0, 0]
        with Provenance.open(database_url) as provenance:
            assert provenance.runs.newest(10) == []

    def test_a_migration_that_breaks_references_changes_nothing(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'x.db'}"
        upgrade(url, "0003")
        with sqlite3.connect(tmp_path / "x.db") as connection:  # which does not check them
            connection.execute(
                "INSERT INTO reject (run_id, source, position, stage, reason, detail) VALUES (7, '', 0, '', '', '')"
            )
        connection.close()
        with raises(ProvenanceError, "reject"):
            upgrade(url)
        database = Database(url)
        assert database.revision() == "0003"
        database.close()
