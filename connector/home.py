"""A home: everything modalign does, as one object with one method a command.

    with Home(Settings.load(home="demo-home")) as home:
        home.push(PushRequest(set="emoji", into="emoji", alignment="emoji"))
        retriever = home.retriever("emoji")
        hits = retriever.search_texts(["a red car"])

A method that changes something takes a request of `connector.requests`, is recorded as a run in SQL with its counts and
its outcome, also when it fails, and returns a `RunResult`.

Methods import what they call: `status` reads SQL, and must not load numpy, pyarrow, trainers, readers, charts and
templates. It takes half the time for that.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self

from alignment.object_storage import check_reachable, is_remote
from alignment.packages import check_extra
from connector.errors import NotMigratedError, SettingsError
from connector.progress import progress
from connector.provenance.database import create_in_sqlite, is_absent
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run, RunRejects, RunResult
from connector.provenance.tables import ReleaseRow
from connector.releases.choice import newest_ready
from connector.releases.lag import Lag, lag_of
from connector.releases.next_audit import audit_command
from connector.releases.status import Status, StoredRelease, read_closed, read_replicas, read_status, read_stored
from connector.releases.store_identity import here, no_release
from connector.safe_text import split_urls
from connector.settings import Settings, checked_name
from connector.states import ReleaseState
from connector.stores.deadlines import within
from connector.stores.opening import closed_points, is_shared, open_store, url_of

if TYPE_CHECKING:
    from alignment.geometry.geometry import Geometry
    from alignment.modality import Modality
    from alignment.model.alignment import Alignment
    from alignment.model.onnx_export import Graph
    from alignment.sets.cards import Dtype, EncoderCard
    from alignment.sets.embedding_set import EmbeddingSet
    from connector.audits.history import AuditSummary
    from connector.audits.result import Audit
    from connector.corpora.items import Corpus
    from connector.push.delete import DeletionPreview
    from connector.push.ingest import Confirm
    from connector.recorded_request import Request
    from connector.releases.inventory import HeldAlignment, HeldSet, SetGroups
    from connector.releases.merge import StoreMerge
    from connector.releases.promotion import AliasSwitch, Lifecycle
    from connector.releases.reconcile import ReconcileReport
    from connector.releases.release import Release
    from connector.reports.compare_report import Compared
    from connector.requests import (
        AuditRequest,
        CompareRequest,
        DeleteRequest,
        DropRequest,
        EncodeRequest,
        ExportRequest,
        FitRequest,
        GapRequest,
        ImportRequest,
        IngestRequest,
        MergeStoresRequest,
        PromoteRequest,
        PushRequest,
        RepairRequest,
        RollbackRequest,
        SearchRequest,
    )
    from connector.search.query import QueryResult
    from connector.search.retriever import Retriever
    from connector.stores.contract import Store
    from connector.stores.replicas import Replicas


STATUS_SECONDS = 10.0  # how long a status waits for a server: SQL has the rest of it


class Home:
    """The embedding sets, alignments and databases that the settings name. Use as a context manager.

    `encode` and `import_vectors` make the tables of a home that holds nothing yet, if its database is SQLite. What only
    lists finds nothing in such a home.
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

    def encode(self, request: "EncodeRequest") -> "RunResult[EmbeddingSet]":
        """Encode a corpus into an embedding set."""
        from alignment.sets.writer import check_may_add
        from connector.corpora.formats import open_corpus
        from connector.encoding.embedding_sets import encode_corpus, encoders_of_set
        from connector.encoding.placement import executor_of

        self._begin()
        with self._run(request) as run:
            path = self.settings.set_path(request.set)
            corpus = open_corpus(request.corpus, **request.reading)
            check_may_add(path, request.encoders, request.dtype)
            with executor_of(request, request.encoders) as executor:
                written = encode_corpus(
                    corpus,
                    path,
                    encoders_of_set(path, request.encoders, self.settings.device),
                    self.provenance,
                    run,
                    dtype=request.dtype,
                    batch_items=request.batch_size,
                    shard_rows=request.shard_size,
                    max_pixels=self.settings.max_pixels,
                    executor=executor,
                    device=self.settings.device,
                )
        return RunResult(run.id, run.counts, written)

    def import_vectors(self, request: "ImportRequest") -> "RunResult[EmbeddingSet]":
        """Take vectors that were computed elsewhere into an embedding set."""
        from connector.encoding.embedding_sets import import_vectors

        self._begin()
        with self._run(request) as run:
            imported = import_vectors(request, self.settings.set_path(request.set), self.provenance, run)
        return RunResult(run.id, run.counts, imported)

    def fit(self, request: "FitRequest") -> "RunResult[Alignment]":
        """Fit an alignment on embedding sets. One that a killed run of the same request finished is taken as it is.

        Raises:
            AlignmentError: the alignment exists, or another process is fitting it.
        """
        from alignment.device import resolve
        from alignment.distributed import process_group
        from connector.recorded_fit import fit_along, fit_and_save  # loads torch

        resolve(self.settings.device)
        path, device = self.settings.alignment_path(request.alignment), self.settings.device
        with process_group() as rank:
            if rank:  # the first process records and writes
                return RunResult(0, {}, fit_along(request, path, self.embedding_set, device=device))
            with self._run(request, device=device) as run:
                alignment = fit_and_save(request, path, self.embedding_set, self.provenance, run, device=device)
            return RunResult(run.id, run.counts, alignment)

    def compare(self, request: "CompareRequest") -> "RunResult[Compared]":
        """Compare encoder pairs, methods and metrics on embedding sets, and write a report."""
        from alignment.device import resolve
        from connector.reports.compare_report import compare_and_report

        resolve(self.settings.device)
        with self._run(request) as run:
            sets = [self.embedding_set(name) for name in dict.fromkeys(request.sets)]
            directory = request.to or self.settings.home / "reports" / f"compare-{run.id}"
            compared = compare_and_report(request, sets, directory, device=self.settings.device)
            run.counts["fits"] = len(compared.comparison.fitted)
            run.counts["rows"] = sum(len(fitted.rows) for fitted in compared.comparison.fitted)
            run.counts["not_run"] = len(compared.comparison.not_run)
        return RunResult(run.id, run.counts, compared)

    def gap(self, request: "GapRequest") -> "RunResult[Geometry]":
        """Measure the geometry of held-out groups of an embedding set, with Recall@K beside it."""
        from connector.audits.gap import measure_gap

        with self._run(request) as run:
            alignment = None if request.alignment is None else self.alignment(request.alignment)
            measured = measure_gap(request, self.embedding_set(request.set), alignment)
            run.counts["groups"], run.counts["left_out"] = measured.groups, measured.left_out
        return RunResult(run.id, run.counts, measured)

    def push(self, request: "PushRequest") -> "RunResult[list[Release]]":
        """Push an embedding set through an alignment into a collection, one release a metric."""
        with self._run(request) as run:
            checked_name(request.into, "collection")
            alignment, embedding_set = self.alignment(request.alignment), self.embedding_set(request.set)
            releases = self._push(request, embedding_set, alignment, run)
        self._compile(alignment)
        return RunResult(run.id, run.counts, releases)

    def push_rows(
        self, request: "PushRequest", rows: "Corpus", encoders: "Mapping[Modality, EncoderCard]", *, dtype: "Dtype"
    ) -> "RunResult[list[Release]]":
        """Take items with vectors into the embedding set of a push, then push the set, in one run.

        Args:
            request: the set and the push.
            rows: the items, whose contents are vectors.
            encoders: which encoder computed these, by modality.
            dtype: of the vectors that the set stores.
        """
        from connector.encoding.embedding_sets import take_vectors

        with self._run(request) as run:
            checked_name(request.into, "collection")
            alignment, path = self.alignment(request.alignment), self.settings.set_path(request.set)
            embedding_set = take_vectors(rows, path, encoders, self.provenance, run, dtype=dtype)
            releases = self._push(request, embedding_set, alignment, run)
        self._compile(alignment)
        return RunResult(run.id, run.counts, releases)

    def _push(
        self, request: "PushRequest", embedding_set: "EmbeddingSet", alignment: "Alignment", run: Run
    ) -> "list[Release]":
        from connector.push.session import metrics_to_push, push

        with progress(f"push {embedding_set.card.name}", sum(embedding_set.card.counts.values()), "row") as advance:
            return push(
                embedding_set,
                alignment,
                set_id=self.provenance.artifacts.record_set(embedding_set),
                alignment_id=self._record_alignment(request.alignment, alignment),
                collection=request.into,
                metrics=metrics_to_push(request.metrics, request.alignment, alignment),
                store=self.store,
                provenance=self.provenance,
                run=run,
                advance=advance,
                fresh_layout=request.fresh_layout,
                take_over=request.take_over,
                min_index_recall=request.min_index_recall,
                max_points_per_second=request.max_points_per_second,
                **request.layout,
            )

    def ingest(self, request: "IngestRequest", *, prune: "Confirm | None" = None) -> "RunResult[list[Release]]":
        """Encode a corpus with the alignment's own encoders and push it, in one run.

        Args:
            request: what to ingest.
            prune: asked before items that have left the corpus are deleted, with their number; None: they stay.
        """
        from connector.push.ingest import ingest

        with self._run(request) as run:
            checked_name(request.into, "collection")
            alignment = self.alignment(request.alignment)
            releases = ingest(
                request,
                alignment,
                self._record_alignment(request.alignment, alignment),
                path=self.settings.set_path(request.set_name),
                store=self.store,
                provenance=self.provenance,
                run=run,
                device=self.settings.device,
                max_pixels=self.settings.max_pixels,
                prune=prune,
            )
        self._compile(alignment)
        return RunResult(run.id, run.counts, releases)

    def delete(
        self, request: "DeleteRequest", *, confirm: "Callable[[DeletionPreview], bool]" = lambda preview: True
    ) -> RunResult[bool]:
        """Delete items from every release of a collection and from their embedding sets.

        Other collections lose what they hold of these sets, too. The value of the result is the answer of `confirm`.
        """
        from connector.push.delete import Deletion
        from connector.stores.filters import parse_filter

        condition = None if request.filter is None else parse_filter(request.filter)
        with self._run(request) as run:
            checked_name(request.collection, "collection")
            agreed = Deletion(request.collection, self.store, self.provenance, run).delete(
                keys=request.keys,
                groups=request.groups,
                filter=condition,
                modalities=request.modalities,
                confirm=confirm,
            )
        return RunResult(run.id, run.counts, agreed)

    def merge_stores(
        self, request: "MergeStoresRequest", *, confirm: "Callable[[StoreMerge], bool]" = lambda found: True
    ) -> RunResult[bool]:
        """Make one store in SQL of the one at an address and of the one that the settings name: they are one server.

        The value of the result is the answer of `confirm`.
        """
        from connector.releases.merge import find_merge, merge

        with self._run(request) as run:
            found = find_merge(self.provenance, self.store, request.address)
            agreed = confirm(found)
            if agreed:
                merge(self.provenance, self.store, found, run)
                run.counts["releases"] = len(found.rows)
        return RunResult(run.id, run.counts, agreed)

    def retry(self, run: int) -> "RunResult[EmbeddingSet] | RunResult[list[Release]]":
        """Run an encode, a push or an ingest again, as it was run: what it refused is tried again.

        Raises:
            SettingsError: the run was of another command, or of a modalign that did not record enough.
            ProvenanceError: there is no such run.
        """
        from connector.requests import RETRIED, EncodeRequest, IngestRequest, PushRequest

        row = self.provenance.runs.get(run)
        if row.command not in RETRIED:
            raise SettingsError(
                f"run {run} is of `modalign {row.command}`; expected a run of {', '.join(RETRIED)} to try again"
            )
        request = RETRIED[row.command].from_parameters(row.parameters)
        match request:
            case EncodeRequest():
                return self.encode(request)
            case PushRequest():
                return self.push(request)
            case IngestRequest():
                return self.ingest(request)

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

    def promote(self, request: "PromoteRequest") -> "RunResult[list[AliasSwitch]]":
        """Make ready releases live, if their audits allow it or a reason is given."""
        from connector.releases.promotion import PromotionOverride, this_person

        forced = None if request.reason is None else PromotionOverride(this_person(), request.reason)
        with self._run(request) as run:
            switched = self._lifecycle(request.collection).promote(
                run.id, metrics=request.metrics, names=request.releases, forced=forced, request=request.request
            )
            run.counts["promoted"] = len(switched)
        return RunResult(run.id, run.counts, switched)

    def rollback(self, request: "RollbackRequest") -> "RunResult[list[AliasSwitch]]":
        """Undo the last promotion of a collection."""
        with self._run(request) as run:
            switched = self._lifecycle(request.collection).rollback(
                run.id, metrics=request.metrics, to=request.to, request=request.request
            )
            run.counts["rolled_back"] = len(switched)
        return RunResult(run.id, run.counts, switched)

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

    def drop(self, request: "DropRequest") -> RunResult[list[ReleaseRow]]:
        """Drop releases of a collection by name, never the live one; or forget what another database has taken over."""
        from connector.encoding.compiled import DIRECTORY, remove_unused
        from connector.releases.dropping import drop, droppable, forget

        with self._run(request) as run:
            lifecycle = self._lifecycle(request.collection)
            with lifecycle.exclusive(run.id):
                if request.taken_over:
                    rows = forget(lifecycle, request.releases)
                else:
                    rows = droppable(lifecycle, names=request.releases)
                    drop(lifecycle, rows)
            run.counts["dropped"] = len(rows)
        if not is_remote(self.settings.home):
            remove_unused(self.settings.home / DIRECTORY, self._text_encoders())
        return RunResult(run.id, run.counts, rows)

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

    def repair(self, request: "RepairRequest") -> "RunResult[list[ReconcileReport]]":
        """Repair those releases from their embedding sets; the value of the result is what `verify` then finds."""
        from connector.releases.reconcile_releases import repair_releases

        with self._run(request) as run:
            repair_releases(
                self.provenance,
                self.store,
                run,
                request.collection,
                full=request.full,
                device=self.settings.device,
                orphans=request.delete_orphans,
            )
            reports = self.verify(request.collection, full=request.full)
        return RunResult(run.id, run.counts, reports)

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

    def export(self, request: "ExportRequest") -> "RunResult[list[Graph]]":
        """Write an alignment under a metric as ONNX graphs, with which a service searches without modalign."""
        check_extra("export", "an export")  # before torch is imported
        from connector.search.export import export_request

        with self._run(request) as run:
            graphs = export_request(request, self.alignment(request.alignment), self.provenance, lambda: self.store)
            run.counts["graphs"] = len(graphs)
        return RunResult(run.id, run.counts, graphs)

    def audit(self, request: "AuditRequest") -> "RunResult[list[Audit]]":
        """Audit a release, or all that one promotion would switch, with the pairs of an embedding set.

        Nothing in the store is changed.
        """
        from connector.audits.point_scan import open_scanner
        from connector.audits.run import rows_to_audit, run_audits
        from connector.reports.audit_context import audit_context
        from connector.reports.audit_page import audit_pages, write_audit_page
        from connector.reports.page_files import claim_page

        with self._run(request) as run, open_scanner(request, self.settings) as workers:
            rows = rows_to_audit(request, self.store, self.provenance)
            pages = audit_pages(request.report, rows)
            for page in pages:
                claim_page(page)
            pairs = self.embedding_set(request.pairs)
            audits = run_audits(
                *(request, rows, pairs, self.store, self.provenance, run),
                device=self.settings.device,
                workers=workers,
            )
        for page, audit in zip(pages, audits, strict=False):
            context = audit_context(audit, pairs, request.require, run.id, self.provenance)
            write_audit_page(page, audit, context, max_pixels=self.settings.max_pixels)
        return RunResult(run.id, run.counts, audits)

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
        rows = self._releases(collection, dropped_at=None)
        rows = newest_ready(rows) or [row for row in rows if row.state in (ReleaseState.READY, ReleaseState.LIVE)]
        return audit_command(self.provenance, rows[-1]) if rows else f"modalign audit {collection} --pairs SET"

    def _releases(self, collection: str, **where: Any) -> list[ReleaseRow]:
        # At a known address SQL alone is read: a process that has the store open does not block it.
        at = self.provenance.stores.at(split_urls(url_of(self.settings)))
        store_id = at[0] if len(at) == 1 else here(self.provenance, self.store)
        return self.provenance.releases.find(store_id=store_id, collection=collection, **where)

    def _begin(self) -> None:
        # Where artifacts are, tables were: an empty database in their place would hide that it is lost. This is looked
        # at before the tables, because another process may begin at the same time.
        if not self._has_artifacts:
            create_in_sqlite(self.settings.database_url)

    @property
    def _has_artifacts(self) -> bool:
        return any((self.settings.home / name).exists() for name in ("sets", "alignments", "qdrant"))

    def _run(self, request: "Request", **more: Any) -> AbstractContextManager[Run]:
        return self.provenance.runs.start(request.command, {**request.parameters, **more})

    def _record_alignment(self, name: str, alignment: "Alignment") -> int:
        return self.provenance.artifacts.record_alignment(name, self.settings.alignment_path(name), alignment)

    def _compile(self, alignment: "Alignment") -> None:
        """Compile the text encoder of what was pushed, so that searches need not load it; see docs/service.md."""
        from connector.encoding.compiled import DIRECTORY  # loads Pillow
        from connector.encoding.compiling import compile_text_encoder

        if not is_remote(self.settings.home):
            compile_text_encoder(self.settings.home / DIRECTORY, alignment.card.encoders["text"])

    def _text_encoders(self) -> set[str]:
        """Return the fingerprints of the text encoders of all releases that were not dropped."""
        artifacts = self.provenance.artifacts
        alignments = {row.alignment_id for row in self.provenance.releases.find(dropped_at=None)}
        return {artifacts.encoders(artifacts.alignment(number))["text"].fingerprint for number in alignments}

    def _lifecycle(self, collection: str) -> "Lifecycle":
        from connector.releases.promotion import Lifecycle

        return Lifecycle(self.provenance, self.store, collection, device=self.settings.device)
