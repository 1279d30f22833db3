"""Searching a release whose alignment lowers seen items: the order with the offset, and scores of the metric itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from qdrant_client import models

from alignment.metrics import Guarantee, parse, with_seen
from alignment.metrics.divergences import CertifiedLowering
from alignment.metrics.learned import MixtureLowering
from alignment.metrics.seen_offset import is_squared
from alignment.modality import MODALITIES, OTHER, Modality
from alignment.sets.hold_out import HoldOut
from alignment.vectors import l2_normalize
from connector.search.candidates import CandidateSearch
from connector.search.retriever import Retriever, SearchResult
from connector.stores.contract import Store
from tests.support.brute_store import Brute, a_release, random
from tests.support.world import (
    ALL,
    COLLECTION,
    LATENT,
    LIVE,
    World,
    alignment,
    cards,
    embedded,
    latent,
    opened_world,
    pairs,
    raw_scores,
    scores,
)

N, K = 60, 10
OFFSETS: dict[Modality, float] = {"image": 0.3, "text": 0.15}
HOLD_OUT = HoldOut(0.3, 5)
PARTS = dict(zip(MODALITIES, pairs(N, noise=0.3), strict=True))
# Every third item came after the fit.
SEEN = [part.take([number for number in range(N) if number % 3]) for part in PARTS.values()]


OURS: dict[str, Any] = {"hold_out": HOLD_OUT, "seen": SEEN, "offsets": OFFSETS}


@pytest.fixture(scope="module", params=["edge", *LIVE])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with opened_world(request.param, tmp_path_factory.mktemp("world"), request) as opened:
        opened.alignment(**OURS)
        opened.push(opened.set("s", *PARTS.values()), metrics=ALL)
        yield opened


@pytest.fixture(params=ALL)
def retriever(world: World, request: pytest.FixtureRequest) -> Retriever:
    return Retriever.open(world.provenance, world.store, COLLECTION, request.param)


def raw(modality: Modality, n: int = 7) -> npt.NDArray[np.float32]:
    return embedded(modality, latent(n, seed=99), noise=0.2)


def searched(retriever: Retriever, modality: Modality, k: int = K, **options: Any) -> list[SearchResult]:
    return retriever.search_embeddings(modality, raw(modality), k, encoder=cards()[modality].fingerprint, **options)


def fitted(target: Modality) -> npt.NDArray[np.bool_]:
    held_out = HOLD_OUT.held_out(PARTS[target].groups)
    return np.array([number % 3 and not held for number, held in enumerate(held_out)], bool)


def reference(
    retriever: Retriever, asking: Modality, target: Modality
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The metric's own scores (n, N) in float64, and those with the offset taken off, by the formulas of the docs."""
    made, metric = alignment(**OURS), parse(str(retriever.release.metric))
    own = scores(
        metric.bind(made.weights, target),
        made.project(asking, raw(asking)),
        made.project(target, PARTS[target].vectors),
    )
    taken = OFFSETS[target] * fitted(target)[None]
    return own, -np.sqrt(own**2 + taken) if is_squared(metric, LATENT) else own - taken


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("asking", MODALITIES)
@pytest.mark.parametrize("same", [False, True])
def test_hits_are_in_the_order_with_the_offset_and_scores_are_the_metrics_own(
    retriever: Retriever, asking: Modality, same: bool, exact: bool
) -> None:
    target = asking if same else OTHER[asking]
    own, ranked = reference(retriever, asking, target)
    for hits, own_row, row in zip(searched(retriever, asking, target=target, exact=exact), own, ranked, strict=True):
        best = np.argsort(-row, kind="stable")[:K]
        assert [hit.key for hit in hits] == [str(number) for number in best]
        np.testing.assert_allclose([hit.score for hit in hits], own_row[best], atol=2e-5)
        np.testing.assert_allclose([hit.score - hit.seen_offset for hit in hits], row[best], atol=5e-6)
        assert [hit.seen_offset > 0 for hit in hits] == fitted(target)[best].tolist()
        assert {hit.seen_offset for hit in hits if hit.payload["split"] != "fitted"} <= {0.0}


def test_an_offset_changes_what_is_found_first(retriever: Retriever) -> None:
    """Else the order would be tested by nothing."""
    own, ranked = reference(retriever, "text", "image")
    assert (np.argsort(-own)[:, :K] != np.argsort(-ranked)[:, :K]).any()


@pytest.mark.parametrize("asking", MODALITIES)
def test_raw_scores_are_what_qdrant_says(retriever: Retriever, asking: Modality) -> None:
    target, made = OTHER[asking], alignment(**OURS)
    lowering = retriever.release.lowerings[target]
    items = with_seen(made.project(target, PARTS[target].vectors), fitted(target))
    expected = raw_scores(lowering, made.project(asking, raw(asking)), items)
    for hits, row in zip(searched(retriever, asking), expected, strict=True):
        raws = [hit.raw_score for hit in hits]
        np.testing.assert_allclose(raws, row[[int(hit.key) for hit in hits]], atol=5e-6)
        if lowering.guarantee is Guarantee.EXACT:
            assert raws == sorted(raws, reverse=lowering.distance.higher_is_better)


@pytest.mark.slow
def test_a_filter_leaves_the_best_of_those_that_match(retriever: Retriever) -> None:
    condition = models.Filter(must=[models.FieldCondition(key="number", range=models.Range(gte=10, lt=30))])
    _, ranked = reference(retriever, "text", "image")
    for hits, row in zip(searched(retriever, "text", 4, filter=condition), ranked, strict=True):
        assert [int(hit.key) for hit in hits] == [10 + n for n in np.argsort(-row[10:30])[:4]]


@pytest.mark.slow
@pytest.mark.parametrize("with_payload", [False, ["group"], True])
def test_candidates_rank_alike_whatever_payload_they_carry(
    world: World, retriever: Retriever, with_payload: bool | list[str]
) -> None:
    finder = CandidateSearch(retriever.release, world.store)
    _, ranked = reference(retriever, "text", "image")
    aligned = alignment(**OURS).project("text", raw("text"))
    for answer, row in zip(finder.search("image", aligned, K, with_payload=with_payload), ranked, strict=True):
        np.testing.assert_allclose([hit.score for hit in answer.hits], -np.sort(-row)[:K], atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "euclid", "manhattan", "chi2", "mol", "dot+nnn"])
@pytest.mark.parametrize("quantization", ["scalar", "binary"])
@pytest.mark.parametrize("rescore", [True, False])
def test_quantized_vectors_choose_candidates_and_scores_stay_exact(
    tmp_path: Path, metric: str, quantization: str, rescore: bool
) -> None:
    with opened_world("edge", tmp_path) as world:
        world.alignment(**OURS)
        world.push(world.set("s", *PARTS.values()), metrics=[metric], quantization=quantization, rescore=rescore)
        retriever = Retriever.open(world.provenance, world.store, COLLECTION, metric)
        own, ranked = reference(retriever, "text", "image")
        for hits, own_row, row in zip(searched(retriever, "text", N), own, ranked, strict=True):
            keys = [int(hit.key) for hit in hits]
            np.testing.assert_allclose([hit.score for hit in hits], own_row[keys], atol=2e-5)
            given = [hit.score - hit.seen_offset for hit in hits]
            np.testing.assert_allclose(given, row[keys], atol=5e-6)
            assert np.all(np.diff(given) <= 1e-9)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for lowering in (CertifiedLowering, MixtureLowering):
        monkeypatch.setattr(lowering, "page", 8)
        monkeypatch.setattr(lowering, "budget", 128)


@pytest.mark.parametrize("text", ["chi2", "js", "mol"])
@pytest.mark.parametrize("offset", [1e-4, 0.1, 0.5, 300.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.usefixtures("small_pages")
def test_what_is_certified_is_complete(text: str, offset: float, share: float) -> None:
    """Over several hundred points, some of which are seen, and a third of which there are several times."""
    n, rng = 300, np.random.default_rng(4)
    release = a_release(text, offsets={"image": offset, "text": 0.0})
    X = l2_normalize(np.concatenate([random(200, 1), random(10, 2)[rng.integers(10, size=100)]]))
    items, Q = with_seen(X, rng.random(n) < share), l2_normalize(random(12, 3))
    finder = CandidateSearch(release, cast(Store, Brute.of(release, items)))
    metric = release.alignment.metric(release.metric, "image")
    certified = 0
    for most in (16, 64, n + 1):
        for k in (1, 5):
            found = finder.search("image", Q, k, exact=True, max_candidates=most)
            for answer, row in zip(found, scores(metric, Q, items), strict=True):
                if answer.certified:
                    best = -np.sort(-row)[:k]
                    np.testing.assert_allclose([hit.score for hit in answer.hits], best, rtol=2e-6, atol=1e-5)
                    certified += most <= n
    assert certified or text == "mol"  # whose gates may move more than scores are apart
