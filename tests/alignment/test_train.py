from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment import train as train_module
from alignment.errors import FitError, WeightsError
from alignment.metrics import METRICS, Bilinear, Cosine, LearnedMetric, Metric, MixtureOfLogits, Perceptron
from alignment.recall import ranks, recall_at
from alignment.train import Side, Training, _batches, train
from alignment.vectors import unit

CPU = torch.device("cpu")
DIM = 16
QUICK = Training(batch=50, epochs=8, learning_rate=0.03)

# Small, so that training takes a moment; a new learned metric needs a line here.
SMALL: dict[str, LearnedMetric] = {
    "bilinear": Bilinear(rank=2, blocks=8),
    "mol": MixtureOfLogits(components=2, size=8),
    "mlp": Perceptron(hidden=32),
}
every_small = pytest.mark.parametrize("metric", SMALL.values(), ids=str)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they save on batches this small, many times more where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pairs(rng: np.random.Generator, groups: int, *, captions: int = 1, first: int = 0) -> tuple[Side, Side]:
    """Images and texts that say the same, but texts have neighbouring coordinates swapped: cosine is at chance."""
    Z = rng.standard_normal((groups, DIM))
    X = Z + 0.1 * rng.standard_normal(Z.shape)
    Y = np.repeat(Z, captions, axis=0)
    Y = Y + 0.1 * rng.standard_normal(Y.shape)
    swapped = Y.reshape(len(Y), -1, 2)[:, :, ::-1].reshape(len(Y), DIM)
    codes = first + np.arange(groups)
    return Side(unit(X), codes), Side(unit(swapped), np.repeat(codes, captions))


def recall_at_1(metric: Metric, image: Side, text: Side) -> float:
    both = (
        ranks(text.vectors, image.vectors, text.groups, image.groups, metric=metric),
        ranks(image.vectors, text.vectors, image.groups, text.groups, metric=metric),
    )
    return float(np.mean([recall_at(r, 1) for r in both]))


def weights(metric: LearnedMetric) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in metric.weights().items()}


def test_every_learned_metric_is_trained_here() -> None:
    assert SMALL.keys() == {name for name, metric in METRICS.items() if isinstance(metric, LearnedMetric)}


@every_small
def test_training_finds_what_cosine_cannot_see(metric: LearnedMetric, rng: np.random.Generator) -> None:
    image, text = pairs(rng, 300)
    new = pairs(rng, 200, first=1000)
    assert recall_at_1(Cosine(), *new) < 0.05
    assert recall_at_1(metric.start(DIM, 0), *new) < 0.05
    assert recall_at_1(train(metric, image, text, training=QUICK, device=CPU), *new) > 0.8


def test_several_captions_of_an_image_are_learned_from(rng: np.random.Generator) -> None:
    image, text = pairs(rng, 300, captions=3)
    new = pairs(rng, 200, captions=3, first=1000)
    trained = train(SMALL["bilinear"], image, text, training=QUICK, device=CPU)
    assert recall_at_1(trained, *new) > 0.8


@every_small
def test_training_is_a_function_of_its_seed(metric: LearnedMetric, rng: np.random.Generator) -> None:
    image, text = pairs(rng, 60)
    training = replace(QUICK, epochs=2, batch=20)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = train(metric, image, text, training=training, seed=4, device=CPU)
    assert torch.equal(torch.rand(3), expected)  # nobody else's numbers were used up
    again = train(metric, image, text, training=training, seed=4, device=CPU)
    other = train(metric, image, text, training=training, seed=5, device=CPU)
    assert weights(first) == weights(again) != weights(other)


@every_small
def test_training_leaves_the_metric_and_the_data_alone(metric: LearnedMetric, rng: np.random.Generator) -> None:
    image, text = pairs(rng, 40)
    before = [part.copy() for side in (image, text) for part in (side.vectors, side.groups)]
    trained = train(metric, image, text, training=replace(QUICK, epochs=1), device=CPU)
    assert metric.module is None
    assert trained == metric
    assert not trained.module.training
    for part, same in zip((image.vectors, image.groups, text.vectors, text.groups), before, strict=True):
        np.testing.assert_array_equal(part, same)


# What is validated


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What every validation gave, in order."""
    seen: list[float] = []
    validate = train_module._validate

    def watched(*arguments: Any) -> float:
        seen.append(validate(*arguments))
        return seen[-1]

    monkeypatch.setattr(train_module, "_validate", watched)
    return seen


@pytest.mark.parametrize("learning_rate", [1e-3, 0.03, 0.5])
def test_the_state_that_validated_best_is_kept(
    learning_rate: float, validations: list[float], monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    image, text = pairs(rng, 120)
    held: list[npt.NDArray[np.int64]] = []
    validate = train_module._validate

    def watched(metric: LearnedMetric, x: Side, y: Side, groups: npt.NDArray[np.int64]) -> float:
        held.append(groups)
        return validate(metric, x, y, groups)

    monkeypatch.setattr(train_module, "_validate", watched)
    training = replace(QUICK, learning_rate=learning_rate, epochs=6, batch=30)
    trained = train(SMALL["bilinear"], image, text, training=training, device=CPU)
    assert validate(trained, image, text, held[0]) == max(validations[:-1]) >= validations[0]


def test_what_was_there_before_is_kept_where_training_makes_it_worse(
    validations: list[float], rng: np.random.Generator
) -> None:
    """Cosine is right already, and steps are far too long."""
    Z = rng.standard_normal((80, DIM))
    sides = [Side(unit(Z), np.arange(80)) for _ in range(2)]
    metric = SMALL["bilinear"]
    trained = train(metric, *sides, training=replace(QUICK, learning_rate=1.0), seed=3, device=CPU)
    assert validations[0] == 1.0 > min(validations[1:])
    assert weights(trained) == weights(metric.start(DIM, 3))
    assert len(validations) == 1 + min(QUICK.patience, QUICK.epochs)


@pytest.mark.parametrize(("epochs", "patience", "expected"), [(0, 6, 1), (3, 6, 4), (9, 2, 3)])
def test_training_ends_after_its_epochs_or_its_patience(
    epochs: int, patience: int, expected: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    seen: list[int] = []

    def never_better(*_: object) -> float:
        seen.append(1)
        return 0.0

    monkeypatch.setattr(train_module, "_validate", never_better)
    lines: list[str] = []
    training = replace(QUICK, epochs=epochs, patience=patience)
    train(Perceptron(hidden=2), *pairs(rng, 20), training=training, device=CPU, progress=lines.append)
    assert len(seen) == expected
    assert lines == [
        "mlp(hidden=2): validation recall 0.000 before training",
        f"mlp(hidden=2): validation recall 0.000 after {expected - 1} epochs",
    ]


def test_validation_is_the_mean_of_six_recalls(rng: np.random.Generator) -> None:
    image, text = pairs(rng, 40, captions=2)
    groups = np.arange(5, 30)
    x, y = (side.where(np.isin(side.groups, groups)) for side in (image, text))
    assert set(x.groups) == set(y.groups) == set(groups)
    forth = ranks(y.vectors, x.vectors, y.groups, x.groups, metric=Cosine())
    back = ranks(x.vectors, y.vectors, x.groups, y.groups, metric=Cosine())
    expected = np.mean([(r <= k).mean() for r in (forth, back) for k in (1, 5, 10)])
    assert train_module._validate(Cosine(), image, text, groups) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("groups", "share", "most", "expected"), [(40, 0.15, 2000, 6), (40, 0.25, 4, 4), (5, 0.01, 9, 1), (3, 0.15, 9, 1)]
)
def test_no_group_is_both_validated_and_trained_on(
    groups: int,
    share: float,
    most: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    image, text = pairs(rng, groups)
    more_images, more_texts = pairs(rng, 3, first=500)[0], pairs(rng, 4, first=600)[1]  # without a partner
    image, text = (
        Side(np.concatenate([a.vectors, b.vectors]), np.concatenate([a.groups, b.groups]))
        for a, b in ((image, more_images), (text, more_texts))
    )
    validated: list[npt.NDArray[np.int64]] = []
    fitted: list[npt.NDArray[np.int64]] = []
    batches = train_module._batches

    def validate(metric: LearnedMetric, x: Side, y: Side, groups: npt.NDArray[np.int64]) -> float:
        validated.append(groups)
        return 0.0

    def watched(groups: npt.NDArray[np.int64], *rest: Any) -> Any:
        fitted.append(groups)
        return batches(groups, *rest)

    monkeypatch.setattr(train_module, "_validate", validate)
    monkeypatch.setattr(train_module, "_batches", watched)
    training = replace(QUICK, epochs=2, validation=share, validation_groups=most)
    train(Perceptron(hidden=2), image, text, training=training, device=CPU)
    assert len(validated[0]) == expected
    for held, used in zip(validated, fitted, strict=False):
        np.testing.assert_array_equal(held, validated[0])
        np.testing.assert_array_equal(np.sort(np.concatenate([held, used])), np.arange(groups))


# Batches


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4))
def test_a_batch_holds_one_image_and_one_text_of_each_of_its_groups(
    seed: int, groups: int, size: int, images: int, captions: int
) -> None:
    """So no two of a batch are of one group: nothing is told from what it belongs to."""
    rng = np.random.default_rng(seed)
    image, text = (
        Side(np.zeros((0, 1), np.float32), rng.permutation(np.repeat(np.arange(groups + 2), rng.integers(1, most + 1))))
        for most in (images, captions)
    )
    fitted = rng.permutation(groups)
    seen: list[int] = []
    for x, y in _batches(fitted, image, text, size, rng):
        assert 2 <= len(x) <= size
        np.testing.assert_array_equal(image.groups[x], text.groups[y])
        assert len(set(image.groups[x])) == len(x)
        seen.extend(image.groups[x].tolist())
    assert len(set(seen)) == len(seen)
    left = 1 if groups % size == 1 else 0  # one alone has nothing to be told from
    assert len(seen) == (groups - left if size > 1 else 0)
    assert set(seen) <= set(fitted.tolist())


def test_over_epochs_every_caption_is_drawn_about_as_often(rng: np.random.Generator) -> None:
    codes = rng.permutation(np.repeat(np.arange(10), 4))
    side = Side(np.zeros((40, 1), np.float32), codes)
    drawn = np.zeros((2, 40))
    for _ in range(400):
        for x, y in _batches(np.arange(10), side, side, 5, rng):
            drawn[0, x] += 1
            drawn[1, y] += 1
    assert (drawn.sum(axis=1) == 400 * 10).all()
    assert drawn.min() > 60  # 100 expected; binomial, so 60 is more than four deviations off
    assert drawn.max() < 140


def test_groups_are_batched_anew_every_epoch(rng: np.random.Generator) -> None:
    side = Side(np.zeros((30, 1), np.float32), np.arange(30))
    first = {frozenset(x.tolist()) for x, _ in _batches(np.arange(30), side, side, 10, rng)}
    second = {frozenset(x.tolist()) for x, _ in _batches(np.arange(30), side, side, 10, rng)}
    assert len(first) == len(second) == 3
    assert first.isdisjoint(second)


# Little data, and bad


@every_small
@pytest.mark.parametrize("groups", [3, 4])
def test_three_groups_are_enough(metric: LearnedMetric, groups: int, rng: np.random.Generator) -> None:
    image, text = pairs(rng, groups, captions=2)
    trained = train(metric, image, text, training=replace(QUICK, epochs=2), device=CPU)
    assert np.isfinite(trained.score(text.vectors, image.vectors)).all()


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_fewer_groups_are_refused(groups: int, rng: np.random.Generator) -> None:
    image, text = (side.where(side.groups < groups) for side in pairs(rng, 3, captions=5))
    more = pairs(rng, 9, first=100)[0]  # images without a text do not count
    image = Side(np.concatenate([image.vectors, more.vectors]), np.concatenate([image.groups, more.groups]))
    with pytest.raises(FitError) as caught:
        train(Bilinear(), image, text, device=CPU)
    assert str(caught.value) == (
        "metric bilinear(rank=16,blocks=8): expected at least 3 groups with both images and texts to train on, got "
        f"{groups}; encode more pairs, or choose a metric that learns nothing"
    )


def test_weights_that_run_away_are_an_error_not_a_metric(rng: np.random.Generator) -> None:
    training = replace(QUICK, learning_rate=1e30, batch=10)
    with pytest.raises(WeightsError, match="its weights have diverged"):
        train(SMALL["bilinear"], *pairs(rng, 40), training=training, device=CPU)
