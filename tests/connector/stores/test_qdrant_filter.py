"""Conditions that a server's version does not have: over gRPC it would ignore them, and every point would match."""

from typing import Any, get_args

import pytest
from pytest_httpserver import HTTPServer
from qdrant_client import QdrantClient, models

from connector.errors import CollectionNotFoundError, FilterError
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import Connection
from connector.stores.qdrant_filter import OLDEST_SERVER, SINCE, check_known, check_rest_bounds
from tests.support.canned_server import CannedServer, result, version
from tests.support.errors import raises
from tests.support.filter_contract import NEW_MATCHES

# What Qdrant 1.18.3 tells of a collection with an index of words, of which a test replaces the parameters.
COLLECTION: dict[str, Any] = {
    "status": "green",
    "optimizer_status": "ok",
    "indexed_vectors_count": 0,
    "points_count": 0,
    "segments_count": 2,
    "config": {
        "params": {
            "vectors": {"v": {"size": 2, "distance": "Dot", "on_disk": False, "datatype": "float32"}},
            "shard_number": 1,
            "replication_factor": 1,
            "write_consistency_factor": 1,
            "on_disk_payload": True,
        },
        "hnsw_config": {
            "m": 16,
            "ef_construct": 100,
            "full_scan_threshold": 10000,
            "max_indexing_threads": 0,
            "on_disk": False,
        },
        "optimizer_config": {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1000,
            "default_segment_number": 0,
            "indexing_threshold": 10000,
            "flush_interval_sec": 5,
        },
        "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
    },
}
OWN = {"type": "text", "tokenizer": "word", "phrase_matching": True}
URL = "grpc://127.0.0.1:1"  # where nobody answers: nothing is sent


def store(version: tuple[int, int] | None) -> QdrantStore:
    connection = Connection(
        QdrantClient(host="127.0.0.1", grpc_port=1, prefer_grpc=True, check_compatibility=False), URL
    )
    connection.version = version
    return QdrantStore(connection, uploads=1)


def test_every_condition_of_the_client_is_in_the_table() -> None:
    names = {kind.__name__ for kind in (*get_args(models.Condition), *get_args(models.Match))}
    assert names == SINCE.keys()


@pytest.mark.parametrize("name", SINCE)
def test_a_condition_is_sent_to_versions_that_have_it(name: str) -> None:
    needed = SINCE[name]
    check_known([name], needed, URL)
    check_known([name], (needed[0], needed[1] + 1), URL)
    if needed > OLDEST_SERVER:
        for older in (OLDEST_SERVER, (needed[0], needed[1] - 1), None):
            with raises(FilterError, name, ".".join(map(str, needed)), URL):
                check_known([name], older, URL)


def test_a_condition_that_nobody_knows_is_refused() -> None:
    with raises(FilterError, "MoonPhaseCondition"):
        check_known(["FieldCondition", "MoonPhaseCondition"], (1, 99), URL)


@pytest.mark.parametrize("what", NEW_MATCHES)
@pytest.mark.parametrize("version", [(1, 18), None])
@pytest.mark.parametrize("depth", [0, 1, 5])
def test_what_an_older_server_would_ignore_is_not_sent(what: str, version: tuple[int, int] | None, depth: int) -> None:
    condition = NEW_MATCHES[what][0]()
    for _ in range(depth):
        condition = models.Filter(must_not=[models.Filter(should=[condition])])
    with store(version) as opened, raises(FilterError, URL, "1.18" if version else "1.16"):
        opened.scroll("c", filter=condition)
    with store(version) as opened, raises(FilterError, URL):
        opened.count("c", filter=condition)


@pytest.mark.parametrize(
    ("params", "own"),
    [
        (OWN, True),
        ({**OWN, "lowercase": True, "on_disk": True}, True),
        ({**OWN, "lowercase": False}, False),
        ({**OWN, "phrase_matching": False}, False),
        ({**OWN, "tokenizer": "prefix"}, False),
        ({**OWN, "tokenizer": "whitespace"}, False),
        ({**OWN, "min_token_len": 2}, False),
        ({**OWN, "stemmer": {"type": "snowball", "language": "english"}}, False),
        ({**OWN, "stopwords": "english"}, False),
        ({**OWN, "ascii_folding": True}, False),
        (None, False),
    ],
)
def test_words_of_an_index_that_somebody_else_made_are_not_asked_for(
    httpserver: HTTPServer, params: dict[str, Any] | None, own: bool
) -> None:
    """It may stem or fold them: the filter would find other points than on another store."""
    server, words = CannedServer(httpserver), models.FieldCondition(key="t", match=models.MatchText(text="red"))
    collection = {**COLLECTION, "payload_schema": {"t": {"data_type": "text", "params": params, "points": 0}}}

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if path == "/":
            return 200, {}, version("1.18.3")
        return 200, {}, result({"points": []} if path.endswith("/scroll") else collection)

    server.answer = answer
    with QdrantStore.connect(server.url) as opened:
        if own:
            assert list(opened.scroll("c", filter=models.Filter(must=[words]))) == []
        else:
            with raises(FilterError, "t", "text"):
                opened.scroll("c", filter=models.Filter(must=[words]))
    assert any(path.endswith("/scroll") for _, path in server.requests) == own


class TestBoundsOverRest:
    """At Qdrant 1.18.3, 26 of 202 whole numbers to 2^53 found no point that holds them: these were the refused ones."""

    @staticmethod
    def filter_of(bound: float) -> models.Filter:
        condition = models.FieldCondition(key="n", range=models.Range(gte=bound))
        inner = models.NestedCondition(nested=models.Nested(key="of", filter=models.Filter(must_not=[condition])))
        return models.Filter(should=[models.Filter(must=[inner])])

    @pytest.mark.parametrize("bound", [2**53 - 1, 1 - 2**53])
    def test_one_that_is_read_as_its_neighbour_is_refused(self, bound: int) -> None:
        over_rest, over_grpc = (
            QdrantStore(Connection(QdrantClient(":memory:"), f"{scheme}://host:6333")) for scheme in ("http", "grpc")
        )
        with raises(FilterError, "'n'", "grpc://", str(bound)):
            over_rest.count("c", filter=self.filter_of(bound))
        with raises(CollectionNotFoundError):  # it was asked
            over_grpc.count("c", filter=self.filter_of(bound))

    @pytest.mark.parametrize("bound", [0, -5, 0.1, 1e-300, 9e14, 1.7e15, 2**52, 1e30, -1e300, 1e19])
    def test_others_are_sent(self, bound: float) -> None:
        check_rest_bounds(self.filter_of(bound), "http://host:6333")
