"""Write one embedding set into releases: shard by shard, batch by batch, with a ledger in SQL for each release.

Durable before said. The order of the steps makes every crash harmless:

    shard      the rows are durable in the embedding set
    points     the rows are checked, projected and written into the collection
    flush      the points are durable in the store
    ledger     SQL records the batch

The next run skips what the ledger holds and writes everything else again, under the same point ids.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

from alignment.modality import MODALITIES, Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.shards import shard_batches
from connector.errors import PointsRefusedError, Refusal
from connector.progress import Advance
from connector.provenance.ledger import BATCH_POINTS, BatchKey, LedgerEntry
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import ReleaseRow
from connector.rejects import Reason, Reject
from connector.releases.point_id_set import PointIds
from connector.releases.points import Projected, lowered, point_id, project
from connector.releases.release import Release
from connector.stores.contract import Points, Store
from connector.stores.layout import PayloadKind

FLUSH_POINTS = 16_384
FLUSH_SECONDS = 2.0  # a slow encoder reaches the ledger long before FLUSH_POINTS
TOMBSTONES_AT_ONCE = 1024


@dataclass(slots=True)
class ReleaseWriter:
    """The state of one release while a push writes into it.

    Attributes:
        new: this push made both its row and its collection.
        requested: the push is for this release. The collection's other releases only receive the same rows.
        ledger: what SQL records as written, by batch.
        pending: what is written and not flushed yet.
        met: batches that were looked at.
        lost: batches of the ledger that the embedding set has no rows for any more.
        changed: something was written.
    """

    release: Release
    new: bool
    requested: bool = True
    ledger: dict[BatchKey, LedgerEntry] = field(default_factory=dict)
    pending: dict[BatchKey, LedgerEntry] = field(default_factory=dict)
    met: set[BatchKey] = field(default_factory=set)
    lost: set[BatchKey] = field(default_factory=set)
    changed: bool = False


@dataclass(slots=True)
class BatchWriter:
    """Writes one embedding set into the releases of a `PushSession`: `begin`, `write` each shard, `finish`.

    Attributes:
        ids: collects the ids of written points, where somebody needs them.
    """

    path: Path
    set_id: int
    store: Store
    provenance: Provenance
    run: Run
    writers: Sequence[ReleaseWriter]
    ids: PointIds | None = None
    _written: set[str] = field(default_factory=set)
    _refused: set[tuple[Modality, str, str]] = field(default_factory=set)
    _unflushed: int = 0
    _committed: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Apply the tombstones of the set and read what the ledgers hold of it."""
        self.apply_tombstones()
        self._written.clear()
        for writer in self.writers:
            writer.ledger = _ledger(writer.release, self.set_id, self.store, self.provenance)
            writer.pending, writer.met, writer.lost = {}, set(), set()

    def write(self, modality: Modality, shard: Path, advance: Advance = lambda count: None) -> None:
        """Write the batches of a durable shard that the ledgers do not hold."""
        end = 0
        for start, rows in shard_batches(shard, modality, BATCH_POINTS):
            key, entry = (shard.name, start), (rows.digest(), len(rows))
            behind = []
            for writer in self.writers:
                writer.met.add(key)
                # A batch with refused rows is never entered whole: its rows are refused again on every run.
                if writer.ledger.get(key) == entry:
                    self.run.count("unchanged", len(rows))
                else:
                    behind.append(writer)
            if behind:
                self._unflushed += self._write_batch(behind, key, rows, entry[0])
                if self._unflushed >= FLUSH_POINTS or time.monotonic() - self._committed >= FLUSH_SECONDS:
                    self._commit()
            end = start + len(rows)
            advance(len(rows))
        self._forget_beyond(shard.name, end)
        self._written.add(shard.name)

    def finish(
        self,
        embedding_set: EmbeddingSet,
        *,
        changed: Collection[str] = (),
        only: Collection[str] | None = None,
        advance: Advance = lambda count: None,
    ) -> None:
        """Write the remaining shards, then forget the ledger entries of rows that the set has lost.

        Args:
            embedding_set: the set, complete now.
            changed: names of shards whose content differs from what was written.
            only: names of the shards to look at; None: all of them.
            advance: called with the number of rows looked at since the last call.
        """
        if changed:
            self._reopen(changed)
        for modality in MODALITIES:
            for shard in embedding_set.shards(modality):
                if shard.name not in self._written and (only is None or shard.name in only):
                    self.write(modality, shard, advance)
        self._commit()
        for writer in self.writers:
            lost = {key for key in writer.ledger.keys() - writer.met if only is None or key[0] in only}
            if lost:
                self.provenance.ledger.remove(writer.release.row.id, self.set_id, lost)

    def apply_tombstones(self) -> None:
        """Delete the points of rows that left the set since it was last written."""
        for writer in self.writers:
            apply_tombstones(self.provenance, self.store, writer.release.row, self.set_id)

    def delete_gone(self, embedding_set: EmbeddingSet, written: PointIds) -> None:
        """Delete those of the `written` points whose rows are no longer in the set."""
        with PointIds() as held:
            for modality in MODALITIES:
                for _, _, rows in embedding_set.batches(modality, BATCH_POINTS):
                    held.add([point_id(modality, key) for key in rows.keys])
            for ids in written.without(held):
                for writer in self.writers:
                    self.store.delete(writer.release.name, ids)
        for writer in self.writers:
            self.store.flush(writer.release.name)

    def _reopen(self, changed: Collection[str]) -> None:
        """Have `finish` look at these shards again; some of them may be gone."""
        self._commit()
        self._written -= set(changed)
        for writer in self.writers:
            writer.ledger = self.provenance.ledger.entries(writer.release.row.id, self.set_id)
            writer.met = {key for key in writer.met if key[0] not in changed}
        for shard in changed:
            if not (self.path / shard).exists():
                self._forget_beyond(shard, 0)

    def _forget_beyond(self, shard: str, end: int) -> None:
        """Have the next commit forget ledger entries of a shard's batches from row `end` on: it has no such rows."""
        first = -(-end // BATCH_POINTS) * BATCH_POINTS
        for writer in self.writers:
            keys = takewhile(writer.ledger.__contains__, ((shard, start) for start in count(first, BATCH_POINTS)))
            writer.lost.update(keys)

    def _write_batch(self, writers: Sequence[ReleaseWriter], key: BatchKey, rows: Rows, digest: str) -> int:
        """Write one batch into each release; return the number of points written."""
        batches = []
        for writer, projected in self._projected(writers, key, rows):
            if writer.ledger.get(key) == (digest, len(projected.rows)):
                self.run.count("unchanged", len(projected.rows))
            else:
                batches.append((writer, projected, lowered(writer.release, projected)))
        refusals: dict[int, Refusal] = {}
        written = 0
        for writer, projected, points in batches:  # lowered all: no release is written to unless all can be
            refused = self._upsert(writer, projected, points, rows)
            refusals = refused | refusals
            self._needs_tuning(writer)
            kept = len(points.ids) - len(refused)
            writer.pending[key] = (digest, kept)
            self.run.count("written", kept)
            written += kept
        self._reject(key, rows, refusals)
        return written

    def _projected(
        self, writers: Sequence[ReleaseWriter], key: BatchKey, rows: Rows
    ) -> list[tuple[ReleaseWriter, Projected]]:
        """Project rows once for all releases that share an alignment and the kinds of their indexes."""
        projections: dict[tuple[int, frozenset[tuple[str, PayloadKind]]], Projected] = {}
        of_writers = []
        for writer in writers:
            shared = (writer.release.row.alignment_id, frozenset(writer.release.indexes.items()))
            if shared not in projections:
                projections[shared] = project(writer.release.alignment, rows, writer.release.indexes)
                self._reject(key, rows, projections[shared].refused)
            of_writers.append((writer, projections[shared]))
        return of_writers

    def _upsert(self, writer: ReleaseWriter, projected: Projected, points: Points, rows: Rows) -> dict[int, Refusal]:
        """Write points into one release; return what the store refuses, by row number.

        An older point of a row that is refused now is deleted: a search would return its old content.
        """
        name = writer.release.name
        if projected.refused:
            self.store.delete(name, [point_id(rows.modality, rows.keys[row]) for row in projected.refused])
        if not points.ids:
            return {}
        if self.ids:
            self.ids.add(points.ids)
        try:
            self.store.upsert(name, points)
        except PointsRefusedError as error:
            self.store.delete(name, [points.ids[number] for number in error.refused])
            row_of = {key: row for row, key in enumerate(rows.keys)}
            return {row_of[projected.rows.keys[number]]: refusal for number, refusal in error.refused.items()}
        return {}

    def _needs_tuning(self, writer: ReleaseWriter) -> None:
        """Record, before the ledger does, that the release changes: whoever resumes after a crash has to tune it."""
        if not writer.changed:
            writer.changed = True
            row = writer.release.row
            self.provenance.releases.change(row, needs_tuning=True)

    def _reject(self, key: BatchKey, rows: Rows, refused: Mapping[int, tuple[Reason, str]]) -> None:
        """Record a reject once for each item and reason, however many releases and shards it is refused in."""
        shard, start = key
        for row, (reason, detail) in sorted(refused.items()):
            if (reject := (rows.modality, rows.keys[row], reason)) not in self._refused:
                self._refused.add(reject)
                source, position = str(self.path / shard), start + row + 1
                self.run.reject(Reject(source, position, "write", reason, detail, rows.keys[row], rows.modality))

    def _commit(self) -> None:
        """Flush what was written, then record it in the ledger."""
        for writer in self.writers:
            release_id = writer.release.row.id
            if writer.lost:  # first: rows that a shard has lost may be in a newer shard, which is pending
                self.provenance.ledger.remove(release_id, self.set_id, writer.lost)
                for key in writer.lost:
                    del writer.ledger[key]
                writer.lost = set()
            if writer.pending:
                self.store.flush(writer.release.name)
                self.provenance.ledger.write(release_id, self.set_id, self.run.id, writer.pending)
                writer.ledger.update(writer.pending)
                writer.pending = {}
        self._unflushed = 0
        self._committed = time.monotonic()


def apply_tombstones(provenance: Provenance, store: Store, row: ReleaseRow, set_id: int) -> int:
    """Delete from a collection the points of rows that left an embedding set; return how many tombstones there were."""
    count = 0
    while tombstones := provenance.ledger.tombstones(row.id, set_id, TOMBSTONES_AT_ONCE):
        store.delete(row.physical_name, [point_id(modality, key) for modality, key in tombstones.values()])
        store.flush(row.physical_name)
        provenance.ledger.remove_tombstones(tombstones)
        count += len(tombstones)
    return count


def _ledger(release: Release, set_id: int, store: Store, provenance: Provenance) -> dict[BatchKey, LedgerEntry]:
    """Return the ledger of a set; emptied if the collection holds fewer points than SQL records."""
    ledger = provenance.ledger.entries(release.row.id, set_id)
    recorded = provenance.ledger.points(release.row.id)  # before the count: other processes may be adding points
    if store.count(release.name) < recorded:
        provenance.ledger.remove(release.row.id, set_id, ledger)
        return {}
    return ledger
