"""The loss of a batch under several metrics, and its gradients at the projected vectors.

Similarities are computed some rows at a time, and the gradients of each chunk are added up at once, so memory does not
grow with the square of the batch (Gao et al. 2021, arXiv 2101.06983).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignment import distributed
from alignment.errors import FitError
from alignment.fitting.training import COLDEST, Training
from alignment.metrics import Cosine, LearnedMetric, Metric

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Scores that are held at once, with what their gradients need: 2^24 float32 are 64 MiB.
LOGITS_AT_ONCE = 1 << 24
# SigLIP starts with this bias (Zhai et al. 2023).
SIGLIP_BIAS = -10.0
# Pairs of a batch that the spread of a metric's scores is measured on.
SPREAD_PAIRS = 128


class Objective:
    """The loss of a batch in both directions, under all metrics, with a temperature and a bias for each metric.

    Attributes:
        log_scales: (m,), logarithm of 1 / temperature of each metric; learned.
        biases: (m,), of SigLIP; learned.
    """

    def __init__(self, metrics: Sequence[Metric], weights: Sequence[float], training: Training, device: "torch.device"):
        import torch

        self._metrics, self._weights, self._training = metrics, weights, training
        full = (len(metrics),)
        self.log_scales = torch.nn.Parameter(torch.full(full, -math.log(training.temperature), device=device))
        self.biases = torch.nn.Parameter(torch.full(full, SIGLIP_BIAS, device=device))
        self._units: list[float] = []  # of each metric's scores, where cosine has 1

    @property
    def parameters(self) -> "list[torch.nn.Parameter]":
        """What is learned beside the model."""
        return [self.log_scales, self.biases]

    def limit_temperature(self) -> None:
        """Keep every temperature at `COLDEST` or above."""
        self.log_scales.data.clamp_(max=-math.log(COLDEST))

    def loss(self, image: "Tensor", text: "Tensor", own: slice, epoch: int) -> float:
        """Return the loss of the queries `own`, and add its gradients to those of everything that it depends on.

        Args:
            image, text: projected vectors of the whole batch (B, d); row i of one belongs to row i of the other.
            own: the rows whose queries this process takes.
        """
        import torch

        size, total = len(image), 0.0
        targets = torch.arange(size, device=image.device)[own]
        if not self._units:
            self._units = [score_unit(metric, image, text) for metric in self._metrics]
        for number, (metric, weight) in enumerate(zip(self._metrics, self._weights, strict=True)):
            chunk = max(1, LOGITS_AT_ONCE // (size * metric.floats_per_pair(image.shape[1])))
            if metric.symmetric and chunk >= size and len(targets) == size:
                S = self._scaled(_differentiable(metric, text, image), number, epoch)
                both = self._losses(S, targets, number, epoch) + self._losses(S.T, targets, number, epoch)
                total += _add_gradients(both.sum() * weight / (2 * size))
                continue
            for queries, items in ((text, image), (image, text)):
                for rows in torch.split(targets, chunk):
                    S = self._scaled(_differentiable(metric, queries[rows], items), number, epoch)
                    total += _add_gradients(self._losses(S, rows, number, epoch).sum() * weight / (2 * size))
        return total

    def structure_loss(
        self, raw: "Sequence[Tensor]", projected: "Sequence[Tensor]", own: slice, weight: float
    ) -> float:
        """Return the STRUCTURE regulariser of the rows `own`, and add its gradients to those of `projected`.

        Args:
            raw: vectors of those rows before the projection, (c, d_image) and (c, d_text).
            projected: vectors of the whole batch (B, d), of images and of texts.
        """
        import torch
        from torch.nn.functional import normalize

        from alignment.fitting.losses import structure

        total = 0.0
        for before, after in zip(raw, projected, strict=True):
            size = len(after)
            plain = normalize(distributed.all_gather(before.detach(), size), dim=1)
            chunk = max(1, LOGITS_AT_ONCE // size)
            for rows in torch.split(torch.arange(size, device=after.device)[own], chunk):
                losses = structure(plain[rows] @ plain.T, after[rows] @ after.T, self._training.temperature)
                total += _add_gradients(losses.sum() * weight / (2 * size))
        return total

    def _scaled(self, S: "Tensor", number: int, epoch: int) -> "Tensor":
        """Similarities in the units of cosine, over the temperature where the loss has one."""
        factor = 1 / self._units[number]
        if self._training.loss in ("infonce", "siglip") and not self._is_late(epoch):
            return S.float() * (factor * self.log_scales[number].exp())
        return S.float() * factor

    def _is_late(self, epoch: int) -> bool:
        return epoch > self._training.epochs * (1 - self._training.late_recall)

    def _losses(self, S: "Tensor", target: "Tensor", number: int, epoch: int) -> "Tensor":
        """Losses (c,) of scaled similarities (c, B)."""
        from alignment.fitting import losses

        training = self._training
        if self._is_late(epoch):
            return losses.recall_surrogate(S, target, training.temperature / 5)
        if training.loss == "infonce":
            return losses.info_nce(S, target)
        if training.loss == "siglip":
            return losses.siglip(S, target, self.biases[number])
        return losses.hinge(S, target, training.margin, hardest=epoch > training.semi_hard * training.epochs)


def has_gradient(metric: Metric) -> bool:
    """Whether anything can be trained under a metric that learns nothing itself."""
    import torch

    X = torch.eye(2, 8, requires_grad=True)
    return metric.score(X, X).requires_grad


def score_unit(metric: Metric, image: "Tensor", text: "Tensor") -> float:
    """Spread of the scores of a metric over that of cosine, so that a temperature means the same for all."""
    import torch

    if isinstance(metric, LearnedMetric):
        return 1.0
    with torch.no_grad():
        some = slice(0, SPREAD_PAIRS)
        spread, cosine = (float(m.score(text[some], image[some]).float().std()) for m in (metric, Cosine()))
    return spread / cosine if spread > 0 and cosine > 0 else 1.0


def _differentiable(metric: Metric, queries: "Tensor", items: "Tensor") -> "Tensor":
    S = metric.score(queries, items)
    if not S.requires_grad:
        raise FitError(
            f"metric {metric}: its score has no gradient, and nothing can be trained under it; compute it with "
            "differentiable operations of torch, or choose a closed form by --method"
        )
    return S


def _add_gradients(loss: "Tensor") -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())
