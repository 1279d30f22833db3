"""Projections into the shared space: `l2_normalize(feature_map(l2_normalize(x) - mean) @ weight)`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignment.errors import VectorError
from alignment.model.feature_maps import FeatureMap
from alignment.vectors import ROUNDING, FloatArray, check_sound, l2_normalize

if TYPE_CHECKING:
    from torch import Tensor

# Rows that are mapped at once: features are wider than vectors.
MAPPED_ROWS = 1 << 14
# What the tensors of feature maps are saved under, since the first release.
MAPPED = "lift"


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A map from one encoder's space into the shared space.

    Attributes:
        mean: (d_in,) float32, subtracted from the unit vectors; None leaves them where they are.
        weight: (d_in, d_out) float32, or (m, d_out) after a feature map to m features; None keeps the space.
        feature_map: applied between the two; None for a linear projection.
    """

    in_dim: int
    mean: FloatArray | None = None
    weight: FloatArray | None = None
    feature_map: FeatureMap | None = None
    _shortest: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        size = 1.0 if self.weight is None else float(np.linalg.norm(self.weight))
        object.__setattr__(self, "_shortest", ROUNDING * size)  # once, because a weight is larger than a query

    @property
    def out_dim(self) -> int:
        """Dimension of the shared space."""
        if self.weight is not None:
            return int(self.weight.shape[1])
        return self.in_dim if self.feature_map is None else self.feature_map.dims[1]

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Everything it holds, by name."""
        named = {"mean": self.mean, "weight": self.weight}
        mapped = {}
        if self.feature_map is not None:
            prefix = f"{MAPPED}.{self.feature_map.name}"
            mapped = {f"{prefix}.{name}": tensor for name, tensor in self.feature_map.parameters.items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None} | mapped

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
        check_sound(X, "vectors to project")
        projected = self.unchecked(X)
        check_sound(projected, "projected vectors")
        return projected

    def unchecked(self, X: npt.NDArray[np.floating]) -> FloatArray:
        """Project sound vectors (n, d_in) of the right dimension; a row that maps to zero comes back as NaN.

        Rounding moves a unit vector by `ROUNDING`, and its projection by that times the norm of the weight. A projected
        vector no longer than this is rounding noise, and counts as zero.
        """
        if self.feature_map is not None and len(X) > MAPPED_ROWS:
            blocks = [self.unchecked(X[start : start + MAPPED_ROWS]) for start in range(0, len(X), MAPPED_ROWS)]
            return np.concatenate(blocks)
        Z = l2_normalize(X)
        if self.mean is not None:
            Z -= self.mean
        if self.feature_map is not None:
            Z = self.feature_map(Z)
        if self.weight is not None:
            Z = Z @ self.weight
        norms = np.sqrt(np.einsum("nd,nd->n", Z, Z, dtype=np.float64))  # (n,)
        norms[norms <= self._shortest] = np.nan
        projected: FloatArray = np.divide(Z, norms[:, None], dtype=np.float32, casting="unsafe")
        return projected

    def unchecked_tensor(self, X: "Tensor") -> "Tensor":
        """`unchecked` of a tensor (n, d_in) float32, for exported graphs."""
        import torch  # here, because a linear projection of arrays needs none

        Z = X / X.double().norm(dim=1, keepdim=True).float()
        if self.mean is not None:
            Z = Z - torch.tensor(self.mean)
        if self.feature_map is not None:
            Z = self.feature_map.of_tensor(Z)
        if self.weight is not None:
            Z = Z @ torch.tensor(self.weight)
        norms = Z.double().norm(dim=1, keepdim=True)  # (n, 1)
        projected: Tensor = Z / norms.masked_fill(norms <= self._shortest, torch.nan).float()
        return projected
