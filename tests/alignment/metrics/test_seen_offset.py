from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from alignment.errors import MetricError
from alignment.metrics import (
    METRICS,
    Cosine,
    Distance,
    Dot,
    Euclid,
    LearnedMetric,
    Lowering,
    Metric,
    Nnn,
    Rescored,
    SeenOffset,
    parse,
)
from alignment.metrics.lowering import SPREAD
from alignment.metrics.seen_offset import LARGEST, is_squared, with_seen
from alignment.vectors import l2_normalize
from tests.support.errors import raises
from tests.support.metrics import (
    DIM,
    EVERY,
    UNBOUND,
    Matrix,
    Vector,
    doubled,
    drawn,
    hard_sets,
    made,
    native,
    rounding,
    some,
)

Mask = npt.NDArray[np.bool_]

every_metric = pytest.mark.parametrize("metric", EVERY, ids=str)
every_unbound = pytest.mark.parametrize("metric", UNBOUND, ids=str)
offsets = st.one_of(st.sampled_from([0.0, 1e-9, 0.02, 0.4, 3.0, LARGEST]), st.floats(0, 2))
# Everything seen, nothing, or some of it.
masks = st.one_of(st.sampled_from([[True] * 16, [False] * 16]), st.lists(st.booleans(), min_size=16, max_size=16)).map(
    np.array
)


def with_offset(metric: Metric, own: Vector, offset: float, seen: Mask) -> Vector:
    """What the table at the top of the module says of scores (n, m) and who was seen (m,), in loops."""
    squared = metric.name in ("euclid", "hellinger")

    def one(score: float, taken: float) -> float:
        return -float(np.sqrt(score**2 + taken)) if squared else score - taken

    rows = [[one(s, offset if was else 0.0) for s, was in zip(row, seen, strict=True)] for row in own]
    return np.array(rows).reshape(own.shape)


def float64_scores(metric: Metric, queries: Matrix, items: Matrix) -> Vector:
    return np.asarray(metric.score(queries.astype(np.float64), items.astype(np.float64)), np.float64)


@every_metric
@pytest.mark.parametrize("offset", [0.0, 0.3, 40.0])
def test_an_offset_is_taken_off_the_scores_of_seen_items_alone(
    metric: Metric, offset: float, rng: np.random.Generator
) -> None:
    queries, items, seen = some(metric, rng, 4), some(metric, rng, 6), rng.random(6) < 0.5
    scores = SeenOffset(metric, offset).score(queries, with_seen(items, seen))
    expected = with_offset(metric, np.asarray(metric.score(queries, items)), offset, seen)
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scores[:, ~seen], metric.score(queries, items)[:, ~seen], rtol=1e-12)


@every_metric
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-6)])
def test_scores_from_tensors_are_the_same(
    metric: Any, dtype: type[np.floating], tolerance: float, rng: np.random.Generator
) -> None:
    queries, items = (some(metric, rng, n).astype(dtype) for n in (5, 7))
    items[:5] = queries
    items = with_seen(items, rng.random(7) < 0.5)
    of_tensors = SeenOffset(doubled(metric) if dtype == np.float64 else metric, 0.7)
    scores = of_tensors.score(torch.from_numpy(queries), torch.from_numpy(items)).detach().numpy()
    assert scores.dtype == items.dtype == dtype
    np.testing.assert_allclose(scores, SeenOffset(metric, 0.7).score(queries, items), rtol=tolerance, atol=tolerance)


@every_metric
def test_gradients_between_equal_vectors_are_finite(metric: Metric, rng: np.random.Generator) -> None:
    X = torch.from_numpy(some(metric, rng, 4).astype(np.float32))
    q, x = X.clone().requires_grad_(), with_seen(X, [1, 0, 1, 0]).requires_grad_()
    for offset in (0.0, 0.5):
        SeenOffset(metric, offset).score(q, x).sum().backward()  # type: ignore[no-untyped-call]
        assert q.grad is not None
        assert x.grad is not None
        assert torch.isfinite(q.grad).all()
        assert torch.isfinite(x.grad[:, :-1]).all()


@pytest.mark.slow
@every_metric
@settings(max_examples=40)
@given(st.one_of(made, drawn), offsets, masks)
def test_what_qdrant_finds_over_lowered_vectors_is_in_the_order_with_the_offset(
    metric: Metric, X: Matrix, offset: float, seen: Mask
) -> None:
    """Exact: the order, the scores and the metric's own. Rescored: nothing left out scores above the bound."""
    queries, plain = hard_sets(metric, X)
    seen = seen[: len(plain)]
    items = with_seen(plain, seen)
    lowered = SeenOffset(metric, offset)
    lowering = lowered.lower(DIM)
    stored, sent = lowering.item(items), lowering.query(queries)
    for vectors, rows in ((stored, items), (sent, queries)):
        assert vectors.shape == (len(rows), lowering.dim)
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all()
    own = float64_scores(metric, queries, plain)
    ranked = with_offset(metric, own, offset, seen)
    raw = native(lowering.distance, sent, stored)
    if isinstance(lowering, Rescored):
        check_bounds(lowered, lowering, queries, items, raw, ranked)
        return
    off = rounding(metric, lowering, sent, stored) + 1e-12
    shifts = lowering.offset(queries)
    shifts = np.zeros(len(queries)) if shifts is None else shifts
    scores = np.array(
        [[lowering.score(float(r), float(s)) for r in row] for row, s in zip(raw, shifts, strict=True)]
    ).reshape(own.shape)
    assert (np.abs(scores - ranked) <= off).all()
    order = np.argsort(-raw if lowering.distance.higher_is_better else raw, axis=1, kind="stable")
    slack = 2 * off.max(initial=0.0)
    assert (np.diff(np.take_along_axis(ranked, order, axis=1), axis=1) <= slack).all()
    taken = np.array(
        [[lowering.taken_off(s, seen=bool(was)) for s, was in zip(row, seen, strict=True)] for row in scores]
    )
    taken = taken.reshape(own.shape)
    assert (taken >= 0).all()
    assert not taken[:, ~seen].any()
    if is_squared(metric, DIM):  # what a root loses near 0 shows in its square
        assert (np.abs((scores + taken) ** 2 - own**2) <= off * (2 * np.abs(ranked) + off)).all()
    else:
        assert (np.abs(scores + taken - own) <= off).all()


def check_bounds(
    metric: SeenOffset, lowering: Rescored, queries: Matrix, items: Matrix, raw: Matrix, ranked: Vector
) -> None:
    for row, query in enumerate(queries):
        close = 5e-6 * max(1.0, metric.offset)
        served = lowering.rescore(query, items)
        np.testing.assert_allclose(served, ranked[row], rtol=5e-6, atol=close)
        for tail in raw[row].tolist():
            bound = lowering.bound(tail)
            assert (bound is None) == (metric.base.name == "mlp")
            left = raw[row] <= tail if lowering.distance.higher_is_better else raw[row] >= tail
            assert bound is None or (ranked[row, left] <= bound).all()
            assert bound is None or (served[left] <= bound).all()


@pytest.mark.parametrize("name", ["chi2", "js", "mol"])
def test_certificates_lose_nothing_to_an_offset(name: str, rng: np.random.Generator) -> None:
    """Seen items stand as far behind among the candidates as in the metric's order: the bound falls with them."""
    metric = next(m for m in EVERY if m.name == name)
    query, items = some(metric, rng, 1).astype(np.float32), some(metric, rng, 300).astype(np.float32)

    def fetched(offset: float) -> int:
        """Candidates of which the first ten are proved, where all items were seen."""
        tested = SeenOffset(metric, offset)
        lowering = tested.lower(DIM)
        assert isinstance(lowering, Rescored)
        seen = with_seen(items, np.ones(300))
        raw = native(lowering.distance, lowering.query(query), lowering.item(seen))[0]
        order = np.argsort(-raw if lowering.distance.higher_is_better else raw)
        scores = tested.score(query, seen)[0]
        kth = np.sort(scores)[-10]
        return next(n for n, place in enumerate(order) if (lowering.bound(float(raw[place])) or 0.0) <= kth)

    assert fetched(0.0) == fetched(0.5)


@every_metric
def test_an_offset_of_nothing_changes_no_order(metric: Metric, rng: np.random.Generator) -> None:
    """As under a metric with an offset for the other modality alone."""
    queries, items = some(metric, rng, 4), some(metric, rng, 9)
    seen = with_seen(items, rng.random(9) < 0.5)
    np.testing.assert_allclose(
        SeenOffset(metric, 0.0).score(queries, seen), metric.score(queries, items), rtol=1e-12, atol=1e-15
    )


@every_unbound
def test_an_offset_takes_columns_of_its_own_where_qdrant_can_compare_them(metric: Metric) -> None:
    plain, lowering = metric.lower(6), SeenOffset(metric, 0.25).lower(6)
    columns = 0 if metric.name == "mlp" else SPREAD
    turned = {"cosine": Distance.DOT}.get(metric.name, plain.distance)
    assert (lowering.distance, lowering.dim) == (turned, plain.dim + columns)
    assert (lowering.guarantee, lowering.version) == (plain.guarantee, plain.version)
    assert isinstance(lowering, Rescored) == isinstance(plain, Rescored)
    if isinstance(lowering, Rescored) and isinstance(plain, Rescored):
        assert (lowering.page, lowering.budget) == (plain.page, plain.budget)
    assert (plain.item_dim(6), lowering.item_dim(6)) == (6, 7)
    assert (plain.marks_seen, lowering.marks_seen) == (False, True)


@every_metric
def test_rows_are_lowered_independently_and_none_to_none(metric: Metric, rng: np.random.Generator) -> None:
    lowering = SeenOffset(metric, 0.3).lower(DIM)
    queries, items = some(metric, rng, 5), with_seen(some(metric, rng, 5), [1, 0, 1, 1, 0])
    for lower, X in ((lowering.item, items), (lowering.query, queries)):
        np.testing.assert_allclose(lower(X), np.concatenate([lower(row[None]) for row in X]), rtol=1e-5, atol=1e-6)
        assert lower(X[:0]).shape == (0, lowering.dim)


@pytest.mark.parametrize("offset", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("name", ["cosine", "dot", "euclid"])
def test_an_offset_dwarfs_no_coordinate_that_quantization_has_one_scale_with(
    name: str, offset: float, rng: np.random.Generator
) -> None:
    dim = 64
    X = l2_normalize(rng.standard_normal((200, dim)))
    lowering = SeenOffset(METRICS[name], offset).lower(dim)
    largest = np.abs(X).max()
    assert np.abs(lowering.item(with_seen(X, np.ones(200)))[:, dim:]).max() <= largest
    assert np.abs(lowering.query(X)[:, dim:]).max() <= largest


@pytest.mark.parametrize("offset", [0.05, 0.4])
@pytest.mark.parametrize("name", ["cosine", "dot", "euclid"])
def test_the_index_holds_seen_and_unseen_items_apart_alike_under_every_distance(
    name: str, offset: float, rng: np.random.Generator
) -> None:
    """It links items by what it compares them by; queries want unseen items by as much nearer as the offset says."""
    X = l2_normalize(rng.standard_normal((6, DIM)))
    # Half the squared distance of unit vectors is 1 minus their product.
    taken = 2 * offset if name == "euclid" else offset
    lowering = SeenOffset(METRICS[name], taken).lower(DIM)
    seen, unseen = (lowering.item(with_seen(X, np.full(6, was))).astype(np.float64) for was in (1, 0))

    def near(a: Matrix, b: Matrix) -> Matrix:
        products = a @ b.T
        return products if name != "euclid" else products - ((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)) / 2

    np.testing.assert_allclose(near(unseen, unseen) - near(unseen, seen), offset, atol=1e-6)
    kept = offset + (0.0 if name == "euclid" else offset**2)
    np.testing.assert_allclose(near(seen, seen) - near(seen, unseen), kept, atol=1e-6)


@every_metric
def test_a_metric_with_an_offset_prints_as_the_metric_and_is_another_value(metric: Metric) -> None:
    tested = SeenOffset(metric, 0.5)
    assert str(tested) == str(metric)
    assert tested == SeenOffset(metric, 0.5) != SeenOffset(metric, 0.25)
    assert hash(tested) == hash(SeenOffset(metric, 0.5))
    assert tested != metric
    assert parse(str(tested)) == metric
    assert tested.floats_per_pair(DIM) == metric.floats_per_pair(DIM)


@pytest.mark.parametrize("offset", [-1e-9, float("nan"), float("inf"), 2 * LARGEST])
def test_an_offset_that_none_can_be_is_refused(offset: float) -> None:
    with raises(MetricError, "cosine", str(offset), "0", f"{LARGEST:g}"):
        SeenOffset(Cosine(), offset)


@every_metric
def test_items_that_do_not_say_whether_they_were_seen_are_refused(metric: Metric, rng: np.random.Generator) -> None:
    X = some(metric, rng, 3)
    for items in (X, with_seen(with_seen(X, [1, 0, 1]), [1, 0, 1])):
        with raises(MetricError, str(metric), str(DIM + 1), str(items.shape[1])):
            SeenOffset(metric, 0.1).score(X, items)


def test_an_offset_beside_another_is_refused() -> None:
    with raises(MetricError, "euclid"):
        SeenOffset(SeenOffset(Euclid(), 0.1), 0.1)


@dataclass(frozen=True, slots=True)
class Angle(Metric):
    """Minus the angle, in the order of the cosine."""

    name: ClassVar[str] = "angle"

    @override
    def score(self, queries: Any, items: Any) -> Any:
        return -np.arccos(np.clip(Cosine().score(queries, items), -1, 1))

    @override
    def lower(self, dim: int) -> Lowering:
        return AngleLowering(Distance.COSINE, dim)


@dataclass(frozen=True, slots=True)
class AngleLowering(Lowering):
    @override
    def score(self, raw: float, offset: float = 0.0) -> float:
        return -float(np.arccos(raw))


def test_a_metric_whose_scores_qdrant_does_not_compute_is_refused_by_name() -> None:
    """An offset among angles is none among their cosines."""
    with raises(MetricError, "angle", "--seen-offset 0"):
        SeenOffset(Angle(), 0.1)


# What is lowered with an offset, by version: whoever changes it raises OWN_VERSION and writes the new numbers here.
PINNED = {
    "cosine": (1, 1.5689),
    "euclid": (1, 1.9249),
    "manhattan": (1, 1.5207),
    "kl-item-query": (2, -2.9482),
    "chi2": (1, -0.2897),
}


@pytest.mark.parametrize("name", PINNED)
def test_a_lowering_that_changes_has_another_version(name: str) -> None:
    lowering = SeenOffset(METRICS[name], 0.25).lower(DIM)
    X = l2_normalize(np.cos(np.arange(3 * DIM).reshape(3, DIM) ** 2))
    parts = [lowering.item(with_seen(X, [1, 0, 1])), lowering.query(X)]
    weights = [np.cos(np.arange(part.size)).reshape(part.shape) for part in parts]
    total = sum(float((part.astype(np.float64) * weight).sum()) for part, weight in zip(parts, weights, strict=True))
    assert (lowering.version, round(total, 4)) == PINNED[name]


def test_all_metrics_and_corrections_are_tested() -> None:
    assert {metric.name for metric in EVERY} == {*METRICS, "nnn"}
    assert Nnn(Dot(), k=4, alpha=0.6) in EVERY
    assert all(m.module is not None for m in EVERY if isinstance(m, LearnedMetric))
