import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alignment.device import resolve
from alignment.errors import FitError, MetricError, TrainingError, VectorError
from alignment.fitting import cross_validation as validation
from alignment.fitting import fit as fitting
from alignment.fitting import heads
from alignment.fitting.closed_forms import CLOSED_FORMS, Hyperparameters
from alignment.fitting.cross_validation import best_of, cross_validate
from alignment.fitting.fit import fit
from alignment.fitting.held_out_recall import recall_table
from alignment.fitting.methods import METHODS, FitSpec, Fitter, Projections, candidates
from alignment.fitting.trainer import train
from alignment.metrics import BANK, METRICS, Cosine, Euclid, LearnedMetric, Metric, bank_name, parse
from alignment.modality import MODALITIES
from alignment.model.alignment import Alignment
from alignment.model.projections import Projection
from alignment.names import HEADS
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import group_codes, ranks, recall_at
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.vectors import l2_normalize
from connector.corpora.images import decode
from tests.support.errors import raises
from tests.support.fakes import FakeImageEncoder, FakeTextEncoder, fake_pairs, fake_rows, fake_set
from tests.support.pairs import paired

Matrix = npt.NDArray[np.floating]
Pair = tuple[Matrix, Matrix]


def linear_pair(rng: np.random.Generator, n: int, *, d_x: int = 9, d_y: int = 7, noise: float = 0.02) -> Pair:
    """Two linear images of one latent vector, shifted apart: a planted alignment."""
    Z = rng.standard_normal((n, 6))

    def view(d: int) -> Matrix:
        side = Z @ np.linalg.qr(rng.standard_normal((d, 6)))[0].T
        return np.asarray(side + noise * rng.standard_normal(side.shape) + 0.1 * rng.standard_normal(d))

    return view(d_x), view(d_y)


def pair_set(
    path: Path, X: Matrix, Y: Matrix, groups: Sequence[str] | None = None, *, model: str = "fake"
) -> EmbeddingSet:
    return fake_set(path, fake_rows("image", X, groups=groups), fake_rows("text", Y, groups=groups), model=model)


def recalls(alignment: Alignment, k: int, metric: str = "cosine") -> list[float]:
    table = alignment.card.held_out_recall[metric]
    return [table[direction][f"recall@{k}"] for direction in ("text-to-image", "image-to-text")]


def labelled(X: Matrix, Y: Matrix, x: Sequence[str], y: Sequence[str]) -> GroupedEmbeddings:
    codes = group_codes(x, y)
    return GroupedEmbeddings(
        ModalityEmbeddings(X.astype(np.float32), codes[0]), ModalityEmbeddings(Y.astype(np.float32), codes[1])
    )


@pytest.fixture(autouse=True)
def narrow_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deep heads are as wide as this data deserves."""
    short = {"learning_rate": 0.01, "components": 16, "width": 16, "blocks": 1, "epochs": 25}
    for head in (heads.FuseMix, heads.StarGluHead):
        monkeypatch.setattr(head, "candidates", lambda *dims: [short])


# What a fit finds


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", *(name for name in METHODS if name != "identity")])
def test_a_planted_alignment_is_found(method: str, rng: np.random.Generator, tmp_path: Path) -> None:
    alignment = fit([pair_set(tmp_path / "s", *linear_pair(rng, 300))], method=method, device="cpu")
    deep = method in ("fusemix", "star-glu")  # a few seconds of training; chance is 0.02 and 0.16
    assert min(recalls(alignment, 1)) > (0.5 if deep else 0.85)
    assert min(recalls(alignment, 10)) > (0.9 if deep else 0.99)


@pytest.mark.slow
def test_images_and_captions_are_aligned(tmp_path: Path) -> None:
    pairs = fake_pairs(tmp_path, 120, seed=1, captions=2)
    X = FakeImageEncoder().encode("image", [decode(pair.image.read_bytes()) for pair in pairs])
    Y = FakeTextEncoder().encode("text", [caption for pair in pairs for caption in pair.captions])
    keys = [pair.group for pair in pairs]
    images, texts = fake_rows("image", X, groups=keys), fake_rows("text", Y, groups=[k for k in keys for _ in "ab"])
    alignment = fit([fake_set(tmp_path / "s", images, texts)], device="cpu")
    assert min(recalls(alignment, 5)) > 0.9


@pytest.mark.slow
def test_pairs_that_mean_nothing_stay_at_chance(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = linear_pair(rng, 400)
    alignment = fit([pair_set(tmp_path / "s", X, rng.permutation(Y))], device="cpu")
    items = round(HoldOut().held_out([str(i) for i in range(400)]).sum())
    for k in KS:
        chance = k / items
        assert max(recalls(alignment, k)) < chance + 5 * (chance / items) ** 0.5


@pytest.mark.slow
def test_two_encoders_of_one_space_keep_it(rng: np.random.Generator, tmp_path: Path) -> None:
    """Few noisy pairs in many dimensions: nothing that is fitted beats what the models agree on already."""
    X = rng.standard_normal((40, 64))
    alignment = fit([pair_set(tmp_path / "s", X, X + 1.0 * rng.standard_normal(X.shape))], device="cpu")
    assert alignment.card.method == "identity"
    assert alignment.dim == 64
    assert alignment.projections["image"].weight is None


def test_identity_is_not_tried_between_different_dimensions(rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    lines: list[str] = []
    alignment = fit([made], device="cpu", progress=lines.append)
    tried = {candidate["method"] for candidate in alignment.card.candidates}
    assert tried == set(METHODS) - {"identity", "fusemix", "star-glu"}
    assert "identity: does not apply to dimensions 9 and 7" in lines
    assert "fusemix: enters from 10,000 groups on; try it with --method fusemix" in lines
    with raises(FitError, "identity", 9, 7):
        fit([made], method="identity", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_named_is_the_only_one_tried(method: str, rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60, d_y=9))
    card = fit([made], method=method, device="cpu").card
    assert card.method == method
    assert {candidate["method"] for candidate in card.candidates} == {method}
    assert len(card.candidates) == len(candidates(method, 9, 9))


@pytest.mark.slow
def test_the_best_candidate_is_taken_and_fitted_on_all_training_pairs(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = linear_pair(rng, 80, noise=0.5)
    lines: list[str] = []
    alignment = fit([pair_set(tmp_path / "s", X, Y)], device="cpu", progress=lines.append)
    card = alignment.card
    best = max(candidate["score"] for candidate in card.candidates)
    others = [c for c in card.candidates if c["method"] != card.method]
    longest = max(c["folds"] for c in others)
    other = max((c for c in others if c["folds"] == longest), key=lambda c: float(c["score"]))
    said = f"best of the other methods: {other['method']}, {other['score']:.3f} over {longest} of 4 folds"
    assert said in lines
    chosen = {"method": card.method, **card.hyperparameters}
    assert any(chosen.items() <= candidate.items() and candidate["folds"] == 4 for candidate in card.candidates)
    assert best > min(candidate["score"] for candidate in card.candidates)
    kept = ~HoldOut().held_out([str(i) for i in range(80)])
    order = sorted(np.flatnonzero(kept), key=str)
    sides = [np.asarray(side[order], np.float32) for side in (X, Y)]
    expected = Fitter(card.method, paired(sides[0], sides[1]), resolve("cpu")).fit(card.hyperparameters)
    for found, wanted, side in zip(alignment.projections.values(), expected, (X, Y), strict=True):
        np.testing.assert_allclose(found(side), wanted(side), atol=1e-4)
    assert card.pairs == kept.sum()


@pytest.mark.slow
def test_held_out_recall_is_that_of_the_held_out_items(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = linear_pair(rng, 120, noise=0.6)
    hold_out = HoldOut(0.4, 3)
    metrics = [parse(text) for text in (*METRICS, "dot+nnn(k=16)", "mlp(hidden=3)", "bilinear(rank=2)+nnn(k=5)")]
    alignment = fit([pair_set(tmp_path / "s", X, Y)], hold_out=hold_out, method="ridge", metrics=metrics, device="cpu")
    held = hold_out.held_out([str(i) for i in range(120)])
    image, text = alignment.project("image", X[held]), alignment.project("text", Y[held])
    codes = np.arange(held.sum())
    for metric in metrics:
        of_images, of_texts = (alignment.metric(metric, items=modality) for modality in MODALITIES)
        t2i = ranks(text, image, codes, codes, metric=of_images)
        i2t = ranks(image, text, codes, codes, metric=of_texts)
        for k in KS:
            expected = [recall_at(t2i, k), recall_at(i2t, k)]
            assert recalls(alignment, k, str(metric)) == pytest.approx(expected, abs=1e-6)
    assert alignment.card.metrics == [str(metric) for metric in metrics]
    assert 0 < recalls(alignment, 1)[0] < 1


def test_the_card_says_where_the_alignment_comes_from(rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    card = fit([made], hold_out=HoldOut(0.5, 2), method="ridge", device="cpu").card
    assert card.sets == [made.card.fingerprint]
    assert card.encoders == made.card.encoders
    assert card.hold_out == HoldOut(0.5, 2)
    json.dumps(card.candidates, allow_nan=False)
    assert all(0 <= candidate["score"] <= 1 for candidate in card.candidates)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 80, noise=0.5))
    one, other = fit([made], seed=5, device="cpu"), fit([made], seed=5, device="cpu")
    assert one.card == other.card
    assert one.fingerprint == other.fingerprint
    scores = [candidate["score"] for candidate in fit([made], seed=6, device="cpu").card.candidates]
    assert scores != [candidate["score"] for candidate in one.card.candidates]


@pytest.mark.slow
def test_the_order_of_the_rows_does_not_matter(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = linear_pair(rng, 80, noise=0.5)
    groups = [str(i) for i in range(80)]
    order = rng.permutation(80)
    forth = pair_set(tmp_path / "a", X, Y, groups)
    images, texts = fake_rows("image", X, groups=groups), fake_rows("text", Y, groups=groups)
    back = fake_set(tmp_path / "b", images.take(order), texts.take(order[::-1]))
    one, other = fit([forth], device="cpu"), fit([back], device="cpu")
    assert one.card == replace(other.card, versions=one.card.versions)
    assert one.fingerprint == other.fingerprint


def test_several_sets_are_fitted_as_one(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = linear_pair(rng, 90, noise=0.5)
    groups = [str(i) for i in range(90)]
    whole = fit([pair_set(tmp_path / "whole", X, Y, groups)], method="ridge", device="cpu")
    # One set has the images of the last group, the other its text.
    images, texts = fake_rows("image", X, groups=groups), fake_rows("text", Y, groups=groups)
    first = fake_set(tmp_path / "1", images.take(range(60)), texts.take(range(59)))
    second = fake_set(tmp_path / "2", images.take(range(60, 90)), texts.take(range(59, 90)))
    parts = fit([first, second], method="ridge", device="cpu")
    assert parts.fingerprint == whole.fingerprint
    assert parts.card.sets == [first.card.fingerprint, second.card.fingerprint]


# Groups


def test_no_group_ever_leaks(rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is fitted shares no group with what it is judged on, and nothing is fitted on a held-out group."""
    n = 90
    groups = [f"g{i % 30}" for i in range(n)]
    X, Y = linear_pair(rng, n)
    group_of = {side[i].astype(np.float32).tobytes(): group for side in (X, Y) for i, group in enumerate(groups)}
    fitted: list[set[str]] = []
    projected: list[set[str]] = []
    judged: list[set[str]] = []

    class Watched(Fitter):
        def __init__(self, method: str, data: GroupedEmbeddings, *options: Any) -> None:
            super().__init__(method, data, *options)
            fitted.append({group_of[row.tobytes()] for side in (data.image, data.text) for row in side.vectors})

    original_project, original_ranks = GroupedEmbeddings.project, GroupedEmbeddings.ranks

    def project(self: GroupedEmbeddings, *args: object) -> object:
        projected.append({group_of[row.tobytes()] for side in (self.image, self.text) for row in side.vectors})
        return original_project(self, *args)  # type: ignore[arg-type]

    def watched(self: GroupedEmbeddings, *args: object) -> object:
        judged.append(projected[-1])
        assert not judged[-1] & fitted[-1]
        return original_ranks(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(fitting, "Fitter", Watched)
    monkeypatch.setattr(validation, "Fitter", Watched)
    monkeypatch.setattr(GroupedEmbeddings, "project", project)
    monkeypatch.setattr(GroupedEmbeddings, "ranks", watched)
    hold_out = HoldOut(0.3)
    fit([pair_set(tmp_path / "s", X, Y, groups)], method="procrustes", hold_out=hold_out, folds=3, device="cpu")
    held = {group for group, out in zip(groups, hold_out.held_out(groups), strict=True) if out}
    assert not held & {group for part in fitted for group in part}
    assert judged[-1] == held
    assert fitted[-1] == set(groups) - held
    folds = {frozenset(part) for part in judged[:-1]}
    assert len(folds) == 3
    assert sorted(group for part in folds for group in part) == sorted(set(groups) - held)


def test_captions_of_one_image_pair_with_it_each() -> None:
    X, Y = np.array([[1.0], [2.0]]), np.array([[10.0], [20.0], [11.0], [12.0]])
    left, right = labelled(X, Y, ["a", "b"], ["a", "b", "a", "a"]).pairs()
    assert list(zip(left[:, 0], right[:, 0], strict=True)) == [(1, 10), (1, 11), (1, 12), (2, 20)]


def test_a_class_label_does_not_pair_everything_with_everything() -> None:
    X, Y = np.arange(5.0)[:, None], np.arange(2.0)[:, None] + 10
    left, right = labelled(X, Y, ["c"] * 5, ["c"] * 2).pairs()
    assert left[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert right[:, 0].tolist() == [10, 11, 10, 11, 10]


def test_items_without_a_partner_are_counted_and_left_out(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = linear_pair(rng, 60)
    groups = [str(i) for i in range(60)]
    whole = fit([pair_set(tmp_path / "whole", X, Y, groups)], method="ridge", device="cpu")
    lonely_images = np.concatenate([X, rng.standard_normal((3, 9))])
    lonely_texts = np.concatenate([Y, rng.standard_normal((4, 7))])
    made = fake_set(
        tmp_path / "s",
        fake_rows("image", lonely_images, groups=[*groups, "i0", "i1", "i2"]),
        fake_rows("text", lonely_texts, groups=[*groups, "t0", "t1", "t2", "t2"]),
    )
    lines: list[str] = []
    alignment = fit([made], method="ridge", device="cpu", progress=lines.append)
    held = int(HoldOut().held_out(groups).sum())
    assert lines[0] == f"{60 - held} groups to fit on, {held} held out, 7 items without a partner left out"
    assert alignment.fingerprint == whole.fingerprint
    assert alignment.card.held_out_recall == whole.card.held_out_recall


def test_only_keeps_both_sides_of_the_groups_asked_for() -> None:
    both = labelled(np.arange(4.0)[:, None], np.arange(3.0)[:, None], ["a", "b", "c", "a"], ["c", "a", "b"])
    kept = both.only(np.array([0, 2]))
    assert kept.image.vectors[:, 0].tolist() == [0, 2, 3]
    assert kept.text.vectors[:, 0].tolist() == [0, 1]
    assert kept.text.groups.tolist() == [2, 0]


# Judging


def test_ranks_are_given_both_ways(rng: np.random.Generator) -> None:
    X = rng.standard_normal((8, 4))
    both = labelled(X, X + 0.8 * rng.standard_normal(X.shape), list("aabbccdd"), list("abcdabcd"))
    t2i, i2t = both.project((Projection(4), Projection(4))).ranks(dict.fromkeys(MODALITIES, Euclid()))
    image, text = l2_normalize(both.image.vectors), l2_normalize(both.text.vectors)
    assert t2i.tolist() == ranks(text, image, both.text.groups, both.image.groups, metric=Euclid()).tolist()
    assert i2t.tolist() == ranks(image, text, both.image.groups, both.text.groups, metric=Euclid()).tolist()


def test_each_direction_is_ranked_under_the_metric_of_its_items(rng: np.random.Generator) -> None:
    X = rng.standard_normal((8, 4))
    both = labelled(X, X + 0.8 * rng.standard_normal(X.shape), list("abcdefgh"), list("abcdefgh"))
    t2i, i2t = both.ranks({"image": Euclid(), "text": parse("dot")})
    image, text = both.image, both.text
    assert t2i.tolist() == ranks(text.vectors, image.vectors, text.groups, image.groups, metric=Euclid()).tolist()
    assert i2t.tolist() == ranks(image.vectors, text.vectors, image.groups, text.groups, metric=parse("dot")).tolist()


@pytest.mark.parametrize("metric", METRICS.values(), ids=str)
def test_a_row_that_cannot_be_projected_ranks_last(metric: Metric, rng: np.random.Generator) -> None:
    X = rng.standard_normal((6, 3))
    both = labelled(X, X, list("abcdef"), list("abcdef"))
    mean = l2_normalize(X[:1])[0]  # the first image has no direction of its own
    ready = metric.start(3, 0) if isinstance(metric, LearnedMetric) else metric
    t2i, i2t = both.project((Projection(3, mean), Projection(3))).ranks(dict.fromkeys(MODALITIES, ready))
    assert t2i[0] == i2t[0] == 6


def test_recall_is_tabulated_by_direction() -> None:
    table = recall_table((np.array([1.0, 6.0]), np.array([2.0, np.inf])))
    assert table == {
        "text-to-image": {"recall@1": 0.5, "recall@5": 0.5, "recall@10": 1.0},
        "image-to-text": {"recall@1": 0.0, "recall@5": 0.5, "recall@10": 0.5},
    }


def test_the_held_out_score_is_the_mean_recall_over_folds_and_directions(rng: np.random.Generator) -> None:
    n = 24
    X, Y = (rng.standard_normal((n, 5)) for _ in range(2))
    both = labelled(X, X + Y, [f"{i:02d}" for i in range(n)], [f"{i:02d}" for i in range(n)])
    [candidate] = cross_validate(both, ["identity"], FitSpec(seed=9), folds=4, device=resolve("cpu"))
    found = []
    for part in np.array_split(np.random.default_rng(9).permutation(n), 4):
        scores = l2_normalize(both.text.vectors[part]) @ l2_normalize(both.image.vectors[part]).T
        for matrix in (scores, scores.T):
            place = (matrix >= np.diag(matrix)[:, None]).sum(axis=1)
            found += [(place <= k).mean() for k in KS]
    assert candidate.held_out == pytest.approx(np.mean(found))
    assert 0 < candidate.held_out < 1


# Metrics that learn


def racers(rng: np.random.Generator) -> GroupedEmbeddings:
    n = 60
    X, Y = linear_pair(rng, n)
    return labelled(X, Y, [str(i) for i in range(n)], [str(i) for i in range(n)])


@pytest.mark.parametrize(
    ("held_out", "around"), [(1, "0.50"), (4, "0.49"), (25, "0.20"), (96, "0.10"), (97, ""), (2000, "")]
)
def test_a_hold_out_of_few_groups_says_how_uncertain_a_recall_is(held_out: int, around: str) -> None:
    lines: list[str] = []
    fitting.say_if_few(held_out, lines.append)
    assert [line for line in lines if f"by about {around} either way" in line and "--holdout" in line] == lines
    assert len(lines) == bool(around)


@pytest.mark.slow
def test_losers_are_dropped_early(rng: np.random.Generator) -> None:
    names = [name for name in METHODS if name != "identity"]
    found = cross_validate(racers(rng), names, FitSpec(), folds=4, device=resolve("cpu"))
    assert len(found) == sum(len(candidates(name, 9, 7)) for name in names)
    by_folds = Counter(candidate.folds for candidate in found)
    assert by_folds.keys() <= {1, 2, 3, 4}
    assert by_folds[1] >= len(found) / 3
    assert best_of(found).folds == 4
    assert best_of(found).score == max(c.score for c in found if c.folds == 4)
    first = [c for c in found if c.folds == 1]
    assert max(c.score for c in first) <= max(c.score for c in found)


@pytest.mark.slow
def test_a_long_choice_says_how_far_it_is_and_how_long_it_takes(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time left is what the same candidates took in the first fold, and is not guessed before."""
    now, took = [0.0], {"procrustes": 0.2, "ridge": 1.0, "rcca": 40.0}
    score = validation.score_candidate

    def slow(method: str, hyperparameters: dict[str, Any], *rest: Any) -> validation.Candidate:
        found = score(method, hyperparameters, *rest)
        now[0] += took[method] * (1 + list(candidates(method, 9, 7)).index(hyperparameters))
        return found

    monkeypatch.setattr(validation, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(validation, "score_candidate", slow)
    said: list[tuple[float, str]] = []
    found = cross_validate(
        racers(rng), list(took), FitSpec(), folds=4, device=resolve("cpu"), progress=lambda x: said.append((now[0], x))
    )
    shown = r"cross-validation: ([\d,]+) of ([\d,]+) fits, ([\d,]+) s(?:, about ([\d,]+) s left)?"
    told = [(at, match.groups()) for at, line in said if (match := re.fullmatch(shown, line))]
    done, fits, elapsed, left = zip(
        *((float(number.replace(",", "")) if number else 0.0 for number in numbers) for _, numbers in told), strict=True
    )
    assert set(fits) == {sum(candidate.folds for candidate in found)}
    assert np.allclose(elapsed, [at for at, _ in told], atol=0.5)
    first = sum(len(candidates(name, 9, 7)) for name in took)
    assert [seconds > 0 for seconds in left[:-1]] == [count > first for count in done[:-1]]
    assert sum(seconds > 0 for seconds in left) > 10
    # Which candidates survive a fold is not known before: of what is left, a third at most is guessed.
    assert all(abs(a - (now[0] - b)) < 0.35 * (now[0] - b) + 1 for a, b in zip(left, elapsed, strict=True) if a)
    # In the last fold nothing is.
    last = fits[0] - sum(candidate.folds == 4 for candidate in found)
    known = [(a, now[0] - b) for a, b, count in zip(left, elapsed, done, strict=True) if count > last and a]
    assert len(known) > 5
    assert all(abs(a - real) < 1.1 for a, real in known)


@pytest.mark.slow
def test_what_a_method_validates_at_does_not_depend_on_the_others(rng: np.random.Generator) -> None:
    """So a comparison, which races each method alone, prefers what a fit takes."""
    data, names = racers(rng), ["procrustes", "ridge", "rcca", "asif"]
    alone = {name: cross_validate(data, [name], FitSpec(), folds=4, device=resolve("cpu")) for name in names}
    together = cross_validate(data, names, FitSpec(), folds=4, device=resolve("cpu"))
    assert {c.key: (c.score, c.folds) for c in together} == {
        c.key: (c.score, c.folds) for own in alone.values() for c in own
    }
    assert best_of(together) == best_of(best_of(own) for own in alone.values())


def test_a_score_is_the_mean_over_the_folds_that_a_candidate_took_part_in(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([0.5, 0.1, 0.9, 0.2, 0.4, 0.3] * 6)
    monkeypatch.setattr(validation, "FEWEST", 2)
    monkeypatch.setattr(CLOSED_FORMS["procrustes"], "candidates", lambda *dims: [{"components": d} for d in (1, 2, 3)])
    monkeypatch.setattr(validation, "recall_at", lambda *_: next(given))
    found = cross_validate(racers(rng), ["procrustes"], FitSpec(), folds=2, device=resolve("cpu"))
    assert [(c.hyperparameters["components"], c.folds) for c in found if c.folds == 2] != []
    assert all(0.1 <= c.held_out <= 0.9 for c in found)
    assert sorted(c.folds for c in found) == [1, 2, 2]


@pytest.mark.parametrize("after", [0, 1, 3, 18])
def test_a_budget_ends_the_search_after_the_candidate_under_way(
    after: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first fold counts as far as it got; a later one that is cut off does not."""
    seconds, fit_one = 0.0, Fitter.fit

    def fit_for_a_second(fitter: Fitter, hyperparameters: Hyperparameters) -> Projections:
        nonlocal seconds
        seconds += 1
        return fit_one(fitter, hyperparameters)

    monkeypatch.setattr(Fitter, "fit", fit_for_a_second)
    monkeypatch.setattr("alignment.fitting.cross_validation.time.monotonic", lambda: seconds)
    lines: list[str] = []
    found = cross_validate(
        racers(rng),
        ["ridge"],
        FitSpec(),
        folds=4,
        device=resolve("cpu"),
        budget=after + 0.5,
        progress=lines.append,
    )
    assert len(found) == (14 if after == 18 else after + 1)
    assert {candidate.folds for candidate in found} == {1}
    assert "the budget has passed in fold" in lines[-1]
    assert best_of(found).score == max(candidate.score for candidate in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metrics", "chosen"),
    [
        (("cosine",), "cosine"),
        (("manhattan", "cosine"), "manhattan"),
        (("mlp", "chi2", "dot"), "chi2(map=split)"),
        (("dot+nnn(k=8)", "bilinear", "euclid"), "euclid"),
        (("bilinear", "dot+nnn(k=8)"), "cosine"),
        ((), "cosine"),
    ],
)
def test_candidates_are_chosen_under_the_first_metric_that_learns_nothing(
    metrics: Sequence[str], chosen: str, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def watched(data: GroupedEmbeddings, methods: Sequence[str], task: FitSpec, **options: Any) -> object:
        asked.extend(map(str, task.metrics))
        return cross_validate(data, methods, task, **options)

    monkeypatch.setattr(fitting, "cross_validate", watched)
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    card = fit([made], metrics=[parse(text) for text in metrics], method="procrustes", device="cpu").card
    assert asked == [chosen]
    assert card.metrics == list(card.held_out_recall) == [str(parse(text)) for text in metrics]


def test_metrics_learn_from_aligned_training_pairs_alone(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, Y = linear_pair(rng, 90, noise=0.3)
    sides: list[ModalityEmbeddings] = []
    original = fitting.fit_metrics

    def watched(metrics: Sequence[Metric], aligned: GroupedEmbeddings, *rest: Any, **options: Any) -> object:
        sides.extend((aligned.image, aligned.text))
        return original(metrics, aligned, *rest, **options)

    monkeypatch.setattr(fitting, "fit_metrics", watched)
    metrics = [parse("mlp(hidden=2)"), parse("dot+nnn(k=8)")]
    alignment = fit([pair_set(tmp_path / "s", X, Y)], metrics=metrics, method="ridge", device="cpu")
    held = HoldOut().held_out([str(i) for i in range(90)])
    for modality, raw, side in zip(MODALITIES, (X, Y), sides, strict=True):
        expected = alignment.project(modality, raw[~held])
        np.testing.assert_allclose(rows_sorted(side.vectors), rows_sorted(expected), atol=1e-6)
        bank = alignment.weights[bank_name(modality)]
        np.testing.assert_array_equal(rows_sorted(bank), rows_sorted(side.vectors))
    assert set(alignment.weights) == {
        *(f"mlp(hidden=2)/{name}" for name in parse("mlp(hidden=2)").start(2, 0).module.state_dict()),  # type: ignore[attr-defined]
        "nnn/image",
        "nnn/text",
    }


def rows_sorted(X: Matrix) -> Matrix:
    return X[np.lexsort(X.T)]


@pytest.mark.slow
def test_a_bank_is_a_sample_of_the_training_vectors(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "BANK", 20)
    made = pair_set(tmp_path / "s", *linear_pair(rng, 90))
    banks = [
        fit([made], metrics=[parse("dot+nnn(k=8)")], method="ridge", seed=seed, device="cpu").weights["nnn/image"]
        for seed in (1, 1, 2)
    ]
    assert [len(np.unique(bank, axis=0)) for bank in banks] == [20] * 3
    np.testing.assert_array_equal(banks[0], banks[1])
    assert not np.array_equal(banks[0], banks[2])
    assert BANK >= 1024


def test_a_metric_that_is_only_corrected_is_learned_too(rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    corrected = parse("bilinear(rank=2,blocks=2)+nnn(k=8)")
    alignment = fit([made], metrics=[corrected], method="ridge", device="cpu")
    assert {name.partition("/")[0] for name in alignment.weights} == {"bilinear(rank=2,blocks=2)", "nnn"}
    alignment.metric(corrected, items="image")
    alignment.metric(parse("bilinear(rank=2,blocks=2)"), items="text")
    with raises(MetricError, "bilinear(rank=3,blocks=2)"):
        alignment.metric(parse("bilinear(rank=3,blocks=2)"), items="text")


@pytest.mark.slow
def test_metrics_change_neither_the_projections_nor_the_choice(rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    plain = fit([made], device="cpu")
    learned = fit([made], metrics=[Cosine(), parse("bilinear"), parse("dot+nnn(k=8)")], device="cpu")
    assert learned.card.candidates == plain.card.candidates
    X = made.load("image").vectors
    np.testing.assert_array_equal(learned.project("image", X), plain.project("image", X))
    assert learned.fingerprint != plain.fingerprint
    assert plain.weights == {}


# What cannot be fitted


def test_a_hubness_correction_needs_enough_reference_queries(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so before anything is fitted, with a k that would do."""
    monkeypatch.setattr(fitting, "cross_validate", None)
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    kept = 60 - int(HoldOut().held_out([str(i) for i in range(60)]).sum())
    with raises(FitError, 128, kept, f"dot+nnn(k={kept // 2})"):
        fit([made], metrics=[Cosine(), parse("dot+nnn")], device="cpu")


def test_vectors_with_signs_are_no_histograms(rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    with raises(VectorError, "chi2(map=l1)", "map=split"):
        fit([made], metrics=[parse("chi2(map=l1)")], device="cpu")


def test_an_unknown_method_is_refused_with_those_that_exist(rng: np.random.Generator, tmp_path: Path) -> None:
    with raises(FitError, "magic", "auto", ", ".join(METHODS)):
        fit([pair_set(tmp_path / "s", *linear_pair(rng, 60))], method="magic", device="cpu")


def test_no_set_is_no_data() -> None:
    with raises(FitError):
        fit([])


def test_one_group_cannot_be_split(rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60), groups=["all"] * 60)
    with raises(FitError, "1 and 0 of the 1 "):
        fit([made], device="cpu")


def test_no_shared_group_cannot_be_fitted(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = linear_pair(rng, 20)
    images, texts = fake_rows("image", X, prefix="i"), fake_rows("text", Y, prefix="t")
    with raises(FitError, "0 and 0 of the 0 "):
        fit([fake_set(tmp_path / "s", images, texts)], device="cpu")


@pytest.mark.parametrize(("fraction", "left", "held"), [(0.0, 60, 0), (1.0, 0, 60)])
def test_both_parts_must_hold_something(
    fraction: float, left: int, held: int, rng: np.random.Generator, tmp_path: Path
) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    with raises(FitError, f"got {left} and {held}", "--holdout"):
        fit([made], hold_out=HoldOut(fraction), device="cpu")


@pytest.mark.parametrize("folds", [0, 1, 40])
def test_folds_need_groups(folds: int, rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    with raises(FitError, *((folds, 2 * folds, "--folds") if folds > 1 else (2, folds))):
        fit([made], folds=folds, device="cpu")


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize(("value", "reason"), [(np.nan, "vector-not-finite"), (0.0, "vector-zero")])
def test_an_unusable_vector_is_named_by_key(
    modality: str, value: float, reason: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    X, Y = linear_pair(rng, 60)
    (X if modality == "image" else Y)[17] = value
    with raises(FitError, f"1 {modality}", 17, reason):
        fit([pair_set(tmp_path / "s", X, Y)], device="cpu")


def test_sets_of_different_encoders_are_refused_by_both_names(rng: np.random.Generator, tmp_path: Path) -> None:
    one = pair_set(tmp_path / "one", *linear_pair(rng, 60))
    other = pair_set(tmp_path / "other", *linear_pair(rng, 60), model="strange")
    with raises(FitError, one.path, other.path, one.card.encoders["image"], other.card.encoders["image"]):
        fit([one, other], device="cpu")


def test_a_set_without_one_modality_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    X, _ = linear_pair(rng, 20)
    with raises(FitError, tmp_path / "s", "--text-encoder"):
        fit([fake_set(tmp_path / "s", fake_rows("image", X))], device="cpu")


@pytest.mark.parametrize("side", ["image", "text"])
def test_vectors_that_are_all_the_same_are_refused(side: str, rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = linear_pair(rng, 60)
    (X if side == "image" else Y)[:] = 0.7
    with raises(FitError, side):
        fit([pair_set(tmp_path / "s", X, Y)], device="cpu")


# Training, jointly and not


JOINTLY = ["cosine", "chi2", "bilinear(rank=2,blocks=2)", "dot+nnn(k=5)"]


@pytest.mark.slow
def test_one_projection_is_trained_for_every_metric(rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 200, noise=0.5))
    metrics = [parse(text) for text in JOINTLY]
    lines: list[str] = []
    settings = {"epochs": 4, "batch": 40, "learning_rate": 0.003}
    joint = fit(
        [made], metrics=metrics, method="ridge", joint=True, training=settings, device="cpu", progress=lines.append
    )
    apart = fit([made], metrics=metrics, method="ridge", training=settings, device="cpu")
    assert any(
        line.startswith("residual, cosine, chi2(map=split), bilinear(rank=2,blocks=2): epoch 1") for line in lines
    )
    assert joint.card.method == apart.card.method == "ridge"
    assert joint.card.training["metrics"] == dict.fromkeys(map(str, metrics[:3]), 1 / 3)
    assert (joint.card.training["epochs"], joint.card.training["loss"]) == (4, "infonce")
    assert apart.card.training == {}
    assert set(joint.weights) == set(apart.weights)
    for metric in metrics:
        found, without = (np.mean(recalls(a, 10, str(metric))) for a in (joint, apart))
        assert found > without - 0.1
    joint.save(tmp_path / "joint")
    assert Alignment.load(tmp_path / "joint").fingerprint == joint.fingerprint


def test_a_joint_fit_is_chosen_under_all_metrics_that_learn_nothing(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def watched(data: GroupedEmbeddings, methods: Sequence[str], task: FitSpec, **options: Any) -> object:
        asked.append([str(metric) for metric in task.metrics])
        return cross_validate(data, methods, task, **options)

    monkeypatch.setattr(fitting, "cross_validate", watched)
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    metrics = [parse(text) for text in ("mlp(hidden=2)", "euclid", "js")]
    fit([made], metrics=metrics, method="procrustes", joint=True, training={"epochs": 1}, device="cpu")
    assert asked == [["euclid", "js(map=split)"]]


def test_the_card_holds_the_training_of_a_head(rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    card = fit([made], method="linear", training={"epochs": "2", "loss": "hinge"}, device="cpu").card
    assert (card.method, card.training["epochs"], card.training["loss"]) == ("linear", 2, "hinge")
    assert card.training["metrics"] == {"cosine": 1.0}


def test_settings_are_refused_before_anything_takes_time(rng: np.random.Generator, tmp_path: Path) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    lines: list[str] = []
    with raises(TrainingError, "rate"):
        fit([made], training={"rate": 1}, device="cpu", progress=lines.append)
    assert lines == []


@pytest.mark.parametrize("after", [0, 2, 7])
def test_an_interrupt_goes_on_with_the_best_so_far(
    after: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter(range(1000))
    original = Fitter.fit

    def fit_one(self: Fitter, hyperparameters: Any) -> Any:
        if next(seen) == after:
            raise KeyboardInterrupt
        return original(self, hyperparameters)

    monkeypatch.setattr(Fitter, "fit", fit_one)
    lines: list[str] = []
    arguments: Any = (racers(rng), ["procrustes"], FitSpec())
    if not after:
        with pytest.raises(KeyboardInterrupt):  # there is nothing to go on with
            cross_validate(*arguments, folds=4, device=resolve("cpu"), progress=lines.append)
        return
    found = cross_validate(*arguments, folds=4, device=resolve("cpu"), progress=lines.append)
    assert lines[-1].startswith("interrupted in fold ")
    assert len(found) == min(after, len(candidates("procrustes", 9, 7)))


def interrupt_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training of every linear head end as one that Ctrl-C interrupted."""
    original = Fitter.fit

    def interrupted(self: Fitter, hyperparameters: Any) -> Any:
        projections = original(self, hyperparameters)
        self.interrupted = self.method == "linear"
        return projections

    monkeypatch.setattr(Fitter, "fit", interrupted)


def test_an_interrupted_training_ends_the_choice(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_heads(monkeypatch)
    task = FitSpec(given={"epochs": 1})
    found = cross_validate(racers(rng), ["ridge", "linear"], task, folds=4, device=resolve("cpu"))
    assert {candidate.method for candidate in found} == {"ridge"}


def test_an_interrupt_keeps_the_only_training_there_is(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_heads(monkeypatch)
    lines: list[str] = []
    (only,) = cross_validate(
        racers(rng), ["linear"], FitSpec(given={"epochs": 1}), folds=4, device=resolve("cpu"), progress=lines.append
    )
    assert (only.method, only.folds) == ("linear", 1)
    assert lines[-1] == "interrupted in fold 1 of 4: going on with the best of 1 candidate"


def test_an_interrupt_of_the_last_candidate_begins_no_further_fold(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_heads(monkeypatch)
    monkeypatch.setattr(heads.Linear, "candidates", lambda *dims: [{"start": "rcca", "epochs": 1}])
    lines: list[str] = []
    (only,) = cross_validate(racers(rng), ["linear"], FitSpec(), folds=4, device=resolve("cpu"), progress=lines.append)
    assert only.folds == 1
    assert lines[-1].startswith("interrupted in fold 1 of 4")


@pytest.mark.parametrize("cut", ["deadline", "diverged"])
def test_a_refit_that_is_cut_short_is_not_taken(
    cut: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = racers(rng)
    whole = Fitter("linear", data, resolve("cpu"), FitSpec(given={"epochs": 3, "validation": 0.3}))
    fitted_once: list[Any] = []

    def second_is_cut(*arguments: Any, **options: Any) -> Any:
        if fitted_once:
            if cut == "deadline":
                options["deadline"] = 0.0
            else:
                options["training"] = replace(options["training"], learning_rate=1e30)
        trained = original(*arguments, **options)
        fitted_once.append([head.projection(None).weight for head in arguments[0].heads])
        return trained if len(fitted_once) > 1 else replace(trained, epoch=2)  # so that there is something to refit

    original = train
    monkeypatch.setattr("alignment.fitting.methods.train", second_is_cut)
    projections = whole.fit(candidates("linear", 9, 7)[0])
    assert len(fitted_once) == 2
    for projection, weight in zip(projections, fitted_once[0], strict=True):
        np.testing.assert_array_equal(projection.weight, weight)


def test_heads_are_left_out_under_a_metric_without_gradient(rng: np.random.Generator, tmp_path: Path) -> None:
    class Outside(Cosine):
        def score(self, queries: Any, items: Any) -> Any:
            scores = super().score(queries, items)
            return scores if isinstance(scores, np.ndarray) else scores.detach()

    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    lines: list[str] = []
    card = fit([made], metrics=[Outside()], device="cpu", progress=lines.append).card
    assert "metric cosine has no gradient: trained heads are left out" in lines
    assert not {candidate["method"] for candidate in card.candidates} & set(HEADS)


def test_recall_is_reported_on_a_bounded_number_of_groups(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pair_set(tmp_path / "s", *linear_pair(rng, 100))
    whole = fit([made], method="ridge", device="cpu").card
    monkeypatch.setattr("alignment.fitting.held_out_recall.HELD_OUT_GROUPS", 7)
    lines: list[str] = []
    part = fit([made], method="ridge", device="cpu", progress=lines.append).card
    assert part.held_out_groups == 7 < whole.held_out_groups
    assert any(line.startswith(f"recall is measured on 7 of {whole.held_out_groups} held-out groups") for line in lines)
    assert part.candidates == whole.candidates


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_a_budget_is_above_zero(budget: float, rng: np.random.Generator, tmp_path: Path) -> None:
    with raises(FitError, budget):
        fit([pair_set(tmp_path / "s", *linear_pair(rng, 60))], budget=budget, device="cpu")


def test_several_processes_share_no_budget(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = pair_set(tmp_path / "s", *linear_pair(rng, 60))
    with raises(FitError, "--budget", "--method"):
        fit([made], budget=1.0, device="cpu")
