"""Heads: projections that are trained, one a modality, each from a start of its own.

A head is a torch module from centred unit vectors to the shared space; `projection` freezes it. Adding one is a class
here and a line in `HEADS`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from alignment.fitting.closed_forms import Hyperparameters, array_of
from alignment.model.feature_maps import FeatureMap, ResidualMlp, StarGlu
from alignment.model.projections import Projection
from alignment.vectors import FloatArray


class Head(nn.Module):
    """One modality's projection while it is trained."""

    name: ClassVar[str]
    fewest_groups: ClassVar[int] = 0  # below this it does not enter unless it is named

    @classmethod
    @abstractmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """Hyperparameters worth trying on spaces of these dimensions.

        `start` names the closed form to start from. Fields of `Training` are read by the training loop, the others by
        `begin`.
        """

    @classmethod
    @abstractmethod
    def begin(cls, start: Projection, hyperparameters: Hyperparameters) -> Self:
        """Return the head as it is before training.

        Args:
            start: what a closed form found for this modality; a head that has nothing of it takes the dimensions.
            hyperparameters: one of `candidates`.
        """

    @abstractmethod
    def forward(self, Z: Tensor, dropout: float = 0.0) -> Tensor:
        """Project centred unit vectors (n, d_in) to (n, d_out), not yet of length 1."""

    @abstractmethod
    def projection(self, mean: FloatArray | None) -> Projection:
        """What it is now, as a value."""


class Linear(Head):
    """A weight matrix that starts as a closed form's. Dropout is on the coordinates of the input."""

    name = "linear"

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """Both losses that treat all negatives alike."""
        return [{"start": "rcca", "loss": loss, "dropout": 0.5} for loss in ("infonce", "siglip")]

    @classmethod
    def begin(cls, start: Projection, hyperparameters: Hyperparameters) -> Self:
        """The weight of a linear start."""
        assert start.feature_map is None
        weight = np.eye(start.in_dim, dtype=np.float32) if start.weight is None else start.weight
        return cls(torch.from_numpy(weight / np.linalg.norm(weight, axis=0).mean()))

    @override
    def forward(self, Z: Tensor, dropout: float = 0.0) -> Tensor:
        return nn.functional.dropout(Z, dropout, training=dropout > 0) @ self.weight

    @override
    def projection(self, mean: FloatArray | None) -> Projection:
        return Projection(len(self.weight), mean, array_of(self.weight.detach()))


class Residual(Head):
    """`z + (z L) R` in the shared space of any closed form, with L (d, rank) random and R zero: it starts as that."""

    name = "residual"

    def __init__(self, start: Projection, rank: int):
        super().__init__()
        self.start, lift = start, start.feature_map
        dim = start.out_dim
        self._fixed: dict[str, Tensor] = {}
        if lift is not None:
            self._fixed = {name: torch.from_numpy(np.array(array)) for name, array in lift.parameters.items()}
        if start.weight is not None:
            self._fixed[""] = torch.from_numpy(start.weight)
        for number, tensor in enumerate(self._fixed.values()):
            self.register_buffer(f"fixed_{number}", tensor, persistent=False)
        self.left = nn.Parameter(torch.randn(dim, min(rank, dim)) / dim**0.5)
        self.right = nn.Parameter(torch.zeros(min(rank, dim), dim))

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """Short steps from the strongest start."""
        return [{"start": "kcca", "rank": 64, "learning_rate": 3e-4}]

    @classmethod
    @override
    def begin(cls, start: Projection, hyperparameters: Hyperparameters) -> Self:
        return cls(start, hyperparameters["rank"])

    @override
    def forward(self, Z: Tensor, dropout: float = 0.0) -> Tensor:
        held = {name: getattr(self, f"fixed_{number}") for number, name in enumerate(self._fixed)}
        if self.start.feature_map is not None:
            Z = self.start.feature_map.features(held, Z)
        if "" in held:
            Z = Z @ held[""]
        Z = nn.functional.normalize(Z, dim=1)
        return Z + nn.functional.dropout(Z, dropout, training=dropout > 0) @ self.left @ self.right

    def projection(self, mean: FloatArray | None) -> Projection:
        """The weight with the residual multiplied in."""
        residual = torch.eye(len(self.left), dtype=torch.float64) + (self.left.double() @ self.right.double()).cpu()
        before = torch.eye(len(self.left)) if self.start.weight is None else torch.from_numpy(self.start.weight)
        weight = before.double() @ residual.detach()
        return Projection(self.start.in_dim, mean, array_of(weight), self.start.feature_map)


class Deep(Head):
    """A feature map whose parameters are trained, and a weight after it."""

    feature_map: ClassVar[type[FeatureMap]]

    def __init__(self, lift: Mapping[str, Tensor], weight: Tensor):
        super().__init__()
        self._names = list(lift)
        self.lifted = nn.ParameterList(nn.Parameter(tensor) for tensor in lift.values())
        self.weight = nn.Parameter(weight)

    @override
    def forward(self, Z: Tensor, dropout: float = 0.0) -> Tensor:
        held = dict(zip(self._names, self.lifted, strict=True))
        return self.feature_map.features(held, Z, dropout=dropout) @ self.weight

    @override
    def projection(self, mean: FloatArray | None) -> Projection:
        held = {name: array_of(tensor.detach()) for name, tensor in zip(self._names, self.lifted, strict=True)}
        lift = self.feature_map(held)
        return Projection(lift.dims[0], mean, array_of(self.weight.detach()), lift)


class FuseMix(Deep):
    """Four residual blocks of width 512 over mixed pairs (arXiv 2312.10144)."""

    name = "fusemix"
    fewest_groups = 10_000
    feature_map = ResidualMlp

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """The published one, and a smaller one."""
        common = {"mix": 1.0, "dropout": 0.6, "weight_decay": 0.1, "learning_rate": 1e-3}
        return [common | {"blocks": blocks, "width": 512, "components": 512} for blocks in (1, 4)]

    @classmethod
    def begin(cls, start: Projection, hyperparameters: Hyperparameters) -> Self:
        """Random, with blocks that begin as nothing."""
        d, w = start.in_dim, hyperparameters["width"]
        p = {"first.weight": torch.randn(d, w) * (d / w) ** 0.5 / d**0.5, "first.bias": torch.zeros(w)}
        for b in range(hyperparameters["blocks"]):
            p |= {f"{b}.norm.weight": torch.ones(w), f"{b}.norm.bias": torch.zeros(w)}
            p |= {f"{b}.wide.weight": torch.randn(w, 4 * w) / w**0.5, f"{b}.wide.bias": torch.zeros(4 * w)}
            p |= {f"{b}.narrow.weight": torch.zeros(4 * w, w), f"{b}.narrow.bias": torch.zeros(w)}
        return cls(p, torch.randn(w, hyperparameters["components"]) / w**0.5)


class StarGluHead(Deep):
    """One gated layer, `width` times as wide as the input (SAIL, arXiv 2412.04616)."""

    name = "star-glu"
    fewest_groups = 10_000
    feature_map = StarGlu

    @classmethod
    def candidates(cls, d_x: int, d_y: int) -> list[Hyperparameters]:
        """A narrow one; the published width of 8 pays from 100,000 pairs on."""
        common = {"loss": "siglip", "dropout": 0.2, "learning_rate": 3e-4, "components": 512}
        return [common | {"width": width} for width in (1, 4)]

    @classmethod
    @override
    def begin(cls, start: Projection, hyperparameters: Hyperparameters) -> Self:
        d = start.in_dim
        m = d * hyperparameters["width"]
        p = {"norm.weight": torch.ones(d), "norm.bias": torch.zeros(d)}
        p |= {f"{part}.weight": torch.randn(d, m) / d**0.5 for part in ("gate", "value")}
        p |= {f"{part}.bias": torch.zeros(m) for part in ("gate", "value")}
        return cls(p, torch.randn(m, hyperparameters["components"]) / m**0.5)


HEADS: dict[str, type[Head]] = {head.name: head for head in (Linear, Residual, FuseMix, StarGluHead)}
