"""A node of a cluster stops during an ingest: all points arrive, and the node catches up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connector.home import Home
from connector.provenance.database import upgrade
from connector.push import batches as pushing
from connector.requests import IngestRequest
from connector.settings import Settings
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.qdrant_servers import API_KEY, Cluster
from tests.support.world import alignment

N = 1000


@pytest.mark.usefixtures("fake_encoders")
def test_a_node_stops_during_an_ingest_and_comes_back(
    cluster: Cluster, collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "BATCH_POINTS", 128)
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
                cluster.nodes[2].stop()

        monkeypatch.setattr(home.store, "upsert", stopping)
        ingested = home.ingest(replace(request, layout=copies))
        assert ingested.counts["written"] == 2 * N
        (release,) = ingested.value
        assert home.store.count(release.name) == 2 * N
        cluster.nodes[2].start()
        assert home.store.ready(release.name).points == 2 * N
        again = home.ingest(request)
        assert (again.counts["written"], again.counts["encoded"]) == (0, 0)
        with cluster.nodes[2].connect() as third:
            assert third.ready(release.name).points == 2 * N
