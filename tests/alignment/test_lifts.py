"""Lifts, and the kernel method that gives them, against scikit-learn's kernel and the dual eigenproblem of scipy."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import scipy.linalg
import torch
from sklearn.metrics.pairwise import rbf_kernel

from alignment import closed_forms
from alignment.artifact import WEIGHTS, Alignment
from alignment.closed_forms import KernelCCA
from alignment.errors import AlignmentError
from alignment.lifts import GaussianKernel
from alignment.methods import Fitter
from alignment.projections import Projection
from alignment.vectors import unit
from tests.alignment.pairs import paired
from tests.alignment.test_artifact import alignment

Matrix = npt.NDArray[np.floating]
CPU = torch.device("cpu")


def kernel(rng: np.random.Generator, m: int = 6, d: int = 5, gamma: float = 2.0) -> GaussianKernel:
    landmarks, mean = unit(rng.standard_normal((m, d))), rng.uniform(0, 1, m).astype(np.float32)
    return GaussianKernel({"landmarks": landmarks, "mean": mean, "gamma": np.array([gamma], np.float32)})


def a_pair(rng: np.random.Generator, n: int = 40) -> tuple[Matrix, Matrix]:
    """Two views of points on a circle that no linear map joins: one turns twice as fast as the other."""
    angle = rng.uniform(0, 2 * np.pi, n)
    turns = [np.stack([np.cos(f * angle), np.sin(f * angle)], axis=1) for f in (1, 2)]
    noisy = [np.concatenate([side, 0.05 * rng.standard_normal((n, 3))], axis=1) for side in turns]
    return noisy[0] @ rng.standard_normal((5, 5)), noisy[1] @ rng.standard_normal((5, 5))


def test_the_kernel_is_that_of_scikit_learn(rng: np.random.Generator) -> None:
    lift, Z = kernel(rng), 3 * rng.standard_normal((9, 5)).astype(np.float32)
    expected = rbf_kernel(unit(Z), lift.parameters["landmarks"], gamma=1.0) - lift.parameters["mean"]
    np.testing.assert_allclose(lift(Z), expected, atol=1e-6)
    assert lift(Z).dtype == np.float32
    assert lift.dims == (5, 6)


def test_a_vector_without_a_direction_has_no_features(rng: np.random.Generator) -> None:
    Z = np.stack([np.zeros(5), np.full(5, 1e-8), np.ones(5)]).astype(np.float32)
    assert np.isnan(kernel(rng)(Z)).all(axis=1).tolist() == [True, True, False]


def test_a_projection_lifts_between_the_mean_and_the_weight(rng: np.random.Generator) -> None:
    lift, mean = kernel(rng), (0.1 * rng.standard_normal(5)).astype(np.float32)
    weight = rng.standard_normal((6, 3)).astype(np.float32)
    projection, X = Projection(5, mean, weight, lift), rng.standard_normal((7, 5))
    np.testing.assert_allclose(projection(X), unit(lift(unit(X) - mean) @ weight), atol=1e-6)
    assert (projection.in_dim, projection.out_dim) == (5, 3)
    assert Projection(5, mean, None, lift).out_dim == 6
    equal_to_the_mean = Projection(5, unit(X[:1])[0], weight, lift).unchecked(X[:1])
    assert np.isnan(equal_to_the_mean).all()


def dual(X: Matrix, Y: Matrix, gamma: float, shrinkage: float) -> npt.NDArray[np.float64]:
    """Canonical correlations of kernels, from the eigenproblem in the coefficients of the training pairs."""
    sides = []
    for Z in (unit(X).astype(np.float64), unit(Y).astype(np.float64)):
        K = rbf_kernel(unit(Z - Z.mean(axis=0)).astype(np.float64), gamma=gamma / 2)
        H = np.eye(len(K)) - 1 / len(K)
        sides.append(H @ K @ H)
    n = len(X)
    blocks = [K @ K + shrinkage * np.trace(K) / n * K for K in sides]
    A = np.block([[np.zeros((n, n)), sides[0] @ sides[1]], [sides[1] @ sides[0], np.zeros((n, n))]])
    B = scipy.linalg.block_diag(*blocks) + 1e-9 * np.eye(2 * n)
    return np.asarray(scipy.linalg.eigh(A, B, eigvals_only=True)[::-1][:8])


@pytest.mark.parametrize(("gamma", "shrinkage"), [(1.0, 0.3), (2.0, 1.0), (4.0, 0.1)])
def test_correlations_are_those_of_the_dual_problem(
    gamma: float, shrinkage: float, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_forms, "FLOOR", 1e-13)
    X, Y = a_pair(rng)
    sides = [torch.from_numpy(unit(Z).astype(np.float64)) for Z in (X, Y)]
    model = KernelCCA(*(Z - Z.mean(dim=0) for Z in sides))
    correlations = model._canonical(gamma, shrinkage)[2].numpy()
    np.testing.assert_allclose(correlations[:8], dual(X, Y, gamma, shrinkage), rtol=1e-4)


def test_it_joins_what_no_linear_map_joins(rng: np.random.Generator) -> None:
    X, Y = a_pair(rng, 400)

    def found(method: str, hyperparameters: dict[str, Any]) -> float:
        image, text = Fitter(method, paired(X[:300], Y[:300]), CPU).fit(hyperparameters)
        scores = text(Y[300:]) @ image(X[300:]).T
        better = (scores > np.diag(scores)[:, None]).sum(axis=1)
        return float((better < 10).mean())  # Recall@10

    linear = found("rcca", {"shrinkage_image": 0.1, "shrinkage_text": 0.1, "components": 5, "power": 1.0})
    lifted = found("kcca", {"gamma": 4.0, "shrinkage": 0.1, "components": 64})
    assert lifted > linear + 0.3


def test_more_pairs_than_landmarks_are_approximated(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = a_pair(rng, 300)
    exact = Fitter("kcca", paired(X, Y), CPU).fit({"gamma": 2.0, "shrinkage": 0.3, "components": 4})
    monkeypatch.setattr(closed_forms, "LANDMARKS", 90)
    monkeypatch.setattr(closed_forms, "BLOCK_ROWS", 64)
    fitted = Fitter("kcca", paired(X, Y), CPU).fit({"gamma": 2.0, "shrinkage": 0.3, "components": 4})
    for near, far in zip(fitted, exact, strict=True):
        assert near.lift is not None
        assert near.lift.dims == (5, 75)  # every fourth of 300
        assert far.lift is not None
        assert far.lift.dims == (5, 300)
    agree = [
        np.abs(np.linalg.svd(unit(near(Z) - near(Z).mean(0)).T @ unit(far(Z) - far(Z).mean(0)) / len(Z))[1]).sum()
        for near, far, Z in zip(fitted, exact, (X, Y), strict=True)
    ]
    assert min(agree) > 0.9


def test_of_many_pairs_some_are_enough(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_forms, "PAIRS", 100)
    X, Y = a_pair(rng, 301)
    hyperparameters = {"gamma": 2.0, "shrinkage": 0.3, "components": 4}
    means = [unit(Z).mean(axis=0) for Z in (X, Y)]
    sides = [torch.from_numpy(unit(Z) - mean).double() for Z, mean in zip((X, Y), means, strict=True)]
    some = KernelCCA(*(Z[::4] for Z in sides)).solve(hyperparameters)
    for every, few in zip(KernelCCA(*sides).solve(hyperparameters), some, strict=True):
        torch.testing.assert_close(every, few)


def lifted_alignment(rng: np.random.Generator) -> Alignment:
    base = alignment()
    weight = rng.standard_normal((6, 3)).astype(np.float32)
    image = Projection(5, base.projections["image"].mean, weight, kernel(rng))
    return Alignment(base.card, {**base.projections, "image": image})


def test_a_lift_is_saved_and_counts_in_the_fingerprint(tmp_path: Path, rng: np.random.Generator) -> None:
    saved = lifted_alignment(rng)
    saved.save(tmp_path / "a")
    loaded, X = Alignment.load(tmp_path / "a"), rng.standard_normal((4, 5))
    np.testing.assert_array_equal(saved.project("image", X), loaded.project("image", X))
    assert saved.fingerprint == loaded.fingerprint
    lift = saved.projections["image"].lift
    assert isinstance(lift, GaussianKernel)
    wider = GaussianKernel({**lift.parameters, "gamma": lift.parameters["gamma"] + 1})
    image = saved.projections["image"]
    other = Projection(5, image.mean, image.weight, wider)
    assert Alignment(saved.card, {**saved.projections, "image": other}).fingerprint != saved.fingerprint


@pytest.mark.parametrize("harm", ["missing", "shape", "unknown", "dimension"])
def test_a_damaged_lift_is_refused(harm: str, tmp_path: Path, rng: np.random.Generator) -> None:
    lifted_alignment(rng).save(tmp_path / "a")
    tensors = safetensors.numpy.load_file(tmp_path / "a" / WEIGHTS)
    name = "image.lift.gaussian-kernel.landmarks"
    if harm == "missing":
        del tensors[name]
    elif harm == "shape":
        tensors[name] = tensors[name][:-1].copy()
    elif harm == "dimension":
        tensors[name] = np.ascontiguousarray(tensors[name][:, :4])
    else:
        tensors["image.lift.other.landmarks"] = tensors.pop(name)
    safetensors.numpy.save_file(tensors, tmp_path / "a" / WEIGHTS)
    with pytest.raises(AlignmentError, match="fit it again"):
        Alignment.load(tmp_path / "a")
