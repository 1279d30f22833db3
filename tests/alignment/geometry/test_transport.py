import numpy as np
import ot
import pytest
from scipy.stats import kstest, ortho_group
from sklearn.covariance import ledoit_wolf

from alignment.geometry import transport
from alignment.geometry.modality_gap import gap_of, modality_gap
from alignment.geometry.transport import (
    Floats,
    GapDistance,
    Halves,
    bures_squared,
    centroid_squared,
    in_blocks,
    permutation_p,
    points_matched,
    sliced_squared,
    wasserstein_squared,
)
from alignment.vectors import l2_normalize
from tests.support.pairs import paired

DIM = 24


def halves(rng: np.random.Generator, n: int, shift: float = 0.0, d: int = DIM) -> Halves:
    """Four samples of a standard normal, the texts moved along the first axis."""
    a, b, c, e = rng.standard_normal((4, n, d))
    moved = np.eye(d)[0] * shift
    return Halves((a, b), (c + moved, e + moved))


# Exact transport


@pytest.mark.parametrize("n", [2, 7, 100])
def test_transport_is_that_of_pot(n: int, rng: np.random.Generator) -> None:
    X, Y = rng.standard_normal((2, n, 5))
    assert wasserstein_squared(X, Y) == pytest.approx(ot.emd2([], [], ot.dist(X, Y)), rel=1e-12)


def test_on_a_line_the_sorted_points_are_matched(rng: np.random.Generator) -> None:
    X, Y = rng.standard_normal((2, 300, 1))
    expected = np.mean((np.sort(X[:, 0]) - np.sort(Y[:, 0])) ** 2)
    assert wasserstein_squared(X, Y) == pytest.approx(expected, rel=1e-12)
    assert sliced_squared(seed=0)(X, Y) == pytest.approx(expected, rel=1e-12)  # all its directions are this one


def test_equal_points_in_another_order_are_not_apart(rng: np.random.Generator) -> None:
    X = rng.standard_normal((50, 5)).astype(np.float32)
    assert wasserstein_squared(X, rng.permutation(X)) == pytest.approx(0.0, abs=1e-12)


def test_centring_takes_off_what_lies_between_the_centroids(rng: np.random.Generator) -> None:
    X, Y = rng.standard_normal((2, 100, 5))
    Y = 0.5 * Y + 3
    centred = ot.emd2([], [], ot.dist(X - X.mean(axis=0), Y - Y.mean(axis=0)))
    assert wasserstein_squared(X, Y) - centroid_squared(X, Y) == pytest.approx(centred, rel=1e-9)


# Samples that are too large to be matched at once


def test_large_samples_are_matched_in_blocks(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = rng.standard_normal((2, 250, 5))
    monkeypatch.setattr(transport, "EXACT_MOST", 100)
    cuts = [(0, 84), (84, 167), (167, 250)]
    expected = sum((b - a) * wasserstein_squared(X[a:b], Y[a:b]) for a, b in cuts) / 250
    assert in_blocks(wasserstein_squared)(X, Y) == pytest.approx(expected, rel=1e-12)
    assert [points_matched(n) for n in (2, 100, 101, 250, 300)] == [2, 100, 51, 84, 100]


def test_blocks_feign_what_samples_of_their_size_do_and_their_debiased_value_is_near(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = halves(rng, 600, shift=1.5)
    whole = gap_of(samples, seed=0)
    monkeypatch.setattr(transport, "EXACT_MOST", 150)
    cut = gap_of(samples, seed=0)
    assert (whole.n, whole.matched, cut.n, cut.matched) == (600, 600, 600, 150)
    assert cut.raw > whole.raw
    assert cut.image_null == pytest.approx(gap_of(halves(rng, 150), seed=0).image_null, rel=0.02)
    assert cut.debiased == pytest.approx(whole.debiased, rel=0.05)
    assert cut.debiased == pytest.approx(1.5, rel=0.1)
    assert cut.centred.debiased < 0.5


# Gaussians


def test_gaussians_have_a_closed_form(rng: np.random.Generator) -> None:
    """Of covariances that commute it is the sum of squared differences of the standard deviations."""
    scales, others = np.array([1.0, 2.0, 0.5]), np.array([2.0, 1.0, 0.25])
    X = rng.standard_normal((100_000, 3)) * scales
    Y = rng.standard_normal((100_000, 3)) * others + np.array([1.0, -1.0, 0.0])
    assert bures_squared(X, Y) == pytest.approx(2 + ((scales - others) ** 2).sum(), rel=0.02)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 6), (6, 5, 40), (6, 30, 40), (18, 19, 40), (25, 30, 40)])
def test_gaussians_are_as_far_apart_as_pot_says(n: int, m: int, d: int, rng: np.random.Generator) -> None:
    """Of samples that span the space, and of those that span a part of it."""
    X, Y = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)), rng.standard_normal((m, d)) + 1
    (A, _), (B, _) = ledoit_wolf(X), ledoit_wolf(Y)
    expected = ot.gaussian.bures_wasserstein_distance(X.mean(axis=0), Y.mean(axis=0), A, B)
    assert bures_squared(X, Y) == pytest.approx(float(expected) ** 2, rel=1e-9)


def test_equal_points_are_one_gaussian() -> None:
    assert bures_squared(np.ones((4, 3)), np.ones((4, 3))) == 0.0


def test_shrinkage_takes_off_most_of_what_a_small_sample_feigns(rng: np.random.Generator) -> None:
    X, Y = l2_normalize(rng.standard_normal((600, 256))), l2_normalize(rng.standard_normal((600, 256)))
    plain = ot.gaussian.empirical_bures_wasserstein_distance(X.astype(np.float64), Y.astype(np.float64))
    assert np.sqrt(bures_squared(X, Y)) < float(plain) / 3


# Debiased, and what all estimators agree on


def test_of_one_distribution_the_raw_distance_is_its_nulls(rng: np.random.Generator) -> None:
    found = GapDistance.of(halves(rng, 300).squares_of(wasserstein_squared))
    assert found.raw > 4
    assert found.raw == pytest.approx((found.image_null + found.text_null) / 2, rel=0.01)
    assert abs(found.excess) < 0.5


def test_an_excess_below_zero_is_kept_beside_a_debiased_zero() -> None:
    found = GapDistance.of(np.array([1.0, 4.0, 1.0]))
    assert found == GapDistance(raw=1.0, image_null=2.0, text_null=1.0, excess=-1.5, debiased=0.0)


@pytest.mark.slow
def test_all_estimators_agree_on_a_shift(rng: np.random.Generator) -> None:
    """Between distributions of one covariance every one of them is the length of the shift."""
    samples = halves(rng, 1000, shift=2.0)
    for squared, scale in (
        (wasserstein_squared, 1.0),
        (bures_squared, 1.0),
        (centroid_squared, 1.0),
        (sliced_squared(seed=1), np.sqrt(DIM)),
    ):
        found = GapDistance.of(samples.squares_of(squared))
        assert found.debiased * scale == pytest.approx(2.0, rel=0.1)
    assert gap_of(samples, seed=0).centred.debiased < 0.5


def test_a_spread_is_no_shift(rng: np.random.Generator) -> None:
    samples = halves(rng, 500, d=4)
    wider = gap_of(Halves(samples.images, (2 * samples.texts[0], 2 * samples.texts[1])), seed=0)
    assert wider.centred.debiased == pytest.approx(2.0, rel=0.1)  # sqrt(4) times the difference of 2 and 1
    assert wider.centroid < 0.3


def test_a_rotation_of_both_changes_nothing(rng: np.random.Generator) -> None:
    samples = halves(rng, 120, shift=1.0)
    turn: Floats = ortho_group.rvs(DIM, random_state=7)
    turned = Halves(
        (samples.images[0] @ turn, samples.images[1] @ turn), (samples.texts[0] @ turn, samples.texts[1] @ turn)
    )
    for squared in (wasserstein_squared, bures_squared, centroid_squared):
        np.testing.assert_allclose(turned.squares_of(squared), samples.squares_of(squared), rtol=1e-9)
    sliced = sliced_squared(seed=0, projections=2000)  # along other directions, so alike and not equal
    np.testing.assert_allclose(turned.squares_of(sliced), samples.squares_of(sliced), rtol=0.1)
    assert permutation_p(turned.images[0], turned.texts[1]) == permutation_p(samples.images[0], samples.texts[1])


# The permutation test


@pytest.mark.slow
def test_p_values_are_uniform_where_there_is_no_gap() -> None:
    """A p-value is a multiple of 1/40 here; with uniform noise of that width it is uniform itself."""
    values = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        X, Y = rng.standard_normal((2, 12, 3))
        values.append(permutation_p(X, Y, seed=seed, permutations=39) - rng.uniform(0, 1 / 40))
    assert kstest(values, "uniform").pvalue > 0.05


def test_a_gap_has_the_smallest_p_value_there_is(rng: np.random.Generator) -> None:
    samples = halves(rng, 100, shift=3.0)
    assert permutation_p(samples.images[0], samples.texts[1], permutations=99) == 0.01


def test_points_that_are_all_one_are_never_apart() -> None:
    assert permutation_p(np.ones((5, 3)), np.ones((5, 3))) == 1.0


# Halves


def test_halves_share_no_group(rng: np.random.Generator) -> None:
    """Pairs that are equal would have a distance of 0, were an image compared with its own text."""
    X = l2_normalize(rng.standard_normal((60, 16)))
    found = modality_gap(paired(X, X))
    assert found is not None
    assert found.raw == pytest.approx(found.image_null, abs=0.1)
    assert found.image_null == pytest.approx(found.text_null, rel=1e-9)
    assert found.n == 30
