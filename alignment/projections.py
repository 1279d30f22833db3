"""Projections into the shared space, and the closed-form methods that fit them.

Every method sees unit vectors, centred on their training mean, and answers with one weight matrix a modality, and with
a lift where it is not linear; the projection of a vector is then `unit(lift(unit(x) - mean) @ weight)`. Methods
decompose the training data once and solve for any number of hyperparameters, because that is what makes
cross-validation cheap.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from alignment.errors import VectorError
from alignment.lifts import GaussianKernel, Lift, gaussian
from alignment.vectors import ROUNDING, FloatArray, require_sound, unit

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Hyperparameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A map from one encoder's space into the shared space.

    Attributes:
        mean: (d_in,) float32, subtracted from the unit vectors; None leaves them where they are.
        weight: (d_in, d_out) float32, or (m, d_out) after a lift to m features; None keeps the space.
        lift: what stands between the two; None where the projection is linear.
    """

    in_dim: int
    mean: FloatArray | None = None
    weight: FloatArray | None = None
    lift: Lift | None = None
    _shortest: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        size = 1.0 if self.weight is None else float(np.linalg.norm(self.weight))
        object.__setattr__(self, "_shortest", ROUNDING * size)  # once, because a weight is larger than a query

    @property
    def out_dim(self) -> int:
        """Dimension of the shared space."""
        if self.weight is not None:
            return int(self.weight.shape[1])
        return self.in_dim if self.lift is None else self.lift.dims[1]

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Everything it holds, by name."""
        named = {"mean": self.mean, "weight": self.weight}
        lifted = (
            {}
            if self.lift is None
            else {f"lift.{self.lift.name}.{name}": tensor for name, tensor in self.lift.tensors().items()}
        )
        return {name: tensor for name, tensor in named.items() if tensor is not None} | lifted

    def __call__(self, X: npt.NDArray[np.floating]) -> FloatArray:
        """Project raw embeddings (n, d_in) to unit vectors (n, d_out) float32.

        Raises:
            VectorError: another dimension, or rows that are NaN, infinite, zero, or that this projection maps to
                zero (a vector that equals the training mean).
        """
        if X.ndim != 2 or X.shape[1] != self.in_dim:
            raise VectorError(
                f"expected vectors of shape (n, {self.in_dim}), got {X.shape}; they come from another encoder"
            )
        require_sound(X, "vectors to project")
        projected = self.unchecked(X)
        require_sound(projected, "projected vectors")
        return projected

    def unchecked(self, X: npt.NDArray[np.floating]) -> FloatArray:
        """Project sound vectors (n, d_in) of the right dimension; a row that maps to zero comes back as NaN.

        Rounding moves a unit vector by `ROUNDING`, and its projection by that times the size of the weight: what is
        no longer than this has no direction of its own, and counts as zero.
        """
        Z = unit(X)
        if self.mean is not None:
            Z -= self.mean
        if self.lift is not None:
            Z = self.lift(Z)
        if self.weight is not None:
            Z = Z @ self.weight
        norms = np.sqrt(np.einsum("nd,nd->n", Z, Z, dtype=np.float64))  # (n,)
        norms[norms <= self._shortest] = np.nan
        projected: FloatArray = np.divide(Z, norms[:, None], dtype=np.float32, casting="unsafe")
        return projected


class Method(ABC):
    """A way to fit a pair of projections, decomposed for one set of pairs.

    Args of the constructor:
        X, Y: n pairs as centred unit vectors, (n, d_x) and (n, d_y), float64.
    """

    name: ClassVar[str]
    centres: ClassVar[bool] = True

    def __init__(self, X: "Tensor", Y: "Tensor"):
        self.X, self.Y = X, Y

    @cached_property
    def _spectra(self) -> "tuple[Spectrum, Spectrum]":
        return Spectrum(self.X.T @ self.X), Spectrum(self.Y.T @ self.Y)

    @cached_property
    def _cross(self) -> "Tensor":
        return self.X.T @ self.Y  # (d_x, d_y)

    @classmethod
    @abstractmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """Hyperparameters worth trying on spaces of these dimensions; none where the method does not apply."""

    @abstractmethod
    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor | None, Tensor | None]":
        """Return the weights `(d_x, d_out)` and `(d_y, d_out)`, float64; None keeps a space as it is.

        Where there are lifts, weights are those of their features.
        """

    def lifts(self, hyperparameters: Hyperparameters) -> tuple[Lift | None, Lift | None]:
        """Return what the weights expect before them; None: the vectors themselves."""
        return None, None


class Identity(Method):
    """No projection: raw cosine, for encoders that share a space already (both sides of one CLIP model)."""

    name = "identity"
    centres = False

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """One candidate where the dimensions agree."""
        return [{}] if d_x == d_y else []

    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor | None, Tensor | None]":
        """Keep both spaces."""
        return None, None


class Procrustes(Method):
    """Orthogonal Procrustes on principal components: `argmin |X P_x R - Y P_y|` over orthogonal R.

    With U S V' = svd((X P_x)' Y P_y), R = U V' (Schönemann 1966).
    """

    name = "procrustes"

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """Numbers of principal components."""
        widest = min(d_x, d_y)
        return [{"components": d} for d in _halvings(widest, 4)]

    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor, Tensor]":
        """Rotate the first `components` principal axes of X onto those of Y."""
        import torch

        kept = min(hyperparameters["components"], *(spectrum.rank for spectrum in self._spectra))
        P_x, P_y = (spectrum.vectors[:, :kept] for spectrum in self._spectra)  # (d, k) each
        U, _singular, Vt = torch.linalg.svd(P_x.T @ self._cross @ P_y)
        return P_x @ U @ Vt, P_y


class Ridge(Method):
    """Ridge regression of one modality on the other: `W = (X'X + l I)^-1 X'Y`.

    The penalty l is a multiple of the mean eigenvalue of X'X, so it means the same for every size and encoder.
    """

    name = "ridge"

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """Penalties over four decades, in both directions."""
        penalties = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
        return [{"target": target, "penalty": p} for target in ("text", "image") for p in penalties]

    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor | None, Tensor | None]":
        """Map images into the text space (`target="text"`) or texts into the image space."""
        spectrum_x, spectrum_y = self._spectra
        penalty = hyperparameters["penalty"]
        if hyperparameters["target"] == "text":
            return spectrum_x.ridge(self._cross, penalty), None
        return None, spectrum_y.ridge(self._cross.T, penalty)


class RegularisedCCA(Method):
    """Canonical correlation analysis with shrunk covariances (Vinod 1976; CSA, arXiv 2410.07610).

    Whiten both sides with `(C + r I)^-1/2`, take U S V' = svd of the whitened cross-covariance, keep the first
    `components` directions and scale them by `S^power`. The shrinkage r is a multiple of the mean eigenvalue of C.
    """

    name = "rcca"

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """Shrinkages of both sides, dimensions and powers of the canonical correlations."""
        return [
            {"shrinkage_image": r_x, "shrinkage_text": r_y, "components": d, "power": power}
            for r_x in (0.1, 0.3, 1.0, 3.0)
            for r_y in (0.1, 0.3, 1.0, 3.0)
            for d in _halvings(min(d_x, d_y), 3)
            for power in (0.5, 1.0)
        ]

    def _canonical(self, r_x: float, r_y: float) -> "tuple[Tensor, Tensor, Tensor]":
        """Directions (d_x, k), (d_y, k) and correlations (k,); the last answer is kept, grids vary it least."""
        if getattr(self, "_last_key", None) != (r_x, r_y):
            self._last_key, self._last = (r_x, r_y), canonical(*self._spectra, self._cross, r_x, r_y)
        return self._last

    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor, Tensor]":
        """Keep `components` canonical directions, scaled by their correlations to the power `power`."""
        W_x, W_y, correlations = self._canonical(hyperparameters["shrinkage_image"], hyperparameters["shrinkage_text"])
        components = hyperparameters["components"]
        scale = correlations[:components] ** hyperparameters["power"]  # (k,)
        return W_x[:, :components] * scale, W_y[:, :components] * scale


def canonical(
    spectrum_x: "Spectrum", spectrum_y: "Spectrum", cross: "Tensor", r_x: float, r_y: float
) -> "tuple[Tensor, Tensor, Tensor]":
    """Canonical directions (d_x, k), (d_y, k) and their correlations (k,), of covariances shrunk by r_x and r_y."""
    import torch

    A, B = spectrum_x.whitener(r_x), spectrum_y.whitener(r_y)
    U, correlations, Vt = torch.linalg.svd(A.T @ cross @ B, full_matrices=False)
    return A @ U, B @ Vt.T, correlations


class KernelCCA(Method):
    """Regularised canonical correlation analysis of Gaussian kernel features (Hardoon, Szedmak and Shawe-Taylor 2004).

    Features are the Nyström approximation on at most `LANDMARKS` training pairs, and exact below that many; their
    covariances are those of at most `PAIRS`. Both are evenly spread, so time and memory are bounded.
    """

    name = "kcca"

    def __init__(self, X: "Tensor", Y: "Tensor"):
        step = -(-len(X) // PAIRS)
        super().__init__(X[::step], Y[::step])

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """Widths of the kernels, shrinkages and dimensions."""
        return [
            {"gamma": gamma, "shrinkage": shrinkage, "components": d}
            for gamma in (1.0, 2.0, 4.0)
            for shrinkage in (0.3, 1.0, 3.0)
            for d in _halvings(COMPONENTS, 2)
        ]

    @cached_property
    def _rows(self) -> slice:
        return slice(0, None, -(-len(self.X) // LANDMARKS))

    def _features(self, gamma: float) -> "tuple[tuple[_Features, _Features], Tensor]":
        """Features of both sides and their cross-covariance; the last answer is kept."""
        if getattr(self, "_last_gamma", None) != gamma:
            sides = [_Features(Z, gamma, self._rows) for Z in (self.X, self.Y)]
            cross = sides[0].whitener.new_zeros(sides[0].whitener.shape[1], sides[1].whitener.shape[1])
            for p, q in zip(sides[0].blocks(), sides[1].blocks(), strict=True):
                cross += p.T @ q
            self._last_gamma, self._last_features = gamma, ((sides[0], sides[1]), cross)
        return self._last_features

    def _canonical(self, gamma: float, shrinkage: float) -> "tuple[Tensor, Tensor, Tensor]":
        if getattr(self, "_last_key", None) != (gamma, shrinkage):
            (left, right), cross = self._features(gamma)
            found = canonical(left.spectrum, right.spectrum, cross, shrinkage, shrinkage)
            self._last_key, self._last = (gamma, shrinkage), found
        return self._last

    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor, Tensor]":
        """Keep `components` canonical directions, scaled by their correlations."""
        W_x, W_y, correlations = self._canonical(hyperparameters["gamma"], hyperparameters["shrinkage"])
        (left, right), _cross = self._features(hyperparameters["gamma"])
        kept = hyperparameters["components"]
        return left.whitener @ (W_x[:, :kept] * correlations[:kept]), right.whitener @ (
            W_y[:, :kept] * correlations[:kept]
        )

    def lifts(self, hyperparameters: Hyperparameters) -> tuple[Lift, Lift]:
        """The kernels."""
        (left, right), _cross = self._features(hyperparameters["gamma"])
        return left.lift(), right.lift()


LANDMARKS = 2048
PAIRS = 1 << 16
COMPONENTS = 512
BLOCK_ROWS = 8192
# Eigenvalues of the kernel matrix below this share of the largest are noise of the arithmetic.
FLOOR = 1e-6


class _Features:
    """Nyström features of one side: `(K(Z, L) - mean) V diag(values)^-1/2` of the landmarks' kernel matrix.

    Attributes:
        whitener: (m, rank), from centred kernel values to features.
        spectrum: of the features of all rows.
    """

    def __init__(self, Z: "Tensor", gamma: float, rows: slice):
        import torch

        norms = Z.norm(dim=1, keepdim=True).clamp(min=torch.finfo(Z.dtype).tiny)
        self._Z, self._gamma = Z / norms, gamma
        self._landmarks = self._Z[rows]  # (m, d)
        values, vectors = torch.linalg.eigh(gaussian(self._landmarks, self._landmarks, gamma))  # ascending
        kept = values > FLOOR * values[-1]
        self.whitener = vectors[:, kept] / values[kept].sqrt()
        self._mean = torch.zeros_like(self._landmarks[:, 0])  # (m,)
        self._mean = torch.stack([block.sum(dim=0) for block in self._kernels()]).sum(dim=0) / len(Z)
        gram = torch.zeros_like(self.whitener.T @ self.whitener)
        for block in self.blocks():
            gram += block.T @ block
        self.spectrum = Spectrum(gram)

    def _kernels(self) -> "Iterator[Tensor]":
        for start in range(0, len(self._Z), BLOCK_ROWS):
            yield gaussian(self._Z[start : start + BLOCK_ROWS], self._landmarks, self._gamma) - self._mean

    def blocks(self) -> "Iterator[Tensor]":
        """Yield the features of all rows, a block of rows at a time."""
        for block in self._kernels():
            features: Tensor = block @ self.whitener
            yield features

    def lift(self) -> GaussianKernel:
        """The kernel, as a projection holds it."""
        gamma = np.array([self._gamma], np.float32)
        return GaussianKernel(_array(self._landmarks), _array(self._mean), gamma)


METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Identity, Procrustes, Ridge, RegularisedCCA, KernelCCA)
}


class Spectrum:
    """Eigenvectors and eigenvalues of a Gram matrix Z'Z, largest first, without directions in which Z does not vary.

    The cut-off is relative to the largest eigenvalue, so it holds for fewer rows than dimensions and for duplicated
    columns alike.

    Attributes:
        vectors: (d, rank) orthonormal.
        values: (rank,) positive.
        mean_value: mean eigenvalue over all d directions, the unit of penalties and shrinkages.
    """

    def __init__(self, gram: "Tensor"):
        import torch

        values, vectors = torch.linalg.eigh(gram)  # ascending
        floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
        kept = values.flip(0) > floor
        self.values = values.flip(0)[kept]
        self.vectors = vectors.flip(1)[:, kept]
        self.mean_value = values.clamp(min=0).mean()

    @property
    def rank(self) -> int:
        """Number of directions in which Z varies."""
        return len(self.values)

    def ridge(self, cross: "Tensor", penalty: float) -> "Tensor":
        """`(Z'Z + penalty * mean eigenvalue * I)^-1 cross`, (d, d_target)."""
        scale = 1.0 / (self.values + penalty * self.mean_value)  # (rank,)
        weight: Tensor = self.vectors @ (scale[:, None] * (self.vectors.T @ cross))
        return weight

    def whitener(self, shrinkage: float) -> "Tensor":
        """`V diag((values + shrinkage * mean eigenvalue)^-1/2)`, (d, rank)."""
        whitening: Tensor = self.vectors / (self.values + shrinkage * self.mean_value).sqrt()
        return whitening


class Fitter:
    """A method bound to n training pairs: fits projections for any hyperparameters on one decomposition."""

    def __init__(self, method: str, X: FloatArray, Y: FloatArray, device: "torch.device"):
        import torch

        kind = METHODS[method]
        # Apple's GPU has no float64, and float32 loses the small eigenvalues: there the closed forms run on the CPU.
        place = torch.device("cpu") if device.type == "mps" else device
        sides = [torch.from_numpy(unit(side)).to(place, torch.float64) for side in (X, Y)]
        self._means = [side.mean(dim=0) if kind.centres else None for side in sides]
        centred = [side if mean is None else side - mean for side, mean in zip(sides, self._means, strict=True)]
        self._solver = kind(*centred)

    def fit(self, hyperparameters: Hyperparameters) -> tuple[Projection, Projection]:
        """Return the image and the text projection for these hyperparameters."""
        weights, lifts = self._solver.solve(hyperparameters), self._solver.lifts(hyperparameters)
        dims = (self._solver.X.shape[1], self._solver.Y.shape[1])
        held = [[None if t is None else _array(t) for t in side] for side in zip(self._means, weights, strict=True)]
        image, text = (
            Projection(dim, mean, weight, lift) for dim, (mean, weight), lift in zip(dims, held, lifts, strict=True)
        )
        return image, text


def _array(tensor: "Tensor") -> FloatArray:
    array: FloatArray = tensor.to("cpu").float().numpy()
    return array


def _halvings(widest: int, count: int) -> list[int]:
    """`widest`, half of it, a quarter, ...: at most `count` numbers, all above zero."""
    return [d for d in (widest >> shift for shift in range(count)) if d > 0]
