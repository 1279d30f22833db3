"""Scans: all points of a release are read and tallied, here, or slice by slice by workers that read the store."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from alignment.metrics import Guarantee
from alignment.modality import Modality
from connector.errors import ExecutorError, SettingsError, StrangePointError
from connector.executors.contract import Executor
from connector.executors.opening import open_executor
from connector.executors.placement import LOCAL
from connector.progress import progress
from connector.releases.release import Release
from connector.requests import AuditRequest
from connector.settings import Settings
from connector.stores.contract import Store
from connector.stores.layout import OWN_FIELDS, PayloadKind
from connector.stores.opening import is_shared, open_shared, url_of
from connector.stores.payload_kinds import read_kinds
from connector.stores.points import IdRange, Record, id_ranges

if TYPE_CHECKING:
    from qdrant_client.models import Filter

SLICE_POINTS = 20_000  # of a collection, which a worker reads at a time

Page = Sequence[Record]
R = TypeVar("R")


class Scan(Protocol):
    """Reads all points of a modality with their vectors."""

    def __call__(self, tally: Callable[[Iterable[Page]], R]) -> Iterator[R]:
        """Yield what `tally` makes of the pages of each part of the points, in any order; there is one part at least.

        `tally` may be called in another process.
        """
        ...


def in_one(pages: Callable[[], Iterable[Page]]) -> Scan:
    """Return the scan of points in one part, which `pages` reads."""
    return lambda tally: iter([tally(pages())])


@dataclass(frozen=True, slots=True)
class PointSelection:
    """Points of a collection, and how they are read.

    Attributes:
        collection: their physical collection.
        vector_name: to read with each; None: payloads carry the vectors.
        filter: that they match.
        indexes: indexed payload fields, each with the kind of its values.
        consistent: leave out points that replicas do not hold alike.
    """

    collection: str
    vector_name: str | None
    filter: "Filter"
    indexes: Mapping[str, PayloadKind]
    consistent: bool

    @classmethod
    def of(
        cls, release: Release, target: Modality, condition: "Filter | None" = None, *, consistent: bool = False
    ) -> "PointSelection":
        """Select the points of a modality in a release, within a filter."""
        from qdrant_client.models import Filter, HasVectorCondition  # takes a second to import

        vector_name = target if release.guarantee is Guarantee.EXACT else None  # else payloads carry vectors
        indexes = {name: kind for name, kind in release.indexes.items() if name not in OWN_FIELDS}
        matching = Filter(must=[HasVectorCondition(has_vector=target), *([condition] if condition else [])])
        return cls(release.name, vector_name, matching, indexes, consistent)

    def pages(self, store: Store, ids: IdRange | None = None) -> Iterator[list[Record]]:
        """Yield the points a page at a time, those in a range of ids alone where one is given.

        Raises:
            StrangePointError: the collection holds what modalign did not write.
        """
        for page in store.scroll(
            self.collection,
            vector_name=self.vector_name,
            filter=self.filter,
            consistent=self.consistent,
            ids=ids,
        ):
            for record in page:
                if not isinstance(record.payload.get("group"), str):
                    raise StrangePointError(record.id, "has no group")
                if self.indexes and (refusals := read_kinds(record.payload, self.indexes, stored=True)):
                    raise StrangePointError(record.id, f"is found by no filter: {refusals[0].detail}")
            yield page


@dataclass(frozen=True, slots=True)
class SliceScanner:
    """Has workers read a store slice by slice.

    Attributes:
        executor: of the workers.
        url: of the store, which several processes may read.
    """

    executor: Executor
    url: str

    def scan(self, points: PointSelection, count: int, tally: Callable[[Iterable[Page]], R]) -> Iterator[R]:
        """Yield what `tally` makes of each slice of points.

        Args:
            points: what is read.
            count: of the collection's points, about.
            tally: called by the workers.

        Raises:
            StrangePointError: as of `PointSelection.pages`.
            ExecutorError: a slice could not be read.
        """
        factory = _SliceReaderFactory(self.url, points, tally)
        slices = id_ranges(-(-count // SLICE_POINTS) or 1)
        with progress(f"read {points.collection}", len(slices), "slice") as advance:
            for outcome in self.executor.map(factory, slices):
                if outcome.failure:
                    raise ExecutorError(
                        f"audit of {points.collection}: {outcome.task}: {outcome.failure}; what is exact needs all of "
                        "them: mend the cause and run the same command again",
                        code="slice-failed",
                    )
                for part in outcome.parts:
                    if isinstance(part, StrangePointError):
                        raise part
                    yield part
                advance(1)


@contextmanager
def open_scanner(request: AuditRequest, settings: Settings) -> Iterator[SliceScanner | None]:
    """Open the workers that a request names; None: this process reads the store.

    Raises: as `connector.executors.opening.open_executor`.
        SettingsError: workers cannot read the store, or would not keep the limit of queries a second.
    """
    if request.on != LOCAL and not is_shared(settings):
        raise SettingsError(
            f"--on {request.on}: one process alone can open an embedded store, {url_of(settings)}, and workers are "
            "others; audit it with --on local, or push into a Qdrant server and name that with --qdrant-url",
            code="on",
        )
    if request.on != LOCAL and request.max_qps is not None:
        raise SettingsError(
            f"--max-qps {request.max_qps:g}: workers read all points as fast as the server gives them; leave --max-qps "
            f"or --on {request.on} out",
            code="max-qps",
        )
    with open_executor(request.on, workers=request.workers, gpus_per_worker=request.gpus_per_worker) as executor:
        yield None if executor is None else SliceScanner(executor, settings.store_url)


@dataclass(frozen=True, slots=True)
class _SliceReaderFactory(Generic[R]):
    """Makes a worker that tallies slices of the store at `url`, as `SliceScanner.scan` says."""

    url: str
    points: PointSelection
    tally: Callable[[Iterable[Page]], R]

    def __call__(self) -> Callable[[IdRange], Iterator[R | StrangePointError]]:
        store = open_shared(self.url)

        def read(ids: IdRange) -> Iterator[R | StrangePointError]:
            try:
                yield self.tally(self.points.pages(store, ids))
            except StrangePointError as error:  # a finding about the release, and no failure of the job
                yield error

        return read
