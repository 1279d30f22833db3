from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr, softmax

from alignment.errors import VectorError
from alignment.metrics import METRICS, ChiSquare, Hellinger, JensenShannon, Metric, Rescored, parse
from alignment.metrics import arrays as arrays_module
from alignment.metrics.divergences import MAPS, Divergence
from alignment.metrics.kullback_leibler import SQUARED_LENGTH, Kullback
from alignment.metrics.lowering import SPREAD
from alignment.vectors import l2_normalize
from tests.support.errors import raises

Matrix = npt.NDArray[np.floating]

EVERY = [replace(m, map=map_) for m in METRICS.values() if isinstance(m, Divergence) for map_ in MAPS]
every_divergence = pytest.mark.parametrize("metric", EVERY, ids=str)
every_certificate = pytest.mark.parametrize("metric", [m for m in EVERY if isinstance(m.lower(4), Rescored)], ids=str)


def signed(metric: Divergence, X: Matrix) -> npt.NDArray[np.float32]:
    return l2_normalize(np.abs(X) if metric.map == "l1" else X)


# From vectors to distributions


@every_divergence
def test_distributions_are_not_negative_and_sum_to_one(metric: Divergence, rng: np.random.Generator) -> None:
    P = metric.distributions(signed(metric, rng.standard_normal((9, 7))).astype(np.float64))
    assert P.shape == (9, metric.width(7))
    assert (P >= 0).all()
    np.testing.assert_allclose(P.sum(axis=1), 1.0, rtol=1e-14)


def test_the_maps_are_their_formulas(rng: np.random.Generator) -> None:
    z = rng.standard_normal((4, 6))
    positive, negative = np.where(z > 0, z, 0), np.where(z < 0, -z, 0)
    absolute = np.abs(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ChiSquare().distributions(z), np.hstack([positive, negative]) / absolute, rtol=1e-14)
    np.testing.assert_allclose(ChiSquare("softmax").distributions(z), softmax(z, axis=1), rtol=1e-13)
    np.testing.assert_allclose(ChiSquare("l1").distributions(abs(z)), abs(z) / absolute, rtol=1e-14)


def test_split_loses_nothing_of_a_vector_but_its_length(rng: np.random.Generator) -> None:
    z = rng.standard_normal((4, 6))
    P = ChiSquare().distributions(z)
    back = P[:, :6] - P[:, 6:]
    np.testing.assert_allclose(back / np.linalg.norm(back, axis=1, keepdims=True), l2_normalize(z), atol=1e-7)


@every_divergence
@pytest.mark.parametrize("scale", [1e-30, 0.25, 1e30])
def test_only_softmax_minds_the_length_of_vectors(metric: Divergence, scale: float, rng: np.random.Generator) -> None:
    q, x = (signed(metric, rng.standard_normal((n, 6))).astype(np.float64) for n in (3, 4))
    same = np.allclose(metric.score(q * scale, x), metric.score(q, x), rtol=1e-12)
    assert same == (metric.map != "softmax")


@every_divergence
def test_softmax_of_large_vectors_does_not_overflow(metric: Divergence) -> None:
    z = np.array([[1000.0, 0.0], [0.0, 1000.0], [999.0, 999.0]])
    assert np.isfinite(metric.score(z, z)).all()


def callers(metric: Divergence) -> list[Callable[[Matrix], Any]]:
    """Everything that takes vectors and turns them into distributions."""
    sound = np.ones((2, 3))
    lowering = metric.lower(3)
    return [lambda X: metric.score(X, sound), lambda X: metric.score(sound, X), lowering.item, lowering.query]


@every_divergence
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_vectors_without_a_distribution_are_refused_by_row(metric: Divergence, dtype: type[np.floating]) -> None:
    X = np.ones((5, 3), dtype)
    X[[1, 4]] = 0.0
    for call in callers(metric):
        if metric.map == "softmax":
            call(X)
            continue
        with raises(VectorError, metric, f"map {metric.map}", "2 of 5", "row 1", "map=split"):
            call(X)


@every_divergence
@pytest.mark.parametrize("least", [-1e-30, -1.0])
def test_negative_values_are_refused_where_they_are_not_mapped(metric: Divergence, least: float) -> None:
    """However small: nothing is clipped."""
    X = np.ones((4, 3))
    X[2:, 1] = least
    for call in callers(metric):
        if metric.map != "l1":
            call(X)
            continue
        with raises(VectorError, metric, "map l1", "2 of 4", "row 2", "map=split"):
            call(X)


@every_divergence
def test_zeros_of_either_sign_are_zeros(metric: Divergence) -> None:
    X, Y = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[1.0, -0.0], [0.5, 0.5]])
    np.testing.assert_array_equal(metric.score(X, Y), metric.score(X, X))
    np.testing.assert_array_equal(metric.lower(2).item(Y), metric.lower(2).item(X))


@every_divergence
def test_in_training_what_has_no_distribution_has_none(metric: Divergence) -> None:
    X = torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    P = metric.distributions(X)
    expected = {"split": [0.0] * 4, "l1": [0.0] * 2, "softmax": [0.5] * 2}[metric.map]
    assert P[0].tolist() == expected
    np.testing.assert_allclose(P[1], metric.distributions(X.numpy()[1:])[0], rtol=1e-14)


# What they are


@every_divergence
def test_nothing_scores_above_equal_vectors_which_score_zero(metric: Divergence, rng: np.random.Generator) -> None:
    X = signed(metric, rng.standard_normal((8, 5))).astype(np.float64)
    scores = metric.score(X, X)
    np.testing.assert_allclose(np.diagonal(scores), 0.0, atol=1e-15)
    assert (scores <= 1e-15).all()


@pytest.mark.parametrize("map_", MAPS)
def test_all_but_kullback_are_symmetric_and_kullback_has_both_ways(map_: str, rng: np.random.Generator) -> None:
    metrics = {m.name: m for m in EVERY if m.map == map_}
    q, x = (np.abs(rng.standard_normal((n, 5))) for n in (4, 3))
    for name in ("chi2", "js", "hellinger"):
        np.testing.assert_allclose(metrics[name].score(q, x), metrics[name].score(x, q).T, rtol=1e-12)
    forth, back = metrics["kl-query-item"], metrics["kl-item-query"]
    np.testing.assert_allclose(forth.score(q, x), back.score(x, q).T, rtol=1e-12)
    assert not np.allclose(forth.score(q, x), back.score(q, x), rtol=1e-3)


def test_ranges_are_attained_by_distributions_apart() -> None:
    q, x = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(parse("chi2").score(q, x), -2.0)
    np.testing.assert_allclose(parse("hellinger").score(q, x), -1.0)
    np.testing.assert_allclose(parse("js").score(q, x), -np.log(2))


@pytest.mark.parametrize("smoothing", [1e-6, 0.1, 0.9])
@pytest.mark.parametrize("name", ["kl-query-item", "kl-item-query"])
def test_smoothing_mixes_with_the_uniform_distribution(name: str, smoothing: float) -> None:
    metric = replace(METRICS[name], map="l1", smoothing=smoothing)  # type: ignore[call-arg]
    assert isinstance(metric, Kullback)
    q, x = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.5, 0.5])
    a, b = ((1 - smoothing) * p + smoothing / 3 for p in (q, x))
    expected = rel_entr(a, b).sum() if name == "kl-query-item" else rel_entr(b, a).sum()
    np.testing.assert_allclose(metric.score(q[None], x[None]), -expected, rtol=1e-12)
    np.testing.assert_allclose(metric.relative(q[None]), 3 * a[None], rtol=1e-14)


def test_items_of_kullback_have_one_length_that_queries_do_not_see(rng: np.random.Generator) -> None:
    """The largest products of items are then those of the nearest, and a walk along the graph goes the right way."""
    metric = parse("kl-item-query")
    lowering, X = metric.lower(64), l2_normalize(rng.standard_normal((40, 64)))
    items, queries = lowering.item(X).astype(np.float64), lowering.query(X)
    np.testing.assert_allclose((items**2).sum(axis=1), SQUARED_LENGTH, rtol=1e-5)
    assert not queries[:, -SPREAD:].any()
    peaked = lowering.item(np.eye(64)[:1])  # longer than that: the column is empty, the score is right all the same
    assert not peaked[:, -SPREAD:].any()
    offset = lowering.offset(X)
    assert offset is not None
    raw = queries.astype(np.float64) @ peaked[0]
    np.testing.assert_allclose(raw + offset, metric.score(X.astype(np.float64), np.eye(64)[:1])[:, 0], rtol=1e-5)


def test_chunks_of_items_do_not_matter(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    q, x = rng.standard_normal((3, 5)), rng.standard_normal((11, 5))
    whole = {metric: metric.score(q, x) for metric in EVERY if metric.map != "l1"}
    monkeypatch.setattr(arrays_module, "ITEMS_AT_ONCE", 4)
    for metric, scores in whole.items():
        np.testing.assert_array_equal(metric.score(q, x), scores)


# The certificate


def histograms(rows: int) -> st.SearchStrategy[Matrix]:
    """Distributions (rows, 6), many of them sparse, flat, equal, or with values of very different sizes."""
    values = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-3, 1e-8, 1e-15]))
    return arrays(np.float64, (rows, 6), elements=values).filter(lambda X: bool((X.sum(axis=1) > 1e-3).all()))


def hellinger_squared(X: Matrix) -> float:
    return float(Hellinger("l1").score(X[:1], X[1:])[0, 0] ** 2)


@given(histograms(2))
def test_chi_square_lies_between_two_and_four_squares_of_hellinger(X: Matrix) -> None:
    chi2, H2 = -float(ChiSquare("l1").score(X[:1], X[1:])[0, 0]), hellinger_squared(X)
    assert 2 * H2 * (1 - 1e-12) - 1e-15 <= chi2 <= 4 * H2 * (1 + 1e-12) + 1e-15


@given(histograms(2))
def test_jensen_shannon_lies_between_log_two_of_it_and_the_square_of_hellinger(X: Matrix) -> None:
    js, H2 = -float(JensenShannon("l1").score(X[:1], X[1:])[0, 0]), hellinger_squared(X)
    assert np.log(2) * H2 * (1 - 1e-12) - 1e-15 <= js <= H2 * (1 + 1e-12) + 1e-15


@pytest.mark.parametrize(
    ("metric", "least", "most"), [(ChiSquare("l1"), 2.0, 4.0), (JensenShannon("l1"), np.log(2), 1)]
)
def test_no_constants_would_be_closer(metric: Divergence, least: float, most: float) -> None:
    """Distributions apart attain one bound, distributions that approach each other come as near as one likes."""
    apart, close = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.5, 0.5], [0.5 + 1e-4, 0.5 - 1e-4]])
    assert -metric.score(apart[:1], apart[1:])[0, 0] / hellinger_squared(apart) == pytest.approx(least, rel=1e-14)
    assert -metric.score(close[:1], close[1:])[0, 0] / hellinger_squared(close) == pytest.approx(most, rel=1e-6)
    lowering = metric.lower(2)
    assert isinstance(lowering, Rescored)
    bound = lowering.bound(1.0)
    assert bound == pytest.approx(-least, rel=1e-4)
    assert bound is not None
    assert -least <= bound


@given(histograms(3))
def test_hellinger_and_the_root_of_jensen_shannon_are_distances(X: Matrix) -> None:
    for distances in (-Hellinger("l1").score(X, X), np.sqrt(-JensenShannon("l1").score(X, X))):
        assert distances[0, 2] <= distances[0, 1] + distances[1, 2] + 1e-7


def euclid(asked: Matrix, stored: Matrix) -> npt.NDArray[np.float32]:
    raw = np.sqrt(((asked[None] - stored) ** 2).sum(axis=1))
    assert raw.dtype == np.float32
    return np.asarray(raw)


def clusters(rng: np.random.Generator) -> Matrix:
    centres = rng.standard_normal((10, 24))
    return centres[rng.integers(10, size=400)] + 0.2 * rng.standard_normal((400, 24))


def sparse(rng: np.random.Generator) -> Matrix:
    X = rng.standard_normal((400, 24)) * (rng.random((400, 24)) < 0.15)
    X[np.arange(400), rng.integers(24, size=400)] += 1.0
    return X


def wide(rng: np.random.Generator) -> Matrix:
    return rng.choice([-1.0, 1.0], (400, 24)) * 10.0 ** rng.uniform(-12, 0, (400, 24))


@every_certificate
@pytest.mark.parametrize("make", [clusters, sparse, wide], ids=lambda make: make.__name__)
def test_scanning_until_the_bound_finds_the_true_first_ten(
    metric: Divergence, make: Callable[[np.random.Generator], Matrix], rng: np.random.Generator
) -> None:
    X = signed(metric, make(rng))
    items, queries = X[10:], X[:10]
    lowering = metric.lower(24)
    assert isinstance(lowering, Rescored)
    truth = metric.score(queries.astype(np.float64), items.astype(np.float64))
    for query, asked, scores in zip(queries, lowering.query(queries), truth, strict=True):
        raw = euclid(asked, lowering.item(items))
        order = np.argsort(raw, kind="stable")
        own = lowering.rescore(query, items[order])  # in float32, as it is when served
        for seen in range(10, len(items) + 1):
            kth = np.sort(own[:seen])[-10]
            bound = lowering.bound(float(raw[order[seen - 1]]))
            assert bound is not None
            if bound <= kth:
                break
        found = order[:seen][np.argsort(-own[:seen], kind="stable")[:10]]
        np.testing.assert_allclose(scores[found], -np.sort(-scores)[:10], rtol=2e-6, atol=1e-7)
        assert metric.map == "softmax" or seen < len(items)  # flat distributions: nothing is proved early


@pytest.mark.parametrize("name", ["chi2", "js"])
def test_the_certificate_survives_the_crudest_sum(name: str, rng: np.random.Generator) -> None:
    """Added one by one in float32, thousands of equal terms round to the same side: distances come out too long."""
    metric = METRICS[name]
    lowering = metric.lower(4096)
    assert isinstance(lowering, Rescored)
    for _ in range(60):
        q, x = np.zeros(4096), np.zeros(4096)
        q[: rng.integers(1, 4096)], x[rng.integers(0, 4096) :] = 1.0, 1.0
        query, item = l2_normalize(q[None]), l2_normalize(x[None])
        squares = (lowering.query(query)[0] - lowering.item(item)[0]) ** 2
        bound = lowering.bound(float(np.sqrt(np.cumsum(squares, dtype=np.float32)[-1])))
        assert bound is not None
        assert metric.score(query.astype(np.float64), item.astype(np.float64))[0, 0] <= bound
        assert metric.score(query, item)[0, 0] <= bound


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-5])
def test_jensen_shannon_of_close_float32_vectors_is_no_noise(apart: float, rng: np.random.Generator) -> None:
    """Its terms cancel: in float32 a divergence of 1e-8 would be wrong by more than itself."""
    X = l2_normalize(rng.standard_normal(32) + apart * rng.standard_normal((40, 32)))
    exact = JensenShannon().score(X[:1].astype(np.float64), X[1:].astype(np.float64))
    np.testing.assert_allclose(JensenShannon().score(X[:1], X[1:]), exact, rtol=1e-6)


@pytest.mark.parametrize("metric", [ChiSquare(), JensenShannon(), Hellinger()], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_least_numbers_there_are_count_as_next_to_nothing(metric: Metric, dtype: type[np.floating]) -> None:
    """Half of the least number is zero: a mean of it and zero has to be kept out of denominators."""
    least = np.finfo(dtype).smallest_subnormal
    X = np.array([[1.0, least, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, least]], dtype)
    np.testing.assert_allclose(metric.score(X, X), 0.0, atol=1e-20)
