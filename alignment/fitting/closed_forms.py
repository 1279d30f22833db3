"""The closed-form methods that fit projections.

Every method sees unit vectors, centred on their training mean, and answers with one weight matrix a modality, and with
a feature map where it is not linear. It decomposes the training data once and solves for any number of hyperparameters,
because that is what makes cross-validation cheap.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from alignment.fitting.pairs import Pairs
from alignment.model.feature_maps import Anchors, FeatureMap, GaussianKernel, gaussian
from alignment.vectors import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

Hyperparameters = Mapping[str, Any]

LANDMARKS = 2048
PAIRS = 1 << 16
COMPONENTS = 512
# Rows whose kernel values are computed at a time: with 2,048 landmarks, 32 MiB a side and a few times that in passing.
KERNEL_ROWS = 2048
# Eigenvalues of the kernel matrix below this share of the largest are noise of the arithmetic.
FLOOR = 1e-6


class ClosedForm(ABC):
    """A way to fit a pair of projections, decomposed for one set of pairs.

    Args of the constructor:
        pairs: what to fit on; the products of its matrices are computed once for all methods.

    Attributes:
        centres: whether vectors are taken less their mean.
        uses_products: whether it asks for these products.
        draws_pairs: whether it asks for `PAIRS` of the pairs.
        fewest_groups: it does not enter below this unless it is named.
    """

    name: ClassVar[str]
    centres: ClassVar[bool] = True
    uses_products: ClassVar[bool] = True
    draws_pairs: ClassVar[bool] = False
    fewest_groups: ClassVar[int] = 0

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    @cached_property
    def _spectrum_x(self) -> "Spectrum":
        return Spectrum(self.pairs.products[0])

    @cached_property
    def _spectrum_y(self) -> "Spectrum":
        return Spectrum(self.pairs.products[1])

    @property
    def _spectra(self) -> "tuple[Spectrum, Spectrum]":
        return self._spectrum_x, self._spectrum_y

    @property
    def _cross(self) -> "Tensor":
        return self.pairs.products[2]  # (d_x, d_y)

    @classmethod
    @abstractmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """Hyperparameters worth trying on spaces of these dimensions; none where the method does not apply."""

    @abstractmethod
    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor | None, Tensor | None]":
        """Return the weights `(d_x, d_out)` and `(d_y, d_out)`, float64; None keeps a space as it is.

        Where there are feature maps, weights are those of their features.
        """

    def feature_maps(self, hyperparameters: Hyperparameters) -> tuple[FeatureMap | None, FeatureMap | None]:
        """Return what the weights expect before them; None: the vectors themselves."""
        return None, None


class Identity(ClosedForm):
    """No projection: raw cosine, for encoders that share a space already (both sides of one CLIP model)."""

    name = "identity"
    centres = uses_products = False

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """One candidate where the dimensions agree."""
        return [{}] if d_x == d_y else []

    @override
    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor | None, Tensor | None]":
        return None, None


class Procrustes(ClosedForm):
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


class Ridge(ClosedForm):
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
        penalty = hyperparameters["penalty"]
        if hyperparameters["target"] == "text":
            return self._spectrum_x.ridge(self._cross_x, penalty), None
        return None, self._spectrum_y.ridge(self._cross_y, penalty)

    @cached_property
    def _cross_x(self) -> "Tensor":
        return self._spectrum_x.turned(self._cross)

    @cached_property
    def _cross_y(self) -> "Tensor":
        return self._spectrum_y.turned(self._cross.T)


class RegularisedCCA(ClosedForm):
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

    def canonical(self, r_x: float, r_y: float) -> "tuple[Tensor, Tensor, Tensor]":
        """Directions (d_x, k), (d_y, k) and correlations (k,); the last answer is kept, grids vary it least."""
        if getattr(self, "_last_key", None) != (r_x, r_y):
            self._last_key, self._last = (r_x, r_y), canonical(*self._spectra, self._cross, r_x, r_y)
        return self._last

    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor, Tensor]":
        """Keep `components` canonical directions, scaled by their correlations to the power `power`."""
        W_x, W_y, correlations = self.canonical(hyperparameters["shrinkage_image"], hyperparameters["shrinkage_text"])
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


class KernelCCA(ClosedForm):
    """Regularised canonical correlation analysis of Gaussian kernel features (Hardoon, Szedmak and Shawe-Taylor 2004).

    Features are the Nyström approximation on at most `LANDMARKS` training pairs, and exact below that many; their
    covariances are those of at most `PAIRS`, which are drawn. So time and memory are bounded.
    """

    name = "kcca"
    uses_products, draws_pairs = False, True

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """Widths of the kernels, shrinkages and dimensions."""
        return [
            {"gamma": gamma, "shrinkage": shrinkage, "components": d}
            for gamma in (1.0, 2.0, 4.0)
            for shrinkage in (0.3, 1.0, 3.0)
            for d in _halvings(COMPONENTS, 2)
        ]

    def _features(self, gamma: float) -> "tuple[tuple[_Features, _Features], Tensor]":
        """Features of both sides and their cross-covariance; the last answer is kept."""
        if getattr(self, "_last_gamma", None) != gamma:
            sides = [_Features(Z, gamma) for Z in self.pairs.drawn(PAIRS)]
            cross = sides[0].whitener.new_zeros(sides[0].whitener.shape[1], sides[1].whitener.shape[1])
            for p, q in zip(sides[0].blocks(), sides[1].blocks(), strict=True):
                cross += p.T @ q
            self._last_gamma, self._last_features = gamma, ((sides[0], sides[1]), cross)
        return self._last_features

    def canonical(self, gamma: float, shrinkage: float) -> "tuple[Tensor, Tensor, Tensor]":
        """Directions (m_x, k), (m_y, k) of the features and correlations (k,); the last answer is kept."""
        if getattr(self, "_last_key", None) != (gamma, shrinkage):
            (left, right), cross = self._features(gamma)
            self._last_key = gamma, shrinkage
            self._last = canonical(left.spectrum, right.spectrum, cross, shrinkage, shrinkage)
        return self._last

    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor, Tensor]":
        """Keep `components` canonical directions, scaled by their correlations."""
        W_x, W_y, correlations = self.canonical(hyperparameters["gamma"], hyperparameters["shrinkage"])
        (left, right), _cross = self._features(hyperparameters["gamma"])
        kept = hyperparameters["components"]
        return left.whitener @ (W_x[:, :kept] * correlations[:kept]), right.whitener @ (
            W_y[:, :kept] * correlations[:kept]
        )

    @override
    def feature_maps(self, hyperparameters: Hyperparameters) -> tuple[FeatureMap, FeatureMap]:
        (left, right), _cross = self._features(hyperparameters["gamma"])
        return left.feature_map(), right.feature_map()


class Asif(ClosedForm):
    """Similarities to at most `LANDMARKS` training pairs as coordinates (ASIF, Norelli et al. 2023, arXiv 2210.01738).

    Nothing is trained: an image is what it is near to among the images of the anchors, a text among their texts.
    """

    name = "asif"
    uses_products, draws_pairs = False, True

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """How many anchors are kept, and the power of their similarities."""
        return [{"kept": kept, "power": power} for kept in (50, 200, 800) for power in (2.0, 4.0, 8.0)]

    def solve(self, hyperparameters: Hyperparameters) -> "tuple[Tensor | None, Tensor | None]":
        """The features are the shared space."""
        return None, None

    @override
    def feature_maps(self, hyperparameters: Hyperparameters) -> tuple[FeatureMap, FeatureMap]:
        some = [Z[:: -(-len(Z) // LANDMARKS)] for Z in self.pairs.drawn(PAIRS)]
        anchors = [Z / Z.norm(dim=1, keepdim=True) for Z in some]
        kept = min(hyperparameters["kept"], len(anchors[0]))
        numbers = {"kept": np.array([kept], np.float32), "power": np.array([hyperparameters["power"]], np.float32)}
        image, text = (Anchors({"anchors": array_of(side), **numbers}) for side in anchors)
        return image, text


class _Features:
    """Nyström features of one side: `(K(Z, L) - mean) V diag(values)^-1/2` of the landmarks' kernel matrix.

    Attributes:
        whitener: (m, rank), from centred kernel values to features.
        spectrum: of the features of all rows.
    """

    def __init__(self, Z: "Tensor", gamma: float):
        import torch

        norms = Z.norm(dim=1, keepdim=True).clamp(min=torch.finfo(Z.dtype).tiny)
        self._Z, self._gamma = Z.div_(norms), gamma  # in place: there may be half a gigabyte of them
        self._landmarks = self._Z[:: -(-len(Z) // LANDMARKS)]  # (m, d)
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
        for start in range(0, len(self._Z), KERNEL_ROWS):
            yield gaussian(self._Z[start : start + KERNEL_ROWS], self._landmarks, self._gamma).sub_(self._mean)

    def blocks(self) -> "Iterator[Tensor]":
        """Yield the features of all rows, a block of rows at a time."""
        for block in self._kernels():
            features: Tensor = block @ self.whitener
            yield features

    def feature_map(self) -> GaussianKernel:
        """The kernel, as a projection holds it."""
        gamma = np.array([self._gamma], np.float32)
        return GaussianKernel({"landmarks": array_of(self._landmarks), "mean": array_of(self._mean), "gamma": gamma})


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

    def turned(self, cross: "Tensor") -> "Tensor":
        """Z'T (d, d_target) on the eigenvectors, (rank, d_target)."""
        turned: Tensor = self.vectors.T @ cross
        return turned

    def ridge(self, turned: "Tensor", penalty: float) -> "Tensor":
        """`(Z'Z + penalty * mean eigenvalue * I)^-1 Z'T`, (d, d_target), of Z'T on the eigenvectors."""
        scale = 1.0 / (self.values + penalty * self.mean_value)  # (rank,)
        weight: Tensor = self.vectors @ (scale[:, None] * turned)
        return weight

    def whitener(self, shrinkage: float) -> "Tensor":
        """`V diag((values + shrinkage * mean eigenvalue)^-1/2)`, (d, rank)."""
        whitening: Tensor = self.vectors / (self.values + shrinkage * self.mean_value).sqrt()
        return whitening


def _halvings(widest: int, count: int) -> list[int]:
    """`widest`, half of it, a quarter, ...: at most `count` numbers, all above zero."""
    return [d for d in (widest >> shift for shift in range(count)) if d > 0]


def array_of(tensor: "Tensor") -> FloatArray:
    """Return a tensor of any device as float32."""
    array: FloatArray = tensor.to("cpu").float().numpy()
    return array


CLOSED_FORMS: dict[str, type[ClosedForm]] = {
    method.name: method for method in (Identity, Procrustes, Ridge, RegularisedCCA, KernelCCA, Asif)
}
