"""Limits of a server: learned from the first refusal, obeyed from then on. Refusals are those of Qdrant 1.18.3."""

import logging
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import stamina
from httpx import Headers
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from alignment.metrics import Distance
from connector.errors import (
    ExactRefusedError,
    FilterRefusedError,
    PointsRefusedError,
    RequestOverRateError,
    RequestRefusedError,
    RequestTooLargeError,
    StoreError,
    StoreFullError,
)
from connector.stores.collection import CollectionConfig, SearchLimits, VectorConfig
from connector.stores.points import Points
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import Connection
from connector.stores.qdrant_limits import LimitBook, Limits, search_limits
from tests.support.errors import raises
from tests.support.faulty_server import RefusedError, running
from tests.support.store_contract import ids
from tests.support.strict_server import StrictMode, StrictServer

DIM = 4
N = 300
X = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def full() -> Iterator[StrictServer]:
    """A server with a collection of `N` points."""
    server = StrictServer()
    with running(server), QdrantStore.connect(server.url) as store:
        store.create("c", CollectionConfig({"v": VectorConfig(DIM, Distance.DOT)}))
        store.upsert("c", Points("v", ids(N), X, [{"n": n} for n in range(N)]))
        yield server


@pytest.fixture
def server(full: StrictServer) -> Iterator[StrictServer]:
    yield full
    full.strict = StrictMode()
    full.fail = lambda request: None


@pytest.fixture
def store(server: StrictServer) -> Iterator[QdrantStore]:
    """A store that knows of no limit yet."""
    with stamina.set_testing(True, attempts=3), QdrantStore.connect(server.url) as store:
        server.requests.clear()
        yield store


def refusals(store: QdrantStore, server: StrictServer, path: str) -> list[int]:
    """What `use` of the collection costs: requests to `path`, the first time and the second."""
    server.requests.clear()
    use(store)
    first = sum(request.path.endswith(path) for request in server.requests)
    server.requests.clear()
    use(store)
    return [first, sum(request.path.endswith(path) for request in server.requests)]


def use(store: QdrantStore) -> None:
    """Every operation on a collection, each with its right answer."""
    scores = X[:40] @ X.T
    hits = store.search("c", "v", X[:40], 25, ef=256, with_payload=["n"])
    assert [[hit.payload["n"] for hit in row] for row in hits] == np.argsort(-scores, axis=1)[:, :25].tolist()
    assert {record.id for page in store.scroll("c") for record in page} == set(ids(N))
    assert store.count("c") == N
    assert {record.id for record in store.retrieve("c", ids(N), vector_name="v")} == set(ids(N))
    store.upsert("c", Points("v", ids(N), X, [{"n": n} for n in range(N)]))
    store.delete("c", ids(200, start=1000))


# A limit, the requests that it is about, and how many of these `use` sends once the limit is known.
LIMITS: dict[str, tuple[dict[str, Any], str, int]] = {
    "hits": ({"max_query_limit": 10}, "/query/batch", 3),
    "pages": ({"max_query_limit": 10}, "/scroll", 30),
    "queries": ({"search_max_batchsize": 7}, "/query/batch", 6),
    "points": ({"upsert_max_batchsize": 50}, "/points", 1 + 6),
    "hnsw_ef": ({"search_max_hnsw_ef": 64}, "/query/batch", 1),
    "exact counts": ({"search_allow_exact": False}, "/count", 0),
    "a minute's reads and writes": ({"rate_capacity": 37}, "/query/batch", 2),
    "a minute's deletions": ({"rate_capacity": 37}, "/delete", 6),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_is_learned_from_the_first_refusal_and_obeyed(
    server: StrictServer, store: QdrantStore, limit: str
) -> None:
    limits, path, requests = LIMITS[limit]
    server.strict = StrictMode(**limits)
    first, second = refusals(store, server, path)
    assert second == requests
    assert second <= first


@pytest.mark.slow
def test_all_limits_at_once(server: StrictServer, store: QdrantStore) -> None:
    server.strict = StrictMode(
        max_query_limit=3,
        search_max_batchsize=7,
        upsert_max_batchsize=5,
        search_max_hnsw_ef=20,
        search_allow_exact=False,
        rate_capacity=30,
    )
    use(store)
    use(store)


def test_a_limit_that_is_lowered_meanwhile_is_learned_again(server: StrictServer, store: QdrantStore) -> None:
    for limit in (40, 9):
        server.strict = StrictMode(search_max_batchsize=limit, upsert_max_batchsize=limit, max_query_limit=limit)
        use(store)


def test_limits_of_one_collection_are_not_those_of_another(server: StrictServer, store: QdrantStore) -> None:
    store.create("other", CollectionConfig({"v": VectorConfig(DIM, Distance.DOT)}))
    server.strict = StrictMode(search_max_hnsw_ef=64)
    store.search("c", "v", X[:1], 1, ef=128)
    assert (store.search_limits("c"), store.search_limits("other")) == (SearchLimits(64), SearchLimits())
    store.drop("other")


def test_less_than_was_wanted_is_said_once(
    server: StrictServer, store: QdrantStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "connector")
    server.strict = StrictMode(search_max_hnsw_ef=64)
    for ef in (32, 128, 128):
        store.search("c", "v", X[:1], 1, ef=ef)
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("connector")]
    assert "hnsw_ef 64 instead of 128" in said
    assert "search_max_hnsw_ef" in said


def test_an_exact_search_that_is_refused_is_an_error_of_its_own(server: StrictServer, store: QdrantStore) -> None:
    server.strict = StrictMode(search_allow_exact=False)
    for _ in range(2):
        with raises(ExactRefusedError, "search_allow_exact", code="exact-refused"):
            store.search("c", "v", X[:1], 1, exact=True)
    assert store.search("c", "v", X[:1], 1)[0]


@pytest.mark.slow
def test_many_queries_are_cut_into_requests(server: StrictServer, store: QdrantStore) -> None:
    for exact in (False, True):
        server.requests.clear()
        assert len(store.search("c", "v", np.repeat(X[:1], 1000, axis=0), 1, exact=exact)) == 1000
        sent = [len(r.body["searches"]) for r in server.requests if r.path.endswith("/query/batch")]
        assert sum(sent) == 1000
        assert max(sent) <= 128


def test_a_full_collection_is_no_fault_of_the_points(server: StrictServer, store: QdrantStore) -> None:
    server.strict = StrictMode(max_points_count=5)
    with raises(StoreFullError, "limit of 5", code="store-full"):
        store.upsert("c", Points("v", ids(3), X[:3], [{}] * 3))
    assert sum(request.writes_points for request in server.requests) == 1


class TestTooLarge:
    """A body beyond the server's limit is 400 with a sentence on a real server, 413 before it."""

    WORDS = "JSON payload ({size} bytes) is larger than allowed (limit: {limit} bytes)."

    @pytest.fixture
    def narrow(self, server: StrictServer, monkeypatch: pytest.MonkeyPatch) -> int:
        limit, carry_out = 4000, server.carry_out

        def check(request: Any, **options: Any) -> Any:
            if request.size > limit:
                raise RefusedError(400, self.WORDS.format(size=request.size, limit=limit))
            return carry_out(request, **options)

        monkeypatch.setattr(server, "carry_out", check)
        return limit

    def test_requests_are_cut_to_the_size_that_the_server_names(
        self, server: StrictServer, store: QdrantStore, narrow: int
    ) -> None:
        use(store)
        server.requests.clear()
        use(store)
        assert max(request.size for request in server.requests) <= narrow

    def test_a_point_that_is_too_large_alone_is_a_reject_of_that_name(
        self, server: StrictServer, store: QdrantStore, narrow: int
    ) -> None:
        payloads: list[dict[str, Any]] = [{"n": 0}, {"long": "x" * 5000}, {"n": 2}]
        with pytest.raises(PointsRefusedError) as raised:
            store.upsert("c", Points("v", ids(3), X[:3], payloads))
        assert {row: refusal.reason.value for row, refusal in raised.value.refused.items()} == {1: "too-large"}


RECORDED = {
    'Bad request: Limit exceeded 5 > 3 for "limit". Help: Reduce the "limit" parameter to or below 3.': Limits(hits=3),
    'Bad request: Limit exceeded 3 > 2 for "search batch size". Help: Reduce the "search batch size" parameter to or '
    "below 2.": Limits(queries=2),
    'Bad request: Limit exceeded 10 > 2 for "upsert limit". Help: Reduce the "upsert limit" parameter to or below 2.': (
        Limits(points=2)
    ),
    'Bad request: Limit exceeded 128 > 64 for "hnsw_ef". Help: Reduce the "hnsw_ef" parameter to or below 64.': (
        Limits(ef=64)
    ),
    'Bad request: Limit exceeded 4 > 1.5 for "oversampling". Help: Reduce the "oversampling" parameter to or below '
    "1.5.": Limits(oversampling=1.5),
    "Bad request: Exact search disabled!. Help: Set exact=false.": Limits(exact=False),
    "Bad request: Condition size limit reached (9 > 3). Help: Reduce the size of your condition.": Limits(values=3),
    "JSON payload (40000 bytes) is larger than allowed (limit: 4000 bytes).": Limits(bytes=4000),
}
KINDS = {
    "Bad request: Exact search disabled!. Help: Set exact=false.": ExactRefusedError,
    "JSON payload (33555000 bytes) is larger than allowed (limit: 33554432 bytes).": RequestTooLargeError,
    "Rate limiting exceeded: Read rate limit exceeded, request larger than rate limiter capacity, please try to split "
    "your request": RequestOverRateError,
    "Bad request: Max points count limit of 5 reached!": StoreFullError,
    "Bad request: Max vector storage size limit of 0.0000047683716MB reached!": StoreFullError,
    "Bad request: Max payload storage size limit of 0.0000047683716MB reached!": StoreFullError,
    "Bad request: Filter condition limit reached (2 > 1). Help: Reduce the amount of conditions of your filter.": (
        FilterRefusedError
    ),
    "Bad request: Condition size limit reached (9 > 3). Help: Reduce the size of your condition.": FilterRefusedError,
    'Bad request: Index required but not found for "o" of one of the following types: [float, integer]. Help: Create '
    "an index for this key or use a different filter.": FilterRefusedError,
    "Wrong input: Vector dimension error: expected dim: 4, got 3": RequestRefusedError,
}


def over_rest(sentence: str) -> Exception:
    status = 429 if sentence.startswith("Rate") else 400
    content = '{"status":{"error":"' + sentence.replace('"', '\\"') + '"},"time":0.0}'
    return UnexpectedResponse(status, "Bad Request", content.encode(), Headers())


def over_grpc(sentence: str) -> Exception:
    class Failed(grpc.RpcError, grpc.Call):  # type: ignore[misc]  # what a channel raises is both
        def code(self) -> grpc.StatusCode:
            codes = grpc.StatusCode
            return codes.RESOURCE_EXHAUSTED if sentence.startswith("Rate") else codes.INVALID_ARGUMENT

        def details(self) -> str:
            return sentence

    Failed.__abstractmethods__ = frozenset()
    return Failed()


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    client = QdrantClient(":memory:")
    yield Connection(client, "http://host:6333")
    client.close()


def refused(connection: Connection, error: Exception) -> StoreError:
    def operation() -> None:
        raise error

    with pytest.raises(StoreError) as raised:
        connection.translated(operation)
    return raised.value


@pytest.mark.parametrize("protocol", [over_rest, over_grpc])
class TestSentences:
    @pytest.mark.parametrize("sentence", RECORDED)
    def test_they_tell_a_limit(self, connection: Connection, protocol: Any, sentence: str) -> None:
        assert Limits().after(refused(connection, protocol(sentence))) == RECORDED[sentence]

    @pytest.mark.parametrize(
        ("words", "setting"),
        [
            ("Filter condition limit", "filter_max_conditions"),
            ("Condition size", "condition_max_size"),
            ("Index required", "--payload-index"),
        ],
    )
    def test_a_refused_filter_says_what_to_raise_or_to_index(
        self, connection: Connection, protocol: Any, words: str, setting: str
    ) -> None:
        (sentence,) = [sentence for sentence in KINDS if words in sentence]
        said = str(refused(connection, protocol(sentence)))
        assert [s for s in ("filter_max_conditions in", "condition_max_size in", "--payload-index") if s in said] == [
            f"{setting} in" if "_" in setting else setting
        ]

    @pytest.mark.parametrize("sentence", KINDS)
    def test_they_are_told_apart(self, connection: Connection, protocol: Any, sentence: str) -> None:
        assert type(refused(connection, protocol(sentence))) is KINDS[sentence]


@given(st.text(max_size=30), st.integers(-5, 5), st.sampled_from(["limit", "hnsw_ef", "timeout", "x"]))
def test_a_sentence_that_cannot_be_obeyed_ends_the_request(text: str, limit: int, name: str) -> None:
    book, sent = LimitBook(), []

    def send(limits: Limits) -> None:
        sent.append(limits)
        raise RequestRefusedError(f'{text} Limit exceeded 9 > {limit} for "{name}"')

    with pytest.raises(RequestRefusedError):
        book.obey("c", send)
    assert len(sent) <= 2


@given(n=st.integers(0, 60), capacity=st.integers(1, 60), most=st.none() | st.integers(1, 60))
def test_every_item_is_sent_once_in_order(n: int, capacity: int, most: int | None) -> None:
    def send(part: Any, limits: Limits) -> list[int]:
        if len(part) > capacity:
            raise RequestTooLargeError("too large")
        return list(part)

    parts = [*LimitBook().obey_in_parts("c", range(n), "ids", send, item_bytes=1, most=most)]
    assert [item for part in parts for item in part] == list(range(n))
    assert all(parts)


@pytest.mark.parametrize(
    ("known", "strict", "expected"),
    [
        (Limits(), None, SearchLimits()),
        (Limits(), models.StrictModeConfigOutput(enabled=False, search_max_hnsw_ef=16), SearchLimits()),
        (Limits(), models.StrictModeConfigOutput(enabled=True, search_max_hnsw_ef=16), SearchLimits(16)),
        (Limits(ef=8), models.StrictModeConfigOutput(enabled=True, search_max_hnsw_ef=16), SearchLimits(8)),
        (
            Limits(oversampling=2.0),
            models.StrictModeConfigOutput(enabled=True, search_max_oversampling=1.5, search_max_hnsw_ef=9),
            SearchLimits(9, 1.5),
        ),
    ],
)
def test_limits_of_searches_are_known_before_a_refusal_where_the_collection_tells_them(
    known: Limits, strict: models.StrictModeConfigOutput | None, expected: SearchLimits
) -> None:
    assert search_limits(known, strict) == expected
