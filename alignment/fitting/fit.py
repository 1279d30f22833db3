"""Embedding sets in, the best alignment out, chosen by grouped cross-validation on Recall@K.

Metrics that have something to learn are fitted on top of it, or jointly with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alignment import device as devices
from alignment import distributed
from alignment.errors import FitError
from alignment.fitting.cross_validation import Candidate, Progress, best_of, cross_validate
from alignment.fitting.folds import Folds
from alignment.fitting.held_out_recall import HeldOutSamples
from alignment.fitting.methods import METHODS, FitSpec, Fitter, Projections, fewest_groups, refined
from alignment.fitting.objective import has_gradient
from alignment.fitting.seen_offsets import FittedMetrics, left_out_sample, seen_offsets
from alignment.fitting.seen_unseen import FEWEST_GROUPS
from alignment.fitting.split import Split, check_directions, training_and_test
from alignment.fitting.trainer import Model, split, train
from alignment.fitting.training import Training
from alignment.metrics import BANK, Cosine, LearnedMetric, Metric, Nnn, bank_name
from alignment.metrics.seen_offset import carries
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.model.card import AlignmentCard
from alignment.names import HEADS, did_you_mean
from alignment.plurals import counted
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut

if TYPE_CHECKING:
    import torch
# Half of the 95% interval of a recall from which on a fit says how few groups measure it: below 97 groups.
UNCERTAIN, NORMAL_95 = 0.1, 1.96
# Learned metrics have few weights, and learn from more and smaller steps.
LEARNED: Mapping[str, Any] = {"batch": 128}
# The residual that is trained jointly with the metrics.
JOINT: Mapping[str, Any] = {"rank": 128, "learning_rate": 3e-4}


def fit(
    sets: Sequence[EmbeddingSet],
    *,
    method: str = "auto",
    metrics: Sequence[Metric] = (Cosine(),),
    hold_out: HoldOut = HoldOut(),
    folds: int = 4,
    seed: int = 0,
    device: str = "auto",
    budget: float | None = None,
    joint: bool = False,
    training: Mapping[str, Any] | None = None,
    seen_offset: float | None = None,
    progress: Progress = lambda line: None,
) -> Alignment:
    """Fit the best alignment of `sets`.

    Args:
        sets: embedding sets made by the same encoders; their rows are joined.
        method: one of `METHODS`, or `auto` for the best of all.
        metrics: candidates are chosen, and heads trained, under the first that has nothing to learn, or else under
            cosine; those that have are then fitted on the aligned training pairs; held-out recall is reported under
            each.
        hold_out: groups that take no part in the fit or the choice.
        folds: parts of the cross-validation; groups are never split.
        seed: of the folds.
        device: where the matrices are decomposed and metrics are trained.
        budget: seconds after which no further candidate is begun, so that what is chosen depends on the machine.
        joint: choose under all metrics that learn nothing, and then train a residual on what was chosen together with
            the metrics that learn, under the mean of the losses of all: one projection that serves every metric.
        training: settings of `Training` that stand above those of the candidates.
        seen_offset: what is taken off the scores of items that the fit sees, as a share of the gap between pairs
            inside and outside of the fit, in [0, 1]; None: the best by cross-validation.
        progress: called with a line at each step.

    Raises:
        FitError: too few groups with both modalities, too few vectors for a hubness correction, unusable vectors,
            or no method that applies.
    """
    given = dict(training or {})
    _check_options(method, budget, given, seen_offset)
    encoders = common_encoders(sets)
    split = _training_and_test(sets, hold_out, progress)
    known = split.training
    _check_references(metrics, known)
    check_folds_for_offset(seen_offset, len(known.groups) // max(1, folds), progress)
    with_offset = that_carry_offsets(metrics, seen_offset, progress)
    place = devices.resolve(device)
    fixed = [metric for metric in metrics if not _learners([metric]) and not isinstance(metric, Nnn)] or [Cosine()]
    spec = FitSpec(fixed if joint else fixed[:1], given, seed, seen_offset=seen_offset)
    names = _entering(known, fixed, progress) if method == "auto" else [method]
    parts = Folds(known, folds, seed, place)
    samples = HeldOutSamples.reserved(split, seed, progress)
    left_out_sample(parts, seed).data.reserve()

    scores = cross_validate(
        known, names, spec, folds=folds, device=place, budget=budget, progress=progress, parts=parts
    )
    best = best_of(scores)
    _report_best(best, scores, progress)
    fitted = _fit_all(best, parts, place, replace(spec, progress=progress), metrics, joint=joint)
    projections, weights = fitted.projections, fitted.weights
    offsets = seen_offsets(best, known, projections, FittedMetrics(with_offset, weights), folds, place, spec, parts)
    recall = samples.recall(projections, FittedMetrics(metrics, weights), fixed[0], offsets, progress)
    card = AlignmentCard(
        encoders=encoders,
        method=best.method,
        hyperparameters=best.hyperparameters,
        metrics=[str(metric) for metric in metrics],
        sets=[s.card.fingerprint for s in sets],
        pairs=len(parts.pairs()),
        hold_out=hold_out,
        training=fitted.training,
        held_out_groups=len(samples.held_out.groups),
        candidates=[candidate.to_json() for candidate in scores],
        seen_offsets=offsets,
        held_out_recall=recall.held_out_recall,
        whole_recall=recall.whole_recall,
        recall_estimates=recall.recall_estimates,
    )
    return Alignment(card, dict(zip(MODALITIES, projections, strict=True)), weights, split.seen)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What was fitted on all training pairs.

    Attributes:
        metrics: those that were trained with the projections.
        training: settings and losses of the training, as a card records them; empty for closed forms.
        weights: of all metrics that have some.
    """

    projections: Projections
    metrics: Sequence[LearnedMetric] = ()
    training: dict[str, Any] = field(default_factory=dict)
    weights: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


def _check_options(method: str, budget: float | None, training: Mapping[str, Any], seen_offset: float | None) -> None:
    """Refuse what is invalid whatever the data is, before anything takes time."""
    Training().with_values(training)
    if budget is not None and distributed.world_size() > 1:
        raise FitError(
            "several processes cannot share a --budget, because each has its own clock; leave it out or name a --method"
        )
    if budget is not None and not budget > 0:
        raise FitError(f"expected a budget above zero seconds, got {budget}")
    check_offset(seen_offset)
    if method != "auto" and method not in METHODS:
        raise FitError(
            f"unknown method {method!r}{did_you_mean(method, METHODS)}; expected auto or one of {', '.join(METHODS)}"
        )


def _training_and_test(sets: Sequence[EmbeddingSet], hold_out: HoldOut, progress: Progress) -> Split:
    """Split `sets` by group, and say what that gives."""
    split = training_and_test(sets, hold_out)
    known, held_out = split.training, len(np.unique(split.test.image.groups))
    where = "; vectors are read from their shards as they are needed" if known.image.is_stored else ""
    progress(
        f"{counted(len(known.groups), 'group')} to fit on, {held_out:,} held out, "
        f"{counted(split.unpaired, 'item')} without a partner left out{where}"
    )
    say_if_few(held_out, progress)
    check_directions(known)
    return split


def say_if_few(held_out: int, progress: Progress) -> None:
    """Say how uncertain a recall is among so few held-out groups, if it is by more than `UNCERTAIN`."""
    around = NORMAL_95 / 2 / held_out**0.5  # where half of them are found
    if around > UNCERTAIN:
        progress(
            f"only {counted(held_out, 'group')} held out: a recall of 0.5 among them is uncertain by about "
            f"{min(around, 0.5):.2f} either way; add data or raise --holdout"
        )


def check_offset(seen_offset: float | None) -> None:
    """Refuse an offset that is no share of the gap."""
    if seen_offset is not None and not (isinstance(seen_offset, int | float) and 0 <= seen_offset <= 1):
        raise FitError(
            f"expected a seen offset of 0 to 1, as a share of the gap, or None to choose it, got {seen_offset!r}"
        )


def check_folds_for_offset(seen_offset: float | None, groups: int, progress: Progress) -> None:
    """Say that folds are too small to estimate the gap; refuse an offset that is a share of it."""
    if groups >= FEWEST_GROUPS or seen_offset == 0:
        return
    small = f"a fold holds {counted(groups, 'group')}, expected at least {FEWEST_GROUPS} to estimate the gap"
    if seen_offset is not None:
        raise FitError(
            f"{small} that the seen offset {seen_offset} is a share of; add data, lower --folds or leave it out"
        )
    progress(f"{small} between seen and unseen items: no offset; fewer, larger folds may, as with --folds 3")


def that_carry_offsets(metrics: Sequence[Metric], seen_offset: float | None, progress: Progress) -> Sequence[Metric]:
    """Return the metrics that can have an offset; refuse, or name, those that cannot."""
    without = [metric for metric in metrics if not carries(metric)]
    if without and seen_offset:
        raise FitError(f"metric {without[0]} cannot carry an offset for seen items; leave it out, or --seen-offset 0")
    if without and seen_offset is None:
        progress(f"no offset for seen items under {', '.join(map(str, without))}: not a metric that can carry one")
    return [metric for metric in metrics if metric not in without]


def _report_best(best: Candidate, scores: Sequence[Candidate], progress: Progress) -> None:
    progress(
        f"best: {best.method} {best.hyperparameters}, {best.score:.3f} in the cross-validation, a mean over Recall@1, "
        "5 and 10 of seen and unseen items"
    )
    if others := [score for score in scores if score.method != best.method]:
        other = best_of(others)
        compared = f"over {other.folds} of {counted(best.folds, 'fold')}"
        progress(f"best of the other methods: {other.method}, {other.score:.3f} {compared}")


def _fit_all(
    best: Candidate, parts: Folds, device: "torch.device", task: FitSpec, metrics: Sequence[Metric], *, joint: bool
) -> _Fitted:
    """Fit what won the cross-validation on all training pairs, then what `metrics` learn in its space."""
    known = parts.data
    fitted = _jointly(best, known, device, task, metrics) if joint else _fit_best(best, parts, device, task)
    aligned = known.project(fitted.projections)
    return replace(fitted, weights=fit_metrics(metrics, aligned, fitted.metrics, task=task, device=device))


def _fit_best(best: Candidate, parts: Folds, device: "torch.device", task: FitSpec) -> _Fitted:
    """Fit what won the cross-validation on all training pairs."""
    projections = Fitter(best.method, parts.data, device, task, parts.pairs()).fit(best.hyperparameters)
    if best.method not in HEADS:
        return _Fitted(projections)
    return _Fitted(projections, training=asdict(task.training(best.hyperparameters)) | _terms(task.metrics))


def _entering(known: GroupedEmbeddings, metrics: Sequence[Metric], progress: Progress) -> list[str]:
    """The methods that `auto` tries: those that have enough groups, and a gradient if they need one."""
    names = [name for name in METHODS if len(known.groups) >= fewest_groups(name)]
    for name in METHODS:
        if name not in names:
            progress(f"{name}: enters from {fewest_groups(name):,} groups on; try it with --method {name}")
    without = [metric for metric in metrics if not has_gradient(metric)]
    if without:
        progress(f"metric {without[0]} has no gradient: trained heads are left out")
        names = [name for name in names if name not in HEADS]
    return names


def _check_references(metrics: Sequence[Metric], training: GroupedEmbeddings) -> None:
    """Refuse a hubness correction over more reference queries than there are, before anything takes time."""
    available = min(len(training.image.groups), len(training.text.groups), BANK)
    for metric in metrics:
        if isinstance(metric, Nnn) and metric.k > available:
            raise FitError(
                f"metric {metric}: expected at least {metric.k} training vectors of each modality as reference "
                f"queries, got {available}; add data, lower --holdout, or choose a lower k as in "
                f"{metric.base}+nnn(k={max(1, available // 2)})"
            )


def _learners(metrics: Sequence[Metric]) -> list[LearnedMetric]:
    """The metrics to train, also those that a hubness correction stands on."""
    bases = [metric.base if isinstance(metric, Nnn) else metric for metric in metrics]
    return [metric for metric in dict.fromkeys(bases) if isinstance(metric, LearnedMetric)]


def fit_metrics(
    metrics: Sequence[Metric],
    aligned: GroupedEmbeddings,
    learned: Sequence[LearnedMetric] = (),
    *,
    task: FitSpec,
    device: "torch.device",
) -> dict[str, npt.NDArray[Any]]:
    """Fit what the metrics need on aligned training items, by the names that `Metric.bind` asks for.

    Args:
        metrics: those that need nothing are passed over.
        aligned: training items; those that could not be aligned are left out.
        learned: metrics that have been trained already.
    """
    weights: dict[str, npt.NDArray[Any]] = {}
    if not _learners(metrics) and not any(isinstance(metric, Nnn) for metric in metrics):
        return weights
    aligned = aligned.sound()
    for metric in _learners(metrics):
        done = next((m for m in learned if m == metric), None) or fit_learned(metric, aligned, task, device)
        weights |= done.weights()
    if any(isinstance(metric, Nnn) for metric in metrics):
        rng = np.random.default_rng(task.seed)
        for modality, side in zip(MODALITIES, (aligned.image, aligned.text), strict=True):
            chosen = np.sort(rng.permutation(len(side.groups))[:BANK])
            weights[bank_name(modality)] = side.take(chosen)
    return weights


def fit_learned(
    metric: LearnedMetric, aligned: GroupedEmbeddings, task: FitSpec, device: "torch.device"
) -> LearnedMetric:
    """Train one metric on aligned items; return it with the weights that validated best."""
    started = metric.start(aligned.image.dim, task.seed)
    training = task.training(LEARNED)
    fitted, held = split(aligned, training, np.random.default_rng(task.seed))
    train(
        Model([started]),
        aligned,
        fitted,
        held,
        training=training,
        seed=task.seed,
        device=device,
        deadline=task.deadline,
        progress=task.progress,
    )
    return started


def _jointly(
    best: Candidate, known: GroupedEmbeddings, device: "torch.device", task: FitSpec, metrics: Sequence[Metric]
) -> _Fitted:
    """Train a residual on what was chosen under the metrics of `task`, together with those of `metrics` that learn."""
    from alignment.fitting.heads import Residual

    task = replace(task, metrics=[*task.metrics, *_learners(metrics)])
    training = task.training(JOINT)
    quiet = replace(task, progress=lambda line: None)
    result = refined(
        lambda data: Fitter(best.method, data, device, quiet).fit(best.hyperparameters),
        lambda start: Residual.begin(start, JOINT),
        known,
        device,
        training,
        task,
    )
    learned = [metric for metric in result.metrics if isinstance(metric, LearnedMetric)]
    return _Fitted(result.projections, learned, asdict(training) | _terms(task.metrics))


def _terms(metrics: Sequence[Metric]) -> dict[str, Any]:
    """Weights of the losses under each metric, as a card records them."""
    return {"metrics": {str(metric): 1 / len(metrics) for metric in metrics}}


def common_encoders(sets: Sequence[EmbeddingSet]) -> dict[Modality, Any]:
    """Return the cards of the encoders that made all of `sets`, or refuse sets that are not of one pair."""
    if not sets:
        raise FitError("expected at least one embedding set, got none")
    first = sets[0]
    for modality in MODALITIES:
        if modality not in first.card.encoders:
            raise FitError(f"embedding set {first.path} holds no {modality} vectors; encode with --{modality}-encoder")
        for other in sets[1:]:
            if (theirs := other.card.encoders.get(modality)) != (ours := first.card.encoders[modality]):
                raise FitError(
                    f"embedding sets of different {modality} encoders cannot be fitted together: {first.path} has "
                    f"{ours}, {other.path} has {theirs}"
                )
    return dict(first.card.encoders)
