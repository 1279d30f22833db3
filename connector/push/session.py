"""Push an embedding set through an alignment into releases: one per metric, in one projection pass.

    open       find or create one release per metric (`connector.push.open_releases`)
    write      the set, shard by shard; a crash does no harm (`connector.push.batches`)
    verify     build the index, compare the exact count with the ledger, tune `hnsw_ef`
    make live  the releases whose aliases are free

A push also writes into every other release of the collection that is not retired: the set's other metrics, and the
shadow of a new alignment beside the live release. Each has its own alignment and its own ledger.

A push that is refused, for example because a metric cannot take its vectors, removes the releases that it created and
wrote nothing into. A push that is killed or loses a database leaves them as `building`, and the next push continues.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from alignment.errors import ModalignError
from alignment.metrics import Metric, parse
from alignment.modality import Modality
from alignment.model.alignment import Alignment
from alignment.plurals import counted
from alignment.sets.cards import EncoderCard, SetCard
from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import (
    EmptyReleaseError,
    IndexRecallError,
    MismatchError,
    ProvenanceError,
    StoreBusyError,
    StoreUnavailableError,
)
from connector.progress import Advance
from connector.provenance.leases import orphan_lock, promotion_lock
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.push.batches import BatchWriter
from connector.push.open_releases import ReleaseOpener, at_work, open_others, take_back
from connector.push.other_sets import OtherSets
from connector.push.point_rate import PointRate
from connector.push.release_writer import ReleaseWriter
from connector.releases.aliases import make_live, physical_name, to_go_live
from connector.releases.caption_payload import captions_missing
from connector.releases.chain import check_encoder
from connector.releases.layouts import broken_filters, live_beside
from connector.releases.payload_fields import missing_in_words
from connector.releases.point_id_set import PointIds
from connector.releases.release import Release, lower
from connector.releases.seen_offset import offset_warnings
from connector.releases.store_identity import record_store
from connector.releases.verify import check_replicas
from connector.requests import INDEX_RECALL, ReleasesRequest
from connector.search.ef_tuning import sample, tune
from connector.search.fusion_tuning import tune_fusion
from connector.states import ReleaseState
from connector.stores.collection import CollectionInfo
from connector.stores.contract import Store
from connector.stores.layout import OWN_FIELDS

_log = logging.getLogger(__name__)

SETTLING_SECONDS = 60.0
SETTLING_POLL_SECONDS = 0.2


def metrics_to_push(request: ReleasesRequest, alignment: Alignment) -> list[Metric]:
    """Return the metrics that are requested; without any, all that the alignment was fitted for.

    Each gets a release with points of its own, so several that nobody asked for are announced.
    """
    metrics = list(dict.fromkeys(map(parse, request.metrics or alignment.card.metrics)))
    if not request.metrics and len(metrics) > 1:
        _log.info(
            "alignment %s was fitted for %s, and each gets a release: %s. Fewer: name them with --metric",
            *(request.alignment, counted(metrics, "metric"), ", ".join(map(str, metrics))),
        )
    return metrics


def push(
    embedding_set: EmbeddingSet,
    alignment: Alignment,
    request: ReleasesRequest,
    *,
    set_id: int,
    alignment_id: int,
    store: Store,
    provenance: Provenance,
    run: Run,
    advance: Advance = lambda count: None,
) -> list[Release]:
    """Write `embedding_set` into one release per metric, verify these releases and return them.

    A release becomes live if its alias names nothing else. Otherwise it is `ready`: a shadow, which an audit and
    `connector.releases.promotion` make live. A release of the collection that cannot take the set is named on stderr.

    Counts `written`, `unchanged` and `rejected` in `run`, over all releases. The same push again writes nothing but
    the batches in which rows were refused.

    Args:
        embedding_set: what is written.
        alignment: what the request names.
        request: into which collection, under which metrics and how. Its layout is that of new releases, in place of
            what they inherit, and required of existing ones. An index that finds less than `INDEX_RECALL` is warned of.
        set_id, alignment_id: their rows in SQL.
        store: where the collections are.
        provenance: where everything is recorded.
        run: counts, and takes the rejects.
        advance: called with the number of rows done since.

    Raises:
        SettingsError: the layout is invalid, or the store does not support it.
        MetricError: the alignment holds no parameters for a metric.
        WeightsError: those that it holds are damaged or have diverged.
        VectorError: a metric cannot take the aligned vectors, such as signed ones under `chi2(map=l1)`.
        MismatchError: the set's encoders are not the alignment's; or a collection of that name has another chain or
            layout; or its exact count differs from the ledger.
        EmptyReleaseError: not one row could be written into a new release. It does not go live.
        IndexRecallError: an index finds less than the request requires. All is written, and no new release goes live.
        StoreError, ProvenanceError: a database refused or failed; run the same command again.
    """
    for modality, card in embedding_set.card.encoders.items():
        check_encoder(alignment, modality, card, f"embedding set {embedding_set.path}")
    with push_session(
        alignment,
        request,
        metrics_to_push(request, alignment),
        alignment_id=alignment_id,
        encoders=embedding_set.card.encoders,
        store=store,
        provenance=provenance,
        run=run,
    ) as session:
        if captions_missing(embedding_set) and any(release.caption_payload for release in session.releases):
            _log.warning(
                "embedding set %s: images do not carry the captions of their items, because an earlier version encoded "
                "them: run the command that made the set again, which encodes nothing anew, then this push",
                embedding_set.path.name,
            )
        embedding_set = session.write(embedding_set, set_id, advance)
        session.verify(embedding_set, set_id)
    session.make_live(embedding_set, set_id)
    return session.releases


@contextmanager
def push_session(
    alignment: Alignment,
    request: ReleasesRequest,
    metrics: Sequence[Metric],
    *,
    alignment_id: int,
    encoders: Mapping[Modality, EncoderCard],
    store: Store,
    provenance: Provenance,
    run: Run,
) -> Iterator["PushSession"]:
    """Find or create one release per metric. Remove the new ones if the block is refused before it wrote anything.

    Args:
        alignment, request, alignment_id, store, provenance, run: as for `push`.
        metrics: those that the request asks for, see `metrics_to_push`.
        encoders: of the embedding sets that will be written. The collection's other releases are written too, if their
            alignments were fitted for these encoders.

    Raises: as `push`.
    """
    opener = ReleaseOpener(alignment, alignment_id, request, store, provenance, run)
    lowerings_of = {metric: lower(alignment, metric) for metric in metrics}  # all of them, before anything is written
    writers: list[ReleaseWriter] = []
    try:
        opener.check_rights(metrics)
        with orphan_lock(provenance.database, record_store(provenance, store, take_over=request.take_over), run.id):
            pass  # a repair that is deleting orphans has ended
        requested = {physical_name(request.into, metric, alignment) for metric in metrics}
        others = open_others(encoders, request.into, requested, store, provenance)
        if others:
            names = ", ".join(writer.release.name for writer in others)
            _log.info("the collection's other releases are written, too: %s", names)
        for metric, lowerings in lowerings_of.items():
            writers.append(opener.open(metric, lowerings))
        yield PushSession(
            *(writers + others, store, provenance, run, request.min_index_recall),
            PointRate(request.max_points_per_second),
        )
    except (StoreUnavailableError, StoreBusyError, ProvenanceError):
        raise
    except ModalignError:
        take_back(writers, store, provenance, run)
        raise


@dataclass(frozen=True, slots=True)
class PushSession:
    """The releases that a push writes into: write embedding sets, then verify, then make live."""

    writers: list[ReleaseWriter]
    store: Store
    provenance: Provenance
    run: Run
    min_index_recall: float | None = None
    rate: PointRate = field(default_factory=PointRate)

    @classmethod
    def into(cls, release: Release, store: Store, provenance: Provenance, run: Run) -> Self:
        """Continue to write into one release that exists."""
        return cls([ReleaseWriter(release, new=False)], store, provenance, run)

    @property
    def releases(self) -> list[Release]:
        """The releases that the push is for."""
        return [writer.release for writer in self.writers if writer.requested]

    @property
    def reached(self) -> list[Release]:
        """All releases that are written into, the collection's other ones included."""
        return [writer.release for writer in self.writers]

    def open(
        self, path: Path, set_id: int, ids: PointIds | None = None, others: OtherSets | None = None
    ) -> BatchWriter:
        """Begin to write the embedding set at `path`, which may still be growing.

        Args:
            path: directory of the set.
            set_id: its row in SQL.
            ids: collects the ids of written points.
            others: refuses rows whose points are of another set.
        """
        writer = BatchWriter(path, set_id, self.store, self.provenance, self.run, self.writers, ids, others, self.rate)
        writer.begin()
        return writer

    def others(self, path: Path, set_id: int) -> OtherSets:
        """Return what other sets give to these releases; close it after use."""
        return OtherSets(path, set_id, [release.row for release in self.reached], self.provenance)

    def write(self, embedding_set: EmbeddingSet, set_id: int, advance: Advance) -> EmbeddingSet:
        """Write a set, again whenever another process has changed it meanwhile; return the set as written last.

        The other process writes into the same releases. What it deleted from them, this push may have written again.
        """
        with PointIds() as written, self.others(embedding_set.path, set_id) as others:
            writer = self.open(embedding_set.path, set_id, written, others)
            writer.finish(embedding_set, advance=advance)
            changed = False
            while SetCard.read(embedding_set.path).fingerprint != embedding_set.card.fingerprint:
                embedding_set, changed = EmbeddingSet.open(embedding_set.path), True
                self.provenance.artifacts.record_set(embedding_set)
                writer.begin()
                writer.finish(embedding_set)
            if changed:
                writer.delete_gone(embedding_set, written)
        return embedding_set

    def verify(self, embedding_set: EmbeddingSet, set_id: int) -> None:
        """Verify the requested releases after the last set was written; tune them with queries from `embedding_set`."""
        for writer in self.writers:
            if writer.requested:
                release = writer.release
                if release.row.state == ReleaseState.BUILDING and not self.provenance.ledger.points(release.row.id):
                    raise EmptyReleaseError(
                        f"release {release.name} holds nothing: expected rows of embedding set "
                        f"{embedding_set.path.name}, got none that could be written; `modalign rejects {self.run.id}` "
                        "names them"
                    )
                _verify(release, embedding_set, set_id, self.store, self.provenance, self.run)
                for sentence in missing_in_words(self.store, release.name, release.indexes.keys() - OWN_FIELDS):
                    _log.warning("payload index: %s", sentence)
                for sentence in offset_warnings(release, self.store):
                    _log.warning("%s", sentence)
        self._check_index_recall()

    def _check_index_recall(self) -> None:
        """Warn of requested releases whose index finds less than it should; raise if it is less than was required."""
        refused, required = [], self.min_index_recall
        for release in self.releases:
            if (tuned := release.tuned) is None:
                if required is not None and self.store.describe(release.name).indexed:
                    refused.append(f"release {release.name}: what its index finds could not be measured")
                continue
            if tuned.reaches(max(INDEX_RECALL, required or 0)):
                continue
            found = f"release {release.name}: its index finds {tuned.recall:.3f} of the exact first hits"
            remedy = "raise --m or --ef-construct, in a new collection"
            if release.row.settings.get("quantization"):
                remedy = f"quantize less, raise --oversampling, keep --rescore, or {remedy}"
            if required is not None and not tuned.reaches(required):
                refused.append(f"{found}; {remedy}")
            else:
                _log.warning("%s, expected at least %s: %s", found, INDEX_RECALL, remedy)
        if refused:
            raise IndexRecallError(
                f"{'; '.join(refused)}. --min-index-recall expected at least {required}: nothing goes live"
            )

    def make_live(self, embedding_set: EmbeddingSet, set_id: int) -> None:
        """Make the releases live whose aliases are free; then verify the collection's other releases.

        A further metric of a collection waits for a promotion if filters would find something else under it.
        """
        wanted = to_go_live(self.provenance, self.store, self.releases).values()
        if releases := [release for release in wanted if not self._breaks_filters(release)]:
            # Without any, the lock would be waited for in vain.
            row = self.releases[0].row
            with promotion_lock(self.provenance.database, row.store_id, row.collection, self.run.id):
                make_live(self.provenance, self.store, releases)
        for writer in self.writers:
            # A release that another push is building is complete when that push says so.
            if not writer.requested and writer.release.row.state != ReleaseState.BUILDING:
                _verify(writer.release, embedding_set, set_id, self.store, self.provenance, self.run)

    def _breaks_filters(self, release: Release) -> bool:
        """Say, also in a warning, whether filters that work on the collection's live releases would not on this one."""
        if release.row.state == ReleaseState.LIVE:
            return False
        rows = self.provenance.releases.find(store_id=release.row.store_id, collection=release.row.collection)
        live = live_beside(rows, release.row.metric)
        broken = broken_filters(self.store, live, release.row) if live else []
        if broken:
            _log.warning(
                "release %s does not go live by itself, because filters would not find the same: %s",
                release.name,
                "; ".join(broken),
            )
        return bool(broken)


def _counts(release: Release, store: Store, provenance: Provenance, run: Run) -> tuple[CollectionInfo, int]:
    """Return what a collection holds and how many points the ledger records of it.

    Points are durable before they are recorded. So while other runs write into the collection, both numbers are read
    again until they agree, for at most `SETTLING_SECONDS`.
    """
    deadline = time.monotonic() + SETTLING_SECONDS
    while True:
        info, recorded = store.ready(release.name), provenance.ledger.points(release.row.id)
        if info.points == recorded or time.monotonic() > deadline:
            return info, recorded
        if not at_work(provenance, release.row.collection, run):
            return store.ready(release.name), provenance.ledger.points(release.row.id)  # they have ended meanwhile
        time.sleep(SETTLING_POLL_SECONDS)


def _verify(
    release: Release, embedding_set: EmbeddingSet, set_id: int, store: Store, provenance: Provenance, run: Run
) -> None:
    """Build the index, compare the exact count with the ledger, and tune what changed; a new release becomes ready."""
    info, recorded = _counts(release, store, provenance, run)
    check_replicas(release, store)
    if info.points != recorded:
        others = [s.name for s in provenance.ledger.sets_in([release.row.id]) if s.id != set_id]
        push_too = f" Push its other embedding sets again, too: {', '.join(others)}." if others else ""
        raise MismatchError(
            f"collection {release.name} holds {counted(info.points, 'point')}, the ledger says {recorded:,}"
            f"{at_work(provenance, release.row.collection, run)}. If another push or ingest into it is running, wait "
            f"for it; if one was killed, run it again; then run this command again.{push_too} Otherwise embedding sets "
            "that were pushed into it share keys, or somebody else changed points: `modalign verify` names them"
        )
    untuned = release.row.needs_tuning or release.row.fusion is None
    needs_tuning = untuned or (info.indexed and release.hnsw_ef is None)
    if needs_tuning or release.row.state == ReleaseState.BUILDING or release.row.points != recorded:
        tuned = None
        if info.indexed:
            # Queries from a part of the release say nothing of the rest: then `hnsw_ef` only grows.
            whole = sum(points for _, points in provenance.ledger.entries(release.row.id, set_id).values()) == recorded
            tuned = tune(release, store, sample(embedding_set, release), known=None if whole else release.tuned)
        ef, recall = (tuned.hnsw_ef, tuned.recall) if tuned else (None, None)
        fusion = tune_fusion(release, store, embedding_set)
        tuning: dict[str, Any] = {"hnsw_ef": ef, "hnsw_recall": recall, "needs_tuning": False}
        tuning["fusion"] = fusion.recorded() if fusion else None
        provenance.releases.change(release.row, points=recorded, **tuning)
        if release.row.state == ReleaseState.BUILDING:
            provenance.releases.change(release.row, state=ReleaseState.READY)
