from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge as SklearnRidge

from alignment.errors import VectorError
from alignment.fitting import closed_forms
from alignment.fitting.closed_forms import CLOSED_FORMS, Identity, Procrustes, RegularisedCCA, Ridge, Spectrum
from alignment.fitting.methods import Fitter
from alignment.fitting.moments import Moments
from alignment.fitting.pairs import Pairs
from alignment.model.projections import Projection
from alignment.vectors import l2_normalize
from tests.support.errors import raises
from tests.support.pairs import paired

Matrix = npt.NDArray[np.floating]

CPU = torch.device("cpu")

every_method = pytest.mark.parametrize("name", CLOSED_FORMS)


def centred(rng: np.random.Generator, n: int, d: int) -> Matrix:
    X = rng.standard_normal((n, d)) * np.linspace(0.5, 2.0, d)
    return np.asarray(X - X.mean(axis=0))


def tensors(*sides: Matrix) -> list[torch.Tensor]:
    return [torch.from_numpy(np.asarray(side, np.float64)) for side in sides]


class Given(Pairs):
    """Pairs whose sides are neither centred nor scaled: the equations hold for any."""

    def __init__(self, X: Matrix, Y: Matrix):
        products = X.T @ X, Y.T @ Y, X.T @ Y
        means = np.zeros(X.shape[1]), np.zeros(Y.shape[1])
        super().__init__(paired(X, Y), CPU, moments=lambda _wanted: Moments(len(X), means, products))


def array(tensor: torch.Tensor | None) -> Matrix:
    assert tensor is not None
    return np.asarray(tensor.numpy())


def inverse_root(C: Matrix) -> Matrix:
    return np.asarray(np.linalg.inv(scipy.linalg.sqrtm(C).real))


# The cases that closed forms break on, as (d_x, d_y) and what becomes of random pairs.
def plenty(rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    Z = rng.standard_normal((80, 5))
    return Z @ rng.standard_normal((5, 9)), Z @ rng.standard_normal((5, 7)) + 0.1 * rng.standard_normal((80, 7))


def same_dimension(rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    return rng.standard_normal((30, 6)), rng.standard_normal((30, 6))


def fewer_pairs_than_dimensions(rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    return rng.standard_normal((6, 20)), rng.standard_normal((6, 15))


def two_pairs(rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    return rng.standard_normal((2, 5)), rng.standard_normal((2, 4))


def duplicated_columns(rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    X, Y = plenty(rng)
    return np.hstack([X, X]), np.hstack([Y, Y[:, :1]])


def constant_columns(rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    X, Y = plenty(rng)
    X[:, 2], Y[:, 0], Y[:, 1] = 3.0, -1.0, 0.0
    return X, Y


def repeated_pairs(rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    X, Y = plenty(rng)
    return np.repeat(X[:4], 10, axis=0), np.repeat(Y[:4], 10, axis=0)


def one_dimension(rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    return rng.standard_normal((20, 1)), rng.standard_normal((20, 8))


CASES = [
    plenty,
    same_dimension,
    fewer_pairs_than_dimensions,
    two_pairs,
    duplicated_columns,
    constant_columns,
    repeated_pairs,
    one_dimension,
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


# Every method


@every_method
@every_case
def test_every_candidate_maps_both_sides_into_one_space(name: str, case: Any, rng: np.random.Generator) -> None:
    X, Y = (side.astype(np.float32) for side in case(rng))
    candidates = CLOSED_FORMS[name].candidates(X.shape[1], Y.shape[1])
    fitter = Fitter(name, paired(X, Y), CPU)
    for hyperparameters in candidates:
        image, text = fitter.fit(hyperparameters)
        assert (image.in_dim, text.in_dim) == (X.shape[1], Y.shape[1])
        assert image.out_dim == text.out_dim > 0
        for projection, side in ((image, X), (text, Y)):
            for part in (projection.mean, projection.weight):
                assert part is None or (part.dtype == np.float32 and np.isfinite(part).all())
            fresh = rng.standard_normal((5, projection.in_dim)).astype(np.float32)
            Z = projection.unchecked(np.concatenate([side, fresh]))
            sound = np.isfinite(Z).all(axis=1)
            # A training vector may stand on the mean, and one that is new may be near no anchor where there are two.
            assert sound.sum() >= len(Z) - (2 if name == "asif" else 1)
            np.testing.assert_allclose(np.linalg.norm(Z[sound], axis=1), 1.0, rtol=1e-5)


@every_method
def test_fitting_again_gives_the_same_bits(name: str, rng: np.random.Generator) -> None:
    X, Y = (side.astype(np.float32) for side in same_dimension(rng))
    for hyperparameters in CLOSED_FORMS[name].candidates(6, 6)[:4]:
        one, other = (Fitter(name, paired(X, Y), CPU).fit(hyperparameters) for _ in range(2))
        for a, b in zip(one, other, strict=True):
            assert (a.mean is None) == (b.mean is None)
            assert a.mean is None or b.mean is None or a.mean.tobytes() == b.mean.tobytes()
            assert a.weight is None or b.weight is None or a.weight.tobytes() == b.weight.tobytes()


@every_method
def test_the_order_in_which_candidates_are_tried_does_not_matter(name: str, rng: np.random.Generator) -> None:
    X, Y = (side.astype(np.float32) for side in plenty(rng))
    candidates = CLOSED_FORMS[name].candidates(9, 7)
    forth, back = Fitter(name, paired(X, Y), CPU), Fitter(name, paired(X, Y), CPU)
    one = [forth.fit(candidate) for candidate in candidates]
    other = [back.fit(candidate) for candidate in reversed(candidates)][::-1]
    for a, b in zip(one, other, strict=True):
        for p, q in zip(a, b, strict=True):
            assert p.weight is None or q.weight is None or np.array_equal(p.weight, q.weight)


@every_method
def test_the_scale_of_the_input_does_not_matter(name: str, rng: np.random.Generator) -> None:
    X, Y = (side.astype(np.float32) for side in same_dimension(rng))
    for hyperparameters in CLOSED_FORMS[name].candidates(6, 6)[:3]:
        one = Fitter(name, paired(X, Y), CPU).fit(hyperparameters)
        other = Fitter(name, paired(X * 8, Y / 4), CPU).fit(hyperparameters)
        for p, q, side in zip(one, other, (X, Y), strict=True):
            np.testing.assert_allclose(q(side * 16), p(side), atol=1e-6)


@every_method
@pytest.mark.parametrize(("d_x", "d_y"), [(1, 1), (1, 9), (3, 2), (8, 8), (768, 384)])
def test_candidates_are_json_and_no_two_are_the_same(name: str, d_x: int, d_y: int) -> None:
    candidates = [sorted(candidate.items()) for candidate in CLOSED_FORMS[name].candidates(d_x, d_y)]
    assert all(isinstance(value, (str, int, float)) for candidate in candidates for _, value in candidate)
    assert len({tuple(candidate) for candidate in candidates}) == len(candidates)
    assert candidates or (name == "identity" and d_x != d_y)


@every_method
def test_a_planted_rotation_is_found(name: str, rng: np.random.Generator) -> None:
    """Texts are the images, turned: every method but identity gives each pair a cosine of 1."""
    X = rng.standard_normal((200, 6)).astype(np.float32)
    R = np.linalg.qr(rng.standard_normal((6, 6)))[0].astype(np.float32)
    Y = (X @ R).astype(np.float32)
    new = rng.standard_normal((50, 6)).astype(np.float32)
    best = max(
        float((image(new) * text(new @ R)).sum(axis=1).min())
        for image, text in map(Fitter(name, paired(X, Y), CPU).fit, CLOSED_FORMS[name].candidates(6, 6))
    )
    assert best > 0.99 if name != "identity" else best < 0.9


# Identity


@pytest.mark.parametrize(("d_x", "d_y", "expected"), [(4, 4, [{}]), (4, 5, []), (5, 4, [])])
def test_identity_applies_where_the_dimensions_agree(d_x: int, d_y: int, expected: list[dict[str, Any]]) -> None:
    assert Identity.candidates(d_x, d_y) == expected


def test_identity_changes_nothing_but_the_length(rng: np.random.Generator) -> None:
    X, Y = (rng.standard_normal((9, 4)).astype(np.float32) + 5 for _ in range(2))
    image, text = Fitter("identity", paired(X, Y), CPU).fit({})
    assert (image.mean, image.weight, text.mean, text.weight) == (None, None, None, None)
    np.testing.assert_allclose(image(X), l2_normalize(X), atol=1e-7)
    np.testing.assert_allclose(text(Y), l2_normalize(Y), atol=1e-7)


# Procrustes


def test_procrustes_equals_scipy_in_equal_dimensions(rng: np.random.Generator) -> None:
    X, Y = centred(rng, 60, 5), centred(rng, 60, 5)
    R, _ = scipy.linalg.orthogonal_procrustes(X, Y)
    W_x, W_y = Procrustes(Given(X, Y)).solve({"components": 5})
    # Both sides end on the axes of Y; back on the axes of the data, the map is the one of SciPy.
    np.testing.assert_allclose(array(W_x) @ array(W_y).T, R, atol=1e-10)


def test_procrustes_on_components_equals_scipy_on_components(rng: np.random.Generator) -> None:
    X, Y = centred(rng, 60, 8), centred(rng, 60, 6)
    P_x = np.linalg.svd(X, full_matrices=False)[2][:3].T
    P_y = np.linalg.svd(Y, full_matrices=False)[2][:3].T
    R, _ = scipy.linalg.orthogonal_procrustes(X @ P_x, Y @ P_y)
    W_x, W_y = Procrustes(Given(X, Y)).solve({"components": 3})
    np.testing.assert_allclose(array(W_x) @ array(W_y).T, P_x @ R @ P_y.T, atol=1e-10)


def test_procrustes_weights_are_orthonormal(rng: np.random.Generator) -> None:
    for weight in Procrustes(Given(centred(rng, 40, 8), centred(rng, 40, 6))).solve({"components": 4}):
        np.testing.assert_allclose(array(weight).T @ array(weight), np.eye(4), atol=1e-12)


def test_procrustes_keeps_no_more_components_than_the_data_has(rng: np.random.Generator) -> None:
    W_x, W_y = Procrustes(Given(centred(rng, 4, 8), centred(rng, 4, 6))).solve({"components": 6})
    assert W_x.shape == (8, 3)  # four centred points span three dimensions
    assert W_y.shape == (6, 3)


# Ridge


@pytest.mark.parametrize("penalty", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("n", [60, 5])
def test_ridge_equals_sklearn(penalty: float, n: int, rng: np.random.Generator) -> None:
    X, Y = centred(rng, n, 8), centred(rng, n, 6)
    model = Ridge(Given(X, Y))
    to_text, kept = model.solve({"target": "text", "penalty": penalty})
    reference = SklearnRidge(alpha=penalty * np.trace(X.T @ X) / 8, fit_intercept=False).fit(X, Y)
    np.testing.assert_allclose(array(to_text), reference.coef_.T, atol=1e-9)
    assert kept is None
    kept, to_image = model.solve({"target": "image", "penalty": penalty})
    reference = SklearnRidge(alpha=penalty * np.trace(Y.T @ Y) / 6, fit_intercept=False).fit(Y, X)
    np.testing.assert_allclose(array(to_image), reference.coef_.T, atol=1e-9)
    assert kept is None


@pytest.mark.parametrize(("target", "decomposed"), [("text", 8), ("image", 6)])
def test_ridge_decomposes_the_side_that_it_maps_and_once_for_all_penalties(
    target: str, decomposed: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Counted(Spectrum):
        def __init__(self, gram: torch.Tensor):
            sizes.append(len(gram))
            super().__init__(gram)

    monkeypatch.setattr(closed_forms, "Spectrum", Counted)
    model = Ridge(Given(centred(rng, 40, 8), centred(rng, 40, 6)))
    for penalty in (0.1, 1.0):
        model.solve({"target": target, "penalty": penalty})
    assert sizes == [decomposed]


def test_ridge_solves_its_normal_equations(rng: np.random.Generator) -> None:
    X, Y = centred(rng, 40, 8), centred(rng, 40, 6)
    W = array(Ridge(Given(X, Y)).solve({"target": "text", "penalty": 0.3})[0])
    penalty = 0.3 * np.linalg.eigvalsh(X.T @ X).mean()
    np.testing.assert_allclose((X.T @ X + penalty * np.eye(8)) @ W, X.T @ Y, atol=1e-9)


def test_a_penalty_means_the_same_when_every_pair_is_there_twice(rng: np.random.Generator) -> None:
    X, Y = centred(rng, 40, 8), centred(rng, 40, 6)
    once = Ridge(Given(X, Y)).solve({"target": "text", "penalty": 0.3})[0]
    twice = Ridge(Given(np.tile(X, (2, 1)), np.tile(Y, (2, 1)))).solve({"target": "text", "penalty": 0.3})[0]
    np.testing.assert_allclose(array(once), array(twice), atol=1e-10)


# Regularised CCA


def rcca(X: Matrix, Y: Matrix, r_x: float, r_y: float, components: int, power: float = 0.0) -> tuple[Matrix, Matrix]:
    W_x, W_y = RegularisedCCA(Given(X, Y)).solve(
        {"shrinkage_image": r_x, "shrinkage_text": r_y, "components": components, "power": power}
    )
    return array(W_x), array(W_y)


def shrunk(Z: Matrix, r: float) -> Matrix:
    C = Z.T @ Z
    return np.asarray(C + r * np.linalg.eigvalsh(C).mean() * np.eye(len(C)))


@pytest.mark.parametrize("n", [80, 5])
@pytest.mark.parametrize(("r_x", "r_y"), [(0.1, 0.1), (3.0, 0.3)])
def test_directions_are_white_under_the_shrunk_covariance(
    n: int, r_x: float, r_y: float, rng: np.random.Generator
) -> None:
    X, Y = centred(rng, n, 9), centred(rng, n, 7)
    k = min(7, n - 1)
    W_x, W_y = rcca(X, Y, r_x, r_y, k)
    np.testing.assert_allclose(W_x.T @ shrunk(X, r_x) @ W_x, np.eye(k), atol=1e-10)
    np.testing.assert_allclose(W_y.T @ shrunk(Y, r_y) @ W_y, np.eye(k), atol=1e-10)


@pytest.mark.parametrize("n", [80, 5])
def test_correlations_equal_those_of_whitening_by_matrix_roots(n: int, rng: np.random.Generator) -> None:
    X, Y = centred(rng, n, 9), centred(rng, n, 7)
    k = min(7, n - 1)
    W_x, W_y = rcca(X, Y, 0.3, 1.0, k)
    cross = W_x.T @ X.T @ Y @ W_y
    reference = np.linalg.svd(inverse_root(shrunk(X, 0.3)) @ X.T @ Y @ inverse_root(shrunk(Y, 1.0)), compute_uv=False)
    np.testing.assert_allclose(cross, np.diag(reference[:k]), atol=1e-10)
    assert reference.max() <= 1


def test_with_next_to_no_shrinkage_correlations_are_the_canonical_ones(rng: np.random.Generator) -> None:
    Z = rng.standard_normal((200, 5))
    X = Z @ rng.standard_normal((5, 5))
    # Correlations well apart, or the power method of scikit-learn does not converge.
    Y = (Z + np.array([0.1, 0.5, 1.0, 2.0, 4.0]) * rng.standard_normal((200, 5))) @ rng.standard_normal((5, 5))
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    W_x, W_y = rcca(X, Y, 1e-12, 1e-12, 5)
    found = np.diag(W_x.T @ X.T @ Y @ W_y)
    by_qr = np.linalg.svd(np.linalg.qr(X)[0].T @ np.linalg.qr(Y)[0], compute_uv=False)  # Björck and Golub 1973
    np.testing.assert_allclose(found, by_qr, atol=1e-6)
    U, V = CCA(n_components=2, scale=False, max_iter=5000, tol=1e-10).fit_transform(X, Y)
    by_sklearn = [np.corrcoef(U[:, i], V[:, i])[0, 1] for i in range(2)]
    np.testing.assert_allclose(found[:2], by_sklearn, atol=1e-3)


def test_power_scales_directions_by_their_correlations(rng: np.random.Generator) -> None:
    X, Y = centred(rng, 60, 9), centred(rng, 60, 7)
    plain_x, plain_y = rcca(X, Y, 0.1, 0.1, 4)
    correlations = np.diag(plain_x.T @ X.T @ Y @ plain_y)
    for power in (0.5, 1.0):
        W_x, W_y = rcca(X, Y, 0.1, 0.1, 4, power)
        np.testing.assert_allclose(W_x, plain_x * correlations**power, atol=1e-10)
        np.testing.assert_allclose(W_y, plain_y * correlations**power, atol=1e-10)


def test_fewer_components_are_the_first_of_more(rng: np.random.Generator) -> None:
    X, Y = centred(rng, 60, 9), centred(rng, 60, 7)
    np.testing.assert_array_equal(rcca(X, Y, 0.1, 0.3, 3)[0], rcca(X, Y, 0.1, 0.3, 7)[0][:, :3])


def test_the_shrinkages_belong_to_their_sides(rng: np.random.Generator) -> None:
    X, Y = centred(rng, 60, 9), centred(rng, 60, 7)
    forth, back = rcca(X, Y, 0.1, 3.0, 5), rcca(Y, X, 3.0, 0.1, 5)
    np.testing.assert_allclose(np.abs(forth[0]), np.abs(back[1]), atol=1e-10)


# Spectrum


@every_case
def test_a_spectrum_rebuilds_the_matrix_it_came_from(case: Any, rng: np.random.Generator) -> None:
    Z = case(rng)[0]
    Z = Z - Z.mean(axis=0)
    spectrum = Spectrum(*tensors(Z.T @ Z))
    V, values = array(spectrum.vectors), array(spectrum.values)
    np.testing.assert_allclose((V * values) @ V.T, Z.T @ Z, atol=1e-9)
    np.testing.assert_allclose(V.T @ V, np.eye(spectrum.rank), atol=1e-10)
    assert spectrum.rank == np.linalg.matrix_rank(Z, tol=1e-7 * np.linalg.norm(Z, 2))
    assert float(spectrum.mean_value) == pytest.approx(np.trace(Z.T @ Z) / Z.shape[1])
    assert (values[:-1] >= values[1:]).all()


# Projection


def projection(rng: np.random.Generator, d_in: int = 5, d_out: int = 3) -> Projection:
    return Projection(
        d_in,
        (rng.standard_normal(d_in) / 10).astype(np.float32),
        rng.standard_normal((d_in, d_out)).astype(np.float32),
    )


def test_a_projection_is_its_formula(rng: np.random.Generator) -> None:
    P = projection(rng)
    X = rng.standard_normal((20, 5))
    assert P.mean is not None
    assert P.weight is not None
    rows = []
    for x in X:
        z = (x / np.sqrt(x @ x) - P.mean.astype(np.float64)) @ P.weight.astype(np.float64)
        rows.append(z / np.sqrt(z @ z))
    Z = P(X)
    assert Z.dtype == np.float32
    np.testing.assert_allclose(Z, rows, atol=2e-6)
    assert (P.in_dim, P.out_dim) == (5, 3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_rows_are_projected_independently(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    P, X = projection(rng), rng.standard_normal((n, 5)).astype(np.float32)
    np.testing.assert_allclose(P(X), np.concatenate([P(row[None]) for row in X]), atol=1e-5)


def test_a_projection_leaves_its_input_alone(rng: np.random.Generator) -> None:
    X = l2_normalize(rng.standard_normal((4, 5)))
    before = X.copy()
    projection(rng)(X)
    np.testing.assert_array_equal(X, before)


def test_no_rows_are_projected_to_no_rows(rng: np.random.Generator) -> None:
    assert projection(rng)(np.empty((0, 5))).shape == (0, 3)


@pytest.mark.parametrize("shape", [(2, 4), (2, 6), (5,), (1, 2, 5)])
def test_vectors_of_another_dimension_are_refused(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    with pytest.raises(VectorError) as caught:
        projection(rng)(np.ones(shape))
    assert str(caught.value).startswith(f"expected vectors of shape (n, 5), got {shape}")


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "vector-not-finite"), (np.inf, "vector-not-finite"), (0.0, "vector-zero")]
)
def test_unusable_rows_are_refused_by_number(value: float, reason: str, rng: np.random.Generator) -> None:
    X = np.ones((4, 5))
    X[2] = value
    with raises(VectorError, "1 of 4", f"row 2: {reason}"):
        projection(rng)(X)


def test_a_row_that_equals_the_mean_has_no_direction(rng: np.random.Generator) -> None:
    mean = l2_normalize(rng.standard_normal((1, 5)))[0]
    P = Projection(5, mean, rng.standard_normal((5, 3)).astype(np.float32))
    X = np.stack([mean * 2, -mean])
    assert np.isnan(P.unchecked(X)).all(axis=1).tolist() == [True, False]
    with raises(VectorError, "1 of 2", "row 0"):
        P(X)


def test_a_row_outside_the_training_subspace_has_no_direction() -> None:
    P = Projection(2, None, np.array([[1.0], [0.0]], np.float32))
    with raises(VectorError, "row 1"):
        P(np.array([[1.0, 1.0], [0.0, 1.0]]))
