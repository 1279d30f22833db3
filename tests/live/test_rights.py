"""Rights on a real server and a real cluster, by tokens that they check."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.qdrant_nodes import Node
from tests.support.qdrant_servers import cluster, token
from tests.support.rights_contract import Guarded, RightsContract
from tests.support.store_contract import DIM, config, points

pytestmark = pytest.mark.usefixtures("fake_encoders")


@pytest.fixture(scope="module")
def guarded_cluster() -> Iterator[Guarded]:
    with cluster(QDRANT__SERVICE__JWT_RBAC="true") as nodes:
        node = nodes.nodes[0]
        assert node.api_key
        yield Guarded(node.url, node.api_key, {"shards": 2, "replication_factor": 2, "write_consistency_factor": 2})


class TestServer(RightsContract):
    """The rights of each command on one node."""

    @pytest.fixture(params=["REST", "gRPC"])
    def guarded(self, own_server: Node, request: pytest.FixtureRequest) -> Guarded:
        url = own_server.url if request.param == "REST" else own_server.grpc_url
        assert own_server.api_key
        assert url
        return Guarded(url, own_server.api_key)


class TestCluster(RightsContract):
    """The rights of each command where replicas are compared and nodes are asked."""

    @pytest.fixture
    def guarded(self, guarded_cluster: Guarded) -> Guarded:
        return guarded_cluster


def test_a_token_for_points_wakes_an_optimizer_that_a_restart_has_paused(own_server: Node, collection: str) -> None:
    """Otherwise a push with it would wait for the index for ever, or be refused after it has written everything."""
    own_server.start()
    vectors = np.random.default_rng(0).standard_normal((8_000, DIM)).astype(np.float32)
    with own_server.connect() as store:
        store.create(collection, config(indexing_threshold=10, shards=2))
        store.upsert(collection, points(vectors))
        own_server.kill()
    own_server.start()
    with own_server.connect() as store:
        assert store.describe(collection).status == "grey"
    access = [{"collection": collection, "access": "prw"}]
    with own_server.connect(api_key=token(access=access)) as store:
        assert store.ready(collection).status == "green"
    with own_server.connect() as store:
        store.drop(collection)
