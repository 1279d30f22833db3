"""One collection of known and new items: numbers against brute force, and a comparison that agrees with a fit."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import hmean

from alignment.comparison import fitted_pair
from alignment.comparison.compare import compare
from alignment.comparison.guidelines import advise
from alignment.comparison.table import Comparison, best_validated
from alignment.comparison.whole_collection import KINDS, WholeCollection, whole_collection
from alignment.errors import FitError
from alignment.fitting.fit import fit
from alignment.fitting.methods import Fitter
from alignment.fitting.seen_unseen import SeenUnseen
from alignment.metrics import Cosine, parse
from alignment.modality import DIRECTIONS, Modality
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.paraphrases import paraphrased
from alignment.sets.embedding_set import EmbeddingSet
from tests.support.errors import raises
from tests.support.fakes import fake_rows, fake_set

QUICK: dict[str, Any] = {"metrics": [Cosine()], "folds": 2, "device": "cpu"}
OFFSETS: Mapping[Modality, float] = {"image": 0.05, "text": 0.1}
SEED = 3


def crowded(n: int, d: int = 48, noise: float = 3.6) -> tuple[npt.NDArray[np.float32], ...]:
    """Images and texts whose dimension is large beside their number: a fit learns them by heart."""
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((n, 12))
    sides = (Z @ rng.standard_normal((12, d)) + noise * rng.standard_normal((n, d)) for _ in range(2))
    return tuple(side.astype(np.float32) for side in sides)


def crowded_set(path: Path, n: int, **options: Any) -> EmbeddingSet:
    X, Y = crowded(n, **options)
    groups = [f"{number:04d}" for number in range(n)]
    return fake_set(path, fake_rows("image", X, groups=groups), fake_rows("text", Y, groups=groups))


@pytest.fixture(scope="module")
def measured() -> tuple[WholeCollection, SeenUnseen, Any]:
    """A collection of which half is seen, so that all seen items are asked about, its data and its projections."""
    X, Y = crowded(160)
    groups = np.arange(160)
    data = GroupedEmbeddings(ModalityEmbeddings(X, groups), ModalityEmbeddings(Y, groups))
    seen, unseen = data.only(groups[::2]), data.only(groups[1::2])
    fitter = Fitter("rcca", seen, torch.device("cpu"))
    projections = fitter.fit({"shrinkage_image": 0.1, "shrinkage_text": 0.1, "components": 24, "power": 0.5})
    both = SeenUnseen.sampled(seen, unseen, SEED)
    scored = both.scores(projections, both.data.project(projections), [Cosine(), Cosine()], seed=SEED)
    whole = whole_collection(scored, OFFSETS, seen.groups, unseen.groups, seed=SEED, with_curves=True)
    return whole, both, projections


def brute_force(both: SeenUnseen, projections: Any, direction: str, offset: float) -> dict[str, Any]:
    """Rank every query among all items in float64, in the plainest way."""
    modality, target = DIRECTIONS[direction]
    query_side, items = getattr(both.data, modality), getattr(both.data, target)
    project = {"image": projections[0].unchecked, "text": projections[1].unchecked}
    gallery = project[target](items.vectors).astype(np.float64)
    is_seen = ~np.isin(items.groups, both.unseen)
    found: dict[str, Any] = {}
    for kind in ("seen", "unseen"):
        own = query_side.where(np.isin(query_side.groups, both.unseen) == (kind == "unseen"))
        raw = paraphrased(own.vectors, seed=SEED) if kind == "seen" else own.vectors
        scores = project[modality](raw).astype(np.float64) @ gallery.T - offset * is_seen
        right = np.array([np.flatnonzero(items.groups == group)[0] for group in own.groups])
        ranks = [(row >= row[place]).sum() for row, place in zip(scores, right, strict=True)]
        found[kind] = np.array(ranks)
        found[f"{kind} first"] = is_seen[scores.argmax(axis=1)]
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("place", [0, 1], ids=["without an offset", "with it"])
def test_recalls_and_first_places_are_those_of_brute_force(measured: Any, direction: str, place: int) -> None:
    whole, both, projections = measured
    offset = OFFSETS[DIRECTIONS[direction][1]] if place else 0.0
    found, recall = brute_force(both, projections, direction, offset), whole.recalls[direction]
    shares = {kind: [float((found[kind] <= k).mean()) for k in KS] for kind in ("seen", "unseen")}
    laid_out = recall.at(place)
    for kind, values in shares.items():
        assert list(laid_out[kind].values()) == pytest.approx(values, abs=1e-6)
    harmonic = [hmean(both) if min(both) > 0 else 0.0 for both in zip(*shares.values(), strict=True)]
    assert list(laid_out["harmonic"].values()) == pytest.approx(harmonic, abs=1e-6)
    first = np.concatenate([found["seen first"], found["unseen first"]]).mean()  # half of the items are seen
    assert (laid_out["first_places"], laid_out["fair"]) == (pytest.approx(first, abs=1e-6), 0.5)
    assert laid_out["queries"] == [80, 80]


def test_means_are_those_of_both_directions_and_lie_within_their_intervals(measured: Any) -> None:
    whole, both, projections = measured
    found = [brute_force(both, projections, d, OFFSETS[target]) for d, (_, target) in DIRECTIONS.items()]
    for place, k in enumerate(KS):
        sides = {kind: [float((each[kind] <= k).mean()) for each in found] for kind in ("seen", "unseen")}
        sides["harmonic"] = [2 * s * u / (s + u) for s, u in zip(sides["seen"], sides["unseen"], strict=True)]
        for kind in KINDS:
            name, value = f"recall@{k}", float(np.mean(sides[kind]))
            estimate = whole.estimates[kind][name]
            assert estimate.value == pytest.approx(value)
            assert whole.mean(1)[kind][name] == pytest.approx(value, abs=1e-6)
            assert estimate.low < value < estimate.high, (kind, place)


@pytest.mark.slow
def test_both_points_lie_on_the_curve_whose_area_is_that_of_all_offsets(measured: Any) -> None:
    whole, both, projections = measured
    for direction, drawn in whole.curves.items():
        _, target = DIRECTIONS[direction]
        for place, offset in enumerate((0.0, OFFSETS[target])):
            [at] = np.flatnonzero(drawn.offsets == offset)
            recall = whole.recalls[direction]
            assert (drawn.unseen[at], drawn.seen[at]) == (recall.unseen[place, -1], recall.seen[place, -1])
        swept = [brute_force(both, projections, direction, offset) for offset in np.linspace(-3, 3, 400)]
        unseen, seen = ([float((each[kind] <= 10).mean()) for each in swept] for kind in ("unseen", "seen"))
        area = np.trapezoid([seen[0], *seen], [0.0, *unseen])
        assert drawn.area == pytest.approx(area, abs=0.01)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddingSet, Comparison]:
    made = crowded_set(tmp_path_factory.mktemp("whole") / "s", 240)
    return made, compare([made], methods=["ridge", "rcca", "kcca"], **QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ridge", "rcca", "kcca"])
def test_a_fit_of_the_same_method_has_the_same_offsets_and_recalls(compared: Any, method: str) -> None:
    made, found = compared
    (own,) = (each for each in found.fitted if each.method == method)
    card = fit([made], method=method, folds=2, device="cpu").card
    assert card.hyperparameters == own.chosen.hyperparameters
    offsets = card.seen_offsets.get("cosine", {"image": 0.0, "text": 0.0})
    assert {m: pytest.approx(offset) for m, offset in offsets.items()} == own.whole.offsets
    for direction, both in card.whole_recall.items():
        assert [own.whole.recalls[direction].at(place) for place in range(2)] == both


@pytest.mark.slow
def test_what_is_advised_is_what_a_fit_prefers_unless_less_is_sure_to_be_lost(compared: Any) -> None:
    made, found = compared
    scores = {name: fit([made], method=name, folds=2, device="cpu").card.candidates for name in ("ridge", "kcca")}
    best = {name: max(candidate["score"] for candidate in of) for name, of in scores.items()}
    assert best["kcca"] > best["ridge"]
    assert best_validated(found.fitted).method == advise(found).method == "kcca"


def test_the_advice_follows_the_whole_collection_and_not_the_held_out_items_alone(compared: Any) -> None:
    """Two fits that change places: one finds more among held-out items, the other in the whole collection."""
    _, found = compared
    advised = advise(found)
    (own,) = (each for each in found.fitted if each.method == advised.method)
    recalls = {"mean": {f"recall@{k}": replace(own.rows[0].recall, value=0.0, low=0.0, high=0.0) for k in KS}}
    row = replace(own.rows[0], recalls={**own.rows[0].recalls, **recalls})
    changed = [replace(own, rows=[row]) if each is own else each for each in found.fitted]
    assert advise(replace(found, fitted=changed)).method == advised.method


def test_words_say_what_the_offset_changes(compared: Any) -> None:
    _, found = compared
    (said,) = (each.says for each in advise(found).guidelines if each.topic == "new items")
    assert "With the offset, new items are found first in" in said
    assert "of searches instead of" in said
    whole = next(each.whole for each in found.fitted if each.method == advise(found).method)
    assert whole.mean(1)["unseen"]["recall@1"] > whole.mean(0)["unseen"]["recall@1"]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_given_share_of_the_gap_is_the_offset_of_every_method(share: float, tmp_path: Path) -> None:
    made = crowded_set(tmp_path / "s", 160)
    found = compare([made], methods=["ridge", "rcca"], seen_offset=share, **QUICK)
    assert found.settings["seen_offset"] == share
    for fitted in found.fitted:
        assert fitted.chosen.shares == {"image": share, "text": share}
        assert fitted.whole.has_offset == (share > 0)
    (said,) = (each.says for each in advise(found).guidelines if each.topic == "new items")
    assert ("There is no offset" in said) == (share == 0)


def test_sets_too_small_for_a_gap_have_no_offset_and_say_so(tmp_path: Path) -> None:
    lines: list[str] = []
    made = crowded_set(tmp_path / "s", 60)
    found = compare([made], methods=["ridge"], progress=lines.append, **QUICK)
    assert any("expected at least 30 to estimate the gap" in line for line in lines)
    assert not found.fitted[0].whole.has_offset
    (said,) = (each.says for each in advise(found).guidelines if each.topic == "new items")
    assert "There is no offset" in said
    with raises(FitError, "0.2"):
        compare([made], methods=["ridge"], seen_offset=0.2, **QUICK)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_an_offset_that_is_no_share_is_refused(share: float, tmp_path: Path) -> None:
    with raises(FitError, str(share)):
        compare([crowded_set(tmp_path / "s", 60)], seen_offset=share, **QUICK)


def test_metrics_that_learn_are_judged_in_the_whole_collection_and_costly_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = crowded_set(tmp_path / "s", 160, d=24)
    metrics = [parse(name) for name in ("cosine", "chi2", "bilinear", "dot+nnn(k=9)")]
    monkeypatch.setattr(fitted_pair, "CHEAP", 4 * 160 * 160)  # chi2 holds several numbers a pair
    found = compare([made], **{**QUICK, "methods": ["ridge"], "metrics": metrics})
    by_metric = {row.metric.partition("(")[0]: row.whole for row in found.fitted[0].rows}
    assert [metric for metric, whole in by_metric.items() if whole is None] == ["chi2"]
    assert by_metric["bilinear"] is not None
    assert 0 < by_metric["bilinear"].judged.value <= 1
    (what,) = (missing.what for missing in found.not_run if "whole collection" in missing.what)
    assert what.startswith("the whole collection under chi2")
    (said,) = (each.says for each in advise(found).guidelines if each.topic == "metric")
    assert "chi2(map=split) was measured among held-out items alone." in said
