"""Grouped cross-validation: candidates, folds and the one that wins."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from alignment.errors import FitError
from alignment.fitting.closed_forms import Hyperparameters
from alignment.fitting.folds import Folds
from alignment.fitting.methods import FitSpec, Fitter, Projections, candidates, draws_pairs, uses_products
from alignment.fitting.pairs import Pairs
from alignment.fitting.seen_unseen import MOST_GROUPS, MOST_ITEMS, SeenUnseen, WholeRecall
from alignment.metrics import Metric
from alignment.modality import DIRECTIONS, MODALITIES, Modality
from alignment.plurals import counted
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import IntArray, recall_at

# A validation fold need not be larger than this to tell candidates apart; it bounds the time of a large fit.
VALIDATION_GROUPS = 2_000
# Candidates of a method that go on to the next fold at least.
FEWEST = 8
INTERRUPTED = "interrupted"
SECONDS_BETWEEN_LINES = 10.0
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method with hyperparameters and how it validated.

    Attributes:
        whole: what a collection of the seen and the unseen folds finds under it, over shares of the gap as offsets, by
            metric and then by direction; the mean over the folds that it took part in.
        held_out: mean of Recall@1/5/10 over both directions among unseen items alone.
        folds: how many those are; losers are dropped early.
    """

    method: str
    hyperparameters: dict[str, Any]
    whole: Sequence[WholeRecall] = field(compare=False)
    held_out: float
    folds: int

    @property
    def score(self) -> float:
        """Harmonic mean of seen and unseen recall with the offset in place: the mean over K, directions and metrics."""
        return float(np.mean([recall.harmonic(recall.best, k) for recall in self.whole for k in KS]))

    @property
    def shares(self) -> dict[Modality, float]:
        """The offset of the items of each modality under the first metric, as a share of the gap."""
        first = zip(DIRECTIONS.values(), self.whole, strict=False)
        return {target: float(recall.offsets[recall.best]) for (_, target), recall in first}

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other candidates."""
        return _key(self.method, self.hyperparameters)

    def with_folds_of(self, earlier: "Candidate | None") -> "Candidate":
        """Add the folds that the same candidate was scored on before."""
        if earlier is None:
            return self
        folds = earlier.folds + self.folds
        weight = earlier.folds / self.folds
        whole = [own.averaged(theirs, weight) for own, theirs in zip(self.whole, earlier.whole, strict=True)]
        held_out = (self.held_out + weight * earlier.held_out) / (1 + weight)
        return replace(self, whole=whole, held_out=held_out, folds=folds)

    def to_json(self) -> dict[str, Any]:
        """Lay out for the alignment's card."""
        return {
            "method": self.method,
            **self.hyperparameters,
            "score": round(self.score, 6),
            "held_out": round(self.held_out, 6),
            "seen_offset": self.shares,
            "folds": self.folds,
        }


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
    parts: Folds | None = None,
) -> list[Candidate]:
    """Score the candidates of `methods` on held-out folds of whole groups, by the mean under the task's metrics.

    What counts is a collection of all folds, with an offset for those that a candidate was fitted on.

    After every fold the better third of each method goes on, at least `FEWEST`: what a method validates at does not
    depend on the others, so a comparison of methods and a fit that chooses among them agree. With a `budget` in seconds
    no candidate is begun when it has passed; a fold that is cut off counts for nothing, unless it is the first. Ctrl-C
    is a budget that passes.

    Args:
        data: what to fit on.
        methods: by name.
        task: what they are fitted for.
        folds: parts of the groups.
        device: where matrices are decomposed and heads are trained.
        budget: in seconds.
        progress: called with a line at each step.
        parts: these folds of `data`, where somebody else needs them, too.

    Raises:
        FitError: too few folds or groups, or no method that applies.
    """
    task = replace(task, deadline=None if budget is None else time.monotonic() + budget)
    parts = parts or Folds(data, folds, task.seed, device)
    racing = _applicable(methods, data, progress)
    pace = _Pace(sum(_rounds(len(entered), folds) for entered in racing.values()), progress)
    products = any(map(uses_products, racing))
    results: dict[tuple[Any, ...], Candidate] = {}
    judges = [_Judges.drawn(parts, part, task.seed) for part in parts.parts]
    _say_what_judges(parts, judges, progress)
    if any(map(draws_pairs, racing)):
        parts.reserve_drawn()
    parts.read(products=products)
    for number, (part, judge) in enumerate(zip(parts.parts, judges, strict=True), start=1):
        fitting = data.without(part)
        fold = _Fold(f"fold {number} of {folds}", fitting, parts.without(part), judge.read())
        pace.enter(racing, folds - number + 1)
        scored, stopped = _race(fold, racing, device, task, pace, first=number == 1)
        if stopped:
            kept = list(results.values()) or scored
            progress(f"{stopped} in {fold.name}: going on with the best of {counted(len(kept), 'candidate')}")
            return kept
        scored = [candidate.with_folds_of(results.get(candidate.key)) for candidate in scored]
        results |= {candidate.key: candidate for candidate in scored}
        racing = {name: _survivors([c for c in scored if c.method == name]) for name in racing}
    return list(results.values())


class _Pace:
    """How far a cross-validation has come and how long it took: said every `SECONDS_BETWEEN_LINES`.

    Candidates cost from milliseconds to minutes, those of one method too. So the time left is said only once each was
    timed, from the second fold on, and is then what those that are left took.

    Args:
        fits: how many there will be.
        progress: called with a line.
    """

    def __init__(self, fits: int, progress: Progress):
        self.fits, self.progress = fits, progress
        self.done, self.left = 0, 0.0
        self.seconds: dict[tuple[Any, ...], float] = {}
        self.started = self.said = time.monotonic()

    def enter(self, racing: Mapping[str, Sequence[Hyperparameters]], folds: int) -> None:
        """Begin the next fold, the first of so many that are left, with these candidates."""
        self.left = 0.0
        for name, entered in racing.items():
            known = [self.seconds.get(_key(name, hyperparameters), 0.0) for hyperparameters in entered]
            self.left += _rounds(len(entered), folds) * float(np.mean(known))

    def took(self, key: tuple[Any, ...], seconds: float) -> None:
        """Count a fit."""
        self.done += 1
        self.left -= self.seconds.get(key, 0.0)
        self.seconds[key] = seconds
        if (now := time.monotonic()) - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            left = f", about {self.left:,.0f} s left" if self.left > 0 else ""
            self.progress(
                f"cross-validation: {self.done:,} of {counted(self.fits, 'fit')}, {now - self.started:,.0f} s{left}"
            )


def _key(method: str, hyperparameters: Hyperparameters) -> tuple[Any, ...]:
    return method, *hyperparameters.values()


def _rounds(candidates: int, folds: int) -> int:
    """Count the fits of a method that has so many candidates: after each fold the better ones go on."""
    fits = 0
    for _ in range(folds):
        fits, candidates = fits + candidates, min(candidates, max(FEWEST, candidates // 3))
    return fits


@dataclass(frozen=True, slots=True)
class _Judges:
    """The groups of a fold that judge candidates, and some of them in one collection with some of the others."""

    validation: GroupedEmbeddings
    both: SeenUnseen

    @classmethod
    def drawn(cls, parts: Folds, part: IntArray, seed: int) -> "_Judges":
        """Draw those of one part."""
        data = parts.data
        both = SeenUnseen.sampled(data.without(part), data.only(part), seed)
        both.data.reserve()
        return cls(data.only(part[:VALIDATION_GROUPS]).bounded(MOST_ITEMS).reserve(), both)

    def read(self) -> "_Judges":
        """Return the same in memory."""
        return _Judges(self.validation.read(), self.both.read())


def _say_what_judges(parts: Folds, judges: Sequence[_Judges], progress: Progress) -> None:
    """Say how many of the groups of a fold candidates are measured on, where these are not all, and of their items."""
    largest = len(parts.parts[0])
    if largest > min(VALIDATION_GROUPS, MOST_GROUPS):
        progress(
            f"candidates are measured on at most {VALIDATION_GROUPS:,} of the {largest:,} groups of a fold, and in one "
            f"collection with known items on {MOST_GROUPS:,}"
        )
    sizes = [len(data.side(m).groups) for own in judges for data in (own.validation, own.both.data) for m in MODALITIES]
    if max(sizes) >= MOST_ITEMS:
        progress(f"of their items, at most {MOST_ITEMS:,} images and {MOST_ITEMS:,} texts are drawn evenly")


@dataclass(frozen=True, slots=True)
class _Fold:
    """What people call a fold, the groups and the pairs that candidates are fitted on, and what judges them."""

    name: str
    fitting: GroupedEmbeddings
    pairs: Pairs
    judges: _Judges


def _applicable(
    methods: Sequence[str], data: GroupedEmbeddings, progress: Progress
) -> Mapping[str, Sequence[Hyperparameters]]:
    """Return the candidates of every method that applies to the dimensions of `data`."""
    d_x, d_y = data.image.dim, data.text.dim
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
    pace: "_Pace",
    *,
    first: bool,
) -> tuple[list[Candidate], str]:
    """Score candidates on one fold. Return those that were scored, and what stopped the race, or an empty text.

    Ctrl-C in the first fold, before anything is scored, is raised: there is nothing to go on with.
    """
    scored: list[Candidate] = []
    started = time.monotonic()  # of the first fit of a method: with what all of its fits share
    try:
        for name, hyperparameters, fitter in _runners(fold, racing, device, task, pace.progress):
            if scored and task.deadline is not None and time.monotonic() > task.deadline:
                return scored, "the budget has passed"
            projections = fitter.fit(hyperparameters)
            if fitter.interrupted and (scored or not first):
                return scored, INTERRUPTED
            scored.append(score_candidate(name, hyperparameters, projections, fold, task))
            ended = time.monotonic()
            pace.took(scored[-1].key, ended - started)
            started = ended
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
    for name, entered in racing.items():
        if entered:
            progress(f"{name}: {counted(len(entered), 'candidate')}, {fold.name}")
            fitter = Fitter(name, fold.fitting, device, task, fold.pairs)
            for hyperparameters in entered:
                yield name, hyperparameters, fitter


def score_candidate(
    method: str, hyperparameters: Hyperparameters, projections: Projections, fold: _Fold, task: FitSpec
) -> Candidate:
    """Measure fitted projections on a fold, in the whole collection and among unseen items alone."""
    unseen = fold.judges.validation.project(projections)
    held_out = float(np.mean([_held_out_recall(unseen, metric) for metric in task.metrics]))
    shares = np.array(fold.judges.both.shares(task.seen_offset))
    aligned = fold.judges.both.data.project(projections)
    whole = []
    for metric in task.metrics:
        both = [metric] * len(DIRECTIONS)
        offsets = [shares * gap for gap in fold.judges.both.gaps(aligned, both)]
        measured = fold.judges.both.recalls(projections, aligned, both, offsets, seed=task.seed)
        whole += [replace(recall, offsets=shares).agreed() for recall in measured]
    return Candidate(method, dict(hyperparameters), whole, held_out, folds=1)


def _held_out_recall(aligned: GroupedEmbeddings, metric: Metric) -> float:
    both = aligned.ranks(dict.fromkeys(MODALITIES, metric))
    return float(np.mean([recall_at(side, k) for side in both for k in KS]))


def _survivors(scored: Sequence[Candidate]) -> list[Hyperparameters]:
    """Keep the better third of the candidates of a method, at least `FEWEST`, in the order that they came in."""
    ranked = sorted(scored, key=lambda candidate: -candidate.score)
    kept = ranked[: max(FEWEST, len(ranked) // 3)]
    return [candidate.hyperparameters for candidate in scored if any(candidate is better for better in kept)]
