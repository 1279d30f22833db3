"""A command or a search fails by its deadline, whatever a server does; and while it waits, one line says so."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.metrics import Distance
from connector.errors import DeadlinePassedError, StoreError, StoreUnavailableError
from connector.stores import qdrant_connection
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.deadlines import deadline, shortened, within
from connector.stores.points import Points
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import RetryPolicy
from tests.support.errors import raises
from tests.support.faulty_grpc_server import over_grpc
from tests.support.faulty_server import Fault, FaultyServer, running
from tests.support.store_contract import ids

SECONDS = 0.6
ENOUGH = SECONDS + 1.5  # of a busy machine
X = np.eye(2, dtype=np.float32)


@given(st.lists(st.none() | st.floats(0.01, 1000), max_size=5))
def test_the_earliest_of_nested_deadlines_holds(seconds: list[float | None]) -> None:
    assert deadline() is None
    blocks = [within(each) for each in seconds]
    for block in blocks:
        block.__enter__()
    holds = deadline()
    earliest = min((each for each in seconds if each is not None), default=None)
    for block in reversed(blocks):
        block.__exit__(None, None, None)
    assert (holds and holds.seconds) == earliest
    assert deadline() is None


def test_a_timeout_ends_at_the_deadline_and_never_later() -> None:
    assert (shortened(None), shortened(60)) == (None, 60)
    with within(1.0):
        assert 0.5 < (shortened(60) or 0) <= 1.0
        assert shortened(0.2) == 0.2
    with within(1e-9):
        assert 0 < (shortened(60) or 0) < 0.01


def test_its_time_begins_with_the_first_request() -> None:
    """What a command does before, such as loading libraries, takes none of it."""
    with within(0.05):
        time.sleep(0.1)
        assert 0.02 < (shortened(60) or 0) <= 0.05
        time.sleep(0.1)
        assert (shortened(60) or 0) < 0.01


def test_the_time_of_an_outer_one_begins_with_the_inner_one() -> None:
    with within(0.2):
        with within(0.1):
            assert 0 < (shortened(60) or 0) <= 0.1
        time.sleep(0.2)
        assert (shortened(60) or 0) < 0.01
        with within(0.1):
            assert (shortened(60) or 0) < 0.01


def test_it_is_the_threads_own() -> None:
    with ThreadPoolExecutor(1) as threads, within(5):
        assert threads.submit(deadline).result() is None
        assert threads.submit(copy_context().run, deadline).result() is not None


@pytest.fixture(params=["REST", "gRPC"])
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[FaultyServer, QdrantStore]]:
    """A server and a store that has connected and made a collection."""
    with ExitStack() as stack:
        server = stack.enter_context(running(FaultyServer()))
        url = server.url if request.param == "REST" else stack.enter_context(over_grpc(server))
        store = stack.enter_context(QdrantStore.connect(url))
        store.create("c", CollectionConfig({"v": VectorConfig(2, Distance.DOT)}))
        yield server, store


USES: dict[str, Callable[[QdrantStore], object]] = {
    "read": lambda store: list(store.scroll("c")),
    "write": lambda store: store.upsert("c", Points("v", ids(2), X, [{}, {}])),
}
FAILURES = {
    "silent": Fault(delay=4.0),
    "overloaded": Fault(status=503),
    "asking for more time than there is": Fault(status=429, headers={"Retry-After": "30"}),
    "cut off": Fault(cut="before"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("failure", FAILURES)
def test_every_request_fails_by_it(opened: tuple[FaultyServer, QdrantStore], use: str, failure: str) -> None:
    server, store = opened
    store.datatype("c")
    server.fail = lambda request: FAILURES[failure]
    began = time.monotonic()
    with within(SECONDS), raises(DeadlinePassedError, store.url, SECONDS, code="deadline-passed"):
        USES[use](store)
    assert time.monotonic() - began < ENOUGH


def test_nothing_is_sent_after_it(opened: tuple[FaultyServer, QdrantStore]) -> None:
    server, store = opened
    server.requests.clear()
    with within(1e-6), pytest.raises(DeadlinePassedError):
        store.upsert("c", Points("v", ids(2), X, [{}, {}]))
    assert not [request for request in server.requests if request.writes_points]
    store.upsert("c", Points("v", ids(2), X, [{}, {}]))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_never_answers_is_given_up_while_connecting(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, within(1.0):
        began = time.monotonic()
        with pytest.raises(DeadlinePassedError):
            QdrantStore.connect(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 3


@pytest.fixture
def port() -> Callable[[], int]:
    """Return ports at which nothing listens."""

    def free() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            number: int = listening.getsockname()[1]
        return number

    return free


@pytest.mark.parametrize("scheme", ["http", "grpc"])
class TestTheCauseStaysBesideTheDeadline:
    SECONDS = 2  # enough for one attempt at each address

    @pytest.mark.slow
    @pytest.mark.parametrize("dead", [1, 2])
    def test_all_addresses_that_refuse_connections_are_named(
        self, scheme: str, dead: int, port: Callable[[], int]
    ) -> None:
        urls = [f"{scheme}://127.0.0.1:{port()}" for _ in range(dead)]
        with within(self.SECONDS), raises(DeadlinePassedError, *urls, "onnection refused", self.SECONDS):
            QdrantStore.connect(",".join(urls))

    @pytest.mark.slow
    def test_the_address_that_refused_before_another_was_silent(self, scheme: str, port: Callable[[], int]) -> None:
        dead = f"{scheme}://127.0.0.1:{port()}"
        with socket.create_server(("127.0.0.1", 0)) as silent, within(self.SECONDS):
            other = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
            with raises(DeadlinePassedError, dead, "onnection refused", other, self.SECONDS):
                QdrantStore.connect(f"{dead},{other}")

    def test_an_address_that_was_not_asked_is_not_said_to_be_silent(
        self, scheme: str, port: Callable[[], int], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        urls = [f"{scheme}://127.0.0.1:{port()}" for _ in range(2)]
        with within(1e-6), raises(DeadlinePassedError, urls[0], "not asked", 1e-6):
            QdrantStore.connect(",".join(urls))
        assert caplog.messages == []  # nor is it left for the next one

    def test_without_a_deadline_too(self, scheme: str, port: Callable[[], int]) -> None:
        urls = [f"{scheme}://127.0.0.1:{port()}" for _ in range(2)]
        with raises(StoreUnavailableError, *urls, "onnection refused", code="store-unavailable"):
            QdrantStore.connect(",".join(urls), retry=RetryPolicy(attempts=2, initial_backoff=0.01, jitter=0.0))


@pytest.mark.parametrize(("failure", "words"), [("overloaded", "answered 503"), ("cut off", "cannot be reached")])
def test_what_the_server_did_before_stays_beside_the_deadline(failure: str, words: str) -> None:
    """The first attempt fails by itself, and the second one is not answered."""
    with running(FaultyServer()) as server, QdrantStore.connect(server.url) as store:
        failures = iter([FAILURES[failure]])
        server.fail = lambda request: next(failures, FAILURES["silent"])
        with within(2.0), raises(DeadlinePassedError, words, "did not answer", 2, code="deadline-passed"):
            store.count("c")


class TestWhatIsSaid:
    QUICK = RetryPolicy(attempts=4, initial_backoff=0.01, max_backoff=0.02, jitter=0.0)

    @pytest.fixture
    def said(self, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
        caplog.set_level(logging.WARNING)
        return lambda: [r.getMessage() for r in caplog.records if r.name == qdrant_connection.__name__]

    def test_one_line_whatever_number_of_requests_wait(
        self, said: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
    ) -> None:
        with running(FaultyServer()) as server, QdrantStore.connect(server.url, retry=self.QUICK) as store:
            store.create("c", CollectionConfig({"v": VectorConfig(2, Distance.DOT)}))
            server.fail = lambda request: Fault(status=503)
            for _ in range(3):
                with pytest.raises(StoreUnavailableError):
                    store.count("c")
            (line,) = said()
            assert server.url in line
        assert not [record for record in caplog.records if record.name == "stamina"]
        for words in ("503", "trying again in 0.0 s", "attempt 2 of 4", "before "):
            assert words in line

    def test_nothing_where_nothing_waits(self, said: Callable[[], list[str]]) -> None:
        with running(FaultyServer()) as server, QdrantStore.connect(server.url, retry=self.QUICK) as store:
            server.fail = lambda request: Fault(status=403)
            with pytest.raises(StoreError):
                store.count("c")
        assert said() == []

    def test_the_time_that_the_server_asks_for(
        self, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        with running(FaultyServer()) as server, QdrantStore.connect(server.url, retry=self.QUICK) as store:
            server.fail = lambda request: Fault(429, {"Retry-After": "36"})
            with pytest.raises(StoreUnavailableError):
                store.count("c")
        assert "trying again in 36.0 s" in said()[0]


def test_one_request_waits_for_the_time_that_a_server_tells_and_all_come_through() -> None:
    """A rate limit, as a real server has it: tokens come back with time, and a request that is early is refused."""
    capacity, rate, tokens, last = 2.0, 10.0, [0.0], [time.monotonic()]
    with running(FaultyServer()) as server:

        def limited(request: object) -> Fault | None:
            now = time.monotonic()
            tokens[0], last[0] = min(capacity, tokens[0] + rate * (now - last[0])), now
            if tokens[0] < capacity:
                return Fault(429, {"Retry-After": f"{(capacity - tokens[0]) / rate:.3f}"})
            tokens[0] -= capacity
            return None

        retry = RetryPolicy(attempts=4, timeout=0.7)  # eight take 1.6 s
        with QdrantStore.connect(server.url, retry=retry) as store, ThreadPoolExecutor(8) as threads:
            store.create("c", CollectionConfig({"v": VectorConfig(2, Distance.DOT)}))
            server.fail = limited
            counts = list(threads.map(lambda _: store.count("c"), range(8)))
    assert counts == [0] * 8
