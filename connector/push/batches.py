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
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from pathlib import Path

import numpy as np

from alignment.modality import MODALITIES, Modality
from alignment.plurals import counted
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.shards import shard_batches
from connector.errors import PointsRefusedError, Refusal, StoreError
from connector.progress import Advance
from connector.provenance.ledger import BATCH_POINTS, BatchKey, LedgerEntry
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.push.other_sets import OtherSets
from connector.rejects import Reject
from connector.releases.caption_payload import release_rows
from connector.releases.point_comparison import lost_writes
from connector.releases.point_id_set import PointIds
from connector.releases.points import Projected, lowered, point_id, project
from connector.releases.release import Release
from connector.releases.tombstones import apply_tombstones
from connector.stores.contract import Store
from connector.stores.layout import PayloadKind
from connector.stores.points import Points

FLUSH_POINTS = 16_384
FLUSH_SECONDS = 2.0  # a slow encoder reaches the ledger long before FLUSH_POINTS
VECTORS_READ_BACK = 16  # of each batch that may have replaced points; payloads are read back all
EXAMPLES = 5  # items that an error names


@dataclass(slots=True)
class ReleaseWriter:
    """The state of one release while a push writes into it.

    Attributes:
        new: this push made both its row and its collection.
        requested: the push is for this release. The collection's other releases only receive the same rows.
        ledger: what SQL records as written, by batch.
        rewrite: the collection holds fewer points than SQL records: look at every batch, whatever the ledger says.
        pending: what is written and not flushed yet.
        replacing: points of pending batches that may have replaced others, to be read back; some without vectors.
        met: batches that were looked at.
        lost: batches of the ledger that the embedding set has no rows for any more.
        begun: SQL knows that this set is being written into the release.
        fresh: it was never written into it before, so that no point is replaced.
    """

    release: Release
    new: bool
    requested: bool = True
    ledger: dict[BatchKey, LedgerEntry] = field(default_factory=dict)
    rewrite: bool = False
    pending: dict[BatchKey, LedgerEntry] = field(default_factory=dict)
    replacing: list[Points] = field(default_factory=list)
    met: set[BatchKey] = field(default_factory=set)
    lost: set[BatchKey] = field(default_factory=set)
    begun: bool = False
    fresh: bool = False

    def holds(self, key: BatchKey, entry: LedgerEntry) -> bool:
        """Whether the release holds a batch as it is."""
        return not self.rewrite and self.ledger.get(key) == entry


@dataclass(slots=True)
class BatchWriter:
    """Writes one embedding set into the releases of a `PushSession`: `begin`, `write` each shard, `finish`.

    Attributes:
        ids: collects the ids of written points, where somebody needs them.
        others: refuses rows whose points are of another set in these releases; None: none is looked for.
    """

    path: Path
    set_id: int
    store: Store
    provenance: Provenance
    run: Run
    writers: Sequence[ReleaseWriter]
    ids: PointIds | None = None
    others: OtherSets | None = None
    _written: set[str] = field(default_factory=set)
    _refused: set[tuple[Modality, str, str]] = field(default_factory=set)
    _unflushed: int = 0
    _same_points: bool = False
    _committed: float = field(default_factory=time.monotonic)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.run.id)  # another sample each run

    def begin(self) -> None:
        """Apply the tombstones of the set and read what the ledgers hold of it."""
        self.apply_tombstones()
        self._written.clear()
        self._same_points = False
        for writer in self.writers:
            release = writer.release
            writer.ledger = self.provenance.ledger.entries(release.row.id, self.set_id)
            recorded = self.provenance.ledger.points(release.row.id)  # first: other processes may be adding points
            writer.rewrite = self.store.count(release.name, consistent=True) < recorded
            writer.pending, writer.replacing, writer.met, writer.lost = {}, [], set(), set()
            writer.begun = False

    def write(self, modality: Modality, shard: Path, advance: Advance = lambda count: None) -> None:
        """Write the batches of a durable shard that the ledgers do not hold."""
        end = 0
        for start, rows in shard_batches(shard, modality, BATCH_POINTS):
            key, behind = (shard.name, start), []
            digests: dict[bool, str] = {}  # by whether images carry captions
            for writer in self.writers:
                writer.met.add(key)
                if (captions := writer.release.caption_payload) not in digests:
                    digests[captions] = release_rows(writer.release, rows).digest()
                # A batch with refused rows is never entered whole: its rows are refused again on every run.
                if writer.holds(key, (digests[captions], len(rows))):
                    self.run.count("unchanged", len(rows))
                else:
                    behind.append(writer)
            if behind:
                if self.others is not None:
                    self.others.check(rows)
                self._unflushed += self._write_batch(behind, key, rows, digests)
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
            changed: names of shards that have lost rows since they were written.
            only: names of the shards to write again, because they have lost rows; None: all that there are.
            advance: called with the number of rows looked at since the last call.
        """
        # Points of rows that left these shards are counted out already, or are of rows that are in newer shards now.
        self._same_points = only is not None
        if changed:
            self._reopen(changed)
        for modality in MODALITIES:
            for shard in embedding_set.shards(modality):
                if shard.name not in self._written and (only is None or shard.name in only):
                    self.write(modality, shard, advance)
        for writer in self.writers:
            writer.lost |= {key for key in writer.ledger.keys() - writer.met if only is None or key[0] in only}
        self._commit()

    def apply_tombstones(self) -> None:
        """Delete the points of rows that left the set since it was last written."""
        self._commit()  # a batch that is recorded later would count a point that is deleted now
        for writer in self.writers:
            apply_tombstones(self.provenance, self.store, writer.release.row, self.set_id, self.run.id)

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

    def _write_batch(
        self, writers: Sequence[ReleaseWriter], key: BatchKey, rows: Rows, digests: Mapping[bool, str]
    ) -> int:
        """Write one batch into each release; return the number of points written."""
        batches = []
        for writer, projected in self._projected(writers, key, rows):
            if writer.holds(key, (digests[writer.release.caption_payload], len(projected.rows))):
                self.run.count("unchanged", len(projected.rows))
            else:
                batches.append((writer, projected, lowered(writer.release, projected)))
        refusals: dict[int, Refusal] = {}
        written = 0
        for writer, all_projected, all_points in batches:  # lowered all: no release is written to unless all can be
            self._begin_write(writer)
            projected, points = all_projected, all_points
            if key in writer.ledger:  # rows have left the shard, and others have moved up
                changed = self._changed(writer.release, all_points)
                projected, points = all_projected.take(changed), all_points.take(changed)
            refused = self._upsert(writer, projected, points, rows)
            refusals = refused | refusals
            if not writer.fresh:
                writer.replacing += _to_read_back(points, refused, rows, projected, self._rng)
            kept = len(points.ids) - len(refused)
            writer.pending[key] = (digests[writer.release.caption_payload], len(all_points.ids) - len(refused))
            self.run.count("written", kept)
            if unchanged := len(all_points.ids) - len(points.ids):
                self.run.count("unchanged", unchanged)
            written += kept
        self._reject(key, rows, refusals)
        return written

    def _changed(self, release: Release, points: Points) -> list[int]:
        """Return the positions of points that a release lacks or holds otherwise: a write costs it more than a read."""
        if self._same_points:  # the vectors of these points were confirmed
            points = replace(points, vectors=points.vectors[:, :0].copy())
        return lost_writes(release, self.store, points)

    def _projected(
        self, writers: Sequence[ReleaseWriter], key: BatchKey, rows: Rows
    ) -> list[tuple[ReleaseWriter, Projected]]:
        """Project rows once for all releases that share an alignment, the kinds of their indexes and their payload."""
        projections: dict[tuple[int, bool, frozenset[tuple[str, PayloadKind]]], Projected] = {}
        of_writers = []
        for writer in writers:
            release = writer.release
            shared = (release.row.alignment_id, release.caption_payload, frozenset(release.indexes.items()))
            if shared not in projections:
                projections[shared] = project(release.alignment, release_rows(release, rows), release.indexes)
                self._reject(key, rows, projections[shared].refused)
                self._reject_fields(key, rows, projections[shared].left_out)
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

    def _begin_write(self, writer: ReleaseWriter) -> None:
        if not writer.begun:
            writer.fresh = self.provenance.releases.begin_write(writer.release.row, self.set_id)
            writer.begun = True

    def _reject(self, key: BatchKey, rows: Rows, refused: Mapping[int, Refusal]) -> None:
        """Record a reject once for each item and reason, however many releases and shards it is refused in."""
        for row, refusal in sorted(refused.items()):
            self._reject_once(key, rows, row, refusal, refusal.reason)

    def _reject_fields(self, key: BatchKey, rows: Rows, left_out: Mapping[int, Sequence[Refusal]]) -> None:
        """Record the fields that items are written without, each once."""
        for row, refusals in sorted(left_out.items()):
            for refusal in refusals:
                self._reject_once(key, rows, row, refusal, refusal.detail)

    def _reject_once(self, key: BatchKey, rows: Rows, row: int, refusal: Refusal, cause: str) -> None:
        shard, start = key
        if (reject := (rows.modality, rows.keys[row], cause)) not in self._refused:
            self._refused.add(reject)
            source, position = str(self.path / shard), start + row + 1
            self.run.reject(Reject(source, position, "write", *refusal, rows.keys[row], rows.modality))

    def _commit(self) -> None:
        """Flush what was written, read back what it replaced, then record it in the ledger: in one transaction."""
        for writer in self.writers:
            if writer.pending:
                self.store.flush(writer.release.name)
                _read_back(writer, self.store)
            if writer.pending or writer.lost:  # rows that a shard has lost may be in a newer shard, which is pending
                self.provenance.ledger.write(
                    writer.release.row.id,
                    self.set_id,
                    self.run.id,
                    writer.pending,
                    removed=writer.lost,
                    same_points=self._same_points,
                )
                for key in writer.lost - writer.pending.keys():
                    writer.ledger.pop(key, None)
                writer.ledger.update(writer.pending)
                writer.pending, writer.replacing, writer.lost = {}, [], set()
        self._unflushed = 0
        self._committed = time.monotonic()


def _to_read_back(
    points: Points, refused: Collection[int], rows: Rows, projected: Projected, rng: np.random.Generator
) -> list[Points]:
    """Return what to read back of written points, `refused` rows apart: some with vectors, the others without."""
    refused_keys = {rows.keys[row] for row in refused}
    written = [position for position, key in enumerate(projected.rows.keys) if key not in refused_keys]
    sample = sorted(rng.permutation(written)[:VECTORS_READ_BACK].tolist())
    rest = points.take(sorted(set(written) - set(sample)))
    return [points.take(sample), replace(rest, vectors=rest.vectors[:, :0].copy())]


def _read_back(writer: ReleaseWriter, store: Store) -> None:
    """Read back points that may have replaced others: their number says nothing of a write that was lost.

    Raises:
        StoreError: a write was acknowledged and not done. The ledger does not record it, so the next push repeats it.
    """
    for points in writer.replacing:
        if lost := lost_writes(writer.release, store, points):
            items = [f"{points.vector_name}:{points.payloads[position]['key']}" for position in lost[:EXAMPLES]]
            raise StoreError(
                f"collection {writer.release.name} acknowledged {counted(points.ids, 'point')} and does not "
                f"hold {len(lost):,} of them as they were written, among them {', '.join(items)}; run the same command "
                "again"
            )
