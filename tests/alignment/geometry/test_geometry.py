import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import skew

from alignment.errors import GapError
from alignment.geometry.geometry import (
    CLASSICAL,
    ITEMS,
    NEIGHBOURS,
    geometry,
    hubness,
    mutual_neighbours,
    pair_distance,
    sampled,
    uniformity,
)
from alignment.metrics import Cosine, Metric, parse
from alignment.modality import DIRECTIONS
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import group_codes
from alignment.sets.hold_out import HoldOut
from alignment.vectors import FloatArray, l2_normalize
from tests.support.errors import raises
from tests.support.fakes import fake_rows, fake_set
from tests.support.pairs import paired

ONE = [Cosine()]


def units(rng: np.random.Generator, n: int, d: int = 16) -> FloatArray:
    return l2_normalize(rng.standard_normal((n, d)))


def near(rng: np.random.Generator, X: FloatArray, noise: float = 0.1) -> FloatArray:
    return l2_normalize(X + noise * rng.standard_normal(X.shape))


# Single measures


@pytest.mark.parametrize("metric", CLASSICAL, ids=str)
def test_pairs_and_random_pairs_are_the_diagonal_and_the_rest(metric: Metric, rng: np.random.Generator) -> None:
    X, Y = units(rng, 40), units(rng, 40)
    distances = (1.0 if metric == Cosine() else 0.0) - metric.score(X, Y).astype(np.float64)
    rest = distances[~np.eye(40, dtype=bool)]
    found = pair_distance(X, Y, metric)
    assert found.pair == pytest.approx(np.diag(distances).mean(), rel=1e-6)
    assert found.random == pytest.approx(rest.mean(), rel=1e-6)
    assert found.separation == pytest.approx((rest.mean() - np.diag(distances).mean()) / rest.std(), rel=1e-5)


def test_every_classical_metric_is_there() -> None:
    names = {"cosine", "euclid", "manhattan", "chi2", "js", "hellinger", "kl-query-item", "kl-item-query", "w1"}
    assert {metric.name for metric in CLASSICAL} == names


def test_random_pairs_come_from_every_block(rng: np.random.Generator) -> None:
    X = units(rng, 500)
    found = pair_distance(X, near(rng, X), parse("euclid"))
    assert found.pair < 0.5 < 1.3 < found.random
    assert found.separation > 5
    assert pair_distance(X, np.ones_like(X), parse("euclid")).separation == pytest.approx(0.0, abs=0.01)


def test_random_pairs_are_of_all_groups_whatever_their_names(rng: np.random.Generator) -> None:
    """Neighbouring names often mean the same kind of thing: here those of a block are nearly one point."""
    kinds = units(rng, 10)
    X = near(rng, kinds[np.repeat(np.arange(10), 64)], 0.02)
    groups = np.arange(640)
    found = geometry(
        GroupedEmbeddings(ModalityEmbeddings(X, groups), ModalityEmbeddings(X, groups)), metrics=ONE
    ).pairs["cosine"]
    everything = 1 - X.astype(np.float64) @ X.T
    random = everything[~np.eye(640, dtype=bool)]
    assert found.random == pytest.approx(random.mean(), abs=0.02)
    assert found.separation == pytest.approx((random.mean() - np.diag(everything).mean()) / random.std(), rel=0.05)


def test_points_that_are_all_one_are_not_separated() -> None:
    X = np.ones((5, 4), dtype=np.float32)
    assert pair_distance(X, X, parse("euclid")).separation == 0.0
    assert hubness(X[:3], X, k=5) == 0.0


def test_uniformity_is_the_log_of_the_mean_potential(rng: np.random.Generator) -> None:
    X = units(rng, 150)  # more than two blocks
    assert uniformity(X) == pytest.approx(np.log(np.exp(-2 * pdist(X, "sqeuclidean")).mean()), rel=1e-5)
    assert uniformity(np.ones((70, 1))) == pytest.approx(0.0, abs=1e-12)


def test_hubness_is_the_skewness_of_occurrences(rng: np.random.Generator) -> None:
    queries, items = units(rng, 80), units(rng, 60)
    nearest = np.argsort(-(queries @ items.T), axis=1)[:, :5]
    assert hubness(queries, items, k=5) == pytest.approx(skew(np.bincount(nearest.ravel(), minlength=60)), rel=1e-9)


def test_a_hub_shows(rng: np.random.Generator) -> None:
    X = units(rng, 300, d=64)
    Y = l2_normalize(X + np.eye(64)[0] * 3.0)  # all texts lie around one point: a few of them are found by everybody
    assert hubness(X, X) < 1.5
    assert hubness(l2_normalize(X - 0.5 * Y.mean(axis=0)), X) > 2.0


def test_mutual_neighbours_are_counted_over_spaces_of_any_dimensions(rng: np.random.Generator) -> None:
    X, Y = units(rng, 60, 8), units(rng, 60, 5)
    expected = []
    for row in range(60):
        both = []
        for Z in (X, Y):
            scores = Z @ Z[row]
            scores[row] = -np.inf
            both.append(set(np.argsort(-scores)[:4].tolist()))
        expected.append(len(both[0] & both[1]) / 4)
    assert mutual_neighbours(X, Y, k=4) == pytest.approx(np.mean(expected))
    assert mutual_neighbours(X, X, k=4) == 1.0


def test_neighbours_of_equal_points_leave_the_point_itself_out() -> None:
    X = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (12, 1))
    assert mutual_neighbours(X, X, k=5) == 1.0


# All together


def test_pairs_make_recall_and_not_the_gap(rng: np.random.Generator) -> None:
    """The gap ignores what pairs with what; everything that looks at pairs does not."""
    X = units(rng, 300)
    Y = near(rng, X)
    right, wrong = geometry(paired(X, Y), metrics=ONE), geometry(paired(X, np.roll(Y, 1, axis=0)), metrics=ONE)
    assert wrong.gap.debiased == pytest.approx(right.gap.debiased, abs=0.1)
    for direction in DIRECTIONS:
        assert right.recall[direction]["recall@10"].value > 0.95
        assert wrong.recall[direction]["recall@10"].value < 0.1
        assert right.chance[direction]["recall@10"] == pytest.approx(10 / 300)
    assert right.alignment_loss < 0.5 < 1.5 < wrong.alignment_loss
    assert right.mutual_neighbours > 0.5 > 0.1 > wrong.mutual_neighbours
    assert right.pairs["cosine"].separation > 3 > 0.5 > abs(wrong.pairs["cosine"].separation)


def test_alignment_is_twice_the_cosine_distance(rng: np.random.Generator) -> None:
    X = units(rng, 100)
    found = geometry(paired(X, near(rng, X, 0.5)), metrics=ONE)
    assert found.alignment_loss == pytest.approx(2 * found.pairs["cosine"].pair, rel=1e-5)


def test_modalities_that_lie_apart_have_a_significant_gap(rng: np.random.Generator) -> None:
    X = units(rng, 200)
    there = geometry(paired(X, l2_normalize(X + np.eye(16)[0])), metrics=ONE)
    assert (there.p, there.gap.centred.debiased < there.gap.debiased) == (0.005, True)
    assert there.gap.debiased == pytest.approx(there.gap.centroid, rel=0.2)
    assert there.sliced.debiased == pytest.approx(there.gap.centroid / 4, rel=0.3)  # the root of 16 dimensions
    none = geometry(paired(X, units(rng, 200)), metrics=ONE)
    assert none.p > 0.05


def test_a_length_is_no_difference(rng: np.random.Generator) -> None:
    X = units(rng, 60)
    long = geometry(paired(X, 7 * near(rng, X)), metrics=ONE)
    assert long.settings["normalisation"] == "unit"
    assert long.alignment_loss < 1


def test_equal_seeds_give_equal_numbers_that_json_can_hold(rng: np.random.Generator) -> None:
    X = units(rng, 60)
    data = paired(X, near(rng, X))
    one, two, other = geometry(data, seed=3), geometry(data, seed=3), geometry(data, seed=4)
    written = json.dumps(one.to_json(), allow_nan=False)
    assert written == json.dumps(two.to_json())
    assert one.gap != other.gap
    found = json.loads(written)
    assert found["settings"] == {
        "order": 2,
        "cost": "squared Euclidean",
        "normalisation": "unit",
        "recall_metric": "cosine",
        "permutations": 199,
        "permuted": 30,
        "projections": 500,
        "shrinkage": "Ledoit-Wolf",
        "neighbours": NEIGHBOURS,
    }
    assert found["gap"]["solver"] == "linear_sum_assignment"
    assert (found["gap"]["n"], found["gap"]["matched"], found["seed"], found["groups"]) == (30, 30, 3, 60)


def test_recall_is_asked_with_every_caption_and_the_rest_with_one_a_group(rng: np.random.Generator) -> None:
    X = units(rng, 30)
    Y = near(rng, np.repeat(X, 3, axis=0))
    codes = np.arange(30)
    found = geometry(
        GroupedEmbeddings(ModalityEmbeddings(X, codes), ModalityEmbeddings(Y, np.repeat(codes, 3))), metrics=ONE
    )
    assert found.items == {"image": 30, "text": 90}
    assert (found.groups, found.gap.n) == (30, 15)


def test_rows_that_cannot_be_aligned_are_counted(rng: np.random.Generator) -> None:
    X, Y = units(rng, 40), units(rng, 40)
    X[3], Y[4] = np.nan, 0.0
    found = geometry(paired(X, Y), metrics=ONE)
    assert (found.left_out, found.groups) == (2, 38)


def test_two_spaces_have_no_gap(rng: np.random.Generator) -> None:
    with raises(GapError, 16, 8):
        geometry(paired(units(rng, 40), units(rng, 40, 8)))


@pytest.mark.parametrize("n", [0, 1, 19])
def test_a_few_groups_have_no_gap(n: int, rng: np.random.Generator) -> None:
    with raises(GapError, 20, n):
        geometry(paired(units(rng, n), units(rng, n)))


# Samples


def test_a_sample_holds_the_drawn_groups_of_both_modalities(rng: np.random.Generator, tmp_path: Path) -> None:
    X, Y = rng.standard_normal((120, 3)), rng.standard_normal((120, 5))
    groups = [f"g{i // 2}" for i in range(120)]
    opened = fake_set(tmp_path, fake_rows("image", X, groups=groups), fake_rows("text", Y, groups=groups))
    hold_out = HoldOut(0.5)
    names = sorted(set(groups))
    held = {name for name, mine in zip(names, hold_out.held_out(names), strict=True) if mine}
    everything = sampled(opened, hold_out, groups=1000)
    assert len(everything.groups) == len(held)
    (codes,) = group_codes([group for group in groups if group in held])
    np.testing.assert_array_equal(everything.image.groups, codes)
    np.testing.assert_array_equal(everything.image.vectors, X[[group in held for group in groups]].astype(np.float32))
    some = sampled(opened, hold_out, groups=10, seed=1)
    assert (len(some.groups), len(some.image.vectors), len(some.text.vectors)) == (10, 20, 20)
    rows = {tuple(row) for row in everything.text.vectors.tolist()}
    assert {tuple(row) for row in some.text.vectors.tolist()} < rows


def test_a_sample_does_not_depend_on_the_order_of_the_rows(rng: np.random.Generator, tmp_path: Path) -> None:
    X = rng.standard_normal((50, 3))
    groups, order = [f"g{i}" for i in range(50)], rng.permutation(50)
    shuffled = [groups[i] for i in order]
    one = fake_set(tmp_path / "one", fake_rows("image", X, groups=groups), fake_rows("text", X, groups=groups))
    two = fake_set(
        tmp_path / "two", fake_rows("image", X[order], groups=shuffled), fake_rows("text", X[order], groups=shuffled)
    )
    a, b = (sampled(each, HoldOut(0.9), groups=7, seed=2) for each in (one, two))
    np.testing.assert_array_equal(
        a.image.vectors[np.argsort(a.image.groups)], b.image.vectors[np.argsort(b.image.groups)]
    )


def test_of_a_group_a_few_items_are_enough(rng: np.random.Generator, tmp_path: Path) -> None:
    """A class label may have thousands."""
    X = rng.standard_normal((300, 3))
    groups = [f"g{i % 30}" for i in range(300)]
    opened = fake_set(tmp_path, fake_rows("image", X, groups=groups), fake_rows("text", X[:30], groups=groups[:30]))
    found = sampled(opened, HoldOut(0.9), groups=20)
    assert np.bincount(found.image.groups).tolist() == [ITEMS] * 20
    assert np.bincount(found.text.groups).tolist() == [1] * 20


def test_a_set_of_one_modality_has_no_gap(rng: np.random.Generator, tmp_path: Path) -> None:
    opened = fake_set(tmp_path, fake_rows("text", rng.standard_normal((5, 3))))
    with raises(GapError, "image"):
        sampled(opened, HoldOut())


def test_a_set_without_a_whole_group_has_no_gap(rng: np.random.Generator, tmp_path: Path) -> None:
    X = rng.standard_normal((5, 3))
    opened = fake_set(tmp_path, fake_rows("image", X, groups=list("abcde")), fake_rows("text", X, groups=list("fghij")))
    with pytest.raises(GapError, match="none of its held-out groups holds both"):
        sampled(opened, HoldOut(0.9))
