import itertools
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import ot
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance
from scipy.special import expit, softmax
from sklearn.metrics.pairwise import additive_chi2_kernel

from alignment.errors import MetricError
from alignment.metrics import METRICS, Distance, Guarantee, LearnedMetric, Metric, Nnn, Rescored, parse
from alignment.metrics.divergences import MAPS
from alignment.metrics.lowering import SPREAD
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
    ready,
    rounding,
    some,
)

Pairwise = Callable[[Any, Vector, Vector], float]

every_metric = pytest.mark.parametrize("metric", EVERY, ids=str)
every_unbound = pytest.mark.parametrize("metric", UNBOUND, ids=str)
of_distances = pytest.mark.parametrize(
    "metric", [m for m in EVERY if not isinstance(m, (LearnedMetric, Nnn)) and m.name != "w1"], ids=str
)


# What each metric means, from another library or by its formula in loops: a new metric needs an entry here.


def distribution(metric: Any, z: Vector) -> Vector:
    if metric.map == "softmax":
        return np.asarray(softmax(z))
    halves = [max(v, 0.0) for v in z] + [max(-v, 0.0) for v in z] if metric.map == "split" else list(z)
    return np.asarray(np.array(halves) / sum(halves))


def smoothed(metric: Any, z: Vector) -> Vector:
    p = distribution(metric, z)
    return np.asarray((1 - metric.smoothing) * p + metric.smoothing * np.full(len(p), 1 / len(p)))


def tensors(metric: LearnedMetric) -> dict[str, Vector]:
    return {name.removeprefix(f"{metric}/"): w.astype(np.float64) for name, w in metric.weights().items()}


def bilinear_form(metric: Any, q: Vector, x: Vector) -> float:
    """q' W x with W = I + L R' + diag(B_1, ..., B_b)."""
    t = tensors(metric)
    size, total = t["blocks"].shape[1], 0.0
    for i, j in itertools.product(range(len(q)), range(len(x))):
        w = float(i == j) + sum(t["left"][i, r] * t["right"][j, r] for r in range(metric.rank))
        if i // size == j // size:
            w += t["blocks"][i // size, i % size, j % size]
        total += q[i] * w * x[j]
    return float(total)


def mixture_of_logits(metric: Any, q: Vector, x: Vector) -> float:
    """sum_ab pi_ab <f_a, g_b>; pi is a softmax of gates of q, each moved by sway * tanh(of x and the products)."""
    t, k, size = tensors(metric), metric.components, metric.size
    f, g = ([(z @ t[side])[a * size : (a + 1) * size] for a in range(k)] for z, side in ((q, "query"), (x, "item")))
    products = [(a @ b) / np.sqrt((a @ a) * (b @ b)) for a in f for b in g]
    hidden = t["gate_pair.0.weight"] @ products + t["gate_pair.0.bias"]
    hidden = hidden * expit(hidden)
    moved = np.tanh(t["gate_item.weight"] @ x + t["gate_pair.2.weight"] @ hidden + t["gate_pair.2.bias"])
    gates = t["gate_query.weight"] @ q + t["gate_query.bias"] + metric.sway * moved
    return float(sum(w * p for w, p in zip(softmax(gates), products, strict=True)))


def perceptron(metric: Any, q: Vector, x: Vector) -> float:
    """One hidden layer of ReLU over [q, x, |q - x|, q * x]."""
    t = tensors(metric)
    first = np.hstack([t["of_query.weight"], t["of_item.weight"], t["of_difference.weight"], t["of_product.weight"]])
    hidden = first @ np.concatenate([q, x, abs(q - x), q * x]) + t["of_query.bias"]
    return float(sum(w * max(h, 0.0) for w, h in zip(t["last.weight"][0], hidden, strict=True)) + t["last.bias"][0])


def without_hubs(metric: Any, q: Vector, x: Vector) -> float:
    reference = REFERENCES[metric.base.name]
    near = sorted((reference(metric.base, r, x) for r in metric.bank.astype(np.float64)), reverse=True)[: metric.k]
    return reference(metric.base, q, x) - float(metric.alpha) * sum(near) / int(metric.k)


REFERENCES: dict[str, Pairwise] = {
    "cosine": lambda m, q, x: 1.0 - distance.cosine(q, x),
    "dot": lambda m, q, x: sum(a * b for a, b in zip(q, x, strict=True)),
    "euclid": lambda m, q, x: -distance.euclidean(q, x),
    "manhattan": lambda m, q, x: -distance.cityblock(q, x),
    "chi2": lambda m, q, x: float(
        additive_chi2_kernel(distribution(m, q)[None], distribution(m, x)[None])[0, 0]  # negative already
    ),
    "kl-query-item": lambda m, q, x: -float(scipy.stats.entropy(smoothed(m, q), smoothed(m, x))),
    "kl-item-query": lambda m, q, x: -float(scipy.stats.entropy(smoothed(m, x), smoothed(m, q))),
    "js": lambda m, q, x: -float(distance.jensenshannon(distribution(m, q), distribution(m, x)) ** 2),
    "hellinger": lambda m, q, x: (
        -float(
            np.sqrt(
                sum((a**0.5 - b**0.5) ** 2 for a, b in zip(distribution(m, q), distribution(m, x), strict=True)) / 2
            )
        )
    ),
    "w1": lambda m, q, x: -float(scipy.stats.wasserstein_distance(q, x)),
    "bilinear": bilinear_form,
    "mol": mixture_of_logits,
    "mlp": perceptron,
    "nnn": without_hubs,
}


def references(metric: Metric, queries: Matrix, items: Matrix) -> Vector:
    q, x = queries.astype(np.float64), items.astype(np.float64)
    return np.array([[REFERENCES[metric.name](metric, a, b) for b in x] for a in q]).reshape(len(q), len(x))


def test_every_metric_has_a_reference() -> None:
    assert REFERENCES.keys() == {metric.name for metric in EVERY} == {*METRICS, "nnn"}


def test_every_metric_that_lowers_to_dot_is_tested_with_hubness_taken_off() -> None:
    assert {str(m.base) for m in EVERY if isinstance(m, Nnn)} == {
        "dot",
        *(f"kl-{way}(map={map_},smoothing=0.1)" for way in ("query-item", "item-query") for map_ in MAPS),
        "bilinear(rank=16,blocks=8)",
    }


@pytest.mark.slow
@every_metric
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-6)])
def test_scores_equal_the_reference(
    metric: Metric, dtype: type[np.floating], tolerance: float, rng: np.random.Generator
) -> None:
    queries, items = (some(metric, rng, n).astype(dtype) for n in (4, 6))
    items[0] = queries[0]
    scores = metric.score(queries, items)
    assert scores.shape == (4, 6)
    assert scores.dtype == dtype
    np.testing.assert_allclose(scores, references(metric, queries, items), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclid", "manhattan", "w1", "chi2", "js", "bilinear", "mlp"])
def test_scores_equal_the_reference_whatever_the_length_of_vectors(name: str, rng: np.random.Generator) -> None:
    metric = next(m for m in EVERY if m.name == name)
    queries, items = (some(metric, rng, n) * rng.uniform(0.1, 9, (n, 1)) for n in (4, 6))
    np.testing.assert_allclose(metric.score(queries, items), references(metric, queries, items), rtol=1e-11, atol=1e-12)


def test_one_dimensional_transport_equals_solvers_of_optimal_transport(rng: np.random.Generator) -> None:
    """Both of POT, in closed form and as a linear programme over the full plan."""
    metric = METRICS["w1"]
    queries, items = (some(metric, rng, n) for n in (3, 4))
    closed = [[-ot.wasserstein_1d(q, x, p=1) for x in items] for q in queries]
    solved = [[-ot.emd2_1d(q, x, metric="cityblock") for x in items] for q in queries]
    programme = [[-ot.emd2([], [], np.abs(q[:, None] - x[None])) for x in items] for q in queries]
    for reference in (closed, solved, programme):
        np.testing.assert_allclose(metric.score(queries, items), reference, rtol=1e-10)


@pytest.mark.parametrize("name", ["euclid", "manhattan", "w1"])
def test_close_vectors_far_from_the_origin_keep_their_distances(name: str) -> None:
    """|q|^2 + |x|^2 - 2qx would lose these differences to rounding."""
    items = np.float32(1000.0) + np.array([[0.0], [0.125], [0.25], [0.5]], np.float32) * np.ones((1, 8), np.float32)
    scores = METRICS[name].score(items[:1], items)[0]
    np.testing.assert_allclose(scores, references(METRICS[name], items[:1], items)[0], rtol=1e-6)
    assert scores.argmax() == 0


@of_distances
def test_a_unit_vector_is_its_own_best_match(metric: Metric, rng: np.random.Generator) -> None:
    X = some(metric, rng, 20)
    assert metric.score(X, X).argmax(axis=1).tolist() == list(range(20))


@every_metric
@pytest.mark.parametrize(("n", "m"), [(0, 2), (2, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_no_queries_or_no_items_give_no_scores(metric: Metric, n: int, m: int, dtype: type[np.floating]) -> None:
    queries, items = (np.ones((rows, DIM), dtype) for rows in (n, m))
    scores = metric.score(queries, items)
    assert scores.shape == (n, m)
    assert scores.dtype == dtype
    assert similarity(metric, queries, items).shape == (n, m)


@every_metric
def test_a_vector_of_nan_has_no_score_and_spoils_no_other(metric: Metric, rng: np.random.Generator) -> None:
    queries, items = (some(metric, rng, n) for n in (3, 4))
    sound = metric.score(queries, items)
    for at in (slice(None), slice(2, 3)):
        broken_queries, broken_items = queries.copy(), items.copy()
        broken_queries[1, at], broken_items[2, at] = np.nan, np.nan
        scores = metric.score(broken_queries, broken_items)
        assert np.isnan(scores[1]).all()
        assert np.isnan(scores[:, 2]).all()
        np.testing.assert_allclose(
            np.delete(scores[[0, 2]], 2, axis=1), np.delete(sound[[0, 2]], 2, axis=1), atol=1e-14
        )


@every_metric
def test_scoring_leaves_its_input_alone(metric: Metric, rng: np.random.Generator) -> None:
    queries, items = (some(metric, rng, n).astype(np.float32) for n in (3, 4))
    before = [queries.copy(), items.copy()]
    metric.score(queries, items)
    metric.lower(DIM).item(items)
    metric.lower(DIM).query(queries)
    np.testing.assert_array_equal(queries, before[0])
    np.testing.assert_array_equal(items, before[1])


# Scores from tensors


def similarity(metric: Metric, queries: Matrix, items: Matrix) -> Matrix:
    q, x = torch.from_numpy(queries), torch.from_numpy(items)
    made = (doubled(metric) if q.dtype == torch.float64 else metric).score(q, x)
    return np.asarray(made.detach().numpy())


@every_metric
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-6)])
def test_scores_from_tensors_are_the_same(
    metric: Metric, dtype: type[np.floating], tolerance: float, rng: np.random.Generator
) -> None:
    queries, items = (some(metric, rng, n).astype(dtype) for n in (5, 7))
    items[:5], items[5, ::2] = queries, 0.0
    scores = similarity(metric, queries, items)
    assert scores.dtype == dtype
    np.testing.assert_allclose(scores, metric.score(queries, items), rtol=tolerance, atol=tolerance)


def corners() -> dict[str, Vector]:
    rng = np.random.default_rng(3)
    X = l2_normalize(np.abs(rng.standard_normal((4, DIM)))).astype(np.float64)
    half = X.copy()
    half[:, ::2] = 0.0
    return {
        "equal": np.repeat(X[:1], 4, axis=0),
        "with zeros": half,
        "with other zeros": np.roll(half, 1, axis=1),
        "one-hot": np.eye(4, DIM),
        "zero": np.zeros((4, DIM)),
        "one zero": np.concatenate([X[:3], np.zeros((1, DIM))]),
        "tiny": np.where(half == 0, 1e-30, half),
        "flat": np.full((4, DIM), DIM**-0.5),
        "negative": -X,
    }


@every_metric
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_finite_where_formulas_are_not(metric: Metric, dtype: torch.dtype) -> None:
    """Between any two corners: the same vectors too, and those that have no distribution."""
    metric = doubled(metric) if dtype == torch.float64 else metric
    sets = {name: torch.from_numpy(X).to(dtype) for name, X in corners().items()}
    everything = torch.cat(list(sets.values()))
    for name, side in sets.items():
        for reverse in (False, True):
            q, x = (z.clone().requires_grad_() for z in ((everything, side) if reverse else (side, everything)))
            scores = metric.score(q, x)
            uneven = torch.linspace(0.5, 2.0, scores.numel(), dtype=dtype).view_as(scores)
            (scores * uneven).sum().backward()
            assert q.grad is not None
            assert x.grad is not None
            for result in (scores, q.grad, x.grad):
                assert torch.isfinite(result).all(), name


@every_metric
def test_gradients_equal_finite_differences(metric: Metric, rng: np.random.Generator) -> None:
    q, x = (torch.from_numpy(some(metric, rng, n)).requires_grad_() for n in (2, 3))
    assert torch.autograd.gradcheck(doubled(metric).score, (q, x), eps=1e-6, atol=1e-5, fast_mode=True)


# Lowerings


@pytest.mark.slow
@every_metric
@settings(max_examples=40)
@given(st.one_of(made, drawn))
def test_what_qdrant_finds_over_lowered_vectors_is_what_the_metric_says(metric: Metric, X: Matrix) -> None:
    """Exact: the order and the scores, up to float32. Bounded: nothing left out scores above the bound."""
    queries, items = hard_sets(metric, X)
    lowering = metric.lower(DIM)
    stored, asked = lowering.item(items), lowering.query(queries)
    for lowered, side in ((stored, items), (asked, queries)):
        assert lowered.shape == (len(side), lowering.dim)
        assert lowered.dtype == np.float32
        assert np.isfinite(lowered).all()
    own = metric.score(queries.astype(np.float64), items.astype(np.float64))
    raw = native(lowering.distance, asked, stored)
    if not isinstance(lowering, Rescored):
        off = rounding(metric, lowering, asked, stored)
        offsets = lowering.offset(queries)
        shifts = np.zeros(len(queries)) if offsets is None else offsets
        scores = np.array(
            [[lowering.score(float(r), float(s)) for r in row] for row, s in zip(raw, shifts, strict=True)]
        ).reshape(own.shape)
        assert (np.abs(scores - own) <= off + 1e-12).all()
        # Hence two items swap only where their scores differ by less than both of them may be off.
        order = np.argsort(-raw if lowering.distance.higher_is_better else raw, axis=1, kind="stable")
        ranked = np.take_along_axis(own, order, axis=1)
        slack = 2 * off.max(initial=0.0) + 1e-12
        assert (np.diff(ranked, axis=1) <= slack).all()
        return
    for row, query in enumerate(queries):
        np.testing.assert_allclose(lowering.rescore(query, items), own[row], rtol=5e-6, atol=5e-6)
        in_float32 = metric.score(query[None], items)[0]
        for tail in raw[row].tolist():
            bound = lowering.bound(tail)
            assert (bound is None) == (lowering.guarantee == Guarantee.MEASURED)
            left = raw[row] <= tail if lowering.distance.higher_is_better else raw[row] >= tail
            assert bound is None or (own[row, left] <= bound).all()
            assert bound is None or (in_float32[left] <= bound).all()


@every_metric
def test_no_vectors_are_lowered_to_no_vectors(metric: Metric) -> None:
    lowering, none = metric.lower(DIM), np.empty((0, DIM), np.float32)
    for lowered in (lowering.item(none), lowering.query(none)):
        assert lowered.shape == (0, lowering.dim)
        assert lowered.dtype == np.float32
    offsets = lowering.offset(none)
    assert offsets is None or offsets.shape == (0,)


@every_metric
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rows_are_lowered_independently(metric: Metric, dtype: type[np.floating], rng: np.random.Generator) -> None:
    X, lowering = some(metric, rng, 5).astype(dtype), metric.lower(DIM)
    for lower in (lowering.item, lowering.query):
        np.testing.assert_allclose(lower(X), np.concatenate([lower(row[None]) for row in X]), rtol=1e-5, atol=1e-6)


@every_unbound
def test_a_lowering_is_a_value_with_a_version(metric: Metric) -> None:
    assert metric.lower(9) == metric.lower(9) == ready(metric, 9).lower(9)
    assert (metric.lower(9) != metric.lower(10)) == (metric.name != "mol")  # its components have a size of their own
    assert metric.lower(9).version >= 1


def test_lowerings_of_other_parameters_are_other_lowerings() -> None:
    texts = ["chi2", "chi2(map=softmax)", "js", "hellinger", "kl-query-item", "kl-query-item(smoothing=0.2)", "w1"]
    assert len({parse(text).lower(4) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("text", "distance_", "dim", "guarantee"),
    [
        ("cosine", "Cosine", 6, "exact"),
        ("dot", "Dot", 6, "exact"),
        ("euclid", "Euclid", 6, "exact"),
        ("manhattan", "Manhattan", 6, "exact"),
        ("w1", "Manhattan", 6, "exact"),
        ("hellinger", "Euclid", 12, "exact"),
        ("hellinger(map=softmax)", "Euclid", 6, "exact"),
        ("kl-query-item", "Dot", 12, "exact"),
        ("kl-item-query", "Dot", 12 + 2 * SPREAD, "exact"),
        ("kl-item-query(map=l1)", "Dot", 6 + 2 * SPREAD, "exact"),
        ("bilinear", "Dot", 6, "exact"),
        ("dot+nnn", "Dot", 6 + SPREAD, "exact"),
        ("kl-item-query+nnn", "Dot", 12 + 3 * SPREAD, "exact"),
        ("bilinear+nnn", "Dot", 6 + SPREAD, "exact"),
        ("chi2", "Euclid", 12, "certified"),
        ("js(map=l1)", "Euclid", 6, "certified"),
        ("mol(components=2,size=5)", "Dot", 10, "bounded"),
        ("mlp", "Cosine", 6, "measured"),
    ],
)
def test_what_metrics_lower_to(text: str, distance_: str, dim: int, guarantee: str) -> None:
    lowering = parse(text).lower(6)
    assert (lowering.distance, lowering.dim, lowering.guarantee) == (distance_, dim, guarantee)
    assert isinstance(lowering, Rescored) == (guarantee != "exact")


def test_qdrant_spells_its_distances_this_way() -> None:
    from qdrant_client.models import Distance as QdrantDistance

    assert {d.value for d in Distance} == {d.value for d in QdrantDistance}


@pytest.mark.parametrize(("distance_", "sign"), [("Cosine", 1), ("Dot", 1), ("Euclid", -1), ("Manhattan", -1)])
def test_distances_are_negated_into_scores_and_similarities_are_not(distance_: str, sign: int) -> None:
    metric = next(m for m in METRICS.values() if m.lower(2).distance == distance_)
    assert metric.lower(2).score(0.25) == 0.25 * sign
    assert metric.lower(2).score(0.25, 2.0) == 0.25 * sign + 2.0
    assert Distance(distance_).higher_is_better == (sign > 0)


# Values


def floats(least: float, most: float, **how: Any) -> st.SearchStrategy[float]:
    return st.floats(least, most, allow_nan=False, allow_infinity=False, **how)


counts = st.integers(1, 65_536)
# Every parameter that a metric has: a new one needs a line here.
PARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "map": st.sampled_from(MAPS),
    "smoothing": floats(1e-6, 1, exclude_max=True),
    "rank": counts,
    "blocks": counts,
    "components": counts,
    "size": counts,
    "sway": floats(0, 50),
    "hidden": counts,
    "k": counts,
    "alpha": floats(0, 1e308, exclude_min=True),
}


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, str]:
    """A metric as somebody types it, with some of its parameters in any order, and as it must print."""

    def one(metric: Any) -> tuple[str, str]:
        own = {f.name: getattr(metric, f.name) for f in fields(metric) if f.compare and f.name != "base"}
        given_ = {name: draw(PARAMETERS[name]) for name in own if draw(st.booleans())}
        typed = draw(st.permutations([f"{name}={value}" for name, value in given_.items()]))
        full = ",".join(f"{name}={value}" for name, value in (own | given_).items())
        short = draw(st.sampled_from([",", ", "])).join(typed)
        return f"({short})" if short else draw(st.sampled_from(["", "()"])), f"({full})" if full else ""

    metric = draw(st.sampled_from(list(METRICS.values())))
    typed, full = one(metric)
    if not (Nnn.applies(metric) and draw(st.booleans())):
        return metric.name + typed, metric.name + full
    of_nnn, full_of_nnn = one(Nnn(metric))
    return f"{metric.name}{typed}+nnn{of_nnn}", f"{metric.name}{full}+nnn{full_of_nnn}"


@given(texts())
def test_metrics_print_in_full_and_parse_back(pair: tuple[str, str]) -> None:
    short, full = pair
    metric = parse(short)
    assert str(metric) == full
    assert parse(full) == metric
    assert hash(parse(full)) == hash(metric)
    assert str(parse(full)) == full


@every_unbound
def test_equal_metrics_hash_alike_and_survive_pickling(metric: Metric) -> None:
    copy = pickle.loads(pickle.dumps(metric))
    assert copy == metric == parse(str(metric))
    assert hash(copy) == hash(metric)
    assert {metric: 1}[copy] == 1
    assert str(copy) == str(metric)


@pytest.mark.parametrize(("metric", "bound"), list(zip(UNBOUND, EVERY, strict=True)), ids=map(str, UNBOUND))
def test_a_metric_with_its_weights_is_the_same_value(metric: Metric, bound: Metric) -> None:
    assert bound == metric
    assert hash(bound) == hash(metric)
    assert str(bound) == str(metric)


def test_no_two_metrics_are_equal() -> None:
    assert len(set(UNBOUND)) == len({str(metric) for metric in UNBOUND}) == len(UNBOUND)
    assert all(name == metric.name for name, metric in METRICS.items())


@every_metric
def test_a_metric_is_a_value(metric: Metric) -> None:
    for name in ("name", *(field.name for field in fields(metric))):
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            setattr(metric, name, "other")
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        metric.another = 1  # type: ignore[attr-defined]


@pytest.mark.slow
@given(st.text().filter(lambda text: not text.startswith(tuple(METRICS))))
def test_an_unknown_metric_is_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(MetricError) as caught:
        parse(text)
    assert f"unknown metric {text!r}" in str(caught.value)
    assert ", ".join(METRICS) in str(caught.value)
    assert caught.value.__cause__ is None


TOKENS = [*METRICS, *PARAMETERS, *MAPS, "(", ")", "=", ",", "+nnn", "+", "nnn", "base", "0", "1", "-1", "0.5", "nan"]
TOKENS += ["inf", "1e999", "x", " ", "module", "name", "9" * 5000]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(TOKENS), max_size=10).map("".join))
def test_whatever_is_typed_is_a_metric_or_a_metric_error(text: str) -> None:
    try:
        metric = parse(text)
    except MetricError as error:
        assert text.startswith(tuple(METRICS)) or "unknown metric" in str(error)  # noqa: PT017
    else:
        assert parse(str(metric)) == metric


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("chi2(mapp=split)", ["chi2", "'mapp'", "map"]),
        ("cosine(map=split)", ["cosine", "'map'", "none"]),
        ("bilinear(module=1)", ["bilinear", "'module'", "rank, blocks"]),
        ("dot+nnn(beta=1)", ["nnn", "'beta'", "k, alpha"]),
        ("dot+nnn(base=dot)", ["nnn", "'base'", "k, alpha"]),
        ("dot+nnn(bank=1)", ["nnn", "'bank'", "k, alpha"]),
        ("chi2(map=sqrt)", ["chi2", "split, softmax, l1", "'sqrt'"]),
        ("kl-query-item(smoothing=0)", ["kl-query-item", "smoothing", "1e-6", "0.0"]),
        ("kl-item-query(smoothing=1)", ["kl-item-query", "smoothing", "below 1", "1.0"]),
        ("kl-item-query(smoothing=nan)", ["kl-item-query", "smoothing", "nan"]),
        ("kl-item-query(smoothing=much)", ["kl-item-query", "smoothing", "'much'"]),
        ("bilinear(rank=0)", ["bilinear", "rank", "1 to 65536", "got 0"]),
        ("bilinear(blocks=-3)", ["bilinear", "blocks", "1 to 65536", "-3"]),
        ("bilinear(rank=1.5)", ["bilinear", "rank", "'1.5'"]),
        ("mol(components=0)", ["mol", "components", "1 to 65536", "got 0"]),
        ("mol(size=0)", ["mol", "size", "1 to 65536", "got 0"]),
        ("mol(sway=-0.1)", ["mol", "sway", "0 to 50", "-0.1"]),
        ("mol(sway=inf)", ["mol", "sway", "0 to 50", "inf"]),
        ("mlp(hidden=0)", ["mlp", "hidden", "1 to 65536", "got 0"]),
        ("dot+nnn(k=0)", ["nnn", "k=0", "alpha=0.75"]),
        ("dot+nnn(alpha=0)", ["nnn", "k=128", "alpha=0.0"]),
        ("dot+nnn(alpha=nan)", ["nnn", "k=128", "alpha=nan"]),
        ("cosine+nnn", ["nnn", "cosine", "dot+nnn"]),
    ],
)
def test_parameters_that_do_not_exist_are_refused_by_name(text: str, values: list[str]) -> None:
    with raises(MetricError, *values):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Cosine",
        " cosine",
        "cosine ",
        "cosine)",
        "cosine(",
        "chi2(map)",
        "chi2(map=)",
        "chi2(map=split,)",
        "chi2(map=split,map=split)",
        "chi2(map=split)x",
        "chi2(map=(split))",
        "nnn",
        "+nnn",
        "dot+nnn+nnn",
        "dot+nnnx",
        "dot+nnn-2(k=3)",
        "dot+nnn(k=3)x",
        "dot+",
        "dot+qb",
    ],
)
def test_what_cannot_be_read_is_an_unknown_metric(text: str) -> None:
    with pytest.raises(MetricError, match=r"^unknown metric "):
        parse(text)


@pytest.mark.parametrize("metric", [m for m in UNBOUND if not Nnn.applies(m) and not isinstance(m, Nnn)], ids=str)
def test_hubness_is_taken_off_only_where_a_column_can_do_it(metric: Metric) -> None:
    with pytest.raises(MetricError, match=r"^nnn needs a metric that lowers exactly to Dot, and .* does not"):
        parse(f"{metric}+nnn")


# What is lowered, by version: whoever changes `item`, `query` or `offset` raises the version, so that releases that
# were written before are refused, and writes the new numbers here.
PINNED = {
    "cosine": (1, -2.1118),
    "dot": (1, -2.1118),
    "euclid": (1, -2.1118),
    "manhattan": (1, -2.1118),
    "chi2": (1, -0.2998),
    "kl-query-item": (2, -6.2555),
    "kl-item-query": (2, -5.3056),
    "js": (1, -0.2998),
    "hellinger": (1, -0.2998),
    "w1": (1, -0.4424),
}


def probe(metric: Metric) -> tuple[int, float]:
    """The version of a metric's lowering and one number that depends on all that it stores and asks with."""
    lowering = metric.lower(DIM)
    X = l2_normalize(np.cos(np.arange(3 * DIM).reshape(3, DIM) ** 2))
    parts = [lowering.item(X), lowering.query(X)]
    offset = lowering.offset(X)
    weights = [np.cos(np.arange(part.size)).reshape(part.shape) for part in parts]
    total = sum(float((part.astype(np.float64) * weight).sum()) for part, weight in zip(parts, weights, strict=True))
    return lowering.version, round(total + (0.0 if offset is None else float(offset.sum())), 4)


PROBED = [m for m in METRICS.values() if not isinstance(m, LearnedMetric)]


@pytest.mark.parametrize("metric", PROBED, ids=str)
def test_a_lowering_that_changes_has_another_version(metric: Metric) -> None:
    assert probe(metric) == PINNED[metric.name]
