"""A cluster of three nodes, of which some are away or lack points, by its recorded answers."""

import socket
from collections.abc import Iterator

import numpy as np
import pytest
import stamina
from qdrant_client import QdrantClient

from connector.errors import ClusterError, DeadlinePassedError, StoreUnavailableError
from connector.stores import qdrant_cluster, qdrant_readiness
from connector.stores.deadlines import within
from connector.stores.points import Points
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_cluster import in_words
from connector.stores.qdrant_connection import Connection, RetryPolicy
from tests.support.errors import raises
from tests.support.recorded_cluster import STATES, RecordedNode, recorded_node

ATTEMPTS = 2
POINT = "00000000-0000-0000-0000-000000000001"
AWAY, ALSO_AWAY = "http://127.0.0.1:7232/", "http://127.0.0.1:7222/"


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Iterator[RecordedNode]:
    with recorded_node(request.param) as node:
        yield node


@pytest.fixture
def store(node: RecordedNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantStore]:
    monkeypatch.setattr(qdrant_cluster, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(qdrant_readiness, "POLL_SECONDS", 0.0)
    with stamina.set_testing(True, attempts=ATTEMPTS), QdrantStore.connect(node.url, retry=RetryPolicy()) as store:
        node.requests.clear()
        yield store


def in_state(state: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("node", [state], indirect=True, ids=[state.replace(" ", "-")])


class TestReads:
    @in_state("replicas differ")
    def test_what_one_replica_lacks_is_not_read(self, store: QdrantStore) -> None:
        assert (store.count("c"), store.count("c", consistent=True)) == (30, 20)
        assert [record.id for record in store.retrieve("c", [POINT])] == [POINT]
        assert store.retrieve("c", [POINT], consistent=True) == []
        assert store.ready("c").points == 20

    @in_state("replicas differ")
    @pytest.mark.parametrize("consistent", [False, True])
    def test_what_one_replica_lacks_is_not_found_where_all_have_to_find_it(
        self, store: QdrantStore, consistent: bool
    ) -> None:
        query = np.array([[-1.0, 0.0]], np.float32)  # the points that one replica lacks score best
        (hits,) = store.search("c", "v", query, 15, exact=True, consistent=consistent)
        assert [-hit.raw_score for hit in hits] == [*(range(11, 26) if consistent else range(1, 16))]

    @in_state("a node is away")
    def test_with_a_node_away_searches_ask_the_others(self, store: QdrantStore, node: RecordedNode) -> None:
        (hits,) = store.search("c", "v", np.array([[-1.0, 0.0]], np.float32), 15, exact=True, consistent=True)
        assert [-hit.raw_score for hit in hits] == [*range(1, 16)]
        assert [request.partition("?")[2] for request in node.requests[-2:]] == ["consistency=all", "consistency=2"]

    @in_state("a node is away")
    def test_with_a_node_away_all_other_replicas_are_asked(
        self, store: QdrantStore, node: RecordedNode, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert store.count("c", consistent=True) == 30
        counted = [request for request in node.requests if "count" in request]
        assert counted == [f"POST /collections/c/points/count?consistency={level}" for level in ("all", 2)]
        assert [record.id for record in store.retrieve("c", [POINT], consistent=True, vector_name="v")] == [POINT]
        assert node.requests[-1].endswith("consistency=2")  # the one that is away is not waited for again
        assert caplog.text.count("not all of its 3 replicas answer; reads that compare them ask 2") == 1

    @in_state("no majority")
    def test_with_one_replica_left_that_one_is_read(self, store: QdrantStore, node: RecordedNode) -> None:
        assert store.count("c", consistent=True) == 30
        assert node.requests[-1] == "POST /collections/c/points/count"

    @in_state("replicas differ")
    def test_searches_and_other_reads_ask_one_replica(self, store: QdrantStore, node: RecordedNode) -> None:
        store.count("c")
        store.retrieve("c", [POINT])
        store.search("c", "v", np.array([[-1.0, 0.0]], np.float32), 15, exact=True)
        assert not any("consistency" in request for request in node.requests)


class TestReplicas:
    @in_state("replicas differ")
    def test_their_numbers_of_points_are_compared(self, store: QdrantStore) -> None:
        first, second = store.replica_differences("c")
        for text, number, counts in ((first, 0, (16, 12)), (second, 1, (14, 8))):
            assert f"replicas of shard {number} differ: " in text
            assert all(f"{count} points on" in text for count in counts)
        assert AWAY in first

    @in_state("replicas differ")
    def test_where_one_node_tells_of_itself_alone_sums_are_compared(
        self, store: QdrantStore, node: RecordedNode
    ) -> None:
        node.tells_of_others = False  # an older server, or a token that may not see the cluster
        (difference,) = store.replica_differences("c")
        assert "20 points" in difference
        assert "others 30" in difference
        replicas = store.replicas("c")
        assert replicas is not None
        assert "possible" not in replicas.possible.values()

    @in_state("a node is away")
    def test_nothing_is_said_of_replicas_that_nobody_can_count(self, store: QdrantStore) -> None:
        assert store.replica_differences("c") == []

    @in_state("a node is away")
    def test_a_replica_on_a_node_that_is_away_is_not_lost(self, store: QdrantStore) -> None:
        assert store.lost_replicas("c") == []

    @in_state("a node is away")
    def test_a_node_that_is_away_is_named(self, store: QdrantStore) -> None:
        replicas = store.replicas("c")
        assert replicas is not None
        assert [node.address for node in replicas.away] == [AWAY]
        assert [replica.points for shard in replicas.shards for replica in shard.replicas if replica.node.away] == [
            None,
            None,
        ]
        possible = replicas.possible
        assert possible["searches"] == possible["switches"] == "possible"
        assert "factor 3 needs 3 replicas" in possible["writes"]

    @in_state("no majority")
    def test_without_a_majority_nothing_is_switched(self, store: QdrantStore) -> None:
        replicas = store.replicas("c")
        assert replicas is not None
        assert replicas.possible["searches"] == "possible"
        assert "1 of 3" in replicas.possible["switches"]
        assert replicas.possible["writes"] != "possible"


class TestReadiness:
    @pytest.mark.parametrize("node", ["a node is away", "no majority"], indirect=True)
    def test_nodes_that_are_away_do_not_keep_a_collection_from_being_ready(
        self, store: QdrantStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert store.ready("c").points == 30
        assert "does not tell what its replicas optimise" in caplog.text


# What nodes of Qdrant 1.18.3 answered with 500 when another node, or two, were killed or hung.
FAILURES = {
    "a write, connection refused": (
        "Service internal error: Tonic status error: code: 'The service is currently unavailable', message: \"tcp "
        'connect error", source: tonic::transport::Error(Transport, ConnectError(ConnectError("tcp connect error", '
        '127.0.0.1:7232, Os { code: 111, kind: ConnectionRefused, message: "Connection refused" })))',
        "127.0.0.1:7232",
    ),
    "a write, connection broken": (
        "Service internal error: Tonic status error: code: 'Unknown error', message: \"transport error\", source: "
        "tonic::transport::Error(Transport, hyper::Error(Io, Kind(ConnectionReset)))",
        "",
    ),
    "a write to several shards": (
        "Service internal error: 2 out of 3 shards failed to apply operation. First error captured: Service internal "
        "error: Tonic status error: code: 'The service is currently unavailable', message: \"Failed to connect to "
        'http://127.0.0.1:7222/, error: transport error"',
        ALSO_AWAY,
    ),
    "a write to a node that hangs": (
        "Timeout: Timeout error: Deadline Exceeded: code: 'Deadline expired before operation could complete', message: "
        '"Healthcheck timeout 2000ms exceeded"',
        "",
    ),
    "a search of a shard that is nowhere": (
        "Service internal error: 1 of 1 read operations failed:\n  Service internal error: Tonic status error: code: "
        "'The service is currently unavailable', message: \"Failed to connect to http://127.0.0.1:7232/, error: "
        'transport error"',
        AWAY,
    ),
    "a read of all replicas": (
        "Service internal error: The replica set for shard 0 on peer 741333920376941 does not have enough "
        "active replicas",
        "",
    ),
    "an alias without a majority": (
        "Service internal error: Waiting for consensus operation commit failed. Timeout set at: 10 seconds",
        "majority",
    ),
    "an alias when the leader is away, too": (
        "Service internal error: Failed to propose operation: leader is not established within 10s",
        "majority",
    ),
}


class TestFailuresInWords:
    @pytest.mark.parametrize("failure", FAILURES)
    @pytest.mark.parametrize("protocol", ["http", "grpc"])
    def test_what_nodes_answer_is_a_failure_of_the_cluster(self, failure: str, protocol: str) -> None:
        text, address = FAILURES[failure]
        client = QdrantClient(":memory:")
        connection = Connection(client, f"{protocol}://host:6333")
        error = in_words(connection, StoreUnavailableError(f"{connection.url} answered 500: {text}", retry_after=2))
        client.close()
        assert type(error) is ClusterError
        assert error.retry_after == 2
        assert "same command again" in str(error)
        assert address in str(error).partition("Last answer")[0]

    @in_state("a node is away")
    def test_a_write_that_too_few_replicas_confirmed(self, store: QdrantStore) -> None:
        with raises(ClusterError, AWAY, "was not confirmed by 3 replicas", "collection c", "same command again"):
            store.upsert("c", Points("v", [POINT], np.ones((1, 2), np.float32), [{}]))

    @in_state("a node is away")
    @pytest.mark.parametrize(("seconds", "kind"), [(None, ClusterError), (0.5, DeadlinePassedError)])
    def test_the_answer_of_one_address_is_not_lost_when_the_next_one_is_dead(
        self, node: RecordedNode, seconds: float | None, kind: type[StoreUnavailableError]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            dead = f"http://127.0.0.1:{listening.getsockname()[1]}"
        retry = RetryPolicy(attempts=ATTEMPTS, initial_backoff=0.01, jitter=1.0 if seconds else 0.0)
        with QdrantStore.connect(f"{node.url},{dead}", retry=retry) as store, within(seconds):
            store.datatype("c")
            words = (
                "was not confirmed by 3 replicas",
                "collection c",
                "same command again",
                f"{dead} cannot be reached",
            )
            with raises(kind, AWAY, *words):
                store.upsert("c", Points("v", [POINT], np.ones((1, 2), np.float32), [{}]))

    @in_state("no majority")
    def test_a_switch_without_a_majority(self, store: QdrantStore) -> None:
        with raises(ClusterError, AWAY, ALSO_AWAY, "2 of its 3 nodes", "may still happen"):
            store.set_aliases({"a": "c"})

    @in_state("no majority")
    def test_the_node_that_waits_for_a_majority_says_so_before_the_deadline(
        self, store: QdrantStore, node: RecordedNode
    ) -> None:
        node.waits = True
        with within(1.9), raises(DeadlinePassedError, AWAY, ALSO_AWAY, "2 of its 3 nodes", "in the 1.9 s"):
            store.set_aliases({"a": "c"})

    @pytest.mark.parametrize("node", STATES, indirect=True)
    def test_other_failures_stay_as_they_are(self, store: QdrantStore, node: RecordedNode) -> None:
        node.full = True
        with raises(StoreUnavailableError, "No space left on device"):
            store.count("c")
