"""A node of a cluster stops while points are written: they all arrive, and the node catches up."""

from pathlib import Path
from typing import Any

import pytest

from connector import push as pushing
from connector.qdrant_store import QdrantStore
from tests.live.conftest import Cluster
from tests.world import World, pairs

N = 3000


def test_a_node_stops_during_a_push_and_comes_back(
    cluster: Cluster, collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "BATCH_POINTS", 128)
    with QdrantStore.connect(cluster.urls[0], api_key=cluster.key) as store:
        world = World(tmp_path, store)
        with world.provenance:
            world.alignment()
            written = 0
            upsert = store.upsert

            def stopping(name: str, points: Any) -> None:
                nonlocal written
                upsert(name, points)
                written += len(points.ids)
                if 0 <= written - N // 2 < len(points.ids):
                    cluster.compose("stop qdrant-3")

            monkeypatch.setattr(store, "upsert", stopping)
            embedding_set = world.set("s", *pairs(N))
            pushed = world.push(
                embedding_set, collection=collection, shards=3, replication_factor=2, write_consistency_factor=1
            )
            assert pushed.counts == {"written": 2 * N}
            (release,) = pushed.releases
            assert store.count(release.name) == 2 * N
            cluster.compose("start --wait qdrant-3")
            assert store.ready(release.name).points == 2 * N
            assert world.push(embedding_set, collection=collection).counts == {"unchanged": 2 * N}
            with QdrantStore.connect(cluster.urls[2], api_key=cluster.key) as third:
                assert third.ready(release.name).points == 2 * N
            for left in store.collections():
                store.drop(left)
