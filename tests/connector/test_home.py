"""A home begins by itself; a fit that is killed anywhere can be repeated, and takes nothing that is not its own."""

import os
import signal
import sqlite3
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, event

from alignment.errors import AlignmentError
from alignment.fitting import fit as fitting
from alignment.model import alignment as alignments
from alignment.model.alignment import Alignment
from connector.errors import NotMigratedError
from connector.home import Home
from connector.provenance.artifacts import Artifacts
from connector.provenance.database import Database, revisions, upgrade
from connector.requests import FitRequest, ImportRequest
from connector.settings import Settings
from tests.support.cli import SPECS, done
from tests.support.databases import postgres_database
from tests.support.errors import raises
from tests.support.fakes import fake_rows, fake_set
from tests.support.kills import die_before

FIT = FitRequest(sets=["pairs"], alignment="a", method="procrustes")
# Where a fit is killed: before this function is called for the nth time, from 0.
POINTS: dict[str, tuple[Any, str, int]] = {
    "while it fits": (fitting, "fit", 0),
    "before a file is written": (alignments, "write_durably", 0),
    "between two files": (alignments, "write_durably", 1),
    "before the directory is in its place": (Path, "rename", 0),
    "before SQL knows it": (Artifacts, "record_alignment", 0),
}


def settings(home: Path) -> Settings:
    return Settings.load(home=home)


def killed(home: Path, point: str) -> None:
    """Fit, and die at the point."""
    die_before(*POINTS[point])
    with Home(settings(home)) as opened:
        opened.fit(FIT)


def kill_a_fit(processes: ForkServerContext, home: Path, point: str) -> None:
    child = processes.Process(target=killed, args=(home, point), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.fixture
def home(tmp_path: Path, rng: np.random.Generator) -> Path:
    upgrade(settings(tmp_path).database_url)
    X = rng.standard_normal((40, 6))
    Y = X @ rng.standard_normal((6, 6)) + 0.3 * rng.standard_normal((40, 6))
    fake_set(tmp_path / "sets" / "pairs", fake_rows("image", X), fake_rows("text", Y))
    return tmp_path


def left(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "alignments").iterdir())


class TestFit:
    @pytest.mark.parametrize("point", POINTS)
    def test_the_same_command_works_after_a_kill_and_clears_up(
        self, point: str, home: Path, processes: ForkServerContext
    ) -> None:
        kill_a_fit(processes, home, point)
        with Home(settings(home)) as opened:
            result = opened.fit(FIT)
            assert result.counts["pairs"] == result.value.card.pairs > 0
            assert Alignment.load(home / "alignments" / "a").fingerprint == result.value.fingerprint
            assert [run.outcome for run in opened.provenance.runs.newest(2)] == ["done", "killed"]
            row = opened.provenance.artifacts.alignment(1)
            assert (row.name, row.fingerprint) == ("a", result.value.fingerprint)
        assert left(home) == ["a"]

    def test_one_that_ended_well_is_never_made_again(self, home: Path) -> None:
        with Home(settings(home)) as opened:
            opened.fit(FIT)
            for _ in range(2):
                with raises(AlignmentError, "a", "--alignment"):
                    opened.fit(FIT)

    @pytest.mark.slow
    def test_another_fit_does_not_take_what_a_killed_one_left(self, home: Path, processes: ForkServerContext) -> None:
        kill_a_fit(processes, home, "before SQL knows it")
        other = FitRequest(sets=["pairs"], alignment="a", method="procrustes", seed=1)
        with Home(settings(home)) as opened, raises(AlignmentError, "a", "--alignment"):
            opened.fit(other)

    def test_nor_one_of_a_set_that_has_changed(
        self, home: Path, processes: ForkServerContext, rng: np.random.Generator
    ) -> None:
        kill_a_fit(processes, home, "before SQL knows it")
        grown = [fake_rows(modality, rng.standard_normal((50, 6))) for modality in ("image", "text")]
        for shard in (home / "sets" / "pairs").iterdir():
            shard.unlink()
        fake_set(home / "sets" / "pairs", *grown)
        with Home(settings(home)) as opened, raises(AlignmentError, "a", "--alignment"):
            opened.fit(FIT)

    @pytest.mark.slow
    def test_what_people_left_beside_it_stays(self, home: Path, processes: ForkServerContext) -> None:
        kill_a_fit(processes, home, "between two files")
        own = [".a.tmp", ".a.old.tmp", ".a.0123456789abcdef.tmp", ".ab." + "0" * 32 + ".tmp", "a.tmp"]
        for name in own:
            (home / "alignments" / name).mkdir()
        with Home(settings(home)) as opened:
            opened.fit(FIT)
        assert left(home) == sorted([*own, "a"])


# A new home


def vectors(directory: Path) -> Path:
    """A Parquet file of two images."""
    path = directory / "vectors.parquet"
    pq.write_table(pa.table({"key": ["a", "b"], "image": [[1.0, 2.0], [2.0, 1.0]]}), path)
    return path


def imported(where: Settings, source: Path, name: str = "s") -> None:
    with Home(where) as opened:
        opened.import_vectors(ImportRequest(vectors=source, set=name, encoders={"image": "elsewhere"}))


def counted(where: Settings) -> int:
    with Home(where) as opened:
        return sum(run.outcome == "done" for run in opened.status(runs=99).runs)


@pytest.mark.parametrize("state", ["missing", "deep", "empty", "empty file", "elsewhere"])
def test_a_home_that_holds_nothing_needs_no_upgrade(state: str, tmp_path: Path) -> None:
    home = tmp_path / "a" / "b" / "c" if state == "deep" else tmp_path / "new"
    url = f"sqlite:///{tmp_path / 'databases' / 'mine.db'}" if state == "elsewhere" else None
    if state in ("empty", "empty file"):
        home.mkdir()
    if state == "empty file":
        (home / "modalign.db").touch()
    where = Settings.load(home=home, database_url=url)
    imported(where, vectors(tmp_path))
    assert counted(where) == 1
    assert (tmp_path / "databases" / "mine.db").exists() is (state == "elsewhere")
    imported(where, vectors(tmp_path))
    assert counted(where) == 2


def test_a_corpus_is_encoded_into_a_new_home(tmp_path: Path, corpus: Path) -> None:
    done("encode", corpus, "--set", "s", *SPECS, "--home", tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_what_only_reads_begins_no_home(tmp_path: Path) -> None:
    with Home(settings(tmp_path / "typo")) as opened:
        assert opened.is_new
        assert (opened.status().releases, opened.rejects().rows, opened.sets()) == ([], [], [])
        for read in (opened.lag, lambda: opened.rejects(1), lambda: opened.status("c"), lambda: opened.fit(FIT)):
            with raises(NotMigratedError, "typo", "modalign encode", "MODALIGN_HOME", code="home-new"):
                read()
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("held", ["sets", "alignments", "qdrant"])
def test_a_home_whose_database_is_lost_gets_no_empty_one(held: str, tmp_path: Path) -> None:
    (tmp_path / "home" / held).mkdir(parents=True)
    with raises(NotMigratedError, "modalign db upgrade"):
        imported(settings(tmp_path / "home"), vectors(tmp_path))
    assert [path.name for path in (tmp_path / "home").iterdir()] == [held]


def test_older_tables_are_never_upgraded_by_the_way(tmp_path: Path) -> None:
    where = settings(tmp_path)
    upgrade(where.database_url, "0004")
    with raises(NotMigratedError, "0004", "modalign db upgrade"):
        imported(where, vectors(tmp_path))
    assert Database(where.database_url).revision() == "0004"


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "modalign.db") as database:
        database.execute("CREATE TABLE orders (id INTEGER)")
    database.close()
    with raises(NotMigratedError, "modalign db upgrade"):
        imported(settings(tmp_path), vectors(tmp_path))
    with sqlite3.connect(tmp_path / "modalign.db") as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("orders",)]
    database.close()


def test_postgresql_is_upgraded_by_its_owner_alone(postgres: str, tmp_path: Path) -> None:
    with postgres_database(postgres) as url, raises(NotMigratedError, "run `modalign db upgrade`"):
        imported(Settings.load(home=tmp_path, database_url=url), vectors(tmp_path))


def begin(home: Path, source: Path, name: str, together: Barrier) -> None:
    together.wait()
    imported(settings(home), source, name)


@pytest.mark.slow
def test_processes_begin_one_home_at_once(processes: ForkServerContext, tmp_path: Path) -> None:
    together = processes.Barrier(4)
    home, source = tmp_path / "new", vectors(tmp_path)
    children = [processes.Process(target=begin, args=(home, source, f"s{n}", together)) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 4
    assert counted(settings(home)) == 4


def killed_while_beginning(home: Path, source: Path, statements: int) -> None:
    left = statements

    def count(*_: object) -> None:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    event.listen(Engine, "before_cursor_execute", count)
    imported(settings(home), source)


@pytest.mark.slow
@pytest.mark.parametrize("statements", [0, 1, 5, 25, 80])
def test_a_home_whose_beginning_was_killed_begins_again(
    processes: ForkServerContext, tmp_path: Path, statements: int
) -> None:
    home, source = tmp_path / "new", vectors(tmp_path)
    child = processes.Process(target=killed_while_beginning, args=(home, source, statements))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert Database(settings(home).database_url).revision() in (None, revisions()[-1])
    imported(settings(home), source)
    assert counted(settings(home)) == 1
