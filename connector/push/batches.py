"""Write one embedding set into releases: shard by shard, batch by batch, with a ledger in SQL for each release.

Durable before said. The order of the steps makes every crash harmless:

    shard      the rows are durable in the embedding set
    points     the rows are checked, projected and written into the collection, several batches in one call
    flush      the points are durable in the store
    ledger     SQL records the batch

The next run skips what the ledger holds and writes everything else again, under the same point ids.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from pathlib import Path

import numpy as np

from alignment.errors import EmbeddingSetError
from alignment.modality import MODALITIES, Modality
from alignment.plurals import counted
from alignment.sets.cards import SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from connector.encoding.pipeline import Pipeline
from connector.errors import PointsRefusedError, Refusal, StoreError
from connector.progress import Advance
from connector.provenance.ledger import BATCH_POINTS, BatchKey
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.push.other_sets import OtherSets
from connector.push.point_rate import PointRate
from connector.push.prepared_batches import PreparedBatch, ReleaseBatch, ShardEnd, prepared_batches
from connector.push.release_writer import ReleaseWriter
from connector.rejects import Reject
from connector.releases.point_comparison import lost_writes
from connector.releases.point_id_set import PointIds
from connector.releases.points import Projected, point_ids
from connector.releases.release import Release
from connector.releases.tombstones import apply_tombstones
from connector.stores.contract import Store
from connector.stores.points import Points

WRITE_POINTS = 4096  # Qdrant Edge writes as many in one call up to twice as fast as BATCH_POINTS
FLUSH_POINTS = 16_384
FLUSH_SECONDS = 2.0  # a slow encoder reaches the ledger long before FLUSH_POINTS
VECTORS_READ_BACK = 16  # of each batch that may have replaced points; payloads are read back all
BATCHES_AHEAD = 16  # that are prepared while others are written
EXAMPLES = 5  # items that an error names


@dataclass(slots=True)
class _Waiting:
    """A batch on its way into one release, not written yet.

    Attributes:
        points: those of the batch that the release does not hold as they are.
        projected: their rows.
        unchanged: how many points of the batch it holds as they are.
    """

    key: BatchKey
    rows: Rows
    of_release: ReleaseBatch
    points: Points
    projected: Projected
    unchanged: int = 0


@dataclass(slots=True)
class BatchWriter:
    """Writes one embedding set into the releases of a `PushSession`: `begin`, `write` each shard, `finish`.

    Attributes:
        ids: collects the ids of written points, where somebody needs them.
        others: refuses rows whose points are of another set in these releases; None: none is looked for.
        rate: of all points of the run.
    """

    path: Path
    set_id: int
    store: Store
    provenance: Provenance
    run: Run
    writers: Sequence[ReleaseWriter]
    ids: PointIds | None = None
    others: OtherSets | None = None
    rate: PointRate = field(default_factory=PointRate)
    _written: set[str] = field(default_factory=set)
    _refused: set[tuple[str | None, str | None, str]] = field(default_factory=set)
    _waiting: list[_Waiting] = field(default_factory=list)
    _rows_waiting: int = 0
    _unflushed: int = 0
    _same_points: bool = False
    _unchanged: Counter[str] = field(default_factory=Counter)  # by shard
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

    def write(self, modality: Modality, shard: Path) -> None:
        """Write the batches of a durable shard that the ledgers do not hold."""
        for prepared in prepared_batches([(modality, shard)], self.writers, BATCH_POINTS):
            self._write(prepared)

    def _write(self, batch: PreparedBatch | ShardEnd, advance: Advance = lambda count: None) -> None:
        if isinstance(batch, ShardEnd):
            self._forget_beyond(batch.name, batch.rows)
            self._written.add(batch.name)
            return
        for writer in self.writers:
            writer.met.add(batch.key)
        if batch.held:
            self._count_unchanged(batch.key, batch.held)
        for projected in batch.projections:
            self._reject(batch.key, batch.rows, projected.refused)
            self._reject_fields(batch.key, batch.rows, projected.left_out)
        if batch.behind:
            self._await(batch)
        advance(len(batch.rows))

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
            embedding_set: the set, complete now. If it is not what is there any more, only a part may be written.
            changed: names of shards that have lost rows since they were written.
            only: names of the shards to write again, because they have lost rows; None: all that there are.
            advance: called with the number of rows looked at since the last call.
        """
        # Points of rows that left these shards are counted out already, or are of rows that are in newer shards now.
        self._same_points = only is not None
        if changed:
            self._reopen(changed)
        shards = [
            (modality, shard)
            for modality in MODALITIES
            for shard in embedding_set.shards(modality)
            if shard.name not in self._written and (only is None or shard.name in only)
        ]
        try:
            with Pipeline() as pipeline:
                for prepared in pipeline.ahead(prepared_batches(shards, self.writers, BATCH_POINTS), BATCHES_AHEAD):
                    self._write(prepared, advance)
        except EmbeddingSetError:
            if SetCard.read(self.path).fingerprint == embedding_set.card.fingerprint:
                raise
            self._commit()  # another process has changed the set, and a shard is gone: the caller begins again
            return
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
                    held.add(point_ids(modality, rows.keys))
            for ids in written.without(held):
                for writer in self.writers:
                    self.store.delete(writer.release.name, ids)
        for writer in self.writers:
            self.store.flush(writer.release.name)

    def _reopen(self, changed: Collection[str]) -> None:
        """Have `finish` look at these shards again; some of them may be gone."""
        self._commit()
        self._written -= set(changed)
        self.run.counts["unchanged"] -= sum(self._unchanged.pop(shard, 0) for shard in changed)  # counted anew
        for writer in self.writers:
            writer.ledger = self.provenance.ledger.entries(writer.release.row.id, self.set_id)
            writer.met = {key for key in writer.met if key[0] not in changed}
        for shard in changed:
            if not (self.path / shard).exists():
                self._forget_beyond(shard, 0)

    def _count_unchanged(self, key: BatchKey, points: int) -> None:
        self.run.count("unchanged", points)
        self._unchanged[key[0]] += points

    def _forget_beyond(self, shard: str, end: int) -> None:
        """Have the next commit forget ledger entries of a shard's batches from row `end` on: it has no such rows."""
        first = -(-end // BATCH_POINTS) * BATCH_POINTS
        for writer in self.writers:
            keys = takewhile(writer.ledger.__contains__, ((shard, start) for start in count(first, BATCH_POINTS)))
            writer.lost.update(keys)

    def _await(self, batch: PreparedBatch) -> None:
        """Have a batch wait until there are enough points for a large write, or until the next commit."""
        if self.others is not None:
            self.others.check(batch.rows)
        if self._waiting and self._waiting[0].rows.modality != batch.rows.modality:
            self._send()
        for of_release in batch.behind:
            writer, projected, points = of_release.writer, of_release.projected, of_release.points
            self._begin_write(writer)
            if projected.refused:  # an older point of such a row is deleted: a search would return its old content
                self._send()  # which may have written a row of the same key
                keys = [batch.rows.keys[row] for row in projected.refused]
                self.store.delete(writer.release.name, point_ids(batch.rows.modality, keys))
            if batch.key in writer.ledger:  # rows have left the shard, and others have moved up
                changed = self._changed(writer.release, points)
                projected, points = projected.take(changed), points.take(changed)
            unchanged = len(of_release.points.ids) - len(points.ids)
            self._waiting.append(_Waiting(batch.key, batch.rows, of_release, points, projected, unchanged))
        self._rows_waiting += len(batch.rows)
        unflushed = self._unflushed + sum(len(part.points.ids) for part in self._waiting)
        if unflushed >= FLUSH_POINTS or time.monotonic() - self._committed >= FLUSH_SECONDS:
            self._commit()
        elif self._rows_waiting >= self.rate.at_once(WRITE_POINTS):
            self._send()

    def _send(self) -> None:
        """Write what waits: for each release in one call of the store, which is quickest with many points."""
        waiting, self._waiting, self._rows_waiting = self._waiting, [], 0
        refusals: dict[BatchKey, dict[int, Refusal]] = {}
        for writer in self.writers:
            of_writer = [part for part in waiting if part.of_release.writer is writer]
            refused = self._upsert(writer, [part.points for part in of_writer if part.points.ids])
            start = 0
            for part in of_writer:
                end = start + len(part.points.ids)
                row_of = {key: row for row, key in enumerate(part.rows.keys)} if refused else {}
                of_part = {
                    row_of[part.projected.rows.keys[position - start]]: refusal
                    for position, refusal in refused.items()
                    if start <= position < end
                }
                refusals[part.key] = of_part | refusals.get(part.key, {})
                self._written_part(part, of_part)
                start = end
        for part in waiting:
            self._reject(part.key, part.rows, refusals.pop(part.key, {}))

    def _written_part(self, part: _Waiting, refused: Mapping[int, Refusal]) -> None:
        """Count a batch that the store has written, `refused` rows apart; the next commit records it."""
        writer = part.of_release.writer
        if not writer.fresh:
            writer.replacing += _to_read_back(part.points, refused, part.rows, part.projected, self._rng)
        written = len(part.points.ids) - len(refused)
        writer.pending[part.key] = (part.of_release.digest, part.unchanged + written)
        self.run.count("written", written)
        if part.unchanged:
            self._count_unchanged(part.key, part.unchanged)
        self._unflushed += written

    def _changed(self, release: Release, points: Points) -> list[int]:
        """Return the positions of points that a release lacks or holds otherwise: a write costs it more than a read."""
        if self._same_points:  # the vectors of these points were confirmed
            points = replace(points, vectors=points.vectors[:, :0].copy())
        return lost_writes(release, self.store, points)

    def _upsert(self, writer: ReleaseWriter, batches: Sequence[Points]) -> dict[int, Refusal]:
        """Write batches of points into one release; return what the store refuses, by position among them all."""
        if not batches:
            return {}
        points = Points.concatenate(batches)
        if self.ids is not None:
            self.ids.add(points.ids)
        self.rate.wait(len(points.ids))
        try:
            self.store.upsert(writer.release.name, points)
        except PointsRefusedError as error:
            self.store.delete(writer.release.name, [points.ids[number] for number in error.refused])
            return dict(error.refused)
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

    def pass_over_recorded(self, shards: Collection[str]) -> None:
        """Do not record again what earlier runs refused of the rows of these shards."""
        for row in self.provenance.runs.write_rejects_of([str(self.path / shard) for shard in shards]):
            self._refused |= {(row.modality, row.key, cause) for cause in (row.reason, row.detail)}

    def _commit(self) -> None:
        """Write what waits, flush it, read back what it replaced, then record it in the ledger: in one transaction."""
        self._send()
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
