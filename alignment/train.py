"""The training loop of learned metrics: symmetric InfoNCE over aligned embeddings, the best validated state kept."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignment.errors import FitError
from alignment.metrics import LearnedMetric
from alignment.recall import Codes, ranks, recall_at
from alignment.vectors import FloatArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


# Two groups to tell from each other, and one to validate on.
FEWEST = 3


@dataclass(frozen=True, slots=True)
class Training:
    """How a learned metric is trained.

    Attributes:
        batch: groups of a batch, each with one image and one text; all of a batch are told from each other.
        epochs: passes over the groups, at most.
        patience: epochs without a better validation after which training ends.
        learning_rate, weight_decay: of AdamW.
        temperature: that scores are divided by at the start; it is learned with the rest (Radford et al. 2021).
        validation: share of the groups that the training is validated on.
        validation_groups: at most so many of them.
    """

    batch: int = 128
    epochs: int = 40
    patience: int = 6
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    temperature: float = 0.05
    validation: float = 0.15
    validation_groups: int = 2_000


@dataclass(frozen=True, slots=True)
class Side:
    """Vectors of one modality (n, d) with the codes of their groups (n,), which are common to both modalities."""

    vectors: FloatArray
    groups: Codes

    def where(self, mask: npt.NDArray[np.bool_]) -> "Side":
        """Keep the rows where `mask` (n,) is true."""
        return Side(self.vectors[mask], self.groups[mask])


def train(
    metric: LearnedMetric,
    image: Side,
    text: Side,
    *,
    training: Training = Training(),
    seed: int = 0,
    device: "torch.device",
    progress: Callable[[str], None] = lambda line: None,
) -> LearnedMetric:
    """Fit `metric` on aligned images and texts of the same groups; return it with the weights that validated best.

    A batch holds one image and one text of each of its groups, so items of the same group are never negatives. What
    the metric was before training is one of the states to choose from.

    Raises:
        FitError: fewer than three groups have both an image and a text.
    """
    import torch
    from torch.nn.functional import cross_entropy

    rng = np.random.default_rng(seed)
    started = metric.start(image.vectors.shape[1], seed)
    module = started.module.to(device)
    scale = torch.nn.Parameter(torch.tensor(-np.log(training.temperature), dtype=torch.float32, device=device))
    optimizer = torch.optim.AdamW(
        [
            {"params": module.parameters(), "weight_decay": training.weight_decay},
            {"params": [scale], "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
    )
    groups = rng.permutation(np.intersect1d(image.groups, text.groups))
    if len(groups) < FEWEST:
        raise FitError(
            f"metric {metric}: expected at least {FEWEST} groups with both images and texts to train on, got "
            f"{len(groups)}; encode more pairs, or choose a metric that learns nothing"
        )
    validated = max(1, min(training.validation_groups, round(training.validation * len(groups))))
    held, fitted = groups[:validated], groups[validated:]
    best_score, best, since = _validate(started, image, text, held), deepcopy(module.state_dict()), 0
    progress(f"{metric}: validation recall {best_score:.3f} before training")
    sides = [torch.from_numpy(side.vectors).to(device) for side in (image, text)]
    epoch = 0
    while since < training.patience and epoch < training.epochs:
        epoch += 1
        module.train()
        for rows in _batches(fitted, image, text, training.batch, rng):
            x, y = (side[torch.from_numpy(chosen).to(device)] for side, chosen in zip(sides, rows, strict=True))
            target = torch.arange(len(x), device=device)
            factor = scale.exp().clamp(max=100.0)
            loss: Tensor = (
                cross_entropy(factor * started.similarity(y, x), target)
                + cross_entropy(factor * started.similarity(x, y), target)
            ) / 2
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        module.eval()
        score, since = _validate(started, image, text, held), since + 1
        if score > best_score:
            best_score, best, since = score, deepcopy(module.state_dict()), 0
    progress(f"{metric}: validation recall {best_score:.3f} after {epoch} epochs")
    module.load_state_dict(best)
    module.eval()
    return started


def _batches(
    groups: Codes, image: Side, text: Side, size: int, rng: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield rows of images and of texts, one of each for every group of a batch; groups and their items shuffled."""
    chosen = [_one_of_each(side.groups, groups, rng) for side in (image, text)]
    order = rng.permutation(len(groups))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        if len(rows) > 1:
            yield chosen[0][rows], chosen[1][rows]


def _one_of_each(codes: Codes, groups: Codes, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A random row for each of `groups`."""
    shuffled = rng.permutation(len(codes))
    found, first = np.unique(codes[shuffled], return_index=True)
    rows: npt.NDArray[np.int64] = shuffled[first[np.searchsorted(found, groups)]]
    return rows


def _validate(metric: LearnedMetric, image: Side, text: Side, groups: Codes) -> float:
    """Mean Recall@1/5/10 of both directions among the items of `groups`."""
    x, y = (side.where(np.isin(side.groups, groups)) for side in (image, text))
    both = (
        ranks(y.vectors, x.vectors, y.groups, x.groups, metric=metric),
        ranks(x.vectors, y.vectors, x.groups, y.groups, metric=metric),
    )
    return float(np.mean([recall_at(r, k) for r in both for k in (1, 5, 10)]))
