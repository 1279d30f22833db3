"""How the whole collection is found as production searches it: items that the fit saw, and all others.

In a whole collection seen items crowd out unseen ones, which a recall among held-out items alone cannot show. Queries
about seen items also go through every stage of the search: a graph or the candidates may lose what an offset moved,
and the audit's own queries, which are about unseen ones, would not show it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from alignment.metrics import Lowering
from alignment.modality import DIRECTIONS
from alignment.retrieval.bootstrap import bootstrap_of_two
from alignment.retrieval.kinds import HARMONIC, SEEN, UNSEEN
from alignment.retrieval.measures import Floats, recall
from alignment.retrieval.ranks import CHUNK_SCORES
from alignment.retrieval.seen_unseen import SeenUnseenScores, curve, harmonic_mean, signed_squares
from alignment.sets.rows import Rows
from connector.audits.census import Census, seen_among
from connector.audits.galleries import NOT_IN_GALLERY, Everything, QuerySet, hash_draws
from connector.audits.kind_queries import KindQueries, draw_queries
from connector.audits.kinds import KindOutcomes
from connector.audits.measure import Measurement
from connector.audits.measures import names_of, of_kinds
from connector.audits.point_scan import Page
from connector.audits.query_run import MeasureKey, QueryRun, Results
from connector.audits.reference import Mask, Scores, own_scores, vectors_of
from connector.audits.seen_unseen_result import SeenUnseenPoint, SeenUnseenResult
from connector.audits.stage_summary import StageSummary
from connector.audits.stages import StageRunner
from connector.audits.subject import AuditSubject

# Queries about seen items that go through every stage, at most: enough for an interval of some hundredths.
STAGED = 300


@dataclass(frozen=True)
class _KindSearch:
    """The n queries of one kind after production's search.

    Attributes:
        about: what they are, in words.
        served: what production returns, by K.
        stages: the losses of the search with some of them, in its order; none unless they are about seen items.
    """

    about: str
    run: QueryRun
    served: Results
    stages: Sequence[StageSummary]

    @cached_property
    def columns(self) -> dict[MeasureKey, Floats]:
        """Recall and fidelity for each query (n,)."""
        run, served = self.run, self.served
        tied, best = run.runner.lowering.tied, run.truth.best
        recalls = {(run.kind, f"recall@{k}"): recall(served[k].ranks, k) for k in served}
        return recalls | {(run.kind, f"fidelity@{k}"): served[k].fidelity(best, k, tied) for k in served}

    def measures(self) -> list[Measurement]:
        """Every number of these queries alone."""
        n, run, estimates = len(self.run.rows), self.run, self.run.estimates(self.columns)
        whole = [
            Measurement(run.direction, name, e.value, e.low, e.high, n, part) for (part, name), e in estimates.items()
        ]
        return whole + [number for stage in self.stages for number in stage.measures()]


def measure_seen_unseen(subject: AuditSubject, direction: str, census: Census, runner: StageRunner) -> SeenUnseenResult:
    """Search the whole collection with queries about seen and about unseen items, as production does.

    Args:
        subject: of the audit.
        direction: `text-to-image` or `image-to-text`.
        census: of the items that are searched.
        runner: of the direction.
    """
    seed, queries = subject.plan.seed, draw_queries(subject, DIRECTIONS[direction][0], census)
    exact = _Exact(subject, runner, queries)
    for_kind = _searched(subject, direction, runner, queries)
    shortest = subject.plan.ks[0]

    measures = [m for searched in for_kind.values() for m in searched.measures()]
    offset = exact.offset
    drawn, points = None, []
    if len(for_kind) == 2:
        drawn = curve(exact.scores[SEEN], exact.scores[UNSEEN], [offset])
        points = [exact.point(each) for each in dict.fromkeys((0.0, offset))]
        measures += _harmonic(direction, for_kind, seed)
        first = {kind: (own.served[shortest].seen_first, own.run.codes) for kind, own in for_kind.items()}
        measures += of_kinds(direction, KindOutcomes(first, census.fair, drawn.area, seed))
    return SeenUnseenResult(
        direction,
        about={kind: searched.about for kind, searched in for_kind.items()},
        why_not=_why_not(direction, census, queries),
        fair=census.fair,
        measures=measures,
        stages=[stage for searched in for_kind.values() for stage in searched.stages],
        found_first={
            kind: float(recall(searched.served[shortest].ranks, 1).mean()) for kind, searched in for_kind.items()
        },
        per_query={kind: own.run.per_query(own.columns) for kind, own in for_kind.items()},
        curve=drawn,
        points=points,
    )


def _searched(
    subject: AuditSubject, direction: str, runner: StageRunner, queries: Mapping[str, KindQueries]
) -> dict[str, _KindSearch]:
    """Search with the queries of each kind: as production does, and with those about seen items by every stage."""
    if not queries:
        return {}
    # The exact search reads the collection once for all kinds.
    rows = Rows.concatenate([own.rows for own in queries.values()])
    query_set = QuerySet(rows, np.zeros(len(rows), np.int64), Everything())
    truth = subject.truth(direction, query_set, np.concatenate([own.aligned for own in queries.values()]))
    of_kind = np.repeat(list(queries), [len(own.rows) for own in queries.values()])
    searched = {}
    for kind, own in queries.items():
        run = QueryRun(subject, direction, own.rows, truth.where(of_kind == kind), runner, own.aligned, kind)
        stages = _through_stages(run) if kind == SEEN else []
        searched[kind] = _KindSearch(own.about, run, run.through(subject.stages[-1]), stages)
    return searched


def _through_stages(run: QueryRun) -> list[StageSummary]:
    """Run the `STAGED` queries with the lowest draws through every stage."""
    some = run.take(np.sort(np.argsort(hash_draws(run.rows.keys, run.subject.plan.seed), kind="stable")[:STAGED]))
    columns = some.columns({stage.name: some.through(stage) for stage in some.subject.stages})
    return list(some.summaries(columns, some.estimates(columns)))


def _harmonic(direction: str, for_kind: Mapping[str, _KindSearch], seed: int) -> list[Measurement]:
    seen, unseen = for_kind[SEEN], for_kind[UNSEEN]
    measures, queries = [], len(seen.run.rows) + len(unseen.run.rows)
    for name in names_of(HARMONIC, seen.run.subject.plan.ks):
        sides = ((searched.columns[searched.run.kind, name], searched.run.codes) for searched in (seen, unseen))
        e = bootstrap_of_two(harmonic_mean, *sides, seed=seed)
        measures.append(Measurement(direction, name, e.value, e.low, e.high, queries, HARMONIC))
    return measures


def _why_not(direction: str, census: Census, queries: Mapping[str, KindQueries]) -> dict[str, str]:
    """Say why a kind of items was not measured."""
    modality, target = DIRECTIONS[direction]
    why = {}
    if UNSEEN not in queries:
        why[UNSEEN] = (
            f"the fit saw every {target} of the collection"
            if census.seen == census.items
            else f"no {modality} of the pairs that the fit never saw is about one of the unseen {target}s"
        )
    if SEEN not in queries:
        why[SEEN] = (
            f"the collection holds no {target} that the fit saw"
            if not census.seen
            else f"no {modality} of the pairs is about one of the {target}s that the fit saw"
        )
    return why


class _Exact:
    """Exact search by the metric itself among all points, for every offset at once: one more pass over them.

    Attributes:
        offset: of seen items, as the release has it.
        scores: of the queries of each kind.
    """

    def __init__(self, subject: AuditSubject, runner: StageRunner, queries: Mapping[str, KindQueries]):
        self.offset = runner.lowering.offset_of_seen
        counter = _OffsetCounter(runner.lowering, subject.release.alignment.dim, queries, subject.plan.k)
        self.scores = counter([])
        for part in subject.scan(runner.target)(counter) if queries else ():
            for kind, scores in part.items():
                self.scores[kind].join(scores)

    def point(self, offset: float) -> SeenUnseenPoint:
        """Return what the queries of both kinds find with an offset."""
        ranks = {kind: scores.ranks(offset) for kind, scores in self.scores.items()}
        found = {kind: float(np.isfinite(own).mean()) for kind, own in ranks.items()}
        first = {kind: float((own <= 1).mean()) for kind, own in ranks.items()}
        return SeenUnseenPoint(offset, found[UNSEEN], found[SEEN], first[UNSEEN], first[SEEN])


class _OffsetCounter:
    """Scores points without an offset, against the queries of each kind."""

    def __init__(self, lowering: Lowering, dim: int, queries: Mapping[str, KindQueries], k: int):
        self._lowering, self._dim, self._queries, self._k = lowering, dim, queries, k
        groups = dict.fromkeys(group for own in queries.values() for group in own.rows.groups)
        self._code = {group: number for number, group in enumerate(groups)}
        self._wanted = {
            kind: np.array([self._code[group] for group in own.rows.groups], np.int64) for kind, own in queries.items()
        }
        self._sizes = {kind: lowering.sizes(lowering.query(own.aligned)) for kind, own in queries.items()}

    def __call__(self, pages: Iterable[Page]) -> dict[str, SeenUnseenScores]:
        """Return the scores of pages."""
        counted = {kind: SeenUnseenScores.empty(len(own.rows), self._k) for kind, own in self._queries.items()}
        for page in pages:
            seen = seen_among(page)
            codes = np.array([self._code.get(record.payload["group"], NOT_IN_GALLERY) for record in page], np.int64)
            items = vectors_of(self._lowering, page, self._dim)
            largest = np.nan_to_num(self._lowering.sizes(items)).max(initial=0.0, keepdims=True)
            step = max(1, CHUNK_SCORES // len(page))
            for kind, own in self._queries.items():
                for start in range(0, len(own.rows), step):
                    rows = slice(start, start + step)
                    relevant = self._wanted[kind][rows, None] == codes
                    scores = self._without_offset(own_scores(self._lowering, own.aligned[rows], items), seen)
                    floors = partial(self._lowering.floors, queries=self._sizes[kind][rows], items=largest)
                    squared = self._lowering.squares_offset
                    counted[kind].add(scores, relevant, seen, floors=floors, rows=rows, squared=squared)
        return counted

    def _without_offset(self, ranked: Scores, seen: Mask) -> Floats:
        """Put the offset back onto scores (n, m); of distances that it is added to the square of, return squares."""
        scores = ranked.astype(np.float64)
        if self._lowering.squares_offset:
            scores = signed_squares(scores)
        scores[:, seen] += self._lowering.offset_of_seen
        return scores
