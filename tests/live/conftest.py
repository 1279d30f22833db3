"""Fixtures of the tests against real servers. Each skips, and says why, where no server can be had."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from connector.stores import qdrant_readiness
from connector.stores.qdrant import QdrantStore
from tests.support.qdrant_nodes import Node, Server
from tests.support.qdrant_servers import Cluster, single_server
from tests.support.qdrant_servers import cluster as started_cluster
from tests.support.store_contract import drop_collections
from tests.support.world import World


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this directory; the hook is given all tests."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.live)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask small collections more often than large ones need whether their index is built."""
    monkeypatch.setattr(qdrant_readiness, "POLL_SECONDS", 0.1)


@pytest.fixture
def collection() -> str:
    """A name that no one else has, because a server may be shared: what a test makes there begins with it."""
    return f"live-{uuid4().hex[:8]}"


@pytest.fixture(params=["REST", "gRPC"])
def store(request: pytest.FixtureRequest, qdrant_server: Server, collection: str) -> Iterator[QdrantStore]:
    """The server by either protocol; what the test leaves there is dropped."""
    with qdrant_server.connect(request.param) as store:
        yield store
        drop_collections(store, collection)


@pytest.fixture
def world(store: QdrantStore, tmp_path: Path) -> Iterator[World]:
    """A home with an alignment beside the server."""
    world = World(tmp_path, store)
    with world.provenance:
        world.alignment()
        yield world


@pytest.fixture(scope="session")
def tls_server() -> Iterator[Node]:
    """A server that speaks TLS, for `localhost` and `127.0.0.1`."""
    with single_server(tls=True) as node:
        yield node


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    with started_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(session_cluster: Cluster, collection: str) -> Iterator[Cluster]:
    """A cluster whose nodes all run; the test may stop and kill them, and what it leaves there is dropped."""
    session_cluster.start()
    yield session_cluster
    session_cluster.start()
    with session_cluster.nodes[0].connect() as store:
        drop_collections(store, collection)
