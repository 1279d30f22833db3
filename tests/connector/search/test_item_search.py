"""Searching items by caption, and by image and caption together: what is found is what comparing everything finds."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.metrics import parse, with_seen
from alignment.modality import MODALITIES, Modality
from alignment.sets.rows import Rows
from alignment.vectors import FloatArray
from connector.errors import QueryError, SettingsError
from connector.releases.fusion import Fusion, Standard
from connector.search import item_search
from connector.search.candidates import CandidateSearch
from connector.search.item_search import BY_CAPTION, ItemSearch
from connector.search.retriever import Retriever, SearchResult
from connector.stores.filters import parse_filter
from tests.support.errors import raises
from tests.support.world import (
    ALL,
    COLLECTION,
    KINDS,
    LIVE,
    SOME,
    World,
    alignment,
    cards,
    embedded,
    latent,
    opened_world,
    rows,
    scores,
)

N = 40
EVEN = '{"must": [{"key": "parity", "match": {"value": "even"}}]}'


def things() -> dict[Modality, Rows]:
    """Things with one or two images and none to three captions; the last five have captions alone."""
    points = latent(N)
    images = [number for number in range(N - 5) for _ in range(1 + (number % 5 == 0))]
    captions = [number for number in range(N) for _ in range(number % 4 if number < N - 5 else 2)]
    made: dict[Modality, Rows] = {}
    for modality, numbers, noise in zip(MODALITIES, (images, captions), (0.3, 1.0), strict=True):
        made[modality] = rows(
            modality,
            embedded(modality, points[numbers], noise=noise),
            keys=[f"{modality} {number}#{place}" for place, number in enumerate(numbers)],
            groups=[f"thing {number}" for number in numbers],
            payloads=[{"parity": ("even", "odd")[number % 2], "caption": f"{number}"} for number in numbers],
        )
    return made


def seen() -> list[Rows]:
    """The third of the things that the fit saw."""
    return [
        items.take([row for row, group in enumerate(items.groups) if int(group.split()[1]) % 3 == 0])
        for items in things().values()
    ]


@pytest.fixture(scope="module", params=[None, {"image": 0.15, "text": 0.25}], ids=["plain", "offset"])
def offsets(request: pytest.FixtureRequest) -> Any:
    """What the alignment takes off the scores of seen items."""
    return request.param


@pytest.fixture(scope="module", params=[*KINDS, *LIVE])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, offsets: Any) -> Iterator[World]:
    with opened_world(request.param, tmp_path_factory.mktemp("world"), request) as opened:
        opened.alignment(seen=seen(), offsets=offsets)
        opened.push(opened.set("s", *things().values()), metrics=ALL)
        yield opened


@pytest.fixture(params=ALL)
def retriever(world: World, request: pytest.FixtureRequest) -> Retriever:
    return Retriever.open(world.provenance, world.store, COLLECTION, request.param)


@pytest.fixture
def cosine(world: World) -> Retriever:
    return Retriever.open(world.provenance, world.store, COLLECTION, "cosine")


def asked() -> FloatArray:
    return embedded("text", latent(4, seed=99), noise=0.2)


def found(retriever: Retriever, X: FloatArray, k: int = 5, **options: Any) -> list[SearchResult]:
    return retriever.search_embeddings("text", X, k, encoder=cards()["text"].fingerprint, target="image", **options)


def best_of_groups(
    metric: str, X: FloatArray, offsets: Any, *, parity: str = ""
) -> list[dict[str, dict[Modality, float]]]:
    """The best score of each group and modality for each raw query, by comparing with everything.

    Images that the fit saw rank by less than their own score; captions do not.
    """
    ours, plain, answers = alignment(seen=seen(), offsets=offsets), alignment(), []
    for query in ours.project("text", X):
        best: defaultdict[str, dict[Modality, float]] = defaultdict(dict)
        for modality, items in things().items():
            vectors = ours.project(modality, items.vectors)
            bound = plain.metric(parse(metric), items=modality)
            if modality == "image" and offsets:
                bound = ours.metric(parse(metric), items=modality)
                held_out = ours.card.hold_out.held_out(items.groups)
                vectors = with_seen(vectors, ours.seen["image"].holds(items.content_sha256) & ~held_out)
            of_items = scores(bound, query[None], vectors)[0]
            for group, payload, score in zip(items.groups, items.payloads, of_items, strict=True):
                if parity in payload:
                    best[group][modality] = max(score, best[group].get(modality, -np.inf))
        answers.append(dict(best))
    return answers


def ordered(best: dict[str, dict[Modality, float]], fusion: Fusion) -> list[tuple[str, float]]:
    scored = [
        (group, fusion.score(own))
        for group, each in best.items()
        if (own := {m: score for m, score in each.items() if m in fusion.standards})
    ]
    return sorted(scored, key=lambda item: -item[1])


class TestWhatComparingEverythingFinds:
    @pytest.mark.slow
    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("parity", ["", "even"])
    @pytest.mark.parametrize("by", ["caption", "fused"])
    def test_one_hit_an_item_in_order_of_the_best_of_its_captions(
        self, retriever: Retriever, offsets: Any, by: str, parity: str, exact: bool
    ) -> None:
        fusion = BY_CAPTION if by == "caption" else retriever.release.fusion
        assert fusion is not None
        condition = parse_filter(EVEN) if parity else None
        results = found(retriever, asked(), by=by, exact=exact, filter=condition)
        for hits, best in zip(
            results, best_of_groups(str(retriever.release.metric), asked(), offsets, parity=parity), strict=True
        ):
            expected = ordered(best, fusion)[:5]
            assert [hit.group for hit in hits] == [group for group, _ in expected]
            ranked = [hit.score - hit.seen_offset for hit in hits]
            np.testing.assert_allclose(ranked, [score for _, score in expected], atol=1e-4)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        weight=st.floats(0.01, 0.99),
        means=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
        deviations=st.tuples(st.floats(0.05, 2), st.floats(0.05, 2)),
        k=st.integers(1, N + 3),
        page=st.sampled_from([1, 3, 64]),
        seed=st.integers(0, 99),
    )
    def test_whatever_the_weights_and_the_pages(
        self,
        cosine: Retriever,
        world: World,
        offsets: Any,
        weight: float,
        means: tuple[float, float],
        deviations: tuple[float, float],
        k: int,
        page: int,
        seed: int,
    ) -> None:
        fusion = Fusion(
            {m: Standard(*own) for m, own in zip(MODALITIES, zip(means, deviations, strict=True), strict=True)}, weight
        )
        X = embedded("text", latent(2, seed=seed), noise=0.2)
        search = ItemSearch(CandidateSearch(cosine.release, world.store))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(item_search, "FIRST_PAGE", page)
            patched.setattr(item_search, "POINTS_PER_ITEM", 1)
            results = search.search(alignment().project("text", X), k, fusion)
        for result, best in zip(results, best_of_groups("cosine", X, offsets), strict=True):
            expected = ordered(best, fusion)[:k]
            assert result.certified is True
            np.testing.assert_allclose([item.rank_score for item in result.items], [s for _, s in expected], atol=1e-4)
            assert len({item.group for item in result.items}) == len(expected)

    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("by", ["caption", "fused"])
    def test_nothing_is_certified_under_a_metric_whose_candidates_prove_nothing(
        self, world: World, by: str, exact: bool
    ) -> None:
        unbounded = Retriever.open(world.provenance, world.store, COLLECTION, "mlp")
        assert {result.certified for result in found(unbounded, asked(), by=by, exact=exact)} == {None}

    def test_a_search_that_may_not_fetch_enough_says_that_it_proves_nothing(
        self, cosine: Retriever, offsets: Any
    ) -> None:
        results = found(cosine, asked(), 3, by="fused", max_candidates=3)
        assert cosine.release.fusion is not None
        assert {len(result) for result in results} == {3}
        assert False in {result.certified for result in results}
        for result, best in zip(results, best_of_groups("cosine", asked(), offsets), strict=True):
            right = [group for group, _ in ordered(best, cosine.release.fusion)[:3]]
            assert result.certified is False or [hit.group for hit in result] == right

    def test_along_a_graph_nothing_is_proved_but_by_an_exact_search(
        self, cosine: Retriever, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert {result.certified for result in found(cosine, asked(), 3, by="fused")} == {True}
        monkeypatch.setattr(world.store, "has_graph", lambda name: True)
        assert {result.certified for result in found(cosine, asked(), 3, by="fused")} == {False}
        assert {result.certified for result in found(cosine, asked(), 3, by="fused", exact=True)} == {True}


class TestWhatAHitIs:
    def test_the_image_of_the_item_where_it_has_one_and_else_the_caption(self, cosine: Retriever) -> None:
        things_with_images = set(things()["image"].groups)
        (hits,) = found(cosine, asked()[:1], N, by="caption")
        assert {hit.group for hit in hits} == set(things()["text"].groups)
        for hit in hits:
            assert hit.modality == ("image" if hit.group in things_with_images else "text")
            assert hit.payload["modality"] == hit.modality
            assert hit.key == hit.payload["key"]
            assert hit.found_by == "caption"
            assert hit.scores == {"caption": hit.score}

    def test_it_carries_the_caption_that_counted(self, cosine: Retriever) -> None:
        (hits,) = found(cosine, asked()[:1], N, by="caption")
        texts, ours = things()["text"], alignment()
        (row,) = scores(
            ours.metric(parse("cosine"), items="text"),
            ours.project("text", asked()[:1]),
            ours.project("text", texts.vectors),
        )
        for hit in hits:
            own = [number for number, group in enumerate(texts.groups) if group == hit.group]
            assert hit.caption is not None
            assert hit.caption["key"] == texts.keys[max(own, key=lambda number: row[number])]

    def test_of_several_images_it_is_the_best(self, cosine: Retriever) -> None:
        images, ours = things()["image"], alignment()
        (row,) = scores(
            ours.metric(parse("cosine"), items="image"),
            ours.project("text", asked()[:1]),
            ours.project("image", images.vectors),
        )
        for by in ("caption", "fused"):
            (hits,) = found(cosine, asked()[:1], N, by=by)
            for hit in (hit for hit in hits if hit.modality == "image"):
                own = [number for number, group in enumerate(images.groups) if group == hit.group]
                assert hit.key == images.keys[max(own, key=lambda number: row[number])]

    @pytest.mark.parametrize("world", ["edge"], indirect=True)
    def test_by_caption_it_is_the_image_of_the_caption_and_not_the_best_of_the_group(
        self, world: World, offsets: Any
    ) -> None:
        near, far = latent(2, seed=5)
        images = rows("image", embedded("image", np.stack([near, far])), keys=["red", "blue"], groups=["shirt"] * 2)
        texts = rows("text", embedded("text", near[None]), keys=["blue#0"], groups=["shirt"])
        world.push(world.set("shirts", images, texts), collection="shirts")
        retriever = Retriever.open(world.provenance, world.store, "shirts", "cosine")
        for by, best in (("caption", "blue"), ("image", "red")):
            assert found(retriever, texts.vectors, by=by)[0][0].key == best

    def test_an_item_that_has_one_of_both_says_by_which_it_was_found(self, cosine: Retriever) -> None:
        both = {modality: set(items.groups) for modality, items in things().items()}
        (hits,) = found(cosine, asked()[:1], N + 9, by="fused")
        assert {hit.group for hit in hits} == both["image"] | both["text"]
        for hit in hits:
            has = {"image": hit.group in both["image"], "caption": hit.group in both["text"]}
            assert set(hit.scores) == {way for way, there in has.items() if there}
            assert hit.found_by == ("fused" if all(has.values()) else next(way for way in has if has[way]))
            assert (hit.caption is None) == (not has["caption"])

    @pytest.mark.parametrize("world", ["edge"], indirect=True)
    @pytest.mark.parametrize("metric", SOME)
    def test_no_payload_shows_the_vector_that_rescoring_needs(self, world: World, metric: str) -> None:
        retriever = Retriever.open(world.provenance, world.store, COLLECTION, metric)
        for by in ("caption", "fused"):
            (hits,) = found(retriever, asked()[:1], N, by=by)
            assert not any("aligned" in payload for hit in hits for payload in (hit.payload, hit.caption or {}))

    def test_by_image_it_says_so(self, cosine: Retriever) -> None:
        (hits,) = found(cosine, asked()[:1])
        assert [(hit.found_by, dict(hit.scores), hit.caption) for hit in hits] == [
            ("image", {"image": hit.score}, None) for hit in hits
        ]


@pytest.mark.parametrize("world", ["edge"], indirect=True)
class TestItemsThatAreDeletedMeanwhile:
    @pytest.mark.parametrize("by", ["caption", "fused"])
    def test_are_no_hits_and_one_whose_image_is_gone_is_its_caption(
        self, cosine: Retriever, world: World, by: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (before,) = found(cosine, asked()[:1], 9, by=by)
        image, gone = [hit.group for hit in before if hit.modality == "image" and hit.caption][:2]
        retrieve = world.store.retrieve

        def without(name: str, ids: Any, **options: Any) -> Any:
            return [
                record
                for record in retrieve(name, ids, **options)
                if record.payload["group"] != gone
                and (record.payload["group"], record.payload["modality"]) != (image, "image")
            ]

        monkeypatch.setattr(world.store, "retrieve", without)
        (after,) = found(cosine, asked()[:1], 9, by=by)
        assert [hit.group for hit in after] == [hit.group for hit in before if hit.group != gone]
        assert {hit.modality for hit in after if hit.group == image} == {"text"}


@pytest.mark.parametrize("world", ["edge"], indirect=True)
class TestRefusals:
    def test_a_way_that_there_is_none(self, cosine: Retriever) -> None:
        for by in ("captions", "", None, 3):
            with raises(QueryError, "by", "'image', 'caption' or 'fused'"):
                cosine.search_texts(["red"], by=by)  # type: ignore[arg-type]

    def test_captions_are_looked_for_by_nothing_else(self, cosine: Retriever) -> None:
        for by in ("caption", "fused"):
            with raises(QueryError, by, "text"):
                cosine.search_texts(["red"], target="text", by=by)
            for target in MODALITIES:
                with raises(QueryError, by, "image"):
                    cosine.search_embeddings(
                        "image",
                        embedded("image", latent(1)),
                        encoder=cards()["image"].fingerprint,
                        target=target,
                        by=by,
                    )

    def test_a_release_without_weights(self, cosine: Retriever, world: World) -> None:
        row = replace_row(cosine, None)
        unweighted = Retriever(replace(cosine.release, row=row), world.store)
        assert len(found(unweighted, asked()[:1], by="caption")[0]) == 5
        with raises(SettingsError, cosine.release.name):
            found(unweighted, asked()[:1], by="fused")


def replace_row(retriever: Retriever, fusion: Any) -> Any:
    columns = {c.key: getattr(retriever.release.row, c.key) for c in retriever.release.row.__table__.columns}
    return type(retriever.release.row)(**{**columns, "fusion": fusion})
