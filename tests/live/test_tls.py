"""A server that speaks TLS, by both protocols, with the authority that the settings name."""

from pathlib import Path

import pytest

from connector.home import Home
from connector.provenance.database import upgrade
from connector.requests import PushRequest, SearchRequest
from connector.settings import Settings
from tests.support.qdrant_servers import Node
from tests.support.world import alignment, pairs, write_set


@pytest.mark.usefixtures("fake_encoders")
@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
def test_the_settings_reach_it(tls_server: Node, collection: str, tmp_path: Path, protocol: str) -> None:
    url = tls_server.url if protocol == "REST" else tls_server.grpc_url
    assert url is not None
    database_url = f"sqlite:///{tmp_path / 'modalign.db'}"
    settings = Settings(tmp_path, url, database_url, api_key=tls_server.api_key, ca_file=tls_server.ca_file)
    upgrade(database_url)
    alignment().save(settings.alignment_path("a"))
    write_set(settings.set_path("s"), pairs(10))
    with Home(settings) as home:
        assert home.push(PushRequest(set="s", into=collection, alignment="a")).counts == {"written": 20}
        assert len(home.search(SearchRequest(collection=collection, query="crimson", k=5)).hits) == 5
