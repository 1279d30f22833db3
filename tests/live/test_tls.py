"""A server that speaks TLS, by both protocols, with the authority that the settings name."""

from pathlib import Path

import pytest
import trustme

from connector.errors import SettingsError, StoreError
from connector.home import Home
from connector.provenance.database import upgrade
from connector.requests import PushRequest, SearchRequest
from connector.settings import Settings
from connector.stores.qdrant import QdrantStore
from tests.support.errors import raises
from tests.support.qdrant_nodes import Node, Server
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


@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
class TestWhatIsWrong:
    """Each is told apart, and none is tried again."""

    def test_an_authority_that_did_not_sign_it(self, tls_server: Node, tmp_path: Path, protocol: str) -> None:
        trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
        with raises(StoreError, "not trusted", "MODALIGN_QDRANT_CA_FILE"):
            tls_server.connect(protocol, ca_file=tmp_path / "other.pem")

    def test_a_file_without_a_certificate(self, tls_server: Node, tmp_path: Path, protocol: str) -> None:
        (tmp_path / "empty.pem").touch()
        with raises(SettingsError, tmp_path / "empty.pem"):
            tls_server.connect(protocol, ca_file=tmp_path / "empty.pem")

    def test_the_other_protocol(self, tls_server: Node, protocol: str) -> None:
        url = (tls_server.url if protocol == "REST" else tls_server.grpc_url) or ""
        scheme, _, rest = url.partition("://")
        other = {"https": "grpcs", "grpcs": "https"}[scheme]
        with raises(StoreError, f"write {scheme}://"):
            QdrantStore.connect(f"{other}://{rest}", ca_file=tls_server.ca_file, api_key="test")


@pytest.mark.parametrize(("scheme", "protocol"), [("https", "REST"), ("grpcs", "gRPC")])
def test_a_port_without_tls(qdrant_server: Server, scheme: str, protocol: str) -> None:
    url = (qdrant_server.url if protocol == "REST" else qdrant_server.grpc_url) or ""
    with raises(StoreError, "speaks no TLS"):
        QdrantStore.connect(f"{scheme}://{url.partition('://')[2]}")
