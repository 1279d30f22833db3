"""The boundary to a server: every failure becomes the right exception, and only what may pass is tried again."""

import inspect
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import grpc
import httpx
import numpy as np
import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pytest_httpserver import HTTPServer
from qdrant_client import QdrantClient
from qdrant_client.common import client_exceptions
from qdrant_client.http import exceptions

from alignment.metrics import Distance
from connector.errors import (
    AccessDeniedError,
    CollectionNotFoundError,
    ConnectorError,
    RequestRefusedError,
    RequestTooLargeError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
)
from connector.stores import qdrant_clients, qdrant_connection, qdrant_readiness
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.consistent_client import ConsistentClient
from connector.stores.layout import Layout
from connector.stores.points import Points
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import ATTEMPTS_TO_CONNECT, Connection, RetryPolicy
from connector.stores.qdrant_failures import HTTP_STATUS
from tests.support.canned_server import CannedServer, result, version
from tests.support.errors import raises

ATTEMPTS = 3
KEY = "s3cret-key"


@pytest.fixture
def server(httpserver: HTTPServer) -> CannedServer:
    return CannedServer(httpserver)


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Try again without waiting."""
    with stamina.set_testing(True, attempts=ATTEMPTS):
        yield


@pytest.fixture
def store(server: CannedServer) -> Iterator[QdrantStore]:
    """A store that has connected; whatever comes now is the server's answer to the method under test."""
    with QdrantStore.connect(server.url) as store:
        server.requests.clear()
        yield store


@pytest.fixture
def connection() -> Iterator[Connection]:
    """A connection whose errors are translated; what fails is the operation, so it reaches no server."""
    client = QdrantClient(":memory:")
    yield Connection(client, "http://host:6333")
    client.close()


FAILURES: dict[str, tuple[int, dict[str, str], bytes, type[StoreError], int, str]] = {
    "bad request": (400, {}, b"Wrong input: bad", RequestRefusedError, 1, "400.*Wrong input: bad"),
    "wrong key": (401, {}, b"Invalid API key", AccessDeniedError, 1, "401.*MODALIGN_QDRANT_API_KEY"),
    "not allowed": (403, {}, b"Forbidden", AccessDeniedError, 1, "403.*MODALIGN_QDRANT_API_KEY"),
    "not found": (404, {}, b"Collection c doesn't exist", CollectionNotFoundError, 1, "Collection c doesn't exist"),
    "timeout": (408, {}, b"", StoreUnavailableError, ATTEMPTS, "408"),
    "conflict": (409, {}, b"exists", StoreError, 1, "409.*exists"),
    "too large": (413, {}, b"limit is 32 MB", RequestTooLargeError, 1, "413.*32 MB"),
    "unprocessable": (422, {}, b"dim", RequestRefusedError, 1, "422.*dim"),
    "too many": (429, {}, b"slow down", StoreUnavailableError, ATTEMPTS, "429.*slow down"),
    "too many, for a while": (429, {"Retry-After": "7"}, b"", StoreUnavailableError, ATTEMPTS, "fewer requests"),
    "too many, until a date": (
        429,
        {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"},
        b"",
        StoreUnavailableError,
        ATTEMPTS,
        "21 Oct",
    ),
    "failed": (500, {}, b"panic", StoreUnavailableError, ATTEMPTS, "500.*panic"),
    "bad gateway": (502, {}, b"", StoreUnavailableError, ATTEMPTS, "502"),
    "overloaded": (503, {}, b"", StoreUnavailableError, ATTEMPTS, "503"),
    "gateway timeout": (504, {}, b"", StoreUnavailableError, ATTEMPTS, "504"),
    "moved": (302, {"Location": "/login"}, b"", StoreError, 1, "302"),
    "a web page": (200, {}, b"<html>hello</html>", StoreError, 1, "did not answer as Qdrant does"),
    "bytes": (200, {}, b"\xff\xfe\x00\xd8", StoreError, 1, "did not answer as Qdrant does"),
    "nothing": (200, {}, b"", StoreError, 1, "did not answer as Qdrant does"),
    "other json": (200, {}, b'{"hello": 1}', StoreError, 1, "did not answer as Qdrant does"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_answers_become_exceptions(server: CannedServer, store: QdrantStore, failure: str) -> None:
    status, headers, body, expected, requests, message = FAILURES[failure]
    server.answer = lambda method, path: (status, headers, body)
    with pytest.raises(StoreError, match=message) as raised:
        store.describe("c")
    assert type(raised.value) is expected
    assert server.url in str(raised.value)
    assert raised.value.__cause__ is not None
    assert len(server.requests) == requests


@pytest.mark.slow
@pytest.mark.parametrize("failure", sorted(FAILURES.keys() - {"not found"}))
def test_connecting_to_them_fails_alike(server: CannedServer, failure: str) -> None:
    status, headers, body, expected, requests, message = FAILURES[failure]
    server.answer = lambda method, path: (status, headers, body)
    with pytest.raises(StoreError, match=message) as raised:
        QdrantStore.connect(server.url)
    assert type(raised.value) is expected
    assert len(server.requests) == requests


@pytest.mark.parametrize("body", [b"", b"<html>404 Not Found</html>"])
def test_where_nothing_of_qdrant_answers(server: CannedServer, body: bytes) -> None:
    server.always(404, body)
    with raises(StoreError, f"{server.url}/x", "nothing of Qdrant", "path"):
        QdrantStore.connect(f"{server.url}/x")


def test_what_qdrant_says_is_shown_without_the_json_around_it(server: CannedServer, store: QdrantStore) -> None:
    server.always(403, json.dumps({"status": {"error": "Forbidden: Access to c is required"}, "time": 1e-4}).encode())
    with raises(AccessDeniedError, "answered 403: Forbidden: Access to c is required; check"):
        store.count("c")


def test_a_closed_connection_is_tried_again(server: CannedServer, store: QdrantStore) -> None:
    server.answer = lambda method, path: None
    with raises(StoreUnavailableError, server.url, "MODALIGN_QDRANT_URL"):
        store.count("c")
    assert len(server.requests) == ATTEMPTS


def test_no_server_at_all() -> None:
    with pytest.raises(StoreUnavailableError, match=r"cannot be reached.*refused"):
        QdrantStore.connect("http://127.0.0.1:1")  # no port that anybody serves


def test_what_passes_is_not_an_error(server: CannedServer, store: QdrantStore) -> None:
    answers: Iterator[tuple[int, dict[str, str], bytes] | None] = iter(
        [(503, {}, b""), None, (200, {}, result({"count": 7}))]
    )
    server.answer = lambda method, path: next(answers)
    assert store.count("c") == 7
    assert server.requests == [("POST", "/collections/c/points/count")] * 3


def test_attempts_are_bounded_without_the_tests_help() -> None:
    assert 1 < ATTEMPTS_TO_CONNECT < RetryPolicy().attempts <= 10
    assert RetryPolicy().timeout <= 120
    assert RetryPolicy().max_retry_after <= 60


@pytest.mark.parametrize("found", ["1.16.0", "1.16.3", "1.17.0-dev", "1.20.1"])
def test_versions_that_are_new_enough(server: CannedServer, found: str) -> None:
    server.always(200, version(found))
    QdrantStore.connect(server.url).close()
    assert server.requests == [("GET", "/"), ("GET", "/cluster")]


@pytest.mark.parametrize("found", ["1.15.5", "1.9.2", "0.11.0", "weird", ""])
def test_versions_that_are_not(server: CannedServer, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Watched(ConsistentClient):
        def close(self, grpc_grace: float | None = None, **options: Any) -> None:
            closed.append(found)
            super().close(grpc_grace, **options)

    monkeypatch.setattr(qdrant_clients, "ConsistentClient", Watched)
    server.always(200, version(found))
    with pytest.raises(StoreError, match=rf"expected Qdrant 1\.16 or newer, got {found}") as raised:
        QdrantStore.connect(server.url)
    assert closed == [found]
    assert raised.tb is not None  # its frames keep the client, which would close itself when it goes


@pytest.mark.parametrize("found", ["2.0.0", "3.1.4"])
def test_versions_that_are_too_new(server: CannedServer, found: str) -> None:
    server.always(200, version(found))
    with raises(StoreError, "1.x", found):
        QdrantStore.connect(server.url)


def test_a_quantization_that_the_server_is_too_old_for(server: CannedServer, store: QdrantStore) -> None:
    with raises(SettingsError, "turbo", "1.18", "1.16"):
        store.create("c", CollectionConfig({"v": VectorConfig(2, Distance.DOT)}, quantization="turbo"))
    assert server.requests == []


@pytest.mark.parametrize(("found", "allowed"), [("1.18.3", False), ("1.19.0", False), ("1.20.1", True)])
def test_a_compression_that_the_server_is_too_old_for(server: CannedServer, found: str, allowed: bool) -> None:
    """Qdrant 1.18.3 answers 400 over REST to a `bits8` that it does not know."""
    server.always(200, version(found))
    with QdrantStore.connect(server.url) as store:
        store.check_layout(Layout(quantization="turbo", compression="bits4"))
        expected = nullcontext() if allowed else raises(SettingsError, "bits8", "1.20", found.rpartition(".")[0])
        with expected:
            store.check_layout(Layout(quantization="turbo", compression="bits8"))


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 200])
def test_the_key_is_sent_and_never_shown(server: CannedServer, status: int) -> None:
    server.always(status, b"no")
    with pytest.raises(StoreError) as raised:
        QdrantStore.connect(server.url, api_key=KEY)
    assert set(server.keys) == {KEY}
    error: BaseException | None = raised.value
    while error is not None:
        assert KEY not in str(error)
        assert KEY not in repr(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "grpc://127.0.0.1:1"])
@pytest.mark.parametrize("key", [f" {KEY}", f"{KEY} ", f"{KEY}\n", f"\t{KEY}", "s\xe9cret", "\n"])
def test_a_key_that_no_header_carries_is_named_before_anything_is_sent(url: str, key: str) -> None:
    with pytest.raises(SettingsError, match=r"MODALIGN_QDRANT_API_KEY.*white space") as raised:
        QdrantStore.connect(url, api_key=key)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "open_key"),
    [
        ("http://127.1:1", True),
        ("http://[::ffff:127.0.0.1]:1", True),
        ("grpc://h:1", True),
        ("https://h:1", False),
        ("http://localhost:1", False),
    ],
)
def test_one_line_says_that_the_key_is_not_encrypted(
    url: str, open_key: bool, caplog: pytest.LogCaptureFixture
) -> None:
    qdrant_clients.warn_of_open_key.cache_clear()
    for _ in range(2):
        qdrant_connection.connected(url, api_key=KEY).client.close()
    qdrant_connection.connected(url).client.close()
    assert [("MODALIGN_QDRANT_API_KEY" in line, KEY in line) for line in caplog.messages] == [(True, False)] * open_key


def test_a_password_in_the_url_is_never_shown(server: CannedServer) -> None:
    server.always(500)
    with pytest.raises(StoreUnavailableError) as raised:
        QdrantStore.connect(f"http://me:{KEY}@127.0.0.1:{server.port}")
    assert KEY not in str(raised.value)
    assert "//***@127.0.0.1" in str(raised.value)


@pytest.mark.parametrize("url", ["http://localhost:port", "http://[::1", "https://a b", f"http://me:{KEY}@h:99999"])
def test_urls_that_cannot_be_meant(url: str) -> None:
    with pytest.raises(SettingsError, match=r"expected http\(s\)://HOST:PORT") as raised:
        QdrantStore.connect(url)
    assert KEY not in str(raised.value)


def instances(kind: type[Exception]) -> Exception:
    """Make an exception of qdrant_client as the client would."""

    class Strict(BaseModel):
        number: int

    if kind is exceptions.UnexpectedResponse:
        return exceptions.UnexpectedResponse(418, "I'm a teapot", b"tea", httpx.Headers())
    if kind is exceptions.ResponseHandlingException:
        try:
            Strict.model_validate({"number": "many"})
        except ValidationError as error:
            return exceptions.ResponseHandlingException(error)
    if kind is client_exceptions.ResourceExhaustedResponse:
        return client_exceptions.ResourceExhaustedResponse("slow down", 3)
    return kind("something")


UPSTREAM = [
    kind
    for module in (exceptions, client_exceptions)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == module.__name__
]
TRANSPORT = [kind for _, kind in inspect.getmembers(httpx, inspect.isclass) if issubclass(kind, httpx.TransportError)]


def raising(error: Exception) -> Callable[[], None]:
    def operation() -> None:
        raise error

    return operation


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*UPSTREAM, *TRANSPORT])
def test_every_exception_of_the_client_is_translated(connection: Connection, kind: type[Exception]) -> None:
    error = instances(kind)
    with pytest.raises(ConnectorError) as raised:
        connection.translated(raising(error))
    assert isinstance(raised.value, StoreError)
    assert raised.value.__cause__ is error
    assert connection.url in str(raised.value)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_of_grpc_is_translated(connection: Connection, code: grpc.StatusCode) -> None:
    class Failed(grpc.RpcError, grpc.Call):  # type: ignore[misc]  # what a channel raises is both
        def code(self) -> grpc.StatusCode:
            return code

        def details(self) -> str:
            return "why"

    Failed.__abstractmethods__ = frozenset()
    with pytest.raises(StoreError, match="why") as raised:
        connection.translated(raising(Failed()))
    passing = {"UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNAVAILABLE", "CANCELLED"}
    assert isinstance(raised.value, StoreUnavailableError) == (code.name in passing)
    assert code in HTTP_STATUS


GRPC = [
    kind
    for _, kind in inspect.getmembers(grpc, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == "grpc"
]


@pytest.mark.parametrize("kind", GRPC)
def test_every_exception_of_grpc_is_translated(connection: Connection, kind: type[Exception]) -> None:
    with pytest.raises(StoreError) as raised:
        connection.translated(raising(kind("something")))
    assert raised.value.__cause__ is not None


def test_there_are_exceptions_to_translate() -> None:
    assert {kind.__name__ for kind in UPSTREAM} >= {"ApiException", "UnexpectedResponse", "QdrantException"}
    assert len(TRANSPORT) > 5
    assert {kind.__name__ for kind in GRPC} >= {"RpcError", "FutureTimeoutError"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("-5", 0.0),
        ("-0.5", 0.0),
        ("7", 7.0),
        ("2.5", 2.5),
        ("9" * 400, None),
        ("9" * 5000, None),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        (",", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
        ("Wed, 99 Oct 99999 07:28:00 GMT", None),
        ("21 Oct", None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_every_wait_that_a_server_asks_for_can_be_waited(
    server: CannedServer, store: QdrantStore, header: str, seconds: float | None, status: int
) -> None:
    server.answer = lambda method, path: (status, {"Retry-After": header}, b"{}")
    with pytest.raises(StoreUnavailableError) as raised:
        store.count("c")
    wait = raised.value.retry_after
    assert wait == seconds or (wait is not None and len(header) == 400)
    assert len(server.requests) == ATTEMPTS


@pytest.mark.slow
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_no_retry_after_is_beyond_reason(header: str) -> None:
    def answered() -> None:
        raise client_exceptions.ResourceExhaustedResponse("slow down", header)  # type: ignore[arg-type]  # as sent

    client = QdrantClient(":memory:")
    with pytest.raises(StoreUnavailableError) as raised:
        Connection(client, "http://host:6333").translated(answered)
    client.close()
    assert raised.value.retry_after is None or raised.value.retry_after >= 0


def test_a_closed_store_says_so_and_tries_nothing_again(server: CannedServer, store: QdrantStore) -> None:
    server.answer = lambda method, path: (200, {}, result(INFO))
    one = Points("v", ["00000000-0000-0000-0000-000000000001"], np.ones((1, 2), np.float32), [{}])
    store.datatype("c")
    store.close()
    server.requests.clear()
    for use in (lambda: store.count("c"), lambda: store.upsert("c", one), store.collections):
        with raises(StoreError, "closed", server.url):
            use()
    assert server.requests == []


@pytest.mark.parametrize("source", [httpx.ConnectError("no"), httpx.ReadTimeout("slow"), OSError("broken pipe")])
def test_a_failure_on_the_way_may_pass(connection: Connection, source: Exception) -> None:
    with pytest.raises(StoreUnavailableError, match=str(source)):
        connection.translated(raising(exceptions.ResponseHandlingException(source)))


@pytest.mark.parametrize("error", [KeyError("bug"), TypeError("bug"), AttributeError("bug")])
def test_our_own_mistakes_are_not_disguised(connection: Connection, error: Exception) -> None:
    with pytest.raises(type(error)):
        connection.translated(raising(error))


INFO: dict[str, Any] = {
    "status": "green",
    "optimizer_status": "ok",
    "points_count": 1,
    "indexed_vectors_count": 1,
    "segments_count": 1,
    "payload_schema": {},
    "config": {
        "params": {"vectors": {"v": {"size": 2, "distance": "Dot"}}},
        "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10},
        "optimizer_config": {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1000,
            "default_segment_number": 0,
            "flush_interval_sec": 5,
        },
    },
}


def refusal(words: str) -> bytes:
    return json.dumps({"status": {"error": words}, "time": 0.0}).encode()


class TestRights:
    """Answers of Qdrant 1.18.3 to requests that change nothing; it takes an empty change of aliases, others may not."""

    @pytest.mark.parametrize(
        ("status", "body", "allowed"),
        [
            (400, refusal("Bad request: Empty update request"), True),
            (403, refusal("Forbidden: Write access to collection c is required"), False),
            (403, refusal("Forbidden: Access to collection c is required"), False),
            (403, refusal("Forbidden: Global manage access is required"), False),
            (401, b"Invalid API key or JWT", False),
        ],
    )
    def test_whether_a_key_may_write(
        self, server: CannedServer, store: QdrantStore, status: int, body: bytes, allowed: bool
    ) -> None:
        server.answer = lambda method, path: (status, {}, body)
        with nullcontext() if allowed else raises(AccessDeniedError, "MODALIGN_QDRANT_API_KEY"):
            store.check_may_write("c")
        assert server.requests == [("POST", "/collections/c/points/delete")]
        assert server.bodies[-1]["points"] == []

    @pytest.mark.parametrize(
        ("status", "body", "allowed"),
        [
            (200, b'{"result": true, "status": "ok", "time": 0.0}', True),
            (400, refusal("Bad request: no actions"), True),
            (403, refusal("Forbidden: Global access is required"), False),
        ],
    )
    def test_whether_a_key_may_manage(
        self, server: CannedServer, store: QdrantStore, status: int, body: bytes, allowed: bool
    ) -> None:
        server.answer = lambda method, path: (status, {}, body)
        with nullcontext() if allowed else raises(AccessDeniedError, "MODALIGN_QDRANT_API_KEY"):
            store.check_may_manage()
        assert server.requests == [("POST", "/collections/aliases")]
        assert server.bodies[-1]["actions"] == []


class TestProtocol:
    """What a real server may answer, and only when something is wrong with it."""

    @pytest.mark.parametrize("status", ["acknowledged", "wait_timeout"])
    @pytest.mark.parametrize("operation", ["upsert", "delete"])
    def test_only_completed_counts(self, server: CannedServer, store: QdrantStore, status: str, operation: str) -> None:
        def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
            if "points" in path:
                return 200, {}, result({"operation_id": 1, "status": status})
            return 200, {}, result(INFO)

        server.answer = answer
        one = ["00000000-0000-0000-0000-000000000001"]
        write = {
            "upsert": lambda: store.upsert("c", Points("v", one, np.ones((1, 2), np.float32), [{}])),
            "delete": lambda: store.delete("c", one),
        }
        with raises(StoreUnavailableError, status):
            write[operation]()

    def polled(self, server: CannedServer, monkeypatch: pytest.MonkeyPatch, *states: dict[str, Any]) -> None:
        """Let the server pass through `states` and stay in the last."""
        monkeypatch.setattr(qdrant_readiness, "POLL_SECONDS", 0.0)
        left = list(states)

        def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
            if path == "/aliases":
                return 200, {}, result({"aliases": []})
            if path.endswith("/count"):
                return 200, {}, result({"count": 1})
            if path.endswith("/points/delete"):
                return 200, {}, result({"operation_id": 1, "status": "completed"})
            if path.endswith("/optimizations"):
                return 404, {}, b""
            return 200, {}, result({**INFO, **(left.pop(0) if len(left) > 1 else left[0])})

        server.answer = answer

    def asked(self, server: CannedServer) -> int:
        return server.requests.count(("GET", "/collections/c"))

    def test_ready_means_green_for_a_while(
        self, server: CannedServer, store: QdrantStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        green, yellow = {"status": "green"}, {"status": "yellow"}
        self.polled(server, monkeypatch, green, yellow, green, green, yellow, green)
        assert store.ready("c").indexed == 1
        # The three in a row are the sixth to the eighth; the ninth describes.
        assert self.asked(server) == 5 + qdrant_readiness.STABLE_POLLS + 1
        store.ready("c")
        assert self.asked(server) == 5 + 2 * (qdrant_readiness.STABLE_POLLS + 1)

    def test_a_wait_for_the_index_is_told_of_with_the_servers_reason(
        self,
        server: CannedServer,
        store: QdrantStore,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        slow = {"status": "yellow", "warnings": [{"message": "disk is slow"}], "update_queue": {"length": 3}}
        self.polled(server, monkeypatch, slow, slow, slow, {"status": "green"})
        with caplog.at_level(logging.INFO):
            store.ready("c")
        (line,) = [record.getMessage() for record in caplog.records if "collection c" in record.getMessage()]
        for words in ("status yellow", "3 updates queued", "disk is slow"):
            assert words in line
        caplog.clear()
        self.polled(server, monkeypatch, slow, slow, slow, {"status": "green"})
        monkeypatch.setattr(qdrant_readiness, "REPORT_SECONDS", 0.0)
        with caplog.at_level(logging.INFO):
            store.ready("c")
        assert caplog.text.count("disk is slow") == 3
        caplog.clear()
        with caplog.at_level(logging.INFO):
            store.ready("c")
        assert "collection c" not in caplog.text

    def test_a_paused_optimizer_is_woken(
        self, server: CannedServer, store: QdrantStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.polled(server, monkeypatch, {"status": "grey"}, {"status": "green"})
        store.ready("c")
        assert server.requests.count(("POST", "/collections/c/points/delete")) == 1

    @pytest.mark.parametrize(
        ("left", "said"),
        [
            ({"update_queue": {"length": 3}}, "3 updates queued, 0 points deferred"),
            ({"update_queue": {"length": 0, "deferred_points": 9}}, "0 updates queued, 9 points deferred"),
        ],
    )
    def test_green_with_updates_queued_or_points_deferred_is_not_ready(
        self, server: CannedServer, store: QdrantStore, monkeypatch: pytest.MonkeyPatch, left: dict[str, Any], said: str
    ) -> None:
        self.polled(server, monkeypatch, left, left, {"update_queue": {"length": 0, "deferred_points": 0}})
        store.ready("c")
        assert self.asked(server) == 2 + qdrant_readiness.STABLE_POLLS + 1
        self.polled(server, monkeypatch, left)
        monkeypatch.setattr(qdrant_readiness, "INDEX_SECONDS", 0.05)
        with pytest.raises(StoreUnavailableError, match=said):
            store.ready("c")

    def test_green_with_optimizations_running_or_queued_is_not_ready(
        self, server: CannedServer, store: QdrantStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.polled(server, monkeypatch, {})
        others = server.answer
        running = {
            "uuid": str(UUID(int=1)),
            "optimizer": "merge",
            "status": "optimizing",
            "segments": [],
            "progress": {"name": "a"},
        }
        states = [(1, [running]), (2, []), (0, [running]), (0, [])]

        def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes] | None:
            if not path.endswith("/optimizations"):
                return others(method, path)
            queued, at_work = states.pop(0) if len(states) > 1 else states[0]
            summary = {"queued_optimizations": queued, "queued_segments": 0, "queued_points": 0, "idle_segments": 0}
            return 200, {}, result({"summary": summary, "running": at_work})

        server.answer = answer
        store.ready("c")
        assert self.asked(server) == 3 + qdrant_readiness.STABLE_POLLS + 1

    def test_a_failed_optimizer_is_an_error(
        self, server: CannedServer, store: QdrantStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.polled(server, monkeypatch, {"status": "red", "optimizer_status": {"error": "disk is full"}})
        with pytest.raises(StoreError, match=r"optimizer of collection c failed.*disk is full") as raised:
            store.ready("c")
        assert not isinstance(raised.value, StoreUnavailableError)

    def test_an_index_that_takes_too_long(
        self, server: CannedServer, store: QdrantStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.polled(server, monkeypatch, {"status": "yellow"})
        monkeypatch.setattr(qdrant_readiness, "INDEX_SECONDS", 0.05)
        with pytest.raises(StoreUnavailableError, match=r"not indexed within.*yellow"):
            store.ready("c")

    def test_a_collection_without_its_indexes_does_not_stay(self, server: CannedServer, store: QdrantStore) -> None:
        def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
            if path == "/aliases":
                return 200, {}, result({"aliases": []})
            if path.endswith("/exists"):
                created = ("PUT", "/collections/c") in server.requests
                return 200, {}, result({"exists": created})
            if "/index" in path:
                return 403, {}, b"no rights"
            return 200, {}, result(INFO if (method, path) == ("GET", "/collections/c") else True)

        server.answer = answer
        layout = CollectionConfig({"v": VectorConfig(2, Distance.DOT)}, payload_indexes={"a": "keyword"})
        with pytest.raises(StoreError, match="403"):
            store.create("c", layout)
        assert server.requests[-1] == ("DELETE", "/collections/c")

    @pytest.mark.parametrize("exact", [False, True])
    def test_exact_search_is_asked_for(self, server: CannedServer, store: QdrantStore, exact: bool) -> None:
        server.answer = lambda method, path: (
            (200, {}, result([{"points": []}, {"points": []}] if path.endswith("/query/batch") else INFO))
        )
        assert store.search("c", "v", np.eye(2), 3, exact=exact, ef=77, with_payload=["a"]) == [[], []]
        assert server.requests.count(("POST", "/collections/c/points/query/batch")) == 1
        searches = server.bodies[-1]["searches"]
        assert {search["params"].get("hnsw_ef") for search in searches} == {None if exact else 77}
        assert [(s["query"]["nearest"], s["params"]["exact"], s["limit"]) for s in searches] == [
            ([1.0, 0.0], exact, 3),
            ([0.0, 1.0], exact, 3),
        ]

    def test_each_search_after_the_first_is_one_request(self, server: CannedServer, store: QdrantStore) -> None:
        server.answer = lambda method, path: (
            (200, {}, result([{"points": []}, {"points": []}] if path.endswith("/query/batch") else INFO))
        )
        store.search("c", "v", np.eye(2), 3)
        server.requests.clear()
        for exact in (False, True):
            store.search("c", "v", np.eye(2), 3, exact=exact)
        assert server.requests == [("POST", "/collections/c/points/query/batch")] * 2

    def test_answers_are_not_compressed(self, server: CannedServer, store: QdrantStore) -> None:
        """Compressed ones come in pieces, the last of which may wait 40 ms for an acknowledgement of the first."""
        server.answer = lambda method, path: (200, {}, result(INFO))
        store.vectors("c")
        assert set(server.encodings) == {"identity"}

    def test_a_collection_is_laid_out_as_asked(self, server: CannedServer, store: QdrantStore) -> None:
        answers = {"/collections/c/exists": {"exists": False}}
        server.answer = lambda method, path: (
            200,
            {},
            result(answers.get(path, INFO if method == "GET" else True)),
        )
        vectors = {"v": VectorConfig(2, Distance.MANHATTAN)}
        store.create("c", CollectionConfig(vectors, metadata={"a": 1}, m=7, ef_construct=33, indexing_threshold=44))
        sent = server.bodies[server.requests.index(("PUT", "/collections/c")) - len(server.requests)]
        assert sent["vectors"]["v"] == {"size": 2, "distance": "Manhattan", "datatype": "float32", "on_disk": False}
        assert {"m": 7, "ef_construct": 33, "full_scan_threshold": 44}.items() <= sent["hnsw_config"].items()
        assert (sent["optimizers_config"]["indexing_threshold"], sent["metadata"]) == (44, {"a": 1})

    def test_aliases_are_switched_in_one_request(self, server: CannedServer, store: QdrantStore) -> None:
        def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
            if path == "/aliases":
                return 200, {}, result({"aliases": [{"alias_name": "a", "collection_name": "old"}]})
            if path == "/collections":
                return 200, {}, result({"collections": [{"name": "old"}, {"name": "new"}]})
            return 200, {}, result(True)

        server.answer = answer
        store.set_aliases({"a": "new", "b": "new"})
        assert server.requests.count(("POST", "/collections/aliases")) == 1
        # Replaced, never deleted first: a server that is killed in between would have lost it.
        assert [list(action) for action in server.bodies[-1]["actions"]] == [["create_alias"]] * 2


def test_a_client_of_ones_own_can_be_wrapped() -> None:
    with QdrantStore(Connection(QdrantClient(":memory:"), f"http://me:{KEY}@host:6333/?key={KEY}")) as store:
        assert store.url == "http://***@host:6333/"
        assert store.collections() == []
