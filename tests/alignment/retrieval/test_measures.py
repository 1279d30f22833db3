import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hmean

from alignment.errors import MeasureError
from alignment.metrics import Cosine, Dot
from alignment.retrieval.bootstrap import bootstrap_mean
from alignment.retrieval.measures import (
    Floats,
    PerQueryValues,
    change,
    change_of_two,
    found,
    holm,
    ndcg,
    r_precision,
    recall,
    reciprocal_rank,
)
from alignment.retrieval.ranks import IntArray, RelevantRanks, ranks, relevant_ranks
from alignment.retrieval.seen_unseen import harmonic_mean

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its providers warn of syntax that Python will refuse some day
    import ir_measures

Matrix = npt.NDArray[np.floating]
KS = (1, 5, 10, 50)
# What ir-measures calls each of them.
PER_QUERY: dict[str, Callable[[RelevantRanks], Floats]] = {
    **{f"Success@{k}": partial(recall, k=k) for k in KS},
    **{f"R@{k}": partial(found, k=k) for k in KS},
    **{f"nDCG@{k}": partial(ndcg, k=k) for k in KS},
    "Rprec": r_precision,
    "RR": reciprocal_rank,
}


def ranked(scores: Matrix, query_groups: IntArray, item_groups: IntArray) -> RelevantRanks:
    """Ranks from a matrix of scores."""
    return relevant_ranks(scores, np.eye(scores.shape[1]), query_groups, item_groups, metric=Dot())


def theirs(name: str, scores: Matrix, query_groups: IntArray, item_groups: IntArray) -> list[float]:
    """What ir-measures makes of the same scores, by query."""
    run = {f"q{q}": {f"d{d}": float(score) for d, score in enumerate(row)} for q, row in enumerate(scores)}
    qrels = {
        f"q{q}": {f"d{d}": 1 for d in np.flatnonzero(item_groups == group)} for q, group in enumerate(query_groups)
    }
    parsed = ir_measures.parse_measure(name)
    by_query = {metric.query_id: metric.value for metric in ir_measures.iter_calc([parsed], qrels, run)}
    return [by_query[f"q{q}"] for q in range(len(scores))]


def asked(values: list[float], keys: str = "", groups: str = "") -> PerQueryValues:
    names = list(keys) if keys else [f"q{i}" for i in range(len(values))]
    return PerQueryValues(names, list(groups) if groups else names, np.array(values))


# Against ir-measures


@pytest.mark.parametrize("name", PER_QUERY)
def test_without_ties_every_query_is_measured_as_ir_measures_does(name: str, rng: np.random.Generator) -> None:
    """To the last digit of every query; of a mean, to the order of the sum."""
    scores = rng.permuted(np.tile(np.arange(120.0), (60, 1)), axis=1)
    query_groups, item_groups = rng.integers(0, 15, 60), np.arange(120) % 15
    ours = PER_QUERY[name](ranked(scores, query_groups, item_groups))
    expected = theirs(name, scores, query_groups, item_groups)
    assert ours.tolist() == expected
    assert ours.mean() == pytest.approx(np.mean(expected), rel=1e-15)


@pytest.mark.parametrize("name", PER_QUERY)
def test_ties_never_flatter(name: str, rng: np.random.Generator) -> None:
    """ir-measures breaks a tie by the name of the item, so half of them to the good; here all are to the bad."""
    scores = rng.integers(0, 8, (60, 120)).astype(np.float64)
    query_groups, item_groups = rng.integers(0, 15, 60), np.arange(120) % 15
    ours = PER_QUERY[name](ranked(scores, query_groups, item_groups))
    expected = np.array(theirs(name, scores, query_groups, item_groups))
    assert (ours <= expected + 1e-12).all()
    relevant = query_groups[:, None] == item_groups[None, :]
    worst = theirs(name, scores - 0.5 * relevant, query_groups, item_groups)  # the ties, resolved to the bad
    assert ours.tolist() == worst


def test_a_query_without_relevant_items_is_a_miss(rng: np.random.Generator) -> None:
    scores, groups = rng.permuted(np.tile(np.arange(9.0), (4, 1)), axis=1), np.array([0, 1, 2, 7])
    relevant = ranked(scores, groups, np.arange(9) % 3)
    assert relevant.best[3] == math.inf
    for name, per_query in PER_QUERY.items():
        assert per_query(relevant).tolist() == [*theirs(name, scores[:3], groups[:3], np.arange(9) % 3), 0.0]


# Ranks


@given(st.integers(0, 2**32 - 1))
def test_relevant_items_stand_where_a_sort_puts_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 9, 2)
    scores = rng.integers(-2, 3, (n, m)).astype(np.float64)
    scores[rng.random((n, m)) < 0.2] = np.nan
    query_groups, item_groups = rng.integers(0, 4, n), rng.integers(0, 3, m)

    class Given(Dot):
        def score(self, queries: Any, items: Any) -> Any:
            return scores[queries[:, 0].astype(int)]

    places = np.arange(n)[:, None]
    for chunk in (1, 1000):
        relevant = relevant_ranks(
            places, np.ones((m, 1)), query_groups, item_groups, metric=Given(), chunk_scores=chunk
        )
        expected, counts = [], []
        for row, group in zip(scores, query_groups, strict=True):
            mine = item_groups == group
            # NaN is the best that an irrelevant item can have, and the worst that a relevant one can.
            value = np.where(np.isnan(row), np.where(mine, -np.inf, np.inf), row)
            order = sorted(range(m), key=lambda i: (-value[i], bool(mine[i])))
            its = [place for place, i in enumerate(order, start=1) if mine[i]]
            expected += its
            counts.append(len(its))
        assert relevant.ranks.tolist() == expected
        assert relevant.counts.tolist() == counts
        best = ranks(places, np.ones((m, 1)), query_groups, item_groups, metric=Given())
        assert relevant.best.tolist() == best.tolist()


def test_the_first_of_the_relevant_ranks_is_the_rank(rng: np.random.Generator) -> None:
    queries, items = rng.standard_normal((50, 4)).astype(np.float32), rng.standard_normal((70, 4)).astype(np.float32)
    of_queries, of_items = rng.integers(0, 12, 50), rng.integers(0, 9, 70)
    relevant = relevant_ranks(queries, items, of_queries, of_items, metric=Cosine(), chunk_scores=200)
    expected = ranks(queries, items, of_queries, of_items, metric=Cosine())
    np.testing.assert_array_equal(relevant.best, expected)
    mask = of_queries == 3
    np.testing.assert_array_equal(relevant.where(mask).best, expected[mask])


def test_no_queries_have_no_ranks() -> None:
    relevant = ranked(np.empty((0, 3)), np.empty(0, np.int64), np.arange(3))
    assert (relevant.best.tolist(), relevant.ranks.tolist()) == ([], [])
    assert [per_query(relevant).tolist() for per_query in PER_QUERY.values()] == [[]] * len(PER_QUERY)


def test_a_k_beyond_the_items_finds_them_all(rng: np.random.Generator) -> None:
    relevant = ranked(rng.standard_normal((5, 4)), np.arange(5) % 2, np.arange(4) % 2)
    assert recall(relevant, 10**6).tolist() == found(relevant, 10**6).tolist() == [1.0] * 5
    assert (ndcg(relevant, 10**6) <= 1).all()


# Intervals and changes


def test_intervals_cover_the_truth_in_95_of_100() -> None:
    """Of 4 queries a group that succeed or fail together; drawing queries would cover about 65 of 100."""
    covered = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(60), 4)
        best = np.where(rng.random(60) < 0.4, 1.0, 50.0)[groups]
        relevant = RelevantRanks(best, np.ones(240, dtype=np.int64))
        estimate = bootstrap_mean(recall(relevant, 10), groups, seed=seed)
        covered += estimate.low <= 0.4 <= estimate.high
    assert 0.89 < covered / 150 < 0.99


def test_a_change_is_paired_by_key() -> None:
    before = asked([1.0, 0.0, 0.0, 1.0], keys="abcx")
    after = asked([1.0, 1.0, 0.0], keys="cby")
    result = change(before, after)
    assert (result.before, result.after, result.difference.value) == (0.0, 1.0, 1.0)
    assert (result.queries, result.only_before, result.only_after) == (2, 2, 1)
    assert result.significant


def test_pairing_finds_what_two_intervals_would_hide(rng: np.random.Generator) -> None:
    hard = rng.random(400)
    before = hard < 0.5
    lost = before & (rng.random(400) < 0.06)
    result = change(asked((before * 1.0).tolist()), asked(((before & ~lost) * 1.0).tolist()))
    assert result.difference.value == pytest.approx(-lost.mean())
    assert result.significant
    assert result.difference.high - result.difference.low < 0.05 < 2 * 1.96 * 0.5 / np.sqrt(400)


@pytest.mark.slow
def test_no_change_is_significant_in_about_5_of_100() -> None:
    wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(50), 2).astype(str).tolist()
        shared = rng.random(50).repeat(2)
        one, two = ((rng.random(100) < shared).astype(np.float64) for _ in range(2))
        keys = [str(i) for i in range(100)]
        result = change(
            PerQueryValues(keys, groups, one),
            PerQueryValues(keys, groups, two),
            seed=seed,
            replicates=300,
        )
        wrong += result.significant
    assert wrong / 200 < 0.12


@pytest.mark.slow
def test_a_drop_by_chance_has_a_small_p_value_as_rarely_as_it_says(rng: np.random.Generator) -> None:
    keys = list(map(str, range(80)))
    sides = (PerQueryValues(keys, keys, (rng.random(80) < 0.4).astype(float)) for _ in range(800))
    p_values = np.array([change(one, other, replicates=200).p_drop for one, other in zip(sides, sides, strict=True)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p_values <= level) == pytest.approx(level, abs=0.03 + level / 5)
    worse, better = (
        change(PerQueryValues(keys, keys, np.full(80, v)), PerQueryValues(keys, keys, np.linspace(0, 1, 80)))
        for v in (1.0, 0.0)
    )
    assert (worse.p_drop, better.p_drop) == (1 / 1001, 1.0)


@pytest.mark.parametrize("tests", [1, 8])
def test_holm_gives_one_false_alarm_or_more_in_5_of_100_families(tests: int, rng: np.random.Generator) -> None:
    families = rng.random((4000, tests))
    assert np.mean([any(holm(family)) for family in families]) == pytest.approx(0.05, abs=0.01)
    planted = np.concatenate([families[:, 1:], np.full((4000, 1), 1e-4)], axis=1)
    assert all(holm(family)[-1] for family in planted)
    assert np.mean([any(holm(family)[:-1]) for family in planted]) <= 0.06
    assert holm([]) == []


def test_a_median_may_be_infinite_before_and_after() -> None:
    never, once = asked([math.inf] * 5), asked([3.0] * 5)
    same = change(never, never, is_rank=True)
    assert (same.before, same.difference.value, same.significant) == (math.inf, 0.0, False)
    assert change(once, never, is_rank=True).difference.value == math.inf
    result = change(asked([4.0, 6.0, 8.0]), asked([1.0, 2.0, 3.0]), is_rank=True)
    assert (result.before, result.after, result.difference.value) == (6.0, 2.0, -4.0)


def test_a_harmonic_mean_of_two_kinds_changes_as_its_parts_do(rng: np.random.Generator) -> None:
    """By hand: groups of each kind are drawn apart, and the same ones of both audits."""
    kinds, groups = [], 6
    for n in (18, 24):
        names = [f"{row % groups}" for row in range(n)]
        kinds.append(
            tuple(
                PerQueryValues([f"{row}" for row in range(n)], names, rng.integers(0, 2, n).astype(np.float64))
                for _ in range(2)
            )
        )
    found = change_of_two(harmonic_mean, [(before, after) for before, after in kinds], seed=3, replicates=50)
    draws, differences = np.random.default_rng(3), []
    of_each = [draws.integers(groups, size=(50, groups)) for _ in kinds]
    for replicate in zip(*of_each, strict=True):
        means = []
        for pair, drawn in zip(kinds, replicate, strict=True):
            rows = [row for group in drawn for row, name in enumerate(pair[0].groups) if name == f"{group}"]
            means.append([audit.values[rows].mean() for audit in pair])
        (a, b), (c, d) = means
        differences.append(hmean([b, d]) - hmean([a, c]))
    low, high = np.quantile(differences, [0.025, 0.975], method="inverted_cdf")
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))
    assert found.before == pytest.approx(hmean([before.values.mean() for before, _ in kinds]))
    assert found.after == pytest.approx(hmean([after.values.mean() for _, after in kinds]))
    assert (found.queries, found.only_before, found.only_after) == (42, 0, 0)


def test_audits_without_a_common_query_have_no_change() -> None:
    with pytest.raises(MeasureError, match="share no query"):
        change(asked([1.0], keys="a"), asked([1.0], keys="b"))
