"""Comparisons where the truth is known: which pair, method and size is better, and what nothing can tell apart."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alignment.comparison import compare as comparing
from alignment.comparison import encoder_pairs
from alignment.comparison.compare import compare, multiply_adds
from alignment.comparison.guidelines import advise
from alignment.comparison.learning_curve import FEWEST, CurvePoint, forecast_of, learning_curve, subsamples
from alignment.comparison.paired_bootstrap import FEWEST_GROUPS, MARGIN, Hits, Verdict, estimate, judge
from alignment.comparison.table import Comparison, Fitted, MetricRow, NotRun, best_validated
from alignment.errors import FitError
from alignment.fitting.methods import Fitter
from alignment.geometry.modality_gap import modality_gap
from alignment.metrics import Cosine, parse
from alignment.modality import MODALITIES, Modality
from alignment.model.projections import Projection
from alignment.retrieval.bootstrap import bootstrap_mean
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import recall_at
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.vectors import l2_normalize
from tests.support.errors import raises
from tests.support.fakes import fake_rows, fake_set
from tests.support.pairs import paired

Matrix = npt.NDArray[np.floating]
FAST: dict[str, Any] = {"methods": ["ridge"], "metrics": [Cosine()], "folds": 2, "device": "cpu"}


def views(
    rng: np.random.Generator, n: int, *, noise: float = 0.5, latent: int = 8, d_x: int = 16, d_y: int = 12
) -> tuple[Matrix, Matrix]:
    """Two noisy linear views of what they have in common."""
    Z = rng.standard_normal((n, latent))
    X, Y = (Z @ rng.standard_normal((latent, d)) for d in (d_x, d_y))
    return X + noise * rng.standard_normal(X.shape), Y + noise * rng.standard_normal(Y.shape)


def as_set(path: Path, X: Matrix, Y: Matrix, model: str = "fake", groups: Sequence[str] | None = None) -> EmbeddingSet:
    return fake_set(path, fake_rows("image", X, groups=groups), fake_rows("text", Y, groups=groups), model=model)


def said(comparison: Comparison, topic: str) -> str:
    (found,) = [each.says for each in advise(comparison).guidelines if each.topic == topic]
    return found


# Encoder pairs


@pytest.mark.slow
def test_the_better_pair_is_advised(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 400, noise=0.3)
    good = as_set(tmp_path / "good", X, Y, "good")
    bad = as_set(tmp_path / "bad", X, Y + 12 * rng.standard_normal(Y.shape), "bad")
    found = compare([bad, good], **FAST)
    assert advise(found).pair == "good-image:1 + good-text:1"
    assert said(found, "encoders").startswith("good-image:1 + good-text:1 (with ridge) is what cross-validation pref")
    assert [pair.name for pair in found.pairs] == ["bad-image:1 + bad-text:1", "good-image:1 + good-text:1"]
    (of_good,) = (fit for fit in found.fitted if fit.pair.startswith("good"))
    whole = of_good.whole
    nothing_known = [replace(recall, seen=np.zeros_like(recall.seen)) for recall in of_good.chosen.whole]
    estimates = {**whole.estimates, "harmonic": {name: estimate(0.0, np.zeros(9)) for name in whole.estimates["seen"]}}
    row = replace(of_good.rows[0], whole=replace(whole, estimates=estimates))
    other = replace(of_good, rows=[row], chosen=replace(of_good.chosen, whole=nothing_known))
    # What is asked about known items is made in the space of each encoder, and says nothing about two of them.
    changed = replace(found, fitted=[other if fit is of_good else fit for fit in found.fitted])
    assert advise(changed).pair == "good-image:1 + good-text:1"


def test_of_pairs_that_find_as_much_the_smaller_is_advised(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 400, d_x=40, d_y=32)
    X_wide, Y_wide = (np.pad(side, ((0, 0), (0, 80))) for side in (X, Y))
    found = compare([as_set(tmp_path / "w", X_wide, Y_wide, "wide"), as_set(tmp_path / "s", X, Y, "slim")], **FAST)
    assert {fit.whole.estimates["unseen"]["recall@10"].value for fit in found.fitted} == {1.0}
    assert advise(found).pair == "slim-image:1 + slim-text:1"


@pytest.mark.slow
def test_pairs_are_asked_with_the_groups_that_all_have(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 200)
    names = [f"g{number}" for number in range(200)]
    found = compare(
        [as_set(tmp_path / "a", X, Y, "a", names), as_set(tmp_path / "b", X[50:], Y[50:], "b", names[50:])], **FAST
    )
    assert [pair.left_out for pair in found.pairs] == [50, 0]
    assert found.training_groups + found.test_groups == 150
    assert found.test_groups == int(HoldOut().held_out(names[50:]).sum())


@pytest.mark.slow
def test_sets_of_the_same_encoders_are_joined(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 200)
    names = [f"g{number}" for number in range(200)]
    parts = [as_set(tmp_path / p, X[s], Y[s], groups=names[s]) for p, s in (("a", slice(90)), ("b", slice(90, 200)))]
    joined, whole = compare(parts, **FAST), compare([as_set(tmp_path / "c", X, Y, groups=names)], **FAST)
    assert len(joined.pairs) == 1
    assert len(joined.pairs[0].sets) == 2
    assert joined.fitted[0].rows[0].recall == whole.fitted[0].rows[0].recall


def test_pairs_of_one_name_are_told_apart_by_fingerprint(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 120)
    one, other = as_set(tmp_path / "a", X, Y), as_set(tmp_path / "b", X, Y)
    cards = {m: replace(card, fingerprint=f"{m[0]}{card.fingerprint[1:]}") for m, card in other.card.encoders.items()}
    found = compare([one, EmbeddingSet(other.path, replace(other.card, encoders=cards))], **FAST)
    assert len({pair.name for pair in found.pairs}) == 2
    assert all("(" in pair.name for pair in found.pairs)


def test_a_pair_is_not_judged_by_a_method_that_another_still_lacks(rng: np.random.Generator, tmp_path: Path) -> None:
    """The better pair had no time for its better method: what both have decides."""
    X, Y = views(rng, 400, noise=6.0, d_y=16)
    good = as_set(tmp_path / "good", X, Y, "good")
    bad = as_set(tmp_path / "bad", X, Y + 3 * rng.standard_normal(Y.shape), "bad")
    found = compare([bad, good], **{**FAST, "methods": ["procrustes", "ridge"]})
    lost = next(each for each in found.fitted if (each.method, each.pair[:4]) == ("ridge", "good"))
    late = NotRun(f"ridge on {lost.pair}", "too late")
    shortened = replace(found, fitted=[each for each in found.fitted if each is not lost], not_run=[late])
    (guideline,) = [each for each in advise(shortened).guidelines if each.topic == "encoders"]
    assert "(with ridge)" not in guideline.says
    assert ("validated better than all of these" in guideline.says) == (advise(shortened).method == "ridge")
    assert "validated best of procrustes, under cosine" in guideline.rests_on


# What is measured


@pytest.mark.slow
def test_a_row_is_what_its_ranks_say(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 240, noise=1.5)
    found = compare([as_set(tmp_path / "s", X, Y)], **FAST)
    (row,), fitted = found.fitted[0].rows, found.fitted[0]
    mean = row.recalls["mean"]["recall@10"].value
    sides = [row.recalls[name]["recall@10"].value for name in ("text-to-image", "image-to-text")]
    assert mean == pytest.approx(np.mean(sides))
    assert mean > 3 * found.pairs[0].chance["recall@10"]
    assert found.pairs[0].chance["recall@10"] == pytest.approx(10 / found.test_groups)
    assert row.recall.low < mean < row.recall.high
    assert (row.stored_floats, row.guarantee) == (fitted.dim, "exact")
    assert min(row.query_microseconds.values()) > 0
    assert sorted(fitted.multiply_adds.values()) == [0, 16 * 12]


@pytest.mark.slow
def test_no_test_group_takes_part_in_choice_or_fit(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fitted on is the same whatever the held-out vectors are."""
    X, Y = views(rng, 240)
    names = [f"g{number}" for number in range(240)]
    held = HoldOut().held_out(names)
    seen: list[set[int]] = []
    original = Fitter

    def watched(method: str, data: GroupedEmbeddings, *rest: Any) -> Any:
        seen.append(set(data.groups.tolist()))
        return original(method, data, *rest)

    monkeypatch.setattr(comparing, "Fitter", watched)
    methods = {**FAST, "methods": ["ridge", "kcca"], "metrics": [Cosine(), parse("bilinear"), parse("dot+nnn(k=9)")]}
    one = compare([as_set(tmp_path / "a", X, Y, groups=names)], **methods)
    other = np.where(held[:, None], rng.standard_normal(Y.shape), Y)
    two = compare([as_set(tmp_path / "b", X, other, groups=names)], **methods)
    assert [each.chosen for each in one.fitted] == [each.chosen for each in two.fitted]
    assert one.fitted[0].rows[0].recall.value > 2 * two.fitted[0].rows[0].recall.value
    codes = dict(zip(sorted(names), range(240), strict=True))
    tested = {codes[name] for name, out in zip(names, held, strict=True) if out}
    assert seen
    assert not any(groups & tested for groups in seen)


@pytest.mark.slow
def test_only_so_many_held_out_groups_are_asked(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_pairs, "TEST_GROUPS", 40)
    found = compare([as_set(tmp_path / "s", *views(rng, 300))], **FAST)
    assert found.test_groups == 40
    assert found.pairs[0].chance["recall@10"] == pytest.approx(0.25)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_table(rng: np.random.Generator, tmp_path: Path) -> None:
    made = as_set(tmp_path / "s", *views(rng, 200))
    one, two = (compare([made], **{**FAST, "methods": ["rcca"], "seed": 3}) for _ in range(2))
    assert one.fitted[0].rows[0].recalls == two.fitted[0].rows[0].recalls
    assert one.fitted[0].gap == two.fitted[0].gap
    assert [point.recall for point in one.curves[0].points] == [point.recall for point in two.curves[0].points]


def test_methods_are_compared_under_a_metric_that_learns_nothing(rng: np.random.Generator, tmp_path: Path) -> None:
    found = compare([as_set(tmp_path / "s", *views(rng, 160))], **{**FAST, "metrics": [parse("bilinear")]})
    assert found.metrics == ["cosine", str(parse("bilinear"))]
    assert [row.learn_seconds > 0 for row in found.fitted[0].rows] == [False, True]


def test_multiply_adds_are_the_sizes_of_the_matrices() -> None:
    assert multiply_adds(Projection(5)) == 0
    assert multiply_adds(Projection(5, np.zeros(5, np.float32), np.ones((5, 3), np.float32))) == 15


# What is not run is said


def test_a_budget_that_has_passed_leaves_a_list(rng: np.random.Generator, tmp_path: Path) -> None:
    sets = [as_set(tmp_path / name, *views(rng, 120), name) for name in ("a", "b")]
    found = compare(
        sets, **{**FAST, "methods": ["ridge", "rcca"], "metrics": [Cosine(), parse("chi2")], "budget": 1e-6}
    )
    assert [(each.pair[0], each.method) for each in found.fitted] == [("a", "ridge")]
    assert [row.metric for row in found.fitted[0].rows] == ["cosine"]
    assert [missing.what for missing in found.not_run] == [
        "chi2(map=split) after ridge on a-image:1 + a-text:1",
        "ridge on b-image:1 + b-text:1",
        "rcca on a-image:1 + a-text:1",
        "rcca on b-image:1 + b-text:1",
        "learning curve of ridge on a-image:1 + a-text:1",
    ]
    assert {missing.reason for missing in found.not_run} == {"its share of the budget of 1e-06 s had passed"}
    text = said(found, "not run")
    assert "learning curve of ridge on a-image:1 + a-text:1: its share of the budget of 1e-06 s had passed." in text
    assert "ridge on a-image:1 + a-text:1: hyperparameters were chosen in 1 of 2 folds." in text
    assert said(found, "encoders").startswith("Encoder pairs cannot be compared")


def test_what_does_not_apply_or_enter_is_listed(rng: np.random.Generator, tmp_path: Path) -> None:
    made = as_set(tmp_path / "s", *views(rng, 120))
    found = compare([made], **{**FAST, "methods": ["identity", "ridge"], "metrics": [Cosine(), parse("dot+nnn")]})
    reasons = {missing.what.split()[0]: missing.reason for missing in found.not_run}
    assert reasons["identity"] == "does not apply to dimensions 16 and 12"
    assert "reference queries, choose a lower k" in reasons["dot+nnn(k=128,alpha=0.75)"]
    assert (
        said(found, "identity") == "Vectors as they are cannot serve: identity does not apply to dimensions 16 and 12."
    )


def test_ctrl_c_is_a_budget_that_passes(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "learning_curve", interrupted)
    found = compare([as_set(tmp_path / "s", *views(rng, 120))], **FAST)
    assert [missing.reason for missing in found.not_run] == ["interrupted"]
    assert len(found.fitted) == 1


# Bad input


def test_one_modality_cannot_be_compared(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 60)
    images = fake_set(tmp_path / "i", fake_rows("image", X))
    with raises(FitError, "text"):
        compare([images, as_set(tmp_path / "s", X, Y)], **FAST)


def test_no_groups_in_common(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 60)
    a, b = ([f"{letter}{number}" for number in range(60)] for letter in "ab")
    with raises(FitError, "2 encoder pairs"):
        compare([as_set(tmp_path / "a", X, Y, "a", a), as_set(tmp_path / "b", X, Y, "b", b)], **FAST)


@pytest.mark.parametrize(("n", "message"), [(1, "to fit on and to hold out"), (6, "needs at least 20 groups")])
def test_too_few_groups(n: int, message: str, rng: np.random.Generator, tmp_path: Path) -> None:
    with pytest.raises(FitError, match=message):
        compare([as_set(tmp_path / "s", *views(rng, n))], **{**FAST, "folds": 10, "hold_out": HoldOut(0.4)})


def test_no_set_and_no_such_method(rng: np.random.Generator, tmp_path: Path) -> None:
    with raises(FitError):
        compare([], **FAST)
    with raises(FitError, "'magic'"):
        compare([as_set(tmp_path / "s", *views(rng, 60))], **{**FAST, "methods": ["magic"]})


def test_vectors_that_are_all_alike_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 60)
    with raises(FitError, "text"):
        compare([as_set(tmp_path / "s", X, np.ones_like(Y))], **FAST)


# Guidelines


def asked_in(microseconds: float, fit: Fitted) -> Fitted:
    """Let a query of a fit take so long."""
    taken: dict[Modality, float] = dict.fromkeys(MODALITIES, microseconds)
    return replace(fit, rows=[replace(row, query_microseconds=taken) for row in fit.rows])


def test_an_identity_that_serves_is_advised(rng: np.random.Generator, tmp_path: Path) -> None:
    X = rng.standard_normal((400, 32))
    made = as_set(tmp_path / "s", X, X + 0.1 * rng.standard_normal(X.shape))
    found = compare([made], **{**FAST, "methods": ["identity", "procrustes"]})
    # Its own times, of microseconds, depend on what else the machine does.
    found = replace(found, fitted=[asked_in(1.0 if fit.method == "identity" else 2.0, fit) for fit in found.fitted])
    assert advise(found).method == "identity"
    assert said(found, "identity").startswith(("Identity cannot be told from", "Serve the vectors as they are"))
    (beside, curve) = [each.says for each in advise(found).guidelines if each.topic == "more data"]
    assert curve == "Identity learns nothing: more data would change nothing."
    assert "procrustes" in beside


def test_an_identity_at_chance_is_not(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 300, d_y=16)
    found = compare([as_set(tmp_path / "s", X, Y)], **{**FAST, "methods": ["identity", "ridge"]})
    assert advise(found).method == "ridge"
    assert said(found, "identity").startswith("A fit is worth it: ridge finds 0.")


def test_few_groups_judge_neither_for_a_fit_nor_against(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 80, d_y=16)
    found = compare([as_set(tmp_path / "s", X, Y)], **{**FAST, "methods": ["identity", "ridge"]})
    assert found.test_groups < FEWEST_GROUPS
    words = said(found, "identity")
    assert f"{found.test_groups} held-out groups cannot tell" in words
    assert "nothing here shows" not in words


@pytest.mark.slow
def test_of_metrics_that_find_as_much_the_first_is_taken(rng: np.random.Generator, tmp_path: Path) -> None:
    metrics = [parse(name) for name in ("cosine", "euclid", "chi2", "w1")]
    found = compare([as_set(tmp_path / "s", *views(rng, 300))], **{**FAST, "metrics": metrics})
    assert advise(found).metric == "cosine"
    assert re.search(r"euclid \(.*cannot be told from it\. w1 \(0\.\d+\) finds less\.$", said(found, "metric"))


@pytest.mark.slow
def test_pairs_that_mean_nothing_are_not_told_from_chance(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 300)
    found = compare([as_set(tmp_path / "s", X, rng.permutation(Y))], **FAST)
    assert "cannot be told from chance" in said(found, "in short")
    assert "More data would help" not in said(found, "more data")


@pytest.mark.slow
def test_what_captions_alone_find_is_said_with_what_asked(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 150)
    groups = [str(number) for number in range(150)]
    single = compare([as_set(tmp_path / "single", X, Y, groups=groups)], **FAST)
    assert "people ask in other words" in said(single, "captions")
    assert "Search by caption" not in said(single, "captions")
    twice = np.concatenate([Y, Y + 0.3 * rng.standard_normal(Y.shape)])
    texts = fake_rows("text", twice, groups=groups * 2)
    several = compare([fake_set(tmp_path / "several", fake_rows("image", X, groups=groups), texts)], **FAST)
    assert "further caption among ten" in said(several, "captions")
    assert "other words" not in said(several, "captions")
    for comparison in (single, several):
        assert "Items without a caption are found by the alignment alone." in said(comparison, "captions")


def test_few_groups_leave_the_choice_to_cross_validation(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 80, d_y=16)
    found = compare([as_set(tmp_path / "s", X, Y)], **{**FAST, "methods": ["identity", "ridge"]})
    assert "held-out groups cannot tell anything apart" in said(found, "method")
    assert advise(found).method == best_validated(found.fitted).method == "ridge"


@pytest.mark.parametrize(
    ("other", "saves"), [((10, 10), True), ((10, 70), True), ((1, 199), False), ((90, 90), False), ((199, 1), False)]
)
def test_cheaper_is_what_costs_less_in_the_table(
    rng: np.random.Generator, tmp_path: Path, other: tuple[float, float], saves: bool
) -> None:
    """Of two fits that find the same: the measured time of a query, mean of both modalities, by a fifth at least."""
    found = compare([as_set(tmp_path / "s", *views(rng, 200))], **FAST)
    (preferred,) = found.fitted
    chosen = replace(preferred.chosen, folds=1)

    def costing(text: float, image: float) -> list[MetricRow]:
        return [replace(preferred.rows[0], query_microseconds={"text": text, "image": image})]

    fits = [
        replace(preferred, rows=costing(100, 100)),
        replace(preferred, method="procrustes", chosen=chosen, rows=costing(*other)),
    ]
    advice = advise(replace(found, fitted=fits, curves=[]))
    assert (advice.method == "procrustes") is saves
    (method,) = [each.says for each in advice.guidelines if each.topic == "method"]
    assert (f"({sum(other) / 2:.0f} µs to project a query)" in method) is saves


def test_gap_and_recall_need_fits_that_differ(rng: np.random.Generator, tmp_path: Path) -> None:
    found = compare([as_set(tmp_path / "s", *views(rng, 160))], **FAST)
    assert "cannot be said of so few" in said(found, "gap")
    (fitted,) = found.fitted
    assert fitted.gap is not None
    [row] = fitted.rows
    assert row.whole is not None
    judged, harmonic = row.whole.judged, row.whole.estimates["harmonic"]
    for sign, text in ((-1, "A smaller modality gap goes with a higher"), (1, "goes with a lower harmonic Recall@10")):
        made = []
        for number in range(7):
            estimates = {"harmonic": {**harmonic, "recall@10": replace(judged, value=0.1 * number)}}
            whole = replace(row.whole, estimates={**row.whole.estimates, **estimates})
            gap = replace(fitted.gap, debiased=1.0 + 0.1 * sign * number)
            made.append(replace(fitted, gap=gap, rows=[replace(row, whole=whole)]))
        assert text in said(replace(found, fitted=made), "gap")


# Intervals


def test_hits_give_the_recall_of_the_ranks(rng: np.random.Generator) -> None:
    groups = np.array([0, 0, 1, 2, 2, 2, 3])
    data = paired(rng.standard_normal((7, 3)), rng.standard_normal((7, 3)), groups)
    both = rng.integers(1, 20, 7).astype(float), rng.integers(1, 20, 7).astype(float)
    hits = Hits.of(both, (data.text.groups, data.image.groups), data.groups)
    recalls = hits.recalls()
    assert recalls[:2].tolist() == [[recall_at(side, k) for k in (1, 5, 10)] for side in both]
    assert recalls[2].tolist() == recalls[:2].mean(axis=0).tolist()
    drawn = hits.resampled(5)[:, 0, 2]
    assert estimate(recalls[0, 2], drawn) == bootstrap_mean((both[0] <= 10).astype(float), groups, seed=5)


def test_differences_are_told_apart_as_rarely_as_they_should(rng: np.random.Generator) -> None:
    """Five ways that are equally good: one is called better than another in some 5 of 100 comparisons."""
    wrong = 0
    for _ in range(200):
        found = rng.random((5, 200)) < 0.5 + 0.3 * rng.standard_normal(200)  # some queries are easy for all
        draws = rng.multinomial(200, np.full(200, 1 / 200), size=300)
        samples = found @ draws.T / 200
        verdict = judge(found.mean(axis=1).tolist(), list(samples), [0] * 5, 200)
        gaps = np.abs(verdict.values[:, None] - verdict.values[None])
        wrong += bool((gaps > verdict.margins + 1e-12).any())
    assert wrong <= 22


def judged(found: npt.NDArray[np.bool_], costs: Sequence[float], preferred: int | None = None) -> Verdict:
    """Judge methods by what they find of n queries (r, n)."""
    n = found.shape[1]
    samples = found @ np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=500).T / n
    return judge(found.mean(axis=1).tolist(), list(samples), costs, n, preferred)


def test_a_cheaper_method_is_taken_only_where_it_is_sure_to_lose_next_to_nothing(rng: np.random.Generator) -> None:
    easy = rng.random(3000)
    same = easy + 0.001 * rng.standard_normal(3000)  # some queries differ
    found = np.array([easy < 0.8, same < 0.8, easy < 0.4])
    verdict = judged(found, [3, 2, 1])
    assert (verdict.preferred, verdict.taken) == (0, 1)
    assert verdict.difference(0, 1).high < MARGIN
    difference = verdict.difference(0, 2)
    assert 0 < difference.low < 0.4 < difference.high < 0.6


def test_a_cheaper_method_that_cannot_be_told_apart_is_not_taken_for_that() -> None:
    """Of few queries nearly everything cannot be told apart: that is no reason to lose what it may lose."""
    queries = np.arange(60)
    verdict = judged(np.array([queries < 45, queries >= 17]), [2, 1], preferred=0)
    difference = verdict.difference(0, 1)
    assert difference.low < 0 < MARGIN < difference.high
    assert verdict.taken == 0


def test_what_other_data_prefers_is_taken_though_it_finds_less_here(rng: np.random.Generator) -> None:
    found = rng.random((2, 60)) < np.array([[0.7], [0.8]])
    assert judged(found, [1, 2], preferred=0).taken == 0


# Learning curves


def test_subsamples_are_nested_and_none_is_too_small(rng: np.random.Generator) -> None:
    known = paired(rng.standard_normal((100, 3)), rng.standard_normal((100, 3)))
    sizes = subsamples(known, 0)
    assert [len(size[0].groups) for size in sizes] == [25, 50]
    for small, large in zip(*sizes, strict=True):
        assert set(small.groups) < set(large.groups)
    assert len({tuple(part.groups) for part in sizes[0]}) == 3
    assert subsamples(known.only(np.arange(2 * FEWEST - 2)), 0) == []


@pytest.mark.slow
def test_a_curve_rises_where_there_is_something_to_learn(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = views(rng, 900, noise=8.0, latent=24, d_x=48, d_y=48)
    (curve,) = compare([as_set(tmp_path / "s", X, Y)], **FAST).curves
    recalls = [point.recall.value for point in curve.points]
    assert recalls == sorted(recalls)
    assert recalls[-1] > 2 * recalls[0]
    assert all(point.recall.low < point.recall.value < point.recall.high for point in curve.points)


def points_of(
    sizes: Sequence[int], recalls: Sequence[float], spread: float, rng: np.random.Generator
) -> list[CurvePoint]:
    common = spread * rng.standard_normal(1000)  # the test groups are the same for all sizes
    samples = [recall + common + 0.3 * spread * rng.standard_normal(1000) for recall in recalls]
    return [CurvePoint(n, estimate(r, s), s) for n, r, s in zip(sizes, recalls, samples, strict=True)]


@pytest.mark.parametrize("law", ["power", "straight"])
def test_a_law_is_carried_on(law: str, rng: np.random.Generator) -> None:
    sizes = [100, 200, 400, 800, 1600]
    truth = [1 - 2 * n**-0.3 if law == "power" else 0.1 + 0.05 * np.log2(n / 100) for n in sizes]
    forecast, why_not = forecast_of(points_of(sizes[:-1], truth[:-1], 0.02, rng), 800)
    assert why_not == ""
    assert forecast is not None
    assert forecast.groups == 1600
    assert forecast.gain.low <= truth[-1] - truth[-2] <= forecast.gain.high
    assert forecast.gain.low > 0
    assert forecast.recall.low < truth[-1] < forecast.recall.high
    assert forecast.recall.high - forecast.recall.low > forecast.gain.high - forecast.gain.low


def test_a_curve_that_breaks_is_not_carried_on(rng: np.random.Generator) -> None:
    points = points_of([100, 200, 400, 800], [0.1, 0.3, 0.5, 0.505], 0.01, rng)
    forecast, why_not = forecast_of(points, 800)
    assert (forecast, why_not) == (None, "the earlier sizes would not have forecast the last one")


def test_two_points_are_no_law(rng: np.random.Generator) -> None:
    forecast, why_not = forecast_of(points_of([100, 200], [0.1, 0.3], 0.01, rng), 800)
    assert forecast is None
    assert "takes 3 sizes" in why_not


def test_a_curve_of_one_size_has_no_last_doubling(rng: np.random.Generator) -> None:
    data = paired(rng.standard_normal((30, 3)), rng.standard_normal((30, 3)))
    own = data.text.groups, data.image.groups
    whole = Hits.of((np.ones(30), np.ones(30)), own, data.groups)
    curve = learning_curve("p", "m", data, lambda part: whole, whole, seed=0)
    assert (len(curve.points), curve.last_doubling, curve.forecast) == (1, None, None)


# The gap


def test_a_gap_is_what_lies_between_two_clouds(rng: np.random.Generator) -> None:
    """Science's own trap: in many dimensions two samples of one distribution are far from each other."""
    X, Y = (l2_normalize(rng.standard_normal((800, 128))) for _ in MODALITIES)
    none = modality_gap(paired(X, Y))
    assert none is not None
    assert none.raw > 1.0
    assert none.debiased < 0.2
    shift = np.zeros(128)
    shift[0] = 0.5
    there = modality_gap(paired(X, Y + shift))
    assert there is not None
    assert there.debiased == pytest.approx(0.5, abs=0.05)
    assert there.centroid == pytest.approx(0.5, abs=0.06)
    assert (there.n, there.seed) == (400, 0)


def test_a_gap_does_not_see_what_pairs_with_what(rng: np.random.Generator) -> None:
    X = l2_normalize(rng.standard_normal((600, 32)))
    same, shuffled = modality_gap(paired(X, X), most=200), modality_gap(paired(X, rng.permutation(X)), most=200)
    assert same is not None
    assert shuffled is not None
    assert (same.n, shuffled.n) == (200, 200)
    assert same.debiased == pytest.approx(shuffled.debiased, abs=0.2)


def test_three_groups_have_no_gap(rng: np.random.Generator) -> None:
    assert (
        modality_gap(paired(l2_normalize(rng.standard_normal((3, 4))), l2_normalize(rng.standard_normal((3, 4)))))
        is None
    )
