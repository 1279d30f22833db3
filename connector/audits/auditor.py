"""Audits of a release, through its store, against the labels of held-out pairs. Nothing in the store is changed.

Every query goes through the stages of a search over the whole collection, so that what is lost shows where it is lost,
and through the gallery that the alignment's card speaks of, for a Recall@K that compares with it. A query without any
relevant item counts as a miss. Among equal scores the irrelevant item stands first: ties never flatter.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alignment.geometry.geometry import skewness
from alignment.metrics import Guarantee
from alignment.modality import DIRECTIONS, Modality
from alignment.retrieval.bootstrap import Estimate, bootstrap_means, bootstrap_median
from alignment.retrieval.measures import Measure as Kind
from alignment.retrieval.ranks import IntArray, chance_recall_at, group_codes
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.vectors import FloatArray
from connector.audits.baseline import Baseline, PerQuery, Values, drifts
from connector.audits.collection_checks import collection_warnings, too_few
from connector.audits.galleries import Folds, QuerySet, lay_out
from connector.audits.geometry import GAP_MEASURES, Drawn, draw, measure_space
from connector.audits.plan import BOTH, LONGEST, AuditPlan, Measure
from connector.audits.reference import Truth, truth
from connector.audits.requirements import Requirement, check_known, failures
from connector.audits.result import Audit, Fidelity, Point, StageFound, WorstQuery
from connector.audits.stages import (
    FILTER,
    INDEX,
    REFERENCE,
    TIMED_QUERIES,
    ExactRefusedError,
    RateLimiter,
    Stage,
    StageResults,
    StageRunner,
    joined,
    stages,
)
from connector.audits.strata import Strata, measured, strata, stratum
from connector.errors import MismatchError, SettingsError, StrangePointError
from connector.progress import Advance
from connector.releases.chain import check_encoder
from connector.releases.points import point_id
from connector.releases.release import Release
from connector.search.candidates import CandidateSearch
from connector.stores.contract import Record, Store
from connector.stores.filters import parse_filter

if TYPE_CHECKING:
    from qdrant_client.models import Filter

PROVABLE = (Guarantee.CERTIFIED, Guarantee.BOUNDED)
CERTIFIED = "certified"
CURVE = (1, 2, 3, 5, 10, 20, 30, 50, 100)
WORST_QUERIES, WORST_HITS, WORST_EXPECTED = 6, 5, 3
TAIL = ("p5", "least", "below90")
LATENCIES = ("latency.p50", "latency.p95", "latency.p99")
EXACT = "exact search within it"
REFERENCE_STAGE = Stage(REFERENCE, "")
# Part and name of a measure. What a stage loses is none: it is told with the stage.
Place = tuple[str, str]
MEDIAN: Place = ("", "median_rank")
LOST = "lost"


def audit(
    release: Release,
    store: Store,
    embedding_set: EmbeddingSet,
    plan: AuditPlan,
    *,
    pairs: str,
    requirements: Sequence[Requirement] = (),
    before: Baseline | None = None,
    advance: Advance = lambda count: None,
) -> Audit:
    """Audit `release` with the labelled pairs of `embedding_set`.

    Args:
        release: an open release.
        store: where it is.
        embedding_set: pairs, encoded with the encoders of the release.
        plan: how to ask.
        pairs: name of the set.
        requirements: what the measures have to meet.
        before: the audit that drops are measured from.
        advance: called with the number of queries done since, each in each stage.

    Raises:
        MismatchError: the set was encoded with other encoders, holds nothing to query with, or none of its pairs is
            in the gallery.
        StrangePointError: the collection holds what modalign did not write.
        RequirementError: a requirement names no measure.
        FilterError: a filter that is not valid.
        SettingsError: a payload field that no query has.
        MeasureError: the set is not of the protocol's shape.
    """
    for modality, card in embedding_set.card.encoders.items():
        check_encoder(release.alignment, modality, card, f"embedding set {embedding_set.path}")
    result = Audit(release.row, plan, pairs, release=release, required=bool(requirements))
    result.info = store.describe(release.name)
    filters = {FILTER + name: parse_filter(text, what=f"filter {name}") for name, text in plan.filters.items()}
    laid_out = lay_out(release, embedding_set, plan)
    result.findings += laid_out.notes
    asked, drawn = laid_out.asked, draw(embedding_set, laid_out.groups, seed=plan.seed)
    apart = strata(asked, plan)
    search = stages(release.guarantee, quantized=result.info.quantization is not None)
    known = list(_known(plan, release, search, filters, apart))
    if len(set(known)) < len(known):
        part = next(part for (_, part, _), times in Counter(known).items() if times > 1)
        raise SettingsError(f"two parts of this audit would be called {part!r}; audit one field or filter at a time")
    check_known(requirements, known, before)
    if before is not None:
        now = {direction: _per_query(asked[asking]) for direction, (asking, _) in DIRECTIONS.items()}
        result.findings += before.check_shared(now)
    _Auditor(
        release,
        store,
        embedding_set,
        plan,
        result,
        asked,
        drawn,
        search,
        filters,
        apart,
        advance,
        CandidateSearch(release, store),
        RateLimiter(plan.rate),
    ).run()
    if before is not None:
        also = [(each.part, each.name) for each in requirements if each.is_drop]
        result.drifts = drifts(before, result.per_query, also, seed=plan.seed)
        if grown := before.grown(result.gallery):
            result.findings.append(grown)
    result.failures = failures(requirements, result.measures, result.drifts)
    return result


@dataclass(slots=True)
class _Auditor:
    """One audit under way."""

    release: Release
    store: Store
    pairs: EmbeddingSet
    plan: AuditPlan
    result: Audit
    asked: Mapping[Modality, QuerySet]
    drawn: Drawn
    search: list[Stage]
    filters: "Mapping[str, Filter]"
    strata: Strata
    advance: Advance
    finder: CandidateSearch
    pace: RateLimiter
    exact: bool = True
    kept: dict[str, FloatArray] = field(default_factory=dict)

    def run(self) -> None:
        """Ask everything, and write what is found into the result."""
        truths = {direction: self._truth(direction, self.drawn[asked]) for direction, (_, asked) in DIRECTIONS.items()}
        if not any(found.gallery.counts.any() for found in truths.values()):
            where = f"protocol {self.plan.protocol}" if self.plan.protocol else f"{self.plan.gallery} gallery"
            raise MismatchError(
                f"no pair of embedding set {self.result.pairs} is in the {where} of release {self.release.name}; "
                "name the set that was pushed into it, or one that shares its groups"
            )
        assert self.result.info is not None
        groups = {modality: len(set(asked.rows.groups)) for modality, asked in self.asked.items()}
        self.result.findings += collection_warnings(self.result.info, self.release, self.filters)
        self.result.findings += too_few(groups)
        self._try_exact()
        for direction, found in truths.items():
            self._direction(direction, found)
        probe = self._aligned(self.asked["image"].rows)[:4]
        measure_space(self.result, self.release, self.drawn, self.kept, probe)

    def _truth(self, direction: str, keep: Collection[str]) -> Truth:
        asking, target = DIRECTIONS[direction]
        asked = self.asked[asking]
        found = truth(
            self.release.lowerings[target],
            asked,
            self._aligned(asked.rows),
            self.plan.ks[-1] + 1,
            lambda: self._pages(target),
            keep=keep,
        )
        self.kept |= found.kept
        self.result.gallery[target] = int(found.sizes.sum())
        self.result.without_relevant[direction] = int((found.gallery.counts == 0).sum())
        return found

    def _pages(self, target: Modality, condition: "Filter | None" = None) -> Iterator[list[Record]]:
        vector_name = target if self.release.guarantee is Guarantee.EXACT else None  # else payloads carry vectors
        for page in self.store.scroll(
            self.release.name, vector_name=vector_name, filter=_with_vector(target, condition)
        ):
            self.pace(1)
            for record in page:
                if not isinstance(record.payload.get("group"), str):
                    raise StrangePointError(record.id, "has no group")
            yield page

    def _aligned(self, rows: Rows) -> FloatArray:
        return self.release.alignment.project(rows.modality, rows.vectors)

    def _direction(self, direction: str, found: Truth) -> None:
        asking, target = DIRECTIONS[direction]
        asked = self.asked[asking]
        aligned, (codes,) = self._aligned(asked.rows), group_codes(asked.rows.groups)
        asker = StageRunner(
            self.finder, target, self.plan.ks, self.plan.k, self._walk, found.largest, self.pace, exact=self.exact
        )
        given = {
            stage.name: asker.ask(stage, aligned, asked.rows.groups, found.whole.counts, advance=self.advance)
            for stage in self.search
        }
        last = given[self.search[-1].name]
        served = last if asked.gallery.is_whole else self._in_gallery(asker, asked, found, aligned)
        columns = dict(self._headline(found, served, last, asker))
        columns |= self._staged(found, given, asker)
        estimates = self._estimated(columns, codes)
        lost = {part: estimates.pop((part, LOST)) for part, name in columns if name == LOST}
        values = {place: column for place, column in columns.items() if place[1] != LOST}
        self.result.per_query[direction] = _per_query(asked, values)
        self._note_headline(direction, found, values, estimates, asked)
        times = np.array(list(served[self.plan.k].times.values()), np.int64)
        never = np.zeros(max(0, int(found.sizes.sum()) - len(times)), np.int64)
        hubness = skewness(np.concatenate([times, never]))
        self.result.measures.append(Measure(direction, "hubness", hubness, queries=len(asked)))
        self._note_curve(direction, found, asked, codes)
        timed = aligned[np.random.default_rng(self.plan.seed).permutation(len(aligned))[:TIMED_QUERIES]]
        without = int((found.whole.counts == 0).sum())
        for stage in [REFERENCE_STAGE, *self.search]:
            self._note(
                StageFound(
                    direction,
                    stage.name,
                    stage.against or None,
                    len(asked),
                    without,
                    {k: estimates[stage.name, f"recall@{k}"] for k in self.plan.ks},
                    {
                        k: _fidelity(values[stage.name, f"fidelity@{k}"], estimates[stage.name, f"fidelity@{k}"])
                        for k in self.plan.ks
                        if stage.against
                    },
                    lost.get(stage.name),
                    asker.latency(stage, timed) if stage.against else None,
                )
            )
        for name, condition in self.filters.items():
            self._filtered(direction, name, condition, asker, aligned, codes, timed)
        ranks = {k: answers.ranks for k, answers in served.items()}
        self.result.measures += measured(direction, ranks, codes, self.strata, seed=self.plan.seed)
        self._note_worst(direction, last[self.plan.ks[-1]], found)

    @property
    def _walk(self) -> int:
        """How many candidates searches of the release keep along the graph; without a graph they look at all points."""
        info = self.result.info
        assert info is not None
        if not info.indexed:
            return info.points + LONGEST
        return self.finder.ef or info.ef_construct or 0

    def _try_exact(self) -> None:
        """Leave out the stages that the store refuses; the walk is then compared with the reference."""
        asking, target = next(iter(DIRECTIONS.values()))
        asker = StageRunner(self.finder, target, (1,), 1, self._walk, 0.0, self.pace)
        query = self._aligned(self.asked[asking].rows.take([0]))
        try:
            asker.ask(self.search[0], query, [""], np.zeros(1, np.int64))
        except ExactRefusedError as error:
            self.exact = False
            for direction in DIRECTIONS:
                for stage in self.search:
                    if stage.exact:
                        self._note(StageFound(direction, stage.name, stage.against, why_not=str(error)))
            self.result.findings.append(f"The store refuses exact search, so no stage of it was measured: {error}")
            self.search = [replace(s, against=REFERENCE) if s.name == INDEX else s for s in self.search if not s.exact]

    def _headline(
        self, found: Truth, served: Mapping[int, StageResults], last: Mapping[int, StageResults], asker: StageRunner
    ) -> Iterator[tuple[Place, Values]]:
        """Yield what the whole search gives each query: in the gallery, and the fidelity over everything."""
        for name in ("recall", "found", "ndcg"):
            for k in self.plan.ks:
                yield ("", f"{name}@{k}"), Kind(name, k).per_query(served[k].ranks)
                yield ("", f"exact.{name}@{k}"), Kind(name, k).per_query(found.gallery)
        for name in ("mrr", "r_precision", "median_rank"):
            yield ("", name), Kind(name).per_query(found.gallery)
        for k in self.plan.ks:
            yield ("", f"fidelity@{k}"), last[k].fidelity(found.best, k, asker.lowering.tied)
        if self.release.guarantee in PROVABLE:
            yield ("", CERTIFIED), last[self.plan.k].certified

    def _staged(
        self, found: Truth, given: Mapping[str, Mapping[int, StageResults]], asker: StageRunner
    ) -> Iterator[tuple[Place, Values]]:
        """Yield what each stage gives each query, over everything, and what it loses."""
        recalls = {REFERENCE: {k: Kind("recall", k).per_query(found.whole) for k in self.plan.ks}}
        for k, recall in recalls[REFERENCE].items():
            yield (REFERENCE, f"recall@{k}"), recall
        for stage in self.search:
            answers = given[stage.name]
            recalls[stage.name] = _recalls(answers)
            for k, recall in recalls[stage.name].items():
                best = found.best if stage.against == REFERENCE else given[stage.against][k].best
                yield (stage.name, f"recall@{k}"), recall
                yield (stage.name, f"fidelity@{k}"), answers[k].fidelity(best, k, asker.lowering.tied)
            yield (stage.name, LOST), recalls[stage.against][self.plan.k] - recalls[stage.name][self.plan.k]

    def _estimated(self, columns: Mapping[Place, Values], codes: IntArray) -> dict[Place, Estimate]:
        """Sum up columns (n,), all from the same draws of groups."""
        means = [place for place in columns if place != MEDIAN]
        matrix = np.stack([columns[place] for place in means], axis=1)
        estimates = dict(zip(means, bootstrap_means(matrix, codes, seed=self.plan.seed), strict=True))
        if MEDIAN in columns:
            estimates[MEDIAN] = bootstrap_median(columns[MEDIAN], codes, seed=self.plan.seed)
        return estimates

    def _note_headline(
        self,
        direction: str,
        found: Truth,
        values: Mapping[Place, Values],
        estimates: Mapping[Place, Estimate],
        asked: QuerySet,
    ) -> None:
        n, measures = len(asked), self.result.measures
        for (part, name), column in values.items():
            if part:
                continue
            e = estimates[part, name]
            measures.append(Measure(direction, name, e.value, e.low, e.high, n))
            if name.startswith("fidelity@"):
                its = _fidelity(column, e)
                measures += [Measure(direction, f"{name}.{end}", getattr(its, end), queries=n) for end in TAIL]
        chances = {k: _chance(k, found, asked) for k in self.plan.ks}
        measures += [Measure(direction, f"chance.recall@{k}", value, queries=n) for k, value in chances.items()]

    def _note_curve(self, direction: str, found: Truth, asked: QuerySet, codes: IntArray) -> None:
        ks = [k for k in sorted({*CURVE, *self.plan.ks}) if k <= max(1, int(found.sizes.max()))]
        hits = np.stack([(found.gallery.best <= k).astype(np.float64) for k in ks], axis=1)
        estimates = bootstrap_means(hits, codes, seed=self.plan.seed)
        self.result.curve[direction] = dict(zip(ks, estimates, strict=True))
        self.result.chance[direction] = {k: _chance(k, found, asked) for k in ks}

    def _note(self, stage: StageFound) -> None:
        self.result.stages.append(stage)
        self.result.measures += stage.measures()

    def _in_gallery(
        self, asker: StageRunner, asked: QuerySet, found: Truth, aligned: FloatArray
    ) -> dict[int, StageResults]:
        """Ask as production does, within each query's part of the gallery."""
        counts, parts = found.gallery.counts, []
        for part in range(asked.gallery.parts()):
            chosen = np.flatnonzero(asked.parts == part)
            stage = replace(self.search[-1], condition=asked.gallery.condition(part))
            ids = len(asked.gallery.ids[part]) if isinstance(asked.gallery, Folds) else 0
            groups = [asked.rows.groups[row] for row in chosen]
            its = asker.ask(stage, aligned[chosen], groups, counts[chosen], ids=ids, advance=self.advance)
            parts.append((chosen, its))
        return {k: joined([(chosen, its[k]) for chosen, its in parts]) for k in self.plan.ks}

    def _filtered(
        self,
        direction: str,
        name: str,
        condition: "Filter",
        asker: StageRunner,
        aligned: FloatArray,
        codes: IntArray,
        timed: FloatArray,
    ) -> None:
        """Ask within a filter, as production does and exactly: the walk along a graph may find less there."""
        asking, target = DIRECTIONS[direction]
        groups = Counter(r.payload["group"] for page in self._pages(target, condition) for r in page)
        if not groups:
            self._note(StageFound(direction, name, EXACT, why_not=f"the filter matches no {target}"))
            return
        if not self.exact:
            self._note(StageFound(direction, name, EXACT, why_not="exact search is refused"))
            return
        rows = self.asked[asking].rows
        relevant = np.array([groups[group] for group in rows.groups], np.int64)
        within = replace(self.search[-1], name=name, against=EXACT, condition=condition)
        exact = asker.ask(replace(within, exact=True), aligned, rows.groups, relevant, advance=self.advance)
        served = asker.ask(within, aligned, rows.groups, relevant, advance=self.advance)
        fidelities = {
            ("", f"fidelity@{k}"): served[k].fidelity(exact[k].best, k, asker.lowering.tied) for k in self.plan.ks
        }
        fidelity = self._estimated(fidelities, codes)
        found = relevant > 0
        recalls: dict[Place, Values] = {}
        if found.any():
            of_exact, of_served = _recalls(exact, found), _recalls(served, found)
            recalls = {("", f"recall@{k}"): recall for k, recall in of_served.items()}
            recalls["", LOST] = of_exact[self.plan.k] - of_served[self.plan.k]
        recall = self._estimated(recalls, codes[found]) if recalls else {}
        self._note(
            StageFound(
                direction,
                name,
                EXACT,
                int(found.sum()),
                int((~found).sum()),
                {k: recall["", f"recall@{k}"] for k in self.plan.ks if recall},
                {k: _fidelity(fidelities["", f"fidelity@{k}"], fidelity["", f"fidelity@{k}"]) for k in self.plan.ks},
                recall.get(("", LOST)),
                asker.latency(within, timed),
            )
        )

    def _note_worst(self, direction: str, last: StageResults, found: Truth) -> None:
        """Keep the queries whose best relevant item comes last, of those that have one."""
        asking, target = DIRECTIONS[direction]
        asked, ranks = self.asked[asking].rows, last.ranks.best
        order = np.lexsort((-found.whole.best, -ranks))
        rows = [row for row in order if found.whole.counts[row] and ranks[row] > 1][:WORST_QUERIES]
        if not rows:
            return
        queries = self._aligned(asked.take(rows))
        self.pace(len(rows))
        lists = self.finder.search(target, queries, WORST_HITS, quantized=self.search[-1].quantized)
        partners: dict[str, list[str]] = {asked.groups[row]: [] for row in rows}
        for keys, groups in self.pairs.labels(target):
            for key, group in zip(keys, groups, strict=True):
                if group in partners:
                    partners[group].append(point_id(target, key))
        for row, got in zip(rows, lists, strict=True):
            group = asked.groups[row]
            hits = [_point(hit.payload, group, hit.score) for hit in got.hits]
            its = self.store.retrieve(self.release.name, partners[group][:WORST_EXPECTED])
            expected = [_point(record.payload, group) for record in its]
            described = {"group": group, "content_sha256": asked.content_sha256[row]}
            query = Point(asked.keys[row], {**json.loads(asked.payloads[row]), **described})
            self.result.worst.append(WorstQuery(direction, query, float(found.whole.best[row]), hits, expected))


def _known(
    plan: AuditPlan,
    release: Release,
    search: Sequence[Stage],
    filters: Iterable[str],
    strata: Strata,
) -> Iterator[tuple[str, str, str]]:
    """Yield direction, part and name of every measure that this audit can have, before it begins."""
    tails = [f"fidelity@{k}{end}" for k in plan.ks for end in ("", *(f".{end}" for end in TAIL))]
    recalls = [f"recall@{k}" for k in plan.ks]
    for direction, (asking, _) in DIRECTIONS.items():
        whole = [f"{p}{name}@{k}" for p in ("", "exact.") for name in ("recall", "found", "ndcg") for k in plan.ks]
        whole += ["mrr", "r_precision", "median_rank", *tails, *(f"chance.{recall}" for recall in recalls), "hubness"]
        if release.guarantee in PROVABLE:
            whole.append(CERTIFIED)
        yield from ((direction, "", name) for name in whole)
        yield from ((direction, REFERENCE, name) for name in recalls)
        for part in (*(stage.name for stage in search), *filters):
            yield from ((direction, part, name) for name in (*recalls, *tails, *LATENCIES))
        for name, values in strata[asking].items():
            yield from ((direction, stratum(name, value), recall) for value in set(values) for recall in recalls)
    yield from ((BOTH, "", name) for name in GAP_MEASURES)


def _per_query(asked: QuerySet, values: Mapping[Place, Values] | None = None) -> PerQuery:
    return PerQuery(asked.rows.keys, asked.rows.groups, asked.rows.content_sha256, values or {})


def _chance(k: int, found: Truth, asked: QuerySet) -> float:
    """Recall@K of a random order, each query in its own part of the gallery."""
    sizes = found.sizes[asked.parts]  # (n,)
    total = sum(
        chance_recall_at(k, found.gallery.counts[sizes == size], int(size)) * (sizes == size).sum()
        for size in np.unique(sizes)
        if size
    )
    return float(total / len(asked))


def _recalls(answers: Mapping[int, StageResults], found: npt.NDArray[np.bool_] | None = None) -> dict[int, Values]:
    """Recall@K of each query, of those in `found` alone where it is given."""
    kept = {k: its.ranks if found is None else its.ranks.where(found) for k, its in answers.items()}
    return {k: Kind("recall", k).per_query(ranks) for k, ranks in kept.items()}


def _fidelity(shares: Values, mean: Estimate) -> Fidelity:
    return Fidelity(mean, float(np.percentile(shares, 5)), float(shares.min()), float((shares < 0.9).mean()))


def _point(payload: Mapping[str, Any], group: str, score: float | None = None) -> Point:
    return Point(str(payload.get("key")), dict(payload), payload.get("group") == group, score)


def _with_vector(modality: Modality, condition: "Filter | None") -> "Filter":
    from qdrant_client.models import Filter, HasVectorCondition  # takes a second to import

    return Filter(must=[HasVectorCondition(has_vector=modality), *([condition] if condition else [])])
