"""Heads: what they start as, what they freeze to, and what their training may see."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from alignment.fitting import methods
from alignment.fitting import trainer as training_loop
from alignment.fitting.heads import HEADS, FuseMix, Head, Linear, Residual, StarGluHead
from alignment.fitting.methods import METHODS, FitSpec, Fitter
from alignment.metrics import Cosine, parse
from alignment.model.projections import Projection
from alignment.names import HEADS as HEAD_NAMES
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import recall_at
from alignment.vectors import l2_normalize
from tests.support.pairs import paired

CPU = torch.device("cpu")
Matrix = npt.NDArray[np.floating]

# A head of each kind that trains in a moment.
NARROW: dict[str, dict[str, Any]] = {
    "linear": {"start": "rcca", "epochs": 3},
    "residual": {"start": "kcca", "rank": 3, "epochs": 3},
    "fusemix": {"mix": 1.0, "dropout": 0.1, "blocks": 2, "width": 8, "components": 5, "epochs": 3},
    "star-glu": {"loss": "siglip", "width": 2, "components": 5, "epochs": 3},
}
every_head = pytest.mark.parametrize("name", HEADS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they save on batches this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = {
        "identity": {},
        "rcca": {"shrinkage_image": 0.1, "shrinkage_text": 0.1, "components": 6, "power": 0.5},
        "kcca": {"gamma": 2.0, "shrinkage": 0.3, "components": 6},
    }
    monkeypatch.setattr(methods, "STARTS", starts)


def views(rng: np.random.Generator, n: int = 80, noise: float = 0.3) -> GroupedEmbeddings:
    Z = rng.standard_normal((n, 6))
    sides = [Z @ rng.standard_normal((6, d)) + noise * rng.standard_normal((n, d)) for d in (9, 7)]
    return paired(sides[0], sides[1])


def begun(name: str, data: GroupedEmbeddings) -> tuple[Head, Projection]:
    closed = NARROW[name].get("start")
    start = Projection(9, np.zeros(9, np.float32))
    if closed:
        start = Fitter(closed, data, CPU).fit(methods.STARTS[closed])[0]
    torch.manual_seed(0)
    return HEADS[name].begin(start, NARROW[name]), start


def test_every_head_has_a_name_that_the_methods_know() -> None:
    assert tuple(HEADS) == HEAD_NAMES == tuple(NARROW)
    assert set(HEAD_NAMES) < set(METHODS)


@every_head
def test_a_head_freezes_to_what_it_computes(name: str, rng: np.random.Generator) -> None:
    data = views(rng)
    head, start = begun(name, data)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    frozen = head.projection(start.mean)
    X = data.image.vectors
    with torch.no_grad():
        Z = head(torch.from_numpy(l2_normalize(X) - (0 if start.mean is None else start.mean)))
    np.testing.assert_allclose(frozen(X), l2_normalize(Z.numpy()), atol=2e-5)


@pytest.mark.parametrize("name", ["linear", "residual"])
def test_a_head_on_a_closed_form_starts_as_that(name: str, rng: np.random.Generator) -> None:
    data = views(rng)
    head, start = begun(name, data)
    np.testing.assert_allclose(head.projection(start.mean)(data.image.vectors), start(data.image.vectors), atol=1e-5)


def test_a_residual_stands_on_any_closed_form(rng: np.random.Generator) -> None:
    data = paired(rng.standard_normal((40, 6)), rng.standard_normal((40, 6)))
    for name, hyperparameters in (("identity", {}), ("asif", {"kept": 5, "power": 2.0}), *methods.STARTS.items()):
        for start, side in zip(Fitter(name, data, CPU).fit(hyperparameters), (data.image, data.text), strict=True):
            head = Residual.begin(start, {"rank": 64})
            assert head.left.shape == (start.out_dim, min(64, start.out_dim))
            np.testing.assert_allclose(
                head.projection(start.mean).unchecked(side.vectors), start.unchecked(side.vectors), atol=1e-5
            )


@every_head
def test_a_head_is_fitted_like_any_method(name: str, rng: np.random.Generator) -> None:
    data = views(rng)
    image, text = Fitter(name, data, CPU).fit(NARROW[name])
    assert (image.in_dim, text.in_dim) == (9, 7)
    assert image.out_dim == text.out_dim
    again = Fitter(name, data, CPU).fit(NARROW[name])
    other = Fitter(name, data, CPU, FitSpec(seed=1)).fit(NARROW[name])
    for projection, same, different in zip((image, text), again, other, strict=True):
        for key, tensor in projection.tensors().items():
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, same.tensors()[key])
        if name in ("fusemix", "star-glu"):  # the others may stay at their start, which has no seed
            assert any(not np.array_equal(t, different.tensors()[k]) for k, t in projection.tensors().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fusemix", "star-glu", "linear"])
def test_training_beats_the_start(name: str, rng: np.random.Generator) -> None:
    everything = views(rng, 600)
    data, new = everything.only(np.arange(400)), everything.only(np.arange(400, 600))
    hyperparameters = NARROW[name] | {"epochs": 40, "learning_rate": 0.01, "dropout": 0.0, "batch": 100, "mix": 0.0}

    def recall(epochs: int) -> float:
        projections = Fitter(name, data, CPU, FitSpec(given={"epochs": epochs})).fit(hyperparameters)
        both = new.project(projections).ranks({"image": Cosine(), "text": Cosine()})
        return float(np.mean([recall_at(side, 10) for side in both]))

    before, after = recall(0), recall(40)
    assert after > (before - 0.05 if name == "linear" else 0.3)  # chance is 0.05
    assert after > before + 0.2 or name == "linear"


def test_a_start_never_saw_what_its_training_is_validated_on(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would look better than it is, and nothing could beat it."""
    starts: list[set[int]] = []
    splits: list[tuple[Any, Any]] = []
    original_paired, original_train = methods.paired, training_loop.train

    def start(data: GroupedEmbeddings, *arguments: Any, **options: Any) -> Any:
        starts.append(set(data.groups.tolist()))
        return original_paired(data, *arguments, **options)

    def train(model: Any, data: GroupedEmbeddings, fitted: Any, held: Any, **options: Any) -> Any:
        splits.append((set(fitted.tolist()), None if held is None else set(held.tolist())))
        return original_train(model, data, fitted, held, **options)

    monkeypatch.setattr(methods, "paired", start)
    monkeypatch.setattr(methods, "train", train)
    Fitter("linear", views(rng), CPU).fit(NARROW["linear"])
    (fitted, held), (everything, nothing) = splits
    assert held
    assert nothing is None
    assert starts == [fitted, everything]
    assert not fitted & held
    assert fitted | held == everything == set(range(80))


def test_many_groups_are_not_trained_twice(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    original = training_loop.train
    monkeypatch.setattr(methods, "train", lambda *a, **o: trained.append(1) or original(*a, **o))  # type: ignore[func-returns-value]
    Fitter("linear", views(rng), CPU, FitSpec(given={"validation_groups": 3})).fit(NARROW["linear"])
    assert len(trained) == 1  # 3 of 80 are less than a twentieth


def test_settings_that_are_given_stand_above_those_of_a_candidate() -> None:
    task = FitSpec(given={"learning_rate": "0.5", "loss": "hinge"})
    training = task.training({"start": "rcca", "learning_rate": 1e-3, "dropout": 0.25})
    assert (training.learning_rate, training.loss, training.dropout) == (0.5, "hinge", 0.25)


@pytest.mark.parametrize("metric", ["chi2", "manhattan", "kl-query-item", "w1", "bilinear(rank=2,blocks=2)"])
def test_a_head_is_trained_under_any_metric(metric: str, rng: np.random.Generator) -> None:
    lines: list[str] = []
    task = FitSpec((parse(metric),), {"batch": 20}, progress=lines.append)
    image, text = Fitter("linear", views(rng, 40), CPU, task).fit(NARROW["linear"])
    assert image.out_dim == text.out_dim == 6
    assert any(f"linear, {parse(metric)}: epoch 1, loss" in line for line in lines)


def test_a_gated_layer_is_as_wide_as_its_factor() -> None:
    head = StarGluHead.begin(Projection(4), {"width": 3, "components": 2})
    assert head.projection(None).feature_map is not None
    assert head.projection(None).feature_map.dims == (4, 12)  # type: ignore[union-attr]
    assert FuseMix.begin(Projection(4), {"width": 6, "blocks": 2, "components": 2}).projection(None).out_dim == 2


def test_a_linear_head_of_the_identity_is_a_square(rng: np.random.Generator) -> None:
    head = Linear.begin(Projection(4), {})
    X = rng.standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(head.projection(None)(X), l2_normalize(X), atol=1e-6)
