"""How the whole collection is found as production searches it: items that the fit saw, and all others.

In a whole collection seen items crowd out unseen ones, which a recall among held-out items alone cannot show.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alignment.metrics import Distance, Rescored
from alignment.modality import DIRECTIONS
from alignment.retrieval.bootstrap import bootstrap_means, bootstrap_of_two
from alignment.retrieval.measures import Floats, recall
from alignment.retrieval.ranks import CHUNK_SCORES, IntArray, group_codes
from alignment.retrieval.seen_unseen import SeenUnseenScores, curve, harmonic_mean
from connector.audits.baseline import PerQuery
from connector.audits.census import Census, seen_among
from connector.audits.galleries import NOT_IN_GALLERY
from connector.audits.kind_queries import KindQueries, draw_queries
from connector.audits.kinds import HARMONIC, SEEN, UNSEEN, KindOutcomes
from connector.audits.measure import Measurement
from connector.audits.measures import of_kinds
from connector.audits.reference import Mask, Scores, Truth, own_scores, vectors_of
from connector.audits.seen_unseen_result import CurvePoint, SeenUnseenResult
from connector.audits.stages import StageRunner
from connector.audits.subject import AuditSubject


@dataclass(frozen=True, slots=True)
class _Searched:
    """The n queries of one kind after production's search.

    Attributes:
        codes: of their groups (n,).
        recall: by the name of the measure (n,).
        found_first: whether the first hit is relevant (n,).
        seen_first: whether it is a seen item (n,).
    """

    queries: KindQueries
    codes: IntArray
    recall: Mapping[str, Floats]
    found_first: Floats
    seen_first: Floats


def measure_seen_unseen(subject: AuditSubject, direction: str, truth: Truth, runner: StageRunner) -> SeenUnseenResult:
    """Search the whole collection with queries about seen and about unseen items, as production does.

    Args:
        subject: of the audit.
        direction: `text-to-image` or `image-to-text`.
        truth: of the direction; says which items are seen.
        runner: of the direction.
    """
    census, seed = truth.census, subject.plan.seed
    queries = draw_queries(subject, DIRECTIONS[direction][0], census)
    exact = _Exact(subject, runner, queries)
    for_kind = {kind: _search(subject, runner, queries[kind], exact.counts[kind]) for kind in queries}

    measures = [m for kind, searched in for_kind.items() for m in _recalls(direction, kind, searched, seed)]
    offset = exact.offset
    drawn, points = None, []
    if len(for_kind) == 2:
        drawn = curve(exact.scores[SEEN], exact.scores[UNSEEN], [offset])
        points = [exact.point(each) for each in dict.fromkeys((0.0, offset))]
        measures += _harmonic(direction, for_kind, seed)
        first = {kind: (searched.seen_first, searched.codes) for kind, searched in for_kind.items()}
        measures += of_kinds(direction, KindOutcomes(first, census.fair, drawn.area, seed))
    return SeenUnseenResult(
        direction,
        about={kind: searched.queries.about for kind, searched in for_kind.items()},
        why_not=_why_not(subject, direction, census, queries),
        fair=census.fair,
        measures=measures,
        found_first={kind: float(searched.found_first.mean()) for kind, searched in for_kind.items()},
        per_query={kind: _per_query(kind, searched) for kind, searched in for_kind.items()},
        curve=drawn,
        points=points,
    )


def _search(subject: AuditSubject, runner: StageRunner, queries: KindQueries, counts: IntArray) -> _Searched:
    rows, ks = queries.rows, subject.plan.ks
    results = runner.run(subject.stages[-1], queries.aligned, rows.groups, counts, advance=subject.advance)
    shortest = results[ks[0]]
    return _Searched(
        queries,
        group_codes(rows.groups)[0],
        {f"recall@{k}": recall(results[k].ranks, k) for k in ks},
        recall(shortest.ranks, 1),
        shortest.seen_first,
    )


def _recalls(direction: str, kind: str, searched: _Searched, seed: int) -> list[Measurement]:
    columns = np.stack(list(searched.recall.values()), axis=1)
    estimates = bootstrap_means(columns, searched.codes, seed=seed)
    return [
        Measurement(direction, name, e.value, e.low, e.high, len(columns), kind)
        for name, e in zip(searched.recall, estimates, strict=True)
    ]


def _harmonic(direction: str, for_kind: Mapping[str, _Searched], seed: int) -> list[Measurement]:
    seen, unseen = for_kind[SEEN], for_kind[UNSEEN]
    measures, queries = [], len(seen.codes) + len(unseen.codes)
    for name in seen.recall:
        sides = ((searched.recall[name], searched.codes) for searched in (seen, unseen))
        e = bootstrap_of_two(harmonic_mean, *sides, seed=seed)
        measures.append(Measurement(direction, name, e.value, e.low, e.high, queries, HARMONIC))
    return measures


def _per_query(kind: str, searched: _Searched) -> PerQuery:
    rows = searched.queries.rows
    values = {(kind, name): column for name, column in searched.recall.items()}
    return PerQuery(rows.keys, rows.groups, rows.content_sha256, values)


def _why_not(
    subject: AuditSubject, direction: str, census: Census, queries: Mapping[str, KindQueries]
) -> dict[str, str]:
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
        counts: how many relevant items each of their queries has, by kind (n,).
    """

    def __init__(self, subject: AuditSubject, runner: StageRunner, queries: Mapping[str, KindQueries]):
        self._lowering = runner.lowering
        self._is_squared = not isinstance(runner.lowering, Rescored) and runner.lowering.distance is Distance.EUCLID
        self.offset = float(getattr(runner.lowering, "offset_of_seen", 0.0))
        k = subject.plan.k
        self.scores = {kind: SeenUnseenScores.empty(len(own.rows), k) for kind, own in queries.items()}
        self.counts = {kind: np.zeros(len(own.rows), np.int64) for kind, own in queries.items()}
        if not queries:
            return
        groups = dict.fromkeys(group for own in queries.values() for group in own.rows.groups)
        code = {group: number for number, group in enumerate(groups)}
        wanted = {kind: np.array([code[group] for group in own.rows.groups], np.int64) for kind, own in queries.items()}
        for page in subject.pages(runner.target):
            seen = seen_among(page)
            codes = np.array([code.get(record.payload["group"], NOT_IN_GALLERY) for record in page], np.int64)
            items = vectors_of(self._lowering, page, subject.release.alignment.dim)
            step = max(1, CHUNK_SCORES // len(page))
            for kind, own in queries.items():
                for start in range(0, len(own.rows), step):
                    rows = slice(start, start + step)
                    relevant = wanted[kind][rows, None] == codes
                    self.counts[kind][rows] += relevant.sum(axis=1)
                    scores = self._without_offset(own_scores(self._lowering, own.aligned[rows], items), seen)
                    self.scores[kind].add(scores, relevant, seen, rows=rows)

    def _without_offset(self, ranked: Scores, seen: Mask) -> Floats:
        """Put the offset back onto scores (n, m); of distances that it is added to the square of, return squares."""
        scores = ranked.astype(np.float64)
        if self._is_squared:
            scores *= np.abs(scores)
        scores[:, seen] += self.offset
        return scores

    def point(self, offset: float) -> CurvePoint:
        """Return what the queries of both kinds find with an offset."""
        ranks = {kind: scores.ranks(offset) for kind, scores in self.scores.items()}
        found = {kind: float(np.isfinite(own).mean()) for kind, own in ranks.items()}
        first = {kind: float((own <= 1).mean()) for kind, own in ranks.items()}
        return CurvePoint(offset, found[UNSEEN], found[SEEN], first[UNSEEN], first[SEEN])
