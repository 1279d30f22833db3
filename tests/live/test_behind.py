"""What another program changes on a real server behind modalign's back is seen, named and repaired."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from connector.releases import reconcile as reconciling
from connector.releases.points import point_id
from connector.releases.reconcile import ReconcileReport, reconcile
from connector.releases.reconcile_releases import repair_releases
from connector.releases.release import open_release
from tests.support.qdrant_servers import Server
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
    assert repair(world, collection, orphans=3) == {"deleted": 3}
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
