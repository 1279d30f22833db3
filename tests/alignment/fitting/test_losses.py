"""Losses against direct loops in float64, and what they are there for."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, log_softmax, softmax
from torch import Tensor

from alignment.fitting.losses import SURROGATE_KS, hinge, info_nce, recall_surrogate, siglip, structure

Scores = npt.NDArray[np.float64]
SCALE, BIAS, MARGIN, TEMPERATURE = torch.tensor(7.0), torch.tensor(-3.0), 0.2, 0.05

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "infonce": lambda S, t: info_nce(SCALE * S, t),
    "siglip": lambda S, t: siglip(SCALE * S, t, BIAS),
    "semi-hard": lambda S, t: hinge(S, t, MARGIN, hardest=False),
    "hardest": lambda S, t: hinge(S, t, MARGIN, hardest=True),
    "recall": lambda S, t: recall_surrogate(S, t, TEMPERATURE),
}


def by_hand(name: str, row: Scores, target: int) -> float:
    """One query at a time, with plain numbers."""
    others = np.delete(row, target)
    if name == "infonce":
        return float(-log_softmax(7.0 * row)[target])
    if name == "siglip":
        return float(-np.log(expit(7.0 * row[target] - 3.0)) - np.log(expit(-(7.0 * others - 3.0))).sum())
    if name == "recall":
        rank = 1 + expit((others - row[target]) / TEMPERATURE).sum()
        return float(1 - np.mean([expit(k + 0.5 - rank) for k in SURROGATE_KS]))
    below = others[others < row[target]]
    negative = others.max()
    if name == "semi-hard":
        negative = below.max() if len(below) else others.min()
    return max(0.0, float(MARGIN - row[target] + negative))


def scores(rng: np.random.Generator, c: int = 6, items: int = 9) -> tuple[Scores, npt.NDArray[np.int64]]:
    return rng.uniform(-1, 1, (c, items)), rng.integers(0, items, c)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_what_its_formula_says(name: str, rng: np.random.Generator) -> None:
    for _ in range(20):
        S, target = scores(rng)
        found = LOSSES[name](torch.from_numpy(S), torch.from_numpy(target))
        expected = [by_hand(name, row, t) for row, t in zip(S, target.tolist(), strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_can_be_computed_in_chunks(name: str, rng: np.random.Generator) -> None:
    S, target = (torch.from_numpy(part) for part in scores(rng))
    whole = LOSSES[name](S, target)
    parts = [LOSSES[name](S[i : i + 2], target[i : i + 2]) for i in range(0, 6, 2)]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str, rng: np.random.Generator) -> None:
    S, target = (torch.from_numpy(part) for part in scores(rng))
    torch.autograd.gradcheck(lambda X: LOSSES[name](X, target), (S.requires_grad_(),))


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_target_is_never_a_greater_loss(name: str, rng: np.random.Generator) -> None:
    S, target = scores(rng)
    S = np.sort(S, axis=1)
    target[:] = S.shape[1] - 1  # ahead of all others, so that the negative of the hinge stays
    losses = []
    for more in (0.0, 0.1, 0.5):
        T = S.copy()
        T[:, -1] += more
        losses.append(LOSSES[name](torch.from_numpy(T), torch.from_numpy(target)).numpy())
    assert (losses[0] >= losses[1]).all()
    assert (losses[1] >= losses[2]).all()


def test_equal_scores_leave_finite_gradients() -> None:
    for loss in LOSSES.values():
        S = torch.ones(3, 4, requires_grad=True)
        loss(S, torch.arange(3)).sum().backward()  # type: ignore[no-untyped-call]
        assert S.grad is not None
        assert S.grad.isfinite().all()


def test_structure_is_the_divergence_of_neighbourhoods(rng: np.random.Generator) -> None:
    before, after = rng.uniform(-1, 1, (2, 5, 8))
    found = structure(torch.from_numpy(before), torch.from_numpy(after), 0.3).numpy()
    expected = [jensenshannon(softmax(p / 0.3), softmax(q / 0.3)) ** 2 for p, q in zip(before, after, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert structure(torch.from_numpy(before), torch.from_numpy(before), 0.3).abs().max() < 1e-12
