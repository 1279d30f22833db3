"""Rights on a real server, by tokens that it checks."""

import pytest

from tests.support.qdrant_servers import Node
from tests.support.rights_contract import Guarded, RightsContract

pytestmark = pytest.mark.usefixtures("fake_encoders")


@pytest.fixture(params=["REST", "gRPC"])
def guarded(own_server: Node, request: pytest.FixtureRequest) -> Guarded:
    url = own_server.url if request.param == "REST" else own_server.grpc_url
    assert own_server.api_key
    assert url
    return Guarded(url, own_server.api_key)


class TestRights(RightsContract):
    """The rights of each command."""
