"""An offset for seen items on a real server: pushed as a shadow, audited, promoted, searched, and by plain HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.modality import MODALITIES, OTHER
from alignment.retrieval.kinds import SEEN
from alignment.sets.hold_out import HoldOut
from connector.home import Home
from connector.requests import AuditRequest, ExportRequest, PromoteRequest
from connector.settings import Settings
from connector.states import ReleaseState
from tests.support.exports import example, spec_of
from tests.support.qdrant_nodes import Server
from tests.support.torch_operators import operators_read_once
from tests.support.world import World, cards, embedded, latent, pairs

N, K = 1200, 10
REQUIRED = ["index:fidelity@10>=0.95"]  # for both kinds of queries
PARTS = dict(zip(MODALITIES, pairs(N, noise=0.3), strict=True))
OURS: dict[str, Any] = {
    "hold_out": HoldOut(0.3, 5),
    "seen": [part.take([number for number in range(N) if number % 3]) for part in PARTS.values()],
    "offsets": {"image": 0.02, "text": 0.01},
}


@pytest.fixture(autouse=True, scope="module")
def quick_exports() -> Iterator[None]:
    with operators_read_once():
        yield


# One of each distance and guarantee, and a correction; along a graph.
@pytest.mark.parametrize("metric", ["cosine", "hellinger", "w1", "kl-query-item", "js", "mol", "mlp", "dot+nnn"])
def test_it_is_audited_promoted_and_searched_alike_by_a_retriever_and_by_plain_http(
    world: World, qdrant_server: Server, collection: str, tmp_path: Path, metric: str
) -> None:
    embedding_set = world.set("s", *PARTS.values())
    world.push(embedding_set, metrics=[metric], collection=collection, indexing_threshold=1)
    world.alignment("b", **OURS)
    (shadow,) = world.push(embedding_set, "b", metrics=[metric], collection=collection).releases
    with Home(Settings(world.home, world.store.url, world.url, api_key=qdrant_server.api_key)) as home:
        asked = AuditRequest(
            collection=collection, pairs="s", release="ready", sample=100, require=["index:fidelity@10>=0.95"]
        )
        (found,) = home.audit(asked).value
        assert found.verdict == "passed"
        assert {(stage.kind, stage.name) for stage in found.stages} >= {("", "index"), (SEEN, "index")}
        home.promote(PromoteRequest(collection=collection))
        exported = tmp_path / "exported"
        home.export(ExportRequest(alignment="b", metric=str(shadow.metric), to=exported, collection=collection))
        retriever, X = home.retriever(collection, metric), embedded("text", latent(3, seed=9), noise=0.2)
        assert (retriever.release.name, retriever.release.row.state) == (shadow.name, ReleaseState.LIVE)
        results = retriever.search_embeddings("text", X, K, encoder=cards()["text"].fingerprint)
    assert any(hit.seen_offset for hits in results for hit in hits)
    np.save(tmp_path / "texts.npy", X)
    ended = example(exported, tmp_path / "texts.npy", qdrant_server.url, key=qdrant_server.api_key)
    assert (ended.returncode, ended.stderr) == (0, "")
    for row, hits in enumerate(results):
        printed = [line.split(" ", 4) for line in ended.stdout.splitlines() if line.startswith(f"{row} ")]
        by_http = [json.loads(payload) for *_, payload in printed]
        assert {hit["modality"] for hit in by_http} == {OTHER["text"]}
        if spec_of(exported)["rescoring"] is None:
            assert [hit["key"] for hit in by_http[:K]] == [hit.key for hit in hits]
            np.testing.assert_allclose([float(p[2]) for p in printed[:K]], [hit.score for hit in hits], atol=2e-5)
            np.testing.assert_allclose([float(p[3]) for p in printed[:K]], [h.seen_offset for h in hits], atol=2e-5)
        else:  # candidates, which the service rescores
            assert {hit.key for hit in hits} <= {hit["key"] for hit in by_http}
