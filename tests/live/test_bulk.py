"""A server that also listens for gRPC beside REST is written to over gRPC, and no other server is."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from alignment.metrics import Distance
from alignment.modality import MODALITIES
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.qdrant_bulk import BulkClients
from connector.stores.qdrant_connection import connected
from tests.support.qdrant_nodes import Server
from tests.support.qdrant_servers import single_server
from tests.support.store_contract import drop_collections
from tests.support.world import World, pairs, stored


@pytest.fixture(scope="module")
def beside() -> Iterator[Server]:
    """A server with gRPC at the port after that of REST."""
    with single_server(grpc_beside=True) as node:
        yield node


def writes(server: Server, protocol: str) -> int:
    """How many writes of points the server has completed over a protocol, as its metrics tell."""
    over = {
        "REST": r'rest_responses_total\{method="PUT",endpoint="/collections/\{\w+\}/points",status="200"[^}]*\} (\d+)',
        "gRPC": r'grpc_responses_total\{endpoint="/qdrant.Points/Upsert"[^}]*\} (\d+)',
    }
    with server.client() as client:
        return sum(map(int, re.findall(over[protocol], client.get("/metrics").text)))


@contextmanager
def pushed(server: Server, protocol: str, collection: str, home: Path) -> Iterator[dict[str, Any]]:
    """What a push of 60 items leaves in a collection of the server."""
    with server.connect(protocol) as store:
        world = World(home, store)
        with world.provenance:
            world.alignment()
            (release,) = world.push(world.set("s", *pairs(30)), collection=collection).releases
            yield {modality: stored(store, release.name, modality) for modality in MODALITIES}
            drop_collections(store, collection)


def test_by_an_address_of_rest_points_arrive_over_grpc_and_are_the_same(
    beside: Server, collection: str, tmp_path: Path
) -> None:
    before = {protocol: writes(beside, protocol) for protocol in ("REST", "gRPC")}
    with pushed(beside, "REST", collection, tmp_path / "a") as ours:
        assert writes(beside, "gRPC") > before["gRPC"]
        assert writes(beside, "REST") == before["REST"]
        with pushed(beside, "gRPC", f"{collection}-other", tmp_path / "b") as theirs:
            assert ours == theirs
    assert {modality: len(points) for modality, points in ours.items()} == {"image": 60, "text": 60}


def test_where_nothing_listens_beside_rest_points_arrive_over_rest(
    qdrant_server: Server, collection: str, tmp_path: Path
) -> None:
    before = {protocol: writes(qdrant_server, protocol) for protocol in ("REST", "gRPC")}
    with pushed(qdrant_server, "REST", collection, tmp_path) as ours:
        assert writes(qdrant_server, "REST") > before["REST"]
        assert writes(qdrant_server, "gRPC") == before["gRPC"]
        assert len(ours["image"]) == 60


@pytest.mark.parametrize("metadata", [None, {}, {"of": "another"}], ids=["missing", "without metadata", "another's"])
def test_a_server_that_does_not_show_the_collection_is_never_written_to(
    beside: Server, qdrant_server: Server, collection: str, metadata: dict[str, str] | None
) -> None:
    """Another server may listen at the port after that of REST."""

    def client_of(server: Server, _: str) -> QdrantClient:
        assert server.grpc_url is not None
        return connected(server.grpc_url, api_key=server.api_key).client

    vectors = {"image": VectorConfig(2, Distance.COSINE)}
    with beside.connect() as ours, qdrant_server.connect() as other:
        ours.create(collection, CollectionConfig(vectors, {"of": "us"}))
        if metadata is not None:
            other.create(collection, CollectionConfig(vectors, metadata))
        for server, offered in ((qdrant_server, False), (beside, True)):
            connection = connected(beside.url, api_key=beside.api_key)
            with closing(BulkClients(connection, *[partial(client_of, server)] * 2)) as clients:
                assert (clients.of(collection) is not None) == offered
            connection.addresses.close()
        for store in (ours, other):
            store.drop(collection)
