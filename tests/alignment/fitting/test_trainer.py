import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from alignment.errors import FitError, TrainingError
from alignment.fitting import batches as batching
from alignment.fitting import losses, objective
from alignment.fitting.batches import CentredRows, batches
from alignment.fitting.heads import Linear
from alignment.fitting.objective import score_unit
from alignment.fitting.trainer import Model, split
from alignment.fitting.trainer import train as train_model
from alignment.fitting.training import LOSSES, Training
from alignment.metrics import (
    METRICS,
    Bilinear,
    ChiSquare,
    Cosine,
    Euclid,
    KullbackQueryItem,
    LearnedMetric,
    Metric,
    MixtureOfLogits,
    Perceptron,
)
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import ranks, recall_at
from alignment.vectors import l2_normalize
from tests.support.errors import raises
from tests.support.torchrun import LAUNCHER, run
from tests.support.training import DIM, linear_heads, swapped_pairs

CPU = torch.device("cpu")
QUICK = Training(batch=50, epochs=8, learning_rate=0.03)

# Small, so that training takes a moment; a new learned metric needs a line here.
SMALL: dict[str, LearnedMetric] = {
    "bilinear": Bilinear(rank=2, blocks=8),
    "mol": MixtureOfLogits(components=2, size=8),
    "mlp": Perceptron(hidden=32),
}
every_small = pytest.mark.parametrize("metric", SMALL.values(), ids=str)


def pairs(rng: np.random.Generator, groups: int, **options: int) -> tuple[ModalityEmbeddings, ModalityEmbeddings]:
    data = swapped_pairs(rng, groups, **options)
    return data.image, data.text


def recall_at_1(metric: Metric, image: ModalityEmbeddings, text: ModalityEmbeddings) -> float:
    both = (
        ranks(text.vectors, image.vectors, text.groups, image.groups, metric=metric),
        ranks(image.vectors, text.vectors, image.groups, text.groups, metric=metric),
    )
    return float(np.mean([recall_at(r, 1) for r in both]))


def train(
    metric: LearnedMetric,
    image: ModalityEmbeddings,
    text: ModalityEmbeddings,
    *,
    training: Training = Training(),
    seed: int = 0,
    **options: Any,
) -> LearnedMetric:
    """Train one metric on vectors that are aligned."""
    data = GroupedEmbeddings(image, text)
    fitted, held = split(data, training, np.random.default_rng(seed))
    started = metric.start(image.vectors.shape[1], seed)
    train_model(Model([started]), data, fitted, held, training=training, seed=seed, **options)
    return started


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


def validations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What every validation gives, in order."""
    seen: list[float] = []
    validate = Model.validate

    def watched(self: Model, data: GroupedEmbeddings) -> float:
        seen.append(validate(self, data))
        return seen[-1]

    monkeypatch.setattr(Model, "validate", watched)
    return seen


@pytest.mark.parametrize("learning_rate", [1e-3, 0.03, 0.5])
def test_the_state_that_validated_best_is_kept(
    learning_rate: float, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    data = swapped_pairs(rng, 120)
    training = replace(QUICK, learning_rate=learning_rate, epochs=6, batch=30)
    fitted, held = split(data, training, rng)
    model = Model([SMALL["bilinear"].start(DIM, 0)])
    seen = validations(monkeypatch)
    result = train_model(model, data, fitted, held, training=training, device=CPU)
    assert seen[result.epoch] == result.score == max(seen) >= result.before == seen[0]
    assert model.validate(data.only(held)) == result.score


def test_what_was_there_before_is_kept_where_training_makes_it_worse(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Cosine is right already, and steps are far too long."""
    Z = rng.standard_normal((80, DIM))
    metric = SMALL["bilinear"]
    seen = validations(monkeypatch)
    sides = [ModalityEmbeddings(l2_normalize(Z), np.arange(80)) for _ in range(2)]
    trained = train(metric, *sides, training=replace(QUICK, learning_rate=1.0), seed=3, device=CPU)
    assert seen[0] == 1.0 > min(seen[1:])
    assert weights(trained) == weights(metric.start(DIM, 3))
    assert len(seen) == 1 + min(QUICK.patience, QUICK.epochs)


@pytest.mark.parametrize(("epochs", "patience", "expected"), [(0, 6, 0), (3, 6, 3), (9, 2, 2)])
def test_training_ends_after_its_epochs_or_its_patience(
    epochs: int, patience: int, expected: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(Model, "validate", lambda *_: 0.0)
    lines: list[str] = []
    training = replace(QUICK, epochs=epochs, patience=patience)
    train(Perceptron(hidden=2), *pairs(rng, 20), training=training, device=CPU, progress=lines.append)
    assert lines[0] == "mlp(hidden=2): validation recall 0.000 before training"
    assert lines[-1] == f"mlp(hidden=2): validation recall 0.000 after 0 of {expected} epochs"
    assert len([line for line in lines if "loss" in line]) == expected


def test_validation_is_the_mean_of_six_recalls_under_every_metric(rng: np.random.Generator) -> None:
    data = swapped_pairs(rng, 40, captions=2)
    metrics = [Cosine(), Euclid(), ChiSquare()]
    found = []
    for metric in metrics:
        x, y = data.image, data.text
        forth = ranks(y.vectors, x.vectors, y.groups, x.groups, metric=metric)
        back = ranks(x.vectors, y.vectors, x.groups, y.groups, metric=metric)
        found.append(np.mean([(r <= k).mean() for r in (forth, back) for k in (1, 5, 10)]))
    assert Model(metrics).validate(data) == pytest.approx(np.mean(found))


@pytest.mark.parametrize(
    ("groups", "share", "most", "expected"), [(40, 0.15, 2000, 6), (40, 0.25, 4, 4), (5, 0.01, 9, 1), (3, 0.15, 9, 1)]
)
def test_no_group_is_both_validated_and_trained_on(
    groups: int, share: float, most: int, expected: int, rng: np.random.Generator
) -> None:
    image, text = pairs(rng, groups)
    more_images, more_texts = pairs(rng, 3, first=500)[0], pairs(rng, 4, first=600)[1]  # without a partner
    data = GroupedEmbeddings(
        *(
            ModalityEmbeddings(np.concatenate([a.vectors, b.vectors]), np.concatenate([a.groups, b.groups]))
            for a, b in ((image, more_images), (text, more_texts))
        )
    )
    fitted, held = split(data, replace(QUICK, validation=share, validation_groups=most), rng)
    assert len(held) == expected
    np.testing.assert_array_equal(np.sort(np.concatenate([held, fitted])), np.arange(groups))


# Batches


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(2, 7), st.integers(1, 4), st.integers(1, 4))
def test_a_batch_holds_one_image_and_one_text_of_each_of_its_groups(
    seed: int, groups: int, size: int, images: int, captions: int
) -> None:
    """So no two of a batch are of one group: nothing is told from what it belongs to."""
    rng = np.random.default_rng(seed)
    image, text = (
        ModalityEmbeddings(
            np.zeros((0, 1), np.float32), rng.permutation(np.repeat(np.arange(groups + 2), rng.integers(1, most + 1)))
        )
        for most in (images, captions)
    )
    fitted = rng.permutation(groups)
    seen: list[int] = []
    for x, y in batches(fitted, GroupedEmbeddings(image, text), Training(batch=size), rng):
        assert 2 <= len(x) <= size
        np.testing.assert_array_equal(image.groups[x], text.groups[y])
        assert len(set(image.groups[x])) == len(x)
        seen.extend(image.groups[x].tolist())
    assert len(set(seen)) == len(seen)
    assert len(seen) == groups - (1 if groups % size == 1 else 0)  # one alone has nothing to be told from
    assert set(seen) <= set(fitted.tolist())


def test_over_epochs_every_caption_is_drawn_about_as_often(rng: np.random.Generator) -> None:
    codes = rng.permutation(np.repeat(np.arange(10), 4))
    side = ModalityEmbeddings(np.zeros((40, 1), np.float32), codes)
    drawn = np.zeros((2, 40))
    for _ in range(400):
        for x, y in batches(np.arange(10), GroupedEmbeddings(side, side), Training(batch=5), rng):
            drawn[0, x] += 1
            drawn[1, y] += 1
    assert (drawn.sum(axis=1) == 400 * 10).all()
    assert drawn.min() > 60  # 100 expected; binomial, so 60 is more than four deviations off
    assert drawn.max() < 140


def test_groups_are_batched_anew_every_epoch(rng: np.random.Generator) -> None:
    side = ModalityEmbeddings(np.zeros((30, 1), np.float32), np.arange(30))
    first, second = (
        {
            frozenset(x.tolist())
            for x, _ in batches(np.arange(30), GroupedEmbeddings(side, side), Training(batch=10), rng)
        }
        for _ in range(2)
    )
    assert len(first) == len(second) == 3
    assert first.isdisjoint(second)


# Gradients


def at_every_step(monkeypatch: pytest.MonkeyPatch, look: Callable[[torch.optim.AdamW], None]) -> None:
    """Call `look` with the optimizer, which has the gradients, before every step."""
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *rest: Any) -> Any:
        look(self)
        return step(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)


def one_step(
    data: GroupedEmbeddings, metrics: list[Metric], training: Training, monkeypatch: pytest.MonkeyPatch
) -> list[npt.NDArray[np.float32]]:
    """Gradients of the only batch, which are not clipped."""
    started = [m.start(6, 0) if isinstance(m, LearnedMetric) else m for m in metrics]
    gradients: list[npt.NDArray[np.float32]] = []

    def look(optimizer: torch.optim.AdamW) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.extend(p.grad.numpy().copy() for p in parameters if p.grad is not None)

    with monkeypatch.context() as patch:
        at_every_step(patch, look)
        once = replace(training, clip=1e9, epochs=1)
        train_model(Model(started, linear_heads(data)), data, data.groups, None, training=once, device=CPU)
    return gradients


METRIC_SETS: list[list[Metric]] = [
    [Cosine()],
    [Euclid()],
    [ChiSquare()],
    [KullbackQueryItem()],
    [SMALL["mol"]],
    [Cosine(), ChiSquare(), SMALL["bilinear"]],
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("metrics", METRIC_SETS, ids=lambda metrics: "+".join(m.name for m in metrics))
def test_gradients_of_chunks_are_those_of_the_whole_batch(
    metrics: list[Metric], loss: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    data = swapped_pairs(rng, 23)
    training = Training(loss=loss, batch=23, structure=3.0, warm_up=0.0)
    whole = one_step(data, metrics, training, monkeypatch)
    for at_once in (1, 23 * 5):
        monkeypatch.setattr(objective, "LOGITS_AT_ONCE", at_once)
        for chunked, expected in zip(one_step(data, metrics, training, monkeypatch), whole, strict=True):
            np.testing.assert_allclose(chunked, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max() + 1e-9)


def test_gradients_are_those_of_the_plain_loss(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symmetric InfoNCE as it is usually written, in one graph."""
    data = swapped_pairs(rng, 23)  # one image and one text a group, so the order of the batch is of no account
    gradients = one_step(data, [Cosine()], Training(batch=23), monkeypatch)
    image, text = linear_heads(data)
    scale = torch.nn.Parameter(torch.tensor(-np.log(0.05), dtype=torch.float32))
    u, v = (
        normalize(head(torch.from_numpy(side.vectors)), dim=1)
        for head, side in zip((image, text), (data.image, data.text), strict=True)
    )
    S, target = scale.exp() * u @ v.T, torch.arange(23)
    loss = cross_entropy(S, target) / 2 + cross_entropy(S.T, target) / 2
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter, gradient in zip((*image.parameters(), *text.parameters(), scale), gradients, strict=False):
        assert parameter.grad is not None
        np.testing.assert_allclose(gradient.squeeze(), parameter.grad.numpy().squeeze(), rtol=1e-3, atol=1e-6)


STEPS = """
import runpy
import sys
import numpy as np
import torch
from alignment import distributed
from alignment.fitting.trainer import Model, train
from alignment.fitting.training import Training
from alignment.metrics import Bilinear, ChiSquare, Cosine
from tests.support.training import linear_heads, swapped_pairs

torch.set_num_threads(1)
with distributed.process_group() as rank:
    states = []
    for mix in (0.0, 1.0):
        data = swapped_pairs(np.random.default_rng(1), 51)
        # Heads differ between the processes; training starts from those of rank 0.
        model = Model([Cosine(), ChiSquare(), Bilinear(2, 8).start(6, 0)], linear_heads(data, rank))
        training = Training(batch=25, epochs=3, structure=1.0, mix=mix)
        train(model, data, data.groups[:41], data.groups[41:], training=training, seed=3, device=torch.device("cpu"))
        states.append(torch.cat([p.detach().flatten() for p in model.module.parameters()]).numpy())
    assert not np.allclose(*states)
    np.save(f"{sys.argv[1]}-{rank}.npy", np.stack(states))
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text(STEPS)
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "one")])
    runpy.run_path(str(script))
    process = run(*LAUNCHER, str(script), str(tmp_path / "two"))
    assert process.returncode == 0, process.stderr[-3000:]
    one, first, second = (np.load(tmp_path / f"{name}.npy") for name in ("one-0", "two-0", "two-1"))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, one, rtol=1e-3, atol=1e-5)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_rows_stream_from_the_host_as_from_the_device(
    device: str, share: float, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of 0 of a GPU's memory holds nothing: there they stream."""
    monkeypatch.setattr(batching, "RESIDENT", share)
    vectors, mean = rng.standard_normal((9, 4)).astype(np.float32), np.full(4, 0.1, np.float32)
    rows = CentredRows(ModalityEmbeddings(vectors, np.arange(9)), mean, torch.device(device))
    assert rows.resident == (device == "cpu" or share > 0)
    chosen = np.array([3, 3, 8])
    on_device = rows(chosen, torch.device(device))
    assert on_device.device.type == device
    np.testing.assert_allclose(on_device.cpu(), l2_normalize(vectors[chosen]) - mean, atol=1e-6)


# Schedules


def rates(training: Training, data: GroupedEmbeddings, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Learning rates of all steps."""
    seen: list[float] = []
    at_every_step(monkeypatch, lambda optimizer: seen.append(optimizer.param_groups[0]["lr"]))
    model = Model([SMALL["bilinear"].start(DIM, 0)])
    train_model(model, data, data.groups, None, training=training, device=CPU)
    return seen


def test_the_rate_rises_and_falls_as_a_cosine(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(batch=10, epochs=20, learning_rate=0.1, warm_up=0.2)
    found = rates(training, swapped_pairs(rng, 50), monkeypatch)
    assert len(found) == 100
    expected = [0.1 * min(1, (s + 1) / 20) * 0.5 * (1 + np.cos(np.pi * s / 100)) for s in range(100)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_epoch_draws_as_often_as_there_are_captions(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(batch=10, epochs=2)
    assert len(rates(training, swapped_pairs(rng, 20, captions=5), monkeypatch)) == 2 * 2 * 5


def test_the_last_epochs_can_train_on_recall(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name in ("info_nce", "recall_surrogate", "hinge"):
        original = getattr(losses, name)

        def watched(*arguments: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            used.append(f"{name} {options['hardest']}" if options else name)
            return original(*arguments, **options)

        monkeypatch.setattr(losses, name, watched)
    data = swapped_pairs(rng, 20)
    rates(Training(batch=20, epochs=4, late_recall=0.25), data, monkeypatch)
    assert used == ["info_nce"] * 6 + ["recall_surrogate"] * 2
    used.clear()
    rates(Training(batch=20, epochs=4, loss="hinge", semi_hard=0.5), data, monkeypatch)
    assert used == ["hinge False"] * 4 + ["hinge True"] * 4


def test_a_temperature_means_the_same_under_every_metric(rng: np.random.Generator) -> None:
    image, text = (torch.from_numpy(rng.standard_normal((60, 20)).astype(np.float32)) for _ in range(2))
    image, text = (normalize(side, dim=1) for side in (image, text))
    spread = Cosine().score(text, image).std()
    for metric in METRICS.values():
        if not isinstance(metric, LearnedMetric):
            scores = metric.score(text, image) / score_unit(metric, image, text)
            assert scores.std() == pytest.approx(float(spread), rel=1e-4)


def test_the_temperature_is_learned_and_never_below_its_floor(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales: list[float] = []

    def look(optimizer: torch.optim.AdamW) -> None:
        log_scales = optimizer.param_groups[1]["params"][0]
        assert float(log_scales.grad.abs()) > 0
        scales.append(float(log_scales.detach().exp()))

    at_every_step(monkeypatch, look)
    data = swapped_pairs(rng, 40)
    model = Model([Cosine()], (Linear(torch.eye(DIM)), Linear(torch.eye(DIM))))
    training = replace(QUICK, temperature=0.011, epochs=4)
    train_model(model, data, data.groups, None, training=training, device=CPU)
    assert len(scales) == 4
    assert len(set(scales)) > 1
    assert max(scales) <= 100.0 * (1 + 1e-6)
    with raises(TrainingError, "temperature", 0.01, 0.009):
        Training(temperature=0.009)


# What ends a training


def test_a_loss_that_diverges_ends_it_with_the_best_state(rng: np.random.Generator) -> None:
    data = swapped_pairs(rng, 40)
    model = Model([SMALL["bilinear"].start(DIM, 0)])
    before = [p.detach().clone() for p in model.module.parameters()]
    lines: list[str] = []
    training = replace(QUICK, learning_rate=1e30, batch=10)
    result = train_model(
        model, data, data.groups[8:], data.groups[:8], training=training, device=CPU, progress=lines.append
    )
    assert result.epoch == 0
    assert any("training stops, and the best state so far is kept; try a lower learning_rate" in line for line in lines)
    for parameter, same in zip(model.module.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), same, rtol=0, atol=0)


@pytest.mark.parametrize("validated", [True, False])
def test_an_interrupt_keeps_the_best_state(
    validated: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = swapped_pairs(rng, 60)
    model = Model([SMALL["bilinear"].start(DIM, 0)])
    start = [p.detach().clone() for p in model.module.parameters()]
    steps = iter(range(1_000))

    def interrupt(_: torch.optim.AdamW) -> None:
        if next(steps) == 7:
            raise KeyboardInterrupt

    at_every_step(monkeypatch, interrupt)
    lines: list[str] = []
    held = data.groups[:10] if validated else None
    training = replace(QUICK, batch=10)
    result = train_model(model, data, data.groups[10:], held, training=training, device=CPU, progress=lines.append)
    assert result.interrupted
    assert "bilinear(rank=2,blocks=8): interrupted: the best state so far is kept" in lines
    if validated:
        assert model.validate(data.only(data.groups[:10])) == result.score >= result.before
    else:
        for parameter, same in zip(model.module.parameters(), start, strict=True):
            torch.testing.assert_close(parameter.detach(), same, rtol=0, atol=0)


def test_a_deadline_ends_it(rng: np.random.Generator) -> None:
    data = swapped_pairs(rng, 60)
    model, lines = Model([SMALL["bilinear"].start(DIM, 0)]), list[str]()
    result = train_model(
        model, data, data.groups[10:], data.groups[:10], training=QUICK, device=CPU, deadline=0.0, progress=lines.append
    )
    assert not result.interrupted
    assert any("the budget has passed" in line for line in lines)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_says_what_to_lower(
    error: Exception, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: torch.optim.AdamW) -> None:
        raise error

    at_every_step(monkeypatch, fail)
    data = swapped_pairs(rng, 20)
    with raises(FitError, "cpu", 50, "--training batch=25"):
        train_model(Model([SMALL["bilinear"].start(DIM, 0)]), data, data.groups, None, training=QUICK, device=CPU)


class Rounded(Cosine):
    """A metric whose author computed it outside torch."""

    def score(self, queries: Any, items: Any) -> Any:
        if isinstance(queries, np.ndarray):
            return super().score(queries, items)
        return torch.from_numpy(self.score(queries.detach().numpy(), items.detach().numpy()))


def test_a_metric_without_gradient_is_refused(rng: np.random.Generator) -> None:
    data = swapped_pairs(rng, 40)
    heads = Linear(torch.eye(DIM)), Linear(torch.eye(DIM))
    fitted, held = split(data, QUICK, rng)
    with raises(FitError, "metric cosine", "--method"):
        train_model(Model([Rounded()], heads), data, fitted, held, training=QUICK, device=CPU)


def test_other_errors_are_not_taken_for_that(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.optim.AdamW) -> None:
        raise RuntimeError("shape mismatch")

    at_every_step(monkeypatch, fail)
    data = swapped_pairs(rng, 20)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train_model(Model([SMALL["bilinear"].start(DIM, 0)]), data, data.groups, None, training=QUICK, device=CPU)


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
    image = ModalityEmbeddings(
        np.concatenate([image.vectors, more.vectors]), np.concatenate([image.groups, more.groups])
    )
    with raises(FitError, 3, f"got {groups}"):
        train(Bilinear(), image, text, device=CPU)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"loss": "mse"}, ("loss", "infonce, siglip, hinge", "mse")),
        ({"batch": "1"}, ("batch", "2 to", "got 1")),
        ({"batch": "many"}, ("batch", "whole number", "many")),
        ({"learning_rate": "nan"}, ("learning_rate", "nan")),
        ({"dropout": "1"}, ("dropout", 0.99, "got 1.0")),
        ({"rate": "1"}, ("rate", "loss, batch, epochs")),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, str], values: tuple[object, ...]) -> None:
    with raises(TrainingError, *values):
        Training().with_values(given)
