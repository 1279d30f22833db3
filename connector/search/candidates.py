"""Search under any metric: Qdrant finds candidates, and the metric orders them where Qdrant's order is another one.

A metric that lowers exactly takes one search. If a release searches quantized vectors without rescoring, its hits are
scored by their vectors all the same. Under the others every point carries its aligned vector in its payload.
Candidates are fetched page by page in Qdrant's order and rescored with the metric. The search ends when the lowering's
bound says that no other item can enter the first k, or after `max_candidates`.

The bound proves it where Qdrant compared the query with every vector: a graph may miss items, and quantized vectors
choose other candidates.
"""

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alignment.metrics import METRICS, Lowering, Rescored
from alignment.modality import Modality
from connector.errors import QueryError
from connector.releases.aligned_payload import ALIGNED, carried, check_finite, without_aligned
from connector.releases.release import Release
from connector.stores.contract import Store
from connector.stores.points import Hit, Payload

if TYPE_CHECKING:
    from qdrant_client.models import Filter

# Each page is GROWTH times the last one. The first is as long as was enough for the share ENOUGH of the REMEMBERED
# latest queries.
GROWTH = 2
ENOUGH = 0.9
REMEMBERED = 64
RESCORED_AT_ONCE = 256
# These bound the memory: queries whose candidates are held at once, and hits of one request to the store.
QUERIES_AT_ONCE = 64
HITS_AT_ONCE = 1 << 15


class ScoredHit(NamedTuple):
    """A point with the score that it ranks by, higher is better, and the raw score of Qdrant's distance.

    Both are of the vectors themselves, also where quantized vectors chose the point. The score is the metric's own but
    for what the alignment takes off seen items; `Lowering.taken_off` says how much. Under a metric that rescores, the
    raw score is of the distance that Qdrant orders candidates by.
    """

    id: str
    score: float
    raw_score: float
    payload: Payload


@dataclass(frozen=True, slots=True)
class RankedHits:
    """The hits of one query, best first.

    Attributes:
        certified: True if it is proved that no better item was left out. A search along a graph, or of quantized
            vectors, proves nothing. None if the metric has no bound to prove it by.
        candidates: number of items rescored; 0 if Qdrant's order is the metric's own.
    """

    hits: list[ScoredHit]
    certified: bool | None
    candidates: int


def found_share(lowering: Lowering, hits: Sequence[ScoredHit], best: npt.NDArray[np.floating]) -> float:
    """Return the share, in [0, 1], of the exact first k that are among `hits`.

    Args:
        best: scores (k,) of the exact first k, best first. A hit as good as the k-th counts, whatever its id. Of an
            empty list the share is 1.
    """
    if not len(best):
        return 1.0
    found = int((np.array([hit.score for hit in hits]) >= lowering.tied(best[-1])).sum())
    return min(found, len(best)) / len(best)


class CandidateSearch:
    """Searches one release with aligned vectors.

    It remembers how many candidates the latest queries needed, so one page is mostly enough for the next query.

    Attributes:
        ef: `hnsw_ef` of its searches; None: Qdrant's default.
    """

    def __init__(self, release: Release, store: Store):
        self.release = release
        self.store = store
        self.ef = release.hnsw_ef
        self._quantized = release.quantized_search
        self._graph_seen = False
        self._needed: defaultdict[tuple[Modality, int], deque[int]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def search(
        self,
        target: Modality,
        aligned: npt.NDArray[np.floating],
        k: int,
        *,
        filter: "Filter | None" = None,
        exact: bool = False,
        quantized: bool = True,
        max_candidates: int | None = None,
        with_payload: bool | Sequence[str] = True,
        consistent: bool = False,
    ) -> list[RankedHits]:
        """Find the `k` best items of modality `target` for each query.

        Args:
            target: modality of the items.
            aligned: queries (n, d) in the shared space, n of at least 1.
            k: hits a query.
            filter: only items that match it.
            exact: compare with every point instead of searching the HNSW graph.
            quantized: search the quantized vectors, if the release has some, as production does.
            max_candidates: most candidates to fetch for a query; None: the lowering's own number.
            with_payload: whether hits carry their payload, or which fields of it.
            consistent: find what all replicas of a cluster find alike, instead of asking one of each shard. Where
                quantized vectors alone score, one is asked all the same: replicas may quantize apart.

        Raises:
            QueryError: `max_candidates` is below `k`.
            WeightsError: a learned metric returns numbers that are not finite.
        """
        lowering = self.release.lowerings[target]
        if max_candidates is not None and max_candidates < k:
            raise QueryError(f"expected max_candidates of at least k, {k}, got {max_candidates}; raise it, or lower k")
        queries = lowering.query(aligned)
        check_finite(self.release.metric, queries)
        coarse = quantized and not exact and self._is_coarse
        consistent = consistent and not coarse
        options: dict[str, Any] = {"filter": filter, "exact": exact, "quantized": quantized, "consistent": consistent}
        if not isinstance(lowering, Rescored):
            hits = self.store.search(
                self.release.name,
                target,
                queries,
                k,
                ef=self.ef,
                with_payload=with_payload,
                **options,
                **self._quantized,
            )
            if coarse:
                hits = self._scored_by_vectors(lowering, target, queries, hits)
            return _with_scores(lowering, aligned, hits)
        results: list[RankedHits] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            rescoring = [
                _Rescoring(lowering, query, lowered, k, coarse, consistent)
                for query, lowered in zip(aligned[part], queries[part], strict=True)
            ]
            self._complete(rescoring, queries[part], target, k, max_candidates=max_candidates, **options)
            proves = exact or (any(query.finished for query in rescoring) and self._proves(quantized=quantized))
            ranked = [query.ranked(proves=proves) for query in rescoring]
            results += self._with_payloads(ranked, with_payload, consistent=consistent)
        return results

    def _complete(
        self,
        rescoring: "Sequence[_Rescoring]",
        queries: npt.NDArray[np.floating],
        target: Modality,
        k: int,
        *,
        max_candidates: int | None,
        **options: Any,
    ) -> None:
        """Fetch and rescore candidates in growing pages until every query is certified or has `max_candidates`."""
        first = rescoring[0]
        most = max(k, first.lowering.budget) if max_candidates is None else max_candidates
        page = most  # without a bound nothing can end the search earlier
        if first.bound_holds:
            page = min(max(first.lowering.page, 2 * k, self._expected(target, k)), most)
        unfinished = list(range(len(rescoring)))
        while unfinished:
            left = []
            together = max(1, HITS_AT_ONCE // page)
            for start in range(0, len(unfinished), together):
                rows = unfinished[start : start + together]
                pages = self.store.search(
                    self.release.name,
                    target,
                    queries[rows],
                    page,
                    ef=self.ef,
                    with_payload=[ALIGNED],
                    **options,
                    **self._quantized,
                )
                left += [row for row, hits in zip(rows, pages, strict=True) if not rescoring[row].complete(hits, page)]
            if page == most:
                break
            unfinished, page = left, min(GROWTH * page, most)
        self._needed[target, k].extend(query.needed for query in rescoring)

    @property
    def _is_coarse(self) -> bool:
        """Whether Qdrant's scores are those of quantized vectors, which are no scores of the metric."""
        return self._is_quantized and not self._quantized["rescore"]

    @property
    def _is_quantized(self) -> bool:
        return self.release.row.settings.get("quantization") is not None

    def compares_with_all(self, *, quantized: bool = True) -> bool:
        """Say whether HNSW searches until now have compared queries with the vectors of all points."""
        return not (quantized and self._is_quantized) and not self.store.has_graph(self.release.name)

    def _proves(self, *, quantized: bool) -> bool:
        """Whether the bound is a proof. Once a graph was seen, nothing is proved, and the store is not asked again."""
        if quantized and self._is_quantized:
            return False
        self._graph_seen = self._graph_seen or not self.compares_with_all(quantized=quantized)
        return not self._graph_seen

    def _scored_by_vectors(
        self, lowering: Lowering, target: Modality, queries: npt.NDArray[np.floating], lists: list[list[Hit]]
    ) -> list[list[Hit]]:
        """Score hits by their vectors, as Qdrant does without quantization, and sort them by that.

        A point that was deleted meanwhile is no hit.
        """
        ids = list({hit.id for hits in lists for hit in hits})
        records = self.store.retrieve(self.release.name, ids, vector_name=target) if ids else []
        vectors = {record.id: record.vector for record in records if record.vector is not None}
        better = lowering.distance.higher_is_better
        scored = []
        for query, hits in zip(queries, lists, strict=True):
            present = [hit for hit in hits if hit.id in vectors]
            if present:
                raw = _raw_scores(lowering, query, np.stack([vectors[hit.id] for hit in present]))
                present = [hit._replace(raw_score=score) for hit, score in zip(present, raw, strict=True)]
            scored.append(sorted(present, key=lambda hit: hit.raw_score, reverse=better))
        return scored

    def _expected(self, target: Modality, k: int) -> int:
        """Return the page that is enough for most queries; for all, one hard query would make every page as long."""
        latest = sorted(self._needed[target, k])
        return latest[int(ENOUGH * (len(latest) - 1))] + 1 if latest else 0

    def _with_payloads(
        self, results: list[RankedHits], with_payload: bool | Sequence[str], *, consistent: bool
    ) -> list[RankedHits]:
        """Fetch the payloads of the final hits: candidates carry nothing but their vectors."""
        if with_payload is False:
            return results
        ids = list({hit.id for result in results for hit in result.hits})
        payloads: dict[str, Payload] = {}
        for record in self.store.retrieve(self.release.name, ids, consistent=consistent) if ids else ():
            payload = without_aligned(record.payload)
            if with_payload is not True:
                payload = {name: payload[name] for name in with_payload if name in payload}
            payloads[record.id] = payload
        for result in results:  # a point that was deleted meanwhile is no hit
            result.hits[:] = [hit._replace(payload=payloads[hit.id]) for hit in result.hits if hit.id in payloads]
        return results


def _raw_scores(lowering: Lowering, query: npt.NDArray[np.floating], items: npt.NDArray[np.floating]) -> list[float]:
    """Return what Qdrant scores the lowered vectors of items (n, d) for a lowered query (d,), without quantization."""
    scores = METRICS[lowering.distance.lower()].score(query[None], items)[0]
    raw: list[float] = (scores if lowering.distance.higher_is_better else -scores).tolist()
    return raw


def _with_scores(lowering: Lowering, aligned: npt.NDArray[np.floating], answers: list[list[Hit]]) -> list[RankedHits]:
    """Turn Qdrant's raw scores into those that items rank by."""
    offsets = lowering.offset(aligned)
    shifts = [0.0] * len(answers) if offsets is None else offsets.tolist()
    score = lowering.score
    return [
        RankedHits(
            [ScoredHit(hit.id, score(hit.raw_score, shift), hit.raw_score, hit.payload) for hit in hits], None, 0
        )
        for hits, shift in zip(answers, shifts, strict=True)
    ]


@dataclass(slots=True)
class _Rescoring:
    """The candidates of one query, and whether they provably hold the first k.

    Attributes:
        query: aligned vector (d,).
        lowered: the query as Qdrant is asked.
        coarse: raw scores of hits are those of quantized vectors, to which the bound does not apply.
        consistent: hits that replicas do not find alike are left out.
        finished: no more candidates are needed.
    """

    lowering: Rescored
    query: npt.NDArray[np.floating]
    lowered: npt.NDArray[np.floating]
    k: int
    coarse: bool
    consistent: bool
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    finished: bool = False
    needed: int = 0

    def complete(self, hits: Sequence[Hit], page: int) -> bool:
        """Rescore the new ones among `hits`, the best `page` in Qdrant's order; return True if no more are needed."""
        self.needed, before = len(hits), len(self.seen)
        for start in range(0, len(hits), RESCORED_AT_ONCE):
            part = hits[start : start + RESCORED_AT_ONCE]
            self._rescore([hit for hit in part if hit.id not in self.seen])
            if self.bound_holds and len(self.seen) >= self.k:
                kth = np.partition([score for score, _ in self.seen.values()], -self.k)[-self.k]
                if self._proves(part[-1].raw_score, kth):
                    self.needed = bisect_left(hits, True, key=lambda hit: self._proves(hit.raw_score, kth))
                    self.finished = True
                    break
        # Replicas order equal items apart, so that a page of theirs can be short and not the last.
        if len(hits) < page and (not self.consistent or len(self.seen) == before):  # every item that matches was seen
            self.finished = True
        return self.finished

    def _rescore(self, hits: Sequence[Hit]) -> None:
        if hits:
            vectors = carried(hits, self.lowering.item_dim(len(self.query)))
            scores = self.lowering.rescore(self.query, vectors).tolist()
            raw = [hit.raw_score for hit in hits]
            if self.coarse:
                raw = _raw_scores(self.lowering, self.lowered, self.lowering.item(vectors))
            self.seen.update({hit.id: (own, qdrants) for hit, own, qdrants in zip(hits, scores, raw, strict=True)})

    @property
    def bounded(self) -> bool:
        """Whether the lowering has a bound."""
        return self.lowering.bound(0.0) is not None

    @property
    def bound_holds(self) -> bool:
        """Whether the bound can end the search."""
        return self.bounded and not self.coarse

    def _proves(self, raw: float, kth: float) -> bool:
        """Whether no item with a raw score no better than `raw` scores above `kth`."""
        bound = self.lowering.bound(raw)
        return bound is not None and bound <= kth

    def ranked(self, *, proves: bool) -> RankedHits:
        """Return the first k by the score that the metric gives them.

        Args:
            proves: Qdrant compared the query with the vectors of all items, so the bound is a proof.
        """
        best = sorted(self.seen.items(), key=lambda item: -item[1][0])[: self.k]
        proved = self.finished and proves
        certified = proved if proved or self.bounded else None
        return RankedHits([ScoredHit(id_, score, raw, {}) for id_, (score, raw) in best], certified, len(self.seen))
