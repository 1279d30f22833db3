"""Searching a release whose alignment lowers seen items: the order with the offset, and scores of the metric itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from qdrant_client import models

from alignment.metrics import Guarantee, parse, with_seen
from alignment.metrics.seen_offset import is_squared
from alignment.modality import MODALITIES, OTHER, Modality
from alignment.sets.hold_out import HoldOut
from connector.search.candidates import CandidateSearch
from connector.search.retriever import Retriever, SearchResult
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
    with (
        pytest.MonkeyPatch.context() as patched,
        opened_world(request.param, tmp_path_factory.mktemp("world"), patched, request) as opened,
    ):
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


def test_a_filter_leaves_the_best_of_those_that_match(retriever: Retriever) -> None:
    condition = models.Filter(must=[models.FieldCondition(key="number", range=models.Range(gte=10, lt=30))])
    _, ranked = reference(retriever, "text", "image")
    for hits, row in zip(searched(retriever, "text", 4, filter=condition), ranked, strict=True):
        assert [int(hit.key) for hit in hits] == [10 + n for n in np.argsort(-row[10:30])[:4]]


@pytest.mark.parametrize("with_payload", [False, ["group"], True])
def test_candidates_rank_alike_whatever_payload_they_carry(
    world: World, retriever: Retriever, with_payload: bool | list[str]
) -> None:
    finder = CandidateSearch(retriever.release, world.store)
    _, ranked = reference(retriever, "text", "image")
    aligned = alignment(**OURS).project("text", raw("text"))
    for answer, row in zip(finder.search("image", aligned, K, with_payload=with_payload), ranked, strict=True):
        np.testing.assert_allclose([hit.score for hit in answer.hits], -np.sort(-row)[:K], atol=5e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclid", "manhattan", "chi2", "mol", "dot+nnn"])
@pytest.mark.parametrize("quantization", ["scalar", "binary"])
@pytest.mark.parametrize("rescore", [True, False])
def test_quantized_vectors_choose_candidates_and_scores_stay_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, quantization: str, rescore: bool
) -> None:
    with opened_world("edge", tmp_path, monkeypatch) as world:
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
