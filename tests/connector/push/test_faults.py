"""A server that fails, over a real socket: what passes is outlasted, what is refused is named, nothing is lost."""

import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stamina
import trustme
from pytest_httpserver import HTTPServer
from qdrant_client import QdrantClient
from qdrant_client.qdrant_remote import QdrantRemote
from stamina.instrumentation import RetryDetails

from alignment.metrics import Distance
from alignment.vectors import FloatArray
from connector.errors import (
    AccessDeniedError,
    CollectionNotFoundError,
    PointsRefusedError,
    RequestRefusedError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
)
from connector.home import Home
from connector.provenance.database import upgrade
from connector.requests import IngestRequest
from connector.settings import Settings
from connector.stores import qdrant as qdrant_store
from connector.stores import qdrant_readiness
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.points import Points
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import Connection, RetryPolicy
from connector.stores.qdrant_limits import REQUEST_BYTES, REQUEST_POINTS, LimitBook, Limits
from tests.support.canned_server import CannedServer
from tests.support.errors import raises
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.faulty_grpc_server import over_grpc
from tests.support.faulty_server import Fault, FaultyServer, Request, running
from tests.support.world import World, alignment, pairs, stored

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]

DIM = 4
KEY = "s3cret-key"
LAYOUT = CollectionConfig({"v": VectorConfig(DIM, Distance.EUCLID)})
# As stubborn as in production, without the waits.
QUICK = RetryPolicy(initial_backoff=0.0, max_backoff=0.0, jitter=0.0, max_retry_after=0.01)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with running(FaultyServer()) as server:
        yield server


@pytest.fixture
def store(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantStore]:
    """A store with the empty collection `c`; requests are counted from here."""
    monkeypatch.setattr(qdrant_readiness, "POLL_SECONDS", 0.0)
    with QdrantStore.connect(server.url, retry=QUICK, timeout=1) as store:
        store.create("c", LAYOUT)
        store.count("c")
        server.requests.clear()
        yield store


def batch(n: int, *, dim: int = DIM, start: int = 0, **payload: Any) -> Points:
    ids = [f"00000000-0000-0000-0000-{start + i:012d}" for i in range(n)]
    vectors: FloatArray = np.arange(n * dim, dtype=np.float32).reshape(n, dim)
    return Points("v", ids, vectors, [{"number": start + i, **payload} for i in range(n)])


def numbers(store: QdrantStore) -> set[int]:
    return {record.payload["number"] for page in store.scroll("c") for record in page}


def once(fault: Fault, when: Callable[[Request], bool] = lambda request: True) -> Callable[[Request], Fault | None]:
    """Fail the first request for which `when` holds."""
    left = [fault]
    return lambda request: left.pop() if left and when(request) else None


PASSING = {
    "429": Fault(429),
    "429 with a time": Fault(429, {"Retry-After": "0"}),
    "429 with a date": Fault(429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "500": Fault(500),
    "503": Fault(503, {"Retry-After": "0"}),
    "reset before the answer": Fault(cut="before"),
    "reset in the middle of the answer": Fault(cut="middle", applied="all"),
    "answer lost": Fault(cut="before", applied="all"),
    "half applied": Fault(500, applied="half"),
}


class TestWhatPasses:
    """Pitfalls 3 and 4: retried by our own policy, and a batch that is sent again is harmless."""

    @pytest.mark.slow
    @pytest.mark.parametrize("fault", PASSING)
    def test_a_write_is_retried_until_it_is_whole(self, server: FaultyServer, store: QdrantStore, fault: str) -> None:
        server.fail = once(PASSING[fault], lambda request: request.writes_points)
        points = batch(REQUEST_POINTS + 10)
        store.upsert("c", points)
        assert sum(request.writes_points for request in server.requests) == 3
        assert numbers(store) == set(range(len(points.ids)))

    @pytest.mark.parametrize("fault", [name for name in PASSING if PASSING[name].applied != "half"])
    def test_everything_else_is_asked_again(self, server: FaultyServer, store: QdrantStore, fault: str) -> None:
        store.upsert("c", batch(5))
        operations: list[Callable[[], Any]] = [
            lambda: store.count("c"),
            lambda: store.describe("c").points,
            lambda: len(store.search("c", "v", np.zeros((1, DIM)), 9)[0]),
            lambda: sum(len(page) for page in store.scroll("c")),
            lambda: len(store.retrieve("c", batch(5).ids)),
        ]
        for operation in operations:
            server.fail = once(PASSING[fault])
            assert operation() == 5

    @pytest.mark.parametrize("fault", ["answer lost", "500", "reset in the middle of the answer"])
    def test_a_collection_is_created_once(self, server: FaultyServer, store: QdrantStore, fault: str) -> None:
        asked = ("PUT", "/collections/new")
        server.fail = once(PASSING[fault], lambda request: (request.method, request.path) == asked)
        store.create("new", CollectionConfig(LAYOUT.vectors, metadata={"a": 1}))
        assert [(r.method, r.path) for r in server.requests].count(asked) == 2
        assert store.describe("new").metadata == {"a": 1}

    @pytest.mark.slow
    def test_a_collection_that_another_made_meanwhile_is_not_ours(
        self, server: FaultyServer, store: QdrantStore
    ) -> None:
        def other_first(request: Request) -> Fault | None:
            if (
                request.method == "PUT"
                and request.path == "/collections/new"
                and not server.data.collection_exists("new")
            ):
                server.carry_out(Request("PUT", request.path, None, {**request.body, "metadata": {"of": "another"}}))
            return None

        server.fail = other_first
        with raises(StoreError, 409):
            store.create("new", CollectionConfig(LAYOUT.vectors, metadata={"a": 1}))
        assert store.describe("new").metadata == {"of": "another"}

    def test_a_slow_answer_is_waited_for(self, server: FaultyServer, store: QdrantStore) -> None:
        server.fail = once(Fault(applied="all", delay=0.3))
        assert store.count("c") == 0
        assert len(server.requests) == 1

    def test_one_that_takes_longer_than_the_timeout_is_not(self, server: FaultyServer, store: QdrantStore) -> None:
        server.fail = once(Fault(applied="all", delay=1.5), lambda request: request.writes_points)
        began = time.monotonic()
        store.upsert("c", batch(5))
        assert time.monotonic() - began < 5
        assert sum(request.writes_points for request in server.requests) == 2
        assert store.count("c") == 5

    def test_what_never_passes_is_given_up(self, server: FaultyServer, store: QdrantStore) -> None:
        server.fail = lambda request: Fault(429, {"Retry-After": "3600"})
        with raises(StoreUnavailableError, server.url):
            store.count("c")
        assert len(server.requests) == QUICK.attempts

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize(("asked", "waited"), [("3", 3.0), ("3600", 60.0), ("a date", 30.0), ("nonsense", None)])
    def test_retry_after_is_honoured_and_capped(
        self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, status: int, asked: str, waited: float | None
    ) -> None:
        if asked == "a date":
            asked = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
        planned: list[float] = []
        slept: list[float] = []
        monkeypatch.setattr(time, "sleep", slept.append)

        def watch(details: RetryDetails) -> None:
            planned.append(details.wait_for)

        stamina.instrumentation.set_on_retry_hooks([watch])
        try:
            with QdrantStore.connect(server.url, retry=RetryPolicy(initial_backoff=0.5, jitter=0.25)) as store:
                server.fail = once(Fault(status, {"Retry-After": asked}))
                store.collections()
        finally:
            stamina.instrumentation.set_on_retry_hooks(None)
        (wait,) = planned
        if waited is None:  # then our own wait, with its jitter
            assert 0.5 <= wait <= 0.75
        else:
            assert wait == pytest.approx(waited, abs=2)

    def test_a_write_that_only_timed_out_is_sent_again(self, server: FaultyServer, store: QdrantStore) -> None:
        """Pitfall 2: acknowledged is not completed."""
        original, answers = server.carry_out, iter(["acknowledged", "wait_timeout"])

        def carry_out(request: Request, *, half: bool = False) -> Any:
            answer = original(request, half=half)
            if request.writes_points and (status := next(answers, None)):
                answer["result"]["status"] = status
            return answer

        server.carry_out = carry_out  # type: ignore[method-assign]
        store.upsert("c", batch(5))
        assert sum(request.writes_points for request in server.requests) == 3
        assert store.count("c") == 5


class TestNarrowing:
    """Pitfall 3: a batch that is too large is halved, one that is refused is narrowed to the rows at fault."""

    def test_points_at_fault_are_named_and_the_others_written(self, server: FaultyServer, store: QdrantStore) -> None:
        bad = {0, 5, 127, 128, 199, 299}
        points = batch(300)
        for row in bad:
            points.payloads[row]["refuse"] = True
        with pytest.raises(PointsRefusedError, match="collection c") as raised:
            store.upsert("c", points)
        assert set(raised.value.refused) == bad
        for row, (reason, detail) in raised.value.refused.items():
            assert reason == "refused-by-qdrant"
            assert f"payload of number {row} is refused" in detail
        assert numbers(store) == set(range(300)) - bad

    def test_a_request_that_is_wrong_as_a_whole_is_no_fault_of_its_rows(
        self, server: FaultyServer, store: QdrantStore
    ) -> None:
        server.fail = lambda request: Fault(400) if request.writes_points else None
        with raises(RequestRefusedError, 400):
            store.upsert("c", batch(40))

    def test_a_body_that_is_too_large_is_halved_and_the_size_remembered(
        self, server: FaultyServer, store: QdrantStore
    ) -> None:
        server.body_limit = 20_000
        store.upsert("c", batch(100, text="x" * 1000))
        assert numbers(store) == set(range(100))
        for start in (100, 200, 300, 400, 500, 600, 700, 800):
            store.upsert("c", batch(100, start=start, text="x" * 1000))
        server.requests.clear()
        store.upsert("c", batch(10, start=900, text="x" * 1000))
        assert len(server.requests) == 1

    def test_a_point_that_is_too_large_alone_is_refused(self, server: FaultyServer, store: QdrantStore) -> None:
        server.body_limit = 20_000
        points = batch(20)
        points.payloads[7]["text"] = "x" * 30_000
        with pytest.raises(PointsRefusedError) as raised:
            store.upsert("c", points)
        assert {row: refusal.reason for row, refusal in raised.value.refused.items()} == {7: "too-large"}
        assert numbers(store) == set(range(20)) - {7}

    @pytest.mark.parametrize("status", [401, 403, 404, 409])
    def test_other_refusals_are_heard_at_once(self, server: FaultyServer, store: QdrantStore, status: int) -> None:
        server.fail = lambda request: Fault(status)
        with pytest.raises(StoreError, match=str(status)) as raised:
            store.upsert("c", batch(5))
        assert isinstance(raised.value, CollectionNotFoundError) == (status == 404)
        assert len(server.requests) == 1


class TestRequests:
    """Pitfall 5: requests are bounded in bytes and number; timeouts are explicit."""

    def test_they_are_cut_by_bytes(self, server: FaultyServer, rng: np.random.Generator) -> None:
        points = batch(200, dim=4096)
        vectors = (rng.standard_normal((200, 4096)) * 1e-30).astype(np.float32)  # their exponents are written out
        with QdrantStore.connect(server.url) as store:
            store.create("wide", CollectionConfig({"v": VectorConfig(4096, Distance.DOT)}))
            store.upsert("wide", Points("v", points.ids, vectors, points.payloads))
            assert store.count("wide") == 200
        sizes = [request.size for request in server.requests if request.writes_points]
        assert len(sizes) > 1
        assert max(sizes) <= REQUEST_BYTES

    def test_several_are_under_way_at_once_and_no_more_than_told(self, server: FaultyServer) -> None:
        lock, now, most = threading.Lock(), [0], [0]

        def watch(request: Request) -> Fault | None:
            if request.writes_points:
                with lock:
                    now[0] += 1
                    most[0] = max(most[0], now[0])
                time.sleep(0.05)
                with lock:
                    now[0] -= 1
            return None

        server.fail = watch
        with QdrantStore.connect(server.url, retry=QUICK, uploads=2) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch(6 * REQUEST_POINTS))
            assert most == [2]
            assert numbers(store) == set(range(6 * REQUEST_POINTS))

    @pytest.mark.slow
    def test_the_timeout_is_the_one_that_was_set(self, server: FaultyServer) -> None:
        server.fail = lambda request: Fault(applied="all", delay=1.3) if request.path == "/collections" else None
        few = RetryPolicy(attempts=1)
        with (
            QdrantStore.connect(server.url, retry=few, timeout=1) as store,
            raises(StoreUnavailableError, "timed out", "MODALIGN_QDRANT_TIMEOUT"),
        ):
            store.collections()
        with QdrantStore.connect(server.url, retry=few, timeout=5) as store:
            assert store.collections() == []


class TestSecrets:
    @pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
    def test_a_key_that_a_server_sends_back_is_not_shown(self, httpserver: HTTPServer, status: int) -> None:
        server = CannedServer(httpserver)
        with QdrantStore.connect(server.url, api_key=KEY, retry=QUICK) as store:
            server.always(status, f"your key {KEY} is not known".encode())
            with pytest.raises(StoreError) as raised:
                store.collections()
            assert KEY not in "".join(traceback.format_exception(raised.value))
            assert KEY not in repr(store.__dict__)

    def test_a_key_in_an_error_of_the_client_is_not_shown(self) -> None:
        def echoing() -> None:
            raise ValueError(f"header {KEY}")

        connection = Connection(QdrantClient(":memory:"), "http://host", secrets=(KEY,))
        with pytest.raises(StoreError) as raised:
            connection.translated(echoing)
        assert KEY not in "".join(traceback.format_exception(raised.value))
        connection.client.close()

    def test_a_wrong_key_is_refused_at_once(self) -> None:
        with running(FaultyServer(key=KEY)) as server:
            with raises(AccessDeniedError, 401, "MODALIGN_QDRANT_API_KEY"):
                QdrantStore.connect(server.url, api_key="wrong", retry=QUICK)
            assert len(server.requests) == 1

    @pytest.mark.parametrize("key", ["schlüssel", "with\nnewline", "tab\there"])
    def test_a_key_that_no_header_can_carry(self, server: FaultyServer, key: str) -> None:
        with pytest.raises(SettingsError, match="MODALIGN_QDRANT_API_KEY") as raised:
            QdrantStore.connect(server.url, api_key=key)
        assert key not in "".join(traceback.format_exception(raised.value))


class TestEncryption:
    @pytest.fixture
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @pytest.fixture
    def encrypted(self, authority: trustme.CA) -> Iterator[FaultyServer]:
        with running(FaultyServer(), authority.issue_cert("127.0.0.1")) as server:
            yield server

    def test_with_the_authority_that_signed_it(
        self, encrypted: FaultyServer, authority: trustme.CA, tmp_path: Path
    ) -> None:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        with QdrantStore.connect(encrypted.url, api_key=KEY, ca_file=tmp_path / "ca.pem", retry=QUICK) as store:
            assert store.collections() == []
        assert {request.key for request in encrypted.requests} == {KEY}

    def test_a_certificate_that_is_not_trusted_is_refused_at_once(self, encrypted: FaultyServer) -> None:
        with pytest.raises(StoreError, match="MODALIGN_QDRANT_CA_FILE") as raised:
            QdrantStore.connect(encrypted.url, api_key=KEY, retry=QUICK)
        assert not isinstance(raised.value, StoreUnavailableError)
        assert encrypted.requests == []

    @pytest.mark.parametrize("content", [None, "no certificate"])
    @pytest.mark.parametrize("scheme", ["https", "grpcs"])
    def test_a_file_that_holds_no_certificate(self, tmp_path: Path, scheme: str, content: str | None) -> None:
        if content is not None and scheme == "https":
            (tmp_path / "ca.pem").write_text(content)
        with raises(SettingsError, "MODALIGN_QDRANT_CA_FILE", "ca.pem"):
            QdrantStore.connect(f"{scheme}://127.0.0.1:1", ca_file=tmp_path / "ca.pem")


class TestGrpc:
    """The other protocol: the same decisions."""

    @pytest.fixture
    def store(self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantStore]:
        monkeypatch.setattr(qdrant_readiness, "POLL_SECONDS", 0.0)
        with over_grpc(server) as url, QdrantStore.connect(url, retry=QUICK, timeout=2) as store:
            store.create("c", LAYOUT)
            server.requests.clear()
            yield store

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "fault",
        [Fault(429), Fault(429, {"Retry-After": "1"}), Fault(500), Fault(503), Fault(504), Fault(500, applied="half")],
        ids=lambda fault: f"{fault.status} {fault.headers} {fault.applied}",
    )
    def test_what_passes_is_tried_again(self, server: FaultyServer, store: QdrantStore, fault: Fault) -> None:
        server.fail = once(fault, lambda request: request.writes_points)
        store.upsert("c", batch(REQUEST_POINTS + 10))
        assert sum(request.writes_points for request in server.requests) == 3
        assert numbers(store) == set(range(REQUEST_POINTS + 10))

    def test_points_at_fault_are_named_and_the_others_written(self, server: FaultyServer, store: QdrantStore) -> None:
        points = batch(50)
        points.payloads[7]["refuse"] = True
        with pytest.raises(PointsRefusedError) as raised:
            store.upsert("c", points)
        assert {row: refusal.reason for row, refusal in raised.value.refused.items()} == {7: "refused-by-qdrant"}
        assert numbers(store) == set(range(50)) - {7}

    def test_several_addresses_are_written_to_as_one_is(
        self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(QdrantRemote, "upsert")  # which makes an object of each number
        with (
            over_grpc(server) as one,
            over_grpc(server) as other,
            QdrantStore.connect(f"{one},{other}", retry=QUICK, timeout=2) as store,
        ):
            store.create("c", LAYOUT)
            server.fail = once(Fault(503), lambda request: request.writes_points)
            store.upsert("c", batch(5))
            assert numbers(store) == set(range(5))

    def test_a_message_that_is_too_large_is_halved(self) -> None:
        with (
            running(FaultyServer(body_limit=20_000)) as server,
            over_grpc(server) as url,
            QdrantStore.connect(url, retry=QUICK) as store,
        ):
            store.create("c", LAYOUT)
            store.upsert("c", batch(100, text="x" * 1000))
            assert numbers(store) == set(range(100))

    @pytest.mark.parametrize("status", [401, 403, 404, 409, 412, 501, 507])
    def test_what_does_not_pass_is_heard_at_once(self, server: FaultyServer, store: QdrantStore, status: int) -> None:
        server.fail = lambda request: Fault(status)
        with pytest.raises(StoreError, match=store.url) as raised:
            store.collections()
        assert not isinstance(raised.value, StoreUnavailableError)
        assert isinstance(raised.value, CollectionNotFoundError) == (status == 404)
        assert len(server.requests) == 1

    def test_the_key_is_asked_for(self) -> None:
        with running(FaultyServer(key=KEY)) as server, over_grpc(server) as url:
            with QdrantStore.connect(url, api_key=KEY) as store:
                assert store.collections() == []
            with raises(AccessDeniedError, "UNAUTHENTICATED", "MODALIGN_QDRANT_API_KEY"):
                QdrantStore.connect(url, api_key="wrong")

    def test_an_old_server(self) -> None:
        with (
            running(FaultyServer(version="1.15.5")) as server,
            over_grpc(server) as url,
            raises(StoreError, "1.16", "1.15.5"),
        ):
            QdrantStore.connect(url)

    def test_no_server_at_all(self) -> None:
        with raises(StoreUnavailableError, "127.0.0.1:1", "MODALIGN_QDRANT_URL"):
            QdrantStore.connect("grpc://127.0.0.1:1", retry=QUICK)

    def test_encrypted(self, server: FaultyServer, tmp_path: Path) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        with over_grpc(server, authority.issue_cert("127.0.0.1")) as url:
            with QdrantStore.connect(url, ca_file=tmp_path / "ca.pem", retry=QUICK) as store:
                assert store.collections() == []
            with pytest.raises(StoreError, match=r"not trusted|cannot be reached"):
                QdrantStore.connect(url, retry=QUICK)


class Storm:
    """Fails 30% of the requests, each in a way that passes."""

    def __init__(self, seed: int):
        self.failed = 0
        self._chance = random.Random(seed)
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Fault | None:
        with self._lock:
            if self._chance.random() >= 0.3:
                return None
            self.failed += 1
            fault = self._chance.choice(tuple(PASSING.values()))
        return Fault(fault.status) if fault.applied == "half" and not request.writes_points else fault


class TestAWholePush:
    """With 30% of all requests failing at random, everything ends written once, and SQL says so."""

    @pytest.mark.slow
    def test_it_ends_complete_and_correct(
        self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(qdrant_readiness, "POLL_SECONDS", 0.0)
        monkeypatch.setattr(qdrant_store, "LimitBook", partial(LimitBook, Limits(points=8)))
        stubborn = RetryPolicy(attempts=30, initial_backoff=0.0, max_backoff=0.0, jitter=0.0, max_retry_after=0.0)
        snapshots = []
        for name, storm in {"calm": None, **{f"storm {seed}": Storm(seed) for seed in (1, 2, 3)}}.items():
            with running(FaultyServer()) as faulty, QdrantStore.connect(faulty.url, retry=stubborn) as store:
                world = World(tmp_path / name, store)
                with world.provenance:
                    world.alignment()
                    embedding_set = world.set("s", *pairs(300))
                    if storm:
                        faulty.fail = storm
                    pushed = world.push(embedding_set, metrics=["cosine", "chi2"])
                    faulty.fail = lambda request: None
                    assert pushed.counts == {"written": 1200}
                    assert world.push(embedding_set, metrics=["cosine", "chi2"]).counts == {"unchanged": 1200}
                    snapshots.append(world.snapshot())
                    for release in pushed.releases:
                        assert len(stored(store, release.name, "image")) == 600
            assert storm is None or storm.failed > 50
        assert all(snapshot == snapshots[0] for snapshot in snapshots)

    @pytest.mark.slow
    def test_rows_that_qdrant_refuses_become_rejects_on_every_run(
        self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(qdrant_readiness, "POLL_SECONDS", 0.0)
        with QdrantStore.connect(server.url, retry=QUICK) as store:
            world = World(tmp_path, store)
            with world.provenance:
                world.alignment()
                embedding_set = world.set("s", *pairs(20))
                world.push(embedding_set)
                bad = {record.payload["key"] for record in next(store.scroll("things.cosine"))[:2]}
                original = server.check_payload
                server.check_payload = lambda point: original(  # type: ignore[method-assign]
                    {**point, "refuse": point["key"] in bad and point["modality"] == "image"}
                )
                store.drop(store.aliases()["things.cosine"])
                for _ in range(2):
                    pushed = world.push(embedding_set)
                    refused = world.reasons(pushed.run)
                    assert [(m, reason) for m, _, reason in refused] == [("image", "refused-by-qdrant")] * len(refused)
                    assert {key for _, key, _ in refused} <= bad
                    assert pushed.counts["rejected"] == len(refused) > 0
                    assert store.count("things.cosine") == 40 - len(refused)

    @pytest.mark.slow
    @pytest.mark.usefixtures("fake_encoders")
    def test_an_ingest_from_the_corpus_on_ends_complete(
        self, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(qdrant_readiness, "POLL_SECONDS", 0.0)
        manifest = write_manifest(tmp_path / "m.jsonl", fake_pairs(tmp_path, 40))
        home = tmp_path / "home"
        alignment().save(home / "alignments" / "a")
        settings = Settings.load(home=home, qdrant_url=server.url)
        upgrade(settings.database_url)
        server.fail = Storm(4)
        with stamina.set_testing(True, attempts=30), Home(settings) as opened:
            result = opened.ingest(IngestRequest(corpus=manifest, into="things", alignment="a", metrics=["cosine"]))
        server.fail = lambda request: None
        assert result.counts["written"] == 80
        assert server.data.count("things.cosine").count == 80
        with Home(settings) as opened:
            assert (
                opened.ingest(IngestRequest(corpus=manifest, into="things", alignment="a")).counts["unchanged"] == 80
            )  # items, and points
            assert opened.provenance.ledger.points(opened.provenance.releases.find()[0].id) == 80
