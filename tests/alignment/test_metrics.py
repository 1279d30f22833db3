import pickle
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import distance

from alignment.errors import MetricError
from alignment.metrics import METRICS, Distance, Metric, parse

Pairwise = Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], float]

# What each metric means, from another library or in a line of its own: a new metric needs a line here.
REFERENCES: dict[str, Pairwise] = {
    "cosine": lambda q, x: 1.0 - distance.cosine(q, x),
    "dot": lambda q, x: sum(a * b for a, b in zip(q, x, strict=True)),
    "euclid": lambda q, x: -distance.euclidean(q, x),
    "manhattan": lambda q, x: -distance.cityblock(q, x),
}
# How Qdrant compares: https://qdrant.tech/documentation/concepts/collections/
NATIVE: dict[Distance, Pairwise] = {
    Distance.COSINE: lambda q, x: float(q @ x / np.sqrt((q @ q) * (x @ x))),
    Distance.DOT: lambda q, x: float(q @ x),
    Distance.EUCLID: lambda q, x: float(np.sqrt(((q - x) ** 2).sum())),
    Distance.MANHATTAN: lambda q, x: float(np.abs(q - x).sum()),
}

every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=str)


def loops(
    pairwise: Pairwise, queries: npt.NDArray[np.floating], items: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    q, x = queries.astype(np.float64), items.astype(np.float64)
    return np.array([[pairwise(a, b) for b in x] for a in q])


def test_every_metric_has_a_reference() -> None:
    assert REFERENCES.keys() == METRICS.keys()


@every_metric
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_scores_equal_the_reference(
    metric: Metric, dtype: type[np.floating], tolerance: float, rng: np.random.Generator
) -> None:
    queries, items = (rng.standard_normal((n, 17)).astype(dtype) for n in (7, 11))
    scores = metric.score(queries, items)
    assert scores.shape == (7, 11)
    assert scores.dtype == dtype
    np.testing.assert_allclose(scores, loops(REFERENCES[str(metric)], queries, items), rtol=tolerance, atol=tolerance)


@every_metric
def test_close_vectors_far_from_the_origin_keep_their_order(metric: Metric) -> None:
    """|q|^2 + |x|^2 - 2qx would lose these differences to rounding."""
    items = np.float32(1000.0) + np.array([[0.0], [0.125], [0.25], [0.5]], np.float32) * np.ones((1, 8), np.float32)
    scores = metric.score(items[:1], items)[0]
    reference = loops(REFERENCES[str(metric)], items[:1], items)[0]
    if str(metric) in ("euclid", "manhattan"):
        np.testing.assert_allclose(scores, reference, rtol=1e-6)
        assert scores.argmax() == 0
    else:
        np.testing.assert_allclose(scores, reference, rtol=1e-6)


@every_metric
def test_a_metric_prints_and_parses_back(metric: Metric) -> None:
    assert parse(str(metric)) == metric
    assert str(metric) == metric.name


@every_metric
def test_equal_metrics_hash_alike_and_survive_pickling(metric: Metric) -> None:
    copy = pickle.loads(pickle.dumps(metric))
    assert copy == metric
    assert hash(copy) == hash(metric)
    assert {metric: 1}[copy] == 1


def test_no_two_metrics_are_equal() -> None:
    assert len(set(METRICS.values())) == len(METRICS)
    assert {str(metric) for metric in METRICS.values()} == set(METRICS)


@every_metric
def test_a_metric_is_a_value(metric: Metric) -> None:
    with pytest.raises((AttributeError, TypeError)):
        metric.name = "other"  # type: ignore[misc]


@every_metric
def test_the_closer_item_scores_higher(metric: Metric) -> None:
    query = np.array([[1.0, 0.0]])
    close, far = np.array([[0.8, 0.6]]), np.array([[-0.6, 0.8]])
    assert metric.score(query, close)[0, 0] > metric.score(query, far)[0, 0]


@every_metric
def test_a_unit_vector_is_its_own_best_match(metric: Metric, rng: np.random.Generator) -> None:
    X = rng.standard_normal((20, 6))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    assert metric.score(X, X).argmax(axis=1).tolist() == list(range(20))


@every_metric
def test_no_queries_or_no_items_give_no_scores(metric: Metric) -> None:
    assert metric.score(np.empty((0, 3)), np.ones((2, 3))).shape == (0, 2)
    assert metric.score(np.ones((2, 3)), np.empty((0, 3))).shape == (2, 0)


@every_metric
def test_the_lowering_keeps_the_order_and_gives_the_score_back(metric: Metric, rng: np.random.Generator) -> None:
    """What Qdrant answers over lowered vectors, turned into a score, is the score of the metric itself."""
    queries, items = rng.standard_normal((5, 9)), rng.standard_normal((13, 9))
    lowering = metric.lower(9)
    stored, asked = lowering.item(items), lowering.query(queries)
    assert stored.shape == (13, lowering.dim)
    assert asked.shape == (5, lowering.dim)
    raw = loops(NATIVE[lowering.distance], asked, stored)
    own = metric.score(queries, items)
    best_first = np.argsort(-raw if lowering.distance.higher_is_better else raw, axis=1)
    if lowering.exact:
        assert best_first.tolist() == np.argsort(-own, axis=1).tolist()
        np.testing.assert_allclose(np.vectorize(lowering.score)(raw), own, rtol=1e-9, atol=1e-12)


@every_metric
def test_a_lowering_is_a_value_with_a_version(metric: Metric) -> None:
    assert metric.lower(9) == metric.lower(9)
    assert metric.lower(9) != metric.lower(10)
    assert metric.lower(9).version >= 1


@pytest.mark.parametrize(
    ("name", "native"), [("cosine", "Cosine"), ("dot", "Dot"), ("euclid", "Euclid"), ("manhattan", "Manhattan")]
)
def test_native_metrics_lower_to_the_distance_of_their_name(name: str, native: str) -> None:
    lowering = parse(name).lower(4)
    assert (lowering.distance, str(lowering.distance), lowering.dim, lowering.exact) == (native, native, 4, True)


def test_qdrant_spells_its_distances_this_way() -> None:
    from qdrant_client.models import Distance as QdrantDistance

    assert {d.value for d in Distance} == {d.value for d in QdrantDistance}


@pytest.mark.parametrize(("distance_", "sign"), [("Cosine", 1), ("Dot", 1), ("Euclid", -1), ("Manhattan", -1)])
def test_distances_are_negated_into_scores_and_similarities_are_not(distance_: str, sign: int) -> None:
    metric = next(m for m in METRICS.values() if m.lower(2).distance == distance_)
    assert metric.lower(2).score(0.25) == 0.25 * sign
    assert Distance(distance_).higher_is_better == (sign > 0)


@given(st.text().filter(lambda text: text not in METRICS))
def test_an_unknown_metric_is_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(MetricError) as caught:
        parse(text)
    assert str(caught.value) == f"unknown metric {text!r}; expected one of {', '.join(METRICS)}"
    assert caught.value.__cause__ is None
