"""Compare encoder pairs × methods × metrics on your own data: recall, cost and modality gap of each.

All are measured on the same held-out groups, which are used for nothing else: among themselves, and in one collection
with the training groups. Hyperparameters and offsets are chosen by cross-validation on the training groups.
`alignment.comparison.guidelines` puts the table into words.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment import device as devices
from alignment.comparison.encoder_pairs import PairData, encoder_pairs
from alignment.comparison.fitted_pair import FittedPair
from alignment.comparison.learning_curve import Curve, Measure, learning_curve
from alignment.comparison.paired_bootstrap import Hits, estimate
from alignment.comparison.table import Comparison, Fitted, MetricRow, NotRun, best_on_new_items, best_validated
from alignment.comparison.whole_collection import WholeCollection, hits_of
from alignment.errors import FitError, MetricError, WeightsError
from alignment.fitting.cross_validation import best_of, cross_validate
from alignment.fitting.fit import check_folds_for_offset, check_offset, fit_metrics, say_if_few, that_carry_offsets
from alignment.fitting.methods import METHODS, FitSpec, Fitter, Projections, candidates, fewest_groups
from alignment.fitting.seen_offsets import GapSample
from alignment.fitting.seen_unseen import SeenUnseen
from alignment.geometry.modality_gap import modality_gap
from alignment.metrics import Cosine, LearnedMetric, Metric, Nnn, Rescored, parse
from alignment.modality import DIRECTIONS, MODALITIES, Modality
from alignment.model.projections import Projection
from alignment.names import COMPARED_METRICS
from alignment.plurals import counted
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
    seen_offset: float | None = None,
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
        seen_offset: what is taken off the scores of items of the fit, as a share of the gap between pairs inside and
            outside of it, in [0, 1]; None: the best by cross-validation, for each method.
        progress: called with a line at each step.

    Raises:
        FitError: an unknown method, unusable vectors, no groups in common, too few groups, an offset that cannot be
            estimated, or nothing that applies.
    """
    started = time.monotonic()
    _check_options(methods, seen_offset)
    data = list(encoder_pairs(sets, hold_out, seed))
    groups, tested = len(data[0].known.groups), len(data[0].test.groups)
    progress(
        f"{counted(len(data), 'encoder pair')}, {counted(groups, 'group')} to fit on, {tested} held out for queries"
    )
    say_if_few(tested, progress)
    check_folds_for_offset(seen_offset, groups // max(1, folds), progress)
    clock = _Clock(budget)
    measured = _reference_first(metrics)
    that_carry_offsets(measured, seen_offset, progress)
    spec = FitSpec(measured[:1], seed=seed, deadline=clock.deadline, seen_offset=seen_offset)
    bench = _Bench(measured, spec, folds, devices.resolve(device), clock, progress)
    entered = list(dict.fromkeys(methods)) or [name for name in METHODS if groups >= fewest_groups(name)]
    bench.fit_all(data, entered)
    if not methods:
        bench.not_run += [_too_few_groups(name) for name in METHODS if name not in entered]
    curves = list(bench.curves(data))
    settings = {
        "methods": entered,
        "hold_out": {"fraction": hold_out.fraction, "seed": hold_out.seed},
        "folds": folds,
        "seed": seed,
        "device": str(bench.device),
        "budget": budget,
        "seen_offset": "auto" if seen_offset is None else seen_offset,
    }
    return Comparison(
        [pair_data.pair for pair_data in data],
        str(measured[0]),
        [str(metric) for metric in bench.metrics],
        settings,
        groups,
        tested,
        bench.fitted,
        curves,
        bench.not_run,
        time.monotonic() - started,
    )


def _check_options(methods: Sequence[str], seen_offset: float | None) -> None:
    """Refuse what is invalid whatever the data is, before anything takes time."""
    if unknown := [name for name in methods if name not in METHODS]:
        raise FitError(f"unknown method {unknown[0]!r}; expected some of {', '.join(METHODS)}")
    check_offset(seen_offset)


def _reference_first(metrics: Sequence[Metric]) -> list[Metric]:
    """Return each metric once, the first that has nothing to learn before the others; without any, cosine."""
    reference = next((m for m in metrics if not isinstance(m, LearnedMetric | Nnn)), Cosine())
    return [reference, *(metric for metric in dict.fromkeys(metrics) if metric != reference)]


def _too_few_groups(method: str) -> NotRun:
    return NotRun(method, f"enters from {fewest_groups(method):,} groups on, or with --method {method}")


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

    def fit_all(self, data: Sequence[PairData], methods: Sequence[str]) -> None:
        """Fit each method for all encoder pairs before the next, more expensive one.

        Raises:
            FitError: nothing could be fitted.
        """
        for method in methods:
            for pair_data in data:
                self.fit(pair_data, method)
        if not self.fitted:
            raise FitError(f"nothing could be fitted: {self.not_run[-1].what}: {self.not_run[-1].reason}")

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
            data.known,
            [method],
            self.task,
            folds=self.folds,
            device=self.device,
            budget=self.clock.left(),
            progress=self.progress,
        )
        chosen = best_of(scores)
        if chosen.folds < self.folds and not self.clock.stopped():  # then it was Ctrl-C that cut the search short
            self.clock.interrupted = True
        decided = time.monotonic()
        fitter = Fitter(method, data.known, self.device, self.task)
        projections = fitter.fit(chosen.hyperparameters)
        self.clock.interrupted |= fitter.interrupted
        fitted = time.monotonic()
        sample = GapSample.drawn(chosen, data.known, projections, self.folds, self.device, self.task)
        self.clock.interrupted |= sample is not None and sample.interrupted
        settled = time.monotonic()
        aligned = data.test.project(projections)
        measured = FittedPair(data, projections, aligned, data.whole.data.project(projections), sample)
        reference = {modality: self.metrics[0].bind({}, modality, str(self.device)) for modality in MODALITIES}
        made = Fitted(
            data.pair.name,
            method,
            chosen,
            len(scores),
            (decided - started) + (settled - fitted),
            fitted - decided,
            {m: multiply_adds(p) for m, p in zip(MODALITIES, projections, strict=True)},
            projections[0].out_dim,
            modality_gap(aligned, seed=self.task.seed),
            [],
            measured.by_way(reference, seed=self.task.seed),
        )
        for metric in self.metrics:
            if row := self._row(measured, made, metric):
                made.rows.append(row)
        return made

    def _row(self, measured: FittedPair, made: Fitted, metric: Metric) -> MetricRow | None:
        """Measure one metric; None, and said, where it cannot be. The first is measured whatever the clock says."""
        reason = self.clock.stopped() if made.rows else ""
        if not reason:
            try:
                return self._measured(measured, made, metric)
            except (FitError, MetricError, WeightsError) as error:
                reason = str(error)
            except KeyboardInterrupt:
                self.clock.interrupted = True
                if not made.rows:
                    raise
                reason = self.clock.stopped()
        self.not_run.append(NotRun(f"{metric} after {made.method} on {made.pair}", reason))
        return None

    def _measured(self, measured: FittedPair, made: Fitted, metric: Metric) -> MetricRow:
        started = time.monotonic()
        data, projections, aligned = measured.data, measured.projections, measured.aligned
        weights: dict[str, Any] = {}
        if isinstance(metric, LearnedMetric | Nnn):
            known = data.known.project(projections).sound()
            weights = fit_metrics([metric], known, task=self.task, device=self.device)
        learned = time.monotonic() - started if weights else 0.0
        bound = {modality: metric.bind(weights, modality, str(self.device)) for modality in MODALITIES}
        hits = Hits.of(aligned.ranks(bound), (aligned.text.groups, aligned.image.groups), aligned.groups)
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
            self._whole(measured, made, metric, bound),
        )

    def _whole(
        self, measured: FittedPair, made: Fitted, metric: Metric, bound: Mapping[Modality, Metric]
    ) -> WholeCollection | None:
        """Measure the whole collection under the reference, which comes first, and under metrics that cost little."""
        is_reference = not made.rows
        if is_reference or measured.is_cheap(bound["image"]):
            return measured.collection(bound, seed=self.task.seed, with_curves=is_reference)
        what = f"the whole collection under {metric} after {made.method} on {made.pair}"
        self.not_run.append(NotRun(what, "its pairs of queries and items are too many for so costly a metric"))
        return None

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
        """Yield the learning curves of what validated best and, before it, of the best linear closed form.

        Validation decides which, so that the test groups have no influence on the choice.
        """
        self.clock.allow_curves()
        pair = best_on_new_items(self.fitted).pair
        best = best_validated([fit for fit in self.fitted if fit.pair == pair])
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
                    whole = fit.whole.hits.unseen
                    yield learning_curve(fit.pair, fit.method, of_pair.known, measure, whole, seed=self.task.seed)
                    continue
                except (FitError, _PassedError) as error:
                    reason = str(error)
                except KeyboardInterrupt:
                    self.clock.interrupted = True
                    reason = self.clock.stopped()
            self.not_run.append(NotRun(what, reason))

    def _measure(self, data: PairData, fitted: Fitted) -> Measure:
        """Fit on some groups, and see which test groups the collection of all groups finds under the reference.

        The groups that are left out say how large the gap is, so that no test group has a say in the offset.
        """
        under = [self.metrics[0]] * len(DIRECTIONS)
        seed, test = self.task.seed, data.test.groups
        known = np.setdiff1d(data.whole.data.groups, test)

        def measure(part: GroupedEmbeddings) -> Hits:
            if reason := self.clock.stopped():
                raise _PassedError(reason)
            task = replace(self.task, deadline=self.clock.deadline)
            fitter = Fitter(fitted.method, part, self.device, task)
            projections = fitter.fit(fitted.chosen.hyperparameters)
            if fitter.interrupted:
                raise KeyboardInterrupt
            others = SeenUnseen(data.known, np.setdiff1d(data.known.groups, part.groups))
            gaps = others.gaps(data.known.project(projections), under)
            targets = [target for _, target in DIRECTIONS.values()]
            offsets = {t: fitted.chosen.shares[t] * gap for t, gap in zip(targets, gaps, strict=True)}
            both = SeenUnseen(data.whole.data, np.setdiff1d(data.whole.data.groups, part.groups))
            aligned = data.whole.data.project(projections)
            scored = both.scores(projections, aligned, under, seed=seed, asked=test)
            return hits_of(scored, offsets, known, test).unseen

        return measure


class _PassedError(Exception):
    """There is no time for the rest of a curve."""


def multiply_adds(projection: Projection) -> int:
    """Multiplications and additions that projecting one vector takes: the sizes of all matrices it meets."""
    return sum(tensor.size for tensor in projection.tensors().values() if tensor.ndim == 2)
