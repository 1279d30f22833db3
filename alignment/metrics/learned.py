"""Metrics whose weights are fitted on aligned embeddings. The alignment holds the weights; `bind` puts them in."""

from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from array_api_compat import is_torch_array
from typing_extensions import override

from alignment import device as devices
from alignment.distance import Distance
from alignment.errors import MetricError, WeightsError
from alignment.metrics.arrays import Array
from alignment.metrics.lowering import FLOAT32_ROUNDS, Guarantee, Lowering
from alignment.metrics.metric import Metric, Weights, refuse
from alignment.metrics.rescored import Rescored
from alignment.modality import Modality

if TYPE_CHECKING:
    from torch import Tensor

    from alignment.metrics.neural import BilinearModule, LearnedModule, MixtureModule

# Numbers that scoring holds at once: 2^24 float32 are 64 MiB.
FLOATS_AT_ONCE = 1 << 24
LARGEST, WIDEST_SWAY = 65_536, 50.0


@dataclass(frozen=True, slots=True)
class LearnedMetric(Metric):
    """A metric that is a torch module.

    Attributes:
        module: the module with its weights; None in a metric that was only parsed, which cannot score.
    """

    module: Any = field(default=None, compare=False, repr=False, kw_only=True)

    @override
    def floats_per_pair(self, dim: int) -> int:
        return int(self.trained().floats_per_pair)

    @abstractmethod
    def build(self, dim: int) -> "LearnedModule":
        """Make the untrained module over aligned vectors of dimension `dim`."""

    def start(self, dim: int, seed: int) -> Self:
        """Return this metric as it is before training."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return replace(self, module=self.build(dim))

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return what `bind` needs, by `str(metric)/tensor`."""
        state = self.trained().state_dict()
        return {f"{self}/{name}": tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}

    @override
    def bind(self, weights: Weights, items: Modality, device: str = "auto") -> Self:
        import torch

        prefix = f"{self}/"
        own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        if not own:
            raise missing(self)
        try:
            if (dim := int(own["dim"].item())) < 1:
                raise ValueError(f"dim is {dim}")
            if unsound := [name for name, tensor in own.items() if not np.isfinite(tensor).all()]:
                raise ValueError(f"not finite: {', '.join(unsound)}")
            module = self.build(dim)
            module.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in own.items()})
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(
                f"the weights of metric {self} are damaged ({error}); fit the alignment again"
            ) from error
        return replace(self, module=module.to(devices.resolve(device)).eval())

    @override
    def score(self, queries: Array, items: Array) -> Array:
        """Compare `queries` (n, d) with `items` (m, d): scores (n, m).

        Arrays are scored in chunks, on the device of the weights; through tensors, gradients flow.

        Raises:
            MetricError: it has no weights.
            WeightsError: it gives scores that are not finite, of arrays.
        """
        if is_torch_array(queries):
            return self.trained()(queries, items)
        import torch

        module, dtype = self.trained(), np.result_type(queries, items)
        if dtype == np.float64:
            module = deepcopy(module).double()
        device = module.dim.device
        Q, X = (torch.from_numpy(np.array(side, dtype, order="C")).to(device) for side in (queries, items))
        columns = max(1, min(len(X), FLOATS_AT_ONCE // module.floats_per_pair))
        rows = max(1, FLOATS_AT_ONCE // (module.floats_per_pair * columns))
        scores = np.empty((len(Q), len(X)), dtype)
        with torch.inference_mode():
            for i in range(0, len(Q), rows):
                for j in range(0, len(X), columns):
                    scores[i : i + rows, j : j + columns] = module(Q[i : i + rows], X[j : j + columns]).cpu().numpy()
        sound = [np.isfinite(side).all(axis=1) for side in (queries, items)]  # NaN in, NaN out
        if not np.isfinite(scores[np.ix_(*sound)]).all():
            raise WeightsError(
                f"metric {self} gives scores that are not finite: its weights have diverged or are damaged; fit the "
                "alignment again"
            )
        return scores

    def trained(self) -> Any:
        """The module.

        Raises:
            MetricError: it has no weights.
        """
        if self.module is None:
            raise missing(self)
        return self.module

    def _check_counts(self, *names: str) -> None:
        for name in names:
            if not 1 <= getattr(self, name) <= LARGEST:
                raise refuse(self, name, f"from 1 to {LARGEST}")

    def computed(self, part: "Callable[[Tensor], Tensor]", X: Array) -> Array:
        """Apply `part`, a function of tensors, to vectors (n, d), an array's on the device of the weights."""
        if is_torch_array(X):
            return part(X)
        import torch

        with torch.inference_mode():
            tensor = torch.from_numpy(np.array(X, np.float32, order="C")).to(self.trained().dim.device)
            return part(tensor).cpu().numpy()


def missing(metric: Metric) -> MetricError:
    """Say that an alignment holds nothing for a metric."""
    return MetricError(
        f"the alignment holds no parameters for metric {metric}; fit one with `modalign fit --metric '{metric}'`"
    )


@dataclass(frozen=True, slots=True)
class Bilinear(LearnedMetric):
    """Bilinear form `q' W x` with `W = I + L R' + diag(B_1, ..., B_b)`; before training it is cosine on unit vectors.

    Attributes:
        rank: columns of L and R.
        blocks: number of diagonal blocks B.
    """

    rank: int = 16
    blocks: int = 8
    name: ClassVar[str] = "bilinear"

    def __post_init__(self) -> None:
        self._check_counts("rank", "blocks")

    @override
    def build(self, dim: int) -> "BilinearModule":
        from alignment.metrics.neural import BilinearModule

        return BilinearModule(dim, rank=self.rank, blocks=self.blocks)

    @override
    def lower(self, dim: int) -> Lowering:
        return BilinearLowering(Distance.DOT, dim, metric=self)


@dataclass(frozen=True, slots=True)
class BilinearLowering(Lowering):
    """Stores items as they are, and queries with `W'q`."""

    metric: Bilinear = Bilinear()

    @override
    def query(self, X: Array) -> Array:
        return self.metric.computed(lambda queries: queries @ self.metric.trained().matrix(), X)


@dataclass(frozen=True, slots=True)
class MixtureOfLogits(LearnedMetric):
    """Mixture of logits, `sum_ab pi_ab(q, x) <f_a(q), g_b(x)>`, in [-1, 1] (arXiv 2306.04039, 2407.15462).

    Attributes:
        components: how many vectors f a query has, and g an item.
        size: their dimension.
        sway: how far an item may move the gates that pi is a softmax of; a query sets them freely.
    """

    components: int = 4
    size: int = 64
    sway: float = 0.1
    name: ClassVar[str] = "mol"

    def __post_init__(self) -> None:
        self._check_counts("components", "size")
        if not 0 <= self.sway <= WIDEST_SWAY:
            raise refuse(self, "sway", f"from 0 to {WIDEST_SWAY:g}")
        object.__setattr__(self, "sway", abs(self.sway))  # -0.0 would print as another metric

    @override
    def build(self, dim: int) -> "MixtureModule":
        from alignment.metrics.neural import MixtureModule

        return MixtureModule(dim, components=self.components, size=self.size, sway=self.sway)

    @override
    def lower(self, dim: int) -> Lowering:
        return MixtureLowering(Distance.DOT, self.components * self.size, metric=self)


@dataclass(frozen=True, slots=True)
class MixtureLowering(Rescored):
    """An item is its components in a row; a query is what weighs them where the item does not move the gates: Dot.

    Gates that move by at most s change a softmax by at most tanh(s / 2) in total variation, and the products that it
    weighs lie in [-1, 1]: no score is further than `2 tanh(s / 2)` from the raw score.
    """

    guarantee: ClassVar[Guarantee] = Guarantee.BOUNDED
    page: ClassVar[int] = 128
    budget: ClassVar[int] = 512

    @property
    def _mixture(self) -> MixtureOfLogits:
        assert isinstance(self.metric, MixtureOfLogits)
        return self.metric

    @override
    def item(self, X: Array) -> Array:
        """g, (n, components * size)."""
        return self._mixture.computed(lambda items: self._mixture.trained().item_components(items).flatten(1), X)

    @override
    def query(self, X: Array) -> Array:
        """f, mixed by the gates of the query alone, (n, components * size)."""
        return self._mixture.computed(lambda queries: self._mixture.trained().mixed_query(queries).flatten(1), X)

    @override
    def bound(self, tail: float) -> float:
        """The last raw score plus what the gates can add, by more than float32 rounds."""
        return tail + 2 * float(np.tanh(self._mixture.sway / 2)) + 1e-5 + self.dim * FLOAT32_ROUNDS

    @override
    def column_of(self, offset: float) -> float:
        return offset


@dataclass(frozen=True, slots=True)
class Perceptron(LearnedMetric):
    """A perceptron over `[q, x, |q - x|, q * x]`: the control, which struggles to learn even a dot product.

    Rendle, Krichene, Zhang and Anderson 2020.

    Attributes:
        hidden: width of its hidden layer.
    """

    hidden: int = 64
    name: ClassVar[str] = "mlp"

    def __post_init__(self) -> None:
        self._check_counts("hidden")

    @override
    def build(self, dim: int) -> "LearnedModule":
        from alignment.metrics.neural import PerceptronModule

        return PerceptronModule(dim, hidden=self.hidden)

    @override
    def lower(self, dim: int) -> Lowering:
        return CosineCandidates(Distance.COSINE, dim, metric=self)


@dataclass(frozen=True, slots=True)
class CosineCandidates(Rescored):
    """Candidates by the cosine of aligned vectors, for a metric without a bound."""

    guarantee: ClassVar[Guarantee] = Guarantee.MEASURED
    page: ClassVar[int] = 256
    budget: ClassVar[int] = 256
