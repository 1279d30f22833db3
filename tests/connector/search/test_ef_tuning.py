"""Tuning: the smallest hnsw_ef whose searches find what exact search finds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest

from alignment.modality import OTHER
from alignment.vectors import FloatArray, l2_normalize
from connector.errors import ExactRefusedError, IndexRecallError
from connector.push import session as pushing
from connector.releases.release import EfTuning
from connector.requests import INDEX_RECALL
from connector.search.candidates import CandidateSearch
from connector.search.ef_tuning import EFS, SAMPLE, sample, tune
from connector.search.retriever import Retriever
from connector.stores.collection import SearchLimits
from connector.stores.contract import Store
from connector.stores.points import Hit
from tests.support.brute_store import DIM, Brute, a_release, random
from tests.support.errors import raises
from tests.support.world import LIVE, Calls, World, alignment, embedded, latent, maps, opened_world, pairs, rows


@dataclass
class Lossy:
    """A store whose HNSW searches lose a hit of every `each`-th query while `hnsw_ef` is below `enough`.

    Attributes:
        lost: its place, from 0.
    """

    store: Brute
    enough: int
    each: int = 1
    lost: int = 9

    def search_limits(self, name: str) -> SearchLimits:
        return SearchLimits()

    def has_graph(self, name: str) -> bool:
        return True

    def search(
        self, name: str, vector: str, queries: FloatArray, k: int, *, exact: bool, ef: int | None, **options: Any
    ) -> list[list[Hit]]:
        found = self.store.search(name, vector, queries, k + 1, exact=True)
        short = not exact and (ef or 0) < self.enough
        if not short:
            return [hits[:k] for hits in found]
        return [
            hits[: self.lost] + hits[self.lost + 1 :] if row % self.each == 0 else hits[:k]
            for row, hits in enumerate(found)
        ]


def tuned(enough: int, text: str = "cosine", each: int = 1, lost: int = 9) -> EfTuning | None:
    release = a_release(text)
    store = Lossy(Brute.of(release, l2_normalize(random(400, 1))), enough, each, lost)
    return tune(release, cast(Store, store), {"image": [l2_normalize(random(30, 2))]})


@pytest.mark.parametrize("text", ["cosine", "euclid", "kl-query-item", "chi2", "mol", "dot+nnn"])
@pytest.mark.parametrize("enough", EFS)
def test_it_is_the_smallest_that_is_enough(text: str, enough: int) -> None:
    assert tuned(enough, text) == EfTuning(enough, 1.0)


def test_a_query_in_thirty_may_lose_something() -> None:
    found = tuned(EFS[3], each=30)
    assert found is not None
    assert found.hnsw_ef == EFS[0]
    assert found.recall == pytest.approx(1 - 1 / 300)


def test_the_first_hits_count_by_themselves() -> None:
    """A loss in 300 of the first ten may be a loss in 30 of what people look for."""
    assert tuned(EFS[3], each=30, lost=0) == EfTuning(EFS[3], 1.0)


def test_the_largest_is_taken_if_none_is_enough_and_says_what_it_misses() -> None:
    found = tuned(EFS[-1] + 1)
    assert found is not None
    assert found.hnsw_ef == EFS[-1]
    assert found.recall == pytest.approx(0.9)


def test_the_modality_that_is_found_worst_decides() -> None:
    release = a_release("cosine")
    easy, hard = (Brute.of(release, l2_normalize(random(400, 1))) for _ in range(2))

    class Both(Lossy):
        def search(self, name: str, vector: str, *args: Any, **options: Any) -> list[list[Hit]]:
            enough = {"image": EFS[1], "text": EFS[2]}[vector]
            return Lossy({"image": easy, "text": hard}[vector], enough).search(name, vector, *args, **options)

    asked = l2_normalize(random(10, 2))
    assert tune(release, cast(Store, Both(easy, 0)), {"image": [asked], "text": [asked]}) == EfTuning(EFS[2], 1.0)


@dataclass
class Limited(Lossy):
    """A store that searches with `hnsw_ef` of at most `most`, which it tells with a refusal; or not exactly."""

    most: int = EFS[0]
    exact: bool = True
    known: bool = False

    def search_limits(self, name: str) -> SearchLimits:
        return SearchLimits(self.most if self.known else None)

    def search(
        self, name: str, vector: str, queries: FloatArray, k: int, *, exact: bool, ef: int | None, **options: Any
    ) -> list[list[Hit]]:
        if exact and not self.exact:
            raise ExactRefusedError("Exact search disabled!")
        self.known = self.known or (ef or 0) > self.most
        allowed = min(ef or 0, self.most)
        return Lossy.search(self, name, vector, queries, k, exact=exact, ef=allowed, **options)


@pytest.mark.parametrize("most", [16, EFS[0], EFS[1] + 1])
def test_it_ends_at_the_limit_of_the_store_and_says_what_that_misses(most: int) -> None:
    release = a_release("cosine")
    store = Limited(Brute.of(release, l2_normalize(random(400, 1))), EFS[3], most=most)
    found = tune(release, cast(Store, store), {"image": [l2_normalize(random(30, 2))]})
    assert found is not None
    assert found.hnsw_ef == most
    assert found.recall == pytest.approx(0.9)


@pytest.mark.parametrize("before", [None, EfTuning(512, 0.995)])
def test_without_exact_searches_a_release_keeps_its_tuning_and_it_is_said(
    before: EfTuning | None, caplog: pytest.LogCaptureFixture
) -> None:
    release = a_release("cosine")
    if before:
        release.row.hnsw_ef, release.row.hnsw_recall = before.hnsw_ef, before.recall
    store = Limited(Brute.of(release, l2_normalize(random(400, 1))), EFS[0], exact=False)
    assert tune(release, cast(Store, store), {"image": [l2_normalize(random(30, 2))]}) == before
    assert release.name in caplog.text
    assert (str(before.hnsw_ef) if before else "default") in caplog.text


def test_nothing_to_ask_with_tunes_nothing() -> None:
    known = EfTuning(512, 0.99)
    assert tune(a_release("cosine"), cast(Store, None), {}) is None
    assert tune(a_release("cosine"), cast(Store, None), {}, known=known) == known


@pytest.mark.parametrize(
    ("enough", "known", "expected"),
    [
        (EFS[0], EfTuning(EFS[2], 0.991), EfTuning(EFS[2], 0.991)),
        (EFS[3], EfTuning(EFS[2], 0.991), EfTuning(EFS[3], 1.0)),
        (EFS[-1] + 1, EfTuning(EFS[-1], 0.97), EfTuning(EFS[-1], 0.9)),
        (EFS[0], EfTuning(EFS[-1], 0.8), EfTuning(EFS[-1], 0.8)),
    ],
)
def test_what_is_known_is_neither_shortened_nor_flattered(enough: int, known: EfTuning, expected: EfTuning) -> None:
    release = a_release("cosine")
    store = cast(Store, Lossy(Brute.of(release, l2_normalize(random(400, 1))), enough))
    found = tune(release, store, {"image": [l2_normalize(random(30, 2))]}, known=known)
    assert found is not None
    assert found.hnsw_ef == expected.hnsw_ef
    assert found.recall == pytest.approx(expected.recall)


def test_the_kind_of_queries_that_is_found_worst_decides() -> None:
    """Queries about new and about seen items: neither stands for the other."""
    release = a_release("cosine")
    easy, hard = l2_normalize(random(30, 2)), l2_normalize(random(30, 3))

    class OfKinds(Lossy):
        def search(self, name: str, vector: str, queries: FloatArray, *args: Any, **options: Any) -> list[list[Hit]]:
            enough = EFS[2] if np.array_equal(queries, hard) else EFS[0]
            return Lossy(self.store, enough).search(name, vector, queries, *args, **options)

    store = cast(Store, OfKinds(Brute.of(release, l2_normalize(random(400, 1))), 0))
    assert tune(release, store, {"image": [easy]}) == EfTuning(EFS[0], 1.0)
    for kinds in ([easy, hard], [hard, easy]):
        assert tune(release, store, {"image": kinds}) == EfTuning(EFS[2], 1.0)


class TestSample:
    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[World]:
        with opened_world("edge", tmp_path) as opened:
            yield opened

    def test_queries_are_aligned_vectors_of_the_other_modality(self, world: World) -> None:
        image, text = pairs(300)
        text.vectors[0] = 0  # cannot be aligned
        drawn = sample(world.set("s", image, text), a_release("cosine"))
        sound = {"image": text.take(range(1, 300)), "text": image}
        assert drawn.keys() == sound.keys()
        for target, (queries, _) in drawn.items():
            assert 0.8 * SAMPLE <= len(queries) <= SAMPLE
            aligned = alignment().project(OTHER[target], sound[target].vectors)
            assert {query.tobytes() for query in queries} <= {row.tobytes() for row in aligned}
            held = alignment().card.hold_out.held_out(sound[target].groups)
            unseen = {row.tobytes() for row in aligned[held]}
            assert sum(query.tobytes() in unseen for query in queries) > 0.4 * len(queries)  # of a quarter of all
        (own,) = sample(world.set("t", image), a_release("cosine")).items()
        assert own[0] == "image"

    def test_queries_about_seen_items_are_none_of_their_own_captions(self, world: World) -> None:
        image, text = pairs(300)
        for target, (_, queries) in sample(world.set("s", image, text), a_release("cosine")).items():
            assert len(queries) == SAMPLE
            aligned = alignment().project(OTHER[target], (text if target == "image" else image).vectors)
            cosines = queries @ aligned.T
            assert cosines.max() < 1 - 1e-4
            # Latent vectors are paraphrased within their few dimensions: the cosine stays what it was.
            assert np.abs(cosines - 0.6).min(axis=1).max() < 0.02

    @pytest.mark.parametrize("saw", [[], range(20)])
    def test_there_are_as_many_kinds_as_the_set_holds_items_of(self, world: World, saw: Sequence[int]) -> None:
        """A set of new items has no queries about seen ones; of a few there are a few."""
        parts = pairs(300)
        others = [part.take(saw) for part in pairs(300, seed=9)]
        release = replace(a_release("cosine"), alignment=alignment(seen=others))
        assert [len(kinds) for kinds in sample(world.set("s", *parts), release).values()] == [1, 1]
        release = replace(release, alignment=alignment(seen=[part.take(range(80)) for part in parts]))
        for _, about_seen in sample(world.set("s", *parts), release).values():
            assert 0 < len(about_seen) < SAMPLE


class TestPush:
    @pytest.fixture(params=["edge", *LIVE])
    def world(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        with opened_world(request.param, tmp_path, request) as opened:
            opened.alignment()
            yield opened

    @staticmethod
    def hard(n: int = 2500) -> list[Any]:
        points = latent(n, 0)
        return [rows("image", embedded("image", points)), rows("text", embedded("text", points[:100]))]

    @pytest.mark.slow
    def test_a_release_with_a_graph_is_tuned_and_searches_with_that(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (release,) = world.push(world.set("s", *self.hard()), indexing_threshold=1).releases
        (row,) = world.provenance.releases.find()
        assert row.hnsw_ef in EFS
        assert row.hnsw_recall is not None
        assert INDEX_RECALL <= row.hnsw_recall <= 1
        assert release.hnsw_ef == row.hnsw_ef
        widths: list[Any] = []
        original = world.store.search

        def spied(*args: Any, **options: Any) -> Any:
            widths.append(options["ef"])
            return original(*args, **options)

        monkeypatch.setattr(world.store, "search", spied)
        encoder = release.alignment.card.encoders["text"].fingerprint
        Retriever(release, world.store).search_embeddings("text", maps()["text"][:1], encoder=encoder)
        assert widths == [release.hnsw_ef]

    @pytest.mark.slow
    def test_what_is_lost_of_seen_items_alone_raises_it(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Held-out queries find held-out items first, and would never notice."""
        original = world.store.search

        def lossy(name: str, vector: Any, queries: FloatArray, k: int, **options: Any) -> list[list[Hit]]:
            short = not options["exact"] and (options["ef"] or 0) < EFS[2]
            found = original(name, vector, queries, k + 1, **options | {"with_payload": True})
            first = [any(hit.payload["split"] == "fitted" for hit in hits[:1]) for hits in found]
            return [hits[1:] if short and lost else hits[:k] for hits, lost in zip(found, first, strict=True)]

        monkeypatch.setattr(world.store, "search", lossy)
        (release,) = world.push(world.set("s", *pairs(1200)), indexing_threshold=1).releases
        assert release.hnsw_ef is not None
        assert release.hnsw_ef >= EFS[2]
        assert release.tuned is not None
        assert release.tuned.recall >= INDEX_RECALL

    @pytest.mark.slow
    def test_it_is_tuned_again_when_something_was_written(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.push(world.set("s", *self.hard()), indexing_threshold=1)
        searches = Calls(monkeypatch, world.store, "search")
        world.push(world.set("s", *self.hard()), indexing_threshold=1)
        assert not searches
        world.push(world.set("s", *self.hard(2510)))
        assert searches

    @pytest.mark.slow
    def test_a_set_that_is_a_part_of_the_release_only_raises_it(self, world: World) -> None:
        world.push(world.set("s", *self.hard()), indexing_threshold=1)
        (row,) = world.provenance.releases.find()
        row.hnsw_ef, row.hnsw_recall = 1024, 0.992
        world.provenance.releases.save(row)
        few = embedded("image", latent(3, 5))
        (release,) = world.push(world.set("t", rows("image", few, keys=["x", "y", "z"]))).releases
        assert release.tuned == EfTuning(1024, 0.992)
        world.push(world.set("s", *self.hard(2510)))  # neither does what is now one of two sets
        assert world.provenance.releases.find()[0].hnsw_ef == 1024

    def test_a_crash_while_tuning_is_made_up_for(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where vectors were replaced in place, which changes no count."""
        world.push(world.set("s", *self.hard()), indexing_threshold=1)
        other = [rows("image", embedded("image", latent(2500, 9))), self.hard()[1]]
        with monkeypatch.context() as patched:
            patched.setattr(pushing, "tune", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                world.push(world.set("s", *other))
        searches = Calls(monkeypatch, world.store, "search")
        assert world.push(world.set("s", *other)).counts == {"unchanged": 2600}
        assert searches
        asked = len(searches)
        world.push(world.set("s", *other))
        assert len(searches) == asked

    @pytest.mark.slow
    def test_a_release_from_before_there_was_tuning_is_tuned(self, world: World) -> None:
        world.push(world.set("s", *self.hard()), indexing_threshold=1)
        (row,) = world.provenance.releases.find()
        row.hnsw_ef = row.hnsw_recall = None
        world.provenance.releases.save(row)
        (release,) = world.push(world.set("s", *self.hard())).releases
        assert release.hnsw_ef in EFS

    @pytest.mark.slow
    def test_a_collection_that_sql_has_lost_is_tuned_and_pushed_again(self, world: World) -> None:
        embedding_set = world.set("s", *self.hard())
        world.push(embedding_set, indexing_threshold=1)
        (row,) = world.provenance.releases.find()
        row.settings, row.hnsw_ef, row.hnsw_recall = {}, None, None  # as of a collection that SQL finds again
        world.provenance.releases.save(row)
        assert world.push(embedding_set).releases[0].hnsw_ef in EFS
        assert world.push(embedding_set).counts == {"unchanged": 2600}

    def test_an_index_that_finds_too_little_is_named_or_does_not_go_live(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        embedding_set = world.set("s", *self.hard(800))
        coarse: dict[str, Any] = {"quantization": "binary", "oversampling": 1.0, "indexing_threshold": 1}
        with raises(IndexRecallError, "0.5", "--min-index-recall"):
            world.push(embedding_set, min_index_recall=0.5, metrics=["dot"], **coarse)
        (row,) = world.provenance.releases.find()
        assert (row.state, world.store.aliases()) == ("ready", {})
        assert row.hnsw_recall is not None
        assert row.hnsw_recall < 0.5
        with raises(IndexRecallError, row.physical_name, f"{row.hnsw_recall:.3f}"):
            world.push(embedding_set, min_index_recall=0.5, metrics=["dot"], **coarse)  # although nothing changed
        assert "of the exact first hits" not in caplog.text
        (release,) = world.push(embedding_set, metrics=["dot"], **coarse).releases
        assert release.row.state == "live"
        assert f"{row.hnsw_recall:.3f} of the exact first hits" in caplog.text
        assert "--oversampling" in caplog.text
        layout: dict[str, Any] = {"fresh_layout": True, "indexing_threshold": 1}
        (sound,) = world.push(embedding_set, min_index_recall=0.9, metrics=["cosine"], **layout).releases
        assert sound.row.state == "live"

    def test_an_index_that_cannot_be_measured_is_none_that_finds_enough(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server may refuse exact searches."""
        monkeypatch.setattr(pushing, "tune", Mock(return_value=None))
        embedding_set = world.set("s", *self.hard(400))
        with raises(IndexRecallError, "0.5"):
            world.push(embedding_set, min_index_recall=0.5, indexing_threshold=1)
        assert world.store.aliases() == {}

    def test_without_a_graph_there_is_nothing_to_tune(self, world: World) -> None:
        (release,) = world.push(world.set("s", *self.hard(200))).releases
        assert release.hnsw_ef is None
        assert world.provenance.releases.find()[0].hnsw_ef is None

    @pytest.mark.slow
    def test_a_small_ef_finds_less(self, world: World) -> None:
        (release,) = world.push(world.set("s", *self.hard(6000)), indexing_threshold=1).releases
        finder, asked = (
            CandidateSearch(release, world.store),
            l2_normalize(np.random.default_rng(3).standard_normal((50, DIM))),
        )
        exact = finder.search("image", asked, 10, exact=True)

        def found(ef: int) -> float:
            finder.ef = ef
            pairs_ = zip(finder.search("image", asked, 10), exact, strict=True)
            return float(np.mean([len({h.id for h in got.hits} & {h.id for h in best.hits}) for got, best in pairs_]))

        assert found(10) < found(512)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("world", "metric"),
        [
            *(("edge", metric) for metric in ("cosine", "dot", "euclid", "dot+nnn", "chi2", "mol")),
            *(pytest.param("gRPC", metric, marks=pytest.mark.live) for metric in ("cosine", "chi2")),
        ],
        indirect=["world"],
    )
    def test_without_rescoring_scores_are_the_metrics_own_and_tuning_counts_what_is_found(
        self, world: World, metric: str
    ) -> None:
        """Scores of quantized vectors are of another scale: a cosine of 12, and a recall of 1 for whatever is found."""
        coarse: dict[str, Any] = {
            "quantization": "binary",
            "rescore": False,
            "oversampling": 1.0,
            "indexing_threshold": 1,
        }
        embedding_set = world.set("s", *self.hard(400))
        (release,) = world.push(embedding_set, metrics=[metric], **coarse).releases
        search, queries = CandidateSearch(release, world.store), sample(embedding_set, release)["image"][0]
        search.ef = EFS[-1]
        every = search.search("image", queries, 400, exact=True, quantized=False)
        scores = [{hit.id: hit.score for hit in ranked.hits} for ranked in every]
        raw_scores = [{hit.id: hit.raw_score for hit in ranked.hits} for ranked in every]
        found = search.search("image", queries, 10)
        for own, raw, ranked in zip(scores, raw_scores, found, strict=True):
            assert [hit.raw_score for hit in ranked.hits] == pytest.approx(
                [raw[hit.id] for hit in ranked.hits], rel=1e-4, abs=1e-5
            )
            given = [hit.score for hit in ranked.hits]
            assert given == pytest.approx([own[hit.id] for hit in ranked.hits], rel=1e-4, abs=1e-5)
            assert given == sorted(given, reverse=True)
            assert not ranked.certified
        shares = []
        for kind in sample(embedding_set, release)["image"]:
            got, ten = search.search("image", kind, 10), search.search("image", kind, 10, exact=True, quantized=False)
            ids = [({h.id for h in own.hits}, [h.id for h in best.hits]) for own, best in zip(got, ten, strict=True)]
            shares += [np.mean([len(own & set(best[:k])) / k for own, best in ids]) for k in (1, 10)]
        assert release.tuned is not None
        assert release.tuned.recall == pytest.approx(min(shares), abs=0.05)
        if metric in ("cosine", "dot", "euclid"):
            assert release.tuned.recall < 0.9
