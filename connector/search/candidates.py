"""Search under any metric: Qdrant finds, and where its order is not the metric's own, the metric orders.

A metric that lowers exactly is one search. Under the others every point carries its aligned vector in its payload:
candidates are fetched in Qdrant's order, page after page, and rescored from those, until the lowering's bound proves
that no item left can enter the first k, or until the budget ends.
"""

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alignment.metrics import Lowering, Rescored
from alignment.modality import Modality
from connector.errors import ConnectorError
from connector.releases.aligned_payload import ALIGNED, carried, check_finite
from connector.releases.release import Release
from connector.stores.contract import Hit, Payload, Store

if TYPE_CHECKING:
    from qdrant_client.models import Filter
# Pages: each is so many times the last one, and the first as long as did for so many of the latest queries.
GROWTH = 2
ENOUGH = 0.9
REMEMBERED = 64
RESCORED_AT_ONCE = 256
# Bounds of what is held: queries whose candidates are open at once, and hits of one answer of the store.
QUERIES_AT_ONCE = 64
HITS_AT_ONCE = 1 << 15


class ScoredHit(NamedTuple):
    """A point that was found: the metric's own score, higher is better, and Qdrant's raw score."""

    id: str
    score: float
    raw_score: float
    payload: Payload


@dataclass(frozen=True, slots=True)
class RankedHits:
    """What was found for one query, best first.

    Attributes:
        certified: whether it is proved that nothing better was left out, as far as the index found what it was asked
            for: with an exact search without reservation. None where nothing can be proved.
        candidates: how many items were rescored; 0 where Qdrant's order is the metric's own.
    """

    hits: list[ScoredHit]
    certified: bool | None
    candidates: int


def found_share(lowering: Lowering, got: Sequence[ScoredHit], best: npt.NDArray[np.floating]) -> float:
    """Share of the exact first k that were found, from their scores (k,), best first.

    A hit as good as the k-th counts, whatever its id. Where there is nothing to find, all of it was.
    """
    if not len(best):
        return 1.0
    return float((np.array([hit.score for hit in got]) >= lowering.tied(best[-1])).sum() / len(best))


class CandidateSearch:
    """Searches one release with aligned vectors.

    It remembers how many candidates its latest certificates took, so that one page mostly does for the next query.

    Attributes:
        ef: how far it walks the graph; None: as far as Qdrant does.
    """

    def __init__(self, release: Release, store: Store):
        self.release = release
        self.store = store
        self.ef = release.hnsw_ef
        self._quantized = release.quantized_search
        self._needed: defaultdict[tuple[Modality, int], deque[int]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def find(
        self,
        target: Modality,
        aligned: npt.NDArray[np.floating],
        k: int,
        *,
        filter: "Filter | None" = None,
        exact: bool = False,
        quantized: bool = True,
        budget: int | None = None,
        with_payload: bool | Sequence[str] = True,
    ) -> list[RankedHits]:
        """Find the `k` best items of modality `target` for each of the aligned queries (n, d), n of at least 1.

        Args:
            target: modality of the items.
            aligned: queries in the shared space.
            k: how many to find.
            filter: only items that match it.
            exact: let Qdrant compare with every point instead of walking its index.
            quantized: let it walk over quantized vectors, where the release has some, as production does.
            budget: how many candidates to fetch for a query at most; by default the lowering's own budget.
            with_payload: whether hits carry their payload, or which fields of it.

        Raises:
            ConnectorError: the budget is below `k`.
            WeightsError: a learned metric gives something that is not finite.
        """
        lowering = self.release.lowerings[target]
        if budget is not None and budget < k:
            raise ConnectorError(f"expected a candidate budget of at least k, {k}, got {budget}; raise it or lower k")
        queries = lowering.query(aligned)
        check_finite(self.release.metric, queries)
        if not isinstance(lowering, Rescored):
            found = self.store.search(
                self.release.name,
                target,
                queries,
                k,
                filter=filter,
                exact=exact,
                ef=self.ef,
                with_payload=with_payload,
                quantized=quantized,
                **self._quantized,
            )
            return _own_scores(lowering, aligned, found)
        answers: list[RankedHits] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            rescoring = [_Rescoring(lowering, query, k) for query in aligned[part]]
            asked = {"filter": filter, "exact": exact, "quantized": quantized}
            self._complete(rescoring, queries[part], target, k, budget=budget, **asked)
            answers += self._with_payloads([each.answer() for each in rescoring], with_payload)
        return answers

    def _complete(
        self,
        rescoring: "Sequence[_Rescoring]",
        queries: npt.NDArray[np.floating],
        target: Modality,
        k: int,
        *,
        budget: int | None,
        **asked: Any,
    ) -> None:
        """Fetch and rescore candidates, in growing pages, until every query is certified or the budget ends."""
        first = rescoring[0]
        longest = max(k, first.lowering.budget) if budget is None else budget
        page = longest  # without a bound nothing can end the search earlier
        if first.bounded:
            page = min(max(first.lowering.page, 2 * k, self._expected(target, k)), longest)
        unfinished = list(range(len(rescoring)))
        while unfinished:
            left = []
            together = max(1, HITS_AT_ONCE // page)
            for start in range(0, len(unfinished), together):
                rows = unfinished[start : start + together]
                found = self.store.search(
                    self.release.name,
                    target,
                    queries[rows],
                    page,
                    ef=self.ef,
                    with_payload=[ALIGNED],
                    **asked,
                    **self._quantized,
                )
                left += [row for row, hits in zip(rows, found, strict=True) if not rescoring[row].complete(hits, page)]
            if page == longest:
                break
            unfinished, page = left, min(GROWTH * page, longest)
        self._needed[target, k].extend(each.needed for each in rescoring)

    def _expected(self, target: Modality, k: int) -> int:
        """Length of a page that does for most queries. Not for all: a hard one would have the others fetch as much."""
        latest = sorted(self._needed[target, k])
        return latest[int(ENOUGH * (len(latest) - 1))] + 1 if latest else 0

    def _with_payloads(self, answers: list[RankedHits], with_payload: bool | Sequence[str]) -> list[RankedHits]:
        """Fetch the payloads of those that were chosen: candidates come with their vectors alone."""
        if with_payload is False:
            return answers
        ids = list({hit.id for answer in answers for hit in answer.hits})
        payloads: dict[str, Payload] = {}
        for record in self.store.retrieve(self.release.name, ids) if ids else ():
            payload = {name: value for name, value in record.payload.items() if name != ALIGNED}
            if with_payload is not True:
                payload = {name: payload[name] for name in with_payload if name in payload}
            payloads[record.id] = payload
        for answer in answers:  # what was deleted meanwhile is no hit
            answer.hits[:] = [hit._replace(payload=payloads[hit.id]) for hit in answer.hits if hit.id in payloads]
        return answers


def _own_scores(lowering: Lowering, aligned: npt.NDArray[np.floating], found: list[list[Hit]]) -> list[RankedHits]:
    offsets = lowering.offset(aligned)
    shifts = [0.0] * len(found) if offsets is None else offsets.tolist()
    score = lowering.score
    return [
        RankedHits(
            [ScoredHit(hit.id, score(hit.raw_score, shift), hit.raw_score, hit.payload) for hit in hits], None, 0
        )
        for hits, shift in zip(found, shifts, strict=True)
    ]


@dataclass(slots=True)
class _Rescoring:
    """The candidates of one query, and whether they are proved to hold the first k."""

    lowering: Rescored
    query: npt.NDArray[np.floating]
    k: int
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    certified: bool = False
    needed: int = 0

    def complete(self, hits: Sequence[Hit], page: int) -> bool:
        """Rescore what is new among `hits`, the best `page` in Qdrant's order; say whether nothing is left to fetch."""
        self.needed = len(hits)
        for start in range(0, len(hits), RESCORED_AT_ONCE):
            part = hits[start : start + RESCORED_AT_ONCE]
            self._rescore([hit for hit in part if hit.id not in self.seen])
            if self.bounded and len(self.seen) >= self.k:
                kth = np.partition([score for score, _ in self.seen.values()], -self.k)[-self.k]
                if self._proves(part[-1].raw_score, kth):
                    self.needed = bisect_left(hits, True, key=lambda hit: self._proves(hit.raw_score, kth))
                    self.certified = True
                    break
        if len(hits) < page:  # everything that matches was seen
            self.certified = True
        return self.certified

    def _rescore(self, hits: Sequence[Hit]) -> None:
        if hits:
            vectors = carried(hits, len(self.query))
            scores = self.lowering.rescore(self.query, vectors).tolist()
            self.seen.update({hit.id: (s, hit.raw_score) for hit, s in zip(hits, scores, strict=True)})

    @property
    def bounded(self) -> bool:
        """Whether the lowering has a bound at all."""
        return self.lowering.bound(0.0) is not None

    def _proves(self, raw: float, kth: float) -> bool:
        """Whether no item with a raw score no better than `raw` scores above `kth`."""
        bound = self.lowering.bound(raw)
        return bound is not None and bound <= kth

    def answer(self) -> RankedHits:
        """The first k by the metric's own score."""
        best = sorted(self.seen.items(), key=lambda item: -item[1][0])[: self.k]
        certified = self.certified if self.certified or self.bounded else None
        return RankedHits([ScoredHit(id_, score, raw, {}) for id_, (score, raw) in best], certified, len(self.seen))
