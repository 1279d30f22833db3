"""Replicas of a real cluster: what is said of them, and what goes on while a node is away."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from alignment.metrics import Distance
from connector.errors import ClusterError, MismatchError
from connector.home import Home
from connector.releases.promotion import Lifecycle, PromotionOverride
from connector.releases.reconcile import ReconcileReport
from connector.releases.reconcile_releases import reconcile_releases, repair_releases
from connector.releases.release import Release
from connector.releases.status import read_stored
from connector.settings import Settings
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.points import Points
from connector.stores.qdrant_connection import RetryPolicy
from tests.support.errors import raises
from tests.support.qdrant_servers import API_KEY, Cluster, state_of
from tests.support.world import World, audit, pairs, steady, the_set

THREE: dict[str, Any] = {"shards": 2, "replication_factor": 3, "write_consistency_factor": 3}
TWO: dict[str, Any] = {"shards": 3, "replication_factor": 2, "write_consistency_factor": 1}
FORCED = PromotionOverride("me", "the audit is not what this test is of")


@pytest.fixture(params=["REST", "gRPC"])
def world(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> Iterator[World]:
    """A home beside the cluster, which it reaches by a node that no test stops."""
    with cluster.nodes[0].connect(request.param, retry=RetryPolicy(attempts=3, timeout=5.0)) as store:
        world = World(tmp_path / "home", store)
        with world.provenance:
            world.alignment()
            world.alignment("b", turn=1)
            yield world


def on_each_node(cluster: Cluster, name: str) -> list[list[int]]:
    """The number of points of each shard of a collection, of each node's own replicas."""
    counts = []
    for node in cluster.nodes:
        with node.client() as client:
            shards = client.get(f"/collections/{name}/cluster").raise_for_status().json()["result"]["local_shards"]
        counts.append([shard["points_count"] for shard in sorted(shards, key=lambda shard: shard["shard_id"])])
    return counts


def report_of(world: World, collection: str) -> ReconcileReport:
    (report,) = reconcile_releases(world.provenance, world.store, collection, seed=0)
    return report


def repair(world: World, collection: str, orphans: int | None = None) -> None:
    with world.provenance.runs.start("repair", {}) as run:
        repair_releases(world.provenance, world.store, run, collection, orphans=orphans)


def lose_some(world: World, release: Release) -> None:
    """Delete points that SQL records; the node that is away keeps them."""
    ids = [record.id for record in next(world.store.scroll(release.name, page=5))]
    world.store.delete(release.name, ids)


def change_some(world: World, release: Release) -> None:
    """Write other payloads; the node that is away keeps the right ones, and all replicas hold as many points."""
    (page,) = world.store.scroll(release.name, vector_name="image", page=1000)
    images = [record for record in page if record.vector is not None][:5]
    vectors = np.stack([record.vector for record in images if record.vector is not None])
    payloads = [{**record.payload, "number": -1} for record in images]
    world.store.upsert(release.name, Points("image", [record.id for record in images], vectors, payloads))


@pytest.mark.parametrize("damage", [lose_some, change_some])
def test_a_replica_that_differs_is_found_by_whoever_asks_and_repaired(
    cluster: Cluster, world: World, collection: str, damage: Callable[[World, Release], None]
) -> None:
    embedding_set = world.set("s", *pairs(20))
    (release,) = world.push(embedding_set, collection=collection, **THREE).releases
    cluster.nodes[1].kill()
    with pytest.raises(ClusterError):
        damage(world, release)
    cluster.start()
    for _ in range(3):  # it does not depend on the replica that answers
        report = report_of(world, collection)
        assert not report.consistent
        assert report.missing.count == 5
    repair(world, collection)
    report = report_of(world, collection)
    assert report.consistent
    first, *others = on_each_node(cluster, release.name)
    assert all(other == first for other in others)
    assert world.push(embedding_set, collection=collection).counts == {"unchanged": 40}


def test_the_status_counts_the_smallest_replica_whatever_node_is_asked(
    cluster: Cluster, world: World, collection: str
) -> None:
    (release,) = world.push(world.set("s", *pairs(20)), collection=collection, **THREE).releases
    cluster.nodes[1].kill()
    with pytest.raises(ClusterError):
        lose_some(world, release)
    cluster.start()
    for node in cluster.nodes:
        with node.connect() as store:
            (stored,) = read_stored(world.provenance, store, [release.row]).values()
        assert stored.points == 35
        assert "5 fewer than SQL says" in stored.faults[0]
    repair(world, collection)
    (stored,) = read_stored(world.provenance, world.store, [release.row]).values()
    assert (stored.points, stored.faults) == (40, [])


def test_orphans_that_other_nodes_hold_alone_are_seen_and_deleted_there(
    cluster: Cluster, world: World, collection: str
) -> None:
    (release,) = world.push(world.set("s", *pairs(20)), collection=collection, **THREE).releases
    stray = Points("image", [str(UUID(int=number)) for number in range(1, 8)], np.ones((7, 6), np.float32), [{}] * 7)
    cluster.nodes[0].kill()
    with cluster.nodes[1].connect(retry=RetryPolicy(attempts=2)) as other, pytest.raises(ClusterError):
        other.upsert(release.name, stray)
    cluster.start()
    report = report_of(world, collection)
    assert not report.consistent
    assert (report.missing.count, report.orphans.count, report.has_orphans_elsewhere) == (0, 0, True)
    with cluster.nodes[1].connect() as world.store:
        repair(world, collection, orphans=report_of(world, collection).orphans.count)
        assert report_of(world, collection).consistent
    first, *others = on_each_node(cluster, release.name)
    assert all(other == first for other in others)


def test_an_audit_measures_the_same_whichever_node_answers(cluster: Cluster, world: World, collection: str) -> None:
    (release,) = world.push(world.set("s", *pairs(20)), collection=collection, **THREE).releases
    cluster.nodes[2].kill()
    with pytest.raises(ClusterError):
        lose_some(world, release)  # the last node keeps them
    cluster.start()
    found = []
    for node in cluster.nodes:
        with node.connect() as store:
            found.append(audit(release, store, the_set(world), ks=(1, 5), queries="all"))
    assert [result.info.points for result in found if result.info] == [35, 35, 35]
    assert steady(found[0]) == steady(found[1]) == steady(found[2])
    assert steady(audit(release, world.store, the_set(world), ks=(1, 5), queries="all")) == steady(found[0])


@pytest.mark.parametrize("world", ["REST"], indirect=True)
def test_replicas_that_differ_are_named_and_nothing_is_promoted(
    cluster: Cluster, world: World, collection: str
) -> None:
    embedding_set = world.set("s", *pairs(20))
    world.push(embedding_set, collection=collection, **THREE)
    (shadow,) = world.push(embedding_set, "b", collection=collection, **THREE).releases
    cluster.nodes[2].kill()
    with pytest.raises(ClusterError):
        lose_some(world, shadow)
    cluster.start()
    report = next(r for r in reconcile_releases(world.provenance, world.store, collection, seed=0) if r.replicas)
    assert report.name == shadow.name
    assert all("differ: " in sentence for sentence in report.replicas)
    lifecycle = Lifecycle(world.provenance, world.store, collection, device="cpu")
    with (
        world.provenance.runs.start("promote", {}) as run,
        raises(MismatchError, shadow.name, "replicas of shard", "modalign repair", code="replicas-differ"),
    ):
        lifecycle.promote(run.id, forced=FORCED)
    world.push(embedding_set, "b", collection=collection)  # SQL records all of it, and yet it writes what is missing
    with world.provenance.runs.start("promote", {}) as run:
        assert [switch.row.physical_name for switch in lifecycle.promote(run.id, forced=FORCED)] == [shadow.name]


@pytest.mark.parametrize("world", ["REST"], indirect=True)
def test_a_replica_that_is_lost_is_named_and_nothing_is_promoted(
    cluster: Cluster, world: World, collection: str
) -> None:
    embedding_set = world.set("s", *pairs(20))
    (live,) = world.push(embedding_set, collection=collection, **THREE).releases
    (shadow,) = world.push(embedding_set, "b", collection=collection, **THREE).releases
    peer = state_of(cluster.nodes[2])["peer_id"]
    with cluster.nodes[0].client() as client:
        drop = {"drop_replica": {"shard_id": 0, "peer_id": peer}}
        client.post(f"/collections/{shadow.name}/cluster", json=drop).raise_for_status()
    deadline = time.monotonic() + 10
    while not world.store.lost_replicas(shadow.name) and time.monotonic() < deadline:
        time.sleep(0.1)
    of_live, of_shadow = reconcile_releases(world.provenance, world.store, collection, seed=0)
    assert (of_live.name, of_live.lost, of_live.consistent) == (live.name, [], True)
    (lost,) = of_shadow.lost
    assert "shard 0 has 2 of 3 replicas" in lost
    assert f"peer {peer}" in lost
    assert not of_shadow.consistent
    lifecycle = Lifecycle(world.provenance, world.store, collection, device="cpu")
    with (
        world.provenance.runs.start("promote", {}) as run,
        raises(MismatchError, shadow.name, lost, code="replica-lost"),
    ):
        lifecycle.promote(run.id, forced=FORCED)


def test_with_a_node_away_pushes_promotions_and_rollbacks_go_on(
    cluster: Cluster, world: World, collection: str
) -> None:
    embedding_set = world.set("s", *pairs(20))
    (live,) = world.push(embedding_set, collection=collection, **TWO).releases
    (shadow,) = world.push(embedding_set, "b", collection=collection, **TWO).releases
    lifecycle = Lifecycle(world.provenance, world.store, collection, device="cpu")
    cluster.nodes[2].kill()
    assert world.push(embedding_set, collection=collection).counts == {"unchanged": 80}
    with world.provenance.runs.start("promote", {}) as run:
        assert [switch.row.physical_name for switch in lifecycle.promote(run.id, forced=FORCED)] == [shadow.name]
    with world.provenance.runs.start("rollback", {}) as run:
        assert [switch.row.physical_name for switch in lifecycle.rollback(run.id)] == [live.name]
    assert all(report.consistent for report in reconcile_releases(world.provenance, world.store, collection, seed=0))


@pytest.mark.parametrize("world", ["REST"], indirect=True)
def test_what_status_says_of_writes_and_searches_is_what_the_cluster_does(
    cluster: Cluster, world: World, collection: str
) -> None:
    factors = {(1, 1): False, (2, 1): True, (2, 2): False, (3, 1): True, (3, 2): True, (3, 3): False}
    points = Points("v", [str(UUID(int=number)) for number in range(1, 61)], np.eye(60, 2, dtype=np.float32), [{}] * 60)
    names = {(r, w): f"{collection}-{r}-{w}" for r, w in factors}
    for (replicas, confirmed), name in names.items():
        layout: dict[str, Any] = {"shards": 3, "replication_factor": replicas, "write_consistency_factor": confirmed}
        world.store.create(name, CollectionConfig({"v": VectorConfig(2, Distance.DOT)}, **layout))
        world.store.upsert(name, points)
    cluster.nodes[2].kill()
    for (replicas, confirmed), name in names.items():
        told = world.store.replicas(name)
        assert told is not None
        possible = {what: answer == "possible" for what, answer in told.possible.items()}
        assert possible == {"searches": replicas > 1, "writes": factors[replicas, confirmed], "switches": True}
        with nullcontext() if possible["searches"] else pytest.raises(ClusterError):
            assert len(world.store.search(name, "v", np.ones((1, 2), np.float32), 60)[0]) == 60
        with nullcontext() if possible["writes"] else pytest.raises(ClusterError):
            world.store.upsert(name, points)
    world.store.set_aliases({f"{collection}-alias": names[2, 1]})


@pytest.mark.parametrize("world", ["REST"], indirect=True)
def test_a_write_that_is_not_confirmed_says_which_node_is_away_and_what_finishes_it(
    cluster: Cluster, world: World, collection: str
) -> None:
    (release,) = world.push(world.set("s", *pairs(20)), collection=collection, **THREE).releases
    peer = state_of(cluster.nodes[1])["peer_id"]
    cluster.nodes[1].kill()
    with raises(ClusterError, f"peer {peer}", release.name, "3 replicas", "same command again"):
        world.push(world.set("s", *pairs(30)), collection=collection)


@pytest.mark.parametrize("world", ["REST"], indirect=True)
def test_without_a_majority_a_promotion_says_so_and_finishes_afterwards(
    cluster: Cluster, world: World, collection: str
) -> None:
    embedding_set = world.set("s", *pairs(20))
    world.push(embedding_set, collection=collection, **THREE)
    (shadow,) = world.push(embedding_set, "b", collection=collection, **THREE).releases
    lifecycle = Lifecycle(world.provenance, world.store, collection, device="cpu")
    for node in cluster.nodes[1:]:
        node.kill()
    with world.provenance.runs.start("promote", {}) as run, raises(ClusterError, "majority", "2 of its 3 nodes"):
        lifecycle.promote(run.id, forced=FORCED)
    cluster.start()
    with world.provenance.runs.start("promote", {}) as run:
        assert [switch.row.physical_name for switch in lifecycle.promote(run.id, forced=FORCED)] == [shadow.name]
    assert shadow.name in world.store.aliases().values()


def test_status_shows_replicas_and_what_is_possible(cluster: Cluster, collection: str, tmp_path: Path) -> None:
    with cluster.nodes[0].connect() as store:
        world = World(tmp_path / "home", store)
        with world.provenance:
            world.alignment()
            (release,) = world.push(world.set("s", *pairs(20)), collection=collection, **THREE).releases
    settings = Settings(world.home, cluster.nodes[0].url, world.url, api_key=API_KEY)

    def possible() -> tuple[Sequence[Any], dict[str, bool]]:
        with Home(settings) as home:
            replicas = home.replicas(collection)[release.name]
        answers = {what: answer == "possible" for what, answer in replicas.possible.items()}
        return replicas.away, answers

    assert possible() == ([], {"searches": True, "writes": True, "switches": True})
    cluster.nodes[1].kill()
    assert possible()[1] == {"searches": True, "writes": False, "switches": True}
    cluster.nodes[2].kill()
    deadline = time.monotonic() + 10
    while len(possible()[0]) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    away, answers = possible()
    assert len(away) == 2
    assert answers == {"searches": True, "writes": False, "switches": False}
