"""Strict mode of a real server: every limit, under every command. What a user gets less of is said."""

import json
import logging
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.models import FieldCondition, Filter, HasIdCondition, HasVectorCondition, MatchAny

from connector.errors import ExactRefusedError, SettingsError, StoreFullError
from connector.home import Home
from connector.releases.points import point_id
from connector.requests import AuditRequest, DeleteRequest, ExportRequest, PushRequest, RepairRequest, SearchRequest
from connector.settings import Settings
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_limits import OWN_CONDITIONS
from tests.support.errors import raises
from tests.support.qdrant_nodes import Server
from tests.support.store_contract import config, ids, normal, points
from tests.support.world import World, pairs

pytestmark = pytest.mark.usefixtures("fake_encoders")

N = 40
# By name: strict mode, and words that the user has to see somewhere during the commands.
LIMITS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "hits and pages": ({"max_query_limit": 9}, ()),
    "queries of a request": ({"search_max_batchsize": 2}, ()),
    "points of a request": ({"upsert_max_batchsize": 3}, ()),
    "hnsw_ef": ({"search_max_hnsw_ef": 64}, ("hnsw_ef 64 instead of 128",)),
    "exact searches and counts": ({"search_allow_exact": False}, ("hnsw_ef is not tuned", "search_allow_exact")),
    "filters on unindexed fields": ({"unindexed_filtering_retrieve": False}, ()),
    "conditions of a filter": ({"filter_max_conditions": OWN_CONDITIONS}, ()),
    "values of a condition": ({"condition_max_size": 3}, ()),
    "all of them": (
        {
            "max_query_limit": 11,
            "search_max_batchsize": 5,
            "upsert_max_batchsize": 10,
            "search_max_hnsw_ef": 32,
            "search_max_oversampling": 4.0,
            "search_allow_exact": False,
            "max_payload_index_count": 3,
            "filter_max_conditions": 5,
        },
        ("hnsw_ef is not tuned",),
    ),
}


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give every new collection a strict mode, as the server's own settings do."""

    def switch_on(**limits: Any) -> None:
        create = QdrantClient.create_collection

        def created(self: QdrantClient, name: str, *args: Any, **options: Any) -> bool:
            done = create(self, name, *args, **options)
            self.update_collection(name, strict_mode_config=models.StrictModeConfig(enabled=True, **limits))
            return done

        monkeypatch.setattr(QdrantClient, "create_collection", created)

    return switch_on


def limit_to(server: Server, name: str, **limits: Any) -> None:
    """Switch on strict mode of a collection that exists."""
    with server.client() as client:
        client.patch(
            f"/collections/{name}", json={"strict_mode_config": {"enabled": True, **limits}}
        ).raise_for_status()


def opened(world: World, server: Server) -> Home:
    """The home, which reaches the server by the protocol under test."""
    return Home(Settings(world.home, world.store.url, world.url, api_key=server.api_key))


@pytest.mark.parametrize(
    ("store", "limit"),
    [*(("REST", limit) for limit in LIMITS), ("gRPC", "all of them")],
    indirect=["store"],
)
def test_every_command_obeys(
    world: World,
    collection: str,
    qdrant_server: Server,
    strict: Any,
    caplog: pytest.LogCaptureFixture,
    limit: str,
) -> None:
    limits, told = LIMITS[limit]
    strict(**limits)
    caplog.set_level(logging.WARNING)
    world.set("s", *pairs(N))
    layout = {"indexing_threshold": 1, "quantization": "scalar"}
    push = PushRequest(set="s", into=collection, alignment="a", metrics=["chi2"], layout=layout)
    with opened(world, qdrant_server) as home:
        assert home.push(push).counts["written"] == 2 * N
        assert home.push(push).counts == {"unchanged": 2 * N}
        found = home.search(SearchRequest(collection=collection, query="crimson crimson", k=12))
        assert len(found.hits) == 12
        assert len({hit.key for hit in found.hits}) == 12
        [report] = home.verify(collection)
        assert report.consistent
        (audit,) = home.audit(
            AuditRequest(collection=collection, pairs="s", queries="all", gallery="all", ks=[1, 10], sample=8)
        ).value
        assert {m.value for m in audit.measures if m.name == "recall@10" and not m.part} == {1.0}
        assert home.delete(DeleteRequest(collection=collection, keys=["3"])).counts["deleted"] == 2
        home.repair(RepairRequest(collection=collection))
        assert home.push(push).counts == {"unchanged": 2 * N - 2}
    said = caplog.text + " ".join(audit.findings)
    for words in told:
        assert words in said


def test_conditions_that_are_cut_find_the_same(world: World, collection: str, qdrant_server: Server) -> None:
    (release,) = world.push(world.set("s", *pairs(N)), collection=collection).releases
    ids = [point_id("image", str(number)) for number in range(0, N, 2)]
    keys = [str(number) for number in range(1, N, 2)]
    of_ids, of_keys = HasIdCondition(has_id=[*ids]), FieldCondition(key="key", match=MatchAny(any=keys))
    filters = [
        Filter(must=[of_ids]),
        Filter(must_not=[of_ids]),
        Filter(must=[of_keys, HasVectorCondition(has_vector="text")], must_not=[of_ids]),
        Filter(should=[of_ids, Filter(must=[of_keys])]),
    ]

    def found() -> list[Any]:
        store, query = world.store, np.ones((1, 6), np.float32)
        return [
            (
                sorted(record.id for page in store.scroll(release.name, filter=condition) for record in page),
                store.count(release.name, filter=condition),
                sorted(
                    hit.id for hit in store.search(release.name, "image", query, N, exact=True, filter=condition)[0]
                ),
            )
            for condition in filters
        ]

    whole = found()
    limit_to(qdrant_server, release.name, condition_max_size=3)
    assert found() == whole
    assert [count for _, count, _ in whole] == [N // 2, 2 * N - N // 2, N // 2, N // 2 + N]


def test_a_release_that_was_tuned_before_is_searched_at_the_limit_and_says_so(
    world: World, collection: str, qdrant_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    layout: dict[str, Any] = {"indexing_threshold": 1, "quantization": "scalar"}
    (release,) = world.push(world.set("s", *pairs(N)), collection=collection, metrics=["chi2"], **layout).releases
    assert release.hnsw_ef is not None
    limit_to(qdrant_server, release.name, search_max_hnsw_ef=16, search_max_oversampling=1.5)
    caplog.set_level(logging.WARNING)
    with opened(world, qdrant_server) as home:
        for _ in range(2):
            assert len(home.search(SearchRequest(collection=collection, query="crimson crimson")).hits) == 10
    assert caplog.text.count(f"hnsw_ef 16 instead of {release.hnsw_ef}") == 1
    assert caplog.text.count("oversampling 1.5 instead of 4.0") == 1
    with opened(world, qdrant_server) as home:  # another process, which has searched nothing
        request = ExportRequest(alignment="a", metric="chi2", to=world.home / "out", collection=collection)
        home.export(request)
    params = json.loads((world.home / "out" / "request.json").read_text())["requests"]["text-to-image"]["body"][
        "params"
    ]
    assert (params["hnsw_ef"], params["quantization"]["oversampling"]) == (16, 1.5)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"search_max_oversampling": 2.0}, ("oversampling 4", "2", "search_max_oversampling")),
        ({"max_payload_index_count": 2}, ("3 payload indexes", "key, group, split", "max_payload_index_count")),
    ],
)
def test_a_push_that_could_never_be_searched_leaves_nothing(
    world: World, collection: str, store: QdrantStore, strict: Any, limits: dict[str, Any], words: tuple[str, ...]
) -> None:
    strict(**limits)
    with raises(SettingsError, *words):
        world.push(world.set("s", *pairs(3)), collection=collection, quantization="scalar")
    assert not [name for name in store.collections() if name.startswith(collection)]
    assert world.states() == {}


class TestRates:
    """Rate limits that one request alone would exceed: no wait helps, so it is split."""

    @pytest.fixture
    def name(self, store: QdrantStore, collection: str, rng: np.random.Generator) -> str:
        store.create(collection, config())
        store.upsert(collection, points(normal(rng, 10)))
        return collection

    def test_reads(self, store: QdrantStore, name: str, qdrant_server: Server, rng: np.random.Generator) -> None:
        limit_to(qdrant_server, name, read_rate_limit=3000)
        assert len(store.retrieve(name, ids(3200))) == 10  # the server counts ids, also those that it has not

    def test_searches(self, store: QdrantStore, name: str, qdrant_server: Server, rng: np.random.Generator) -> None:
        limit_to(qdrant_server, name, read_rate_limit=100)
        assert [len(hits) for hits in store.search(name, "v", normal(rng, 101), 3)] == [3] * 101

    def test_writes(self, store: QdrantStore, name: str, qdrant_server: Server, rng: np.random.Generator) -> None:
        limit_to(qdrant_server, name, write_rate_limit=120)
        store.upsert(name, points(normal(rng, 121)))
        store.delete(name, ids(5))
        assert store.count(name) == 116


def fill(store: QdrantStore, name: str, rng: np.random.Generator) -> None:
    for start in range(100, 2000):  # a server looks at the size after every few requests
        store.upsert(name, points(normal(rng, 1), start))


@pytest.mark.parametrize("limit", ["max_points_count", "max_collection_vector_size_bytes"])
def test_a_full_collection_is_no_fault_of_the_points(
    store: QdrantStore, collection: str, qdrant_server: Server, rng: np.random.Generator, limit: str
) -> None:
    store.create(collection, config())
    store.upsert(collection, points(normal(rng, 60)))
    limit_to(qdrant_server, collection, **{limit: 50})
    with raises(StoreFullError, "limit of", code="store-full"):
        fill(store, collection, rng)
    limit_to(qdrant_server, collection, enabled=False)
    store.upsert(collection, points(normal(rng, 60)))


def test_an_exact_search_that_is_refused_says_so(
    store: QdrantStore, collection: str, qdrant_server: Server, rng: np.random.Generator
) -> None:
    store.create(collection, config())
    store.upsert(collection, points(normal(rng, 5)))
    limit_to(qdrant_server, collection, search_allow_exact=False)
    for _ in range(2):
        with raises(ExactRefusedError, "search_allow_exact", code="exact-refused"):
            store.search(collection, "v", normal(rng, 1), 3, exact=True)
    assert store.count(collection) == 5
