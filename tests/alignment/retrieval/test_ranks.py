import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignment.metrics import METRICS, Cosine, Dot, LearnedMetric, Metric
from alignment.retrieval.bootstrap import Estimate, bootstrap_mean, bootstrap_median, bootstrap_of_two
from alignment.retrieval.ranks import (
    IntArray,
    chance_recall_at,
    group_codes,
    ranks,
    recall_at,
    top_k,
)

DIM = 5
EVERY = [m.start(DIM, seed=3) if isinstance(m, LearnedMetric) else m for m in METRICS.values()]
every_metric = pytest.mark.parametrize("metric", EVERY, ids=str)
Matrix = npt.NDArray[np.floating]
Data = tuple[Matrix, Matrix, IntArray, IntArray]


def data(rng: np.random.Generator, n: int = 40, m: int = 30, groups: int = 12) -> Data:
    return (
        rng.standard_normal((n, 5)),
        rng.standard_normal((m, 5)),
        rng.integers(0, groups + 3, n),  # some groups have queries only
        rng.integers(0, groups, m),
    )


def brute_ranks(scores: Matrix, query_groups: IntArray, item_groups: IntArray) -> list[float]:
    """Sort each query's items, irrelevant ones first among equals, and walk down to the first relevant one."""
    found = []
    for row, group in zip(scores, query_groups, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], item_groups[i] == group))
        places = [place for place, i in enumerate(order, start=1) if item_groups[i] == group]
        found.append(float(places[0]) if places else math.inf)
    return found


@every_metric
def test_ranks_equal_a_sort(metric: Metric, rng: np.random.Generator) -> None:
    queries, items, query_groups, item_groups = data(rng)
    expected = brute_ranks(metric.score(queries, items), query_groups, item_groups)
    assert math.inf in expected
    assert ranks(queries, items, query_groups, item_groups, metric=metric).tolist() == expected


@given(st.integers(0, 2**32 - 1))
def test_ranks_equal_a_sort_when_scores_are_tied(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 12, 2)
    queries, items = (rng.integers(-1, 2, (rows, 2)).astype(np.float32) for rows in (n, m))
    query_groups, item_groups = rng.integers(0, 4, n), rng.integers(0, 4, m)
    expected = brute_ranks(queries @ items.T, query_groups, item_groups)
    assert ranks(queries, items, query_groups, item_groups, metric=Dot()).tolist() == expected


@pytest.mark.parametrize("chunk_scores", [1, 29, 30, 31, 100, 10**9])
def test_chunks_change_nothing(chunk_scores: int, rng: np.random.Generator) -> None:
    queries, items, query_groups, item_groups = data(rng)
    whole = ranks(queries, items, query_groups, item_groups, metric=Cosine())
    parts = ranks(queries, items, query_groups, item_groups, metric=Cosine(), chunk_scores=chunk_scores)
    assert parts.tolist() == whole.tolist()
    indices, scores = top_k(queries, items, 7, metric=Cosine())
    part_indices, part_scores = top_k(queries, items, 7, metric=Cosine(), chunk_scores=chunk_scores)
    assert part_indices.tolist() == indices.tolist()
    np.testing.assert_allclose(part_scores, scores, rtol=1e-12)


def test_chunks_bound_what_is_held_at_once(rng: np.random.Generator) -> None:
    held = []

    class Watched(Dot):
        def score(self, queries: Any, items: Any) -> Any:
            held.append(len(queries) * len(items))
            return super().score(queries, items)

    queries, items, query_groups, item_groups = data(rng)
    ranks(queries, items, query_groups, item_groups, metric=Watched(), chunk_scores=100)
    assert sum(held) == 40 * 30
    assert max(held) <= 100


def test_equal_scores_never_flatter() -> None:
    """An index that scores everything alike finds the one relevant item of ten last."""
    found = ranks(np.ones((4, 3)), np.ones((10, 3)), np.arange(4), np.arange(10), metric=Dot())
    assert found.tolist() == [10.0] * 4
    assert [recall_at(found, k) for k in (1, 5, 9, 10)] == [0, 0, 0, 1]


def test_relevant_items_that_are_tied_do_not_push_one_another_down() -> None:
    found = ranks(np.ones((1, 2)), np.ones((3, 2)), np.array([1]), np.array([1, 1, 1]), metric=Dot())
    assert found.tolist() == [1.0]


@every_metric
@pytest.mark.parametrize("side", ["query", "item"])
def test_a_vector_without_a_score_ranks_last(metric: Metric, side: str, rng: np.random.Generator) -> None:
    """A vector that cannot be projected is NaN: its own group is found last, and nobody else gains by it."""
    X = rng.standard_normal((6, DIM))
    queries, items = X.copy(), X.copy()
    (queries if side == "query" else items)[2] = np.nan
    found = ranks(queries, items, np.arange(6), np.arange(6), metric=metric)
    assert found[2] == 6
    others = np.delete(found, 2)
    expected = np.delete(ranks(X, X, np.arange(6), np.arange(6), metric=metric), 2)
    assert (others >= expected).all()


def test_one_sound_relevant_item_is_enough(rng: np.random.Generator) -> None:
    items = np.array([[1.0, 0.0], [np.nan, np.nan], [0.0, 1.0]])
    found = ranks(np.array([[1.0, 0.1]]), items, np.array([7]), np.array([7, 7, 8]), metric=Cosine())
    assert found.tolist() == [1.0]


def test_queries_without_a_relevant_item_count_as_misses() -> None:
    found = ranks(np.eye(2), np.eye(2), np.array([0, 9]), np.array([0, 1]), metric=Cosine())
    assert found.tolist() == [1.0, math.inf]
    assert recall_at(found, 2) == 0.5


def test_without_items_every_query_misses() -> None:
    found = ranks(np.eye(2), np.empty((0, 2)), np.arange(2), np.empty(0, np.int64), metric=Cosine())
    assert found.tolist() == [math.inf, math.inf]


@every_metric
@pytest.mark.parametrize("k", [1, 4, 30, 31])
def test_top_k_equals_a_sort(metric: Metric, k: int, rng: np.random.Generator) -> None:
    queries, items, *_ = data(rng)
    indices, scores = top_k(queries, items, k, metric=metric)
    reference = metric.score(queries, items)
    assert indices.tolist() == np.argsort(-reference, axis=1)[:, :k].tolist()
    np.testing.assert_allclose(scores, -np.sort(-reference, axis=1)[:, :k], rtol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_top_k_of_nothing_is_nothing(n: int, m: int) -> None:
    indices, scores = top_k(np.ones((n, 2)), np.ones((m, 2)), 5, metric=Dot())
    assert indices.shape == scores.shape == (n, min(5, m))


@given(st.lists(st.one_of(st.integers(1, 50).map(float), st.just(math.inf)), min_size=1), st.integers(1, 60))
def test_recall_equals_its_loop(values: list[float], k: int) -> None:
    array = np.array(values)
    hits = sum(1 for value in values if value <= k)
    assert recall_at(array, k) == pytest.approx(hits / len(values))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(1, 30), st.integers(20, 40))
def test_chance_equals_the_hypergeometric_distribution(relevant: list[int], k: int, items: int) -> None:
    from scipy.stats import hypergeom

    expected = np.mean([1.0 - hypergeom(items, count, min(k, items)).pmf(0) for count in relevant])
    assert chance_recall_at(k, np.array(relevant), items) == pytest.approx(float(expected), abs=1e-9)


def test_chance_equals_the_recall_of_random_orders(rng: np.random.Generator) -> None:
    items, groups = 30, np.array([0, 0, 0, 1, 2, 2])
    item_groups = np.concatenate([groups, np.full(items - len(groups), 9)])
    relevant = np.array([3, 1, 2, 0])
    hits = []
    for _ in range(4000):
        first = rng.permutation(item_groups)[:5]
        hits.append(np.mean([(first == group).any() for group in (0, 1, 2, 7)]))
    assert chance_recall_at(5, relevant, items) == pytest.approx(float(np.mean(hits)), abs=4 * 0.25 / math.sqrt(4000))


@pytest.mark.parametrize(
    ("k", "relevant", "items", "expected"),
    [(1, [1], 1, 1.0), (10, [1], 4, 1.0), (1, [0], 4, 0.0), (2, [0, 4], 4, 0.5), (3, [2], 4, 1.0), (1, [0], 0, 0.0)],
)
def test_chance_at_the_edges(k: int, relevant: list[int], items: int, expected: float) -> None:
    assert chance_recall_at(k, np.array(relevant), items) == expected


def test_bootstrap_is_the_same_for_a_seed_and_another_for_another(rng: np.random.Generator) -> None:
    values, groups = rng.random(200), np.repeat(np.arange(50), 4)
    assert bootstrap_mean(values, groups, seed=3) == bootstrap_mean(values, groups, seed=3)
    assert bootstrap_mean(values, groups, seed=3) != bootstrap_mean(values, groups, seed=4)


def test_bootstrap_does_not_depend_on_how_groups_are_numbered(rng: np.random.Generator) -> None:
    values, groups = rng.random(60), np.repeat(np.arange(20), 3)
    assert bootstrap_mean(values, groups) == bootstrap_mean(values, groups * 1000 + 5)


def test_the_value_of_an_estimate_is_the_mean(rng: np.random.Generator) -> None:
    values, groups = rng.random(31), rng.integers(0, 9, 31)
    estimate = bootstrap_mean(values, groups)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low < estimate.value < estimate.high


def test_the_interval_of_independent_values_is_the_normal_one(rng: np.random.Generator) -> None:
    values = rng.random(2000)
    estimate = bootstrap_mean(values, np.arange(2000))
    half = 1.96 * values.std() / math.sqrt(2000)
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_values_that_repeat_within_a_group_do_not_narrow_the_interval(rng: np.random.Generator) -> None:
    """Five equal answers to five captions of one image are one observation."""
    once = rng.random(100)
    alone = bootstrap_mean(once, np.arange(100))
    repeated = bootstrap_mean(np.repeat(once, 5), np.repeat(np.arange(100), 5))
    assert repeated.low == pytest.approx(alone.low)
    assert repeated.high == pytest.approx(alone.high)


def test_the_interval_covers_the_truth_about_95_times_in_100(rng: np.random.Generator) -> None:
    covered = 0
    for seed in range(200):
        level = rng.normal(0.5, 0.1, 40)  # groups differ
        values = level.repeat(3) + rng.normal(0, 0.1, 120)
        estimate = bootstrap_mean(values, np.repeat(np.arange(40), 3), seed=seed, replicates=300)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 172 <= covered <= 199  # 187 expected of 40 groups, standard deviation 3.5


def test_one_group_has_no_spread() -> None:
    assert bootstrap_mean(np.array([0.0, 1.0]), np.array([4, 4])) == Estimate(0.5, 0.5, 0.5)


def brute_median(values: npt.NDArray[np.float64], groups: IntArray, seed: int, replicates: int) -> Estimate:
    """Lay the values of the drawn groups out, group by group, sort them and take the lower middle one."""
    names, draws = np.unique(groups), np.random.default_rng(seed)
    medians = []
    for _ in range(replicates):
        drawn = draws.integers(len(names), size=len(names))
        resampled = sorted(value for name in names[drawn] for value in values[groups == name].tolist())
        medians.append(resampled[(len(resampled) - 1) // 2])
    medians.sort()
    low, high = (medians[math.ceil(share * replicates) - 1] for share in (0.025, 0.975))
    return Estimate(float(np.sort(values)[(len(values) - 1) // 2]), low, high)


@given(
    st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0, 7.5, 1000.0, math.inf]), st.integers(-2, 5)), min_size=1),
    st.integers(0, 2**32 - 1),
)
@example([(math.inf, 0), (math.inf, 1)], 0)
@example([(1.0, 0), (math.inf, 0)], 0)
@example([(1.0, 0), (math.inf, 1)], 0)
def test_the_median_is_that_of_resampled_groups(drawn: list[tuple[float, int]], seed: int) -> None:
    values, groups = np.array([value for value, _ in drawn]), np.array([group for _, group in drawn])
    assert bootstrap_median(values, groups, seed=seed, replicates=40) == brute_median(values, groups, seed, 40)


def test_the_median_is_that_of_a_thousand_resamples(rng: np.random.Generator) -> None:
    values = np.where(rng.random(90) < 0.4, math.inf, rng.integers(1, 50, 90))
    groups = rng.integers(0, 30, 90)
    estimate = bootstrap_median(values, groups, seed=3)
    assert estimate == brute_median(values, groups, 3, 1000)
    assert estimate.low < estimate.value < estimate.high == math.inf


def test_the_interval_of_a_median_does_not_depend_on_the_order_or_the_names(rng: np.random.Generator) -> None:
    values, groups = rng.integers(1, 20, 60).astype(np.float64), np.repeat(np.arange(20), 3)
    estimate, order = bootstrap_median(values, groups), rng.permutation(60)
    assert bootstrap_median(values[order], groups[order]) == estimate
    assert bootstrap_median(values, groups * 1000 - 7) == estimate
    assert bootstrap_median(values, groups, seed=1).value == estimate.value


def test_the_median_of_one_group_and_of_equal_values_has_no_spread() -> None:
    assert bootstrap_median(np.array([1.0, 3.0, 9.0]), np.array([4, 4, 4])) == Estimate(3.0, 3.0, 3.0)
    assert bootstrap_median(np.full(8, 2.0), np.arange(8)) == Estimate(2.0, 2.0, 2.0)
    assert bootstrap_median(np.full(5, math.inf), np.arange(5)) == Estimate(math.inf, math.inf, math.inf)


def test_the_interval_of_a_median_covers_the_truth_about_95_times_in_100(rng: np.random.Generator) -> None:
    covered = 0
    for seed in range(200):
        estimate = bootstrap_median(rng.normal(5, 1, 61), np.arange(61), seed=seed, replicates=200)
        covered += estimate.low <= 5 <= estimate.high
    assert 178 <= covered <= 199  # 190 expected, standard deviation 3.1


def test_an_estimate_prints_with_its_interval() -> None:
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"


@given(st.lists(st.lists(st.text()), min_size=1, max_size=4))
@example([["a", "a\0"], ["a\0\0", ""]])
def test_equal_groups_get_equal_codes_and_others_do_not(sides: list[list[str]]) -> None:
    coded = group_codes(*sides)
    assert [len(codes) for codes in coded] == [len(side) for side in sides]
    pairs = {pair for side, codes in zip(sides, coded, strict=True) for pair in zip(side, codes.tolist(), strict=True)}
    assert len(pairs) == len({group for group, _ in pairs}) == len({code for _, code in pairs})


def test_codes_are_integers_even_of_nothing() -> None:
    assert [codes.dtype for codes in group_codes([], ["a"])] == [np.int64, np.int64]
    assert [codes.tolist() for codes in group_codes([], [])] == [[], []]


def test_codes_do_not_depend_on_the_order_of_the_rows() -> None:
    one, other = group_codes(["b", "a", "c"]), group_codes(["c", "b", "a"])
    assert one[0].tolist() == [1, 0, 2]
    assert other[0].tolist() == [2, 1, 0]


@every_metric
def test_top_k_on_a_device_is_that_of_the_reference(metric: Metric, rng: np.random.Generator) -> None:
    queries, items = (rng.standard_normal((n, DIM), dtype=np.float32) for n in (40, 30))
    indices, values = top_k(queries, items, 7, metric=metric)
    for chunk in (1, 70, 10_000):
        on_device = top_k(queries, items, 7, metric=metric, device="cpu", chunk_scores=chunk)
        np.testing.assert_array_equal(on_device[0], indices)
        np.testing.assert_allclose(on_device[1], values, rtol=1e-4, atol=1e-5)


def test_on_a_device_too_a_pair_without_a_score_comes_last() -> None:
    queries, items = np.ones((1, 2)), np.array([[np.nan, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    for device in (None, "cpu"):
        assert top_k(queries, items, 9, metric=Dot(), device=device)[0].tolist() == [[1, 2, 0]]


def test_an_estimate_of_two_means_covers_the_truth_in_95_of_100() -> None:
    """Of their product: two sets of queries in groups, drawn apart."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(100):
        sides = []
        for share, size in ((0.3, 40), (0.8, 60)):
            groups = np.repeat(np.arange(size, dtype=np.int64), 3)
            sides.append((np.repeat(rng.random(size) < share, 3).astype(np.float64), groups))
        one, other = sides
        e = bootstrap_of_two(lambda a, b: a * b, one, other, seed=seed, replicates=200)
        assert e.value == pytest.approx(one[0].mean() * other[0].mean())
        covered += e.low <= 0.3 * 0.8 <= e.high
    assert covered >= 88
