"""A retriever in a service: warm before the first query, one load for all threads, one alignment in every answer."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignment.modality import MODALITIES, Modality
from alignment.vectors import FloatArray
from connector.encoding import loading
from connector.encoding.encoders import IMPORTED
from connector.errors import CollectionNotFoundError, EncoderError
from connector.home import Home
from connector.releases.dropping import drop
from connector.releases.promotion import Lifecycle, PromotionOverride
from connector.requests import FitRequest, PromoteRequest, PushRequest
from connector.search.retriever import Retriever
from connector.settings import Settings
from tests.support.errors import raises
from tests.support.fakes import FakeImageEncoder, FakeTextEncoder, fake_entry_points
from tests.support.world import COLLECTION, ON_SERVERS, World, alignment, embedded, latent, pairs, the_set

N, K, THREADS = 30, 5, 8
FORCED = PromotionOverride("someone@somewhere", "this is a test")


@pytest.fixture
def world(world: World) -> World:
    world.alignment("b", turn=1)
    world.push(world.set("s", *pairs(N, noise=0.3)))
    return world


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fake encoders that were loaded since, in order."""
    loaded: list[str] = []
    for kind in (FakeImageEncoder, FakeTextEncoder):
        original = kind.__init__

        def counted(self: Any, *args: Any, original: Any = original) -> None:
            loaded.append(self.scheme)
            original(self, *args)

        monkeypatch.setattr(kind, "__init__", counted)
    monkeypatch.setattr(loading, "entry_points", fake_entry_points)
    return loaded


def opened(world: World) -> Retriever:
    return Retriever.open(world.provenance, world.store, COLLECTION)


def test_a_warm_retriever_loads_nothing_at_its_first_queries(
    world: World, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = opened(world)
    assert loads == []
    retriever.warm()
    assert sorted(loads) == ["fake-image", "fake-text"]
    monkeypatch.setattr("connector.search.retriever.load_encoder", None)
    assert len(retriever.search_texts(["red"], K)[0]) == K
    assert len(retriever.search_images([Image.new("RGB", (8, 8), "red")], K)[0]) == K
    retriever.warm()
    assert len(loads) == 2


def test_warming_asks_for_items_of_both_modalities(
    world: World, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = type(world.store).search

    def counted(self: Any, name: str, vector_name: str, *args: Any, **options: Any) -> Any:
        asked.append(vector_name)
        return original(self, name, vector_name, *args, **options)

    monkeypatch.setattr(type(world.store), "search", counted)
    opened(world).warm()
    assert set(asked) == set(MODALITIES)


@pytest.mark.parametrize("modality", MODALITIES)
def test_imported_vectors_have_no_encoder_to_warm(world: World, loads: list[str], modality: Modality) -> None:
    retriever = opened(world)
    cards = retriever.release.alignment.card.encoders
    object.__setattr__(cards[modality], "spec", f"{IMPORTED}:elsewhere")
    retriever.warm()
    assert loads == [f"fake-{other}" for other in MODALITIES if other != modality]


def test_an_encoder_that_cannot_be_loaded_is_told_when_warming(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "entry_points", lambda *, group: [])
    with raises(EncoderError, "fake-image:small"):
        opened(world).warm()


def test_threads_that_search_first_at_once_load_each_encoder_once(world: World, loads: list[str]) -> None:
    retrievers = [opened(world) for _ in range(2)]
    together = threading.Barrier(THREADS)

    def search(number: int) -> list[str]:
        together.wait()
        return [hit.key for hit in retrievers[number % 2].search_texts(["red lime"], K)[0]]

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(search, range(THREADS)))
    assert loads == ["fake-text"]
    assert answers == [answers[0]] * THREADS


@pytest.mark.parametrize("own", [False, True], ids=["of one retriever", "of retrievers of their own"])
def test_threads_that_search_first_at_once_share_an_embedded_store(home: Path, own: bool) -> None:
    """Nothing is opened yet: neither the database nor, with one retriever, the collection. Each has one answer."""
    together = threading.Barrier(THREADS)
    with Home(Settings.load(home=home)) as opened_home:
        shared = None if own else opened_home.retriever("things")

        def search(_: int) -> list[str]:
            together.wait()
            retriever = shared or opened_home.retriever("things")
            encoder = retriever.release.alignment.card.encoders["text"]
            query = np.ones((1, encoder.dim), np.float32)
            [hits] = retriever.search_embeddings("text", query, K, encoder=encoder.fingerprint)
            return [hit.key for hit in hits]

        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(pool.map(search, range(THREADS)))
    assert len(answers[0]) == K
    assert answers == [answers[0]] * THREADS


def promote(world: World) -> None:
    with world.provenance.runs.start("promote", {}) as run:
        Lifecycle(world.provenance, world.store, COLLECTION).promote(run.id, forced=FORCED)


def expected(turn: int, X: FloatArray, images: FloatArray) -> FloatArray:
    """The cosines (n, N) under the alignment of that turn: queries of one never fit the items of another."""
    projected = [alignment(turn=turn).project("text", X), alignment(turn=turn).project("image", images)]
    queries, items = (V / np.linalg.norm(V, axis=1, keepdims=True) for V in projected)
    return np.asarray(queries @ items.T, np.float32)


@pytest.mark.slow
@ON_SERVERS
def test_searches_during_a_promotion_never_mix_two_alignments(world: World) -> None:
    """Each answer is that of one alignment: what its retriever had open, before, during and after the promotion."""
    image, _ = pairs(N, noise=0.3)
    X = embedded("text", latent(4, seed=9), noise=0.2)
    scores = {turn: expected(turn, X, image.vectors) for turn in (0, 1)}
    world.push(the_set(world), "b")
    old, stop = opened(world), threading.Event()
    encoder = old.release.alignment.card.encoders["text"].fingerprint
    counts = {(kept, turn): 0 for kept in (True, False) for turn in (0, 1)}

    def search(kept: bool) -> None:
        """Search with the retriever that was opened before, or open one for each query, until the promotion is over."""
        after = 0
        while after < 3:
            after += stop.is_set()
            retriever = old if kept else opened(world)
            turn = 0 if retriever.release.alignment.fingerprint == old.release.alignment.fingerprint else 1
            for row, hits in zip(scores[turn], retriever.search_embeddings("text", X, K, encoder=encoder), strict=True):
                best = np.argsort(-row)[:K]
                assert [hit.key for hit in hits] == [str(number) for number in best]
                np.testing.assert_allclose([hit.score for hit in hits], row[best], atol=1e-5)
            counts[kept, turn] += 1

    with ThreadPoolExecutor(4) as pool:
        searching = [pool.submit(search, number % 2 == 0) for number in range(4)]
        promote(world)
        stop.set()
        for future in searching:
            future.result(timeout=60)
    assert counts[True, 0] > 0, "a retriever stays with the release that it opened"
    assert counts[True, 1] == 0
    assert counts[False, 1] > 0, "one that is opened afterwards has the new one"


@ON_SERVERS
def test_a_retriever_of_a_release_that_was_dropped_says_so(world: World, loads: list[str]) -> None:
    world.push(the_set(world), "b")
    old = opened(world)
    promote(world)
    assert len(old.search_texts(["red"], K)[0]) == K, "retired, and still there"
    with world.provenance.runs.start("drop", {}) as run:
        lifecycle = Lifecycle(world.provenance, world.store, COLLECTION)
        with lifecycle.exclusive(run.id):
            drop(lifecycle, [row for row in lifecycle.rows() if row.physical_name == old.release.name])
    with raises(CollectionNotFoundError, old.release.name):
        old.search_texts(["red"], K)
    assert len(opened(world).search_texts(["red"], K)[0]) == K


def test_the_service_of_the_documentation_follows_a_promotion(
    home: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "service.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("MODALIGN_HOME", str(home))
    module: dict[str, Any] = {}
    exec(compile(example.replace('"emoji"', '"things"'), "service.md", "exec"), module)
    assert capsys.readouterr().out.count("s0-") == 3
    search, opened_home = module["search"], module["home"]
    before, answers = loads.copy(), search.texts(["red lime"])[0]
    with opened_home:
        opened_home.fit(FitRequest(sets=["pairs"], alignment="b", method="procrustes"))
        opened_home.push(PushRequest(set="pairs", into="things", alignment="b"))
        opened_home.promote(PromoteRequest(collection="things", reason="this is a test"))
        assert search.texts(["red lime"])[0] == answers
        search.refresh()
        assert search.texts(["red lime"])[0] != answers
    assert loads == before, "both releases name the same encoders"
