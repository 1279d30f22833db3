"""What another program changes on a real server behind modalign's back is seen, named and repaired."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from connector.home import Home
from connector.releases import reconcile as reconciling
from connector.releases.points import point_id
from connector.releases.reconcile import ReconcileReport, reconcile
from connector.releases.reconcile_releases import repair_releases
from connector.releases.release import open_release
from connector.releases.status import StoredRelease, read_stored
from connector.requests import DeleteRequest
from connector.settings import Settings
from tests.support.qdrant_nodes import Server
from tests.support.world import World, pairs


@pytest.fixture
def client(qdrant_server: Server) -> Iterator[httpx.Client]:
    """Another program, which sends what no store sends."""
    with qdrant_server.client() as client:
        yield client


def change(client: httpx.Client, method: str, path: str, body: Any) -> None:
    client.request(method, path, json=body, params={"wait": "true"}).raise_for_status()


def verified(world: World, collection: str, *, seed: int = 0, full: bool = False) -> ReconcileReport:
    release = open_release(world.provenance, world.store, collection)
    return reconcile(release, world.store, world.provenance, seed=seed, full=full)


def stored(world: World, collection: str) -> StoredRelease:
    (of_release,) = read_stored(
        world.provenance, world.store, world.provenance.releases.find(collection=collection)
    ).values()
    return of_release


def repair(world: World, collection: str, orphans: int | None = None) -> dict[str, int]:
    with world.provenance.runs.start("repair", {}) as run:
        repair_releases(world.provenance, world.store, run, collection, orphans=orphans)
    return dict(run.counts)


def test_points_with_integer_ids_are_orphans(world: World, collection: str, client: httpx.Client) -> None:
    (release,) = world.push(world.set("s", *pairs(6)), collection=collection).releases
    strangers: list[dict[str, Any]] = [
        {"id": 5, "vector": {"image": [1.0] * 6}, "payload": {"key": "3", "modality": "image"}},
        {"id": 2**64 - 1, "vector": {}, "payload": {}},
        {"id": "00000000-0000-0000-0000-000000000005", "vector": {"text": [1.0] * 6}},
    ]
    change(client, "PUT", f"/collections/{release.name}/points", {"points": strangers})
    report = verified(world, collection)
    assert sorted(report.orphans.examples) == sorted(str(stranger["id"]) for stranger in strangers)
    assert repair(world, collection, orphans=3) == {"orphans_deleted": 3}
    assert verified(world, collection).consistent


def test_wrong_vectors_are_all_found_once_one_is(
    world: World, collection: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "VECTORS", 10)
    (release,) = world.push(world.set("s", *pairs(40)), collection=collection).releases
    wrong = [point_id("image", str(number)) for number in range(12)]
    flipped = [{"id": id_, "vector": {"image": [1.0, *[0.0] * 5]}} for id_ in wrong]
    change(client, "PUT", f"/collections/{release.name}/points/vectors", {"points": flipped})
    counts = {verified(world, collection, seed=seed).differing.count for seed in range(12)}
    assert counts <= {0, 12}
    assert counts != {0}
    while not repair(world, collection):
        pass  # none was in its sample
    assert verified(world, collection, full=True).consistent


CHANGES: list[dict[str, Any]] = [
    {"hnsw_config": {"m": 4}},
    {"hnsw_config": {"ef_construct": 8, "full_scan_threshold": 1_000_000, "on_disk": True}},
    {"vectors": {"image": {"hnsw_config": {"m": 4}}}},
    {"vectors": {"text": {"on_disk": True}}},
    {"vectors": {"text": {"quantization_config": {"binary": {}}}}},
    {"quantization_config": "Disabled"},
    {"quantization_config": {"product": {"compression": "x16"}}},
    {"optimizers_config": {"indexing_threshold": 1_000_000}},
    {"params": {"replication_factor": 2, "write_consistency_factor": 2}},
    {"params": {"on_disk_payload": False}},
    {"metadata": {"modalign_search": {"oversampling": 1.0, "rescore": False}}},
]


@pytest.mark.parametrize("body", CHANGES, ids=str)
def test_settings_that_were_changed_are_named_and_restored(
    world: World, collection: str, client: httpx.Client, body: dict[str, Any]
) -> None:
    (release,) = world.push(world.set("s", *pairs(6)), collection=collection, quantization="scalar").releases
    assert verified(world, collection).consistent
    change(client, "PATCH", f"/collections/{release.name}", body)
    report = verified(world, collection)
    assert report.settings
    assert not report.consistent
    assert repair(world, collection) == {"restored": len(report.settings)}
    assert verified(world, collection).consistent


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (None, "nothing"),
        ("float", "float"),
        ({"type": "integer", "lookup": True, "range": False}, "integer (range=False)"),
        ({"type": "integer", "on_disk": True}, "integer (on_disk=True)"),
    ],
)
def test_a_payload_index_that_was_deleted_or_changed_is_named_and_restored(
    world: World, collection: str, client: httpx.Client, schema: Any, named: str
) -> None:
    (release,) = world.push(
        world.set("s", *pairs(6)), collection=collection, payload_indexes={"number": "integer"}
    ).releases
    change(client, "DELETE", f"/collections/{release.name}/index/number", None)
    if schema is not None:
        change(client, "PUT", f"/collections/{release.name}/index", {"field_name": "number", "field_schema": schema})
    (said,) = verified(world, collection).settings
    assert f"payload index number is {named}, SQL recorded integer" in said
    assert repair(world, collection) == {"restored": 1}
    assert verified(world, collection).consistent


@pytest.mark.parametrize("foreign", [True, False])
def test_an_alias_that_leads_elsewhere_or_is_gone_is_named_and_restored(
    world: World, collection: str, client: httpx.Client, foreign: bool
) -> None:
    (release,) = world.push(world.set("s", *pairs(6)), collection=collection).releases
    alias, other = f"{collection}.cosine", f"{collection}-foreign"
    actions: list[dict[str, Any]] = [{"delete_alias": {"alias_name": alias}}]
    if foreign:
        change(client, "PUT", f"/collections/{other}", {"vectors": {"size": 4, "distance": "Dot"}})
        actions.append({"create_alias": {"alias_name": alias, "collection_name": other}})
    change(client, "POST", "/collections/aliases", {"actions": actions})
    (said,) = verified(world, collection).settings
    assert (other if foreign else "is gone") in said
    assert repair(world, collection) == {"restored": 1}
    assert world.store.aliases()[alias] == release.name


def test_an_old_snapshot_that_was_recovered_is_seen_by_its_count(
    world: World, collection: str, client: httpx.Client
) -> None:
    (release,) = world.push(world.set("s", *pairs(6)), collection=collection).releases
    snapshots = f"/collections/{release.name}/snapshots"
    taken = client.post(snapshots).raise_for_status().json()["result"]["name"]
    snapshot = client.get(f"{snapshots}/{taken}").raise_for_status().content
    world.push(world.set("more", *pairs(4, seed=3, prefix="more-")), collection=collection)
    assert stored(world, collection) == StoredRelease(20, [])
    upload = client.post(f"{snapshots}/upload", params={"priority": "snapshot"}, files={"snapshot": snapshot})
    upload.raise_for_status()
    of_release = stored(world, collection)
    assert of_release.points == 12
    assert "8 fewer than SQL says" in of_release.faults[0]


def test_a_collection_that_was_deleted_takes_its_recorded_layout_when_it_is_pushed_again(
    world: World, collection: str, client: httpx.Client
) -> None:
    options: dict[str, Any] = {"m": 8, "quantization": "scalar", "payload_indexes": {"number": "integer"}}
    (release,) = world.push(world.set("s", *pairs(6)), collection=collection, **options).releases
    change(client, "DELETE", f"/collections/{release.name}", None)
    of_release = stored(world, collection)
    assert (of_release.points, len(of_release.faults)) == (0, 1)
    assert "push its embedding sets again: s" in of_release.faults[0]
    world.push(world.set("s", *pairs(6)), collection=collection)
    info = world.store.describe(release.name)
    assert (info.m, info.quantization, info.payload_indexes["number"]) == (8, "scalar", "integer")
    assert verified(world, collection).consistent


def test_a_vector_that_was_lost_or_added_is_found_whatever_the_sample(
    world: World, collection: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "VECTORS", 0)
    (release,) = world.push(world.set("s", *pairs(6)), collection=collection).releases
    vectors = f"/collections/{release.name}/points/vectors"
    extra = {"id": point_id("image", "2"), "vector": {"text": [1.0] * 6}}
    change(client, "PUT", vectors, {"points": [extra]})
    change(client, "POST", f"{vectors}/delete", {"points": [point_id("text", "4")], "vector": ["text"]})
    assert sorted(verified(world, collection).differing.examples) == ["image:2", "text:4"]
    assert repair(world, collection) == {"repaired": 2}
    assert verified(world, collection, full=True).consistent


def test_a_server_that_allows_one_condition_is_verified_all_the_same(
    world: World, collection: str, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    (release,) = world.push(world.set("s", *pairs(6)), collection=collection).releases
    strict = {"enabled": True, "filter_max_conditions": 1}
    change(client, "PATCH", f"/collections/{release.name}", {"strict_mode_config": strict})
    assert verified(world, collection).consistent
    assert any("in the sample alone" in record.getMessage() for record in caplog.records)


def test_a_server_that_allows_one_condition_deletes_by_keys(
    world: World, collection: str, client: httpx.Client, qdrant_server: Server
) -> None:
    (release,) = world.push(world.set("s", *pairs(6)), collection=collection).releases
    strict = {"enabled": True, "filter_max_conditions": 1}
    change(client, "PATCH", f"/collections/{release.name}", {"strict_mode_config": strict})
    with Home(Settings(world.home, world.store.url, world.url, api_key=qdrant_server.api_key)) as home:
        home.delete(DeleteRequest(collection=collection, keys=["3"]))
    assert world.store.count(release.name) == 10
