"""What there is in a home, to read: its releases, sets, alignments, audits and what searches find.

No method here changes a release, a set or an alignment, and none is recorded as a run.

Methods import what they call: `status` reads SQL, and must not load numpy, pyarrow, trainers, readers, charts and
templates. It takes half the time for that.
"""

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from alignment.object_storage import check_reachable, is_remote
from connector.errors import NotMigratedError
from connector.provenance.database import is_absent
from connector.provenance.recorder import Provenance
from connector.provenance.runs import RunRejects
from connector.releases.lag import Lag, lag_of
from connector.releases.next_audit import next_audit_command
from connector.releases.status import Status, StoredRelease, read_closed, read_replicas, read_status, read_stored
from connector.releases.store_identity import here, no_release, recorded_releases
from connector.settings import Settings
from connector.states import ReleaseState
from connector.stores.deadlines import within
from connector.stores.opening import closed_points, is_shared, open_store, url_of

if TYPE_CHECKING:
    from alignment.model.alignment import Alignment
    from alignment.sets.embedding_set import EmbeddingSet
    from connector.audits.history import AuditSummary
    from connector.provenance.tables import ReleaseRow
    from connector.releases.inventory import HeldAlignment, HeldSet, SetGroups
    from connector.releases.promotion import Lifecycle
    from connector.releases.reconcile import ReconcileReport
    from connector.requests import SearchRequest
    from connector.search.query import QueryResult
    from connector.search.retriever import Retriever
    from connector.stores.contract import Store
    from connector.stores.replicas import Replicas


STATUS_SECONDS = 10.0  # how long a status waits for a server: SQL has the rest of it


class HomeReader:
    """The embedding sets, alignments and databases that the settings name. Use as a context manager.

    What lists things finds nothing in a home that holds nothing yet.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self._opening = threading.Lock()  # of several threads that need the database or the store first, one opens it
        self._provenance: Provenance | None = None
        self._store: Store | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._store.close()
        if self._provenance is not None:
            self._provenance.close()

    @property
    def is_new(self) -> bool:
        """Whether nothing was made here yet; a home that lost its database, or has one elsewhere, is not new."""
        return is_absent(self.settings.database_url) and not self._has_artifacts

    @property
    def first_steps(self) -> str:
        """How to begin in a home that holds nothing yet."""
        return (
            f"{self.settings.home} holds nothing yet: `modalign encode` begins with a corpus of yours, `modalign "
            "import` with vectors, `modalign demo` with emoji; --home or MODALIGN_HOME names another home"
        )

    @property
    def provenance(self) -> Provenance:
        """The provenance database, opened at the first use.

        Raises:
            NotMigratedError: nothing was made in this home yet; or its tables are missing or older ones.
        """
        with self._opening:
            if self._provenance is None:
                if self.is_new:
                    raise NotMigratedError(self.first_steps, code="home-new")
                if is_remote(self.settings.home):
                    check_reachable(self.settings.home)
                self._provenance = Provenance.open(self.settings.database_url, home=self.settings.home)
                self.settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)  # for its owner alone, if it is new
            return self._provenance

    @property
    def store(self) -> "Store":
        """The Qdrant store, opened at the first use: an embedded one serves one process at a time."""
        with self._opening:
            if self._store is None:
                self._store = open_store(self.settings)
            return self._store

    def embedding_set(self, name: str) -> "EmbeddingSet":
        """Open the embedding set `name`."""
        from connector.releases.tombstones import open_set

        return open_set(self.provenance, self.settings.set_path(name))

    def alignment(self, name: str) -> "Alignment":
        """Load the alignment `name`."""
        from alignment.model.alignment import Alignment

        return Alignment.load(self.settings.alignment_path(name))

    def rejects(self, run: int | None = None) -> RunRejects:
        """Return what a run refused; without `run`, the last run that refused anything.

        Raises:
            ProvenanceError: there is no such run.
        """
        if self.is_new and run is None:
            return RunRejects(None, [])
        number = run if run is not None else self.provenance.runs.last_with_rejects()
        return RunRejects(number, [] if number is None else self.provenance.runs.rejects(number))

    def status(self, collection: str | None = None, *, runs: int = 10) -> Status:
        """Return the releases, of `collection` or all, and the last `runs` runs. Opens no store.

        Raises:
            CollectionNotFoundError: there never was a release of `collection`.
        """
        if self.is_new and collection is None:
            return Status([], [])
        return read_status(self.provenance, collection, runs=runs)

    def stored(self, collection: str | None = None) -> dict[int, StoredRelease]:
        """Return by id of a release, of `collection` or all of this store, what it holds, and what differs from SQL.

        An embedded store is not opened: it says what its collections held when they were closed.

        Raises:
            StoreError: the store cannot be asked within `STATUS_SECONDS`.
        """
        if self.is_new:
            return {}
        where = {"dropped_at": None} if collection is None else {"dropped_at": None, "collection": collection}
        if not is_shared(self.settings):
            stores = self.provenance.stores.at([url_of(self.settings)])
            rows = [row for row in self.provenance.releases.find(**where) if row.store_id in stores]
            return read_closed(self.provenance, closed_points(self.settings), rows)
        with within(STATUS_SECONDS):
            rows = self.provenance.releases.find(**where, store_id=here(self.provenance, self.store))
            return read_stored(self.provenance, self.store, rows)

    def sets(self) -> "list[HeldSet]":
        """Return the embedding sets of this home, and those elsewhere that SQL recorded. Opens no store."""
        from connector.releases.inventory import held_sets

        return [] if self.is_new else held_sets(self.provenance, self.settings.home / "sets")

    def set_groups(self, held: "HeldSet") -> "SetGroups | None":
        """Count the groups of an embedding set and how many captions its images have; None: it cannot be read.

        Raises:
            EmbeddingSetError: a shard cannot be read.
        """
        from alignment.sets.embedding_set import EmbeddingSet
        from connector.releases.inventory import SetGroups

        return None if held.card is None else SetGroups.of(EmbeddingSet(held.path, held.card))

    def alignments(self) -> "list[HeldAlignment]":
        """Return the alignments of this home, and those elsewhere that SQL recorded. Opens no store."""
        from connector.releases.inventory import held_alignments

        return [] if self.is_new else held_alignments(self.provenance, self.settings.home / "alignments")

    def replicas(self, collection: str) -> "dict[str, Replicas]":
        """Return by release of `collection` where its replicas are. An embedded store has none, and is not opened.

        Raises:
            StoreError: the store cannot be asked within `STATUS_SECONDS`.
        """
        if self.is_new or not is_shared(self.settings):
            return {}
        with within(STATUS_SECONDS):
            return read_replicas(self.store, self._lifecycle(collection).rows())

    def lag(self) -> dict[int, Lag]:
        """Return by release, without retired ones, how many rows of its embedding sets it does not hold."""
        return {
            row.id: lag_of(self.provenance, row)
            for row in self.provenance.releases.find()
            if row.state != ReleaseState.RETIRED
        }

    def verify(
        self, collection: str | None = None, *, seed: int | None = None, full: bool = False
    ) -> "list[ReconcileReport]":
        """Reconcile the live and ready releases, of `collection` or of all, with SQL and the embedding sets.

        All payloads are compared, and a sample of the vectors: another one each time, unless `seed` repeats one. `full`
        compares all. A release that cannot be compared is reported as `broken`; the others are reconciled all the same.
        """
        from connector.releases.reconcile_releases import reconcile_releases

        if self.is_new and collection is None:
            return []
        return reconcile_releases(
            self.provenance,
            self.store,
            collection,
            seed=int.from_bytes(os.urandom(4)) if seed is None else seed,
            full=full,
            device=self.settings.device,
        )

    def droppable(self, collection: str, *, names: Sequence[str] = (), retired: bool = False) -> dict[str, bool]:
        """Return the releases that `drop` would drop, and of each whether a rollback would return to it."""
        from connector.releases.dropping import droppable, returns_to

        lifecycle = self._lifecycle(collection)
        rows = droppable(lifecycle, names=names, retired=retired)
        return {row.physical_name: returns_to(lifecycle, row) for row in rows}

    def taken_over(self, collection: str) -> list[str]:
        """Return the releases of a collection that another database has taken over, which `drop` can forget."""
        from connector.releases.dropping import taken_over

        return [row.physical_name for row in taken_over(self._lifecycle(collection))]

    def retriever(
        self,
        collection: str,
        metric: str | None = None,
        *,
        deadline: float | None = None,
        keeps_encoders: bool = True,
    ) -> "Retriever":
        """Open the live release of `collection` for searching, each search within `deadline` seconds.

        `keeps_encoders` as `Retriever` takes it.
        """
        from connector.search.retriever import Retriever

        return Retriever.open(
            self.provenance,
            self.store,
            collection,
            metric,
            device=self.settings.device,
            max_pixels=self.settings.max_pixels,
            deadline=deadline,
            keeps_encoders=keeps_encoders,
        )

    def search(self, request: "SearchRequest") -> "QueryResult":
        """Search the live release of a collection with one text or one image. No run records it."""
        from connector.search.query import search
        from connector.stores.filters import parse_filter

        condition = None if request.filter is None else parse_filter(request.filter)
        return search(self.retriever(request.collection, request.metric, keeps_encoders=False), request, condition)

    def audits(self, collection: str, *, metric: str | None = None, limit: int = 30) -> "list[AuditSummary]":
        """Return the newest audits of the releases of `collection`, oldest first.

        Raises:
            CollectionNotFoundError: there never was such a release.
        """
        from alignment.metrics import parse
        from connector.audits.history import history

        where = {"metric": str(parse(metric))} if metric else {}
        rows = self._releases(collection, **where)
        if not rows:
            raise no_release(self.provenance, None, collection)
        return history(self.provenance, rows, limit=limit)

    def next_audit(self, collection: str) -> str:
        """Return the command that audits the shadows of a collection, or what is live where there are none."""
        return next_audit_command(self.provenance, collection, self._releases(collection, dropped_at=None))

    def _releases(self, collection: str, **where: Any) -> "list[ReleaseRow]":
        address = url_of(self.settings)
        return recorded_releases(self.provenance, address, lambda: self.store, collection, **where)

    @property
    def _has_artifacts(self) -> bool:
        return any((self.settings.home / name).exists() for name in ("sets", "alignments", "qdrant"))

    def _lifecycle(self, collection: str) -> "Lifecycle":
        from connector.releases.promotion import Lifecycle

        return Lifecycle(self.provenance, self.store, collection, device=self.settings.device)
