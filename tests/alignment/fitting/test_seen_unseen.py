"""Seen and unseen items in one collection: recalls by offset, the choice, and the offsets of an alignment."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.stats import hmean

from alignment.errors import FitError
from alignment.fitting.closed_forms import CLOSED_FORMS
from alignment.fitting.cross_validation import best_of, cross_validate
from alignment.fitting.fit import fit
from alignment.fitting.methods import FitSpec, Fitter
from alignment.fitting.seen_offsets import GapSample, rotation_between
from alignment.fitting.seen_unseen import COST, SHARES, SeenUnseen, WholeRecall, pair_scores
from alignment.metrics import METRICS, Cosine, Distance, Euclid, Lowering, Metric, parse
from alignment.metrics.seen_offset import SeenOffset, with_seen
from alignment.modality import DIRECTIONS, MODALITIES
from alignment.model.alignment import Alignment
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.paraphrases import paraphrased
from alignment.retrieval.ranks import ranks
from alignment.sets.embedding_set import EmbeddingSet
from tests.support.errors import raises
from tests.support.fakes import fake_rows, fake_set

CPU = torch.device("cpu")


def crowded(n: int = 300, *, d: int = 48, noise: float = 1.2, seed: int = 0) -> GroupedEmbeddings:
    """Pairs whose dimension is large beside their number: a fit learns them by heart, and new ones stay behind."""
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((n, 12))
    sides = [Z @ rng.standard_normal((12, d)) + noise * 3 * rng.standard_normal((n, d)) for _ in MODALITIES]
    groups = np.arange(n)
    return GroupedEmbeddings(*(ModalityEmbeddings(side.astype(np.float32), groups) for side in sides))


def crowded_set(path: Path, n: int = 300, **options: Any) -> EmbeddingSet:
    data = crowded(n, **options)
    groups = [f"{i:04d}" for i in range(n)]
    return fake_set(
        path,
        fake_rows("image", data.image.vectors, groups=groups),
        fake_rows("text", data.text.vectors, groups=groups),
    )


def split(data: GroupedEmbeddings) -> tuple[GroupedEmbeddings, GroupedEmbeddings]:
    return data.only(data.groups[::4]), data.only(np.setdiff1d(data.groups, data.groups[::4]))


@pytest.mark.parametrize(
    "metric", [Cosine(), Euclid(), parse("manhattan"), parse("chi2"), parse("kl-query-item")], ids=str
)
def test_recalls_are_those_of_ranking_everything_under_the_offset(metric: Metric) -> None:
    unseen, seen = split(crowded(120))
    projections = Fitter("rcca", seen, CPU).fit(
        {"shrinkage_image": 0.3, "shrinkage_text": 0.3, "components": 16, "power": 0.5}
    )
    both = SeenUnseen.sampled(seen, unseen, 0)
    aligned = both.data.project(projections)
    offsets = np.array([0.0, 0.01, 0.3])
    measured = both.recalls(projections, aligned, [metric] * 2, [offsets] * 2, seed=3)
    for (modality, target), recall in zip(DIRECTIONS.values(), measured, strict=True):
        items, side = getattr(aligned, target), getattr(aligned, modality)
        is_new = np.isin(items.groups, unseen.groups)
        new = side.where(np.isin(side.groups, unseen.groups))
        for place, offset in enumerate(offsets):
            found = ranks(
                new.vectors,
                with_seen(items.vectors, ~is_new),
                new.groups,
                items.groups,
                metric=SeenOffset(metric, float(offset)),
            )
            np.testing.assert_allclose(recall.unseen[place], [(found <= k).mean() for k in KS])
        assert recall.fair == pytest.approx((~is_new).mean())
        assert recall.queries == (len(new.groups), len(new.groups))


def test_queries_about_seen_items_are_paraphrases_and_never_their_own_captions() -> None:
    data = crowded(120)
    unseen, seen = data.only(data.groups[::2]), data.only(data.groups[1::2])  # so all seen items are asked about
    projections = Fitter("ridge", seen, CPU).fit({"target": "text", "penalty": 0.01})
    both = SeenUnseen.sampled(seen, unseen, 0)
    [found, _] = both.recalls(projections, both.data.project(projections), [Cosine()] * 2, [np.zeros(1)] * 2, seed=3)
    gallery = projections[0].unchecked(both.data.image.vectors)

    def recalled(texts: Any) -> float:
        return float(np.mean(ranks(texts, gallery, seen.text.groups, both.data.image.groups, metric=Cosine()) <= 1))

    own = recalled(projections[1].unchecked(seen.text.vectors))
    moved = recalled(projections[1].unchecked(paraphrased(seen.text.vectors, seed=3)))
    assert found.seen[0, 0] < own
    assert found.seen[0, 0] == pytest.approx(moved)


def test_a_sample_keeps_the_mix_of_seen_and_unseen_groups() -> None:
    unseen, seen = split(crowded(400))
    whole, part = (SeenUnseen.sampled(seen, unseen, 0, most=most) for most in (1000, 20))
    assert (len(whole.unseen), len(whole.data.groups)) == (100, 400)
    assert (len(part.unseen), len(part.data.groups)) == (20, 80)
    assert set(part.unseen) <= set(unseen.groups)


@pytest.mark.slow
def test_an_offset_helps_new_items_and_its_choice_costs_known_ones_little() -> None:
    [best] = [best_of(cross_validate(crowded(), ["rcca"], FitSpec(), folds=4, device=CPU))]
    for recall in best.whole:
        place = recall.best
        assert recall.offsets[0] == 0
        assert recall.seen[place, -1] >= recall.seen[0, -1] - COST
        assert recall.harmonic(place) >= recall.harmonic(0)
        assert (np.diff(recall.unseen[:, -1]) >= 0).all()
        assert (np.diff(recall.first_places) <= 0).all()


def test_the_harmonic_mean_and_the_average_of_folds_are_those_of_independent_code() -> None:
    rng = np.random.default_rng(0)

    def made() -> WholeRecall:
        seen, unseen = rng.uniform(0.1, 1, (2, 4, 3))
        return WholeRecall(np.arange(4.0), seen, unseen, rng.uniform(size=4), 0.75, (7, 9))

    one, two, three = made(), made(), made()
    assert one.harmonic(2, 5) == pytest.approx(hmean([one.seen[2, 1], one.unseen[2, 1]]))
    averaged = three.averaged(two.averaged(one, 1), 2)
    np.testing.assert_allclose(averaged.seen, np.mean([one.seen, two.seen, three.seen], axis=0))
    np.testing.assert_allclose(averaged.first_places, np.mean([r.first_places for r in (one, two, three)], axis=0))
    assert averaged.queries == (21, 27)


def test_no_offset_costs_seen_items_more_than_is_allowed_however_much_it_helps_new_ones() -> None:
    seen = np.array([[0.9] * 3, [0.9 - COST] * 3, [0.8] * 3])
    unseen = np.array([[0.1] * 3, [0.2] * 3, [0.8] * 3])
    recall = WholeRecall(np.array([0.0, 0.1, 0.2]), seen, unseen, np.ones(3), 0.75, (50, 50))
    assert recall.best == 1
    assert replace(recall, unseen=unseen[[0, 0, 0]]).best == 0  # of equal ones the smallest


def test_pairs_are_scored_as_the_metric_scores_them_and_squared_where_offsets_are() -> None:
    rng = np.random.default_rng(0)
    Q, X = rng.standard_normal((2, 70, 5)).astype(np.float32)
    np.testing.assert_allclose(pair_scores(parse("manhattan"), Q, X), -np.abs(Q - X).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(pair_scores(Euclid(), Q, X), -((Q - X) ** 2).sum(axis=1), rtol=1e-5)


def test_a_rotation_is_that_of_independent_code() -> None:
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 50, 6)).astype(np.float32)
    np.testing.assert_allclose(rotation_between(A, B), orthogonal_procrustes(A, B)[0], atol=1e-5)
    turned = rotation_between(A[:, :4], B)
    np.testing.assert_allclose(turned @ turned.T, np.eye(4), atol=1e-5)
    A[3] = np.nan
    assert np.isfinite(rotation_between(A, B)).all()


# The offsets of an alignment


SERVED = [*(metric for name, metric in METRICS.items() if name not in ("mlp", "mol")), parse("dot+nnn(k=16)")]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Alignment:
    path = tmp_path_factory.mktemp("crowded") / "s"
    return fit([crowded_set(path)], method="rcca", metrics=SERVED, device="cpu", training={"epochs": 2})


@pytest.mark.slow
def test_every_metric_gets_its_share_of_its_own_gap(fitted: Alignment) -> None:
    offsets = fitted.card.seen_offsets
    chosen = next(
        c for c in fitted.card.candidates if all(c.get(k) == v for k, v in fitted.card.hyperparameters.items())
    )
    assert any(chosen["seen_offset"].values())
    assert set(chosen["seen_offset"].values()) <= set(SHARES)
    assert set(offsets) <= {str(metric) for metric in SERVED}
    assert {"cosine", "dot", "euclid", "chi2(map=split)"} <= set(offsets)
    for modality in MODALITIES:
        # Between unit vectors the squared distance is 2 - 2 cosine: so are the gaps, and so are the offsets.
        assert offsets["dot"][modality] == pytest.approx(offsets["cosine"][modality], abs=1e-6)
        assert offsets["euclid"][modality] == pytest.approx(2 * offsets["cosine"][modality], abs=1e-6)
        assert isinstance(fitted.metric(Cosine(), modality), SeenOffset)


@pytest.mark.slow
def test_what_was_seen_is_what_was_fitted(fitted: Alignment, tmp_path: Path) -> None:
    made = crowded_set(tmp_path / "s")
    for modality in MODALITIES:
        rows = made.load(modality)
        held = fitted.card.hold_out.held_out(rows.groups)
        np.testing.assert_array_equal(fitted.seen[modality].holds(rows.content_sha256), ~held)


@pytest.mark.slow
def test_an_offset_costs_known_items_little_under_every_metric() -> None:
    """A share of the gap that is right under cosine would bury known items under metrics of another shape."""
    unseen, seen = split(crowded())
    task = FitSpec()
    best = best_of(cross_validate(seen, ["kcca"], task, folds=4, device=CPU))
    projections = Fitter("kcca", seen, CPU, task).fit(best.hyperparameters)
    sample = GapSample.drawn(best, seen, projections, 4, CPU, task)
    assert sample is not None
    both = SeenUnseen.sampled(seen, unseen, 0)
    aligned = both.data.project(projections)
    for name in ("cosine", "manhattan", "chi2", "kl-query-item"):
        metrics = [parse(name)] * 2
        offsets = sample.offsets(metrics)
        taken = [np.array([0.0, offsets.get(target, 0.0)]) for _, target in DIRECTIONS.values()]
        for recall in both.recalls(projections, aligned, metrics, taken, seed=0):
            without, used = recall.seen[:, -1]
            assert used >= without - 0.1, name  # of other groups than those that the offset was found with


def test_the_card_says_what_one_collection_finds_with_and_without_the_offset(fitted: Alignment) -> None:
    for direction, (_, target) in DIRECTIONS.items():
        before, after = fitted.card.whole_recall[direction]
        assert before["seen_offset"] == 0
        assert after["seen_offset"] == pytest.approx(fitted.card.seen_offsets["cosine"][target], abs=1e-6)
        assert after["unseen"]["recall@10"] >= before["unseen"]["recall@10"]
        assert after["first_places"] <= before["first_places"]
        assert before["fair"] == pytest.approx(0.75, abs=0.1)
        for place in (before, after):
            expected = hmean([place[kind]["recall@10"] for kind in ("seen", "unseen")])
            assert place["harmonic"]["recall@10"] == pytest.approx(expected, abs=1e-5)


def test_an_alignment_keeps_its_offsets_and_what_it_saw(fitted: Alignment, tmp_path: Path) -> None:
    fitted.save(tmp_path / "a")
    loaded = Alignment.load(tmp_path / "a")
    assert loaded.fingerprint == fitted.fingerprint
    assert loaded.card.seen_offsets == fitted.card.seen_offsets
    without = replace(fitted, card=replace(fitted.card, seen_offsets={}))
    assert without.fingerprint != fitted.fingerprint
    assert replace(fitted, seen={}).fingerprint != fitted.fingerprint


def test_an_offset_of_zero_leaves_every_metric_as_it_is(tmp_path: Path) -> None:
    made = fit([crowded_set(tmp_path / "s")], method="procrustes", seen_offset=0.0, device="cpu")
    assert made.card.seen_offsets == {}
    assert made.metric(Cosine(), "image") == Cosine()
    for before, after in made.card.whole_recall.values():
        assert before == after


def test_a_share_that_is_named_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLOSED_FORMS["procrustes"], "candidates", lambda *dims: [{"components": 16}])
    half, whole = (
        fit([crowded_set(tmp_path / str(share))], method="procrustes", seen_offset=share, device="cpu")
        for share in (0.5, 1.0)
    )
    for modality in MODALITIES:
        one, other = (made.card.seen_offsets["cosine"][modality] for made in (half, whole))
        assert 0 < one == pytest.approx(other / 2, abs=1e-6)


def test_a_fit_says_the_offset_that_the_alignment_holds(tmp_path: Path) -> None:
    lines: list[str] = []
    made = fit([crowded_set(tmp_path / "s")], method="procrustes", device="cpu", progress=lines.append)
    offsets = made.card.seen_offsets.get("cosine", {})
    for direction, (_, target) in DIRECTIONS.items():
        (line,) = [line for line in lines if line.startswith(f"{direction} in one collection")]
        assert line.endswith(f"; offset {offsets.get(target, 0.0):.4g}")


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_share_out_of_range_is_refused(share: float, tmp_path: Path) -> None:
    with raises(FitError, str(share)):
        fit([crowded_set(tmp_path / "s", 40)], seen_offset=share, device="cpu")


def test_folds_too_small_for_a_gap_give_no_offset_and_say_so(tmp_path: Path) -> None:
    lines: list[str] = []
    made = fit([crowded_set(tmp_path / "s", 60)], method="procrustes", device="cpu", progress=lines.append)
    assert made.card.seen_offsets == {}
    assert any("no offset" in line for line in lines)
    assert len(made.seen["image"])
    with raises(FitError, "0.5"):
        fit([crowded_set(tmp_path / "t", 60)], method="procrustes", seen_offset=0.5, device="cpu")


def test_items_without_a_gap_get_no_offset(tmp_path: Path) -> None:
    made = fit([crowded_set(tmp_path / "s", 400, d=12, noise=0.001)], method="procrustes", device="cpu")
    for before, after in made.card.whole_recall.values():
        assert after["seen"]["recall@10"] >= before["seen"]["recall@10"] - 0.05


@dataclass(frozen=True, slots=True)
class _Shifted(Cosine):
    """A metric whose score is not Qdrant's but for the sign, so that nothing can be taken off it."""

    name: ClassVar[str] = "shifted"

    def lower(self, dim: int) -> Lowering:
        return _ShiftedLowering(Distance.COSINE, dim)


@dataclass(frozen=True, slots=True)
class _ShiftedLowering(Lowering):
    def score(self, raw: float, offset: float = 0.0) -> float:
        return raw**3


def test_a_metric_that_cannot_carry_an_offset_is_refused_by_name_or_left_without(tmp_path: Path) -> None:
    made, metrics = crowded_set(tmp_path / "s"), [Cosine(), _Shifted()]
    with raises(FitError, "shifted"):
        fit([made], method="rcca", metrics=metrics, seen_offset=0.2, device="cpu")
    lines: list[str] = []
    alignment = fit([made], method="rcca", metrics=metrics, device="cpu", progress=lines.append)
    assert "cosine" in alignment.card.seen_offsets
    assert "shifted" not in alignment.card.seen_offsets
    assert any("shifted" in line for line in lines)
