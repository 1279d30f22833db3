"""Queries of one kind on their way through the stages of a search, over the whole collection and within filters."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from alignment.retrieval.bootstrap import Estimate, bootstrap_means, bootstrap_median
from alignment.retrieval.measures import Floats, recall
from alignment.retrieval.ranks import IntArray, group_codes
from alignment.sets.rows import Rows
from alignment.vectors import FloatArray
from connector.audits.baseline import PerQuery
from connector.audits.measures import find_measure
from connector.audits.reference import Truth
from connector.audits.stage_summary import Fidelity, StageSummary
from connector.audits.stages import (
    REFERENCE,
    TIMED_QUERIES,
    Stage,
    StageResults,
    StageRunner,
    fidelity_tails,
    stage_part,
)
from connector.audits.subject import AuditSubject

if TYPE_CHECKING:
    from qdrant_client.models import Filter

EXACT = "exact search within it"
LOST = "lost"
# Part and name of a measure: ("index", "recall@10"); the part of the whole audit is "".
MeasureKey = tuple[str, str]
Results = Mapping[int, StageResults]
Columns = Mapping[MeasureKey, Floats]


@dataclass(frozen=True)
class QueryRun:
    """The n queries of a direction, those of the audit or those about items of one kind.

    Attributes:
        truth: of these queries.
        aligned: the queries (n, d).
        kind: of the items that they are about; "" of the audit's own queries.
    """

    subject: AuditSubject
    direction: str
    rows: Rows
    truth: Truth
    runner: StageRunner
    aligned: FloatArray
    kind: str = ""

    @cached_property
    def codes(self) -> IntArray:
        """The group codes of the queries (n,)."""
        return group_codes(self.rows.groups)[0]

    def take(self, chosen: IntArray) -> "QueryRun":
        """Keep the queries with these numbers, ascending."""
        mask = np.isin(np.arange(len(self.rows)), chosen)
        return replace(
            self, rows=self.rows.take(chosen.tolist()), truth=self.truth.where(mask), aligned=self.aligned[chosen]
        )

    def through(self, stage: Stage) -> dict[int, StageResults]:
        """Run all queries through a stage, over the whole collection."""
        counts = self.truth.whole.counts
        return self.runner.run(stage, self.aligned, self.rows.groups, counts, advance=self.subject.advance)

    def estimates(self, columns: Columns) -> dict[MeasureKey, Estimate]:
        """Estimate the mean of each column (n,), and the lower median of ranks, all from the same draws of groups."""
        return estimates_of(columns, self.codes, self.subject.plan.seed)

    def per_query(self, values: Columns) -> PerQuery:
        """Return the queries with values (n,) of measures, but for what they lose, which is of no later use."""
        kept = {place: column for place, column in values.items() if place[1] != LOST}
        return PerQuery.of(self.rows, kept)

    def columns(self, results: Mapping[str, Results]) -> dict[MeasureKey, Floats]:
        """Return recall and fidelity of each stage for each query (n,), and the recall it loses at the plan's k.

        Args:
            results: of each stage, by its name.
        """
        ks, k, tied = self.subject.plan.ks, self.subject.plan.k, self.runner.lowering.tied
        columns = {(self._part(REFERENCE), f"recall@{each}"): recall(self.truth.whole, each) for each in ks}
        for stage in self.subject.stages:
            own, part = results[stage.name], self._part(stage.name)
            for each in ks:
                best = self.truth.best if stage.against == REFERENCE else results[stage.against][each].best
                columns[part, f"recall@{each}"] = recall(own[each].ranks, each)
                columns[part, f"fidelity@{each}"] = own[each].fidelity(best, each, tied)
            before = columns[self._part(stage.against), f"recall@{k}"]
            columns[part, LOST] = before - columns[part, f"recall@{k}"]
        return columns

    def summaries(self, columns: Columns, estimates: Mapping[MeasureKey, Estimate]) -> Iterator[StageSummary]:
        """Summarise the reference, every stage that was searched, and every filter, by the columns of all queries."""
        for stage in [Stage(REFERENCE, ""), *self.subject.stages]:
            yield self._summary(stage, columns, estimates)
        for name, condition in self.subject.filters.items():
            yield self._within_filter(name, condition)

    def _part(self, stage: str) -> str:
        return stage_part(stage, self.kind)

    def _summary(self, stage: Stage, columns: Columns, estimates: Mapping[MeasureKey, Estimate]) -> StageSummary:
        part, ks = self._part(stage.name), self.subject.plan.ks
        return StageSummary(
            self.direction,
            stage.name,
            stage.against or None,
            len(self.rows),
            int((self.truth.whole.counts == 0).sum()),
            {k: estimates[part, f"recall@{k}"] for k in ks},
            _fidelities(part, ks, columns, estimates) if stage.against else {},
            estimates.get((part, LOST)),
            self.runner.latency(stage, self._timed) if stage.against else None,
            kind=self.kind,
        )

    @property
    def _timed(self) -> FloatArray:
        """The queries (m, d) that each stage is timed with."""
        shuffled = np.random.default_rng(self.subject.plan.seed).permutation(len(self.aligned))
        return self.aligned[shuffled[:TIMED_QUERIES]]

    def _within_filter(self, name: str, condition: "Filter") -> StageSummary:
        """Search within a filter as production does, and exactly: HNSW search may find less there."""
        target, ks, k = self.runner.target, self.subject.plan.ks, self.subject.plan.k
        pages = self.subject.pages(target, condition)
        items = Counter(record.payload["group"] for page in pages for record in page)
        unmeasured = StageSummary(self.direction, name, EXACT, kind=self.kind)
        if not items:
            return replace(unmeasured, why_not=f"the filter matches no {target}")
        if self.subject.why_refused is not None:
            return replace(unmeasured, why_not="exact search is refused")
        groups, part = self.rows.groups, self._part(name)
        relevant = np.array([items[group] for group in groups], np.int64)  # (n,)
        stage = replace(self.subject.stages[-1], name=name, against=EXACT, condition=condition)
        exact, served = (
            self.runner.run(each, self.aligned, groups, relevant, advance=self.subject.advance)
            for each in (replace(stage, exact=True), stage)
        )
        tied = self.runner.lowering.tied
        shares = {(part, f"fidelity@{each}"): served[each].fidelity(exact[each].best, each, tied) for each in ks}
        has_relevant, seed = relevant > 0, self.subject.plan.seed
        recalls: dict[MeasureKey, Floats] = {}
        if has_relevant.any():
            recalls = {(part, f"recall@{each}"): recall(served[each].ranks.where(has_relevant), each) for each in ks}
            recalls[part, LOST] = recall(exact[k].ranks.where(has_relevant), k) - recalls[part, f"recall@{k}"]
        estimates = estimates_of(recalls, self.codes[has_relevant], seed)
        return StageSummary(
            self.direction,
            name,
            EXACT,
            int(has_relevant.sum()),
            int((~has_relevant).sum()),
            {each: estimates[part, f"recall@{each}"] for each in ks if recalls},
            _fidelities(part, ks, shares, self.estimates(shares)),
            estimates.get((part, LOST)),
            self.runner.latency(stage, self._timed),
            kind=self.kind,
        )


def estimates_of(columns: Columns, codes: IntArray, seed: int) -> dict[MeasureKey, Estimate]:
    """Estimate the mean of each column (n,), and the lower median of ranks, all from the same draws of groups.

    Args:
        columns: values by part and name.
        codes: of the queries' groups (n,).
        seed: of the bootstrap.
    """
    if not columns:
        return {}
    ranks = [place for place in columns if (measure := find_measure(place[1])[0]) and measure.is_rank]
    means = [place for place in columns if place not in ranks]
    matrix = np.stack([columns[place] for place in means], axis=1)
    estimates = dict(zip(means, bootstrap_means(matrix, codes, seed=seed), strict=True))
    return estimates | {place: bootstrap_median(columns[place], codes, seed=seed) for place in ranks}


def _fidelities(
    part: str, ks: Sequence[int], columns: Columns, estimates: Mapping[MeasureKey, Estimate]
) -> dict[int, Fidelity]:
    places = {k: (part, f"fidelity@{k}") for k in ks}
    return {k: Fidelity(estimates[place], **fidelity_tails(columns[place])) for k, place in places.items()}
