"""Nodes of a cluster stop and are killed: all points arrive, and every replica holds them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.modality import MODALITIES, Modality
from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import StoreError
from connector.home import Home
from connector.provenance.database import upgrade
from connector.push import batches as pushing
from connector.releases.reconcile_releases import repair_releases
from connector.requests import IngestRequest
from connector.settings import Settings
from connector.stores.qdrant_connection import RetryPolicy
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.qdrant_servers import API_KEY, Cluster
from tests.support.world import World, alignment, pairs, stored

N = 300


def replicas(cluster: Cluster, name: str) -> list[dict[Modality, Any]]:
    """The points of a collection as each node reads them; with as many replicas as nodes, from its own one."""
    found = []
    for node in cluster.nodes:
        with node.connect() as store:
            found.append({modality: stored(store, name, modality) for modality in MODALITIES})
    return found


@pytest.fixture
def world(cluster: Cluster, tmp_path: Path) -> Iterator[World]:
    """A home beside the cluster, which it reaches by a node that no test stops."""
    with cluster.nodes[0].connect(retry=RetryPolicy(timeout=5.0)) as store:
        world = World(tmp_path / "home", store)
        with world.provenance:
            world.alignment()
            yield world


def push(world: World, collection: str) -> None:
    world.push(EmbeddingSet.open(world.home / "sets" / "s"), collection=collection)


def repair(world: World, collection: str) -> None:
    with world.provenance.runs.start("repair", {}) as run:
        repair_releases(world.provenance, world.store, run, collection)


@pytest.mark.parametrize("remedy", [push, repair])
def test_after_a_write_that_too_few_replicas_took_every_replica_has_all(
    cluster: Cluster, world: World, collection: str, remedy: Callable[[World, str], None]
) -> None:
    copies: dict[str, Any] = {"shards": 1, "replication_factor": 3, "write_consistency_factor": 3}
    (release,) = world.push(world.set("s", *pairs(20)), collection=collection, **copies).releases
    grown = world.set("s", *pairs(20), *pairs(60, seed=1, prefix="more-"))
    cluster.nodes[2].kill()
    with pytest.raises(StoreError):
        world.push(grown, collection=collection)
    cluster.start()
    remedy(world, collection)
    first, *others = replicas(cluster, release.name)
    assert all(other == first for other in others)
    assert len(first["image"]) == 160
    assert world.push(grown, collection=collection).counts == {"unchanged": 160}
    assert world.states() == {release.name: ("live", 160)}


@pytest.mark.usefixtures("fake_encoders")
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_node_goes_away_during_an_ingest_and_comes_back(
    cluster: Cluster, collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(pushing, "BATCH_POINTS", 64)
    manifest = write_manifest(tmp_path / "m.jsonl", fake_pairs(tmp_path, N))
    request = IngestRequest(corpus=manifest, into=collection, alignment="a", metrics=["cosine"])
    settings = Settings(tmp_path / "home", cluster.nodes[0].url, f"sqlite:///{tmp_path / 'm.db'}", api_key=API_KEY)
    alignment().save(settings.alignment_path("a"))
    upgrade(settings.database_url)
    copies = {"shards": 3, "replication_factor": 2, "write_consistency_factor": 1}
    with Home(settings) as home:
        upsert, written = home.store.upsert, 0

        def stopping(name: str, points: Any) -> None:
            nonlocal written
            upsert(name, points)
            written += len(points.ids)
            if 0 <= written - N < len(points.ids):
                getattr(cluster.nodes[2], how)()

        monkeypatch.setattr(home.store, "upsert", stopping)
        ingested = home.ingest(replace(request, layout=copies))
        assert ingested.counts["written"] == 2 * N
        (release,) = ingested.value
        assert home.store.count(release.name) == 2 * N
        cluster.start()
        assert home.store.ready(release.name).points == 2 * N
        again = home.ingest(request)
        assert (again.counts["written"], again.counts["encoded"]) == (0, 0)
        with cluster.nodes[2].connect() as third:
            assert third.ready(release.name).points == 2 * N
