"""One server and one cluster by several addresses: the same releases, and requests that go on at another node."""

import logging
from pathlib import Path
from typing import Any

import pytest

from connector.errors import SettingsError
from connector.releases.promotion import Lifecycle, PromotionOverride
from connector.releases.reconcile_releases import reconcile_releases
from connector.stores.qdrant import QdrantStore
from tests.support.errors import raises
from tests.support.qdrant_nodes import Node, Server
from tests.support.qdrant_servers import Cluster
from tests.support.store_contract import drop_collections
from tests.support.world import World, pairs

REPLICATED: dict[str, Any] = {"shards": 2, "replication_factor": 2, "write_consistency_factor": 1}
PROTOCOLS = ["REST", "gRPC"]


def urls(nodes: list[Node], protocol: str) -> str:
    """All addresses of a cluster, as `MODALIGN_QDRANT_URL` takes them."""
    return ",".join(str(node.url if protocol == "REST" else node.grpc_url) for node in nodes)


def connect(cluster: Cluster, protocol: str) -> QdrantStore:
    return QdrantStore.connect(urls(list(cluster.nodes), protocol), api_key=cluster.nodes[0].api_key)


def test_rest_and_grpc_serve_one_release(qdrant_server: Server, collection: str, tmp_path: Path) -> None:
    with qdrant_server.connect("REST") as rest, qdrant_server.connect("gRPC") as grpc:
        world = World(tmp_path, rest)
        with world.provenance:
            world.alignment()
            world.alignment("b", turn=1)
            embedding_set = world.set("s", *pairs(6))
            (first,) = world.push(embedding_set, collection=collection).releases
            world.store = grpc
            assert world.push(embedding_set, collection=collection).counts == {"unchanged": 12}
            (shadow,) = world.push(embedding_set, "b", collection=collection).releases
            with world.provenance.runs.start("promote", {}) as run:
                Lifecycle(world.provenance, rest, collection).promote(run.id, forced=PromotionOverride("me", "test"))
            assert {row.physical_name: row.state for row in world.provenance.releases.find()} == {
                first.name: "retired",
                shadow.name: "live",
            }
            for store in (rest, grpc):
                assert all(r.consistent for r in reconcile_releases(world.provenance, store, collection, seed=0))
        drop_collections(rest, collection)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_another_node_serves_when_one_is_killed(
    cluster: Cluster, collection: str, tmp_path: Path, protocol: str
) -> None:
    with connect(cluster, protocol) as store:
        world = World(tmp_path, store)
        with world.provenance:
            world.alignment()
            world.push(world.set("s", *pairs(6)), collection=collection, **REPLICATED)
            cluster.nodes[0].kill()
            (release,) = world.push(world.set("s", *pairs(9)), collection=collection).releases
            assert store.count(release.name) == 18
            assert all(r.consistent for r in reconcile_releases(world.provenance, store, collection, seed=0))
            with connect(cluster, protocol) as world.store:  # the first address is dead from the start
                assert world.push(world.set("s", *pairs(9)), collection=collection).counts == {"unchanged": 18}
            assert len(world.provenance.releases.find()) == 1


def test_another_node_is_the_same_store(cluster: Cluster, collection: str, tmp_path: Path) -> None:
    world = World(tmp_path, cluster.nodes[0].connect())
    with world.provenance:
        world.alignment()
        embedding_set = world.set("s", *pairs(6))
        world.push(embedding_set, collection=collection, **REPLICATED)
        for node in cluster.nodes:
            for protocol in PROTOCOLS:
                with node.connect(protocol) as world.store:
                    assert world.push(embedding_set, collection=collection).counts == {"unchanged": 12}
        assert len(world.provenance.releases.find()) == 1
        assert len(set(world.provenance.stores.addresses().values())) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_addresses_of_two_servers_are_refused(
    cluster: Cluster, qdrant_server: Server, collection: str, tmp_path: Path, protocol: str
) -> None:
    other = qdrant_server.url if protocol == "REST" else str(qdrant_server.grpc_url)
    with qdrant_server.connect() as beside, connect(cluster, protocol) as store:
        for each in (beside, store):
            world = World(tmp_path / each.url.rpartition(":")[2], each)
            with world.provenance:
                world.alignment()
                world.push(world.set("s", *pairs(3)), collection=collection)
        first = urls([cluster.nodes[1]], protocol)
        with QdrantStore.connect(f"{first},{other}", api_key=cluster.nodes[0].api_key) as both:
            cluster.nodes[1].kill()
            with raises(SettingsError, first, other):
                both.collections()
        cluster.start()
        drop_collections(beside, collection)


def test_a_peer_that_is_away_is_named(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cluster.nodes[0].connect().close()
    assert not caplog.messages
    cluster.nodes[2].kill()
    cluster.nodes[0].connect().close()
    (message,) = caplog.messages
    assert "peer" in message
