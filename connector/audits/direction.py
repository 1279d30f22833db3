"""One direction of an audit: all queries of one modality, through every stage, in the gallery, and within filters."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from alignment.modality import DIRECTIONS
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.measures import Floats, recall
from connector.audits.galleries import BenchmarkFolds, QuerySet
from connector.audits.measure import Measurement, QueryOutcomes
from connector.audits.measures import MEASURES, chance_recall, names_of
from connector.audits.query_run import MeasureKey, QueryRun, Results
from connector.audits.reference import Truth
from connector.audits.result import DirectionResult
from connector.audits.seen_unseen import measure_seen_unseen
from connector.audits.stage_summary import StageSummary
from connector.audits.stages import StageResults, join_results
from connector.audits.strata import measure_strata
from connector.audits.subject import AuditSubject
from connector.audits.worst_queries import worst_queries

# Lengths of list of the curve of Recall@K, beside those of the plan.
CURVE = (1, 2, 3, 5, 10, 20, 30, 50, 100)


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
    query_set, runner = subject.queries[modality], subject.runner(target, truth.largest)
    run = QueryRun(subject, direction, query_set.rows, truth, runner, subject.align(query_set.rows))
    results = {stage.name: run.through(stage) for stage in subject.stages}
    outcomes = _outcomes(run, query_set, results[subject.stages[-1].name])
    ks, seed = subject.plan.ks, subject.plan.seed

    whole, staged = _whole_columns(subject, outcomes), run.columns(results)
    estimates = run.estimates(whole | staged)
    measures = _whole_measures(subject, direction, outcomes, whole, estimates)
    by_stratum = {name: whole["", name] for name in names_of("stratum", ks)}
    stages = [
        *(StageSummary(direction, stage.name, stage.against, why_not=subject.why_refused) for stage in subject.refused),
        *run.summaries(staged, estimates),
    ]
    measures += [number for stage in stages for number in stage.measures()]
    measures += measure_strata(direction, by_stratum, run.codes, fields, seed=seed)
    curve = [k for k in sorted({*CURVE, *ks}) if k <= max(1, int(truth.sizes.max()))]
    recalls = {("", f"recall@{k}"): recall(truth.gallery, k) for k in curve}
    return DirectionResult(
        gallery=int(truth.sizes.sum()),
        without_relevant=int((truth.gallery.counts == 0).sum()),
        measures=measures,
        stages=stages,
        curve=dict(zip(curve, run.estimates(recalls).values(), strict=True)),
        chance={k: chance_recall(outcomes, k) for k in curve},
        per_query=run.per_query(whole | staged),
        worst=worst_queries(subject, direction, outcomes.unfiltered[ks[-1]], truth),
        seen_unseen=None if subject.plan.protocol else measure_seen_unseen(subject, direction, truth.census, runner),
    )


def _whole_columns(subject: AuditSubject, outcomes: QueryOutcomes) -> dict[MeasureKey, Floats]:
    """Return what every query-by-query measure of the whole makes of each query (n,)."""
    return {
        ("", name): measure.per_query(outcomes, k or subject.plan.k)
        for measure in MEASURES.values()
        if measure.per_query is not None and subject.release.guarantee in measure.guarantees
        for name, k in measure.named(subject.plan.ks)
    }


def _whole_measures(
    subject: AuditSubject,
    direction: str,
    outcomes: QueryOutcomes,
    columns: Mapping[MeasureKey, Floats],
    estimates: Mapping[MeasureKey, Estimate],
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


def _outcomes(run: QueryRun, query_set: QuerySet, unfiltered: Results) -> QueryOutcomes:
    """Return what measures are computed from, with production's search in the gallery."""
    served = unfiltered if query_set.gallery.is_whole else _in_gallery(run, query_set)
    return QueryOutcomes(served, unfiltered, run.truth, query_set.parts, run.runner.lowering.tied)


def _in_gallery(run: QueryRun, query_set: QuerySet) -> dict[int, StageResults]:
    """Search as production does, within each query's part of the gallery."""
    gallery, counts, subject, parts = query_set.gallery, run.truth.gallery.counts, run.subject, []
    for part in range(gallery.parts()):
        chosen = np.flatnonzero(query_set.parts == part)
        stage = replace(subject.stages[-1], condition=gallery.condition(part))
        ids = len(gallery.ids[part]) if isinstance(gallery, BenchmarkFolds) else 0
        groups = [query_set.rows.groups[row] for row in chosen]
        results = run.runner.run(stage, run.aligned[chosen], groups, counts[chosen], ids=ids, advance=subject.advance)
        parts.append((chosen, results))
    return {k: join_results([(chosen, own[k]) for chosen, own in parts]) for k in subject.plan.ks}
