"""The release under audit: how its points are read, how its queries are aligned, and what runs searches."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from alignment.modality import DIRECTIONS, Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.vectors import FloatArray
from connector.audits.galleries import QuerySet
from connector.audits.plan import LONGEST, AuditPlan
from connector.audits.point_scan import PointSelection, Scan, SliceScanner, in_one
from connector.audits.reference import Truth, truth
from connector.audits.stages import RateLimiter, Stage, StageRunner
from connector.errors import FilterRefusedError
from connector.progress import Advance, progress
from connector.releases.release import Release
from connector.search.candidates import CandidateSearch
from connector.stores.collection import CollectionInfo
from connector.stores.contract import Store
from connector.stores.points import Record

if TYPE_CHECKING:
    from qdrant_client.models import Filter

FILTERED_GROUPS = 10_000  # groups that one filter names: some 400 kB, which go with the request of every page


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSubject:
    """A release, and how this audit queries it.

    Attributes:
        release: an open release in `store`.
        info: its collection.
        plan: of the audit.
        pairs: the embedding set of the queries.
        queries: by modality.
        filters: to search within, by the names of their stages.
        stages: that the store answers, in the order of a search; the last is production's search.
        refused: stages that the store refuses to answer.
        why_refused: the store's reason; None where it refuses nothing.
        candidates: searches the release.
        limiter: of queries a second.
        advance: called with the number of queries done since.
        workers: read all points; None: this process does.
    """

    release: Release
    store: Store
    info: CollectionInfo
    plan: AuditPlan
    pairs: EmbeddingSet
    queries: Mapping[Modality, QuerySet]
    filters: "Mapping[str, Filter]"
    stages: Sequence[Stage]
    refused: Sequence[Stage] = ()
    why_refused: str | None = None
    candidates: CandidateSearch
    limiter: RateLimiter
    advance: Advance
    workers: SliceScanner | None = None

    def align(self, rows: Rows) -> FloatArray:
        """Return the aligned vectors of rows (n, d)."""
        return self.release.alignment.project(rows.modality, rows.vectors)

    def runner(self, target: Modality, largest: float) -> StageRunner:
        """Return what runs queries for items of `target`, whose largest point has the size `largest`."""
        return StageRunner(
            self.candidates,
            target,
            self.plan.ks,
            self.plan.k,
            self._ef,
            largest,
            self.limiter,
            exact=self.why_refused is None,
            consistent=self.consistent,
        )

    @property
    def consistent(self) -> bool:
        """Whether the collection has replicas: the audit reads what all of them hold and find alike."""
        return self.info.has_replicas

    @property
    def _ef(self) -> int:
        """How many candidates an HNSW search keeps; without a graph every search compares with all points."""
        if not self.info.indexed:
            return self.info.points + LONGEST
        most = self.store.search_limits(self.release.name).ef
        ef = self.candidates.ef or self.info.ef_construct or 0
        return ef if most is None else min(ef, most)

    def pages(self, target: Modality, condition: "Filter | None" = None) -> Iterator[list[Record]]:
        """Yield the points of a modality with their vectors, a page at a time.

        Raises:
            StrangePointError: the collection holds what modalign did not write.
        """
        with progress(f"read {self.release.name}", None, "point") as advance:
            for page in self._select(target, condition).pages(self.store):
                self.limiter(1)
                advance(len(page))
                yield page

    def scan(self, target: Modality) -> Scan:
        """Return the scan of all points of a modality with their vectors, by the workers if there are some.

        Raises: as `pages`, and as `SliceScanner.scan`.
        """
        if self.workers is None:
            return in_one(lambda: self.pages(target))
        return partial(self.workers.scan, self._select(target), self.info.points)

    def _select(self, target: Modality, condition: "Filter | None" = None) -> PointSelection:
        return PointSelection.of(self.release, target, condition, consistent=self.consistent)

    def truth(self, direction: str, query_set: QuerySet, aligned: FloatArray, keep: Collection[str] = ()) -> Truth:
        """Search exactly by the metric itself, over all points, with queries (n, d); keep the vectors of `keep`."""
        _, target = DIRECTIONS[direction]
        lowering, depth, groups = self.release.lowerings[target], self.plan.ks[-1] + 1, set(query_set.rows.groups)
        return truth(
            lowering,
            query_set,
            aligned,
            depth,
            self.scan(target),
            relevant=in_one(lambda: self._pages_of(target, groups)) if len(groups) <= FILTERED_GROUPS else None,
            keep=keep,
        )

    def _pages_of(self, target: Modality, groups: Collection[str]) -> Iterator[list[Record]]:
        """Yield the points of some groups as `pages` does; all points, where the store refuses such a filter."""
        from qdrant_client.models import FieldCondition, Filter, MatchAny  # takes a second to import

        condition = Filter(must=[FieldCondition(key="group", match=MatchAny(any=sorted(groups)))])
        try:
            yield from self.pages(target, condition)
        except FilterRefusedError:  # strict mode limits conditions; it refuses the first page
            yield from self.pages(target)
