"""A home: everything modalign does, as one object. The command line opens it, calls one method, prints the result.

    with Home(Settings.load(home="demo-home")) as home:
        retriever = home.retriever("emoji")
        hits = retriever.search_texts(["a red car"])

Every method that changes something is a run in SQL, with its counts and its outcome, also when it fails.
"""

import getpass
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from alignment import device as devices
from alignment.comparison.compare import METRICS, Comparison, compare
from alignment.comparison.guidelines import Advice, advise
from alignment.distributed import process_group
from alignment.errors import AlignmentError, EmbeddingSetError, ModalignError
from alignment.fitting.fit import fit
from alignment.geometry.geometry import SAMPLE, Geometry, geometry, sampled
from alignment.metrics import Metric, parse
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.sets.cards import Dtype, SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.sets.writer import SetWriter
from connector.audits.auditor import audit
from connector.audits.baseline import Baseline, find_baseline
from connector.audits.history import AuditSummary, asked_as, history
from connector.audits.plan import DIRECTIONS, AuditPlan
from connector.audits.recording import record
from connector.audits.requirements import Requirement
from connector.audits.result import Audit
from connector.corpora.formats import open_corpus
from connector.corpora.items import Corpus
from connector.corpora.vector_files import open_vectors
from connector.encoding.encode import BATCH_ITEMS, SHARD_ROWS, encode
from connector.encoding.encoders import Encoder, ImportedEncoder, load_encoders
from connector.errors import (
    CollectionNotFoundError,
    CorpusError,
    MismatchError,
    ProvenanceError,
    SettingsError,
    StoreBusyError,
    StoreUnavailableError,
    StrangePointError,
)
from connector.progress import progress, say
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run, RunResult
from connector.provenance.tables import ReleaseRow
from connector.push.delete import Deletion, DeletionPreview
from connector.push.ingest import Confirm, Ingest
from connector.push.session import push
from connector.releases.chain import check_encoder
from connector.releases.lag import Lag
from connector.releases.promotion import AliasSwitch, Lifecycle, PromotionOverride
from connector.releases.reconcile import ReconcileReport, reconcile
from connector.releases.release import (
    LIVE,
    PROMOTE,
    READY,
    ROLLBACK,
    Release,
    find_release_row,
    load_release,
    lower,
    open_release,
)
from connector.releases.verify import verify
from connector.reports.audit_context import AuditContext
from connector.reports.audit_page import write_audit_page
from connector.reports.compare_report import claim, write_comparison
from connector.reports.pages import claim_page
from connector.search.retriever import Retriever
from connector.settings import Settings, checked_name
from connector.stores.contract import Store
from connector.stores.opening import open_store, url_of

if TYPE_CHECKING:
    from qdrant_client.models import Filter

    from alignment.model.onnx_export import Graph

# Audits that the page of one looks back on.
MOMENTS = 100


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison with what it advises, and the directory of its files."""

    comparison: Comparison
    advice: Advice
    directory: Path


@contextmanager
def _sole_fit(name: str, path: Path) -> Iterator[None]:
    """Refuse an alignment that is there or under way, before anything takes time."""
    lock = FileLock(path.with_name(f".{name}.fit.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AlignmentError(
            f"another process is fitting alignment {name}; wait for it, or name another one with --alignment"
        ) from None
    try:
        if path.exists():
            raise AlignmentError(f"alignment {name} exists at {path}; name another one with --alignment")
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


class Home:
    """The embedding sets, alignments and databases that the settings name. Use as a context manager.

    Raises:
        NotMigratedError: the database was never upgraded.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.provenance = Provenance.open(settings.database_url, home=settings.home)
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)  # for its owner alone, where it is new

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "store" in self.__dict__:
            self.store.close()
        self.provenance.close()

    @cached_property
    def store(self) -> Store:
        """The Qdrant, opened at the first use: an embedded one serves one process at a time."""
        return open_store(self.settings)

    def embedding_set(self, name: str) -> EmbeddingSet:
        """Open the embedding set `name`."""
        return EmbeddingSet.open(self.settings.set_path(name))

    def alignment(self, name: str) -> Alignment:
        """Load the alignment `name`."""
        return Alignment.load(self.settings.alignment_path(name))

    def encode(
        self,
        corpus: Path | str,
        name: str,
        specs: Mapping[Modality, str],
        *,
        format: str | None = None,
        images: Path | None = None,
        dtype: Dtype = "float32",
        batch_items: int = BATCH_ITEMS,
        shard_rows: int = SHARD_ROWS,
    ) -> RunResult[EmbeddingSet]:
        """Encode the corpus at the path `corpus` into the embedding set `name`, with an encoder spec a modality.

        `format` and `images` say how it is read, where that is not plain: see `connector.corpora.formats.open_corpus`.
        """
        if not specs:
            raise SettingsError("expected --image-encoder, --text-encoder or both, got neither")
        parameters = {
            "corpus": str(Path(corpus).absolute()),
            "format": format,
            "images": images and str(Path(images).absolute()),
            "set": name,
            "encoders": dict(specs),
            "dtype": dtype,
        }
        with self.provenance.runs.start("encode", parameters) as run:
            opened = open_corpus(corpus, format=format, images=images)
            encoders = load_encoders(specs, devices.resolve(self.settings.device))
            made = self._encode(
                opened, name, encoders, run, dtype=dtype, batch_items=batch_items, shard_rows=shard_rows
            )
        return RunResult(run.id, run.counts, made)

    def import_vectors(
        self, vectors: Path | str, name: str, made_by: Mapping[Modality, str], *, dtype: Dtype = "float32", **how: Any
    ) -> RunResult[EmbeddingSet]:
        """Take vectors that were computed elsewhere into the embedding set `name`.

        Args:
            vectors: path of the files; `connector.corpora.vector_files.open_vectors` says which, and what `how` may be.
            name: of the embedding set.
            made_by: a name of the encoder that made them, a modality. Whoever imports vouches for it: the set, and
                every alignment that is fitted on it, say `imported:NAME`.
            dtype: type of the stored vectors.
        """
        if not made_by:
            raise SettingsError("expected --image-encoder, --text-encoder or both, got neither")
        parameters = {"vectors": str(vectors), "set": name, "encoders": dict(made_by), "dtype": dtype, **how}
        with self.provenance.runs.start("import", parameters) as run:
            opened = open_vectors(vectors, list(made_by), **how)
            dims = opened.dims()
            encoders = {m: ImportedEncoder(by.removeprefix("imported:"), dims[m]) for m, by in made_by.items()}
            made = self._encode(opened, name, encoders, run, dtype=dtype)
            run.counts["imported"] = run.counts.pop("encoded", 0)
            # What an earlier import took of the other modality was not looked for.
            others = sum(count for modality, count in made.card.counts.items() if modality not in made_by)
            run.counts["no_longer_in_corpus"] -= others
        return RunResult(run.id, run.counts, made)

    def _encode(
        self,
        corpus: Corpus,
        name: str,
        encoders: Mapping[Modality, Encoder],
        run: Run,
        *,
        dtype: Dtype = "float32",
        batch_items: int = BATCH_ITEMS,
        shard_rows: int = SHARD_ROWS,
    ) -> EmbeddingSet:
        path = self.settings.set_path(name)
        cards = {modality: encoder.card for modality, encoder in encoders.items()}
        with (
            SetWriter(path, corpus=str(corpus.path), encoders=cards, dtype=dtype) as writer,
            progress(f"encode {name}", corpus.total(), "rows") as advance,
        ):
            encode(corpus, writer, encoders, run, batch_items=batch_items, shard_rows=shard_rows, advance=advance)
        made = EmbeddingSet.open(path)
        self.provenance.artifacts.record_set(made)
        return made

    def fit(
        self,
        sets: Sequence[str],
        name: str,
        *,
        method: str = "auto",
        metrics: Sequence[str] = ("cosine",),
        hold_out: HoldOut = HoldOut(),
        folds: int = 4,
        seed: int = 0,
        budget: float | None = None,
        joint: bool = False,
        training: Mapping[str, str] | None = None,
    ) -> RunResult[Alignment]:
        """Fit the alignment `name` on embedding sets."""
        chosen: dict[str, Any] = {
            "method": method,
            "metrics": list(dict.fromkeys(parse(metric) for metric in metrics)),
            "hold_out": hold_out,
            "folds": folds,
            "seed": seed,
            "device": self.settings.device,
            "budget": budget,
            "joint": joint,
            "training": dict(training or {}),
        }
        with process_group() as number:
            if number:  # the first process records and writes
                return RunResult(0, {}, fit([self.embedding_set(s) for s in sets], **chosen))
            return self._fit(sets, name, chosen)

    def _fit(self, sets: Sequence[str], name: str, chosen: Mapping[str, Any]) -> RunResult[Alignment]:
        path = self.settings.alignment_path(name)
        parameters = {
            "sets": list(sets),
            "alignment": name,
            **chosen,
            "metrics": list(map(str, chosen["metrics"])),
            "hold_out": chosen["hold_out"].fraction,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.provenance.runs.start("fit", parameters) as run, _sole_fit(name, path):
            alignment = fit([self.embedding_set(s) for s in sets], **chosen, progress=say)
            alignment.save(path)
            self.provenance.artifacts.record_alignment(name, path, alignment)
            run.counts["pairs"] = alignment.card.pairs
            run.counts["candidates"] = len(alignment.card.candidates)
        return RunResult(run.id, run.counts, alignment)

    def compare(
        self,
        sets: Sequence[str],
        *,
        methods: Sequence[str] = (),
        metrics: Sequence[str] = (),
        hold_out: HoldOut = HoldOut(),
        folds: int = 4,
        seed: int = 0,
        budget: float | None = None,
        to: Path | None = None,
    ) -> RunResult[Compared]:
        """Compare encoder pairs, methods and metrics on embedding sets, and write a report into the directory `to`.

        The report of run 7 stands in `reports/compare-7` of the home unless told otherwise.
        """
        parameters = {
            "sets": list(sets),
            "methods": list(methods),
            "metrics": list(metrics),
            "holdout": hold_out.fraction,
            "folds": folds,
            "seed": seed,
            "budget": budget,
            "to": None if to is None else str(to),
        }
        with self.provenance.runs.start("compare", parameters) as run:
            parsed = [parse(metric) for metric in metrics] or METRICS
            opened = [self.embedding_set(name) for name in dict.fromkeys(sets)]
            directory = to or self.settings.home / "reports" / f"compare-{run.id}"
            claim(directory)
            try:
                comparison = compare(
                    opened,
                    methods=methods,
                    metrics=parsed,
                    hold_out=hold_out,
                    folds=folds,
                    seed=seed,
                    device=self.settings.device,
                    budget=budget,
                    progress=say,
                )
                advice = advise(comparison)
                write_comparison(directory, comparison, advice)
            except BaseException:
                if not any(directory.iterdir()):  # so that the same command can be run again
                    directory.rmdir()
                raise
            run.counts["fits"] = len(comparison.fitted)
            run.counts["rows"] = sum(len(fitted.rows) for fitted in comparison.fitted)
            run.counts["not_run"] = len(comparison.not_run)
        return RunResult(run.id, run.counts, Compared(comparison, advice, directory))

    def gap(
        self, name: str, *, alignment: str | None = None, seed: int = 0, sample: int = SAMPLE
    ) -> RunResult[Geometry]:
        """Measure the geometry of held-out groups of the embedding set `name`, with Recall@K beside it.

        Args:
            name: of the set.
            alignment: what its vectors are aligned with; they stay as encoded, in one space, where none is named.
            seed: of the sample and of everything random.
            sample: groups to draw, at most.

        Raises:
            MismatchError: the alignment was fitted for other encoders.
            GapError: two spaces, or too few groups.
        """
        parameters = {"set": name, "alignment": alignment, "seed": seed, "sample": sample}
        with self.provenance.runs.start("gap", parameters) as run:
            embedding_set, hold_out = self.embedding_set(name), HoldOut()
            loaded = None if alignment is None else self.alignment(alignment)
            if loaded is not None:
                hold_out = loaded.card.hold_out
                for modality, card in embedding_set.card.encoders.items():
                    check_encoder(loaded, modality, card, f"embedding set {embedding_set.path}")
            drawn = sampled(embedding_set, hold_out, groups=sample, seed=seed)
            if loaded is not None:
                drawn = drawn.project((loaded.projections["image"], loaded.projections["text"]))
            measured = geometry(drawn, seed=seed)
            run.counts["groups"] = measured.groups
            run.counts["left_out"] = measured.left_out
        return RunResult(run.id, run.counts, measured)

    def push(
        self,
        name: str,
        collection: str,
        alignment: str,
        *,
        metrics: Sequence[str] = (),
        **layout: Any,
    ) -> RunResult[list[Release]]:
        """Push the embedding set `name` into `collection`, one release a metric; default: the alignment's metrics.

        `layout` are fields of `connector.stores.layout.Layout`.
        """
        parameters = {
            "set": name,
            "into": collection,
            "alignment": alignment,
            "metrics": list(metrics),
            "layout": layout,
        }
        with self.provenance.runs.start("push", parameters) as run:
            checked_name(collection, "collection")
            loaded = self.alignment(alignment)
            made = self._push(
                self.embedding_set(name),
                loaded,
                run,
                alignment_name=alignment,
                collection=collection,
                metrics=self._metrics(loaded, metrics),
                **layout,
            )
        return RunResult(run.id, run.counts, made)

    def _push(
        self,
        embedding_set: EmbeddingSet,
        alignment: Alignment,
        run: Run,
        *,
        alignment_name: str,
        **options: Any,
    ) -> list[Release]:
        path = self.settings.alignment_path(alignment_name)
        with progress(f"push {embedding_set.card.name}", sum(embedding_set.card.counts.values()), "rows") as advance:
            return push(
                embedding_set,
                alignment,
                set_id=self.provenance.artifacts.record_set(embedding_set),
                alignment_id=self.provenance.artifacts.record_alignment(alignment_name, path, alignment),
                store=self.store,
                provenance=self.provenance,
                run=run,
                advance=advance,
                **options,
            )

    def ingest(
        self,
        corpus: Path | str,
        collection: str,
        alignment: str,
        *,
        name: str | None = None,
        format: str | None = None,
        images: Path | None = None,
        metrics: Sequence[str] = (),
        parts: int | None = None,
        prune: Confirm | None = None,
        **layout: Any,
    ) -> RunResult[list[Release]]:
        """Encode a corpus with the alignment's own encoders and push it, in one run.

        Args:
            corpus: its path.
            collection: what to write into.
            alignment: what to project with.
            name: of the embedding set; that of the collection where it is left out.
            format, images: how the corpus is read, where that is not plain; see `connector.corpora.formats.open_corpus`.
            metrics: one release each; the alignment's where they are left out.
            parts: into how many parts the corpus is divided, for several processes that run this at once.
            prune: delete what has left the corpus, if the answer to how many items that is, is yes.
            layout: fields of `connector.stores.layout.Layout`, of new collections.
        """
        parameters = {
            "corpus": str(Path(corpus).absolute()),
            "format": format,
            "images": images and str(Path(images).absolute()),
            "set": name or collection,
            "into": collection,
            "alignment": alignment,
            "metrics": list(metrics),
            "layout": layout,
            "parts": parts,
        }
        with self.provenance.runs.start("ingest", parameters) as run:
            checked_name(collection, "collection")
            opened, loaded = open_corpus(corpus, format=format, images=images), self.alignment(alignment)
            chosen = self._metrics(loaded, metrics)
            for metric in chosen:  # what cannot be pushed is known before anything is encoded
                lower(loaded, metric)
            specs = {modality: card.spec for modality, card in loaded.card.encoders.items()}
            encoders = load_encoders(specs, devices.resolve(self.settings.device))
            for modality, encoder in encoders.items():
                check_encoder(loaded, modality, encoder.card, f"the encoder that {encoder.spec} loads now")
            path = self.settings.alignment_path(alignment)
            ingest = Ingest(
                opened,
                self.settings.set_path(name or collection),
                encoders,
                loaded,
                self.provenance.artifacts.record_alignment(alignment, path, loaded),
                collection,
                chosen,
                self.store,
                self.provenance,
                run,
                layout,
                prune,
            )
            releases = ingest.whole() if parts is None else ingest.in_parts(parts)
            if kept := run.counts["not_pruned"]:
                raise CorpusError(
                    f"{kept} items of the embedding set were not met in the corpus, but some of its rows could not be "
                    f"read, which may be these: all else is done, these are kept; see `modalign rejects {run.id}`, "
                    "mend the rows and run the same command again, or leave --prune out"
                )
        return RunResult(run.id, run.counts, releases)

    def delete(
        self,
        collection: str,
        *,
        keys: Sequence[str] = (),
        filter: "Filter | None" = None,
        modalities: Sequence[Modality] = MODALITIES,
        confirm: Callable[[DeletionPreview], bool] = lambda doomed: True,
    ) -> RunResult[bool]:
        """Delete items from every release of `collection` and from their embedding sets.

        What other collections have of these sets goes too. The result's `made` says whether `confirm` agreed.
        """
        parameters = {
            "collection": collection,
            "keys": list(keys),
            "modalities": list(modalities),
            "filter": None if filter is None else filter.model_dump(mode="json", exclude_none=True),
        }
        with self.provenance.runs.start("delete", parameters) as run:
            checked_name(collection, "collection")
            deletion = Deletion(collection, self.store, self.provenance, run)
            agreed = deletion.delete(keys=keys, filter=filter, modalities=modalities, confirm=confirm)
        return RunResult(run.id, run.counts, agreed)

    def retry(self, run: int) -> RunResult[EmbeddingSet | list[Release]]:
        """Run an encode, a push or an ingest again, as it was run: what it refused is tried again.

        Raises:
            SettingsError: the run was of another command, or of a modalign that did not record enough.
            ProvenanceError: there is no such run.
        """
        row = self.provenance.runs.get(run)
        given = dict(row.parameters)
        try:
            match row.command:
                case "encode":
                    return self.encode(
                        given["corpus"],
                        given["set"],
                        given["encoders"],
                        dtype=given["dtype"],
                        format=given["format"],
                        images=given["images"] and Path(given["images"]),
                    )
                case "push":
                    return self.push(
                        given["set"], given["into"], given["alignment"], metrics=given["metrics"], **given["layout"]
                    )
                case "ingest":
                    return self.ingest(
                        given["corpus"],
                        given["into"],
                        given["alignment"],
                        name=given["set"],
                        format=given["format"],
                        images=given["images"] and Path(given["images"]),
                        metrics=given["metrics"],
                        parts=given["parts"],
                        **given["layout"],
                    )
        except KeyError as error:
            raise SettingsError(f"run {run} did not record its {error}; run its command again by hand") from None
        raise SettingsError(f"run {run} is of `modalign {row.command}`; only encode, push and ingest are tried again")

    def lag(self) -> dict[int, Lag]:
        """Return by release, retired ones left out, how many rows of its embedding sets it does not hold."""
        return {row.id: self._lag(row) for row in self.provenance.releases.find() if row.state != "retired"}

    def _lag(self, row: ReleaseRow) -> Lag:
        behind, since = 0, None
        for embedding_set in self.provenance.ledger.sets_in([row.id]):
            path = self.provenance.database.located(embedding_set.path)
            try:
                rows = EmbeddingSet(path, SetCard.read(path)).rows()
            except EmbeddingSetError:  # on another machine: what SQL remembers of it
                rows = embedding_set.image_count + embedding_set.text_count
            missing = rows - sum(
                points for _, points in self.provenance.ledger.entries(row.id, embedding_set.id).values()
            )
            if missing > 0:
                behind += missing
                since = min(filter(None, (since, embedding_set.updated_at)))
        return Lag(behind, since)

    def promote(
        self, collection: str, *, metrics: Sequence[str] = (), names: Sequence[str] = (), reason: str | None = None
    ) -> RunResult[list[AliasSwitch]]:
        """Make ready releases live, if their audits allow it or a `reason` is given; see `connector.releases.promotion`."""
        parameters = {"collection": collection, "metrics": list(metrics), "releases": list(names), "reason": reason}
        forced = None if reason is None else PromotionOverride(_person(), reason)
        with self.provenance.runs.start(PROMOTE, parameters) as run:
            switched = self._lifecycle(collection).promote(run.id, metrics=metrics, names=names, forced=forced)
            run.counts["promoted"] = len(switched)
        return RunResult(run.id, run.counts, switched)

    def rollback(self, collection: str, *, metrics: Sequence[str] = ()) -> RunResult[list[AliasSwitch]]:
        """Undo the last promotion of `collection`."""
        with self.provenance.runs.start(ROLLBACK, {"collection": collection, "metrics": list(metrics)}) as run:
            switched = self._lifecycle(collection).rollback(run.id, metrics=metrics)
            run.counts["rolled_back"] = len(switched)
        return RunResult(run.id, run.counts, switched)

    def droppable(self, collection: str, *, names: Sequence[str] = (), retired: bool = False) -> dict[str, bool]:
        """Say which releases `drop` would drop, and of each whether it is what a rollback would return to."""
        lifecycle = self._lifecycle(collection)
        rows = lifecycle.droppable(names=names, retired=retired)
        return {row.physical_name: lifecycle.returns_to(row) for row in rows}

    def drop(self, collection: str, names: Sequence[str]) -> RunResult[list[ReleaseRow]]:
        """Drop releases of `collection` by name; never the live one."""
        with self.provenance.runs.start("drop", {"collection": collection, "releases": list(names)}) as run:
            lifecycle = self._lifecycle(collection)
            with lifecycle.exclusive(run.id):
                rows = lifecycle.droppable(names=names)
                lifecycle.drop(rows)
            run.counts["dropped"] = len(rows)
        return RunResult(run.id, run.counts, rows)

    def verify(self, collection: str | None = None) -> list[ReconcileReport]:
        """Reconcile the live and ready releases, of `collection` or of all, with SQL and the embedding sets.

        One whose parts are gone or do not belong together is `broken`, and the others are reconciled all the same.
        """
        return [self._reconcile(row) for row in self._written(collection)]

    def repair(
        self, collection: str | None = None, *, delete_orphans: bool = False
    ) -> RunResult[list[ReconcileReport]]:
        """Mend those releases from their embedding sets; what it made is what `verify` finds afterwards."""
        with self.provenance.runs.start("repair", {"collection": collection, "delete_orphans": delete_orphans}) as run:
            for row in self._written(collection):
                self._reconcile(row, repair=run, delete_orphans=delete_orphans)
            found = self.verify(collection)
        return RunResult(run.id, run.counts, found)

    def _written(self, collection: str | None) -> list[ReleaseRow]:
        """Return the releases that every push reaches and that are complete."""
        where = {"collection": collection} if collection else {}
        rows = self.provenance.releases.find(store_url=self.provenance.database.stored(self.store.url), **where)
        if collection and not rows:
            self._lifecycle(collection).rows()  # which says what is wrong
        return [row for row in rows if row.state in (LIVE, READY)]

    def _reconcile(self, row: ReleaseRow, **options: Any) -> ReconcileReport:
        try:
            release = load_release(self.provenance, self.store, row, device=self.settings.device)
            with progress(f"verify {release.name}", row.points, "rows") as advance:
                return reconcile(release, self.store, self.provenance, advance=advance, **options)
        except (StoreUnavailableError, StoreBusyError, ProvenanceError):  # which is nothing that the release has
            raise
        except ModalignError as error:
            return ReconcileReport(row.physical_name, broken=str(error))

    def _lifecycle(self, collection: str) -> Lifecycle:
        return Lifecycle(self.provenance, self.store, collection, device=self.settings.device)

    def retriever(self, collection: str, metric: str | None = None) -> Retriever:
        """Open the live release of `collection` for searching."""
        return Retriever.open(self.provenance, self.store, collection, metric, device=self.settings.device)

    def export(
        self, alignment: str, metric: str, to: Path | str, *, collection: str | None = None
    ) -> "RunResult[list[Graph]]":
        """Write what a service needs to query `alignment` under `metric` without modalign into the new directory `to`.

        Args:
            alignment: name of the alignment.
            metric: as printed, or with some of its parameters.
            to: a directory that does not exist, or is empty.
            collection: whose live release will be asked; its name and its `hnsw_ef` then stand in the requests.
        """
        from connector.search.export import ExportSpec, write  # loads torch

        parameters = {"alignment": alignment, "metric": metric, "to": str(to), "collection": collection}
        with self.provenance.runs.start("export", parameters) as run:
            target = ExportSpec(alignment, self.alignment(alignment), parse(metric))
            if collection is not None:
                release = open_release(self.provenance, self.store, collection, metric, device="cpu")
                if release.alignment.fingerprint != target.alignment.fingerprint:
                    raise MismatchError(
                        f"release {release.name} was written with alignment {release.alignment.fingerprint[:12]}, "
                        f"{alignment} is {target.alignment.fingerprint[:12]}; export the first, or push with the second"
                    )
                target = replace(target, collection=collection, hnsw_ef=release.hnsw_ef, **release.quantized_search)
            graphs = write(Path(to), target)
            run.counts["graphs"] = len(graphs)
        return RunResult(run.id, run.counts, graphs)

    def audit(
        self,
        collection: str,
        pairs: str,
        *,
        metric: str | None = None,
        which: str = LIVE,
        requirements: Sequence[str] = (),
        against: str | None = None,
        report: Path | None = None,
        **options: Any,
    ) -> RunResult[Audit]:
        """Audit a release of `collection` with the pairs of an embedding set; nothing in the store is changed.

        A release whose parts do not belong together, or that does not hold what it should, is `broken`: nothing of it
        is measured.

        Args:
            collection: what people say.
            pairs: name of the embedding set.
            metric: of the release.
            which: `live`, `ready` or the name of a physical collection.
            requirements: what the measures have to meet; see `connector.audits.requirements`.
            against: the audit that drops are measured from: `last`, `live` or the number of one.
            report: the page to write, whatever the verdict is.
            **options: see `connector.audits.result.AuditPlan`.
        """
        parameters = {
            "collection": collection,
            "pairs": pairs,
            "metric": metric,
            "release": which,
            "require": list(requirements),
            **options,
        }
        with self.provenance.runs.start("audit", parameters) as run:
            if report is not None:
                claim_page(report)
            plan, required = AuditPlan(**options), [Requirement.parse(text) for text in requirements]
            embedding_set = self.embedding_set(pairs)
            row = find_release_row(self.provenance, self.store, collection, metric, which=which)
            before = find_baseline(self.provenance, row, against, plan, pairs) if against is not None else None
            found = self._measured(row, embedding_set, plan, pairs=pairs, requirements=required, before=before)
            found.number = record(found, self.provenance, run, self.provenance.artifacts.record_set(embedding_set))
            run.counts["queries"] = sum(found.queries_of(direction) for direction in DIRECTIONS)
            run.counts["failed_requirements"] = len(found.failures)
        if report is not None:
            write_audit_page(report, found, self._origin(found, embedding_set, requirements, run.id))
        return RunResult(run.id, run.counts, found)

    def _origin(self, found: Audit, pairs: EmbeddingSet, requirements: Sequence[str], run: int) -> AuditContext:
        """Return what the page of an audit says beside what it found."""
        row = found.row
        alignment = self.provenance.artifacts.alignment(row.alignment_id)
        asked = asked_as(found.plan, found.pairs)
        moments = self.audits(row.collection, metric=row.metric, limit=MOMENTS, asked=asked)
        return AuditContext(
            store=row.store_url,
            alignment=alignment,
            encoders=self.provenance.artifacts.encoders(alignment),
            pairs=pairs,
            requirements=requirements,
            run=run,
            moments=moments,
            at=next(moment.at for moment in moments if moment.audit == found.number),
        )

    def _measured(
        self,
        row: ReleaseRow,
        embedding_set: EmbeddingSet,
        plan: AuditPlan,
        *,
        pairs: str,
        requirements: Sequence[Requirement],
        before: Baseline | None,
    ) -> Audit:
        """Check that a release belongs together and holds what it should, and measure it; or say why it is broken."""
        broken = Audit(row, plan, pairs, required=bool(requirements))
        writers = self.provenance.runs.writers(row.collection)
        try:
            release = load_release(self.provenance, self.store, row, device=self.settings.device)
            verified = verify(release, self.store, self.provenance, seed=plan.seed, counts=not writers)
        except (MismatchError, CollectionNotFoundError, AlignmentError, EmbeddingSetError) as error:
            broken.broken = str(error)
            return broken
        try:
            with progress(f"audit {row.physical_name}", None, "queries") as advance:
                found = audit(
                    release,
                    self.store,
                    embedding_set,
                    plan,
                    pairs=pairs,
                    requirements=requirements,
                    before=before,
                    advance=advance,
                )
        except StrangePointError as error:  # what else does not match is how it was asked
            broken.broken = str(error)
            return broken
        uncounted = [
            f"Its points were not counted against SQL, because run {writer.id}, `modalign {writer.command}` on host "
            f"{writer.host}, writes since {writer.started_at:%F %T} UTC and has not ended."
            for writer in writers[:1]
        ]
        found.verified, found.findings = verified.points, [*uncounted, *verified.in_words, *found.findings]
        return found

    def audits(
        self, collection: str, *, metric: str | None = None, limit: int = 30, asked: str | None = None
    ) -> list[AuditSummary]:
        """Return the newest audits of the releases of `collection`, of those that were asked so, oldest first.

        Raises:
            CollectionNotFoundError: there never was such a release.
        """
        chosen = {"metric": str(parse(metric))} if metric else {}
        # A history is in SQL alone: whoever has the store open does not keep it from being read.
        store_url = self.provenance.database.stored(url_of(self.settings))
        rows = self.provenance.releases.find(store_url=store_url, collection=collection, **chosen)
        if not rows:
            raise CollectionNotFoundError(f"no release of collection {collection!r} was ever made here")
        return history(self.provenance, rows, limit=limit, asked=asked)

    def _metrics(self, alignment: Alignment, names: Sequence[str]) -> list[Metric]:
        return list(dict.fromkeys(parse(name) for name in names or alignment.card.metrics))


def _person() -> str:
    """Return user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = str(os.getuid())
    return f"{user}@{platform.node()}"
