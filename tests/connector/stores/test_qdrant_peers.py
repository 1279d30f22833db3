"""Versions of all nodes, and addresses of one cluster: answers that a cluster of Qdrant 1.18.3 gave, over HTTP."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import stamina
from pytest_httpserver import HTTPServer

from alignment.metrics import Distance
from connector.errors import (
    AccessDeniedError,
    CollectionNotFoundError,
    RequestRefusedError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
)
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import RetryPolicy
from tests.support.canned_server import Answer, CannedServer, result, version
from tests.support.errors import raises

PEERS = {2204956028409185: "a", 2671063704394562: "b", 4134373742780799: "c"}
OWN = 4134373742780799
STATUS: dict[str, Any] = {
    "status": "enabled",
    "peer_id": OWN,
    "peers": {str(peer): {"uri": f"http://{name}:6335/"} for peer, name in PEERS.items()},
    "raft_info": {
        **{"term": 1, "commit": 9, "pending_operations": 0, "leader": OWN},
        **{"role": "Leader", "is_voter": True},
    },
    "consensus_thread_status": {"consensus_thread_status": "working", "last_update": "2026-11-29T11:02:08.150551278Z"},
    "message_send_failures": {},
}
DETAILS: dict[str, Any] = {
    **{"version": "1.18.3", "role": "Follower", "is_voter": True, "term": 1, "commit": 9, "num_pending_operations": 0},
    "consensus_thread_status": {"consensus_thread_status": "working", "last_update": "2026-11-29T11:02:08.163Z"},
}
DISABLED = {"status": "disabled"}
INFO: dict[str, Any] = {
    **{"status": "green", "optimizer_status": "ok", "points_count": 1, "indexed_vectors_count": 1, "segments_count": 1},
    "payload_schema": {},
    "config": {
        "params": {"vectors": {"v": {"size": 2, "distance": "Dot"}}},
        "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10},
        "optimizer_config": {
            **{"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000},
            **{"default_segment_number": 0, "flush_interval_sec": 5},
        },
    },
}
TURBO = CollectionConfig({"v": VectorConfig(2, Distance.DOT)}, quantization="turbo")
NOT_FOUND: Answer = (404, {}, b"")
FORBIDDEN: Answer = (403, {}, b'{"status":{"error":"Forbidden: Global access is required"},"time":0.0}')
Start = Callable[..., CannedServer]


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Try again without waiting."""
    with stamina.set_testing(True, attempts=3):
        yield


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server at a host and a port."""
    with ExitStack() as stack:
        yield lambda host="127.0.0.1", port=0: CannedServer(stack.enter_context(HTTPServer(host, port)))


def telling(server: CannedServer, own: str = "1.18.3", **of_path: Any) -> None:
    """Let a server answer: its version, and results or whole answers by the last part of the path."""

    def answer(method: str, path: str) -> Answer | None:
        if path == "/":
            return 200, {}, version(own)
        told = of_path.get(path.rpartition("/")[2], NOT_FOUND)
        return told if told is None or isinstance(told, tuple) else (200, {}, result(told))

    server.answer = answer


def telemetry(**versions: str | None) -> dict[str, Any]:
    """What a cluster tells of its peers; None: the peer is away."""
    return {
        "collections": {},
        "cluster": {
            "enabled": True,
            "number_of_peers": 3,
            "peers": {
                str(peer): {
                    "uri": f"http://{name}:6335/",
                    "responsive": versions[name] is not None,
                    "details": versions[name] and {**DETAILS, "version": versions[name]},
                }
                for peer, name in PEERS.items()
            },
        },
    }


def collections(names: list[str], metadata: dict[str, Any]) -> dict[str, Any]:
    """What a server answers of its collections, which all have the same metadata."""
    info = {**INFO, "config": {**INFO["config"], "metadata": metadata}}
    return {"collections": {"collections": [{"name": name} for name in names]}, **dict.fromkeys(names, info)}


class TestVersions:
    @pytest.mark.parametrize(
        ("versions", "refused"),
        [
            ({"a": "1.18.3", "b": "1.18.3", "c": "1.18.3"}, None),
            ({"a": "1.15.5", "b": "1.18.3", "c": "1.18.3"}, "1.15.5"),
            ({"a": "1.18.3", "b": "2.0.0", "c": "1.18.3"}, "2.0.0"),
            ({"a": None, "b": "0.9", "c": "1.18.3"}, "0.9"),
        ],
    )
    def test_every_peer_has_a_version_that_is_known(
        self, start: Start, versions: dict[str, str | None], refused: str | None
    ) -> None:
        server = start()
        telling(server, cluster=STATUS, telemetry=telemetry(**versions))
        if refused is None:
            QdrantStore.connect(server.url).close()
        else:
            name = next(name for name, found in versions.items() if found == refused)
            with raises(StoreError, refused, f"http://{name}:6335/"):
                QdrantStore.connect(server.url)

    def test_the_oldest_peer_says_what_may_be_used(self, start: Start) -> None:
        server = start()
        telling(server, cluster=STATUS, telemetry=telemetry(a="1.18.3", b="1.17.1", c="1.18.3"))
        with QdrantStore.connect(server.url) as store, raises(SettingsError, "turbo", "1.18", "1.17"):
            store.create("c", TURBO)

    def test_a_peer_that_is_away_is_named(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        server = start()
        telling(server, cluster=STATUS, telemetry=telemetry(a="1.18.3", b=None, c="1.18.3"))
        QdrantStore.connect(server.url).close()
        (message,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        assert "peer 2671063704394562 at http://b:6335/" in message
        assert "http://a:6335/" not in message

    @pytest.mark.parametrize("answer", [NOT_FOUND, FORBIDDEN, (500, {}, b""), (200, {}, b"<html>"), None])
    def test_a_server_or_a_proxy_may_not_tell(self, start: Start, answer: Answer | None) -> None:
        server = start()
        telling(server, cluster=answer)
        QdrantStore.connect(server.url).close()

    def test_one_node_is_no_cluster(self, start: Start) -> None:
        server = start()
        telling(server, cluster=DISABLED)
        QdrantStore.connect(server.url).close()
        assert server.requests == [("GET", "/"), ("GET", "/cluster")]


class TestPeersOfOlderServers:
    """Which have no telemetry of the cluster: each peer is asked at its host."""

    def peers(self, first: CannedServer) -> dict[str, Any]:
        hosts = {OWN: "127.0.0.1", 2204956028409185: "127.0.0.2", 2671063704394562: "127.0.0.3"}
        peers = {str(peer): {"uri": f"http://{host}:6335/"} for peer, host in hosts.items()}
        status = {**STATUS, "peers": peers}
        telling(first, "1.16.3", cluster=status)
        return status

    def test_they_are_asked_themselves(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        first = start()
        status = self.peers(first)
        second = start("127.0.0.2", first.port)
        telling(second, "1.15.1", cluster={**status, "peer_id": 2204956028409185})
        with raises(StoreError, "1.15.1", "2204956028409185", "127.0.0.2"):
            QdrantStore.connect(first.url)

    def test_who_has_another_id_is_not_believed(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        first = start()
        status = self.peers(first)
        second = start("127.0.0.2", first.port)
        telling(second, "1.15.1", cluster={**status, "peer_id": 7})
        QdrantStore.connect(first.url).close()
        (message,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        assert "127.0.0.2" in message
        assert "127.0.0.3" in message


class TestSeveralAddresses:
    @pytest.mark.slow
    def test_a_dead_one_is_passed_over(self, start: Start) -> None:
        living = start()
        telling(living, cluster=DISABLED, **collections(["c"], {}))
        with QdrantStore.connect(f"http://127.0.0.1:1,{living.url}") as store:
            assert store.collections() == ["c"]
            assert store.url == living.url
            assert store.addresses == ["http://127.0.0.1:1", living.url]

    @pytest.mark.parametrize("failure", [(500, {}, b""), (503, {}, b""), (408, {}, b""), None])
    def test_a_request_goes_on_at_the_next(self, start: Start, failure: Answer | None) -> None:
        first, second = start(), start()
        for server in (first, second):
            telling(server, cluster=STATUS, telemetry=telemetry(a="1.18.3", b="1.18.3", c="1.18.3"), count={"count": 7})
        with QdrantStore.connect(f"{first.url},{second.url}") as store:
            assert store.count("c") == 7
            first.answer = lambda method, path: failure
            first.requests.clear()
            assert store.count("c") == 7
            assert store.count("c") == 7
            assert first.requests == [("POST", "/collections/c/points/count")]  # the living one is kept

    @pytest.mark.parametrize("failure", ["answered 500", "cannot be reached"])
    def test_another_address_is_told_of_once_in_plain_words(
        self, start: Start, failure: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "connector")
        first, second = start(), start()
        for server in (first, second):
            telling(server, cluster=STATUS, telemetry=telemetry(a="1.18.3", b="1.18.3", c="1.18.3"), count={"count": 7})
        json = b'{"status":{"error":"Service internal error: 1 of 2 read operations failed"},"time":0.1}'
        with QdrantStore.connect(f"{first.url},{second.url}") as store:
            first.answer = lambda method, path: (500, {}, json) if failure == "answered 500" else None
            for _ in range(3):
                assert store.count("c") == 7
        (line,) = (record.getMessage() for record in caplog.records if "going on" in record.getMessage())
        assert line.startswith(first.url)
        assert line.endswith(f"{failure}; going on with {second.url}")

    def test_no_other_address_is_told_of_where_none_answers(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "connector")
        servers = [start(), start()]
        for server in servers:
            telling(server, cluster=STATUS, telemetry=telemetry(a="1.18.3", b="1.18.3", c="1.18.3"))
        retry = RetryPolicy(attempts=3, initial_backoff=0.01, jitter=0.0)
        with QdrantStore.connect(",".join(server.url for server in servers), retry=retry) as store:
            for server in servers:
                server.always(500, b"no")
            with raises(StoreUnavailableError, *(server.url for server in servers)):
                store.count("c")
        assert "going on" not in caplog.text

    @pytest.mark.parametrize(
        ("status", "kind"),
        [(400, RequestRefusedError), (404, CollectionNotFoundError), (403, AccessDeniedError), (409, StoreError)],
    )
    def test_a_refusal_is_no_reason_to_ask_another(self, start: Start, status: int, kind: type[StoreError]) -> None:
        first, second = start(), start()
        for server in (first, second):
            telling(server, cluster=STATUS, telemetry=telemetry(a="1.18.3", b="1.18.3", c="1.18.3"))
        with QdrantStore.connect(f"{first.url},{second.url}") as store:
            first.always(status, b"no")
            with raises(kind, first.url):
                store.count("c")
            assert second.requests == []

    def test_none_answers(self) -> None:
        with raises(StoreUnavailableError, "127.0.0.1"):
            QdrantStore.connect("http://127.0.0.1:1,http://127.0.0.1:2", retry=RetryPolicy(attempts=2))

    def test_another_cluster_is_refused(self, start: Start) -> None:
        first, second = start(), start()
        for server in (first, second):
            telling(server, cluster=STATUS, telemetry=telemetry(a="1.18.3", b="1.18.3", c="1.18.3"))
        telling(second, cluster={**STATUS, "peer_id": 5, "peers": {"5": {"uri": "http://other:6335/"}}})
        with QdrantStore.connect(f"{first.url},{second.url}") as store:
            first.always(503)
            with raises(SettingsError, "MODALIGN_QDRANT_URL", first.url, second.url):
                store.count("c")

    @pytest.mark.parametrize(
        ("names", "metadata", "same"),
        [
            (["c", "d"], {"modalign_release": {"store": "1"}}, True),
            (["d", "x"], {"modalign_release": {"store": "2"}}, False),
            (["x"], {}, False),
            (["c"], {"modalign_release": {"store": "2"}}, False),
            (["c"], {}, True),  # written by an older version
            ([], {}, True),
        ],
    )
    def test_servers_without_peers_are_told_apart_by_their_collections(
        self, start: Start, names: list[str], metadata: dict[str, Any], same: bool
    ) -> None:
        first, second = start(), start()
        telling(first, cluster=DISABLED, **collections(["c"], {"modalign_release": {"store": "1"}}))
        telling(second, cluster=DISABLED, **collections(names, metadata), count={"count": 7})
        with QdrantStore.connect(f"{first.url},{second.url}") as store:
            first.always(503)
            if same:
                assert store.count("c") == 7
            else:
                with raises(SettingsError, first.url, second.url):
                    store.count("c")

    @pytest.mark.parametrize("url", ["http://a:6333,grpc://b:6334", "http://a:6333,grpcs://b"])
    def test_one_protocol_for_all(self, url: str) -> None:
        with raises(SettingsError, "http://a:6333"):
            QdrantStore.connect(url)
