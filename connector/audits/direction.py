"""One direction of an audit: all queries of one modality, through every stage, in the gallery, and within filters."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from alignment.modality import DIRECTIONS
from alignment.retrieval.bootstrap import Estimate, bootstrap_means, bootstrap_median
from alignment.retrieval.measures import Floats, recall
from alignment.retrieval.ranks import IntArray, group_codes
from alignment.vectors import FloatArray
from connector.audits.baseline import PerQuery
from connector.audits.galleries import Folds, QuerySet
from connector.audits.measure import Measurement, QueryOutcomes
from connector.audits.measures import MEASURES, chance_recall, find_measure, names_of
from connector.audits.reference import Truth
from connector.audits.result import DirectionResult, Fidelity, StageSummary
from connector.audits.seen_unseen import measure_seen_unseen
from connector.audits.stages import (
    REFERENCE,
    TIMED_QUERIES,
    Stage,
    StageResults,
    StageRunner,
    fidelity_tails,
    join_results,
)
from connector.audits.strata import measure_strata
from connector.audits.subject import AuditSubject
from connector.audits.worst_queries import worst_queries

if TYPE_CHECKING:
    from qdrant_client.models import Filter

# Lengths of list of the curve of Recall@K, beside those of the plan.
CURVE = (1, 2, 3, 5, 10, 20, 30, 50, 100)
EXACT = "exact search within it"
LOST = "lost"
# Part and name of a measure: ("index", "recall@10"); the part of the whole audit is "".
Place = tuple[str, str]
Results = Mapping[int, StageResults]


def measure_direction(
    subject: AuditSubject, direction: str, truth: Truth, fields: Mapping[str, Sequence[str | None]]
) -> DirectionResult:
    """Run all queries of a direction and measure what comes back.

    Args:
        subject: of the audit.
        direction: `text-to-image` or `image-to-text`.
        truth: of its queries.
        fields: the value of each payload field for each query; each value is a stratum.
    """
    modality, target = DIRECTIONS[direction]
    query_set = subject.queries[modality]
    aligned, (codes,) = subject.align(query_set.rows), group_codes(query_set.rows.groups)
    run = _DirectionRun(subject, direction, truth, query_set, subject.runner(target, truth.largest), aligned, codes)
    results = {stage.name: run.through(stage) for stage in subject.stages}
    outcomes = run.outcomes(results)
    ks, seed = subject.plan.ks, subject.plan.seed

    whole = _whole_columns(subject, outcomes)
    staged = _stage_columns(subject, outcomes, results)
    estimates = _estimates(whole | staged, codes, seed)
    measures = _whole_measures(subject, direction, outcomes, whole, estimates)
    by_stratum = {name: whole["", name] for name in names_of("stratum", ks)}
    stages = [
        *(StageSummary(direction, stage.name, stage.against, why_not=subject.why_refused) for stage in subject.refused),
        *(run.summary(stage, staged, estimates) for stage in [Stage(REFERENCE, ""), *subject.stages]),
        *(run.within_filter(name, condition) for name, condition in subject.filters.items()),
    ]
    measures += [number for stage in stages for number in stage.measures()]
    measures += measure_strata(direction, by_stratum, codes, fields, seed=seed)
    curve = [k for k in sorted({*CURVE, *ks}) if k <= max(1, int(truth.sizes.max()))]
    recalls = {("", f"recall@{k}"): recall(truth.gallery, k) for k in curve}
    kept = {place: column for place, column in (whole | staged).items() if place[1] != LOST}
    return DirectionResult(
        gallery=int(truth.sizes.sum()),
        without_relevant=int((truth.gallery.counts == 0).sum()),
        measures=measures,
        stages=stages,
        curve=dict(zip(curve, _estimates(recalls, codes, seed).values(), strict=True)),
        chance={k: chance_recall(outcomes, k) for k in curve},
        per_query=per_query(query_set, kept),
        worst=worst_queries(subject, direction, outcomes.unfiltered[ks[-1]], truth),
        seen_unseen=None if subject.plan.protocol else measure_seen_unseen(subject, direction, truth, run.runner),
    )


def per_query(query_set: QuerySet, values: Mapping[Place, Floats] | None = None) -> PerQuery:
    """Return the queries of a set with values (n,) of measures."""
    return PerQuery(query_set.rows.keys, query_set.rows.groups, query_set.rows.content_sha256, values or {})


def _whole_columns(subject: AuditSubject, outcomes: QueryOutcomes) -> dict[Place, Floats]:
    """Return what every query-by-query measure of the whole makes of each query (n,)."""
    return {
        ("", name): measure.per_query(outcomes, k or subject.plan.k)
        for measure in MEASURES.values()
        if measure.per_query is not None and subject.release.guarantee in measure.guarantees
        for name, k in measure.named(subject.plan.ks)
    }


def _stage_columns(
    subject: AuditSubject, outcomes: QueryOutcomes, results: Mapping[str, Results]
) -> dict[Place, Floats]:
    """Return recall and fidelity of each stage for each query (n,), and the recall it loses at the plan's k."""
    ks, k = subject.plan.ks, subject.plan.k
    columns = {(REFERENCE, f"recall@{each}"): recall(outcomes.truth.whole, each) for each in ks}
    for stage in subject.stages:
        own = results[stage.name]
        for each in ks:
            best = outcomes.truth.best if stage.against == REFERENCE else results[stage.against][each].best
            columns[stage.name, f"recall@{each}"] = recall(own[each].ranks, each)
            columns[stage.name, f"fidelity@{each}"] = own[each].fidelity(best, each, outcomes.tied)
        columns[stage.name, LOST] = columns[stage.against, f"recall@{k}"] - columns[stage.name, f"recall@{k}"]
    return columns


def _estimates(columns: Mapping[Place, Floats], codes: IntArray, seed: int) -> dict[Place, Estimate]:
    """Estimate the mean of each column (n,), and the lower median of ranks, all from the same draws of groups."""
    if not columns:
        return {}
    ranks = [place for place in columns if (measure := find_measure(place[1])[0]) and measure.is_rank]
    means = [place for place in columns if place not in ranks]
    matrix = np.stack([columns[place] for place in means], axis=1)
    estimates = dict(zip(means, bootstrap_means(matrix, codes, seed=seed), strict=True))
    return estimates | {place: bootstrap_median(columns[place], codes, seed=seed) for place in ranks}


def _whole_measures(
    subject: AuditSubject,
    direction: str,
    outcomes: QueryOutcomes,
    columns: Mapping[Place, Floats],
    estimates: Mapping[Place, Estimate],
) -> list[Measurement]:
    measures, n = [], len(outcomes)
    for measure in MEASURES.values():
        for name, k in measure.named(subject.plan.ks):
            if ("", name) in columns:
                e = estimates["", name]
                measures.append(Measurement(direction, name, e.value, e.low, e.high, n))
            elif measure.per_direction is not None:
                value = measure.per_direction(outcomes, k or subject.plan.k)
                measures.append(Measurement(direction, name, value, queries=n))
    return measures


@dataclass(frozen=True, slots=True)
class _DirectionRun:
    """The n queries of a direction on their way through the stages.

    Attributes:
        aligned: the queries (n, d).
        codes: their group codes (n,).
    """

    subject: AuditSubject
    direction: str
    truth: Truth
    query_set: QuerySet
    runner: StageRunner
    aligned: FloatArray
    codes: IntArray

    @property
    def timed(self) -> FloatArray:
        """The queries (m, d) that each stage is timed with."""
        shuffled = np.random.default_rng(self.subject.plan.seed).permutation(len(self.aligned))
        return self.aligned[shuffled[:TIMED_QUERIES]]

    def through(self, stage: Stage) -> dict[int, StageResults]:
        """Run all queries through a stage, over the whole collection."""
        groups, counts = self.query_set.rows.groups, self.truth.whole.counts
        return self.runner.run(stage, self.aligned, groups, counts, advance=self.subject.advance)

    def outcomes(self, results: Mapping[str, Results]) -> QueryOutcomes:
        """Return what measures are computed from, with production's search in the gallery."""
        unfiltered = results[self.subject.stages[-1].name]
        served = unfiltered if self.query_set.gallery.is_whole else self._in_gallery()
        return QueryOutcomes(served, unfiltered, self.truth, self.query_set.parts, self.runner.lowering.tied)

    def _in_gallery(self) -> dict[int, StageResults]:
        """Search as production does, within each query's part of the gallery."""
        gallery, counts = self.query_set.gallery, self.truth.gallery.counts
        parts = []
        for part in range(gallery.parts()):
            chosen = np.flatnonzero(self.query_set.parts == part)
            stage = replace(self.subject.stages[-1], condition=gallery.condition(part))
            ids = len(gallery.ids[part]) if isinstance(gallery, Folds) else 0
            groups = [self.query_set.rows.groups[row] for row in chosen]
            results = self.runner.run(
                stage, self.aligned[chosen], groups, counts[chosen], ids=ids, advance=self.subject.advance
            )
            parts.append((chosen, results))
        return {k: join_results([(chosen, own[k]) for chosen, own in parts]) for k in self.subject.plan.ks}

    def summary(
        self, stage: Stage, columns: Mapping[Place, Floats], estimates: Mapping[Place, Estimate]
    ) -> StageSummary:
        """Summarise a stage by the columns (n,) that have it as their part."""
        name, ks = stage.name, self.subject.plan.ks
        return StageSummary(
            self.direction,
            name,
            stage.against or None,
            len(self.query_set),
            int((self.truth.whole.counts == 0).sum()),
            {k: estimates[name, f"recall@{k}"] for k in ks},
            _fidelities(name, ks, columns, estimates) if stage.against else {},
            estimates.get((name, LOST)),
            self.runner.latency(stage, self.timed) if stage.against else None,
        )

    def within_filter(self, name: str, condition: "Filter") -> StageSummary:
        """Search within a filter as production does, and exactly: HNSW search may find less there."""
        target, ks, k = self.runner.target, self.subject.plan.ks, self.subject.plan.k
        pages = self.subject.pages(target, condition)
        items = Counter(record.payload["group"] for page in pages for record in page)
        if not items:
            return StageSummary(self.direction, name, EXACT, why_not=f"the filter matches no {target}")
        if self.subject.why_refused is not None:
            return StageSummary(self.direction, name, EXACT, why_not="exact search is refused")
        groups = self.query_set.rows.groups
        relevant = np.array([items[group] for group in groups], np.int64)  # (n,)
        stage = replace(self.subject.stages[-1], name=name, against=EXACT, condition=condition)
        exact, served = (
            self.runner.run(each, self.aligned, groups, relevant, advance=self.subject.advance)
            for each in (replace(stage, exact=True), stage)
        )
        tied = self.runner.lowering.tied
        shares = {(name, f"fidelity@{each}"): served[each].fidelity(exact[each].best, each, tied) for each in ks}
        has_relevant, seed = relevant > 0, self.subject.plan.seed
        recalls: dict[Place, Floats] = {}
        if has_relevant.any():
            recalls = {(name, f"recall@{each}"): recall(served[each].ranks.where(has_relevant), each) for each in ks}
            recalls[name, LOST] = recall(exact[k].ranks.where(has_relevant), k) - recalls[name, f"recall@{k}"]
        estimates = _estimates(recalls, self.codes[has_relevant], seed)
        return StageSummary(
            self.direction,
            name,
            EXACT,
            int(has_relevant.sum()),
            int((~has_relevant).sum()),
            {each: estimates[name, f"recall@{each}"] for each in ks if recalls},
            _fidelities(name, ks, shares, _estimates(shares, self.codes, seed)),
            estimates.get((name, LOST)),
            self.runner.latency(stage, self.timed),
        )


def _fidelities(
    part: str, ks: Sequence[int], columns: Mapping[Place, Floats], estimates: Mapping[Place, Estimate]
) -> dict[int, Fidelity]:
    places = {k: (part, f"fidelity@{k}") for k in ks}
    return {k: Fidelity(estimates[place], **fidelity_tails(columns[place])) for k, place in places.items()}
