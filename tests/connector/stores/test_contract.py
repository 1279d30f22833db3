"""Every store keeps the contract: the embedded engine, the client's local mode, and a real server by REST and gRPC."""

from collections.abc import Iterator

import pytest
from qdrant_client import QdrantClient

from connector.stores import qdrant_readiness
from connector.stores.edge import EdgeStore
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import Connection
from tests.support.filter_contract import FilterContract
from tests.support.qdrant_nodes import Server
from tests.support.store_contract import OpenStore, StoreContract
from tests.support.world import LIVE, STORES


@pytest.fixture(scope="module", params=[*STORES, *LIVE])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def builds_graphs(kind: str) -> bool:
    return kind != "memory"


@pytest.fixture(scope="module")
def keeps_settings(kind: str) -> bool:
    return kind != "memory"


@pytest.fixture(scope="module")
def open_store(
    kind: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[OpenStore]:
    if kind == "edge":
        yield lambda: EdgeStore(tmp_path_factory.mktemp("edge"))
    elif kind == "memory":
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(qdrant_readiness, "POLL_SECONDS", 0.0)
            yield lambda: QdrantStore(Connection(QdrantClient(":memory:"), "http://memory"), uploads=1)
    else:
        server: Server = request.getfixturevalue("qdrant_server")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(qdrant_readiness, "POLL_SECONDS", 0.1)
            yield lambda: server.connect(kind)


class TestStore(StoreContract):
    """Collections, points, searches and aliases."""


class TestFilters(FilterContract):
    """Filters."""
