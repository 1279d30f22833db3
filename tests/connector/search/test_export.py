"""Exported directories: with nothing but onnxruntime and plain HTTP, a service finds what a Retriever finds."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_httpserver import HTTPServer

from alignment import packages
from alignment.errors import ExportError
from alignment.metrics import parse
from alignment.modality import MODALITIES, OTHER, Modality
from alignment.model import onnx_export as graphs
from connector.errors import CollectionNotFoundError, MismatchError
from connector.home import Home
from connector.releases.aliases import alias_name
from connector.requests import ExportRequest
from connector.search import export
from connector.search.export import GUARANTEES, ExportSpec, write
from connector.search.retriever import Retriever
from connector.settings import Settings
from connector.stores.collection import SearchLimits
from connector.stores.edge import EdgeStore
from tests.support.canned_server import CannedServer, result
from tests.support.cli import done, modalign
from tests.support.errors import raises
from tests.support.exports import answered, example, run, spec_of
from tests.support.slow import slow_unless
from tests.support.torch_operators import operators_read_once
from tests.support.world import COLLECTION, DIMS, World, alignment, cards, embedded, latent, opened_world, pairs

# One of each guarantee, of each sign, and of those with an offset.
SERVED = ["hellinger", "kl-item-query", "chi2", "mol", "mlp"]
FILES = {"example.py", "request.json", *(f"{m}-{side}.onnx" for m in MODALITIES for side in ("query", "item"))}
N, K = 40, 5


@pytest.fixture(autouse=True, scope="module")
def quick_exports() -> Iterator[None]:
    with operators_read_once():
        yield


@pytest.fixture(scope="module")
def cosine() -> list[graphs.Graph]:
    return graphs.export(alignment(), parse("cosine"))


@pytest.fixture
def made_before(cosine: list[graphs.Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs were made before: a test is about what is written with them."""
    monkeypatch.setattr(export, "export", lambda *_: cosine)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with opened_world("edge", tmp_path_factory.mktemp("world")) as opened:
        opened.alignment()
        opened.push(opened.set("s", *pairs(N, noise=0.3)), metrics=SERVED)
        yield opened


@pytest.fixture(scope="module", params=slow_unless("mol".__eq__, SERVED))
def exported(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "graphs"
    write(path, ExportSpec("a", alignment(), parse(request.param)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_service_finds_what_a_retriever_finds(world: World, exported: Path, modality: Modality) -> None:
    spec, X = spec_of(exported), embedded(modality, latent(3, seed=9), noise=0.2)
    request = spec["requests"][f"{modality}-to-{OTHER[modality]}"]
    outputs = run(exported / request["graph"], X)
    retriever = Retriever.open(world.provenance, world.store, COLLECTION, spec["metric"])
    expected = retriever.search_embeddings(modality, X, K, encoder=cards()[modality].fingerprint)
    assert spec["guarantee"]["name"] == retriever.guarantee
    ours = alignment().metric(parse(spec["metric"]), OTHER[modality], device="cpu")
    for row, answer in enumerate(expected):
        body = {**request["body"], "query": outputs["vector"][row].tolist()}
        hits = answered(world, request["path"].format(collection=COLLECTION), body)
        if spec["rescoring"]:
            assert len(hits) == N < spec["rescoring"]["page"] == body["limit"]
            packed = [base64.b64decode(hit["payload"]["aligned"]) for hit in hits]
            stored = np.stack([np.frombuffer(text, "<f4") for text in packed])
            scores = ours.score(outputs["aligned"][row : row + 1], stored)[0]
        else:
            offset = outputs["offset"][row] if spec["score"]["offset"] else 0.0
            scores = np.array([spec["score"]["sign"] * hit["score"] + offset for hit in hits])
            assert (np.diff(scores) <= 1e-6).all()
        best = np.argsort(-scores, kind="stable")[:K]
        assert [hits[i]["payload"]["key"] for i in best] == [found.key for found in answer]
        np.testing.assert_allclose(scores[best], [found.score for found in answer], atol=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_item_graphs_give_what_a_push_has_stored(world: World, exported: Path, modality: Modality) -> None:
    spec = spec_of(exported)
    rows = dict(zip(MODALITIES, pairs(N, noise=0.3), strict=True))[modality]
    outputs = run(exported / f"{modality}-item.onnx", rows.vectors)
    alias = alias_name(COLLECTION, parse(spec["metric"]))
    records = [record for page in world.store.scroll(alias, vector_name=modality) for record in page]
    stored = {record.payload["key"]: record for record in records if record.payload["modality"] == modality}
    assert spec["vectors"][modality]["size"] == outputs["vector"].shape[1]
    for row, key in enumerate(rows.keys):
        record = stored[key]
        assert record.vector is not None
        np.testing.assert_allclose(outputs["vector"][row], record.vector, atol=1e-5)
        if spec["rescoring"]:
            aligned = np.frombuffer(base64.b64decode(record.payload["aligned"]), "<f4")
            np.testing.assert_allclose(outputs["aligned"][row], aligned, atol=1e-6)


def test_the_document_says_what_a_service_must_know(exported: Path) -> None:
    spec, ours = spec_of(exported), alignment()
    assert {path.name for path in exported.iterdir()} == FILES
    assert spec["alignment"] == {"name": "a", "fingerprint": ours.fingerprint}
    assert spec["encoders"]["text"] == {
        "spec": "fake-text:small",
        "fingerprint": cards()["text"].fingerprint,
        "dim": DIMS["text"],
    }
    assert spec["metric"] in [str(parse(metric)) for metric in SERVED]
    lowering = ours.metric(parse(spec["metric"]), "image", device="cpu").lower(ours.dim)
    assert spec["vectors"]["image"] == {"size": lowering.dim, "distance": lowering.distance}
    assert spec["guarantee"]["meaning"] == GUARANTEES[lowering.guarantee]
    assert ("candidates only" in spec["guarantee"]["meaning"]) == (spec["rescoring"] is not None)
    assert spec["score"]["sign"] == (1 if lowering.distance.higher_is_better else -1)
    assert spec["score"]["offset"] == ("offset" in spec["graphs"]["text-query.onnx"]["outputs"])
    for modality in MODALITIES:
        graph = spec["graphs"][f"{modality}-query.onnx"]
        assert graph["inputs"] == {"embedding": ["batch", DIMS[modality]]}
        assert graph["outputs"]["vector"] == ["batch", lowering.dim]
        assert graph["difference"] < 1e-5
        request = spec["requests"][f"{modality}-to-{OTHER[modality]}"]
        assert (request["method"], request["body"]["using"]) == ("POST", OTHER[modality])
        assert request["path"] == f"/collections/{alias_name('{collection}', parse(spec['metric']))}/points/query"


@pytest.mark.slow
def test_the_example_runs_as_it_stands(
    world: World,
    exported: Path,
    tmp_path: Path,
    httpserver: HTTPServer,
) -> None:
    server, X = CannedServer(httpserver), embedded("text", latent(2, seed=9), noise=0.2)
    np.save(tmp_path / "texts.npy", np.concatenate([X[:1], np.zeros_like(X[:1]), X[1:]]))

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, result({"points": answered(world, path, server.bodies[-1])})

    server.answer = answer
    ended = example(exported, tmp_path / "texts.npy", server.url + "/", COLLECTION, key="s3cret")
    assert (ended.returncode, ended.stderr) == (0, "")
    spec = spec_of(exported)
    alias = alias_name(COLLECTION, parse(spec["metric"]))
    assert server.requests == [("POST", f"/collections/{alias}/points/query")] * 2
    assert server.keys == ["s3cret"] * 2
    first, refused, last = ([line for line in ended.stdout.splitlines() if line[:2] == f"{row} "] for row in range(3))
    assert refused == ["1 has no direction to search in"]
    retriever = Retriever.open(world.provenance, world.store, COLLECTION, spec["metric"])
    expected = retriever.search_embeddings("text", X, K, encoder=cards()["text"].fingerprint)
    for lines, found in zip([first, last], expected, strict=True):
        printed = [line.split(" ", 4) for line in lines]
        payloads = [json.loads(payload) for *_, payload in printed]
        assert all(payload["modality"] == "image" and "aligned" not in payload for payload in payloads)
        if spec["rescoring"] is None:
            assert [payload["key"] for payload in payloads[:K]] == [item.key for item in found]
            np.testing.assert_allclose([float(s) for _, _, s, _, _ in printed[:K]], [i.score for i in found], atol=1e-5)


# From a home


@pytest.mark.usefixtures("made_before")
def test_a_collection_gives_its_name_and_its_hnsw_ef_as_far_as_the_store_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").mkdir()
    with opened_world("edge", tmp_path / "home") as opened:
        opened.alignment()
        opened.alignment("turned", turn=1)
        (release,) = opened.push(opened.set("s", *pairs(9)), metrics=["cosine"]).releases
        release.row.hnsw_ef, release.row.hnsw_recall = 77, 0.99
        opened.provenance.releases.save(release.row)
    with Home(Settings.load(home=tmp_path / "home")) as ours:
        exported = ours.export(
            ExportRequest(alignment="a", metric="cosine", to=tmp_path / "out", collection=COLLECTION)
        )
        request = spec_of(tmp_path / "out")["requests"]["image-to-text"]
        assert request["path"] == f"/collections/{COLLECTION}.cosine/points/query"
        assert request["body"]["params"]["hnsw_ef"] == 77
        assert exported.counts == {"graphs": 4}
        (run,) = [row for row in ours.provenance.runs.newest(9) if row.command == "export"]
        assert (run.id, run.outcome, run.counts) == (exported.run, "done", {"graphs": 4})
        assert run.parameters["alignment"] == "a"
        monkeypatch.setattr(EdgeStore, "search_limits", lambda store, name: SearchLimits(64, 2.0))
        ours.export(ExportRequest(alignment="a", metric="cosine", to=tmp_path / "within", collection=COLLECTION))
        params = spec_of(tmp_path / "within")["requests"]["image-to-text"]["body"]["params"]
        assert (params["hnsw_ef"], params["quantization"]["oversampling"]) == (64, 2.0)
        assert all(f"{allowed} at most" in caplog.text for allowed in ("hnsw_ef 64", "oversampling 2.0"))
        with pytest.raises(
            MismatchError, match=r"was written with alignment \w{12}, turned is \w{12}; export the first"
        ):
            ours.export(
                ExportRequest(alignment="turned", metric="cosine", to=tmp_path / "other", collection=COLLECTION)
            )
        with pytest.raises(CollectionNotFoundError):
            ours.export(ExportRequest(alignment="a", metric="cosine", to=tmp_path / "other", collection="nothing"))
        assert not (tmp_path / "other").exists()


def test_the_command_says_what_it_wrote(home: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # empty: free
    document = done("export", "a", "--metric", "js", "--to", tmp_path / "out", "--json", "--home", home).document
    assert {graph["graph"] for graph in document["graphs"]} == {name for name in FILES if name.endswith(".onnx")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


@pytest.mark.usefixtures("made_before")
def test_the_command_lists_the_graphs_for_people(home: Path, tmp_path: Path) -> None:
    where = ["--to", tmp_path / "out", "--collection", "things"]
    assert "text-query.onnx" in done("export", "a", "--metric", "cosine", *where, "--home", home).out


# What is refused


@pytest.mark.parametrize(
    ("metric", "code", "complaint"),
    [
        ("nothing", 2, "unknown metric 'nothing'"),
        ("mol", 2, "the alignment holds no parameters for metric mol"),
        ("cosine", 1, "exists and is not an empty directory; name another one with --to"),
    ],
)
def test_what_cannot_be_exported(
    shared: Path,
    tmp_path: Path,
    metric: str,
    code: int,
    complaint: str,
) -> None:
    taken = tmp_path / "out"
    if metric == "cosine":
        taken.mkdir()
        (taken / "mine").write_text("kept")
    ended = modalign("export", "a", "--metric", metric, "--to", taken, "--home", shared)
    assert ended.code == code
    assert complaint in ended.error
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "mine"] if metric == "cosine" else [])


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("kept")
    with raises(ExportError, tmp_path / "out"):
        write(tmp_path / "out", ExportSpec("a", alignment(), parse("cosine")))


def test_missing_packages_are_named(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    ended = modalign("export", "a", "--metric", "cosine", "--to", tmp_path / "out", "--home", shared)
    assert "onnx, onnxscript, onnxruntime" in ended.error
    assert "pip install 'modalign[export]'" in ended.error
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("made_before")
def test_a_full_disk_leaves_nothing_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, path = ExportSpec("a", alignment(), parse("cosine")), tmp_path / "deep" / "out"
    with monkeypatch.context() as patched:
        patched.setattr(export, "REQUEST", "no/such/place")
        with pytest.raises(OSError, match="No such file"):
            write(path, target)
    assert not path.exists()
    write(path, target)
    assert {written.name for written in path.iterdir()} == FILES
    assert [found.name for found in path.parent.iterdir()] == ["out"]


@pytest.mark.usefixtures("made_before")
def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALIGN_QDRANT_API_KEY", "s3cret")
    with opened_world("edge", tmp_path) as opened:
        opened.alignment()
    with Home(Settings.load(home=tmp_path)) as ours:
        ours.export(ExportRequest(alignment="a", metric="cosine", to=tmp_path / "out"))
    assert not [path for path in (tmp_path / "out").iterdir() if b"s3cret" in path.read_bytes()]


def fused_by_a_service(
    by: Any, score: Callable[[dict[str, Any]], float], ask: Callable[[Any], list[dict[str, Any]]]
) -> list[tuple[str, float]]:
    """Order items as `by` of request.json says; `ask` sends the body of a request, `score` reads a score."""
    found: dict[str, dict[str, float]] = {}
    for way in ("image", "caption"):
        standard = by["fused"][way]
        for hit in ask({**by[way]["body"], "limit": 2 * N}):
            z = (score(hit) - standard["mean"]) / standard["deviation"]
            ways = found.setdefault(hit["payload"]["group"], {})
            ways[way] = max(z, ways.get(way, z))
    weights = {way: by["fused"][way]["weight"] for way in ("image", "caption")}
    scored = {
        group: sum(weights[way] * z for way, z in ways.items()) / sum(weights[way] for way in ways)
        for group, ways in found.items()
    }
    return sorted(scored.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("exported", ["hellinger", "kl-item-query"], indirect=True)
def test_a_service_searches_by_caption_and_fused_as_a_retriever_does(world: World, exported: Path) -> None:
    spec, X = spec_of(exported), embedded("text", latent(2, seed=9), noise=0.2)
    retriever = Retriever.open(world.provenance, world.store, COLLECTION, spec["metric"])
    of_release = ExportSpec("a", alignment(), parse(spec["metric"]), fusion=retriever.release.fusion)
    by = json.loads(json.dumps(export.describe(of_release, [])))["by"]
    outputs = run(exported / "text-query.onnx", X)
    encoder = cards()["text"].fingerprint
    for row, vector in enumerate(outputs["vector"]):
        offset = outputs["offset"][row] if spec["score"]["offset"] else 0.0

        def score(hit: dict[str, Any], offset: float = offset) -> float:
            return float(spec["score"]["sign"] * hit["score"] + offset)

        def ask(body: dict[str, Any], vector: Any = vector) -> list[dict[str, Any]]:
            plain = {name: value for name, value in body.items() if not name.startswith("group_")}
            path = by["caption"]["path"].removesuffix("/groups").format(collection=COLLECTION)
            return answered(world, path, {**plain, "query": vector.tolist()})

        body = by["caption"]["body"]
        assert (body["group_by"], body["group_size"], body["using"]) == ("group", 1, "text")
        (by_caption,) = retriever.search_embeddings("text", X[[row]], K, encoder=encoder, by="caption")
        assert [hit["payload"]["group"] for hit in ask({**body, "limit": K})] == [hit.group for hit in by_caption]
        (fused,) = retriever.search_embeddings("text", X[[row]], K, encoder=encoder, by="fused")
        expected = fused_by_a_service(by, score, ask)[:K]
        assert [hit.group for hit in fused] == [group for group, _ in expected]
        np.testing.assert_allclose([hit.score for hit in fused], [value for _, value in expected], atol=1e-3)


def test_ways_are_of_releases_that_need_no_rescoring(exported: Path) -> None:
    spec = spec_of(exported)
    assert (spec["by"] is None) == (spec["rescoring"] is not None)
    if spec["by"] is not None:
        assert spec["by"]["fused"] is None  # no release, so nothing was measured
