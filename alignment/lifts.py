"""Lifts: what a projection may do to a centred vector before its weight, so that it need not be linear.

A lift is a value that holds float32 tensors and nothing else: it is saved with the alignment, and counts in its
fingerprint.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from alignment.vectors import ROUNDING, FloatArray

if TYPE_CHECKING:
    from torch import Tensor


class Lift(ABC):
    """Features of vectors."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def dims(self) -> tuple[int, int]:
        """Dimensions of a vector and of its features."""

    @abstractmethod
    def __call__(self, Z: FloatArray) -> FloatArray:
        """Features (n, m) of vectors (n, d); a row that has none is NaN."""

    @abstractmethod
    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Everything it holds, by name."""

    @classmethod
    @abstractmethod
    def of(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Build it again.

        Raises:
            KeyError: a tensor is missing.
            TypeError: tensors do not fit together.
        """


@dataclass(frozen=True, slots=True, eq=False)
class GaussianKernel(Lift):
    """`exp(-gamma (1 - cos(z, l)))` for every landmark l, less the mean of it over the training vectors.

    Between unit vectors that is the Gaussian kernel `exp(-gamma |z - l|^2 / 2)`. With a weight from `KernelCCA` this is
    the Nyström approximation (Williams and Seeger 2001), exact where every training vector is a landmark.

    Attributes:
        landmarks: unit vectors (m, d).
        mean: (m,).
        gamma: (1,), positive.
    """

    landmarks: FloatArray
    mean: FloatArray
    gamma: FloatArray
    name: ClassVar[str] = "gaussian-kernel"

    @property
    def dims(self) -> tuple[int, int]:
        """d and m."""
        m, d = self.landmarks.shape
        return d, m

    def __call__(self, Z: FloatArray) -> FloatArray:
        """Centred kernel values (n, m); NaN for a vector without a direction."""
        norms = np.sqrt(np.einsum("nd,nd->n", Z, Z, dtype=np.float64))  # (n,)
        norms[norms <= ROUNDING] = np.nan
        K: FloatArray = (Z / norms[:, None].astype(np.float32)) @ self.landmarks.T  # (n, m)
        K -= 1
        K *= self.gamma
        np.exp(K, out=K)
        K -= self.mean
        return K

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Landmarks, mean and gamma."""
        return {"landmarks": self.landmarks, "mean": self.mean, "gamma": self.gamma}

    @classmethod
    def of(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Build it again."""
        landmarks, mean, gamma = (tensors[name] for name in ("landmarks", "mean", "gamma"))
        if landmarks.ndim != 2 or mean.shape != landmarks.shape[:1] or gamma.shape != (1,):
            raise TypeError(f"landmarks {landmarks.shape}, mean {mean.shape} and gamma {gamma.shape} do not fit")
        return cls(landmarks, mean, gamma)


def gaussian(Z: "Tensor", landmarks: "Tensor", gamma: float) -> "Tensor":
    """Kernel values (n, m) of unit vectors (n, d) and landmarks (m, d)."""
    return ((Z @ landmarks.T - 1) * gamma).exp()


LIFTS: dict[str, type[Lift]] = {lift.name: lift for lift in (GaussianKernel,)}
