"""Grouped cross-validation: candidates, folds and the one that wins."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alignment import distributed
from alignment.errors import FitError
from alignment.fitting.closed_forms import Hyperparameters
from alignment.fitting.methods import FitSpec, Fitter, candidates, paired
from alignment.metrics import Metric
from alignment.modality import MODALITIES
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import recall_at

# A validation fold need not be larger than this to tell candidates apart; it bounds the time of a large fit.
VALIDATION_GROUPS = 2_000
# Candidates that go on to the next fold at least.
FEWEST = 8
INTERRUPTED = "interrupted"
Progress = Callable[[str], None]


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

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other candidates."""
        return self.method, *self.hyperparameters.values()

    def with_folds_of(self, earlier: "Candidate | None") -> "Candidate":
        """Add the folds that the same candidate was scored on before."""
        if earlier is None:
            return self
        folds = earlier.folds + self.folds
        mean = (earlier.folds * earlier.score + self.folds * self.score) / folds
        return replace(self, score=mean, folds=folds)

    def to_json(self) -> dict[str, Any]:
        """Lay out for the alignment's card."""
        return {"method": self.method, **self.hyperparameters, "score": round(self.score, 6), "folds": self.folds}


def best_of(candidates: Iterable[Candidate]) -> Candidate:
    """Return the best of those that were validated on the most folds."""
    return max(candidates, key=lambda candidate: (candidate.folds, candidate.score))


def cross_validate(
    data: GroupedEmbeddings,
    methods: Sequence[str],
    task: FitSpec,
    *,
    folds: int,
    device: Any,
    budget: float | None = None,
    progress: Progress = lambda line: None,
) -> list[Candidate]:
    """Score the candidates of `methods` on held-out folds of whole groups, by the mean under the task's metrics.

    After every fold the better third goes on, at least `FEWEST`. With a `budget` in seconds no candidate is begun when
    it has passed; a fold that is cut off counts for nothing, unless it is the first. Ctrl-C is a budget that passes.

    Raises:
        FitError: too few folds or groups, or no method that applies.
    """
    task = replace(task, deadline=None if budget is None else time.monotonic() + budget)
    groups = data.groups
    _check_folds(folds, len(groups))
    racing = _applicable(methods, data, progress)
    shuffled = np.random.default_rng(task.seed).permutation(groups)
    results: dict[tuple[Any, ...], Candidate] = {}
    for number, part in enumerate(np.array_split(shuffled, folds), start=1):
        fold = _Fold(
            f"fold {number} of {folds}", data.only(np.setdiff1d(groups, part)), data.only(part[:VALIDATION_GROUPS])
        )
        scored, stopped = _race(fold, racing, device, task, progress, first=number == 1)
        if stopped:
            kept = list(results.values()) or scored
            progress(f"{stopped} in {fold.name}: going on with the best of {len(kept)} candidates")
            return kept
        scored = [candidate.with_folds_of(results.get(candidate.key)) for candidate in scored]
        results |= {candidate.key: candidate for candidate in scored}
        survivors = _survivors(scored)
        racing = {name: [c.hyperparameters for c in survivors if c.method == name] for name in racing}
    return list(results.values())


@dataclass(frozen=True, slots=True)
class _Fold:
    """What people call a fold, the groups that candidates are fitted on, and those that judge them."""

    name: str
    fitting: GroupedEmbeddings
    validation: GroupedEmbeddings


def _check_folds(folds: int, groups: int) -> None:
    if folds < 2:
        raise FitError(f"expected at least 2 folds, got {folds}")
    if groups < 2 * folds:
        raise FitError(
            f"cross-validation in {folds} folds needs at least {2 * folds} groups that hold both images and "
            f"texts, got {groups}; add data or lower --folds or --holdout"
        )


def _applicable(
    methods: Sequence[str], data: GroupedEmbeddings, progress: Progress
) -> Mapping[str, Sequence[Hyperparameters]]:
    """Return the candidates of every method that applies to the dimensions of `data`."""
    d_x, d_y = data.image.vectors.shape[1], data.text.vectors.shape[1]
    racing = {name: candidates(name, d_x, d_y) for name in methods}
    for name in [name for name, entered in racing.items() if not entered]:
        progress(f"{name}: does not apply to dimensions {d_x} and {d_y}")
        del racing[name]
    if not racing:
        raise FitError(
            f"method {', '.join(methods)} does not apply to spaces of dimension {d_x} and {d_y}; choose another"
        )
    return racing


def _race(
    fold: _Fold,
    racing: Mapping[str, Sequence[Hyperparameters]],
    device: Any,
    task: FitSpec,
    progress: Progress,
    *,
    first: bool,
) -> tuple[list[Candidate], str]:
    """Score candidates on one fold. Return those that were scored, and what stopped the race, or an empty text.

    Ctrl-C in the first fold, before anything is scored, is raised: there is nothing to go on with.
    """
    scored: list[Candidate] = []
    try:
        for name, hyperparameters, fitter in _runners(fold, racing, device, task, progress):
            if scored and task.deadline is not None and time.monotonic() > task.deadline:
                return scored, "the budget has passed"
            projections = fitter.fit(hyperparameters)
            if fitter.interrupted and (scored or not first):
                return scored, INTERRUPTED
            aligned = fold.validation.project(projections)
            score = distributed.broadcast(float(np.mean([_score(aligned, metric) for metric in task.metrics])))
            scored.append(Candidate(name, dict(hyperparameters), score, folds=1))
            if fitter.interrupted:  # the only one there is, as far as it came
                return scored, INTERRUPTED
    except KeyboardInterrupt:
        if first and not scored:
            raise
        return scored, INTERRUPTED
    return scored, ""


def _runners(
    fold: _Fold,
    racing: Mapping[str, Sequence[Hyperparameters]],
    device: Any,
    task: FitSpec,
    progress: Progress,
) -> Iterator[tuple[str, Hyperparameters, Fitter]]:
    """Yield every candidate with what fits it."""
    pairs = paired(fold.fitting, device)
    for name, entered in racing.items():
        if entered:
            progress(f"{name}: {len(entered)} candidates, {fold.name}")
            fitter = Fitter(name, fold.fitting, device, task, pairs)
            for hyperparameters in entered:
                yield name, hyperparameters, fitter


def _score(aligned: GroupedEmbeddings, metric: Metric) -> float:
    both = aligned.ranks(dict.fromkeys(MODALITIES, metric))
    return float(np.mean([recall_at(side, k) for side in both for k in KS]))


def _survivors(scored: Sequence[Candidate]) -> list[Candidate]:
    """Keep the better third, at least `FEWEST`, in the order that they came in."""
    ranked = sorted(scored, key=lambda candidate: -candidate.score)
    kept = ranked[: max(FEWEST, len(ranked) // 3)]
    return [candidate for candidate in scored if any(candidate is better for better in kept)]
