"""Every method of fitting projections by its name, closed forms and trained heads alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.fitting.closed_forms import CLOSED_FORMS, ClosedForm, Hyperparameters, array_of
from alignment.fitting.folds import matrix_device
from alignment.fitting.pairs import Pairs
from alignment.fitting.trainer import Model, Trained, split, train
from alignment.fitting.training import Training
from alignment.metrics import Cosine, LearnedMetric, Metric
from alignment.model.projections import Projection
from alignment.names import HEADS
from alignment.plurals import counted
from alignment.retrieval.grouped import GroupedEmbeddings

if TYPE_CHECKING:
    import torch

    from alignment.fitting.heads import Head

Projections = tuple[Projection, Projection]

METHODS = (*CLOSED_FORMS, *HEADS)
# The closed forms that heads start from, as they are good on most corpora.
STARTS: Mapping[str, Hyperparameters] = {
    "identity": {},
    "rcca": {"shrinkage_image": 1.0, "shrinkage_text": 1.0, "components": 256, "power": 0.5},
    "kcca": {"gamma": 2.0, "shrinkage": 1.0, "components": 512},
}
# A head that was validated on a larger share of the groups than this is trained again on all of them.
REFIT = 0.05


@dataclass(frozen=True, slots=True)
class FitSpec:
    """What a method is fitted for.

    Attributes:
        metrics: heads are trained under these, with equal weights.
        given: settings of `Training` that stand above those of a candidate.
        seed: of batches and random weights.
        deadline: of `time.monotonic`, when training ends.
        progress: called with a line at each step of a training.
        seen_offset: of seen items, as a share of the gap; None: the best by cross-validation.
    """

    metrics: Sequence[Metric] = (Cosine(),)
    given: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    deadline: float | None = None
    progress: Callable[[str], None] = lambda line: None
    seen_offset: float | None = None

    def training(self, hyperparameters: Hyperparameters) -> Training:
        """Settings of the training of a candidate."""
        known = {f.name for f in fields(Training)}
        return Training().with_values({n: v for n, v in hyperparameters.items() if n in known} | dict(self.given))


def fewest_groups(method: str) -> int:
    """How many groups a method needs to enter where it is not named."""
    return _kind(method).fewest_groups


def uses_products(method: str) -> bool:
    """Whether a method needs the products of all pairs that it is fitted on; heads fit their starts on others."""
    return method in CLOSED_FORMS and CLOSED_FORMS[method].uses_products


def draws_pairs(method: str) -> bool:
    """Whether a method needs some of the pairs that it is fitted on themselves."""
    return method in CLOSED_FORMS and CLOSED_FORMS[method].draws_pairs


def candidates(method: str, d_x: int, d_y: int) -> list[Hyperparameters]:
    """Hyperparameters worth trying on spaces of these dimensions; none where the method does not apply."""
    return _kind(method).candidates(d_x, d_y)


@dataclass(frozen=True, slots=True)
class Refined:
    """What a training gave.

    Attributes:
        metrics: those of the task; the ones that learn have their weights.
        interrupted: Ctrl-C ended it, and this is the best so far.
    """

    projections: Projections
    metrics: Sequence[Metric]
    interrupted: bool


class Fitter:
    """A method bound to training data: fits projections for any hyperparameters.

    Attributes:
        method: its name.
        interrupted: Ctrl-C ended the last training, and what was fitted is the best so far.
    """

    def __init__(
        self,
        method: str,
        data: GroupedEmbeddings,
        device: "torch.device",
        task: FitSpec = FitSpec(),
        pairs: Pairs | None = None,
    ):
        self.method, self._data, self._device, self._task, self._pairs = method, data, device, task, pairs
        self._closed: _Closed | None = None
        self.interrupted = False

    def fit(self, hyperparameters: Hyperparameters) -> Projections:
        """Return the image and the text projection for these hyperparameters.

        Raises:
            FitError: too few groups to train on, or too little memory on the device.
        """
        if self.method in CLOSED_FORMS:
            if self._closed is None:
                pairs = self._pairs or paired(self._data, self._device)
                self._closed = _Closed(CLOSED_FORMS[self.method], pairs)
            return self._closed.fit(hyperparameters)
        head = _head(self.method)
        result = refined(
            lambda data: _start(hyperparameters, data, self._device),
            lambda start: head.begin(start, hyperparameters),
            self._data,
            self._device,
            self._task.training(hyperparameters),
            self._task,
        )
        self.interrupted = result.interrupted
        return result.projections


class _Closed:
    """A closed form on the pairs of training data."""

    def __init__(self, kind: type[ClosedForm], pairs: Pairs):
        self._solver, self._dims = kind(pairs), pairs.dims
        self._means = [array_of(mean) for mean in pairs.means] if kind.centres else [None, None]

    def fit(self, hyperparameters: Hyperparameters) -> Projections:
        weights, feature_maps = self._solver.solve(hyperparameters), self._solver.feature_maps(hyperparameters)
        image, text = (
            Projection(dim, mean, None if weight is None else array_of(weight), feature_map)
            for dim, mean, weight, feature_map in zip(self._dims, self._means, weights, feature_maps, strict=True)
        )
        return image, text


def paired(data: GroupedEmbeddings, device: "torch.device") -> Pairs:
    """Return the pairs of `data` where closed forms decompose them."""
    return Pairs(data, matrix_device(device))


def refined(
    start: Callable[[GroupedEmbeddings], Projections],
    begin: "Callable[[Projection], Head]",
    data: GroupedEmbeddings,
    device: "torch.device",
    training: Training,
    task: FitSpec,
) -> Refined:
    """Train heads, and the metrics of the task that learn, from a start; return both as they validated best.

    A start knows the groups that it was fitted on, and so would look better on them than it is: for validation it is
    fitted without them. Where they are more than `REFIT` of all, start and heads are fitted once more on all groups,
    for as many epochs as were best.

    Args:
        start: fits the start on some data.
        begin: makes a head for one modality of it.
    """
    rng = np.random.default_rng(task.seed)
    fitted, held = split(data, training, rng)

    def run(groups: Any, validated: Any, training: Training) -> tuple[Projections, list[Metric], Trained]:
        import torch

        known = data.only(groups)
        projections = start(known)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            heads = begin(projections[0]), begin(projections[1])
        metrics = [
            m.start(projections[0].out_dim, task.seed) if isinstance(m, LearnedMetric) else m for m in task.metrics
        ]
        means = projections[0].mean, projections[1].mean
        model = Model(metrics, heads, means)
        trained = train(
            model,
            data,
            groups,
            validated,
            training=training,
            seed=task.seed,
            device=device,
            deadline=task.deadline,
            progress=task.progress,
        )
        model.module.to("cpu")
        image, text = (head.projection(mean) for head, mean in zip(heads, means, strict=True))
        return (image, text), metrics, trained

    projections, metrics, trained = run(fitted, held, training)
    passed = task.deadline is not None and time.monotonic() > task.deadline
    if len(held) > REFIT * len(data.groups) and not passed and not trained.interrupted:
        task.progress(f"trained again on {counted(len(data.groups), 'group')}, for {counted(trained.epoch, 'epoch')}")
        everything = np.concatenate([fitted, held])
        shortened = training.with_values({"epochs": trained.epoch})
        again, learned, second = run(everything, None, shortened)
        if second.complete:
            return Refined(again, learned, interrupted=False)
        task.progress("that was cut short: what was trained on some of the groups is kept")
        return Refined(projections, metrics, second.interrupted)
    return Refined(projections, metrics, trained.interrupted)


def _start(hyperparameters: Hyperparameters, data: GroupedEmbeddings, device: "torch.device") -> Projections:
    name = hyperparameters.get("start")
    if name is None:  # only its dimensions and its means count
        pairs = paired(data, device)
        image, text = (Projection(dim, array_of(mean)) for dim, mean in zip(pairs.dims, pairs.means, strict=True))
        return image, text
    return _Closed(CLOSED_FORMS[name], paired(data, device)).fit(STARTS[name])


def _head(method: str) -> "type[Head]":
    from alignment.fitting.heads import HEADS

    return HEADS[method]


def _kind(method: str) -> "type[ClosedForm] | type[Head]":
    return CLOSED_FORMS[method] if method in CLOSED_FORMS else _head(method)
