"""A real Qdrant server: pushes, ingests, searches and audits. Stores keep their contract there in test_contract.py."""

from pathlib import Path
from typing import Any

import pytest

from connector.errors import StoreError
from connector.home import Home
from connector.releases.release import open_release
from connector.requests import IngestRequest
from connector.search.retriever import Retriever
from connector.settings import Settings
from connector.stores.filters import parse_filter
from connector.stores.layout import COMPRESSIONS, QUANTIZATIONS
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.qdrant_nodes import Node, Server
from tests.support.world import World, audit, pairs

pytestmark = pytest.mark.usefixtures("fake_encoders")


def test_a_push_is_whole_repeatable_and_live(world: World, collection: str) -> None:
    embedding_set = world.set("s", *pairs(150))
    pushed = world.push(embedding_set, metrics=["cosine", "chi2"], collection=collection)
    assert pushed.counts == {"written": 600}
    assert world.push(embedding_set, metrics=["cosine", "chi2"], collection=collection).counts == {"unchanged": 600}
    aliases = world.store.aliases()
    for release in pushed.releases:
        assert world.store.count(release.name) == 300
        assert release.name in aliases.values()


def test_an_ingest_is_whole_repeatable_and_live(
    world: World, qdrant_server: Server, collection: str, tmp_path: Path
) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", fake_pairs(tmp_path, 20))
    request = IngestRequest(corpus=manifest, into=collection, alignment="a", metrics=["cosine", "chi2"])
    with Home(Settings(world.home, world.store.url, world.url, api_key=qdrant_server.api_key)) as home:
        ingested = home.ingest(request)
        assert ingested.counts["written"] == 80
        again = home.ingest(request)
        assert (again.counts["written"], again.counts["encoded"]) == (0, 0)
        aliases = home.store.aliases()
        for release in ingested.value:
            assert home.store.count(release.name) == 40
            assert release.name in aliases.values()


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
def test_a_graph_is_built_searched_and_audited(world: World, collection: str, quantization: Any) -> None:
    embedding_set = world.set("s", *pairs(400))
    (release,) = world.push(
        embedding_set, collection=collection, indexing_threshold=1, quantization=quantization
    ).releases
    assert world.store.describe(release.name).indexed > 0
    assert release.tuned is not None
    found = audit(
        open_release(world.provenance, world.store, collection, None, device="cpu"),
        world.store,
        embedding_set,
        queries="all",
        gallery="all",
        sample=40,
    )
    fidelity = [m.value for m in found.measures if m.name == "fidelity@10" and not m.part]
    assert fidelity == pytest.approx([release.tuned.recall] * 2, abs=0.15)
    # One bit of each of six dimensions tells 64 directions apart, for 400 items.
    assert quantization == "binary" or min(fidelity) > 0.9


def test_the_server_has_what_the_layout_says(world: World, collection: str, qdrant_server: Server) -> None:
    layout: dict[str, Any] = {
        "m": 8,
        "ef_construct": 64,
        "indexing_threshold": 123,
        "quantization": "binary",
        "compression": "two_bits",
        "datatype": "float16",
        "vectors_on_disk": True,
        "hnsw_on_disk": True,
        "payload_on_disk": True,
        "shards": 2,
        "payload_indexes": {"number": "integer"},
    }
    assert layout["compression"] in COMPRESSIONS["binary"]
    (release,) = world.push(world.set("s", *pairs(20)), collection=collection, **layout).releases
    with qdrant_server.client() as client:
        info = client.get(f"/collections/{release.name}").json()["result"]
    config = info["config"]
    assert (config["hnsw_config"]["m"], config["hnsw_config"]["ef_construct"]) == (8, 64)
    assert config["optimizer_config"]["indexing_threshold"] == 123
    assert config["params"]["shard_number"] == 2
    assert config["params"]["on_disk_payload"]
    assert {vector["datatype"] for vector in config["params"]["vectors"].values()} == {"float16"}
    assert config["quantization_config"]["binary"]["encoding"] == "two_bits"
    assert info["payload_schema"]["number"]["data_type"] == "integer"


def test_search_finds_with_filters(world: World, collection: str) -> None:
    world.push(world.set("s", *pairs(50)), collection=collection, payload_indexes={"number": "integer"})
    retriever = Retriever.open(world.provenance, world.store, collection)
    narrow = parse_filter('{"must": [{"key": "key", "match": {"value": "no such key"}}]}')
    [found] = retriever.search_texts(["crimson crimson"], k=5)
    assert len(found) == 5
    assert all(hit.payload["modality"] == "image" for hit in found)
    assert retriever.search_texts(["crimson crimson"], k=5, filter=narrow) == [[]]


def test_a_wrong_key_is_refused_at_once(own_server: Node) -> None:
    for wrong in ("wrong", None):
        with (
            own_server.connect(api_key=wrong) as store,
            pytest.raises(StoreError, match=r"40[13].*MODALIGN_QDRANT_API_KEY"),
        ):
            store.collections()
