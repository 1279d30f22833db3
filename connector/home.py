"""A home: everything modalign does, as one object with one method a command.

    with Home(Settings.load(home="demo-home")) as home:
        home.push(PushRequest(set="emoji", into="emoji", alignment="emoji"))
        retriever = home.retriever("emoji")
        hits = retriever.search_texts(["a red car"])

The methods here change something, or compute for long. Each takes a request of `connector.requests`, is recorded as a
run in SQL with its counts and its outcome, also when it fails, and returns a `RunResult`. What only reads is in
`connector.home_reader`. Methods import what they call, as they do there.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from alignment.packages import check_extra
from connector.errors import SettingsError
from connector.home_reader import HomeReader
from connector.progress import progress
from connector.provenance.database import create_in_sqlite
from connector.provenance.runs import Run, RunResult
from connector.settings import checked_name

if TYPE_CHECKING:
    from alignment.geometry.geometry import Geometry
    from alignment.modality import Modality
    from alignment.model.alignment import Alignment
    from alignment.model.onnx_export import Graph
    from alignment.sets.cards import Dtype, EncoderCard
    from alignment.sets.embedding_set import EmbeddingSet
    from connector.audits.result import Audit
    from connector.corpora.items import Corpus
    from connector.provenance.tables import ReleaseRow
    from connector.push.delete import DeletionPreview
    from connector.push.ingest import Confirm
    from connector.recorded_request import Request
    from connector.releases.merge import StoreMerge
    from connector.releases.promotion import AliasSwitch
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
    )


class Home(HomeReader):
    """A home that is read and changed. Use as a context manager.

    `encode` and `import_vectors` make the tables of a home that holds nothing yet, if its database is SQLite.
    """

    def encode(self, request: "EncodeRequest") -> "RunResult[EmbeddingSet]":
        """Encode a corpus into an embedding set."""
        from alignment.sets.writer import check_may_add
        from connector.corpora.formats import check_holds, open_corpus
        from connector.encoding.embedding_sets import encode_corpus, encoders_of_set
        from connector.encoding.loading import encoder_classes
        from connector.encoding.placement import executor_of

        self._begin()
        with self._run(request) as run:
            path = self.settings.set_path(request.set)
            corpus = open_corpus(request.corpus, **request.reading)
            encoder_classes(request.encoders)  # an encoder of the other modality is named as that
            check_holds(corpus, request.encoders, chosen=True)
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
        from connector.push.session import push

        with progress(f"push {embedding_set.card.name}", sum(embedding_set.card.counts.values()), "row") as advance:
            return push(
                embedding_set,
                alignment,
                request,
                set_id=self.provenance.artifacts.record_set(embedding_set),
                alignment_id=self._record_alignment(request.alignment, alignment),
                store=self.store,
                provenance=self.provenance,
                run=run,
                advance=advance,
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

    def drop(self, request: "DropRequest") -> "RunResult[list[ReleaseRow]]":
        """Drop releases of a collection by name, never the live one; or forget what another database has taken over."""
        from connector.encoding.compiled import DIRECTORY, remove_unused
        from connector.releases.dropping import drop, droppable, forget, text_encoders_in_use

        with self._run(request) as run:
            lifecycle = self._lifecycle(request.collection)
            with lifecycle.exclusive(run.id):
                if request.taken_over:
                    rows = forget(lifecycle, request.releases)
                else:
                    rows = droppable(lifecycle, names=request.releases)
                    drop(lifecycle, rows)
            run.counts["dropped"] = len(rows)
        remove_unused(self.settings.home / DIRECTORY, text_encoders_in_use(self.provenance))
        return RunResult(run.id, run.counts, rows)

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

    def _begin(self) -> None:
        # Where artifacts are, tables were: an empty database in their place would hide that it is lost. This is looked
        # at before the tables, because another process may begin at the same time.
        if not self._has_artifacts:
            create_in_sqlite(self.settings.database_url)

    def _run(self, request: "Request", **more: Any) -> AbstractContextManager[Run]:
        return self.provenance.runs.start(request.command, {**request.parameters, **more})

    def _record_alignment(self, name: str, alignment: "Alignment") -> int:
        return self.provenance.artifacts.record_alignment(name, self.settings.alignment_path(name), alignment)

    def _compile(self, alignment: "Alignment") -> None:
        from connector.encoding.compiled import DIRECTORY  # loads Pillow
        from connector.encoding.compiling import compile_text_encoder

        compile_text_encoder(self.settings.home / DIRECTORY, alignment.card.encoders["text"])
