"""The training loop: heads, learned metrics, or both together, on images and texts that share groups.

A batch holds one image and one text of each of its groups, so items of one group are never negatives. Its logits are
computed some rows at a time, and gradients are exact: those of the projected vectors are gathered first, and then
taken back through the heads at once (Gao et al. 2021, arXiv 2101.06983). Under torch's launcher every process takes
its share of the rows of each batch against the items of all.
"""

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment import distributed
from alignment.errors import FitError, WeightsError
from alignment.fitting.batches import Batch, Mixing, Rows, _batches
from alignment.fitting.training import COLDEST, Training
from alignment.metrics import Cosine, LearnedMetric, Metric
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import KS, IntArray, recall_at
from alignment.vectors import FloatArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alignment.fitting.heads import Head
# Two groups to tell from each other, and one to validate on.
FEWEST = 3
# Of the scores that are held at once, with what their gradients need: 2^24 float32 are 64 MiB.
LOGITS_AT_ONCE = 1 << 24
# SigLIP starts with this bias (Zhai et al. 2023).
SIGLIP_BIAS = -10.0


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
        """What progress calls it."""
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


class _Trainer:
    """One training, with what it learns beside the model: a temperature and a bias for each metric."""

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
        self.rows = [Rows(side.vectors, mean, device) for side, mean in sides]
        count = len(model.metrics)
        self.log_scales = torch.nn.Parameter(torch.full((count,), -math.log(training.temperature), device=device))
        self.biases = torch.nn.Parameter(torch.full((count,), SIGLIP_BIAS, device=device))
        self.units: list[float] = []  # of each metric's scores, where cosine has 1
        self.optimizer = torch.optim.AdamW(
            [
                {"params": model.module.parameters(), "weight_decay": training.weight_decay},
                {"params": [self.log_scales, self.biases], "weight_decay": 0.0},
            ],
            lr=training.learning_rate,
        )

    def run(
        self, fitted: IntArray, held: IntArray | None, deadline: float | None, progress: Callable[[str], None]
    ) -> Trained:
        training, model = self.training, self.model
        validated = None if held is None else self.data.only(held)
        before = 0.0 if validated is None else self._validated(validated)
        best, best_epoch, epoch, since, interrupted = before, 0, 0, 0, False
        state = deepcopy(model.module.state_dict())
        if validated is not None:
            progress(f"{model.name}: validation recall {before:.3f} before training")
        rounds = max(1, round(max(len(self.data.image.groups), len(self.data.text.groups)) / len(self.data.groups)))
        steps = max(1, training.epochs * rounds * -(-len(fitted) // training.batch))
        step, reason = 0, ""
        try:
            while epoch < training.epochs and since < training.patience and not reason:
                epoch += 1
                model.module.train()
                total = 0.0
                for rows in (rows for _ in range(rounds) for rows in _batches(fitted, self.data, training, self.rng)):
                    total = self._step(rows, step, steps, epoch)
                    step += 1
                    if not math.isfinite(total):
                        reason = f"the loss is {total}: training stops, and the best state so far is kept; try a lower "
                        reason += "learning_rate"
                    elif deadline is not None and time.monotonic() > deadline:
                        reason = "the budget has passed: training stops, and the best state so far is kept"
                    if reason:
                        break
                model.module.eval()
                if validated is None or not math.isfinite(total):
                    continue
                score, since = self._validated(validated), since + 1
                progress(f"{model.name}: epoch {epoch}, loss {total:.3f}, validation recall {score:.3f}")
                if score > best:
                    best, best_epoch, since, state = score, epoch, 0, deepcopy(model.module.state_dict())
        except KeyboardInterrupt:
            interrupted, reason = True, "interrupted: the best state so far is kept"
        if validated is None and not reason:
            state, reason = self._last(state)
        if reason:
            progress(f"{model.name}: {reason}")
        model.module.load_state_dict(state)
        model.module.eval()
        if validated is not None:
            progress(f"{model.name}: validation recall {best:.3f} after {best_epoch} of {epoch} epochs")
        return Trained(best, before, best_epoch, interrupted, complete=not reason)

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

    def _step(self, rows: "Batch", step: int, steps: int, epoch: int) -> float:
        """Take one step; return the loss of the batch."""
        import torch

        training = self.training
        share = min(1.0, (step + 1) / max(1.0, training.warm_up * steps))
        rate = training.learning_rate * share * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=False)
        own = distributed.rank_slices(len(rows[0]))[self.number]
        mixed = self._mixing(len(rows[0]))
        if mixed is None:
            raw = [side(chosen[own], self.device) for side, chosen in zip(self.rows, rows, strict=True)]
        else:
            raw = [side(chosen, self.device) for side, chosen in zip(self.rows, rows, strict=True)]
            raw = [(mixed.share * Z + (1 - mixed.share) * Z[mixed.partner])[own] for Z in raw]
        cast = torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")
        with cast:
            projected = [self._project(number, Z) for number, Z in enumerate(raw)]
        image, text = (self._gathered(Z, len(rows[0])) for Z in projected)
        with cast:
            total = self._backward(image, text, own, epoch)
            if training.structure:
                total += self._keep_structure(raw, (image, text), own, training.structure * share)
        gradients = [distributed.all_reduce(Z.grad)[own] for Z in (image, text) if Z.grad is not None]
        trained = [Z for Z in projected if Z.requires_grad]
        if trained:
            torch.autograd.backward(trained, [g.to(Z.dtype) for Z, g in zip(trained, gradients, strict=True)])
        parameters = [*self.model.module.parameters(), self.log_scales, self.biases]
        for parameter in parameters:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
        torch.nn.utils.clip_grad_norm_(parameters, training.clip)
        if self.processes > 1:
            total = float(distributed.all_reduce(torch.tensor([total], device=self.device)))
        self.optimizer.step()
        with torch.no_grad():
            self.log_scales.clamp_(max=-math.log(COLDEST))
        return total

    def _project(self, number: int, Z: "Tensor") -> "Tensor":
        from torch.nn.functional import normalize

        if self.model.heads is None:
            return Z
        return normalize(self.model.heads[number](Z, self.training.dropout).float(), dim=1)

    def _gathered(self, Z: "Tensor", size: int) -> "Tensor":
        """Vectors of the whole batch (size, d), as a leaf that gradients gather in."""
        return distributed.all_gather(Z.detach(), size).clone().requires_grad_(self.model.heads is not None)

    def _backward(self, image: "Tensor", text: "Tensor", own: slice, epoch: int) -> float:
        """Add up the gradients of the loss of this process's queries, in both directions, under all metrics."""
        import torch

        size, total = len(image), 0.0
        targets = torch.arange(size, device=self.device)[own]
        if not self.units:
            self.units = [_unit_of(metric, image, text) for metric in self.model.metrics]
        for number, (metric, weight) in enumerate(zip(self.model.metrics, self.model.weights, strict=True)):
            floats = metric.floats_per_pair(image.shape[1])
            chunk = max(1, LOGITS_AT_ONCE // (size * floats))
            if metric.symmetric and chunk >= size and self.processes == 1:
                S = self._scaled(_differentiable(metric, text, image), number, epoch)
                loss = (self._loss(S, targets, number, epoch) + self._loss(S.T, targets, number, epoch)).sum()
                total += self._descend(loss * weight / (2 * size))
                continue
            for queries, items in ((text, image), (image, text)):
                for wanted in torch.split(targets, chunk):
                    S = self._scaled(_differentiable(metric, queries[wanted], items), number, epoch)
                    total += self._descend(self._loss(S, wanted, number, epoch).sum() * weight / (2 * size))
        return total

    def _descend(self, loss: "Tensor") -> float:
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _scaled(self, S: "Tensor", number: int, epoch: int) -> "Tensor":
        """Similarities in the units of cosine, over the temperature where the loss has one."""
        factor = 1 / self.units[number]
        if self.training.loss in ("infonce", "siglip") and not self._late(epoch):
            return S.float() * (factor * self.log_scales[number].exp())
        return S.float() * factor

    def _late(self, epoch: int) -> bool:
        return epoch > self.training.epochs * (1 - self.training.late_recall)

    def _loss(self, S: "Tensor", target: "Tensor", number: int, epoch: int) -> "Tensor":
        """Losses (c,) of scaled similarities (c, B)."""
        from alignment.fitting import losses

        training = self.training
        if self._late(epoch):
            return losses.recall_surrogate(S, target, training.temperature / 5)
        if training.loss == "infonce":
            return losses.info_nce(S, target)
        if training.loss == "siglip":
            return losses.siglip(S, target, self.biases[number])
        return losses.hinge(S, target, training.margin, hardest=epoch > training.semi_hard * training.epochs)

    def _keep_structure(
        self, raw: "list[Tensor]", projected: "tuple[Tensor, Tensor]", own: slice, weight: float
    ) -> float:
        """Add the gradients of the STRUCTURE regulariser over this process's rows."""
        import torch
        from torch.nn.functional import normalize

        from alignment.fitting.losses import structure

        total = 0.0
        for before, after in zip(raw, projected, strict=True):
            plain = normalize(self._gathered(before, len(after)).detach(), dim=1)
            chunk = max(1, LOGITS_AT_ONCE // len(after))
            for wanted in torch.split(torch.arange(len(after), device=self.device)[own], chunk):
                loss = structure(plain[wanted] @ plain.T, after[wanted] @ after.T, self.training.temperature)
                total += self._descend(loss.sum() * weight / (2 * len(after)))
        return total

    def _mixing(self, size: int) -> "Mixing | None":
        import torch

        if not self.training.mix:
            return None
        share = self.rng.beta(self.training.mix, self.training.mix, (size, 1)).astype(np.float32)
        partner = self.rng.permutation(size)
        return Mixing(*(torch.from_numpy(part).to(self.device) for part in (share, partner)))


def has_gradient(metric: Metric) -> bool:
    """Whether anything can be trained under a metric that learns nothing itself."""
    import torch

    X = torch.eye(2, 8, requires_grad=True)
    return metric.score(X, X).requires_grad


def _differentiable(metric: Metric, queries: "Tensor", items: "Tensor") -> "Tensor":
    S = metric.score(queries, items)
    if not S.requires_grad:
        raise FitError(
            f"metric {metric}: its score has no gradient, and nothing can be trained under it; compute it with "
            "differentiable operations of torch, or choose a closed form by --method"
        )
    return S


def _unit_of(metric: Metric, image: "Tensor", text: "Tensor") -> float:
    """Spread of the scores of a metric over that of cosine, so that a temperature means the same for all."""
    import torch

    if isinstance(metric, LearnedMetric):
        return 1.0
    with torch.no_grad():
        some = slice(0, 128)
        spread, cosine = (float(m.score(text[some], image[some]).float().std()) for m in (metric, Cosine()))
    return spread / cosine if spread > 0 and cosine > 0 else 1.0
