"""Rights on a real server and a real cluster, by tokens that they check."""

from collections.abc import Iterator

import pytest

from tests.support.qdrant_servers import Node, cluster
from tests.support.rights_contract import Guarded, RightsContract

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
