"""Encoder pairs × methods × metrics on one's own data: what each finds, costs and leaves apart.

All are asked with the same held-out groups, which take part in nothing else: hyperparameters are chosen by
cross-validation on the training groups. `alignment.comparison.guidelines` says in words what the table bears.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment import device as devices
from alignment.comparison.learning_curve import Curve, Measure, learning_curve
from alignment.comparison.paired_bootstrap import Floats, Hits, estimate
from alignment.errors import FitError, MetricError, WeightsError
from alignment.fitting.cross_validation import Candidate, best_of, cross_validate
from alignment.fitting.fit import check_directions, common_encoders, fit_metrics, split_rows
from alignment.fitting.methods import METHODS, FitSpec, Fitter, Projections, candidates, fewest_groups
from alignment.geometry.modality_gap import Gap, modality_gap
from alignment.metrics import Cosine, LearnedMetric, Metric, Nnn, Rescored, parse
from alignment.modality import DIRECTIONS, MODALITIES, Modality
from alignment.model.projections import Projection
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import KS, chance_recall_at
from alignment.sets.cards import EncoderCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows

if TYPE_CHECKING:
    import torch

# One of each kind: native, a distance by coordinates, divergences, a corrected and a learned one.
METRICS = tuple(parse(name) for name in ("cosine", "manhattan", "chi2", "kl-query-item", "dot+nnn", "bilinear"))
LINEAR = ("procrustes", "ridge", "rcca")
COLUMNS = (*DIRECTIONS, "mean")
# More held-out groups than this sharpen an interval less than they take time.
TEST_GROUPS = 2_000
# Share of the budget for the table; the rest is kept for the learning curves.
FOR_THE_TABLE = 0.8
DOES_NOT_APPLY = "does not apply"
# Queries that are timed, after some that warm up.
TIMED, WARM_UP = 25, 3

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EncoderPair:
    """Two encoders that some of the sets have in common.

    Attributes:
        name: specs of the image and the text encoder.
        sets: fingerprints of the sets that were joined.
        training_pairs: pairs in the training groups.
        left_out: groups that another encoder pair does not have.
        chance: Recall@K of a random order by K, mean of both directions.
    """

    name: str
    encoders: Mapping[Modality, EncoderCard]
    sets: list[str]
    training_pairs: int
    left_out: int
    chance: dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """A fitted method under one metric.

    Attributes:
        recalls: by direction, or `mean` of both, and by name such as `recall@10`; on the test groups.
        learn_seconds: what fitting the metric took; 0 where it has nothing to learn.
        query_microseconds: to project and lower one query of a modality, median.
        stored_floats: numbers that are stored for an item.
        guarantee: of the lowering, see `Guarantee`.
        hits: what the recalls were added up from.
        samples: Recall@10, mean of both directions, of groups drawn anew (b,).
    """

    metric: str
    recalls: dict[str, dict[str, Estimate]]
    learn_seconds: float
    query_microseconds: dict[Modality, float]
    stored_floats: int
    guarantee: str
    hits: Hits = field(repr=False)
    samples: Floats = field(repr=False)

    @property
    def recall(self) -> Estimate:
        """Recall@10, mean of both directions."""
        return self.recalls["mean"]["recall@10"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A method with its chosen hyperparameters, fitted on the training groups of an encoder pair.

    Attributes:
        chosen: how it validated; with fewer folds than were asked for, the budget cut the search short.
        candidates: how many took part.
        choice_seconds, fit_seconds: what the cross-validation and then the fit took.
        multiply_adds: to project one query of a modality.
        dim: of the shared space.
        gap: of the aligned test groups; None of too few.
    """

    pair: str
    method: str
    chosen: Candidate
    candidates: int
    choice_seconds: float
    fit_seconds: float
    multiply_adds: dict[Modality, int]
    dim: int
    gap: Gap | None
    rows: list[Row]

    def row(self, metric: str) -> Row | None:
        """The row of a metric, if it was run."""
        return next((row for row in self.rows if row.metric == metric), None)


@dataclass(frozen=True, slots=True)
class NotRun:
    """What is missing from the table, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The table and the learning curves.

    Attributes:
        reference: the metric that hyperparameters were chosen and methods are compared under.
        metrics: those that were asked for, and the reference.
        settings: what it was made with.
        training_groups, test_groups: the same for all encoder pairs.
        not_run: what was asked for, or would have been entered, and is not in the table.
    """

    pairs: list[EncoderPair]
    reference: str
    metrics: list[str]
    settings: dict[str, Any]
    training_groups: int
    test_groups: int
    fitted: list[Fitted]
    curves: list[Curve]
    not_run: list[NotRun]
    seconds: float

    def by_pair(self, pair: str) -> list[Fitted]:
        """What was fitted on an encoder pair."""
        return [fitted for fitted in self.fitted if fitted.pair == pair]


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
            which then stands in the table too.
        hold_out: groups to ask with and search among, at most `TEST_GROUPS`.
        folds: of the cross-validation within the training groups.
        seed: of folds, subsamples and intervals.
        device: where methods are fitted.
        budget: seconds after which nothing more is begun, a fifth of them for the learning curves. All encoder pairs
            have a method before the next, dearer method has any. Ctrl-C is a budget that passes.
        progress: called with a line at each step.

    Raises:
        FitError: an unknown method, unusable vectors, no groups in common, too few groups, or nothing that applies.
    """
    started = time.monotonic()
    if unknown := [name for name in methods if name not in METHODS]:
        raise FitError(f"unknown method {unknown[0]!r}; expected some of {', '.join(METHODS)}")
    data = list(_encoder_pairs(sets, hold_out, seed))
    groups, tested = len(data[0].known.groups), len(data[0].test.groups)
    progress(f"{len(data)} encoder pairs, {groups} groups to fit on, {tested} held out to ask with")
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
        for each in data:
            bench.fit(each, name)
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
        [each.pair for each in data],
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


@dataclass(frozen=True, slots=True)
class _Data:
    """An encoder pair with its training and its test groups, which have the same codes in every pair."""

    pair: EncoderPair
    known: GroupedEmbeddings
    test: GroupedEmbeddings


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
    """Fits and measures, and keeps a list of what it did not."""

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

    def fit(self, data: _Data, method: str) -> None:
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

    def _fit(self, data: _Data, method: str) -> Fitted:
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
        self, data: _Data, made: Fitted, projections: Projections, aligned: GroupedEmbeddings, metric: Metric
    ) -> Row | None:
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

    def _measured(self, data: _Data, projections: Projections, aligned: GroupedEmbeddings, metric: Metric) -> Row:
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
        return Row(
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
        self, data: _Data, projections: Projections, bound: Mapping[Modality, Metric]
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

    def curves(self, data: Sequence[_Data]) -> Iterator[Curve]:
        """Yield the learning curves of what validated best of all and, before it, of the best linear closed form.

        Validation decides, so that the test groups have no part in what is shown.
        """
        self.clock.allow_curves()
        best = best_validated(self.fitted)
        beside = [each for each in self.fitted if each.pair == best.pair and each.method in LINEAR]
        drawn = [*([best_validated(beside)] if beside and best.method not in LINEAR else []), best]
        (of_pair,) = (each for each in data if each.pair.name == best.pair)
        for each in drawn:
            what = f"learning curve of {each.method} on {each.pair}"
            reason = self.clock.stopped()
            if not reason:
                self.progress(what)
                try:
                    measure = self._measure(of_pair, each)
                    whole = each.rows[0].hits
                    yield learning_curve(each.pair, each.method, of_pair.known, measure, whole, seed=self.task.seed)
                    continue
                except (FitError, _PassedError) as error:
                    reason = str(error)
                except KeyboardInterrupt:
                    self.clock.interrupted = True
                    reason = self.clock.stopped()
            self.not_run.append(NotRun(what, reason))

    def _measure(self, data: _Data, fitted: Fitted) -> Measure:
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


def best_validated(fitted: Sequence[Fitted]) -> Fitted:
    """What validated best, of those that were validated on the most folds."""
    return max(fitted, key=lambda each: (each.chosen.folds, each.chosen.score))


def multiply_adds(projection: Projection) -> int:
    """Multiplications and additions that projecting one vector takes: the sizes of all matrices it meets."""
    return sum(tensor.size for tensor in projection.tensors().values() if tensor.ndim == 2)


def _encoder_pairs(sets: Sequence[EmbeddingSet], hold_out: HoldOut, seed: int) -> Iterator[_Data]:
    """Join sets of the same encoders, and split all on the groups that they have in common."""
    by_encoders: dict[Any, list[EmbeddingSet]] = {}
    for embedding_set in sets:
        key = tuple(embedding_set.card.encoders.get(modality) for modality in MODALITIES)
        by_encoders.setdefault(key, []).append(embedding_set)
    cards = [common_encoders(joined) for joined in by_encoders.values()] or [common_encoders([])]
    loaded = [
        {m: Rows.concatenate([each.load(m) for each in joined]) for m in MODALITIES} for joined in by_encoders.values()
    ]
    whole = [set(rows["image"].groups) & set(rows["text"].groups) for rows in loaded]
    common = set.intersection(*whole)
    if len(loaded) > 1 and not common:
        raise FitError(
            f"{len(loaded)} encoder pairs are compared on the groups that all of them have, and there are none; encode "
            "the same corpus with each, and give items that describe the same thing the same group"
        )
    for encoders, joined, rows, groups in zip(cards, by_encoders.values(), loaded, whole, strict=True):
        shared = {
            m: side.take(row for row, group in enumerate(side.groups) if group in common) for m, side in rows.items()
        }
        known, test, _unpaired = split_rows(shared, hold_out)
        check_directions(known)
        asked = np.random.default_rng(seed).permutation(test.groups)[:TEST_GROUPS]
        test = test.only(asked)
        name = _name(encoders, cards)
        fingerprints = [each.card.fingerprint for each in joined]
        pairs = len(known.pairs()[0])
        yield _Data(EncoderPair(name, encoders, fingerprints, pairs, len(groups - common), _chance(test)), known, test)


def _name(encoders: Mapping[Modality, EncoderCard], all_of_them: Sequence[Mapping[Modality, EncoderCard]]) -> str:
    """Specs of both encoders, and fingerprints where two pairs have the same specs."""
    specs = [tuple(each[m].spec for m in MODALITIES) for each in all_of_them]
    own = tuple(encoders[m].spec for m in MODALITIES)
    if specs.count(own) == 1:
        return " + ".join(own)
    return " + ".join(f"{encoders[m].spec} ({encoders[m].fingerprint[:8]})" for m in MODALITIES)


def _chance(test: GroupedEmbeddings) -> dict[str, float]:
    chances = {}
    for k in KS:
        both = []
        for queries, items in ((test.text, test.image), (test.image, test.text)):
            relevant = np.bincount(np.searchsorted(test.groups, items.groups), minlength=len(test.groups))
            both.append(chance_recall_at(k, relevant[np.searchsorted(test.groups, queries.groups)], len(items.vectors)))
        chances[f"recall@{k}"] = float(np.mean(both))
    return chances
