"""How far apart two samples of vectors lie as clouds: transport and its cheaper relatives, with what chance gives.

Every distance here is a root, in the unit of the vectors, and every sample is too small for the space it lives in: two
samples of one distribution in 512 dimensions are nearly as far apart as two of different ones. So a distance between
modalities is never returned without the same distance between disjoint halves of each modality, its nulls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Squared = Callable[[Matrix, Matrix], float]

# Points that are matched at once: a quarter of a second and 32 MB of costs.
EXACT_MOST = 2_000
PROJECTIONS = 500
PERMUTATIONS = 199


@dataclass(frozen=True, slots=True)
class GapDistance:
    """A distance between images and texts beside the same distance within each modality.

    Attributes:
        raw: between samples of the two modalities, with all that it has from the size of the samples.
        image_null, text_null: between disjoint samples of one modality, of the same size: the value without any gap.
        excess: `raw^2 - (image_null^2 + text_null^2) / 2`; below 0 where the modalities are nearer than chance.
        debiased: root of `excess`; 0 where that is below 0.
    """

    raw: float
    image_null: float
    text_null: float
    excess: float
    debiased: float

    @property
    def null(self) -> float:
        """What samples of one modality have between them: root of the mean square of both nulls."""
        return float(np.sqrt((self.image_null**2 + self.text_null**2) / 2))

    @classmethod
    def of(cls, squares: Floats) -> Self:
        """Take the roots of `squares_of` (3,)."""
        across, image, text = (float(square) for square in squares)
        excess = across - (image + text) / 2
        raw, image_null, text_null, debiased = np.sqrt(np.maximum([across, image, text, excess], 0.0))
        return cls(float(raw), float(image_null), float(text_null), excess, float(debiased))


@dataclass(frozen=True, slots=True)
class Halves:
    """Two disjoint samples of each modality, (n, d) each.

    No group is in two samples that are compared: an image is nearer to its own text than to a text of its kind, and
    would make a gap smaller than it is.
    """

    images: tuple[Matrix, Matrix]
    texts: tuple[Matrix, Matrix]

    def squares_of(self, squared: Squared) -> Floats:
        """Compare images with texts (both ways, the mean), images with images and texts with texts: (3,)."""
        (a, b), (c, d) = self.images, self.texts
        return np.array([(squared(a, d) + squared(b, c)) / 2, squared(a, b), squared(c, d)])


def points_matched(n: int) -> int:
    """How many points of a sample of `n` are matched at once."""
    return -(-n // _blocks(n))


def _blocks(n: int) -> int:
    return -(-n // EXACT_MOST)


def in_blocks(squared: Squared) -> Squared:
    """Return the mean of `squared` over blocks of both samples, of at most `EXACT_MOST` points each.

    Sizes of blocks differ by one at most. The mean (Fatras et al., Learning with minibatch Wasserstein, 2020) is biased
    by the size of a block, and so are its nulls. Each block is solved exactly, in the memory of one.
    """

    def mean(X: Matrix, Y: Matrix) -> float:
        parts = list(zip(np.array_split(X, _blocks(len(X))), np.array_split(Y, _blocks(len(Y))), strict=True))
        return sum(len(x) * squared(x, y) for x, y in parts) / len(X)

    return mean


def wasserstein_squared(X: Matrix, Y: Matrix) -> float:
    """Squared Wasserstein-2 distance of two samples (n, d) of equal size, each point weighing 1 / n.

    `W2^2 = min over assignments s of mean |x_i - y_s(i)|^2`: of equal samples an optimal plan is an assignment
    (Birkhoff). `scipy.optimize.linear_sum_assignment` solves it exactly, with the value of POT's `ot.emd2` in a third
    of its time; it takes n x n costs, so larger samples go `in_blocks`.

    >>> wasserstein_squared(np.array([[0.0], [1.0]]), np.array([[3.0], [2.0]]))
    4.0
    """
    from scipy.optimize import linear_sum_assignment  # here, because scipy takes as long to import as all of `--help`

    costs = _squared_distances(X, Y)
    return float(costs[linear_sum_assignment(costs)].mean())


def _squared_distances(X: Matrix, Y: Matrix) -> Floats:
    """`|x_i - y_j|^2` (n, m) in float64."""
    X, Y = X.astype(np.float64), Y.astype(np.float64)
    squares: Floats = (X**2).sum(axis=1)[:, None] + (Y**2).sum(axis=1)[None, :] - 2 * X @ Y.T
    return np.maximum(squares, 0.0)


def centroid_squared(X: Matrix, Y: Matrix) -> float:
    """Squared distance of the means of two samples (n, d).

    It is what centring both samples takes off `W2^2`, whatever the samples are.

    >>> centroid_squared(np.array([[0.0], [2.0]]), np.array([[4.0]]))
    9.0
    """
    return float(((X.mean(axis=0, dtype=np.float64) - Y.mean(axis=0, dtype=np.float64)) ** 2).sum())


def sliced_squared(seed: int, projections: int = PROJECTIONS) -> Squared:
    """Return the squared sliced Wasserstein-2 distance: mean of `W2^2` along random directions (Bonneel et al. 2015).

    The signal shrinks with the dimension: a shift by `s` gives `s^2 / d` on average.
    """

    def squared(X: Matrix, Y: Matrix) -> float:
        import ot  # here, because it takes a second to import

        return (
            float(
                ot.sliced_wasserstein_distance(
                    X.astype(np.float64), Y.astype(np.float64), n_projections=projections, seed=seed
                )
            )
            ** 2
        )

    return squared


def bures_squared(X: Matrix, Y: Matrix) -> float:
    """Squared Wasserstein-2 distance of the Gaussians with the means and covariances of two samples (n, d).

    `|m - n|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2)`. Covariances are shrunk by Ledoit and Wolf: of plain ones,
    two samples of 1,000 in 512 dimensions of one distribution are .337 apart.
    """
    one, other = _Root.of(X.astype(np.float64)), _Root.of(Y.astype(np.float64))
    # The singular values of A^1/2 B^1/2 are the eigenvalues of (A^1/2 B A^1/2)^1/2. Outside of what small samples span,
    # both roots are multiples of the identity.
    axes = np.concatenate([one.axes, other.axes], axis=1)
    span = np.linalg.qr(axes)[0] if axes.shape[1] < len(axes) else None  # (d, q); None: all of the space
    roots = one.within(span), other.within(span)
    outside = (len(axes) - len(roots[0])) * one.rest * other.rest
    cross = outside + float(np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum())
    return max(0.0, centroid_squared(X, Y) + one.trace + other.trace - 2 * cross)


@dataclass(frozen=True, slots=True)
class _Root:
    """The root of a shrunk covariance (d, d): `rest` times the identity, and more along the `axes` of the sample.

    Attributes:
        axes: (d, r), orthonormal; r is the size of a sample of less than d / 2, and else d.
        more: what the root has along each axis beyond `rest` (r,).
        rest: at least 0.
        trace: of the covariance.
    """

    axes: Floats
    more: Floats
    rest: float
    trace: float

    @classmethod
    def of(cls, X: Floats) -> Self:
        """Shrink the covariance of a sample (n, d)."""
        from sklearn.covariance import ledoit_wolf_shrinkage  # here, because it takes a second to import

        n, d = X.shape
        shrinkage, centred = float(ledoit_wolf_shrinkage(X)), X - X.mean(axis=0)
        if 2 * n < d:
            _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
            variances, axes = lengths**2 / n, axes.T
        else:
            variances, axes = np.linalg.eigh(centred.T @ centred / n)
        trace = float((centred**2).sum() / n)
        shrunk = shrinkage * trace / d
        rest = float(np.sqrt(shrunk))
        return cls(axes, np.sqrt((1 - shrinkage) * np.maximum(variances, 0.0) + shrunk) - rest, rest, trace)

    def within(self, span: Floats | None) -> Floats:
        """Return the root in an orthonormal basis (d, q) of a space that holds the axes: (q, q)."""
        axes = self.axes if span is None else span.T @ self.axes
        root: Floats = (axes * self.more) @ axes.T
        root[np.diag_indices_from(root)] += self.rest
        return root


def permutation_p(X: Matrix, Y: Matrix, *, seed: int = 0, permutations: int = PERMUTATIONS) -> float:
    """Return the p-value of a permutation test of the Wasserstein-2 distance of points (n, d) and (n, d).

    It is the share of random divisions of all points in two that lie as far apart as `X` and `Y` do, in (0, 1]: uniform
    where both samples come from one distribution, never below `1 / (1 + permutations)`. The points must be independent:
    no image beside its own text.
    """
    # Here, because scipy takes as long to import as all of `--help`.
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import permutation_test

    pool = np.concatenate([X, Y])
    costs = _squared_distances(pool, pool)

    def apart(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> float:
        between = costs[np.ix_(x, y)]
        return float(between[linear_sum_assignment(between)].sum())

    numbers = np.arange(len(pool))
    test = permutation_test(
        (numbers[: len(X)], numbers[len(X) :]),
        apart,
        vectorized=False,
        n_resamples=permutations,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)
