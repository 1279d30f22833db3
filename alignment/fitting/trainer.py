"""The training loop: heads, learned metrics, or both together, on images and texts that share groups.

A batch holds one image and one text of each of its groups, so items of one group are never negatives. Gradients are
exact: the loss adds them up at the projected vectors, and one backward pass takes them through the heads. Under
torch's launcher every process takes its share of the rows of each batch against the items of all.
"""

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment import distributed
from alignment.errors import FitError, WeightsError
from alignment.fitting.batches import Batch, CentredRows, Mixing, batches
from alignment.fitting.objective import Objective
from alignment.fitting.training import Training
from alignment.metrics import LearnedMetric, Metric
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import IntArray, recall_at
from alignment.vectors import FloatArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alignment.fitting.heads import Head
# Two groups to tell from each other, and one to validate on.
FEWEST = 3


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training gave; the model holds its best state.

    Attributes:
        score: its validation, mean Recall@1/5/10 of both directions and all metrics.
        before: that of the model as it started.
        epoch: after how many epochs it was reached; 0: before training.
        interrupted: Ctrl-C ended it.
        complete: nothing cut it short: no interrupt, no deadline, no loss that is not finite.
    """

    score: float
    before: float
    epoch: int
    interrupted: bool
    complete: bool


class Model:
    """What is trained together: a head for each modality, or vectors as they are, and the metrics that compare them.

    Args:
        heads: of images and of texts, which take unit vectors less the mean; None where vectors are aligned already.
        means: what is taken off, (d,); None: nothing.
        metrics: those with something to learn are started.
        weights: of the losses under the metrics.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        heads: "tuple[Head, Head] | None" = None,
        means: tuple[FloatArray | None, FloatArray | None] = (None, None),
        weights: Sequence[float] | None = None,
    ):
        from torch import nn

        self.metrics, self.heads, self.means = list(metrics), heads, means
        self.weights = [1 / len(metrics)] * len(metrics) if weights is None else list(weights)
        learned = [metric.module for metric in metrics if isinstance(metric, LearnedMetric)]
        self.module = nn.ModuleList([*(heads or ()), *learned])

    @property
    def name(self) -> str:
        """The heads and metrics by name, as lines of progress begin."""
        return ", ".join([*(dict.fromkeys(head.name for head in self.heads or ())), *map(str, self.metrics)])

    def validate(self, data: GroupedEmbeddings) -> float:
        """Mean Recall@1/5/10 of both directions and all metrics."""
        aligned = data
        if self.heads is not None:
            image, text = (head.projection(mean) for head, mean in zip(self.heads, self.means, strict=True))
            aligned = data.project((image, text))
        found = [aligned.ranks({"image": metric, "text": metric}) for metric in self.metrics]
        return float(np.mean([recall_at(side, k) for both in found for side in both for k in KS]))


def split(data: GroupedEmbeddings, training: Training, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Return the groups to train on and those to validate on, both shuffled."""
    groups = rng.permutation(data.groups)
    if len(groups) < FEWEST:
        raise FitError(
            f"expected at least {FEWEST} groups with both images and texts to train on, got {len(groups)}; encode "
            "more pairs, or choose a method and a metric that train nothing"
        )
    validated = max(1, min(training.validation_groups, round(training.validation * len(groups))))
    return groups[validated:], groups[:validated]


def train(
    model: Model,
    data: GroupedEmbeddings,
    fitted: IntArray,
    held: IntArray | None,
    *,
    training: Training = Training(),
    seed: int = 0,
    device: "torch.device",
    deadline: float | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train `model` on the groups `fitted`, and leave it in the state that validated best on the groups `held`.

    What it was before training is one of the states to choose from. Without `held` it trains for all epochs and keeps
    the last state. A loss that is not finite ends the training, as `deadline` (of `time.monotonic`) and Ctrl-C do.

    Raises:
        FitError: the device has too little memory for a batch.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + (distributed.rank() << 32))  # each process drops other numbers of its own rows
        try:
            return _Trainer(model, data, training, device, seed).run(fitted, held, deadline, progress)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _too_large(training, device) from error
        except RuntimeError as error:
            if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            raise _too_large(training, device) from error


def _too_large(training: Training, device: "torch.device") -> FitError:
    return FitError(
        f"{device} has too little memory for a batch of {training.batch} groups; lower it with --training "
        f"batch={max(2, training.batch // 2)}, or choose a narrower head or --device cpu"
    )


@dataclass(frozen=True, slots=True)
class _Best:
    """The state that validated best so far: its score, after which epoch, and the weights of the model."""

    score: float
    epoch: int
    weights: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Projected:
    """A batch after the forward pass, image first.

    Attributes:
        own: the rows of the batch that this process takes.
        raw, vectors: those rows before and after the heads, (c, d_in) and (c, d).
        gathered: the projected rows of all processes (B, d), leaves at which the loss adds up its gradients.
    """

    own: slice
    raw: "list[Tensor]"
    vectors: "list[Tensor]"
    gathered: "list[Tensor]"


class _Trainer:
    """One training of a model on some data."""

    def __init__(self, model: Model, data: GroupedEmbeddings, training: Training, device: "torch.device", seed: int):
        import torch

        self.model, self.data, self.training, self.device = model, data, training, device
        self.number, self.processes = distributed.rank_and_world_size()
        self.rng = np.random.default_rng(seed)
        model.module.to(device)
        if self.processes > 1:  # closed forms may differ in the last bits
            for tensor in (*model.module.parameters(), *model.module.buffers()):
                torch.distributed.broadcast(tensor.data, 0)
        sides = zip((data.image, data.text), model.means, strict=True)
        self.rows = [CentredRows(side, mean, device) for side, mean in sides]
        self.objective = Objective(model.metrics, model.weights, training, device)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": model.module.parameters(), "weight_decay": training.weight_decay},
                {"params": self.objective.parameters, "weight_decay": 0.0},
            ],
            lr=training.learning_rate,
        )
        # An epoch passes over the groups as often as the larger side has items of each.
        self.rounds = max(1, round(max(len(data.image.groups), len(data.text.groups)) / len(data.groups)))
        self.steps_taken = 0

    def run(
        self, fitted: IntArray, held: IntArray | None, deadline: float | None, progress: Callable[[str], None]
    ) -> Trained:
        training, model = self.training, self.model
        validation = None if held is None else self.data.only(held).read()
        before = 0.0 if validation is None else self._validated(validation)
        best = _Best(before, 0, deepcopy(model.module.state_dict()))
        if validation is not None:
            progress(f"{model.name}: validation recall {before:.3f} before training")
        epoch, reason, interrupted = 0, "", False
        try:
            while epoch < training.epochs and not reason:
                if validation is not None and epoch - best.epoch >= training.patience:
                    break
                epoch += 1
                loss, reason = self._epoch(fitted, epoch, deadline)
                if validation is None or not math.isfinite(loss):
                    continue
                score = self._validated(validation)
                progress(f"{model.name}: epoch {epoch}, loss {loss:.3f}, validation recall {score:.3f}")
                if score > best.score:
                    best = _Best(score, epoch, deepcopy(model.module.state_dict()))
        except KeyboardInterrupt:
            interrupted, reason = True, "interrupted: the best state so far is kept"
        weights = best.weights
        if validation is None and not reason:
            weights, reason = self._last(best.weights)
        if reason:
            progress(f"{model.name}: {reason}")
        model.module.load_state_dict(weights)
        model.module.eval()
        if validation is not None:
            progress(f"{model.name}: validation recall {best.score:.3f} after {best.epoch} of {epoch} epochs")
        return Trained(best.score, before, best.epoch, interrupted, complete=not reason)

    def _epoch(self, fitted: IntArray, epoch: int, deadline: float | None) -> tuple[float, str]:
        """Train for one epoch; return the loss of its last batch, and why training has to stop, or an empty text."""
        steps = max(1, self.training.epochs * self.rounds * -(-len(fitted) // self.training.batch))
        self.model.module.train()
        loss, reason = 0.0, ""
        drawn = (batches(fitted, self.data, self.training, self.rng) for _ in range(self.rounds))
        for rows in chain.from_iterable(drawn):
            loss = self._step(rows, self.steps_taken, steps, epoch)
            self.steps_taken += 1
            if not math.isfinite(loss):
                reason = f"the loss is {loss}: training stops, and the best state so far is kept; try a lower "
                reason += "learning_rate"
                break
            if deadline is not None and time.monotonic() > deadline:
                reason = "the budget has passed: training stops, and the best state so far is kept"
                break
        self.model.module.eval()
        return loss, reason

    def _last(self, before: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The state that training ended in, or that from before it and why."""
        module = self.model.module
        if all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            return deepcopy(module.state_dict()), ""
        return before, "the weights are no longer finite: those from before training are kept"

    def _validated(self, data: GroupedEmbeddings) -> float:
        """Validate in the first process, and tell the others."""
        score = 0.0
        if self.number == 0:
            try:
                score = self.model.validate(data)
            except WeightsError:  # a metric whose weights have diverged is no state to keep
                score = -1.0
        return distributed.broadcast(score)

    def _step(self, rows: Batch, step: int, steps: int, epoch: int) -> float:
        """Take step number `step` of `steps`; return the loss of the batch."""
        warm = min(1.0, (step + 1) / max(1.0, self.training.warm_up * steps))
        rate = self.training.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=False)
        batch = self._forward(rows)
        loss = self._loss(batch, epoch, self.training.structure * warm)
        self._backward(batch)
        self.optimizer.step()
        self.objective.limit_temperature()
        return loss

    def _forward(self, rows: Batch) -> _Projected:
        """Project this process's rows of the batch, and gather those of all processes."""
        size = len(rows[0])
        own = distributed.rank_slices(size)[self.number]
        mixing = self._mixing(size)
        if mixing is None:
            raw = [side(chosen[own], self.device) for side, chosen in zip(self.rows, rows, strict=True)]
        else:
            whole = [side(chosen, self.device) for side, chosen in zip(self.rows, rows, strict=True)]
            raw = [(mixing.share * Z + (1 - mixing.share) * Z[mixing.partner])[own] for Z in whole]
        with self._autocast():
            vectors = [self._project(number, Z) for number, Z in enumerate(raw)]
        trained = self.model.heads is not None
        gathered = [distributed.all_gather(Z.detach(), size).clone().requires_grad_(trained) for Z in vectors]
        return _Projected(own, raw, vectors, gathered)

    def _project(self, number: int, Z: "Tensor") -> "Tensor":
        from torch.nn.functional import normalize

        if self.model.heads is None:
            return Z
        return normalize(self.model.heads[number](Z, self.training.dropout).float(), dim=1)

    def _loss(self, batch: _Projected, epoch: int, structure: float) -> float:
        """Return the loss of the whole batch; its gradients are at the gathered vectors and at what metrics learn."""
        import torch

        image, text = batch.gathered
        with self._autocast():
            total = self.objective.loss(image, text, batch.own, epoch)
            if structure:
                total += self.objective.structure_loss(batch.raw, batch.gathered, batch.own, structure)
        if self.processes > 1:
            total = float(distributed.all_reduce(torch.tensor([total], device=self.device)))
        return total

    def _backward(self, batch: _Projected) -> None:
        """Take the gradients back through the heads, sum them over all processes, and clip them."""
        import torch

        gradients = [distributed.all_reduce(Z.grad)[batch.own] for Z in batch.gathered if Z.grad is not None]
        trained = [Z for Z in batch.vectors if Z.requires_grad]
        if trained:
            torch.autograd.backward(trained, [g.to(Z.dtype) for Z, g in zip(trained, gradients, strict=True)])
        parameters = [*self.model.module.parameters(), *self.objective.parameters]
        for parameter in parameters:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
        torch.nn.utils.clip_grad_norm_(parameters, self.training.clip)

    def _autocast(self) -> "torch.autocast":
        import torch

        return torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")

    def _mixing(self, size: int) -> "Mixing | None":
        import torch

        if not self.training.mix:
            return None
        share = self.rng.beta(self.training.mix, self.training.mix, (size, 1)).astype(np.float32)
        partner = self.rng.permutation(size)
        return Mixing(*(torch.from_numpy(part).to(self.device) for part in (share, partner)))
