"""Grouped cross-validation: candidates, folds and the one that wins."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alignment import distributed
from alignment.errors import FitError
from alignment.fitting.methods import FitSpec, Fitter, candidates, paired
from alignment.metrics import Metric
from alignment.modality import MODALITIES
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import KS, recall_at

# A validation fold need not be larger than this to tell candidates apart; it bounds the time of a large fit.
VALIDATION_GROUPS = 2_000
# Candidates that go on to the next fold at least.
FEWEST = 8
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
    """
    started = time.monotonic()
    task = replace(task, deadline=None if budget is None else started + budget)
    groups = data.groups
    if folds < 2:
        raise FitError(f"expected at least 2 folds, got {folds}")
    if len(groups) < 2 * folds:
        raise FitError(
            f"cross-validation in {folds} folds needs at least {2 * folds} groups that hold both images and "
            f"texts, got {len(groups)}; add data or lower --folds or --holdout"
        )
    shuffled = np.random.default_rng(task.seed).permutation(groups)
    dims = data.image.vectors.shape[1], data.text.vectors.shape[1]
    racing = {name: candidates(name, *dims) for name in methods}
    for name in [name for name, entered in racing.items() if not entered]:
        progress(f"{name}: does not apply to dimensions {dims[0]} and {dims[1]}")
        del racing[name]
    if not racing:
        raise FitError(
            f"method {', '.join(methods)} does not apply to spaces of dimension {dims[0]} and {dims[1]}; choose another"
        )
    results: dict[tuple[Any, ...], Candidate] = {}
    for fold, part in enumerate(np.array_split(shuffled, folds)):
        validation, fitting = data.only(part[:VALIDATION_GROUPS]), data.only(np.setdiff1d(groups, part))
        scored: dict[tuple[Any, ...], Candidate] = {}
        stopped = "the budget has passed"
        try:
            what = f"fold {fold + 1} of {folds}"
            for name, hyperparameters, fitter in _runners(racing, fitting, device, task, progress, what):
                if scored and _passed(started, budget):
                    break
                projections = fitter.fit(hyperparameters)
                if fitter.interrupted and (scored or results):
                    raise KeyboardInterrupt
                aligned = validation.project(projections)
                found = distributed.broadcast(float(np.mean([_score(aligned, metric) for metric in task.metrics])))
                key = (name, *hyperparameters.values())
                mean = (fold * results[key].score + found) / (fold + 1) if fold else found
                scored[key] = Candidate(name, dict(hyperparameters), mean, fold + 1)
                if fitter.interrupted:  # the only one there is, as far as it came
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if not scored and not results:
                raise
            stopped = "interrupted"
        if len(scored) < sum(map(len, racing.values())):
            kept = results or scored
            progress(f"{stopped} in fold {fold + 1} of {folds}: going on with the best of {len(kept)} candidates")
            return list(kept.values())
        results |= scored
        survivors = _survivors(list(scored.values()))
        racing = {name: [c.hyperparameters for c in survivors if c.method == name] for name in racing}
    return list(results.values())


def _runners(
    racing: Mapping[str, Sequence[Mapping[str, Any]]],
    fitting: GroupedEmbeddings,
    device: Any,
    task: FitSpec,
    progress: Progress,
    fold: str,
) -> Iterator[tuple[str, Mapping[str, Any], Fitter]]:
    """Yield every candidate with what fits it."""
    pairs = paired(fitting, device)
    for name, entered in racing.items():
        if entered:
            progress(f"{name}: {len(entered)} candidates, {fold}")
            fitter = Fitter(name, fitting, device, task, pairs)
            for hyperparameters in entered:
                yield name, hyperparameters, fitter


def _score(aligned: GroupedEmbeddings, metric: Metric) -> float:
    both = aligned.ranks(dict.fromkeys(MODALITIES, metric))
    return float(np.mean([recall_at(side, k) for side in both for k in KS]))


def _passed(started: float, budget: float | None) -> bool:
    return budget is not None and time.monotonic() - started > budget


def _survivors(scored: Sequence[Candidate]) -> list[Candidate]:
    """Keep the better third, at least `FEWEST`, in the order that they came in."""
    ranked = sorted(scored, key=lambda candidate: -candidate.score)
    kept = ranked[: max(FEWEST, len(ranked) // 3)]
    return [candidate for candidate in scored if any(candidate is each for each in kept)]
