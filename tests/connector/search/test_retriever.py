"""Searching a release: what is found is the metric's own top k, and what cannot be compared is refused."""

import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qdrant_client import models

from alignment.errors import VectorError, WeightsError
from alignment.metrics import Guarantee, parse
from alignment.modality import MODALITIES, OTHER, Modality
from alignment.vectors import FloatArray
from connector.errors import CollectionNotFoundError, EncoderError, MismatchError, PictureError, QueryError
from connector.releases.aligned_payload import ALIGNED
from connector.releases.release import lower
from connector.search.retriever import Retriever, SearchResult
from connector.stores.filters import parse_filter
from tests.support.errors import raises
from tests.support.fakes import NAN_WORD, FakeImageEncoder, FakeTextEncoder
from tests.support.world import (
    ALL,
    COLLECTION,
    KINDS,
    SOME,
    World,
    alignment,
    cards,
    embedded,
    latent,
    learned,
    opened_world,
    pairs,
    raw_scores,
    scores,
)

N = 40


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with opened_world(request.param, tmp_path_factory.mktemp("world")) as opened:
        opened.alignment()
        opened.push(opened.set("s", *pairs(N, noise=0.3)), metrics=ALL)
        yield opened


@pytest.fixture(params=ALL)
def retriever(world: World, request: pytest.FixtureRequest) -> Retriever:
    return Retriever.open(world.provenance, world.store, COLLECTION, request.param)


@pytest.fixture(params=SOME)
def some(world: World, request: pytest.FixtureRequest) -> Retriever:
    return Retriever.open(world.provenance, world.store, COLLECTION, request.param)


@pytest.fixture
def cosine(world: World) -> Retriever:
    return Retriever.open(world.provenance, world.store, COLLECTION)


def raw(modality: Modality, n: int = 7) -> FloatArray:
    return embedded(modality, latent(n, seed=99), noise=0.2)


def asked(
    retriever: Retriever, modality: Modality, X: FloatArray, k: int = 10, **options: object
) -> list[SearchResult]:
    return retriever.search_embeddings(modality, X, k, encoder=cards()[modality].fingerprint, **options)  # type: ignore[arg-type]


def reference(retriever: Retriever, asking: Modality, target: Modality, X: FloatArray) -> FloatArray:
    """Scores (n, N) of raw embeddings against the rows that were pushed, in the order of their numbers."""
    ours, metric = alignment(), parse(str(retriever.release.metric))
    items = dict(zip(MODALITIES, pairs(N, noise=0.3), strict=True))[target]
    bound = ours.metric(metric, items=target)
    return scores(bound, ours.project(asking, X), ours.project(target, items.vectors))  # type: ignore[return-value]


class TestTheMetricsTopK:
    @pytest.mark.slow
    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("asking", MODALITIES)
    @pytest.mark.parametrize("same", [False, True])
    def test_in_every_direction(self, retriever: Retriever, asking: Modality, same: bool, exact: bool) -> None:
        X, target = raw(asking), asking if same else OTHER[asking]
        found = asked(retriever, asking, X, 10, target=target, exact=exact)
        expected = reference(retriever, asking, target, X)
        for hits, row in zip(found, expected, strict=True):
            best = np.argsort(-row)[:10]
            assert [hit.key for hit in hits] == [str(number) for number in best]
            np.testing.assert_allclose([hit.score for hit in hits], row[best], atol=5e-6)
            assert {hit.modality for hit in hits} == {target}

    @pytest.mark.slow
    @pytest.mark.parametrize("asking", MODALITIES)
    def test_scores_fall_and_raw_scores_are_what_qdrant_says(self, retriever: Retriever, asking: Modality) -> None:
        X, ours = raw(asking), alignment()
        target = OTHER[asking]
        items = ours.project(target, pairs(N, noise=0.3)[MODALITIES.index(target)].vectors)
        lowering = retriever.release.lowerings[target]
        expected = raw_scores(lowering, ours.project(asking, X), items)
        for hits, row in zip(asked(retriever, asking, X), expected, strict=True):
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            raws = [hit.raw_score for hit in hits]
            np.testing.assert_allclose(raws, row[[int(hit.key) for hit in hits]], atol=5e-6)
            if lowering.guarantee is Guarantee.EXACT:
                assert raws == sorted(raws, reverse=lowering.distance.higher_is_better)

    @pytest.mark.slow
    def test_the_guarantee_and_what_is_proved(self, retriever: Retriever) -> None:
        """A collection that is seen whole leaves nothing unproved."""
        guarantee = retriever.guarantee
        assert guarantee is retriever.release.metric.lower(6).guarantee
        for k in (1, 10 * N):
            for answer in asked(retriever, "text", raw("text"), k):
                exact = guarantee is Guarantee.EXACT
                assert (answer.certified, answer.candidates) == ((None, 0) if exact else (True, N))

    def test_an_answer_says_whether_every_item_was_compared(self, some: Retriever) -> None:
        for options, exact in (({}, False), ({"exact": False}, False), ({"exact": True}, True)):
            assert {answer.exact for answer in asked(some, "text", raw("text"), **options)} == {exact}

    def test_the_other_modality_is_the_default_target(self, some: Retriever) -> None:
        for modality in MODALITIES:
            (hits,) = asked(some, modality, raw(modality, 1))
            assert {hit.modality for hit in hits} == {OTHER[modality]}

    @pytest.mark.slow
    def test_a_batch_is_its_queries_one_by_one(self, retriever: Retriever) -> None:
        X = raw("text")
        together = asked(retriever, "text", X)
        for hits, x in zip(together, X, strict=True):
            (alone,) = asked(retriever, "text", x[None])
            assert [hit.key for hit in hits] == [hit.key for hit in alone]
            np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in alone], atol=1e-6)

    def test_the_length_of_an_embedding_means_nothing(self, some: Retriever) -> None:
        X = raw("text")
        found, scaled = asked(some, "text", X), asked(some, "text", 100 * X)
        assert [[hit.key for hit in hits] for hits in scaled] == [[hit.key for hit in hits] for hits in found]

    def test_more_than_there_is_finds_all_of_the_modality(self, retriever: Retriever) -> None:
        (hits,) = asked(retriever, "text", raw("text", 1), 10 * N)
        assert sorted(int(hit.key) for hit in hits) == list(range(N))

    def test_a_hit_carries_what_was_pushed_and_no_vector(self, some: Retriever) -> None:
        (hits,) = asked(some, "text", raw("text", 1), 3)
        for hit in hits:
            assert set(hit.payload) == {"number", "key", "group", "modality", "content_sha256", "split"}
            assert ALIGNED not in hit.payload
            assert hit.payload["number"] == int(hit.key)
            assert (hit.payload["key"], hit.payload["group"], hit.group) == (hit.key, hit.key, hit.key)
            assert hit.payload["modality"] == "image"

    def test_no_queries_find_nothing(self, some: Retriever) -> None:
        assert asked(some, "text", raw("text", 0)) == []


class TestFilters:
    @pytest.mark.slow
    def test_the_best_of_those_that_match(self, retriever: Retriever) -> None:
        condition = models.Filter(must=[models.FieldCondition(key="number", range=models.Range(gte=10, lt=20))])
        X = raw("text")
        expected = reference(retriever, "text", "image", X)
        for exact in (False, True):
            for hits, row in zip(asked(retriever, "text", X, 4, filter=condition, exact=exact), expected, strict=True):
                assert [int(hit.key) for hit in hits] == [10 + n for n in np.argsort(-row[10:20])[:4]]

    def test_a_filter_in_json(self, cosine: Retriever) -> None:
        condition = parse_filter('{"must": [{"key": "key", "match": {"any": ["3", "5"]}}]}')
        (hits,) = asked(cosine, "image", raw("image", 1), filter=condition)
        assert sorted(hit.key for hit in hits) == ["3", "5"]

    def test_a_filter_that_nothing_matches(self, some: Retriever) -> None:
        condition = parse_filter('{"must": [{"key": "key", "match": {"value": "no such"}}]}')
        found = asked(some, "image", raw("image", 2), filter=condition)
        assert found == [[], []]
        assert [answer.candidates for answer in found] == [0, 0]


class TestMetrics:
    @pytest.mark.parametrize("text", ["chi2", "chi2(map=split)"])
    def test_a_release_is_found_by_the_name_of_its_metric_and_as_it_prints(self, world: World, text: str) -> None:
        opened = Retriever.open(world.provenance, world.store, COLLECTION, text)
        assert str(opened.release.metric) == opened.release.row.metric == "chi2(map=split)"

    def test_other_parameters_are_another_metric(self, world: World) -> None:
        with raises(CollectionNotFoundError, "chi2(map=softmax)", "chi2(map=split)"):
            Retriever.open(world.provenance, world.store, COLLECTION, "chi2(map=softmax)")

    def test_the_devices_of_a_learned_metric(self, world: World) -> None:
        opened = Retriever.open(world.provenance, world.store, COLLECTION, "mlp", device="cpu")
        lowering: Any = opened.release.lowerings["image"]
        assert lowering.metric.module.dim.device.type == "cpu"


@pytest.mark.slow
def test_quantized_collections_find_the_same(tmp_path: Path) -> None:
    """A byte a coordinate, and a graph over those: what is taken from it is enough to hold the first three."""
    n, ours, X = 150, alignment(), raw("text", 20)
    both = pairs(n, noise=0.3)
    with opened_world("edge", tmp_path) as world:
        world.alignment()
        world.push(world.set("s", *both), metrics=ALL, quantization="scalar", indexing_threshold=1)
        for text in ALL:
            retriever = Retriever.open(world.provenance, world.store, COLLECTION, text)
            assert retriever.release.row.settings["quantization"] == "scalar"
            metric = ours.metric(parse(text), items="image")
            expected = scores(metric, ours.project("text", X), ours.project("image", both[0].vectors))
            third = -np.sort(-expected, axis=1)[:, 2]
            for exact, least in ((True, 1.0), (False, 0.95)):
                found = asked(retriever, "text", X, 3, exact=exact)
                good = [
                    row[int(hit.key)] >= bar - 5e-6
                    for hits, row, bar in zip(found, expected, third, strict=True)
                    for hit in hits
                ]
                assert len(good) == 3 * len(X)
                assert np.mean(good) >= least, (text, exact)


class TestRefused:
    def test_a_budget_below_k(self, some: Retriever) -> None:
        with raises(QueryError, "max_candidates", 10, 9):
            asked(some, "text", raw("text"), 10, max_candidates=9)
        assert len(asked(some, "text", raw("text", 1), 10, max_candidates=10)[0]) == 10

    @pytest.mark.parametrize("metric", ["bilinear", "mlp", "mol"])
    def test_scores_that_are_not_finite(self, world: World, metric: str) -> None:
        """Weights that diverged after all items were written: every number of them is finite."""
        printed = str(parse(metric))
        large = {"bilinear": "left", "mlp": "last.weight", "mol": "gate_query.weight"}[metric]
        weights = {n: np.sign(w) * 3e38 if n == f"{printed}/{large}" else w for n, w in learned().items()}
        weights = {n: w.astype(learned()[n].dtype) for n, w in weights.items()}
        broken = alignment(weights=weights)
        opened = Retriever.open(world.provenance, world.store, COLLECTION, metric)
        release = replace(opened.release, alignment=broken, lowerings=lower(broken, parse(metric)))
        with pytest.raises(
            WeightsError, match=rf"metric {re.escape(printed)} gives .* not finite: .* fit the alignment"
        ):
            asked(Retriever(release, world.store), "text", raw("text"))

    def test_embeddings_of_another_encoder(self, cosine: Retriever) -> None:
        with pytest.raises(MismatchError) as caught:
            cosine.search_embeddings("text", raw("text"), encoder="ab" * 32)
        assert "fingerprint abababababab" in str(caught.value)
        assert str(cards()["text"]) in str(caught.value)

    def test_embeddings_of_the_other_modalitys_encoder(self, cosine: Retriever) -> None:
        with pytest.raises(MismatchError):
            cosine.search_embeddings("text", raw("text"), encoder=cards()["image"].fingerprint)

    @pytest.mark.parametrize("shape", [(2, 9), (2, 11), (10,), (1, 2, 10)])
    def test_another_dimension(self, cosine: Retriever, shape: tuple[int, ...]) -> None:
        with raises(VectorError, "(n, 10)"):
            asked(cosine, "text", np.ones(shape, np.float32))

    @pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
    def test_vectors_without_a_direction(self, cosine: Retriever, value: float) -> None:
        X = raw("text")
        X[3] = value
        with pytest.raises(VectorError, match="row 3"):
            asked(cosine, "text", X)

    @pytest.mark.parametrize("k", [0, -1])
    def test_no_results(self, cosine: Retriever, k: int) -> None:
        with raises(QueryError, k):
            asked(cosine, "text", raw("text"), k)


@pytest.mark.usefixtures("fake_encoders")
class TestEncoders:
    def test_texts_are_encoded_with_the_releases_encoder(self, cosine: Retriever) -> None:
        texts = ["red green", "navy lime lime"]
        X = FakeTextEncoder().encode("text", texts)
        assert cosine.search_texts(texts, 5) == asked(cosine, "text", X, 5)
        assert cosine.search_texts(texts, 5, target="text") == asked(cosine, "text", X, 5, target="text")

    @pytest.mark.parametrize(("keeps", "held"), [(True, 1), (False, 0)])
    def test_a_process_that_searches_once_reads_the_store_without_the_encoder(
        self, world: World, monkeypatch: pytest.MonkeyPatch, keeps: bool, held: int
    ) -> None:
        alive: weakref.WeakSet[FakeTextEncoder] = weakref.WeakSet()
        while_searching: list[int] = []
        search = world.store.search

        def load(*_: Any, **__: Any) -> FakeTextEncoder:
            alive.add(encoder := FakeTextEncoder())
            return encoder

        def searching(*args: Any, **options: Any) -> Any:
            while_searching.append(len(alive))
            return search(*args, **options)

        monkeypatch.setattr("connector.search.retriever.load_encoder", load)
        monkeypatch.setattr(world.store, "search", searching)
        retriever = Retriever.open(world.provenance, world.store, COLLECTION, keeps_encoders=keeps)
        assert len(retriever.search_texts(["red green"], 5)[0]) == 5
        assert while_searching == [held]

    def test_nothing_finds_nothing(self, cosine: Retriever) -> None:
        assert cosine.search_texts([]) == []
        assert cosine.search_images([]) == []

    @pytest.mark.parametrize("text", ["", " ", "\t\n", "\u2003", "a\0b", "\0", "\ud800", "a \udcff"])
    def test_a_text_that_says_nothing_or_is_none(
        self, cosine: Retriever, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is refused before an encoder is loaded, wherever it stands."""
        monkeypatch.setattr("connector.search.retriever.load_encoder", None)
        for texts in ([text], ["red", text], [text, "red"]):
            with pytest.raises(QueryError, match="expected a text of Unicode to search for, got '") as caught:
                cosine.search_texts(texts)
            str(caught.value).encode()  # it can be printed

    def test_images_come_as_pictures_or_as_files(self, cosine: Retriever, tmp_path: Path) -> None:
        picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
        picture.save(tmp_path / "a.png")
        X = FakeImageEncoder().encode("image", [picture])
        expected = asked(cosine, "image", X, 5)
        assert cosine.search_images([picture], 5) == expected
        assert cosine.search_images([tmp_path / "a.png"], 5) == expected
        assert cosine.search_images([picture], 5, target="image") == asked(cosine, "image", X, 5, target="image")

    @pytest.mark.parametrize("mode", ["RGBA", "L", "LA"])
    def test_a_picture_in_memory_is_what_its_file_would_be(self, cosine: Retriever, tmp_path: Path, mode: str) -> None:
        rng = np.random.default_rng(0)
        picture = Image.fromarray(rng.integers(0, 255, (8, 8, 4), dtype=np.uint8)).convert(mode)
        picture.save(tmp_path / "a.png")
        assert cosine.search_images([picture], 5) == cosine.search_images([tmp_path / "a.png"], 5)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(b"", "image-empty"), (b"no image", "image-unidentified"), (None, "image-missing")],
    )
    def test_a_file_that_is_no_picture(
        self, cosine: Retriever, tmp_path: Path, content: bytes | None, reason: str
    ) -> None:
        path = tmp_path / "a.png"
        if content is not None:
            path.write_bytes(content)
        with raises(PictureError, "a.png", reason):
            cosine.search_images([path])

    def test_a_truncated_picture(self, cosine: Retriever, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with raises(PictureError, "image-broken"):
            cosine.search_images([path])

    def test_a_query_that_embeds_as_nothing(self, cosine: Retriever) -> None:
        with raises(VectorError, "row 1", "vector-not-finite"):
            cosine.search_texts(["red", NAN_WORD])
        with raises(VectorError, "row 0", "vector-zero"):
            cosine.search_images([Image.new("RGB", (8, 8))])

    def test_an_encoder_that_loads_otherwise_now(self, cosine: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
        updated = FakeTextEncoder()
        updated.fingerprint = "cd" * 32
        monkeypatch.setattr("connector.search.retriever.load_encoder", lambda *_, **__: updated)
        with pytest.raises(MismatchError, match="cdcdcdcdcdcd"):
            cosine.search_texts(["red"])

    def test_an_encoder_of_another_dimension(self, cosine: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
        wider = FakeTextEncoder()
        wider.dim = 11
        monkeypatch.setattr("connector.search.retriever.load_encoder", lambda *_, **__: wider)
        with pytest.raises(MismatchError, match="11-d"):
            cosine.search_texts(["red"])

    def test_an_encoder_is_loaded_once(self, cosine: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
        cosine.search_texts(["red"])
        monkeypatch.setattr("connector.search.retriever.load_encoder", None)
        assert len(cosine.search_texts(["green"], 3)[0]) == 3


def test_an_encoder_that_is_not_installed(cosine: Retriever) -> None:
    with raises(EncoderError, "'fake-text:small'"):
        cosine.search_texts(["red"])
