from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import MetricError, WeightsError
from alignment.metrics import METRICS, Bilinear, Cosine, LearnedMetric, MixtureOfLogits, Perceptron, Rescored, learned
from alignment.modality import MODALITIES
from alignment.vectors import l2_normalize
from tests.support.errors import raises

Matrix = npt.NDArray[np.floating]

LEARNED = [metric for metric in METRICS.values() if isinstance(metric, LearnedMetric)]
every_learned = pytest.mark.parametrize("metric", LEARNED, ids=str)


def vectors(rng: np.random.Generator, n: int, dim: int = 10) -> npt.NDArray[np.float32]:
    return l2_normalize(rng.standard_normal((n, dim)))


def perturbed(metric: Any, dim: int, seed: int = 1, noise: float = 0.4) -> Any:
    """With weights away from where they start, as after training."""
    generator = torch.Generator().manual_seed(seed)
    started = metric.start(dim, seed)
    with torch.no_grad():
        for parameter in started.module.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return started


# Before training


@pytest.mark.parametrize("dim", [1, 2, 9, 10, 64])
@pytest.mark.parametrize("metric", [Bilinear(), Bilinear(rank=1, blocks=1), Bilinear(rank=70, blocks=70)], ids=str)
def test_the_bilinear_form_starts_as_the_cosine_of_unit_vectors(
    metric: Bilinear, dim: int, rng: np.random.Generator
) -> None:
    q, x = (rng.standard_normal((n, dim)) for n in (5, 6))
    q, x = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (q, x))
    started = metric.start(dim, seed=0)
    np.testing.assert_allclose(started.score(q, x), Cosine().score(q, x), atol=1e-14)
    np.testing.assert_array_equal(started.lower(dim).query(q), q.astype(np.float32))


@pytest.mark.parametrize(("dim", "least"), [(16, 0.9), (64, 0.97), (256, 0.99), (512, 0.9)])
def test_a_mixture_of_logits_starts_close_to_cosine(dim: int, least: float, rng: np.random.Generator) -> None:
    """A mean of partial cosines, of the first 256 coordinates: correlation with cosine over related pairs."""
    q = rng.standard_normal((60, dim))
    x = q + 0.8 * rng.standard_normal((60, dim))
    scores, cosine = METRICS["mol"].start(dim, seed=0).score(q, x), Cosine().score(q, x)  # type: ignore[attr-defined]
    assert np.corrcoef(scores.ravel(), cosine.ravel())[0, 1] > least
    assert np.abs(scores).max() <= 1


@every_learned
def test_starting_is_a_function_of_the_seed_alone(metric: LearnedMetric, rng: np.random.Generator) -> None:
    q, x = vectors(rng, 3), vectors(rng, 4)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = metric.start(10, seed=7)
    assert torch.equal(torch.rand(3), expected)  # nobody else's numbers were used up
    for name, tensor in metric.start(10, seed=7).weights().items():
        np.testing.assert_array_equal(tensor, first.weights()[name])
    np.testing.assert_array_equal(metric.start(10, seed=7).score(q, x), first.score(q, x))
    other = metric.start(10, seed=8)
    assert any((other.weights()[name] != tensor).any() for name, tensor in first.weights().items())


@every_learned
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 65])
def test_any_dimension_will_do(metric: LearnedMetric, dim: int, rng: np.random.Generator) -> None:
    """Also fewer coordinates than a bilinear form has blocks or a mixture components."""
    started = metric.start(dim, seed=0)
    q, x = vectors(rng, 3, dim), vectors(rng, 4, dim)
    assert np.isfinite(started.score(q, x)).all()
    lowering = started.lower(dim)
    assert lowering.item(x).shape == (4, lowering.dim)
    assert lowering.query(q).shape == (3, lowering.dim)


# Scores


def test_one_bilinear_form_serves_both_directions(rng: np.random.Generator) -> None:
    """The query stands left of the same W, whatever its modality: the other direction is the transposed W."""
    metric = Bilinear(rank=2, blocks=2)
    weights = perturbed(metric, 10).weights()
    images, texts = (metric.bind(weights, items=items, device="cpu") for items in MODALITIES)
    W = images.module.matrix().detach().double().numpy()
    t, i = vectors(rng, 5).astype(np.float64), vectors(rng, 6).astype(np.float64)
    np.testing.assert_allclose(images.score(t, i), t @ W @ i.T, atol=1e-6)
    np.testing.assert_allclose(texts.score(i, t), (t @ W.T @ i.T).T, atol=1e-6)
    assert np.abs(images.score(t, i) - texts.score(i, t).T).max() > 0.1
    for bound in (images, texts):
        lowering = bound.lower(10)
        np.testing.assert_array_equal(lowering.item(i), i)
        np.testing.assert_allclose(lowering.query(t), t @ W, atol=1e-6)


@every_learned
@pytest.mark.parametrize("floats", [1, 200, 700, 5000])
def test_the_size_of_chunks_does_not_matter(
    metric: LearnedMetric, floats: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    started = perturbed(metric, 10)
    q, x = vectors(rng, 7).astype(np.float64), vectors(rng, 11).astype(np.float64)
    whole = started.score(q, x)
    shapes: list[tuple[int, int]] = []
    forward = type(started.module).forward

    def watched(self: Any, queries: torch.Tensor, items: torch.Tensor) -> Any:
        shapes.append((len(queries), len(items)))
        return forward(self, queries, items)

    monkeypatch.setattr(learned, "FLOATS_AT_ONCE", floats)
    monkeypatch.setattr(type(started.module), "forward", watched)
    np.testing.assert_allclose(started.score(q, x), whole, rtol=1e-12, atol=1e-13)
    assert sum(n * m for n, m in shapes) == 77
    assert all(n * m * started.module.floats_per_pair <= floats or n * m == 1 for n, m in shapes)


@every_learned
def test_double_precision_leaves_the_weights_as_they_are(metric: LearnedMetric, rng: np.random.Generator) -> None:
    started = perturbed(metric, 10)
    q, x = vectors(rng, 3), vectors(rng, 4)
    single = started.score(q, x)
    double = started.score(q.astype(np.float64), x)
    assert (single.dtype, double.dtype) == (np.dtype(np.float32), np.dtype(np.float64))
    np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-6)
    assert all(parameter.dtype == torch.float32 for parameter in started.module.parameters())
    np.testing.assert_array_equal(started.score(q, x), single)


@every_learned
def test_vectors_that_cannot_be_written_to_are_scored(metric: LearnedMetric, rng: np.random.Generator) -> None:
    """As they come out of a payload."""
    X = vectors(rng, 4)
    frozen = np.frombuffer(X.tobytes(), np.float32).reshape(4, 10)
    started = perturbed(metric, 10)
    np.testing.assert_array_equal(started.score(frozen, frozen), started.score(X, X))
    np.testing.assert_array_equal(started.lower(10).query(frozen), started.lower(10).query(X))


@pytest.mark.parametrize(
    ("metric", "parameter"),
    [(Bilinear(), "blocks"), (MixtureOfLogits(), "query"), (Perceptron(), "last.weight")],
    ids=str,
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_an_error(
    metric: LearnedMetric, parameter: str, value: float, rng: np.random.Generator
) -> None:
    started = metric.start(10, seed=0)
    with torch.no_grad():
        dict(started.module.named_parameters())[parameter].view(-1)[0] = value
    with raises(WeightsError, metric):
        started.score(vectors(rng, 30), vectors(rng, 30))


def test_scores_that_overflow_are_an_error_in_single_precision(rng: np.random.Generator) -> None:
    started = Bilinear().start(10, seed=0)
    with torch.no_grad():
        started.module.blocks.fill_(3e38)
    q = np.ones((1, 10), np.float32)
    with raises(WeightsError, Bilinear()):
        started.score(q, q)
    assert np.isfinite(started.score(q.astype(np.float64), q.astype(np.float64))).all()


# Weights


@every_learned
def test_weights_bind_back_into_the_same_metric(metric: LearnedMetric, rng: np.random.Generator) -> None:
    trained = perturbed(metric, 10)
    weights = trained.weights()
    assert all(name.startswith(f"{metric}/") for name in weights)
    assert all(isinstance(tensor, np.ndarray) for tensor in weights.values())
    bound = metric.bind(weights | {"nnn/text": vectors(rng, 3), "other/dim": np.array(3)}, items="image", device="cpu")
    q, x = vectors(rng, 3), vectors(rng, 4)
    np.testing.assert_array_equal(bound.score(q, x), trained.score(q, x))
    assert not bound.module.training
    for tensor in weights.values():
        tensor.fill(0)
    np.testing.assert_array_equal(bound.score(q, x), trained.score(q, x))  # neither shares memory


@every_learned
def test_without_weights_it_says_how_to_fit_them(metric: LearnedMetric, rng: np.random.Generator) -> None:
    X = vectors(rng, 2)
    others: dict[str, Matrix] = {"nnn/text": X, f"{metric.name}/dim": X}
    for other in LEARNED:
        if other != metric:
            others |= other.start(10, seed=0).weights()
    calls: list[Callable[[], object]] = [
        lambda: metric.bind({}, items="image"),
        lambda: metric.bind(others, items="image"),
        metric.weights,
        lambda: metric.score(X, X),
        lambda: metric.score(torch.from_numpy(X), torch.from_numpy(X)),
    ]
    if not isinstance(metric, Perceptron):  # whose lowering needs no weights
        calls.append(lambda: metric.lower(10).query(X))
    for call in calls:
        with raises(MetricError, f"`modalign fit --metric '{metric}'`"):
            call()


def test_weights_of_other_parameters_are_other_weights() -> None:
    weights = Bilinear(rank=2).start(10, seed=0).weights()
    Bilinear(rank=2).bind(weights, items="text", device="cpu")
    with raises(MetricError, "bilinear(rank=3,blocks=8)", "modalign fit"):
        Bilinear(rank=3).bind(weights, items="text")


Damage = Callable[[dict[str, Any], str], Any]
DAMAGES: dict[str, Damage] = {
    "no dimension": lambda w, at: w.pop(f"{at}/dim"),
    "another dimension": lambda w, at: w.update({f"{at}/dim": np.array(11)}),
    "dimension of zero": lambda w, at: w.update({f"{at}/dim": np.array(0)}),
    "negative dimension": lambda w, at: w.update({f"{at}/dim": np.array(-3)}),
    "dimension of nan": lambda w, at: w.update({f"{at}/dim": np.array(np.nan)}),
    "many dimensions": lambda w, at: w.update({f"{at}/dim": np.array([10, 10])}),
    "text for a dimension": lambda w, at: w.update({f"{at}/dim": np.array("ten")}),
    "one tensor too many": lambda w, at: w.update({f"{at}/more": np.zeros(3, np.float32)}),
    "one tensor too few": lambda w, at: w.pop(max(name for name in w if not name.endswith("/dim"))),
    "a tensor cut": lambda w, at: w.update({max(w): w[max(w)][:-1]}),
    "nan": lambda w, at: w.update({max(w): np.full_like(w[max(w)], np.nan)}),
    "infinity": lambda w, at: w.update({max(w): np.full_like(w[max(w)], np.inf)}),
    "text": lambda w, at: w.update({max(w): np.full(w[max(w)].shape, "x")}),
}


@every_learned
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_weights_are_refused(metric: LearnedMetric, damage: Damage) -> None:
    weights = metric.start(10, seed=0).weights()
    damage(weights, str(metric))
    with pytest.raises(WeightsError) as caught:
        metric.bind(weights, items="image", device="cpu")
    assert str(caught.value).startswith(f"the weights of metric {metric} are damaged (")
    assert str(caught.value).endswith("); fit the alignment again")


# The bound of mixtures


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 5), st.floats(0, 8), st.sampled_from([0.1, 1.0, 10.0])
)
def test_items_move_a_mixture_by_no_more_than_sway_allows(
    seed: int, components: int, size: int, sway: float, noise: float
) -> None:
    """|score - raw| <= 2 tanh(sway / 2), whatever was learned."""
    metric = perturbed(MixtureOfLogits(components=components, size=size, sway=sway), 6, seed, noise)
    rng = np.random.default_rng(seed)
    q, x = (
        l2_normalize(rng.standard_normal((5, 6))),
        l2_normalize(rng.standard_normal((7, 6)) * (rng.random((7, 6)) < 0.6) + 1e-3),
    )
    lowering = metric.lower(6)
    assert isinstance(lowering, Rescored)
    raw = lowering.query(q) @ lowering.item(x).T
    scores = metric.score(q.astype(np.float64), x.astype(np.float64))
    most = 2 * np.tanh(sway / 2)
    assert np.abs(scores).max() <= 1 + 1e-12
    assert (np.abs(scores - raw) <= most + 1e-5).all()
    for row, tail in np.ndindex(raw.shape):
        bound = lowering.bound(float(raw[row, tail]))
        assert bound is not None
        assert (scores[row, raw[row] <= raw[row, tail]] <= bound).all()


@pytest.mark.parametrize("sway", [0.0, 0.1, 1.0, 3.0])
def test_the_bound_of_mixtures_is_attained(sway: float) -> None:
    """Products of 1 and -1, between which an item moves as much weight as it can: from e^-s : 1 to 1 : e^-s."""
    metric = MixtureOfLogits(components=2, size=1, sway=sway).start(1, seed=0)
    module, sign = metric.module, torch.tensor([1.0, -1.0, 1.0, -1.0])
    with torch.no_grad():
        module.query.copy_(torch.tensor([[1.0, 1.0]]))
        module.item.copy_(torch.tensor([[1.0, -1.0]]))
        module.gate_query.bias.copy_(-sign * sway / 2)
        module.gate_item.weight.copy_(1000 * sign[:, None])
        for parameter in module.gate_pair.parameters():
            parameter.zero_()
    one = np.ones((1, 1))
    lowering = metric.lower(1)
    raw = float((lowering.query(one) @ lowering.item(one).T)[0, 0])
    assert metric.score(one, one)[0, 0] - raw == pytest.approx(2 * np.tanh(sway / 2), abs=1e-6)
    assert isinstance(lowering, Rescored)
    bound = lowering.bound(raw)
    assert bound is not None
    assert 0 <= bound - metric.score(one, one)[0, 0] < 1e-4


def test_without_sway_a_mixture_is_its_lowering(rng: np.random.Generator) -> None:
    metric = perturbed(MixtureOfLogits(components=3, size=4, sway=0.0), 10)
    q, x = vectors(rng, 5), vectors(rng, 6)
    lowering = metric.lower(10)
    np.testing.assert_allclose(lowering.query(q) @ lowering.item(x).T, metric.score(q, x), atol=1e-6)


def test_parameters_shape_the_weights() -> None:
    def shapes(metric: LearnedMetric) -> dict[str, Any]:
        return {name.rsplit("/")[-1]: list(w.shape) for name, w in metric.start(10, seed=0).weights().items()}

    assert shapes(Bilinear(rank=3, blocks=4)) == {"dim": [1], "left": [10, 3], "right": [10, 3], "blocks": [4, 3, 3]}
    mixture = shapes(replace(MixtureOfLogits(), components=2, size=5))
    assert (mixture["query"], mixture["item"], mixture["gate_query.weight"]) == ([10, 10], [10, 10], [4, 10])
    assert shapes(Perceptron(hidden=7))["of_product.weight"] == [7, 10]
