"""Compare encoder pairs × methods × metrics on your own data: recall, cost and modality gap of each.

All are measured on the same held-out groups, which are used for nothing else. Hyperparameters are chosen by
cross-validation on the training groups. `alignment.comparison.guidelines` puts the table into words.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment import device as devices
from alignment.comparison.encoder_pairs import PairData, encoder_pairs
from alignment.comparison.learning_curve import Curve, Measure, learning_curve
from alignment.comparison.paired_bootstrap import Hits, estimate
from alignment.comparison.table import Comparison, Fitted, MetricRow, NotRun, best_validated
from alignment.errors import FitError, MetricError, WeightsError
from alignment.fitting.cross_validation import best_of, cross_validate
from alignment.fitting.fit import fit_metrics
from alignment.fitting.methods import METHODS, FitSpec, Fitter, Projections, candidates, fewest_groups
from alignment.geometry.modality_gap import modality_gap
from alignment.metrics import Cosine, LearnedMetric, Metric, Nnn, Rescored, parse
from alignment.modality import DIRECTIONS, MODALITIES, Modality
from alignment.model.projections import Projection
from alignment.names import COMPARED_METRICS
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut

if TYPE_CHECKING:
    import torch

# One of each kind: native, a distance by coordinates, divergences, a corrected and a learned one.
METRICS = tuple(parse(name) for name in COMPARED_METRICS)
LINEAR = ("procrustes", "ridge", "rcca")
COLUMNS = (*DIRECTIONS, "mean")
# Share of the budget for the table; the rest is kept for the learning curves.
FOR_THE_TABLE = 0.8
DOES_NOT_APPLY = "does not apply"
# Queries that are timed, after some that warm up.
TIMED, WARM_UP = 25, 3

Progress = Callable[[str], None]


def compare(
    sets: Sequence[EmbeddingSet],
    *,
    methods: Sequence[str] = (),
    metrics: Sequence[Metric] = METRICS,
    hold_out: HoldOut = HoldOut(),
    folds: int = 4,
    seed: int = 0,
    device: str = "auto",
    budget: float | None = None,
    progress: Progress = lambda line: None,
) -> Comparison:
    """Fit and measure every method for every encoder pair of `sets` under every metric.

    Args:
        sets: those made by the same two encoders are joined; different encoders are compared, on the groups that all
            have.
        methods: of `METHODS`; none: those that `auto` enters for so many groups.
        metrics: candidates are chosen, and heads trained, under the first that has nothing to learn, or else cosine,
            which is then in the table too.
        hold_out: groups to query with and search among, at most `TEST_GROUPS`.
        folds: of the cross-validation within the training groups.
        seed: of folds, subsamples and intervals.
        device: where methods are fitted.
        budget: seconds after which nothing new is started; a fifth is kept for the learning curves. Each method is
            fitted for all encoder pairs before the next, more expensive one. Ctrl-C ends the budget early.
        progress: called with a line at each step.

    Raises:
        FitError: an unknown method, unusable vectors, no groups in common, too few groups, or nothing that applies.
    """
    started = time.monotonic()
    if unknown := [name for name in methods if name not in METHODS]:
        raise FitError(f"unknown method {unknown[0]!r}; expected some of {', '.join(METHODS)}")
    data = list(encoder_pairs(sets, hold_out, seed))
    groups, tested = len(data[0].known.groups), len(data[0].test.groups)
    progress(f"{len(data)} encoder pairs, {groups} groups to fit on, {tested} held out for queries")
    clock = _Clock(budget)
    reference = next((m for m in metrics if not isinstance(m, LearnedMetric | Nnn)), Cosine())
    bench = _Bench(
        [reference, *(metric for metric in dict.fromkeys(metrics) if metric != reference)],
        FitSpec([reference], seed=seed, deadline=clock.deadline),
        folds,
        devices.resolve(device),
        clock,
        progress,
    )
    entered = list(dict.fromkeys(methods)) or [name for name in METHODS if groups >= fewest_groups(name)]
    for name in entered:
        for pair_data in data:
            bench.fit(pair_data, name)
    if not bench.fitted:
        raise FitError(f"nothing could be fitted: {bench.not_run[-1].what}: {bench.not_run[-1].reason}")
    for name in METHODS:
        if not methods and name not in entered:
            bench.not_run.append(
                NotRun(name, f"enters from {fewest_groups(name):,} groups on, or with --method {name}")
            )
    curves = list(bench.curves(data))
    settings = {
        "methods": entered,
        "hold_out": {"fraction": hold_out.fraction, "seed": hold_out.seed},
        "folds": folds,
        "seed": seed,
        "device": str(bench.device),
        "budget": budget,
    }
    return Comparison(
        [pair_data.pair for pair_data in data],
        str(reference),
        [str(metric) for metric in bench.metrics],
        settings,
        groups,
        tested,
        bench.fitted,
        curves,
        bench.not_run,
        time.monotonic() - started,
    )


class _Clock:
    """Says when to begin nothing more."""

    def __init__(self, budget: float | None):
        self.interrupted = False
        self._started, self._budget, self._share = time.monotonic(), budget, FOR_THE_TABLE

    @property
    def deadline(self) -> float | None:
        """When that is, of `time.monotonic`; None: never."""
        return None if self._budget is None else self._started + self._share * self._budget

    def allow_curves(self) -> None:
        """From here on, all of the budget may be used."""
        self._share = 1.0

    def left(self) -> float | None:
        """Seconds left; None: no end."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def stopped(self) -> str:
        """Why nothing more is begun; empty while there is time."""
        if self.interrupted:
            return "interrupted"
        return f"its share of the budget of {self._budget:g} s had passed" if self.left() == 0 else ""


class _Bench:
    """Fits and measures; keeps the results and a list of what was not run."""

    def __init__(
        self,
        metrics: list[Metric],
        task: FitSpec,
        folds: int,
        device: "torch.device",
        clock: _Clock,
        progress: Progress,
    ):
        self.metrics, self.task, self.folds, self.device = metrics, task, folds, device
        self.clock, self.progress = clock, progress
        self.fitted: list[Fitted] = []
        self.not_run: list[NotRun] = []

    def fit(self, data: PairData, method: str) -> None:
        """Choose, fit and measure a method for an encoder pair, or say why not. The first has all the time it takes."""
        what = f"{method} on {data.pair.name}"
        dims = [data.pair.encoders[modality].dim for modality in MODALITIES]
        reason = self.clock.stopped() if self.fitted else ""
        if not candidates(method, dims[0], dims[1]):
            reason = f"{DOES_NOT_APPLY} to dimensions {dims[0]} and {dims[1]}"
        if not reason:
            try:
                self.fitted.append(self._fit(data, method))
            except FitError as error:
                reason = str(error)
            except KeyboardInterrupt:
                if not self.fitted:
                    raise
                self.clock.interrupted = True
                reason = self.clock.stopped()
        if reason:
            self.not_run.append(NotRun(what, reason))

    def _fit(self, data: PairData, method: str) -> Fitted:
        self.progress(f"{data.pair.name}: {method}")
        started = time.monotonic()
        scores = cross_validate(
            data.known, [method], self.task, folds=self.folds, device=self.device, budget=self.clock.left()
        )
        chosen = best_of(scores)
        if chosen.folds < self.folds and not self.clock.stopped():  # then it was Ctrl-C that cut the search short
            self.clock.interrupted = True
        decided = time.monotonic()
        fitter = Fitter(method, data.known, self.device, self.task)
        projections = fitter.fit(chosen.hyperparameters)
        self.clock.interrupted |= fitter.interrupted
        fitted = time.monotonic()
        aligned = data.test.project(projections)
        gap = modality_gap(aligned, seed=self.task.seed)
        made = Fitted(
            data.pair.name,
            method,
            chosen,
            len(scores),
            decided - started,
            fitted - decided,
            {m: multiply_adds(p) for m, p in zip(MODALITIES, projections, strict=True)},
            projections[0].out_dim,
            gap,
            [],
        )
        for metric in self.metrics:
            if row := self._row(data, made, projections, aligned, metric):
                made.rows.append(row)
        return made

    def _row(
        self, data: PairData, made: Fitted, projections: Projections, aligned: GroupedEmbeddings, metric: Metric
    ) -> MetricRow | None:
        """Measure one metric; None, and said, where it cannot be. The first is measured whatever the clock says."""
        reason = self.clock.stopped() if made.rows else ""
        if not reason:
            try:
                return self._measured(data, projections, aligned, metric)
            except (FitError, MetricError, WeightsError) as error:
                reason = str(error)
            except KeyboardInterrupt:
                self.clock.interrupted = True
                if not made.rows:
                    raise
                reason = self.clock.stopped()
        self.not_run.append(NotRun(f"{metric} after {made.method} on {made.pair}", reason))
        return None

    def _measured(
        self, data: PairData, projections: Projections, aligned: GroupedEmbeddings, metric: Metric
    ) -> MetricRow:
        started = time.monotonic()
        weights: dict[str, Any] = {}
        if isinstance(metric, LearnedMetric | Nnn):
            known = data.known.project(projections).sound()
            weights = fit_metrics([metric], known, task=self.task, device=self.device)
        learned = time.monotonic() - started if weights else 0.0
        bound = {modality: metric.bind(weights, modality, str(self.device)) for modality in MODALITIES}
        hits = Hits.of(aligned.ranks(bound), aligned)
        samples, values = hits.resampled(self.task.seed), hits.recalls()
        recalls = {
            direction: {f"recall@{k}": estimate(values[d, i], samples[:, d, i]) for i, k in enumerate(KS)}
            for d, direction in enumerate(COLUMNS)
        }
        dim = projections[0].out_dim
        lowering = bound["image"].lower(dim)
        return MetricRow(
            str(metric),
            recalls,
            learned,
            self._query_microseconds(data, projections, bound),
            lowering.dim + (dim if isinstance(lowering, Rescored) else 0),
            str(lowering.guarantee),
            hits,
            samples[:, -1, -1],
        )

    def _query_microseconds(
        self, data: PairData, projections: Projections, bound: Mapping[Modality, Metric]
    ) -> dict[Modality, float]:
        """Time single queries of both modalities, which ask for items of the other one."""
        taken: dict[Modality, float] = {}
        sides = zip(MODALITIES, reversed(MODALITIES), projections, (data.test.image, data.test.text), strict=True)
        for modality, items, projection, side in sides:
            lowering = bound[items].lower(projection.out_dim)
            times = []
            for number in range(WARM_UP + TIMED):
                query = side.vectors[number % len(side.vectors)][None]
                started = time.perf_counter()
                lowering.query(projection.unchecked(query))
                times.append(time.perf_counter() - started)
            taken[modality] = 1e6 * float(np.median(times[WARM_UP:]))
        return taken

    def curves(self, data: Sequence[PairData]) -> Iterator[Curve]:
        """Yield the learning curves of what validated best of all and, before it, of the best linear closed form.

        Validation decides which, so that the test groups have no influence on the choice.
        """
        self.clock.allow_curves()
        best = best_validated(self.fitted)
        beside = [fit for fit in self.fitted if fit.pair == best.pair and fit.method in LINEAR]
        shown = [*([best_validated(beside)] if beside and best.method not in LINEAR else []), best]
        (of_pair,) = (pair_data for pair_data in data if pair_data.pair.name == best.pair)
        for fit in shown:
            what = f"learning curve of {fit.method} on {fit.pair}"
            reason = self.clock.stopped()
            if not reason:
                self.progress(what)
                try:
                    measure = self._measure(of_pair, fit)
                    whole = fit.rows[0].hits
                    yield learning_curve(fit.pair, fit.method, of_pair.known, measure, whole, seed=self.task.seed)
                    continue
                except (FitError, _PassedError) as error:
                    reason = str(error)
                except KeyboardInterrupt:
                    self.clock.interrupted = True
                    reason = self.clock.stopped()
            self.not_run.append(NotRun(what, reason))

    def _measure(self, data: PairData, fitted: Fitted) -> Measure:
        """Fit on some groups, and see what the test groups find under the reference."""
        under = dict.fromkeys(MODALITIES, self.metrics[0])

        def measure(part: GroupedEmbeddings) -> Hits:
            if reason := self.clock.stopped():
                raise _PassedError(reason)
            task = replace(self.task, deadline=self.clock.deadline)
            fitter = Fitter(fitted.method, part, self.device, task)
            aligned = data.test.project(fitter.fit(fitted.chosen.hyperparameters))
            if fitter.interrupted:
                raise KeyboardInterrupt
            return Hits.of(aligned.ranks(under), aligned)

        return measure


class _PassedError(Exception):
    """There is no time for the rest of a curve."""


def multiply_adds(projection: Projection) -> int:
    """Multiplications and additions that projecting one vector takes: the sizes of all matrices it meets."""
    return sum(tensor.size for tensor in projection.tensors().values() if tensor.ndim == 2)
