"""Addresses of servers: judged before anything is sent, and by how TLS and protocols fail there."""

import datetime
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from connector.errors import SettingsError, StoreError
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_address import check_address, wrong_address
from connector.stores.qdrant_connection import RetryPolicy
from tests.support.errors import raises
from tests.support.faulty_grpc_server import over_grpc
from tests.support.faulty_server import FaultyServer, running

ONCE = RetryPolicy(attempts=1)
SECRET = "s3cret"


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "HTTP://h:6333",
        "https://h:6333/prefix/",
        f"https://me:{SECRET}@h:6333",
        "http://[::1]:6333",
        "http://my_server:1",
        "grpc://h",
        "GRPCS://h:65535",
        "grpc://[::1]:6334/",
    ],
)
def test_what_can_be_meant(url: str) -> None:
    check_address(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://", ()),
        ("http:///", ()),
        ("http:h:6333", ()),
        ("http:/h:6333", ()),
        ("h:6333", ()),
        ("ftp://h", ()),
        ("http://:6333", ()),
        ("grpc://:6334", ()),
        ("http://h h:6333", ()),
        ("http://.:6333", ()),
        ("http://a..b:6333", ()),
        ("http://[::1", ()),
        ("http://h:port", ()),
        ("http://h:-1", ()),
        ("http://h:65536", ()),
        ("http://h:0", ("1 to 65535",)),
        ("grpcs://h:0", ("1 to 65535",)),
        ("grpc://h:6334/path", ("path",)),
        ("grpcs://h/a/b", ("path",)),
        (f"http://h:6333?api_key={SECRET}", ("MODALIGN_QDRANT_API_KEY",)),
        (f"grpc://h:6334#{SECRET}", ("MODALIGN_QDRANT_API_KEY",)),
        (f"grpc://me:{SECRET}@h:6334", ("user and password", "MODALIGN_QDRANT_API_KEY")),
        (f"grpc://{SECRET}@h:6334", ("user and password",)),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(url: str, words: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as raised:
        QdrantStore.connect(url)
    assert SECRET not in str(raised.value)
    assert all(word in str(raised.value) for word in words)


@given(st.text(max_size=40), st.sampled_from(["", "http://", "grpc://", "https://h:"]))
def test_whatever_it_is_it_is_taken_or_refused_in_words(rest: str, beginning: str) -> None:
    with suppress(SettingsError):
        check_address(beginning + rest)


# As Python's and gRPC's TLS were recorded with a real server; over REST and over gRPC.
UNVERIFIED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
HANDSHAKE = "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:"
RECORDED = [
    (
        "https://127.0.0.1:6333",
        f"{UNVERIFIED}IP address mismatch, certificate is not valid for '127.0.0.1'. (_ssl.c:1006)",
        "another name than 127.0.0.1",
    ),
    (
        "https://db:6333",
        f"{UNVERIFIED}Hostname mismatch, certificate is not valid for 'db'. (_ssl.c:1006)",
        "another name than db",
    ),
    (
        "grpcs://db:6334",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7411: Custom verification "
        "check failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
        "another name",
    ),
    ("https://db:6333", f"{UNVERIFIED}unable to get local issuer certificate (_ssl.c:1006)", "MODALIGN_QDRANT_CA_FILE"),
    ("https://db:6333", f"{UNVERIFIED}certificate has expired", "has expired"),
    (
        "grpcs://db:6334",
        f"{HANDSHAKE}1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired",
        "has expired",
    ),
    ("https://db:6333", f"{UNVERIFIED}certificate is not yet valid", "not valid yet"),
    ("https://db:6333", "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "write http://"),
    (
        "grpcs://db:6334",
        f"{HANDSHAKE}100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid certificate "
        "verification context",
        "write grpc://",
    ),
    ("https://db:6334", "[SSL] tlsv1 alert no application protocol (_ssl.c:1006)", "write grpcs://"),
    ("grpcs://db:6333", "Received http2 header with status: 404", "write https://"),
    (
        "grpc://db:6333",
        "Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame, got frame type 80) (Trying to "
        "connect an http1.x server (HTTP status 400))",
        "write http://",
    ),
    ("http://db:6334", "illegal request line", "grpc://"),
]


@pytest.mark.parametrize(("url", "why", "says"), RECORDED)
def test_a_failure_of_tls_or_protocol_says_what_is_wrong_with_the_address(url: str, why: str, says: str) -> None:
    assert says in (wrong_address(url, why) or "")


@pytest.mark.parametrize("why", ["Connection refused", "timed out", "Socket closed", "answered 503", "EOF occurred"])
def test_other_failures_say_nothing_of_it(why: str) -> None:
    assert wrong_address("https://db:6333", why) is None


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class TestServers:
    """The same with servers."""

    @pytest.fixture
    def ca_file(self, authority: trustme.CA, tmp_path: Path) -> Path:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        return tmp_path / "ca.pem"

    @pytest.fixture(params=["REST", "gRPC"])
    def url_of(self, request: pytest.FixtureRequest) -> Iterator[object]:
        """Start a server over REST or gRPC with a certificate, or without one; return its URL."""
        with ExitStack() as stack:

            def start(certificate: trustme.LeafCert | None) -> str:
                if request.param == "gRPC":
                    return stack.enter_context(over_grpc(FaultyServer(), certificate))
                return stack.enter_context(running(FaultyServer(), certificate)).url

            yield start

    def test_a_certificate_for_another_name(self, url_of: object, authority: trustme.CA, ca_file: Path) -> None:
        url = url_of(authority.issue_cert("another.example"))  # type: ignore[operator]
        with raises(StoreError, "another name", "a name that the certificate holds into MODALIGN_QDRANT_URL"):
            QdrantStore.connect(url, ca_file=ca_file, retry=ONCE)

    def test_a_certificate_that_has_expired(self, url_of: object, authority: trustme.CA, ca_file: Path) -> None:
        ended = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        url = url_of(
            authority.issue_cert("localhost", "127.0.0.1", not_before=ended.replace(year=2019), not_after=ended)
        )  # type: ignore[operator]
        with raises(StoreError, "has expired"):
            QdrantStore.connect(url, ca_file=ca_file, retry=ONCE)

    def test_tls_where_none_is_spoken(self, url_of: object) -> None:
        plain = url_of(None)  # type: ignore[operator]
        scheme, _, rest = plain.partition("://")
        with raises(StoreError, "speaks no TLS", f"{scheme}://"):
            QdrantStore.connect(f"{scheme}s://{rest}", retry=ONCE)

    @pytest.mark.parametrize("content", ["", "hello", "-----BEGIN CERTIFICATE-----\nMIIB", None])
    @pytest.mark.parametrize("scheme", ["https", "grpcs"])
    def test_a_file_without_a_certificate_is_refused_before_anything_is_sent(
        self, tmp_path: Path, scheme: str, content: str | None
    ) -> None:
        file = tmp_path / "company.pem"
        if content is not None:
            file.write_text(content)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
            with raises(SettingsError, "MODALIGN_QDRANT_CA_FILE", file):
                QdrantStore.connect(url, ca_file=file)

    def test_grpc_where_http_is_spoken(self) -> None:
        with running(FaultyServer()) as server, raises(StoreError, "speaks HTTP"):
            QdrantStore.connect(server.url.replace("http", "grpc"), retry=ONCE)

    def test_http_where_grpc_is_spoken(self) -> None:
        with over_grpc(FaultyServer()) as url, raises(StoreError, "speaks no plain HTTP"):
            QdrantStore.connect(url.replace("grpc", "http"), retry=ONCE)
