"""Feature maps: a projection that is not linear applies one to centred vectors before its weight.

A feature map is a value that holds only float32 arrays. It is saved with the alignment and is part of its fingerprint.
Its computation is written once, for tensors of torch: heads are trained through it, and exported graphs contain it.
Those of closed forms take arrays of numpy as well, so that pushes and searches with closed forms need no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from array_api_compat import is_torch_array
from typing_extensions import override

from alignment.metrics.arrays import Array, array_namespace
from alignment.vectors import ROUNDING, FloatArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap(ABC):
    """Features of vectors.

    Attributes:
        parameters: everything it holds, by name, float32.
    """

    parameters: Mapping[str, FloatArray]
    name: ClassVar[str]

    @property
    @abstractmethod
    def dims(self) -> tuple[int, int]:
        """Dimensions of a vector and of its features."""

    @staticmethod
    @abstractmethod
    def features(p: "Mapping[str, Tensor]", Z: "Tensor", *, dropout: float = 0.0) -> "Tensor":
        """Features (n, m) of centred vectors (n, d) for the parameters `p`; gradients flow through both.

        Args:
            p: like `parameters`.
            Z: vectors that have a direction.
            dropout: share of hidden numbers set to zero, in training, where the map has hidden numbers.
        """

    def __call__(self, Z: FloatArray) -> FloatArray:
        """Features (n, m) of vectors (n, d); NaN for a row without a direction."""
        import torch  # here, because closed forms need none

        with torch.inference_mode():
            features: FloatArray = self.of_tensor(torch.from_numpy(np.ascontiguousarray(Z))).numpy()
        return features

    def of_tensor(self, Z: "Tensor") -> "Tensor":
        """Features (n, m) of a tensor (n, d); NaN for a row without a direction."""
        import torch

        features = self.features({name: torch.tensor(array) for name, array in self.parameters.items()}, Z)
        return features.masked_fill(Z.double().norm(dim=1, keepdim=True) <= ROUNDING, torch.nan)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Build a feature map from the `parameters` of another.

        Raises:
            KeyError: a tensor is missing.
            TypeError: tensors do not fit together.
        """
        made = cls({name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()})
        try:
            d, m = made.dims
            fits = made(np.ones((1, d), np.float32)).shape == (1, m)
        except (RuntimeError, ValueError, IndexError) as error:
            raise TypeError(f"the tensors of feature map {cls.name} do not fit together: {error}") from error
        if not fits:
            raise TypeError(f"the tensors of feature map {cls.name} do not fit together")
        return made


class ClosedFormMap(FeatureMap):
    """A feature map whose `features` take and give tensors or arrays alike."""

    @staticmethod
    @abstractmethod
    @override
    def features(p: Mapping[str, Array], Z: Array, *, dropout: float = 0.0) -> Array: ...

    @override
    def __call__(self, Z: FloatArray) -> FloatArray:
        features = self.features(self.parameters, Z)
        features[np.linalg.norm(Z.astype(np.float64), axis=1) <= ROUNDING] = np.nan
        return features


class GaussianKernel(ClosedFormMap):
    """`exp(-gamma (1 - cos(z, l)))` for every landmark l, less the mean of it over the training vectors.

    Between unit vectors that is the Gaussian kernel `exp(-gamma |z - l|^2 / 2)`. With a weight from `KernelCCA` this is
    the Nyström approximation (Williams and Seeger 2001), exact where every training vector is a landmark.

    Parameters: landmarks, unit vectors (m, d); mean (m,); gamma (1,), positive.
    """

    name: ClassVar[str] = "gaussian-kernel"

    @property
    @override
    def dims(self) -> tuple[int, int]:
        m, d = self.parameters["landmarks"].shape
        return d, m

    @staticmethod
    @override
    def features(p: Mapping[str, Array], Z: Array, *, dropout: float = 0.0) -> Array:
        return gaussian(_normalized(Z), p["landmarks"], p["gamma"]) - p["mean"]


class Anchors(ClosedFormMap):
    """`max(cos(z, a), 0)^power` for the `kept` nearest anchors a, and 0 for the others: relative representations.

    Norelli et al. 2023 (ASIF, arXiv 2210.01738). Anchors of the two modalities are pairs, so features of both stand in
    one space without anything being trained.

    Parameters: anchors, unit vectors (m, d); kept (1,), a whole number; power (1,).
    """

    name: ClassVar[str] = "anchors"

    @property
    @override
    def dims(self) -> tuple[int, int]:
        m, d = self.parameters["anchors"].shape
        return d, m

    @staticmethod
    def features(p: Mapping[str, Array], Z: Array, *, dropout: float = 0.0) -> Array:
        """Sparse similarities; equal ones at the threshold are all kept."""
        cosines = _normalized(Z) @ p["anchors"].T
        similarities = cosines.relu() if is_torch_array(cosines) else np.maximum(cosines, 0)
        return (similarities * (similarities >= _kth_largest(similarities, int(p["kept"][0])))) ** p["power"]


class ResidualMlp(FeatureMap):
    """A linear map to the width w, and blocks `z + narrow(gelu(wide(norm(z))))` on it, w -> 4 w -> w.

    The head of FuseMix (Vouitsis et al. 2024, arXiv 2312.10144).

    Parameters: first.weight (d, w), first.bias; for each block b from 0: b.norm.weight, b.norm.bias, b.wide.weight,
    b.wide.bias, b.narrow.weight, b.narrow.bias.
    """

    name: ClassVar[str] = "residual-mlp"

    @property
    @override
    def dims(self) -> tuple[int, int]:
        d, w = self.parameters["first.weight"].shape
        return d, w

    @staticmethod
    @override
    def features(p: "Mapping[str, Tensor]", Z: "Tensor", *, dropout: float = 0.0) -> "Tensor":
        from torch.nn import functional as F

        Z = Z @ p["first.weight"] + p["first.bias"]
        for b in range((len(p) - 2) // 6):
            H = F.layer_norm(Z, Z.shape[1:], p[f"{b}.norm.weight"], p[f"{b}.norm.bias"])
            H = F.gelu(H @ p[f"{b}.wide.weight"] + p[f"{b}.wide.bias"])
            H = F.dropout(H, dropout, training=dropout > 0) @ p[f"{b}.narrow.weight"] + p[f"{b}.narrow.bias"]
            Z = Z + F.dropout(H, dropout, training=dropout > 0)
        return Z


class StarGlu(FeatureMap):
    """`relu6(norm(z) F1 + b1) * (norm(z) F2 + b2)`: the head of SAIL (Zhang et al. 2025, arXiv 2412.04616).

    Parameters: norm.weight, norm.bias (d,); gate.weight, value.weight (d, m); gate.bias, value.bias (m,).
    """

    name: ClassVar[str] = "star-glu"

    @property
    @override
    def dims(self) -> tuple[int, int]:
        d, m = self.parameters["gate.weight"].shape
        return d, m

    @staticmethod
    @override
    def features(p: "Mapping[str, Tensor]", Z: "Tensor", *, dropout: float = 0.0) -> "Tensor":
        from torch.nn import functional as F

        Z = F.layer_norm(Z, Z.shape[1:], p["norm.weight"], p["norm.bias"])
        H = F.relu6(Z @ p["gate.weight"] + p["gate.bias"]) * (Z @ p["value.weight"] + p["value.bias"])
        return F.dropout(H, dropout, training=dropout > 0)


def gaussian(Z: Array, landmarks: Array, gamma: Array | float) -> Array:
    """Kernel values (n, m) of unit vectors (n, d) and landmarks (m, d)."""
    values: Array = array_namespace(Z).exp((Z @ landmarks.T - 1) * gamma)
    return values


def _kth_largest(X: Array, k: int) -> Array:
    """Return the k-th largest number of each row of (n, m): (n, 1)."""
    if is_torch_array(X):
        return X.topk(k, dim=1).values[:, -1:]
    return np.partition(X, X.shape[1] - k, axis=1)[:, [-k]]


def _normalized(Z: Array) -> Array:
    tiny = array_namespace(Z).finfo(Z.dtype).tiny
    if is_torch_array(Z):
        norms = Z.norm(dim=1, keepdim=True).clamp(min=tiny)
    else:
        norms = np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), tiny)
    normalized: Array = Z / norms
    return normalized


FEATURE_MAPS: dict[str, type[FeatureMap]] = {
    kind.name: kind for kind in (GaussianKernel, Anchors, ResidualMlp, StarGlu)
}
