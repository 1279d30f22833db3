"""Exports of an alignment that lowers seen items: with nothing but onnxruntime and HTTP, a service ranks alike."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pytest_httpserver import HTTPServer

from alignment.metrics import METRICS, parse
from alignment.modality import MODALITIES, OTHER, Modality
from alignment.sets.hold_out import HoldOut
from connector.releases.aliases import alias_name
from connector.search.export import ExportSpec, write
from connector.search.retriever import Retriever, SearchResult
from tests.support.canned_server import CannedServer, result
from tests.support.exports import answered, example, run, spec_of
from tests.support.slow import slow_unless
from tests.support.torch_operators import operators_read_once
from tests.support.world import COLLECTION, World, alignment, cards, embedded, latent, opened_world, pairs

# One of each distance, and one that rescores.
SERVED = ["cosine", "hellinger", "w1", "chi2"]
N, K = 40, 10
PARTS = dict(zip(MODALITIES, pairs(N, noise=0.3), strict=True))
OURS: dict[str, Any] = {
    "hold_out": HoldOut(0.3, 5),
    "seen": [part.take([number for number in range(N) if number % 3]) for part in PARTS.values()],
    "offsets": {"image": 0.3, "text": 0.15},
}


@pytest.fixture(autouse=True, scope="module")
def quick_exports() -> Iterator[None]:
    with operators_read_once():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with opened_world("edge", tmp_path_factory.mktemp("world")) as opened:
        opened.alignment(**OURS)
        opened.push(opened.set("s", *PARTS.values()), metrics=SERVED)
        yield opened


@pytest.fixture(scope="module", params=slow_unless("hellinger".__eq__, SERVED))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "graphs"
    write(path, ExportSpec("a", alignment(**OURS), parse(request.param)))
    return path


def searched(world: World, metric: str, modality: Modality, X: npt.NDArray[np.floating]) -> list[SearchResult]:
    retriever = Retriever.open(world.provenance, world.store, COLLECTION, metric)
    return retriever.search_embeddings(modality, X, K, encoder=cards()[modality].fingerprint)


def own_scores(spec: Any, modality: Modality, ranked_by: npt.NDArray[Any], seen: npt.NDArray[Any]) -> Any:
    """The metric's own scores of items, as `request.json` says."""
    offset = spec["seen_offset"]["offset"][modality] * seen
    return -np.sqrt(np.maximum(ranked_by**2 - offset, 0)) if spec["seen_offset"]["squared"] else ranked_by + offset


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_service_ranks_as_a_retriever_does(world: World, exported: Path, modality: Modality) -> None:
    spec, X, target = spec_of(exported), embedded(modality, latent(3, seed=9), noise=0.2), OTHER[modality]
    request = spec["requests"][f"{modality}-to-{target}"]
    outputs = run(exported / request["graph"], X)
    metric = METRICS[spec["metric"].partition("(")[0]].bind(alignment().weights, target, "cpu")
    for row, expected in enumerate(searched(world, spec["metric"], modality, X)):
        body = {**request["body"], "query": outputs["vector"][row].tolist()}
        hits = answered(world, request["path"].format(collection=COLLECTION), body)
        marked = [hit["payload"][spec["seen_offset"]["field"]] == spec["seen_offset"]["value"] for hit in hits]
        if spec["rescoring"]:
            packed = [base64.b64decode(hit["payload"]["aligned"]) for hit in hits]
            stored = np.stack([np.frombuffer(text, "<f4") for text in packed])
            assert stored[:, -1].tolist() == marked
            own = metric.score(outputs["aligned"][row : row + 1], stored[:, :-1])[0]
            ranked_by = own - spec["seen_offset"]["offset"][target] * stored[:, -1]
        else:
            offset = outputs["offset"][row] if spec["score"]["offset"] else 0.0
            ranked_by = np.array([spec["score"]["sign"] * hit["score"] + offset for hit in hits])
            assert (np.diff(ranked_by) <= 1e-6).all()
            own = own_scores(spec, target, ranked_by, np.array(marked))
        best = np.argsort(-ranked_by, kind="stable")[:K]
        assert [hits[place]["payload"]["key"] for place in best] == [hit.key for hit in expected]
        np.testing.assert_allclose(own[best], [hit.score for hit in expected], atol=2e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_item_graphs_take_whether_an_item_was_seen(world: World, exported: Path, modality: Modality) -> None:
    spec, rows = spec_of(exported), PARTS[modality]
    graph = spec["graphs"][f"{modality}-item.onnx"]
    assert graph["inputs"] == {"embedding": ["batch", rows.vectors.shape[1]], "seen": ["batch"]}
    assert list(spec["graphs"][f"{modality}-query.onnx"]["inputs"]) == ["embedding"]
    alias = alias_name(COLLECTION, parse(spec["metric"]))
    records = [record for page in world.store.scroll(alias, vector_name=modality) for record in page]
    stored = {record.payload["key"]: record for record in records if record.payload["modality"] == modality}
    seen = np.array([stored[key].payload["split"] == "fitted" for key in rows.keys])
    assert 0 < seen.sum() < N
    outputs = run(exported / f"{modality}-item.onnx", rows.vectors, seen=seen)
    for row, key in enumerate(rows.keys):
        record = stored[key]
        assert record.vector is not None
        np.testing.assert_allclose(outputs["vector"][row], record.vector, atol=1e-5)
        if spec["rescoring"]:
            aligned = np.frombuffer(base64.b64decode(record.payload["aligned"]), "<f4")
            np.testing.assert_allclose(outputs["aligned"][row], aligned, atol=1e-6)
    for part in (slice(0), slice(1)):
        some = run(exported / f"{modality}-item.onnx", rows.vectors[part], seen=seen[part])
        assert some["vector"].shape == outputs["vector"][part].shape


def test_the_document_says_the_offset_and_how_scores_are_got_back(exported: Path) -> None:
    spec = spec_of(exported)
    said = spec["seen_offset"]
    assert said["offset"] == OURS["offsets"]
    assert (said["field"], said["value"]) == ("split", "fitted")
    assert said["squared"] == spec["metric"].startswith("hellinger")
    assert ("-sqrt(score^2 - offset)" in said["meaning"]) == said["squared"]
    assert ("`aligned`" in said["meaning"]) == (spec["rescoring"] is not None)


@pytest.mark.slow
def test_an_alignment_without_an_offset_says_none(tmp_path: Path) -> None:
    write(tmp_path / "out", ExportSpec("a", alignment(hold_out=OURS["hold_out"], seen=OURS["seen"]), parse("cosine")))
    spec = spec_of(tmp_path / "out")
    assert spec["seen_offset"] is None
    assert list(spec["graphs"]["image-item.onnx"]["inputs"]) == ["embedding"]


@pytest.mark.slow
def test_the_example_prints_what_a_retriever_finds(
    world: World, exported: Path, tmp_path: Path, httpserver: HTTPServer
) -> None:
    server, X = CannedServer(httpserver), embedded("text", latent(2, seed=9), noise=0.2)
    np.save(tmp_path / "texts.npy", X)
    server.answer = lambda method, path: (200, {}, result({"points": answered(world, path, server.bodies[-1])}))
    ended = example(exported, tmp_path / "texts.npy", server.url, COLLECTION)
    assert (ended.returncode, ended.stderr) == (0, "")
    spec = spec_of(exported)
    for row, hits in enumerate(searched(world, spec["metric"], "text", X)):
        printed = [line.split(" ", 4) for line in ended.stdout.splitlines() if line.startswith(f"{row} ")]
        if spec["rescoring"] is None:
            assert [json.loads(payload)["key"] for *_, payload in printed[:K]] == [hit.key for hit in hits]
            np.testing.assert_allclose([float(p[2]) for p in printed[:K]], [hit.score for hit in hits], atol=2e-5)
            np.testing.assert_allclose([float(p[3]) for p in printed[:K]], [h.seen_offset for h in hits], atol=2e-5)
