"""Candidates: pages grow until the first k are proved or the budget ends, and a proof is never wrong."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from qdrant_client import models

from alignment.metrics import Rescored, parse
from alignment.metrics.divergences import CertifiedLowering
from alignment.metrics.learned import CosineCandidates, MixtureLowering
from alignment.modality import MODALITIES
from alignment.vectors import FloatArray, l2_normalize
from connector.errors import QueryError
from connector.releases.aligned_payload import ALIGNED, packed, unpacked
from connector.search.candidates import GROWTH, CandidateSearch, RankedHits
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.contract import Store
from connector.stores.points import Record
from tests.support.brute_store import DIM, NAME, Brute, a_release, points, random
from tests.support.errors import raises
from tests.support.world import ALL, KINDS, Calls, alignment, opened_world, points_of, raw_scores, scores

RESCORED = ["chi2", "js", "mol", "mlp"]
# What float32 rounds, in the vectors, in Qdrant's scores and in those of the metric.
ROUNDING = 1e-5


def sparse(n: int, seed: int) -> npt.NDArray[np.floating]:
    """One to three coordinates that are not zero: many distributions that share nothing."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, DIM))
    for row in X:
        row[rng.permutation(DIM)[: rng.integers(3, DIM)]] = 0.0
    return X


def duplicated(n: int, seed: int) -> npt.NDArray[np.floating]:
    """Ten vectors over and over: most scores are ties."""
    return random(10, seed)[np.random.default_rng(seed).integers(10, size=n)]


def adversarial(n: int, seed: int) -> npt.NDArray[np.floating]:
    """Nearly equal vectors, opposite ones, coordinates that nearly vanish, and one that takes nearly all."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, DIM))
    near = base[:1] + rng.standard_normal((n, DIM)) * 10.0 ** rng.integers(-5, -1, size=(n, 1))
    tiny = base * 10.0 ** rng.integers(-12, 1, size=(n, DIM))
    one = np.eye(DIM)[rng.integers(DIM, size=n)] * rng.choice([-1, 1], size=(n, 1)) + 1e-6 * base
    choice = rng.integers(4, size=n)[:, None]
    return np.select([choice == 0, choice == 1, choice == 2], [near, -near, tiny], one)


DATA: Mapping[str, Callable[[int, int], npt.NDArray[np.floating]]] = {
    "random": random,
    "sparse": sparse,
    "duplicated": duplicated,
    "adversarial": adversarial,
}


def filled(store: Store, text: str, X: FloatArray, **settings: Any) -> CandidateSearch:
    """A finder over a collection of images."""
    release = a_release(text)
    lowering = release.lowerings["image"]
    vector = VectorConfig(lowering.dim, lowering.distance)
    store.drop(NAME)
    store.create(NAME, CollectionConfig(dict.fromkeys(MODALITIES, vector), metadata={}, **settings))
    store.upsert(NAME, points(release, X))
    store.ready(NAME)
    return CandidateSearch(release, store)


def numbers(answer: RankedHits) -> list[int]:
    """Row numbers of what was found."""
    return [UUID(hit.id).int - 1 for hit in answer.hits]


def assert_best(answer: RankedHits, row: npt.NDArray[np.float64], k: int, tolerance: float = ROUNDING) -> None:
    """Assert that `answer` is the best `k` of the reference scores `row` (m,), ties aside."""
    found = numbers(answer)
    assert len(set(found)) == len(found) == min(k, len(row))
    np.testing.assert_allclose(row[found], -np.sort(-row)[:k], rtol=0, atol=tolerance)
    np.testing.assert_allclose([hit.score for hit in answer.hits], row[found], rtol=0, atol=tolerance)


def reference(finder: CandidateSearch, Q: FloatArray, X: FloatArray) -> npt.NDArray[np.float64]:
    """The alignment's own metric in float64: (n, m)."""
    return scores(alignment().metric(parse(str(finder.release.metric)), items="image"), Q, X)


@pytest.fixture(scope="module", params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with opened_world(request.param, tmp_path_factory.mktemp("world")) as opened:
        yield opened.store


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for lowering in (CertifiedLowering, MixtureLowering, CosineCandidates):
        monkeypatch.setattr(lowering, "page", 8)
        monkeypatch.setattr(lowering, "budget", 128)


class TestOrder:
    """Exact search finds the reference order, ties aside, over whatever vectors there are."""

    @pytest.mark.slow
    @pytest.mark.parametrize("text", ALL)
    def test_is_the_references(self, store: Store, text: str) -> None:
        X = l2_normalize(np.concatenate([make(40, 1) for make in DATA.values()]))
        Q = l2_normalize(np.concatenate([make(5, 2) for make in DATA.values()]))
        Q = np.concatenate([Q, X[::40]])  # and what is there
        finder = filled(store, text, X)
        expected = reference(finder, Q, X)
        raws = raw_scores(finder.release.lowerings["image"], Q, X)
        for k in (1, 10, 1000):
            for answer, row, raw in zip(finder.search("image", Q, k, exact=True), expected, raws, strict=True):
                assert_best(answer, row, k)
                np.testing.assert_allclose([hit.raw_score for hit in answer.hits], raw[numbers(answer)], atol=ROUNDING)


class TestProofs:
    """Several hundred points, pages of eight, and budgets that end before all of them are seen."""

    N = 300

    @pytest.mark.parametrize("data", DATA)
    @pytest.mark.parametrize("text", ["chi2", "chi2(map=softmax)", "js", "mol"])
    @pytest.mark.usefixtures("small_pages")
    def test_what_is_certified_is_complete(self, store: Store, text: str, data: str) -> None:
        X, Q = l2_normalize(DATA[data](self.N, 1)), l2_normalize(DATA[data](12, 2))
        finder = filled(store, text, X)
        expected = reference(finder, Q, X)
        for max_candidates in (16, 64, self.N + 1):
            for k in (1, 5):
                for answer, row in zip(
                    finder.search("image", Q, k, exact=True, max_candidates=max_candidates), expected, strict=True
                ):
                    assert (
                        answer.candidates < 1.5 * max_candidates
                    )  # a page may break ties otherwise than the one before
                    if answer.certified:
                        assert_best(answer, row, k)
                    else:
                        assert answer.certified is False
                        assert max_candidates <= answer.candidates < self.N

    @pytest.mark.parametrize(("text", "data"), [("chi2", "random"), ("js", "random"), ("js", "sparse")])
    @pytest.mark.usefixtures("small_pages")
    def test_it_mostly_needs_few_candidates(self, store: Store, text: str, data: str) -> None:
        finder = filled(store, text, l2_normalize(DATA[data](self.N, 1)))
        found = finder.search("image", l2_normalize(DATA[data](12, 2)), 3, exact=True)
        assert {answer.certified for answer in found} == {True}
        assert np.median([answer.candidates for answer in found]) <= self.N / 4

    @pytest.mark.usefixtures("small_pages")
    def test_a_budget_that_ends_first_proves_nothing(self, store: Store) -> None:
        """What is found is the best of those that were seen."""
        X, Q = l2_normalize(duplicated(self.N, 1)), l2_normalize(random(6, 2))
        finder = filled(store, "chi2", X)
        for answer in finder.search("image", Q, 8, exact=True, max_candidates=8):  # thirty of each: the next is as good
            assert (answer.certified, answer.candidates, len(answer.hits)) == (False, 8, 8)
            assert [hit.score for hit in answer.hits] == sorted((hit.score for hit in answer.hits), reverse=True)

    @pytest.mark.usefixtures("small_pages")
    def test_a_mixture_that_no_item_sways_is_certified_at_once(self) -> None:
        release = a_release("mol(components=2,size=3,sway=0.0)", seed=4)
        X, Q = l2_normalize(random(self.N, 1)), l2_normalize(random(10, 2))
        brute = Brute.of(release, X)
        found = CandidateSearch(release, cast(Store, brute)).search("image", Q, 3)
        lowering = release.lowerings["image"]
        assert isinstance(lowering, Rescored)
        for answer, row in zip(found, scores(lowering.metric, Q, X), strict=True):
            assert answer.certified
            assert_best(answer, row, 3)
        assert [page for _, page in brute.pages] == [8]

    @pytest.mark.usefixtures("small_pages")
    def test_of_a_measured_metric_nothing_is_proved(self, store: Store) -> None:
        X, Q = l2_normalize(random(self.N, 1)), l2_normalize(random(6, 2))
        finder = filled(store, "mlp", X)
        for max_candidates in (20, None):
            for answer in finder.search("image", Q, 5, exact=True, max_candidates=max_candidates):
                assert (answer.certified, answer.candidates) == (None, max_candidates or 128)
        for answer, row in zip(
            finder.search("image", Q, 5, exact=True, max_candidates=1000), reference(finder, Q, X), strict=True
        ):
            assert (answer.certified, answer.candidates) == (True, self.N)  # unless everything was seen
            assert_best(answer, row, 5)

    @pytest.mark.parametrize("text", RESCORED)
    @pytest.mark.usefixtures("small_pages")
    def test_a_filter_that_leaves_few_is_seen_whole(self, store: Store, text: str) -> None:
        X, Q = l2_normalize(random(self.N, 1)), l2_normalize(random(4, 2))
        finder = filled(store, text, X)
        condition = models.Filter(must=[models.FieldCondition(key="group", match=models.MatchValue(value="3"))])
        for exact in (True, False):
            found = finder.search("image", Q, 5, filter=condition, exact=exact)
            for answer, row in zip(found, reference(finder, Q, X), strict=True):
                assert [n for n in np.argsort(-row) if n % 7 == 3][:5] == numbers(answer)
                assert answer.certified in ((True, False) if text == "mol" else (True, None))

    @pytest.mark.parametrize("text", ["chi2", "js"])
    @pytest.mark.usefixtures("small_pages")
    def test_along_a_graph_nothing_is_certified(self, text: str) -> None:
        """Whatever a graph never finds, nothing is certified by mistake; exact search finds it."""
        release, X, Q = a_release(text), l2_normalize(random(self.N, 1)), l2_normalize(random(10, 2))
        brute = Brute.of(release, X)
        finder = CandidateSearch(release, cast(Store, brute))
        best = reference(finder, Q, X).argmax(axis=1)
        brute.lost, brute.graph = set(best.tolist()), True
        for answer, number in zip(finder.search("image", Q, 1, exact=False), best, strict=True):
            assert answer.certified is False
            assert numbers(answer) != [number]
        for answer, number in zip(finder.search("image", Q, 1, exact=True), best, strict=True):
            assert answer.certified
            assert numbers(answer) == [number]

    @pytest.mark.slow
    @pytest.mark.parametrize("text", ["chi2", "js", "mol"])
    def test_over_a_real_graph(self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A search along a graph ends by the bound and certifies nothing; without one, or exact, it does."""
        monkeypatch.setattr(CertifiedLowering, "page", 16)
        monkeypatch.setattr(MixtureLowering, "page", 16)
        X, Q = l2_normalize(random(1500, 1)), l2_normalize(random(20, 2))
        with opened_world("edge", tmp_path) as world:
            finder = filled(world.store, text, X, indexing_threshold=1)
            assert world.store.has_graph(NAME)
            found = finder.search("image", Q, 5)
            exact = finder.search("image", Q, 5, exact=True)
            finder = filled(world.store, text, X)
            assert not world.store.has_graph(NAME)
            without = finder.search("image", Q, 5)
            expected = reference(finder, Q, X)
        assert {answer.certified for answer in found} == {False}
        shares = [
            np.mean(row[numbers(answer)] >= -np.sort(-row)[4] - ROUNDING)
            for answer, row in zip(found, expected, strict=True)
        ]
        assert np.mean(shares) > 0.97
        assert max(answer.candidates for answer in found) < len(X)
        for answers in (exact, without):
            proved = [(answer, row) for answer, row in zip(answers, expected, strict=True) if answer.certified]
            assert len(proved) == len(Q) or text == "mol"
            for answer, row in proved:
                assert_best(answer, row, 5)

    @pytest.mark.slow
    @pytest.mark.parametrize("rescore", [True, False])
    @pytest.mark.parametrize("text", ["chi2", "js", "mol"])
    def test_candidates_that_quantized_vectors_choose_prove_nothing(
        self, text: str, rescore: bool, tmp_path: Path
    ) -> None:
        """Binary codes lose items that the bound takes to be worse than all candidates."""
        X, Q = l2_normalize(random(1500, 1)), l2_normalize(random(20, 2))
        coarse: dict[str, Any] = {"quantization": "binary", "oversampling": 1.0, "rescore": rescore}
        with opened_world("edge", tmp_path) as world:
            release = filled(world.store, text, X, indexing_threshold=1, **coarse).release
            release.row.settings = coarse
            finder = CandidateSearch(release, world.store)
            expected = reference(finder, Q, X)
            found = finder.search("image", Q, 5, max_candidates=20)
            exact = finder.search("image", Q, 5, exact=True)
        assert not any(answer.certified for answer in found)
        assert any(
            row[numbers(answer)].min() < np.sort(row)[-5] - ROUNDING
            for answer, row in zip(found, expected, strict=True)
        )
        for answer, row in zip(exact, expected, strict=True):
            assert_best(answer, row, 5)
            assert answer.certified

    @pytest.mark.parametrize("text", ["chi2", "js", "mol"])
    @pytest.mark.parametrize("recall", [0.62, 1.0])
    def test_a_graph_proves_nothing_whatever_recall_was_measured(self, text: str, recall: float) -> None:
        release, X, Q = a_release(text), l2_normalize(random(self.N, 1)), l2_normalize(random(10, 2))
        release.row.hnsw_ef, release.row.hnsw_recall = 4096, recall
        brute = Brute.of(release, X)
        finder = CandidateSearch(release, cast(Store, brute))
        for brute.graph in (False, True):
            assert {answer.certified for answer in finder.search("image", Q, 5)} == {not brute.graph}
            assert {answer.certified for answer in finder.search("image", Q, 5, exact=True)} == {True}


VECTORS = arrays.arrays(
    np.float64,
    (24, DIM),
    elements=st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-3, -1e-6, 2.0]) | st.floats(-1, 1, width=16),
)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["chi2", "js", "chi2(map=softmax)", "mol"])
@given(vectors=VECTORS, k=st.integers(1, 6), page=st.integers(1, 5), max_candidates=st.integers(6, 30))
@example(vectors=np.ones((24, DIM)), k=1, page=1, max_candidates=6)
@example(vectors=np.repeat(np.eye(DIM), 4, axis=0), k=4, page=1, max_candidates=24)
def test_no_proof_is_wrong(text: str, vectors: npt.NDArray[np.float64], k: int, page: int, max_candidates: int) -> None:
    vectors = np.where(np.abs(vectors).max(axis=1, keepdims=True) < 1e-9, 1.0, vectors)  # no alignment gives zeros
    X, Q = l2_normalize(vectors[4:]), l2_normalize(vectors[:4])
    release = a_release(text)
    brute = Brute.of(release, X)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(release.lowerings["image"]), "page", page)
        finder = CandidateSearch(release, cast(Store, brute))
        for _ in range(2):  # the second time it remembers
            found = finder.search("image", Q, k, max_candidates=max_candidates)
            for answer, row in zip(found, reference(finder, Q, X), strict=True):
                assert len(answer.hits) == k
                if answer.certified:
                    assert_best(answer, row, k)
                else:
                    assert (
                        max_candidates <= answer.candidates <= len(X)
                    )  # more than a page where pages break ties otherwise


@pytest.mark.usefixtures("small_pages")
class TestPages:
    N = 300

    def brute(self, text: str = "chi2", data: str = "random") -> tuple[CandidateSearch, Brute]:
        release = a_release(text)
        brute = Brute.of(release, l2_normalize(DATA[data](self.N, 1)))
        return CandidateSearch(release, cast(Store, brute)), brute

    def test_they_grow_to_the_budget(self) -> None:
        finder, brute = self.brute(data="duplicated")
        finder.search("image", l2_normalize(random(3, 2)), 2, max_candidates=50)
        sizes = [page for _, page in brute.pages]
        assert sizes == [8, 8 * GROWTH, 8 * GROWTH**2, 50]
        brute.pages.clear()
        CandidateSearch(finder.release, finder.store).search("image", l2_normalize(random(3, 2)), 2)
        assert [page for _, page in brute.pages] == [8, 16, 32, 64]

    def test_the_first_holds_twice_k(self) -> None:
        finder, brute = self.brute()
        finder.search("image", l2_normalize(random(1, 2)), 20)
        assert brute.pages[0] == (1, 40)
        brute.pages.clear()
        finder.search(
            "image", l2_normalize(random(1, 2)), 100
        )  # more than half of the budget, which k may exceed as well
        assert brute.pages[0] == (1, 128)
        brute.pages.clear()
        found = finder.search("image", l2_normalize(random(1, 2)), 200)
        assert [page for _, page in brute.pages] == [200]
        assert len(found[0].hits) == 200

    def test_only_queries_that_are_not_proved_go_on(self) -> None:
        finder, brute = self.brute()
        found = finder.search("image", l2_normalize(random(40, 2)), 3)
        asked = [queries for queries, _ in brute.pages]
        assert asked == sorted(asked, reverse=True)
        assert 0 < asked[1] < asked[0] == 40
        assert sorted({answer.candidates for answer in found}) == [page for _, page in brute.pages]

    def test_a_query_that_is_equal_to_items_needs_one_page(self) -> None:
        finder, brute = self.brute()
        X = l2_normalize(random(self.N, 1))
        for answer, number in zip(finder.search("image", X[:5], 1), range(5), strict=True):
            assert (numbers(answer), answer.certified) == ([number], True)
        assert [page for _, page in brute.pages] == [8]

    def test_it_remembers_how_many_were_needed(self) -> None:
        finder, brute = self.brute()
        Q = np.repeat(l2_normalize(random(1, 2)), 40, axis=0)
        first = finder.search("image", Q, 3)
        assert len(brute.pages) > 1
        brute.pages.clear()
        second = finder.search("image", Q, 3)
        ((queries, page),) = brute.pages
        assert queries == 40
        assert 8 < page <= max(answer.candidates for answer in first)
        assert [numbers(answer) for answer in second] == [numbers(answer) for answer in first]
        assert {answer.certified for answer in second} == {True}
        brute.pages.clear()
        finder.search("image", Q, 1)  # another k is another memory
        assert brute.pages[0][1] == 8

    def test_it_forgets_a_query_that_needed_everything(self) -> None:
        """One outlier does not make every later search expensive."""
        finder, brute = self.brute()
        Q = l2_normalize(random(40, 2))
        finder.search("image", Q, 3)
        finder.search("image", l2_normalize(random(self.N, 1))[:1], 3)
        brute.pages.clear()
        finder.search("image", l2_normalize(random(self.N, 1))[:1], 3)
        assert brute.pages[0][1] < 128

    def test_a_measured_metric_fetches_its_page_once(self) -> None:
        finder, brute = self.brute("mlp")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(CosineCandidates, "page", 40)
            patched.setattr(CosineCandidates, "budget", 40)
            for _ in range(2):
                for answer in finder.search("image", l2_normalize(random(3, 2)), 5):
                    assert answer.candidates == 40
        assert brute.pages == [(3, 40), (3, 40)]

    @pytest.mark.parametrize("text", ["cosine", *RESCORED])
    @pytest.mark.parametrize("max_candidates", [0, 1, 4])
    def test_a_budget_below_k_is_refused(self, text: str, max_candidates: int) -> None:
        finder, brute = self.brute(text)
        with raises(QueryError, "max_candidates", 5, max_candidates):
            finder.search("image", l2_normalize(random(3, 2)), 5, max_candidates=max_candidates)
        assert brute.pages == []

    def test_through_a_store_too(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        finder = filled(store, "chi2", l2_normalize(duplicated(self.N, 1)))
        searches, fetches = (Calls(monkeypatch, store, method) for method in ("search", "retrieve"))
        finder.search("image", l2_normalize(random(3, 2)), 2, exact=True)
        assert [k for *_, k in searches.arguments] == [8, 16, 32, 64]
        assert len(fetches) == 1
        finder.search("image", l2_normalize(random(3, 2)), 2, exact=True, with_payload=False)
        assert len(fetches) == 1


@pytest.mark.parametrize("text", ["chi2", "js", "mol"])
def test_a_store_with_a_graph_is_asked_for_it_once(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    release, X = a_release(text), l2_normalize(random(60, 1))
    brute = Brute.of(release, X)
    finder = CandidateSearch(release, cast(Store, brute))
    asked = Calls(monkeypatch, cast(Store, brute), "has_graph")
    for number in (1, 2):  # without a graph each search asks: one may have been built meanwhile
        assert {answer.certified for answer in finder.search("image", X[:2], 1)} == {True}
        assert len(asked) == number
    brute.graph = True
    for _ in range(3):
        assert {answer.certified for answer in finder.search("image", X[:2], 1)} == {False}
    assert len(asked) == 3
    assert {answer.certified for answer in finder.search("image", X[:2], 1, exact=True)} == {True}


class TestPayloads:
    @pytest.mark.parametrize("text", ["dot", "chi2", "mlp"])
    def test_they_are_those_of_what_was_chosen(self, store: Store, text: str) -> None:
        finder = filled(store, text, l2_normalize(random(30, 1)))
        Q = l2_normalize(random(4, 2))

        def payloads(**options: Any) -> list[dict[str, Any]]:
            found = finder.search("image", Q, 3, exact=True, **options)
            for answer in found:
                for hit, number in zip(answer.hits, numbers(answer), strict=True):
                    assert hit.payload.get("number", number) == number
            return [hit.payload for answer in found for hit in answer.hits]

        assert {frozenset(payload) for payload in payloads()} == {frozenset(("number", "group"))}
        assert {frozenset(payload) for payload in payloads(with_payload=["group"])} == {frozenset(("group",))}
        assert payloads(with_payload=["nothing"]) == [{}] * 12
        assert payloads(with_payload=[]) == [{}] * 12
        assert payloads(with_payload=False) == [{}] * 12

    def test_the_vector_is_never_among_them(self, store: Store) -> None:
        finder = filled(store, "js", l2_normalize(random(30, 1)))
        (answer,) = finder.search("image", l2_normalize(random(1, 2)), 3, with_payload=[ALIGNED, "number"])
        assert {frozenset(hit.payload) for hit in answer.hits} == {frozenset(("number",))}

    @pytest.mark.parametrize("text", ["chi2", "mlp"])
    def test_what_is_deleted_meanwhile_is_no_hit(
        self, store: Store, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between its candidates and their payloads, the best one goes."""
        finder, Q = filled(store, text, l2_normalize(random(30, 1))), l2_normalize(random(2, 2))
        whole = finder.search("image", Q, 3)
        original = store.retrieve

        def late(name: str, ids: Sequence[str], **options: Any) -> list[Record]:
            store.delete(name, [whole[0].hits[0].id])
            return original(name, ids, **options)

        monkeypatch.setattr(store, "retrieve", late)
        found = finder.search("image", Q, 3)
        gone = numbers(whole[0])[0]
        assert [numbers(answer) for answer in found] == [
            [number for number in numbers(answer) if number != gone] for answer in whole
        ]
        assert len(found[0].hits) == 2

    def test_what_everything_was_deleted_of_finds_nothing(self, store: Store) -> None:
        finder = filled(store, "chi2", l2_normalize(random(5, 1)))
        store.delete(NAME, points_of(5))
        for answer in finder.search("image", l2_normalize(random(2, 2)), 3):
            assert (answer.hits, answer.certified, answer.candidates) == ([], True, 0)


class TestPacking:
    @given(
        arrays.arrays(
            np.float32,
            st.tuples(st.integers(1, 5), st.integers(1, 40)),
            elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
        )
    )
    def test_what_is_packed_comes_back(self, X: npt.NDArray[np.float32]) -> None:
        texts = [packed(x) for x in X]
        assert all(text.isascii() for text in texts)
        found = unpacked(texts)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, X)

    def test_the_order_of_bytes_and_the_layout_do_not_matter(self) -> None:
        X = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert packed(X[0]) == packed(X[0].astype(">f4")) == packed(X[0].astype(np.float64)) == "AAAAAAAAgD8AAABA"
        assert packed(np.asfortranarray(X)[1]) == packed(X[1])


def test_the_payload_field_is_one_that_no_manifest_can_name() -> None:
    from connector.corpora.row_checks import RESERVED

    assert ALIGNED in RESERVED
