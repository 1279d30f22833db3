"""Searching a release: what is found is the metric's own top k, and what cannot be compared is refused."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from qdrant_client import models

from alignment.embeddings import MODALITIES, Modality
from alignment.errors import VectorError
from alignment.metrics import METRICS
from alignment.vectors import FloatArray
from connector.errors import ConnectorError, EncoderError, MismatchError
from connector.search import OTHER, Found, Retriever
from connector.store import parse_filter
from tests.fakes import NAN_WORD, FakeImageEncoder, FakeTextEncoder
from tests.world import COLLECTION, KINDS, World, alignment, cards, embedded, latent, opened_world, pairs, scores

N = 40
ALL = list(METRICS)


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        pytest.MonkeyPatch.context() as patched,
        opened_world(request.param, tmp_path_factory.mktemp("world"), patched) as opened,
    ):
        opened.alignment()
        opened.push(opened.set("s", *pairs(N, noise=0.3)), metrics=ALL)
        yield opened


@pytest.fixture(params=ALL)
def retriever(world: World, request: pytest.FixtureRequest) -> Retriever:
    return Retriever.open(world.provenance, world.store, COLLECTION, request.param)


@pytest.fixture
def cosine(world: World) -> Retriever:
    return Retriever.open(world.provenance, world.store, COLLECTION)


def raw(modality: Modality, n: int = 7) -> FloatArray:
    return embedded(modality, latent(n, seed=99), noise=0.2)


def asked(retriever: Retriever, modality: Modality, X: FloatArray, k: int = 10, **options: object) -> list[list[Found]]:
    return retriever.search_embeddings(modality, X, k, encoder=cards()[modality].fingerprint, **options)  # type: ignore[arg-type]


def reference(retriever: Retriever, asking: Modality, target: Modality, X: FloatArray) -> FloatArray:
    """Scores (n, N) of raw embeddings against the rows that were pushed, in the order of their numbers."""
    ours = alignment()
    items = dict(zip(MODALITIES, pairs(N, noise=0.3), strict=True))[target]
    return scores(retriever.release.metric, ours.project(asking, X), ours.project(target, items.vectors))  # type: ignore[return-value]


class TestTheMetricsTopK:
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
            np.testing.assert_allclose([hit.score for hit in hits], row[best], atol=2e-6)
            assert {hit.modality for hit in hits} == {target}

    def test_the_other_modality_is_the_default_target(self, retriever: Retriever) -> None:
        for modality in MODALITIES:
            (hits,) = asked(retriever, modality, raw(modality, 1))
            assert {hit.modality for hit in hits} == {OTHER[modality]}

    def test_a_batch_is_its_queries_one_by_one(self, retriever: Retriever) -> None:
        X = raw("text")
        together = asked(retriever, "text", X)
        for hits, x in zip(together, X, strict=True):
            (alone,) = asked(retriever, "text", x[None])
            assert [hit.key for hit in hits] == [hit.key for hit in alone]
            np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in alone], atol=1e-6)

    def test_scores_fall_and_raw_scores_are_what_qdrant_says(self, retriever: Retriever) -> None:
        sign = 1.0 if retriever.release.lowering.distance.higher_is_better else -1.0
        for hits in asked(retriever, "image", raw("image")):
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            assert [hit.raw_score for hit in hits] == [sign * hit.score for hit in hits]
            if sign < 0:
                assert min(hit.raw_score for hit in hits) >= 0

    def test_the_length_of_an_embedding_means_nothing(self, retriever: Retriever) -> None:
        X = raw("text")
        found, scaled = asked(retriever, "text", X), asked(retriever, "text", 100 * X)
        assert [[hit.key for hit in hits] for hits in scaled] == [[hit.key for hit in hits] for hits in found]

    def test_more_than_there_is_finds_all_of_the_modality(self, retriever: Retriever) -> None:
        (hits,) = asked(retriever, "text", raw("text", 1), 10 * N)
        assert sorted(int(hit.key) for hit in hits) == list(range(N))

    def test_a_hit_carries_what_was_pushed(self, cosine: Retriever) -> None:
        (hits,) = asked(cosine, "text", raw("text", 1), 3)
        for hit in hits:
            assert hit.payload["number"] == int(hit.key)
            assert (hit.payload["key"], hit.payload["group"], hit.group) == (hit.key, hit.key, hit.key)
            assert hit.payload["modality"] == "image"

    def test_no_queries_find_nothing(self, cosine: Retriever) -> None:
        assert asked(cosine, "text", raw("text", 0)) == []


class TestFilters:
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

    def test_a_filter_that_nothing_matches(self, cosine: Retriever) -> None:
        condition = parse_filter('{"must": [{"key": "key", "match": {"value": "no such"}}]}')
        assert asked(cosine, "image", raw("image", 2), filter=condition) == [[], []]


class TestRefused:
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
        with pytest.raises(VectorError, match=r"expected vectors of shape \(n, 10\)"):
            asked(cosine, "text", np.ones(shape, np.float32))

    @pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
    def test_vectors_without_a_direction(self, cosine: Retriever, value: float) -> None:
        X = raw("text")
        X[3] = value
        with pytest.raises(VectorError, match="row 3"):
            asked(cosine, "text", X)

    @pytest.mark.parametrize("k", [0, -1])
    def test_no_results(self, cosine: Retriever, k: int) -> None:
        with pytest.raises(ConnectorError, match=f"expected k of at least 1, got {k}"):
            asked(cosine, "text", raw("text"), k)


@pytest.mark.usefixtures("fake_encoders")
class TestEncoders:
    def test_texts_are_encoded_with_the_releases_encoder(self, cosine: Retriever) -> None:
        texts = ["red green", "navy lime lime"]
        X = FakeTextEncoder().encode("text", texts)
        assert cosine.search_texts(texts, 5) == asked(cosine, "text", X, 5)
        assert cosine.search_texts(texts, 5, target="text") == asked(cosine, "text", X, 5, target="text")

    def test_nothing_finds_nothing(self, cosine: Retriever) -> None:
        assert cosine.search_texts([]) == []
        assert cosine.search_images([]) == []

    @pytest.mark.parametrize("text", ["", " ", "\t\n", "\u2003", "a\0b", "\0", "\ud800", "a \udcff"])
    def test_a_text_that_says_nothing_or_is_none(
        self, cosine: Retriever, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is refused before an encoder is loaded, wherever it stands."""
        monkeypatch.setattr("connector.search.load_encoder", None)
        for texts in ([text], ["red", text], [text, "red"]):
            with pytest.raises(ConnectorError, match="expected a text of Unicode to search for, got '") as caught:
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
        with pytest.raises(ConnectorError, match=rf"a\.png cannot be used \({reason}\)"):
            cosine.search_images([path])

    def test_a_truncated_picture(self, cosine: Retriever, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ConnectorError, match=r"cannot be used \(image-broken\)"):
            cosine.search_images([path])

    def test_a_query_that_embeds_as_nothing(self, cosine: Retriever) -> None:
        with pytest.raises(VectorError, match="row 1: vector-not-finite"):
            cosine.search_texts(["red", NAN_WORD])
        with pytest.raises(VectorError, match="row 0: vector-zero"):
            cosine.search_images([Image.new("RGB", (8, 8))])

    def test_an_encoder_that_loads_otherwise_now(self, cosine: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
        original = FakeTextEncoder.__init__

        def updated(self: FakeTextEncoder, *args: object) -> None:
            original(self, *args)  # type: ignore[arg-type]
            self.fingerprint = "cd" * 32

        monkeypatch.setattr(FakeTextEncoder, "__init__", updated)
        with pytest.raises(MismatchError, match="cdcdcdcdcdcd"):
            cosine.search_texts(["red"])

    def test_an_encoder_of_another_dimension(self, cosine: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
        original = FakeTextEncoder.__init__

        def updated(self: FakeTextEncoder, *args: object) -> None:
            original(self, *args)  # type: ignore[arg-type]
            self.dim = 11

        monkeypatch.setattr(FakeTextEncoder, "__init__", updated)
        with pytest.raises(MismatchError, match="11-d"):
            cosine.search_texts(["red"])

    def test_an_encoder_is_loaded_once(self, cosine: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
        cosine.search_texts(["red"])
        monkeypatch.setattr("connector.search.load_encoder", None)
        assert len(cosine.search_texts(["green"], 3)[0]) == 3


def test_an_encoder_that_is_not_installed(cosine: Retriever) -> None:
    with pytest.raises(EncoderError, match="unknown encoder 'fake-text:small'"):
        cosine.search_texts(["red"])
