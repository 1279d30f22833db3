"""Reconcile a release: compare SQL's ledger, the collection, and the embedding sets that were pushed into it.

What a release should hold follows from its embedding sets and its alignment. It is computed again, batch by batch, and
compared with what the collection holds. Memory does not grow with the release: point ids go to a temporary file.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import AccessDeniedError, FilterRefusedError
from connector.progress import Advance
from connector.provenance.ledger import BATCH_POINTS, BatchKey, LedgerEntry
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import EmbeddingSetRow
from connector.releases.aliases import alias_unseen
from connector.releases.caption_payload import release_rows
from connector.releases.point_comparison import ComparedBatch, compare_points
from connector.releases.point_id_set import PointIds
from connector.releases.points import item_of, point_id
from connector.releases.recorded_settings import faults_in_words, restore_settings
from connector.releases.release import Release
from connector.releases.tombstones import apply_tombstones, open_set
from connector.stores.contract import Store
from connector.stores.points import Record

_log = logging.getLogger(__name__)

EXAMPLES = 5  # keys that are shown of each kind of difference
VECTORS = 2048  # vectors of each embedding set that a sample compares, about; payloads are compared all


@dataclass(slots=True)
class Difference:
    """Points that differ in one way: their number, and the items of a few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, names: Sequence[str]) -> None:
        """Count points, given the names of their items."""
        self.count += len(names)
        self.examples += names[: EXAMPLES - len(self.examples)]


@dataclass(slots=True)
class ReconcileReport:
    """The result of a reconciliation.

    Attributes:
        name: physical collection.
        seed: of the sample of vectors; the same seed draws the same sample of the same embedding sets.
        points: points in the collection.
        recorded: points that the ledger counts.
        held: points that the embedding sets say the collection should hold.
        vectors: number of vectors compared; payloads are compared all.
        absent: points that the collection lacks, those that Qdrant refused included.
        missing, differing: points that the collection lacks, or holds with another vector or payload.
        wrong_vectors: how many of those that differ have the right payload, and another vector.
        orphans: points that belong to no row of any embedding set.
        unrecorded: batches that the ledger does not record as they are, and its entries of batches that are gone.
        replicas: how replicas of one shard differ in their number of points, a sentence for each shard.
        lost: which shards have fewer replicas than they should and what to do, a sentence for each shard.
        away: nodes of the cluster whose replicas could not be compared.
        settings: how the collection's settings, its payload indexes and the alias of a live release differ from what
            SQL recorded, a sentence each.
        not_compared: what the key does not show, a sentence each.
        broken: why nothing could be compared: parts of the release are gone, or its chain does not match.
    """

    name: str
    seed: int | None = None
    points: int = 0
    recorded: int = 0
    held: int = 0
    vectors: int = 0
    absent: int = 0
    missing: Difference = field(default_factory=Difference)
    differing: Difference = field(default_factory=Difference)
    wrong_vectors: int = 0
    orphans: Difference = field(default_factory=Difference)
    unrecorded: Difference = field(default_factory=Difference)
    replicas: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    away: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)
    broken: str | None = None

    @property
    def consistent(self) -> bool:
        """Whether SQL, collection and embedding sets agree."""
        if self.broken is not None or self.replicas or self.lost or self.settings or self._has_differences:
            return False
        return self.points == self.recorded == self.held

    @property
    def has_other_counts_alone(self) -> bool:
        """Whether each point is as it should be, and their numbers differ: embedding sets give the same points."""
        return self.broken is None and not self._has_differences and not self.points == self.recorded == self.held

    @property
    def _has_differences(self) -> bool:
        return any(each.count for each in (self.missing, self.differing, self.orphans, self.unrecorded))

    @property
    def has_orphans_elsewhere(self) -> bool:
        """Whether replicas differ by points that the embedding sets do not have, on nodes other than the one asked."""
        return self.broken is None and bool(self.replicas) and not (self.missing.count or self.orphans.count)

    def add(self, other: "ReconcileReport") -> None:
        """Add the points and batches that differed in another comparison, and that were repaired since."""
        for name in ("missing", "differing", "unrecorded"):
            mine, others = getattr(self, name), getattr(other, name)
            mine.count += others.count
            mine.examples = (mine.examples + others.examples)[:EXAMPLES]
        self.wrong_vectors += other.wrong_vectors


def reconcile(
    release: Release,
    store: Store,
    provenance: Provenance,
    *,
    seed: int,
    full: bool = False,
    repair: Run | None = None,
    orphans: PointIds | None = None,
    advance: Advance = lambda count: None,
) -> ReconcileReport:
    """Compare everything that a release should hold with what it holds and with what SQL records.

    Args:
        release: what to reconcile.
        store: where it is.
        provenance: where its ledger is.
        seed: of the sample of vectors to compare.
        full: compare all vectors. Without it, one wrong vector in the sample makes it compare all of them too.
        repair: restore the collection's settings, and write points again from the embedding sets that are missing or
            differ, or are of batches that the ledger lacks, and the ledger after them, in this run. It counts
            `restored` and `repaired`. The report says what was wrong before. Deletions that were begun are finished.
        orphans: collects the ids of orphans, for `delete_orphans`.
        advance: called with the number of rows compared since the last call.

    Raises:
        EmbeddingSetError: an embedding set that was pushed into the release is not there. All its points would look
            like orphans.
    """
    sets = provenance.ledger.sets_in([release.row.id])
    embedding_sets = [open_set(provenance, provenance.database.located(row.path)) for row in sets]
    settings = faults_in_words(release, store, provenance)
    if repair:
        restore_settings(release, store, provenance, repair)
        for row in sets:
            apply_tombstones(provenance, store, release.row, row.id, repair.id)
    points, recorded = store.count(release.name, consistent=True), provenance.ledger.points(release.row.id)
    differences = store.replica_differences(release.name)
    hidden: list[str] = []
    with PointIds() as expected_ids:

        def compare(rng: np.random.Generator | None) -> ReconcileReport:
            report = ReconcileReport(release.name, seed, points, recorded)
            with PointIds() as odd:
                for ids in _without_one_vector(store, release.name):
                    odd.add(ids)
                for row, embedding_set in zip(sets, embedding_sets, strict=True):
                    of_set = _SetReconciliation(release, store, provenance, row, report, expected_ids, odd, rng, repair)
                    of_set.compare(embedding_set, advance)
            return report

        report = compare(None if full else np.random.default_rng(seed))
        if report.wrong_vectors and not full:
            sampled, report = report, compare(None)
            if repair:
                report.add(sampled)  # repaired since, so the second comparison has not found it
        report.replicas, report.lost = differences, store.lost_replicas(release.name)
        try:
            replicas = store.replicas(release.name)
            in_one_place, report.away = replicas is None, [str(node) for node in replicas.away] if replicas else []
        except AccessDeniedError:
            in_one_place = False
            hidden.append(f"where its replicas are was not compared: the key for {store.url} does not show it")
        # Where every point was found, and there are as many, there are no others.
        all_found = not report.absent and points == expected_ids.distinct() and in_one_place
        for page in () if all_found else store.scroll(release.name):
            unknown = set(expected_ids.missing([record.id for record in page]))
            report.orphans.add([_item_name(record) for record in page if record.id in unknown])
            if orphans is not None and unknown:
                orphans.add(sorted(unknown))
    report.settings = settings
    report.not_compared = hidden + ([unseen] if (unseen := alias_unseen(store, release.row)) else [])
    if repair:
        store.flush(release.name)
        store.ready(release.name)
        provenance.releases.change(release.row, points=provenance.ledger.points(release.row.id))
    return report


def delete_orphans(release: Release, store: Store, provenance: Provenance, orphans: PointIds, run: Run) -> None:
    """Delete from a release the points that `reconcile` found to be orphans; count them as `deleted`.

    Those that an embedding set holds by now stay: their items were added again meanwhile. No push may begin before this
    ends.

    Raises:
        EmbeddingSetError: an embedding set that was pushed into the release is not there. Nothing is deleted.
    """
    provenance.releases.bump_revision(release.row)
    with PointIds() as held:
        for row in provenance.ledger.sets_in([release.row.id]):
            embedding_set = open_set(provenance, provenance.database.located(row.path))
            for modality in MODALITIES:
                for keys, _ in embedding_set.labels(modality):
                    held.add([point_id(modality, key) for key in keys])
        for ids in orphans.without(held):
            store.delete(release.name, ids)
            run.counts["orphans_deleted"] += len(ids)
    store.flush(release.name)
    store.ready(release.name)


@dataclass(frozen=True, slots=True)
class _SetReconciliation:
    """One embedding set against the release that it was pushed into.

    Attributes:
        odd: ids of points that do not carry exactly one vector.
        rng: draws the vectors to compare; None: all of them.
    """

    release: Release
    store: Store
    provenance: Provenance
    row: EmbeddingSetRow
    report: ReconcileReport
    expected_ids: PointIds
    odd: PointIds
    rng: np.random.Generator | None
    repair: Run | None

    def compare(self, embedding_set: EmbeddingSet, advance: Advance) -> None:
        """Compare every batch of the set, repair it where asked, and find ledger entries without rows."""
        ledger = self.provenance.ledger.entries(self.release.row.id, self.row.id)
        share = min(1.0, VECTORS / max(1, sum(embedding_set.card.counts.values())))
        met: set[BatchKey] = set()
        for modality in MODALITIES:
            for shard, start, rows in embedding_set.batches(modality, BATCH_POINTS):
                key, digest = (shard, start), release_rows(self.release, rows).digest()
                met.add(key)
                drawn = np.ones(len(rows), bool) if self.rng is None else self.rng.random(len(rows)) < share
                batch = compare_points(self.release, self.store, rows, drawn)
                self._add_odd(batch)
                self.report.absent += len(batch.missing)
                present = len(batch.points.ids) - len(batch.missing)
                if ledger.get(key) == (digest, present):
                    batch.missing.clear()  # Qdrant refused these points: they are rejects of the push
                entry = (digest, present + len(batch.missing))
                self._add(batch, entry[1])
                if ledger.get(key) != entry:
                    self.report.unrecorded.add([f"{shard}:{start}"])
                if self.repair:
                    self._write(self.repair, batch, key, entry, ledger.get(key))
                advance(len(rows))
        gone = ledger.keys() - met
        self.report.unrecorded.add([f"{shard}:{start}" for shard, start in sorted(gone)])
        if self.repair and gone:
            self.provenance.ledger.write(self.release.row.id, self.row.id, self.repair.id, {}, removed=gone)

    def _add_odd(self, batch: ComparedBatch) -> None:
        """Let points differ that have lost their vector, or that something else gave a second one."""
        odd = set(batch.points.ids).difference(self.odd.missing(batch.points.ids))
        known = {*batch.missing, *batch.differing}
        batch.differing.extend(p for p, id_ in enumerate(batch.points.ids) if id_ in odd and p not in known)

    def _add(self, batch: ComparedBatch, held: int) -> None:
        """Add what was found of a batch to the report."""
        self.expected_ids.add(batch.points.ids)
        self.report.held += held
        self.report.vectors += batch.vectors
        self.report.missing.add(batch.names(batch.missing))
        self.report.differing.add(batch.names(batch.differing))
        self.report.wrong_vectors += len(batch.differing) - len(batch.unlike)

    def _write(
        self, run: Run, batch: ComparedBatch, key: BatchKey, entry: LedgerEntry, recorded: LedgerEntry | None
    ) -> None:
        """Write points that are missing or differ, flush them, then write the ledger entry.

        A batch that the ledger lacks is written whole: a write that was not confirmed may be on one replica alone, and
        a read may ask that one.
        """
        wrong = batch.missing + batch.differing
        to_write = wrong if entry == recorded else range(len(batch.points.ids))
        if to_write:
            self.provenance.releases.bump_revision(self.release.row)
            self.store.upsert(self.release.name, batch.points.take(to_write))
            run.counts["repaired"] += len(to_write)
        if entry != recorded:
            self.store.flush(self.release.name)
            self.provenance.ledger.write(self.release.row.id, self.row.id, run.id, {key: entry})


def _without_one_vector(store: Store, name: str) -> Iterator[list[str]]:
    """Yield the ids of points that carry no vector, or vectors of both modalities: searches of both find these."""
    from qdrant_client.models import Filter, HasVectorCondition  # takes a second to import

    either = [HasVectorCondition(has_vector=modality) for modality in MODALITIES]
    try:
        for condition in (Filter(must=[*either]), Filter(must_not=[*either])):
            for page in store.scroll(name, filter=condition):
                yield [record.id for record in page]
    except FilterRefusedError as error:  # strict mode may allow no filter of two conditions
        _log.warning("%s: points that carry no vector or two are looked for in the sample alone: %s", name, error)


def _item_name(record: Record) -> str:
    """Name a stored point by its item, `image:1F436`, or by its id if the payload does not fit to the id."""
    item = item_of(record)
    return record.id if item is None else f"{item[0]}:{item[1]}"
