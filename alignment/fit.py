"""Embedding sets in, the best closed-form alignment out, chosen by grouped cross-validation on Recall@K.

Metrics that have something to learn are fitted on top of it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alignment import device as devices
from alignment.artifact import Alignment, AlignmentCard
from alignment.embeddings import MODALITIES, EmbeddingSet, HoldOut, Modality, Rows
from alignment.errors import FitError
from alignment.metrics import BANK, Cosine, LearnedMetric, Metric, Nnn, bank_name
from alignment.projections import METHODS, Fitter, Projection
from alignment.recall import Codes, Ranks, group_codes, ranks, recall_at
from alignment.train import Side, train
from alignment.vectors import ROUNDING, FloatArray, faults, unit

if TYPE_CHECKING:
    import torch

KS = (1, 5, 10)
# A validation fold need not be larger than this to tell candidates apart; it bounds the time of a large fit.
VALIDATION_GROUPS = 2_000
# Candidates that go on to the next fold at least.
FEWEST = 8

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images and texts that share groups: what alignments are fitted and judged on."""

    image: Side
    text: Side

    def only(self, groups: Codes) -> "Labelled":
        """Keep the items of these groups."""
        return Labelled(*(side.where(np.isin(side.groups, groups)) for side in (self.image, self.text)))

    def pairs(self) -> tuple[FloatArray, FloatArray]:
        """Pair images and texts within each group: X (n, d_image), Y (n, d_text).

        A group of a images and b texts gives max(a, b) pairs: the shorter side is used again from its start. So
        every item takes part, and a group that is a class label does not give a x b pairs.
        """
        rows_x, rows_y = [], []
        for x, y in zip(_by_group(self.image.groups), _by_group(self.text.groups), strict=True):
            longest = max(len(x), len(y))
            rows_x.append(np.resize(x, longest))
            rows_y.append(np.resize(y, longest))
        return self.image.vectors[np.concatenate(rows_x)], self.text.vectors[np.concatenate(rows_y)]

    def project(self, projections: tuple[Projection, Projection]) -> "Labelled":
        """Align both sides; a row that cannot be becomes NaN."""
        image, text = (
            Side(projection.unchecked(side.vectors), side.groups)
            for projection, side in zip(projections, (self.image, self.text), strict=True)
        )
        return Labelled(image, text)

    def ranks(self, metrics: Mapping[Modality, Metric]) -> tuple[Ranks, Ranks]:
        """Rank aligned sides both ways, text to image and image to text, under the metric of what is searched.

        A row that could not be aligned ranks last.
        """
        image, text = self.image, self.text
        t2i = ranks(text.vectors, image.vectors, text.groups, image.groups, metric=metrics["image"])
        i2t = ranks(image.vectors, text.vectors, image.groups, text.groups, metric=metrics["text"])
        return t2i, i2t


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
    progress: Progress = lambda line: None,
) -> Alignment:
    """Fit the best alignment of `sets`.

    Args:
        sets: embedding sets made by the same encoders; their rows are joined.
        method: one of `METHODS`, or `auto` for the best of all.
        metrics: candidates are chosen under the first that has nothing to learn, or else under cosine; those that
            have are then fitted on the aligned training pairs; held-out recall is reported under each.
        hold_out: groups that take no part in the fit or the choice.
        folds: parts of the cross-validation; groups are never split.
        seed: of the folds.
        device: where the matrices are decomposed and metrics are trained.
        budget: seconds after which no further candidate is begun, so that what is chosen depends on the machine.
        progress: called with a line at each step.

    Raises:
        FitError: too few groups with both modalities, too few vectors for a hubness correction, unusable vectors,
            or no method that applies.
    """
    if method != "auto" and method not in METHODS:
        raise FitError(f"unknown method {method!r}; expected auto or one of {', '.join(METHODS)}")
    encoders = _common_encoders(sets)
    rows = {m: Rows.concatenate([s.load(m) for s in sets]) for m in MODALITIES}
    training, test, unpaired = _split(rows, hold_out)
    progress(
        f"{len(np.unique(training.image.groups))} groups to fit on, {len(np.unique(test.image.groups))} held out, "
        f"{unpaired} items without a partner left out"
    )
    for modality, side in (("image", training.image), ("text", training.text)):
        if (np.ptp(unit(side.vectors), axis=0) <= ROUNDING).all():
            raise FitError(
                f"the {modality} vectors to fit on all have the same direction; check the encoder and the data"
            )
    _require_references(metrics, training)
    place = devices.resolve(device)
    names = list(METHODS) if method == "auto" else [method]
    chosen_under = next(
        (metric for metric in metrics if not _learners([metric]) and not isinstance(metric, Nnn)), Cosine()
    )
    scores = cross_validate(
        training, names, chosen_under, folds=folds, seed=seed, device=place, budget=budget, progress=progress
    )
    best = best_of(scores)
    progress(f"best: {best.method} {best.hyperparameters}, validation recall {best.score:.3f}")
    projections = Fitter(best.method, *training.pairs(), place).fit(best.hyperparameters)
    aligned = training.project(projections)
    image, text = (
        side.where(np.asarray(np.isfinite(side.vectors).all(axis=1))) for side in (aligned.image, aligned.text)
    )
    weights = fit_metrics(metrics, image, text, seed=seed, device=place, progress=progress)
    held_out = test.project(projections)
    recalls = {
        str(metric): recall_table(held_out.ranks({m: metric.bind(weights, m) for m in MODALITIES}))
        for metric in metrics
    }
    return Alignment(
        AlignmentCard(
            encoders=encoders,
            method=best.method,
            hyperparameters=best.hyperparameters,
            metrics=[str(metric) for metric in metrics],
            sets=[s.card.fingerprint for s in sets],
            pairs=len(training.pairs()[0]),
            hold_out=hold_out,
            held_out_recall=recalls,
            candidates=[candidate.to_json() for candidate in scores],
        ),
        dict(zip(MODALITIES, projections, strict=True)),
        weights,
    )


def _require_references(metrics: Sequence[Metric], training: Labelled) -> None:
    """Refuse a hubness correction over more reference queries than there are, before anything takes time."""
    available = min(len(training.image.vectors), len(training.text.vectors), BANK)
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
    image: Side,
    text: Side,
    *,
    seed: int,
    device: "torch.device",
    progress: Progress = lambda line: None,
) -> dict[str, npt.NDArray[Any]]:
    """Fit what the metrics need on aligned training items, by the names that `Metric.bind` asks for."""
    weights: dict[str, npt.NDArray[Any]] = {}
    for metric in _learners(metrics):
        weights |= train(metric, image, text, seed=seed, device=device, progress=progress).weights()
    if any(isinstance(metric, Nnn) for metric in metrics):
        rng = np.random.default_rng(seed)
        for modality, side in zip(MODALITIES, (image, text), strict=True):
            chosen = np.sort(rng.permutation(len(side.vectors))[:BANK])
            weights[bank_name(modality)] = side.vectors[chosen]
    return weights


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method with hyperparameters and how it validated.

    Attributes:
        score: mean of Recall@1/5/10 over both directions and the folds that it took part in.
        folds: how many those are; losers are dropped early.
    """

    method: str
    hyperparameters: dict[str, Any]
    score: float
    folds: int

    def to_json(self) -> dict[str, Any]:
        """Lay out for the alignment's card."""
        return {"method": self.method, **self.hyperparameters, "score": round(self.score, 6), "folds": self.folds}


def best_of(candidates: Iterable[Candidate]) -> Candidate:
    """Return the best of those that were validated on the most folds."""
    return max(candidates, key=lambda candidate: (candidate.folds, candidate.score))


def cross_validate(
    training: Labelled,
    methods: Sequence[str],
    metric: Metric,
    *,
    folds: int,
    seed: int,
    device: Any,
    budget: float | None = None,
    progress: Progress = lambda line: None,
) -> list[Candidate]:
    """Score the candidates of `methods` on held-out folds of whole groups.

    After every fold the better third goes on, at least `FEWEST`, and the best of every method whatever it scores.
    With a `budget` in seconds no candidate is begun when it has passed; a fold that is cut off counts for nothing,
    unless it is the first.
    """
    started = time.monotonic()
    groups = np.unique(training.image.groups)
    if folds < 2 or len(groups) < 2 * folds:
        raise FitError(
            f"cross-validation in {folds} folds needs at least {max(4, 2 * folds)} groups that hold both images and "
            f"texts, got {len(groups)}; add data or lower --folds or --holdout"
        )
    shuffled = np.random.default_rng(seed).permutation(groups)
    dims = training.image.vectors.shape[1], training.text.vectors.shape[1]
    racing = {name: METHODS[name].candidates(*dims) for name in methods}
    for name in [name for name, candidates in racing.items() if not candidates]:
        progress(f"{name}: does not apply to dimensions {dims[0]} and {dims[1]}")
        del racing[name]
    if not racing:
        raise FitError(
            f"method {', '.join(methods)} does not apply to spaces of dimension {dims[0]} and {dims[1]}; choose another"
        )
    results: dict[tuple[Any, ...], Candidate] = {}
    for fold, part in enumerate(np.array_split(shuffled, folds)):
        validation, fitting = training.only(part[:VALIDATION_GROUPS]), training.only(np.setdiff1d(groups, part))
        scored: dict[tuple[Any, ...], Candidate] = {}
        for name, candidates in racing.items():
            if scored and _passed(started, budget):
                break
            progress(f"{name}: {len(candidates)} candidates, fold {fold + 1} of {folds}")
            fitter = Fitter(name, *fitting.pairs(), device)
            for hyperparameters in candidates:
                if scored and _passed(started, budget):
                    break
                both = validation.project(fitter.fit(hyperparameters)).ranks(dict.fromkeys(MODALITIES, metric))
                found = float(np.mean([recall_at(r, k) for r in both for k in KS]))
                key = (name, *hyperparameters.values())
                mean = (fold * results[key].score + found) / (fold + 1) if fold else found
                scored[key] = Candidate(name, dict(hyperparameters), mean, fold + 1)
        if len(scored) < sum(map(len, racing.values())):
            progress(f"the budget has passed in fold {fold + 1} of {folds} with {len(scored)} candidates validated")
            return list((results or scored).values())
        results |= scored
        kept = _survivors(list(scored.values()))
        racing = {name: [c.hyperparameters for c in kept if c.method == name] for name in racing}
    return list(results.values())


def _passed(started: float, budget: float | None) -> bool:
    return budget is not None and time.monotonic() - started > budget


def _survivors(scored: Sequence[Candidate]) -> list[Candidate]:
    """Keep the better third, at least `FEWEST`, and the best of every method; in the order that they came in."""
    ranked = sorted(scored, key=lambda candidate: -candidate.score)
    kept = ranked[: max(FEWEST, len(ranked) // 3)]
    kept += [best_of(c for c in scored if c.method == name) for name in {c.method for c in scored}]
    return [candidate for candidate in scored if any(candidate is each for each in kept)]


def recall_table(both: tuple[Ranks, Ranks]) -> dict[str, dict[str, float]]:
    """Recall@1/5/10 of both directions, by name."""
    return {
        direction: {f"recall@{k}": round(recall_at(side, k), 6) for k in KS}
        for direction, side in zip(("text-to-image", "image-to-text"), both, strict=True)
    }


def _common_encoders(sets: Sequence[EmbeddingSet]) -> dict[Modality, Any]:
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


def _split(rows: dict[Modality, Rows], hold_out: HoldOut) -> tuple[Labelled, Labelled, int]:
    """Split into training and test by group; items without a partner of the other modality are counted."""
    sides = {}
    codes = dict(zip(MODALITIES, group_codes(*(rows[m].groups for m in MODALITIES)), strict=True))
    for modality in MODALITIES:
        if found := faults(rows[modality].vectors):
            row, reason = next(iter(found.items()))
            raise FitError(
                f"{len(found)} {modality} vectors cannot be used, the first is key "
                f"{rows[modality].keys[row]!r}: {reason}; encode those items again or remove them"
            )
        sides[modality] = Side(rows[modality].vectors, codes[modality])
    everything = Labelled(sides["image"], sides["text"])
    paired = np.intersect1d(codes["image"], codes["text"])
    unpaired = sum(int((~np.isin(codes[m], paired)).sum()) for m in MODALITIES)
    held = np.unique(codes["image"][hold_out.held_out(rows["image"].groups)])
    training_groups, test_groups = np.setdiff1d(paired, held), np.intersect1d(paired, held)
    if not len(test_groups) or not len(training_groups):
        raise FitError(
            f"of {len(paired)} groups that hold both images and texts, {len(training_groups)} are left to fit on "
            f"and {len(test_groups)} are held out; both must be above zero: add data or change --holdout"
        )
    return everything.only(training_groups), everything.only(test_groups), unpaired


def _by_group(groups: Codes) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the row numbers of each group, groups ascending."""
    order = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[order], return_index=True)
    yield from np.split(order, starts[1:])
