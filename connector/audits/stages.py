"""The stages of a search. Each runs the same queries, so the loss of a stage shows against the stage before it.

reference       the metric itself over the vectors read back: the best that encoders and projections can do
lowering        Qdrant's exact search, in Qdrant's own order of scores
rescoring       exact search with candidates rescored by the metric, for metrics that Qdrant cannot order by
index           HNSW search with the release's `hnsw_ef`, over the vectors themselves
quantization    HNSW search over quantized vectors with oversampling and rescoring, as production does
filter:NAME     production's search within a filter, compared with exact search within that filter
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alignment.metrics import Guarantee, Rescored
from alignment.modality import Modality
from alignment.retrieval.kinds import SEEN
from alignment.retrieval.ranks import IntArray, RelevantRanks
from alignment.vectors import FloatArray
from connector.audits.reference import own_scores, vectors_of
from connector.releases.points import FITTED
from connector.search.candidates import CandidateSearch, RankedHits, ScoredHit

if TYPE_CHECKING:
    from qdrant_client.models import Filter

REFERENCE, LOWERING, RESCORING, INDEX, QUANTIZATION = "reference", "lowering", "rescoring", "index", "quantization"
STAGES = (REFERENCE, LOWERING, RESCORING, INDEX, QUANTIZATION)
FILTER = "filter:"
BATCH_QUERIES = 64
# Ids that the filters of one batch of requests name at most, when a protocol's folds are searched.
IDS_AT_ONCE = 100_000
# Engines add float32 in another order than the reference. Scores closer than this share of the best count as equal.
ROUNDING = 1e-5
TIMED_QUERIES = 100

Scores = npt.NDArray[np.floating]


def stage_part(stage: str, kind: str = "") -> str:
    """Name the part of an audit that a stage is, with queries about items of a kind; "" of the audit's own queries.

    >>> stage_part("index"), stage_part("index", "seen")
    ('index', 'seen index')
    """
    return f"{kind} {stage}".strip()


def stage_and_stratum(part: str) -> tuple[str, str]:
    """Return the stage of the search that a part of an audit is of, and the stratum of the queries; "" for none.

    >>> stage_and_stratum("index"), stage_and_stratum("seen index"), stage_and_stratum("seen")
    (('index', ''), ('index', 'seen'), ('', 'seen'))
    """
    stage = part.removeprefix(f"{SEEN} ")
    if stage in STAGES or stage.startswith(FILTER):
        return stage, part.removesuffix(stage).strip()
    return "", part


@dataclass(slots=True)
class RateLimiter:
    """Limits queries to `rate` a second; None: no limit."""

    rate: float | None
    _next: float = 0.0

    def __call__(self, queries: int) -> None:
        """Block until `queries` more may run."""
        if self.rate is None:
            return
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = max(self._next, time.monotonic()) + queries / self.rate

    @property
    def batch_size(self) -> int:
        """How many queries may run at once: those of a tenth of a second."""
        return BATCH_QUERIES if self.rate is None else max(1, int(self.rate / 10))


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the time of single searches, in milliseconds, over `queries` of them."""

    p50: float
    p95: float
    p99: float
    queries: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """Summarise the durations of single searches, in seconds."""
        p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
        return cls(float(p50), float(p95), float(p99), len(seconds))


@dataclass(frozen=True, slots=True)
class Stage:
    """A way to search.

    Attributes:
        against: the stage that its results are compared with.
        exact: compare the query with every point.
        quantized: search quantized vectors.
        rescored: let the metric order candidates; otherwise Qdrant's own order stands.
        condition: search within this filter.
    """

    name: str
    against: str
    exact: bool = False
    quantized: bool = False
    rescored: bool = True
    condition: "Filter | None" = None


def stages(guarantee: Guarantee, *, quantized: bool) -> list[Stage]:
    """Return the stages of a release after the reference, in the order of a search; the last is production's search."""
    exact = [Stage(LOWERING, REFERENCE, exact=True, rescored=False)]
    if guarantee is not Guarantee.EXACT:
        exact.append(Stage(RESCORING, REFERENCE, exact=True))
    indexed = [Stage(INDEX, exact[-1].name)]
    if quantized:
        indexed.append(Stage(QUANTIZATION, INDEX, quantized=True))
    return exact + indexed


@dataclass(frozen=True, slots=True)
class StageResults:
    """What a stage returns for n queries.

    Attributes:
        ranks: of the relevant items; infinity for those beyond the end of the list.
        scores: by the metric, of the hits (n, depth) in the order of the lists; NaN beyond the end of a short list. As
            in `connector.audits.reference.Truth`, without the offset of a lowering.
        certified: 1 where a list is proved complete, 0 where not (n,); NaN where the metric cannot prove it.
        seen_first: 1 where the first hit is a seen item, 0 where not (n,), also where there is no hit.
        times: by point id, in how many lists the point is among the first k.
    """

    ranks: RelevantRanks
    scores: Scores
    certified: npt.NDArray[np.float64]
    seen_first: npt.NDArray[np.float64]
    times: Counter[str]

    def fidelity(self, best: Scores, k: int, tied: Callable[[Scores], Scores]) -> npt.NDArray[np.float64]:
        """Return the share of the first `k` of lists with the scores `best` (n, depth) that these lists hold (n,).

        Any hit that scores as high as the k-th counts. Of an empty list the share is 1.
        """
        expected = (~np.isnan(best[:, :k])).sum(axis=1)  # (n,)
        last = best[np.arange(len(best)), np.maximum(expected, 1) - 1]
        size = np.abs(np.nan_to_num(best[:, :k])).max(axis=1)
        floors = np.fmin(tied(last), last - ROUNDING * size)
        found = (self.scores[:, :k] >= floors[:, None]).sum(axis=1)
        return np.where(expected > 0, np.minimum(found, expected) / np.maximum(expected, 1), 1.0)

    @property
    def best(self) -> Scores:
        """The scores sorted, best first and NaN last (n, depth)."""
        ordered: Scores = -np.sort(-self.scores, axis=1)
        return ordered


def fidelity_tails(shares: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return the 5th percentile of shares (n,), the least of them, and the share of them below 0.9."""
    return {
        "p5": float(np.percentile(shares, 5)),
        "least": float(shares.min()),
        "below90": float((shares < 0.9).mean()),
    }


def join_results(parts: Sequence[tuple[IntArray, StageResults]]) -> StageResults:
    """Join the results of several groups of queries, each with the numbers of its queries, in the order of these."""
    order = np.concatenate([chosen for chosen, _ in parts])  # (n,)
    places = np.argsort(order)
    counts = np.concatenate([results.ranks.counts for _, results in parts])
    ranks = np.concatenate([results.ranks.ranks for _, results in parts])
    lists = np.split(ranks, np.cumsum(counts)[:-1])
    return StageResults(
        RelevantRanks(np.concatenate([lists[place] for place in places]), counts[places]),
        np.concatenate([results.scores for _, results in parts])[places],
        np.concatenate([results.certified for _, results in parts])[places],
        np.concatenate([results.seen_first for _, results in parts])[places],
        sum((results.times for _, results in parts), Counter[str]()),
    )


class StageRunner:
    """Runs queries through the stages of a release, searching items of one modality.

    Args:
        candidates: searches the release.
        target: modality of the items.
        ks: lengths of the lists, ascending.
        k: `StageResults.times` counts the first `k` of each list.
        ef: how many candidates an HNSW search of the release keeps.
        largest: size of the largest point; the rounding error of scores grows with it.
        limiter: called with the number of queries before they run.
        exact: whether the store answers exact searches. If not, ties that go on beyond a list are counted by an HNSW
            search.
        consistent: count what all replicas of a cluster find alike; times are of searches as production makes them.
    """

    def __init__(
        self,
        candidates: CandidateSearch,
        target: Modality,
        ks: Sequence[int],
        k: int,
        ef: int,
        largest: float,
        limiter: RateLimiter,
        *,
        exact: bool = True,
        consistent: bool = False,
    ):
        self.candidates = candidates
        self.target = target
        self.ks = ks
        self.k = k
        self.ef = ef
        self.largest = largest
        self.lowering = candidates.release.lowerings[target]
        self.exact = exact
        self.consistent = consistent
        self._limiter = limiter

    def run(
        self,
        stage: Stage,
        aligned: FloatArray,
        groups: Sequence[str],
        relevant: IntArray,
        *,
        ids: int = 0,
        advance: Callable[[int], None] = lambda count: None,
    ) -> dict[int, StageResults]:
        """Run every query, for lists of each length; return the results by length.

        Production asks for one k at a time. A search for more hits may visit more of the graph, so cutting one long
        list would make the shorter lists look better than production serves them. Where that matters, each length is
        searched by itself.

        Args:
            stage: how to search.
            aligned: queries (n, d).
            groups: the group that is relevant to each query.
            relevant: how many such points each query could find (n,).
            ids: how many points the stage's condition names.
            advance: called with the number of queries done since.

        Raises:
            ExactRefusedError: the stage is exact, and the store refuses exact search.
        """

        def results(depth: int) -> StageResults:
            return self._results(depth, stage, aligned, groups, relevant, ids, advance)

        longest = self.ks[-1] + 1  # one more shows whether a tie goes on beyond the end
        if self._is_prefix_stable(stage, longest):
            return dict.fromkeys(self.ks, results(longest))
        return {k: results(k) for k in self.ks}

    def _is_prefix_stable(self, stage: Stage, longest: int) -> bool:
        """Whether a search for fewer hits returns the beginning of a search for `longest`."""
        if stage.exact:
            return True
        if isinstance(self.lowering, Rescored):  # which fetches more candidates than are asked for
            return 2 * longest <= self.lowering.page
        # A quantized search takes so many times what it is asked for.
        return not stage.quantized and longest <= self.ef

    def _results(
        self,
        depth: int,
        stage: Stage,
        aligned: FloatArray,
        groups: Sequence[str],
        relevant: IntArray,
        ids: int,
        advance: Callable[[int], None],
    ) -> StageResults:
        ranks: list[float] = []
        times = Counter[str]()
        scores = np.full((len(aligned), depth), np.nan)
        certified, seen_first = np.full(len(aligned), np.nan), np.zeros(len(aligned))
        step = max(1, min(BATCH_QUERIES, self._limiter.batch_size, IDS_AT_ONCE // max(1, ids)))
        for start in range(0, len(aligned), step):
            batch = aligned[start : start + step]
            lists, sizes = self._lists(stage, batch, depth), self.lowering.sizes(self.lowering.query(batch))
            for row, (hit_list, size) in enumerate(zip(lists, sizes, strict=True), start):
                ranks += self._ranks(stage, aligned[row], size, groups[row], hit_list, int(relevant[row]), depth)
                scores[row, : len(hit_list.hits)] = hit_list.scores
                times.update(hit.id for hit in hit_list.hits[: self.k])
                seen_first[row] = any(hit.payload.get("split") == FITTED for hit in hit_list.hits[:1])
                if hit_list.certified is not None:
                    certified[row] = hit_list.certified
            advance(len(batch))
        return StageResults(RelevantRanks(np.array(ranks), relevant), scores, certified, seen_first, times)

    def latency(self, stage: Stage, aligned: FloatArray) -> Latency:
        """Time single queries (n, d), after running the first few of them as a warm-up."""
        seconds = []
        for query in np.concatenate([aligned[:3], aligned]):
            self._limiter(1)
            started = time.perf_counter()
            self._search(stage, query[None], self.k, consistent=False)
            seconds.append(time.perf_counter() - started)
        return Latency.of(seconds[min(3, len(aligned)) :])

    def _lists(self, stage: Stage, queries: FloatArray, depth: int) -> "list[_HitList]":
        self._limiter(len(queries))
        ranked = self._search(stage, queries, depth, consistent=self.consistent)
        if self._is_own_order(stage):
            return self._rescored(queries, ranked)
        if self.candidates.release.guarantee is not Guarantee.EXACT:
            return [_HitList(hits.hits, [hit.score for hit in hits.hits], hits.certified) for hits in ranked]
        score = self.lowering.score
        return [_HitList(hits.hits, [score(hit.raw_score) for hit in hits.hits], None) for hits in ranked]

    def _is_own_order(self, stage: Stage) -> bool:
        """Whether the lists stay in Qdrant's order although that is not the metric's."""
        return not stage.rescored and self.candidates.release.guarantee is not Guarantee.EXACT

    def _search(self, stage: Stage, queries: FloatArray, depth: int, *, consistent: bool) -> list[RankedHits]:
        options: dict[str, Any] = {
            "filter": stage.condition,
            "exact": stage.exact,
            "quantized": stage.quantized,
            "with_payload": ["group", "split"],
            "consistent": consistent,
        }
        candidates, score = self.candidates, self.lowering.score
        if not self._is_own_order(stage):
            return candidates.search(self.target, queries, depth, **options)
        lowered, name = self.lowering.query(queries), candidates.release.name
        lists = candidates.store.search(name, self.target, lowered, depth, ef=candidates.ef, **options)
        return [
            RankedHits([ScoredHit(hit.id, score(hit.raw_score), hit.raw_score, hit.payload) for hit in hits], None, 0)
            for hits in lists
        ]

    def _rescored(self, queries: FloatArray, ranked: Sequence[RankedHits]) -> "list[_HitList]":
        """Score hits by the metric, from the vectors in their payloads; their order stays."""
        candidates = self.candidates
        ids = list({hit.id for hits in ranked for hit in hits.hits})
        records = candidates.store.retrieve(candidates.release.name, ids, consistent=self.consistent)
        read = vectors_of(self.lowering, records, queries.shape[1])
        vectors = dict(zip((record.id for record in records), read, strict=True))
        lists = []
        for query, ranked_hits in zip(queries, ranked, strict=True):
            hits = [hit for hit in ranked_hits.hits if hit.id in vectors]  # the others were deleted meanwhile
            items = np.stack([vectors[hit.id] for hit in hits]) if hits else np.empty((0, len(query)), np.float32)
            scores = own_scores(self.lowering, query[None], items)[0].tolist() if hits else []
            lists.append(_HitList(hits, scores, ranked_hits.certified))
        return lists

    def _ranks(
        self, stage: Stage, query: FloatArray, size: float, group: str, answer: "_HitList", relevant: int, depth: int
    ) -> list[float]:
        """Rank the relevant hits, ascending; irrelevant hits of the same score stand before them."""
        hits = answer.hits
        relevant_scores = np.array([hit.score for hit in hits if hit.payload["group"] == group])
        rivals = np.array([hit.score for hit in hits if hit.payload["group"] != group])
        # Equal items may score apart: a projection rounds by where a row stands in its batch, and so does rescoring.
        floors = self.lowering.floors(relevant_scores, np.full(1, size), np.full(1, self.largest))
        ends_tied = np.zeros(len(relevant_scores), bool)  # the tie may go on beyond the list
        beyond: Scores = np.empty(0)
        if len(relevant_scores) and len(hits) == depth:
            ends_tied = floors <= hits[-1].score
            if ends_tied.any() and not self._is_own_order(stage):
                beyond = self._beyond(stage, query, group, {hit.id for hit in hits}, depth)
        ranks = []
        for place, (own, floor) in enumerate(zip(relevant_scores[:relevant], floors, strict=False)):
            before = int((rivals >= floor).sum())
            if ends_tied[place]:
                # Better items that this stage missed count against another stage, not against this one.
                tied = int(((beyond >= floor) & (beyond <= own + (own - floor))).sum())
                before += depth if self._is_own_order(stage) else tied  # nobody is served in that order
            ranks.append(before + place + 1.0 if before < depth else np.inf)
        return [*ranks, *[np.inf] * (relevant - len(ranks))]

    def _beyond(self, stage: Stage, query: FloatArray, group: str, known: set[str], depth: int) -> Scores:
        """Return the scores of irrelevant points beyond the list (m,), from a search that leaves relevant ones out."""
        condition = _without_group(group, stage.condition)
        self._limiter(1)
        (ranked,) = self.candidates.search(
            self.target,
            query[None],
            depth,
            filter=condition,
            exact=self.exact,
            quantized=stage.quantized,
            with_payload=False,
            consistent=self.consistent,
        )
        return np.array([hit.score for hit in ranked.hits if hit.id not in known])


@dataclass(frozen=True, slots=True)
class _HitList:
    """The hits of one query, with the scores that they are ordered by, and the metric's own scores of them."""

    hits: list[ScoredHit]
    scores: list[float]
    certified: bool | None


def _without_group(group: str, condition: "Filter | None") -> "Filter":
    from qdrant_client.models import FieldCondition, Filter, MatchValue  # takes a second to import

    unwanted = FieldCondition(key="group", match=MatchValue(value=group))
    return Filter(must=[condition] if condition else None, must_not=[unwanted])
