"""Feature maps, and the kernel method that gives them, against scikit-learn and scipy."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import scipy.linalg
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch import nn

from alignment.errors import AlignmentError
from alignment.fitting import closed_forms
from alignment.fitting.closed_forms import KernelCCA
from alignment.fitting.methods import Fitter
from alignment.fitting.pairs import Pairs
from alignment.model import projections
from alignment.model.alignment import WEIGHTS, Alignment
from alignment.model.feature_maps import FEATURE_MAPS, Anchors, GaussianKernel, ResidualMlp, StarGlu
from alignment.model.projections import Projection
from alignment.retrieval.grouped import drawn
from alignment.vectors import l2_normalize
from tests.support.alignments import alignment
from tests.support.pairs import paired

Matrix = npt.NDArray[np.floating]
CPU = torch.device("cpu")


def kernel(rng: np.random.Generator, m: int = 6, d: int = 5, gamma: float = 2.0) -> GaussianKernel:
    landmarks, mean = l2_normalize(rng.standard_normal((m, d))), rng.uniform(0, 1, m).astype(np.float32)
    return GaussianKernel({"landmarks": landmarks, "mean": mean, "gamma": np.array([gamma], np.float32)})


def a_pair(rng: np.random.Generator, n: int = 40) -> tuple[Matrix, Matrix]:
    """Two views of points on a circle that no linear map joins: one turns twice as fast as the other."""
    angle = rng.uniform(0, 2 * np.pi, n)
    turns = [np.stack([np.cos(f * angle), np.sin(f * angle)], axis=1) for f in (1, 2)]
    noisy = [np.concatenate([side, 0.05 * rng.standard_normal((n, 3))], axis=1) for side in turns]
    return noisy[0] @ rng.standard_normal((5, 5)), noisy[1] @ rng.standard_normal((5, 5))


def test_the_kernel_is_that_of_scikit_learn(rng: np.random.Generator) -> None:
    feature_map, Z = kernel(rng), 3 * rng.standard_normal((9, 5)).astype(np.float32)
    expected = rbf_kernel(l2_normalize(Z), feature_map.parameters["landmarks"], gamma=1.0)
    np.testing.assert_allclose(feature_map(Z), expected - feature_map.parameters["mean"], atol=1e-6)
    assert feature_map(Z).dtype == np.float32
    assert feature_map.dims == (5, 6)


def test_a_vector_without_a_direction_has_no_features(rng: np.random.Generator) -> None:
    Z = np.stack([np.zeros(5), np.full(5, 1e-8), np.ones(5)]).astype(np.float32)
    assert np.isnan(kernel(rng)(Z)).all(axis=1).tolist() == [True, True, False]


def test_a_projection_maps_between_the_mean_and_the_weight(rng: np.random.Generator) -> None:
    feature_map, mean = kernel(rng), (0.1 * rng.standard_normal(5)).astype(np.float32)
    weight = rng.standard_normal((6, 3)).astype(np.float32)
    projection, X = Projection(5, mean, weight, feature_map), rng.standard_normal((7, 5))
    np.testing.assert_allclose(projection(X), l2_normalize(feature_map(l2_normalize(X) - mean) @ weight), atol=1e-6)
    assert (projection.in_dim, projection.out_dim) == (5, 3)
    assert Projection(5, mean, None, feature_map).out_dim == 6
    equal_to_the_mean = Projection(5, l2_normalize(X[:1])[0], weight, feature_map).unchecked(X[:1])
    assert np.isnan(equal_to_the_mean).all()


def dual(X: Matrix, Y: Matrix, gamma: float, shrinkage: float) -> npt.NDArray[np.float64]:
    """Canonical correlations of kernels, from the eigenproblem in the coefficients of the training pairs."""
    sides = []
    for Z in (l2_normalize(X).astype(np.float64), l2_normalize(Y).astype(np.float64)):
        K = rbf_kernel(l2_normalize(Z - Z.mean(axis=0)).astype(np.float64), gamma=gamma / 2)
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
    model = KernelCCA(Pairs(paired(X, Y), CPU))
    correlations = model.canonical(gamma, shrinkage)[2].numpy()
    np.testing.assert_allclose(correlations[:8], dual(X, Y, gamma, shrinkage), rtol=1e-4)


def test_it_joins_what_no_linear_map_joins(rng: np.random.Generator) -> None:
    X, Y = a_pair(rng, 400)

    def found(method: str, hyperparameters: dict[str, Any]) -> float:
        image, text = Fitter(method, paired(X[:300], Y[:300]), CPU).fit(hyperparameters)
        scores = text(Y[300:]) @ image(X[300:]).T
        better = (scores > np.diag(scores)[:, None]).sum(axis=1)
        return float((better < 10).mean())  # Recall@10

    linear = found("rcca", {"shrinkage_image": 0.1, "shrinkage_text": 0.1, "components": 5, "power": 1.0})
    mapped = found("kcca", {"gamma": 4.0, "shrinkage": 0.1, "components": 64})
    assert mapped > linear + 0.3


def test_more_pairs_than_landmarks_are_approximated(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = a_pair(rng, 300)
    exact = Fitter("kcca", paired(X, Y), CPU).fit({"gamma": 2.0, "shrinkage": 0.3, "components": 4})
    monkeypatch.setattr(closed_forms, "LANDMARKS", 90)
    monkeypatch.setattr(closed_forms, "KERNEL_ROWS", 64)
    fitted = Fitter("kcca", paired(X, Y), CPU).fit({"gamma": 2.0, "shrinkage": 0.3, "components": 4})
    for near, far in zip(fitted, exact, strict=True):
        assert near.feature_map is not None
        assert near.feature_map.dims == (5, 75)  # every fourth of 300
        assert far.feature_map is not None
        assert far.feature_map.dims == (5, 300)
    agree = [
        np.abs(
            np.linalg.svd(l2_normalize(near(Z) - near(Z).mean(0)).T @ l2_normalize(far(Z) - far(Z).mean(0)) / len(Z))[1]
        ).sum()
        for near, far, Z in zip(fitted, exact, (X, Y), strict=True)
    ]
    assert min(agree) > 0.9


def test_of_many_pairs_some_are_enough(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_forms, "PAIRS", 100)
    X, Y = a_pair(rng, 301)
    hyperparameters = {"gamma": 2.0, "shrinkage": 0.3, "components": 4}
    rows = drawn(np.arange(301), 100)
    everything = Pairs(paired(X, Y), CPU)
    some = Pairs(paired(X[rows], Y[rows]), CPU)
    some.means = everything.means
    expected = KernelCCA(some).solve(hyperparameters)
    for every, few in zip(KernelCCA(everything).solve(hyperparameters), expected, strict=True):
        torch.testing.assert_close(every, few)


def kernel_alignment(rng: np.random.Generator) -> Alignment:
    base = alignment()
    weight = rng.standard_normal((6, 3)).astype(np.float32)
    image = Projection(5, base.projections["image"].mean, weight, kernel(rng))
    return Alignment(base.card, {**base.projections, "image": image})


def test_a_lift_is_saved_and_counts_in_the_fingerprint(tmp_path: Path, rng: np.random.Generator) -> None:
    saved = kernel_alignment(rng)
    saved.save(tmp_path / "a")
    loaded, X = Alignment.load(tmp_path / "a"), rng.standard_normal((4, 5))
    np.testing.assert_array_equal(saved.project("image", X), loaded.project("image", X))
    assert saved.fingerprint == loaded.fingerprint
    feature_map = saved.projections["image"].feature_map
    assert isinstance(feature_map, GaussianKernel)
    wider = GaussianKernel({**feature_map.parameters, "gamma": feature_map.parameters["gamma"] + 1})
    image = saved.projections["image"]
    other = Projection(5, image.mean, image.weight, wider)
    assert Alignment(saved.card, {**saved.projections, "image": other}).fingerprint != saved.fingerprint


@pytest.mark.parametrize("harm", ["missing", "shape", "unknown", "dimension"])
def test_a_damaged_lift_is_refused(harm: str, tmp_path: Path, rng: np.random.Generator) -> None:
    kernel_alignment(rng).save(tmp_path / "a")
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


# The other feature maps, against loops and torch's own modules


def test_anchors_keep_the_nearest(rng: np.random.Generator) -> None:
    anchors, Z = l2_normalize(rng.standard_normal((7, 5))), rng.standard_normal((9, 5)).astype(np.float32)
    feature_map = Anchors({"anchors": anchors, "kept": np.array([3], np.float32), "power": np.array([2.5], np.float32)})
    assert feature_map.dims == (5, 7)
    for row, features in zip(l2_normalize(Z), feature_map(Z), strict=True):
        cosines = np.maximum(anchors @ row, 0)
        nearest = np.argsort(-cosines)[:3]
        expected = np.zeros(7)
        expected[nearest] = cosines[nearest] ** 2.5
        np.testing.assert_allclose(features, expected, atol=1e-6)


def test_a_residual_mlp_is_torchs(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    first, blocks = nn.Linear(5, 8), [(nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)) for _ in range(2)]
    named = {"first.weight": first.weight.T, "first.bias": first.bias}
    for b, (norm, wide, narrow) in enumerate(blocks):
        nn.init.normal_(norm.weight)
        named |= {f"{b}.norm.weight": norm.weight, f"{b}.norm.bias": norm.bias}
        for name, layer in (("wide", wide), ("narrow", narrow)):
            named |= {f"{b}.{name}.weight": layer.weight.T, f"{b}.{name}.bias": layer.bias}
    feature_map = ResidualMlp({name: tensor.detach().numpy().copy() for name, tensor in named.items()})
    Z = torch.from_numpy(rng.standard_normal((6, 5)).astype(np.float32))
    with torch.no_grad():
        H = first(Z)
        for norm, wide, narrow in blocks:
            H = H + narrow(nn.functional.gelu(wide(norm(H))))
    assert feature_map.dims == (5, 8)
    np.testing.assert_allclose(feature_map(Z.numpy()), H.numpy(), atol=1e-5)


def test_a_gated_layer_is_torchs(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    norm, gate, value = nn.LayerNorm(5), nn.Linear(5, 12), nn.Linear(5, 12)
    named: dict[str, torch.Tensor] = {"norm.weight": norm.weight, "norm.bias": norm.bias}
    for name, layer in (("gate", gate), ("value", value)):
        named |= {f"{name}.weight": layer.weight.T, f"{name}.bias": layer.bias}
    feature_map = StarGlu({name: tensor.detach().numpy().copy() for name, tensor in named.items()})
    Z = torch.from_numpy(rng.standard_normal((6, 5)).astype(np.float32))
    with torch.no_grad():
        expected = nn.functional.relu6(gate(norm(Z))) * value(norm(Z))
    assert feature_map.dims == (5, 12)
    np.testing.assert_allclose(feature_map(Z.numpy()), expected.numpy(), atol=1e-5)


def test_dropout_is_for_training_alone(rng: np.random.Generator) -> None:
    feature_map = StarGlu.from_tensors(
        {
            "norm.weight": np.ones(4),
            "norm.bias": np.zeros(4),
            "gate.weight": np.ones((4, 300)),
            "gate.bias": np.ones(300),
            "value.weight": np.ones((4, 300)),
            "value.bias": np.ones(300),
        }
    )
    p = {name: torch.from_numpy(array) for name, array in feature_map.parameters.items()}
    Z = torch.from_numpy(rng.standard_normal((2, 4)).astype(np.float32))
    dropped = StarGlu.features(p, Z, dropout=0.5)
    assert 0.2 < float((dropped == 0).float().mean()) < 0.8
    assert (feature_map(Z.numpy()) != 0).all()


def test_many_rows_are_mapped_some_at_a_time(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    projection = Projection(5, None, rng.standard_normal((6, 3)).astype(np.float32), kernel(rng))
    X = rng.standard_normal((10, 5))
    whole = projection(X)
    monkeypatch.setattr(projections, "MAPPED_ROWS", 3)
    np.testing.assert_allclose(projection(X), whole, atol=1e-6)


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_tensors_that_do_not_fit_are_refused(name: str, rng: np.random.Generator) -> None:
    with pytest.raises(KeyError):
        FEATURE_MAPS[name].from_tensors({})
    sizes = {"landmarks": (6, 5), "mean": (4,), "gamma": (1,), "anchors": (6, 5), "kept": (1,), "power": (2,)}
    sizes |= {"first.weight": (5, 8), "first.bias": (7,)}
    sizes |= {"gate.weight": (5, 3), "gate.bias": (3,), "value.weight": (5, 2), "value.bias": (2,)}
    sizes |= {"norm.weight": (5,), "norm.bias": (5,)}
    with pytest.raises(TypeError, match=f"the tensors of feature map {name} do not fit together"):
        FEATURE_MAPS[name].from_tensors({part: np.ones(size, np.float32) for part, size in sizes.items()})
