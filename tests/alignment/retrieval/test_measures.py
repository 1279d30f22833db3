import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import MeasureError
from alignment.metrics import Cosine, Dot
from alignment.retrieval.measures import Measure, PerQueryValues, by_stratum, change, measured
from alignment.retrieval.ranks import IntArray, RelevantRanks, ranks, relevant_ranks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its providers warn of syntax that Python will refuse some day
    import ir_measures

Matrix = npt.NDArray[np.floating]
KS = (1, 5, 10, 50)
EVERY = [Measure(name, k) for name in ("recall", "found", "ndcg") for k in KS]
EVERY += [Measure("r_precision"), Measure("mrr"), Measure("median_rank")]
THEIRS = {"recall": "Success@{}", "found": "R@{}", "ndcg": "nDCG@{}", "r_precision": "Rprec", "mrr": "RR"}


def ranked(scores: Matrix, query_groups: IntArray, item_groups: IntArray) -> RelevantRanks:
    """Ranks from a matrix of scores."""
    return relevant_ranks(scores, np.eye(scores.shape[1]), query_groups, item_groups, metric=Dot())


def theirs(measure: Measure, scores: Matrix, query_groups: IntArray, item_groups: IntArray) -> list[float]:
    """What ir-measures makes of the same scores, by query."""
    run = {f"q{q}": {f"d{d}": float(score) for d, score in enumerate(row)} for q, row in enumerate(scores)}
    qrels = {
        f"q{q}": {f"d{d}": 1 for d in np.flatnonzero(item_groups == group)} for q, group in enumerate(query_groups)
    }
    parsed = ir_measures.parse_measure(THEIRS[measure.name].format(measure.k))
    by_query = {metric.query_id: metric.value for metric in ir_measures.iter_calc([parsed], qrels, run)}
    return [by_query[f"q{q}"] for q in range(len(scores))]


def asked(values: list[float], keys: str = "", groups: str = "") -> PerQueryValues:
    names = list(keys) if keys else [f"q{i}" for i in range(len(values))]
    return PerQueryValues(names, list(groups) if groups else names, np.array(values))


# As values


@pytest.mark.parametrize("measure", EVERY, ids=str)
def test_a_measure_prints_and_parses(measure: Measure) -> None:
    assert Measure.parse(str(measure)) == measure
    assert hash(Measure.parse(str(measure))) == hash(measure)


@pytest.mark.parametrize(
    "text", ["", "recall", "recall@0", "recall@-1", "recall@x", "mrr@10", "map", "Recall@5", "recall@5 "]
)
def test_an_unknown_measure_is_refused(text: str) -> None:
    with pytest.raises(MeasureError, match="expected one of recall@K, found@K, ndcg@K, r_precision"):
        Measure.parse(text)


# Against ir-measures


@pytest.mark.parametrize("measure", [m for m in EVERY if m.name in THEIRS], ids=str)
def test_without_ties_every_query_is_measured_as_ir_measures_does(measure: Measure, rng: np.random.Generator) -> None:
    """To the last digit of every query; of a mean, to the order of the sum."""
    scores = rng.permuted(np.tile(np.arange(120.0), (60, 1)), axis=1)
    query_groups, item_groups = rng.integers(0, 15, 60), np.arange(120) % 15
    ours = measure.per_query(ranked(scores, query_groups, item_groups))
    expected = theirs(measure, scores, query_groups, item_groups)
    assert ours.tolist() == expected
    assert ours.mean() == pytest.approx(np.mean(expected), rel=1e-15)


@pytest.mark.parametrize("measure", [m for m in EVERY if m.name in THEIRS], ids=str)
def test_ties_never_flatter(measure: Measure, rng: np.random.Generator) -> None:
    """ir-measures breaks a tie by the name of the item, so half of them to the good; here all are to the bad."""
    scores = rng.integers(0, 8, (60, 120)).astype(np.float64)
    query_groups, item_groups = rng.integers(0, 15, 60), np.arange(120) % 15
    ours = measure.per_query(ranked(scores, query_groups, item_groups))
    expected = np.array(theirs(measure, scores, query_groups, item_groups))
    assert (ours <= expected + 1e-12).all()
    relevant = query_groups[:, None] == item_groups[None, :]
    worst = theirs(measure, scores - 0.5 * relevant, query_groups, item_groups)  # the ties, resolved to the bad
    assert ours.tolist() == worst


def test_a_query_without_relevant_items_is_a_miss_and_is_counted(rng: np.random.Generator) -> None:
    scores, groups = rng.permuted(np.tile(np.arange(9.0), (4, 1)), axis=1), np.array([0, 1, 2, 7])
    found = ranked(scores, groups, np.arange(9) % 3)
    for measure in EVERY:
        result = measured(measure, found, groups)
        assert (result.queries, result.without_relevant, result.groups) == (4, 1, 4)
        values = measure.per_query(found)
        assert values[3] == (math.inf if measure.name == "median_rank" else 0.0)
        if measure.name in THEIRS:
            kept = theirs(measure, scores[:3], groups[:3], np.arange(9) % 3)
            assert result.estimate.value == pytest.approx(sum(kept) / 4, rel=1e-15)


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
        found = relevant_ranks(places, np.empty((m, 1)), query_groups, item_groups, metric=Given(), chunk_scores=chunk)
        expected, counts = [], []
        for row, group in zip(scores, query_groups, strict=True):
            mine = item_groups == group
            # NaN is the best that an irrelevant item can have, and the worst that a relevant one can.
            value = np.where(np.isnan(row), np.where(mine, -np.inf, np.inf), row)
            order = sorted(range(m), key=lambda i: (-value[i], bool(mine[i])))
            its = [place for place, i in enumerate(order, start=1) if mine[i]]
            expected += its
            counts.append(len(its))
        assert found.ranks.tolist() == expected
        assert found.counts.tolist() == counts
        best = ranks(places, np.empty((m, 1)), query_groups, item_groups, metric=Given())
        assert found.best.tolist() == best.tolist()


def test_the_first_of_the_relevant_ranks_is_the_rank(rng: np.random.Generator) -> None:
    queries, items = rng.standard_normal((50, 4)).astype(np.float32), rng.standard_normal((70, 4)).astype(np.float32)
    of_queries, of_items = rng.integers(0, 12, 50), rng.integers(0, 9, 70)
    found = relevant_ranks(queries, items, of_queries, of_items, metric=Cosine(), chunk_scores=200)
    expected = ranks(queries, items, of_queries, of_items, metric=Cosine())
    np.testing.assert_array_equal(found.best, expected)
    mask = of_queries == 3
    np.testing.assert_array_equal(found.where(mask).best, expected[mask])


def test_no_queries_have_no_ranks() -> None:
    found = ranked(np.empty((0, 3)), np.empty(0, np.int64), np.arange(3))
    assert (found.best.tolist(), found.ranks.tolist()) == ([], [])
    with pytest.raises(MeasureError, match="mrr of no queries"):
        measured(Measure("mrr"), found, np.empty(0, np.int64))


def test_a_k_beyond_the_items_finds_them_all(rng: np.random.Generator) -> None:
    found = ranked(rng.standard_normal((5, 4)), np.arange(5) % 2, np.arange(4) % 2)
    for name in ("recall", "found"):
        assert Measure(name, 10**6).per_query(found).tolist() == [1.0] * 5
    assert (Measure("ndcg", 10**6).per_query(found) <= 1).all()


# Intervals, strata, changes


def test_intervals_cover_the_truth_in_95_of_100() -> None:
    """Of 4 queries a group that succeed or fail together; drawing queries would cover about 65 of 100."""
    covered = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(60), 4)
        best = np.where(rng.random(60) < 0.4, 1.0, 50.0)[groups]
        found = RelevantRanks(best, np.ones(240, dtype=np.int64))
        estimate = measured(Measure("recall", 10), found, groups, seed=seed).estimate
        covered += estimate.low <= 0.4 <= estimate.high
    assert 0.89 < covered / 150 < 0.99


def test_strata_add_up_to_the_whole(rng: np.random.Generator) -> None:
    groups = rng.integers(0, 20, 90)
    found = ranked(rng.standard_normal((90, 40)), groups, np.arange(40) % 25)
    language = rng.choice(np.array(["de", "en", ""]), 90).tolist()
    values = [name or None for name in language]
    for measure in EVERY[:-1]:
        whole, strata = measured(measure, found, groups), by_stratum(measure, found, groups, values)
        assert set(strata) == {"de", "en", None}
        sizes = [stratum.queries for stratum in strata.values()]
        assert sizes == sorted(sizes, reverse=True)
        total = sum(stratum.estimate.value * stratum.queries for stratum in strata.values())
        assert total / 90 == pytest.approx(whole.estimate.value, rel=1e-12)
        own = measure.per_query(found)[[value == "de" for value in values]]
        assert strata["de"].estimate.value == pytest.approx(own.mean(), rel=1e-12)


def test_a_change_is_paired_by_key() -> None:
    before = asked([1.0, 0.0, 0.0, 1.0], keys="abcx")
    after = asked([1.0, 1.0, 0.0], keys="cby")
    found = change(Measure("recall", 5), before, after)
    assert (found.before, found.after, found.difference.value) == (0.0, 1.0, 1.0)
    assert (found.queries, found.only_before, found.only_after) == (2, 2, 1)
    assert found.significant


def test_pairing_finds_what_two_intervals_would_hide(rng: np.random.Generator) -> None:
    hard = rng.random(400)
    before = hard < 0.5
    lost = before & (rng.random(400) < 0.06)
    found = change(Measure("recall", 10), asked((before * 1.0).tolist()), asked(((before & ~lost) * 1.0).tolist()))
    assert found.difference.value == pytest.approx(-lost.mean())
    assert found.significant
    assert found.difference.high - found.difference.low < 0.05 < 2 * 1.96 * 0.5 / np.sqrt(400)


def test_no_change_is_significant_in_about_5_of_100() -> None:
    wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(50), 2).astype(str).tolist()
        shared = rng.random(50).repeat(2)
        one, two = ((rng.random(100) < shared).astype(np.float64) for _ in range(2))
        keys = [str(i) for i in range(100)]
        result = change(
            Measure("mrr"),
            PerQueryValues(keys, groups, one),
            PerQueryValues(keys, groups, two),
            seed=seed,
            replicates=300,
        )
        wrong += result.significant
    assert wrong / 200 < 0.12


def test_a_median_may_be_infinite_before_and_after() -> None:
    median = Measure("median_rank")
    never, once = asked([math.inf] * 5), asked([3.0] * 5)
    same = change(median, never, never)
    assert (same.before, same.difference.value, same.significant) == (math.inf, 0.0, False)
    assert change(median, once, never).difference.value == math.inf
    found = change(median, asked([4.0, 6.0, 8.0]), asked([1.0, 2.0, 3.0]))
    assert (found.before, found.after, found.difference.value) == (6.0, 2.0, -4.0)


def test_audits_without_a_common_query_have_no_change() -> None:
    with pytest.raises(MeasureError, match="share no query"):
        change(Measure("mrr"), asked([1.0], keys="a"), asked([1.0], keys="b"))
