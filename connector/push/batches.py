"""Write one embedding set into releases: shard by shard, batch by batch, with a ledger in SQL for each release.

The order of things makes every crash harmless: rows are validated, written, made durable in the store, and only then
entered in the ledger. What the ledger holds is not written again; what it does not hold is, under the same ids.
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
from connector.releases.chain import NEEDS_TUNING
from connector.releases.point_id_set import PointIds
from connector.releases.points import Projected, lowered, point_id, project
from connector.releases.release import Release
from connector.stores.contract import Store
from connector.stores.layout import PayloadKind

FLUSH_POINTS = 16_384
FLUSH_SECONDS = 2.0  # a slow encoder has its points in the ledger before there are so many
DELETIONS = 1024  # points that are deleted at a time


@dataclass(slots=True)
class ReleaseWriter:
    """A release while it is being written.

    Attributes:
        new: whether this push made both its row and its collection.
        named: whether this push is for it; the collection's other releases take what arrives, no more.
    """

    release: Release
    new: bool
    named: bool = True
    ledger: dict[BatchKey, LedgerEntry] = field(default_factory=dict)
    pending: dict[BatchKey, LedgerEntry] = field(default_factory=dict)
    met: set[BatchKey] = field(default_factory=set)
    lost: set[BatchKey] = field(default_factory=set)
    changed: bool = False

    @property
    def indexes(self) -> Mapping[str, PayloadKind]:
        """Its payload fields and the kinds that they are indexed as."""
        indexes: Mapping[str, PayloadKind] = self.release.row.settings.get("payload_indexes", {})
        return indexes


@dataclass(slots=True)
class BatchWriter:
    """One embedding set while it is written into the releases of a `PushSession`: each shard, then whatever is left."""

    path: Path
    set_id: int
    store: Store
    provenance: Provenance
    run: Run
    targets: Sequence[ReleaseWriter]
    ids: PointIds | None = None
    _written: set[str] = field(default_factory=set)
    _refused: set[tuple[Modality, str, str]] = field(default_factory=set)
    _unflushed: int = 0
    _committed: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Delete what left the set since it was last written, and look up what the ledgers hold of it."""
        self.delete_what_left()
        self._written.clear()
        for target in self.targets:
            target.ledger = _ledger(target.release, self.set_id, self.store, self.provenance)
            target.pending, target.met, target.lost = {}, set(), set()

    def write(self, modality: Modality, shard: Path, advance: Advance = lambda count: None) -> None:
        """Write what the ledgers do not hold of a durable shard."""
        end = 0
        for start, rows in shard_batches(shard, modality, BATCH_POINTS):
            place, written = (shard.name, start), (rows.digest(), len(rows))
            open_targets = []
            for target in self.targets:
                target.met.add(place)
                # A batch with refused rows is not in the ledger as whole: they are refused again, every time.
                if target.ledger.get(place) == written:
                    self.run.count("unchanged", len(rows))
                else:
                    open_targets.append(target)
            if open_targets:
                self._unflushed += self._write_batch(open_targets, place, rows, written[0])
                if self._unflushed >= FLUSH_POINTS or time.monotonic() - self._committed >= FLUSH_SECONDS:
                    self._commit()
            end = start + len(rows)
            advance(len(rows))
        self._forget_beyond(shard.name, end)
        self._written.add(shard.name)

    def _forget_beyond(self, shard: str, end: int) -> None:
        """Have the next commit forget the ledger lines of batches that a shard has no rows for any more."""
        first = -(-end // BATCH_POINTS) * BATCH_POINTS
        for target in self.targets:
            places = takewhile(target.ledger.__contains__, ((shard, start) for start in count(first, BATCH_POINTS)))
            target.lost.update(places)

    def finish(
        self,
        embedding_set: EmbeddingSet,
        *,
        changed: Collection[str] = (),
        only: Collection[str] | None = None,
        advance: Advance = lambda count: None,
    ) -> None:
        """Write the shards that were not written yet, and forget the ledger lines of rows that the set has lost.

        Args:
            embedding_set: the set, complete now.
            changed: names of shards that are no longer what was written.
            only: names of the shards to look at; None: all of them.
            advance: is told how many rows were looked at.
        """
        if changed:
            self._commit()
            self._written -= set(changed)
            for target in self.targets:
                target.ledger = self.provenance.ledger.entries(target.release.row.id, self.set_id)
                target.met = {place for place in target.met if place[0] not in changed}
            for name in changed:
                if not (self.path / name).exists():
                    self._forget_beyond(name, 0)
        for modality in MODALITIES:
            for shard in embedding_set.shards(modality):
                if shard.name not in self._written and (only is None or shard.name in only):
                    self.write(modality, shard, advance)
        self._commit()
        for target in self.targets:
            lost = {place for place in target.ledger.keys() - target.met if only is None or place[0] in only}
            if lost:
                self.provenance.ledger.remove(target.release.row.id, self.set_id, lost)

    def delete_what_left(self) -> None:
        """Delete the points of rows that left the set since it was last written, as SQL remembers them."""
        for target in self.targets:
            apply_tombstones(self.provenance, self.store, target.release.row, self.set_id)

    def delete_gone(self, embedding_set: EmbeddingSet, written: PointIds) -> None:
        """Delete the points that were written of rows that are in the set no more."""
        with PointIds() as held:
            for modality in MODALITIES:
                for _, _, rows in embedding_set.batches(modality, BATCH_POINTS):
                    held.add([point_id(modality, key) for key in rows.keys])
            for batch in written.without(held):
                for target in self.targets:
                    self.store.delete(target.release.name, batch)
        for target in self.targets:
            self.store.flush(target.release.name)

    def _write_batch(self, targets: Sequence[ReleaseWriter], place: BatchKey, rows: Rows, digest: str) -> int:
        # Once for all targets that share an alignment and the kinds of their indexes.
        known: dict[tuple[int, frozenset[tuple[str, PayloadKind]]], Projected] = {}
        projections = []
        for target in targets:
            shared = (target.release.row.alignment_id, frozenset(target.indexes.items()))
            if shared not in known:
                known[shared] = project(target.release.alignment, rows, target.indexes)
            projections.append((target, known[shared]))
        for projected in known.values():
            self._reject(place, rows, projected.refused)
        batches = []
        for target, projected in projections:
            if target.ledger.get(place) == (digest, len(projected.rows)):
                self.run.count("unchanged", len(projected.rows))
            else:
                batches.append((target, projected, lowered(target.release, projected)))
        numbers = {key: row for row, key in enumerate(rows.keys)}
        refusals: dict[int, Refusal] = {}
        written = 0
        for target, projected, points in batches:  # no release is written to unless all can be
            if projected.refused:  # an older point of what can be written no more would be found for what it was
                gone = [point_id(rows.modality, rows.keys[row]) for row in projected.refused]
                self.store.delete(target.release.name, gone)
            kept = len(points.ids)
            if points.ids:
                if self.ids:
                    self.ids.add(points.ids)
                try:
                    self.store.upsert(target.release.name, points)
                except PointsRefusedError as error:
                    refusals = {numbers[projected.rows.keys[row]]: why for row, why in error.refused.items()} | refusals
                    self.store.delete(target.release.name, [points.ids[row] for row in error.refused])
                    kept -= len(error.refused)
            if not target.changed:  # known before the ledger knows: whoever goes on after a crash has to tune
                target.changed = True
                row = target.release.row
                self.provenance.releases.change(row, settings={**row.settings, NEEDS_TUNING: True})
            target.pending[place] = (digest, kept)
            self.run.count("written", kept)
            written += kept
        self._reject(place, rows, refusals)
        return written

    def _reject(self, place: BatchKey, rows: Rows, refused: Mapping[int, tuple[Reason, str]]) -> None:
        """Record what was refused, once for each reason: by however many releases, in however many shards."""
        for row, (reason, detail) in sorted(refused.items()):
            if (why := (rows.modality, rows.keys[row], reason)) not in self._refused:
                self._refused.add(why)
                source, position = str(self.path / place[0]), place[1] + row + 1
                self.run.reject(Reject(source, position, "write", reason, detail, rows.keys[row], rows.modality))

    def _commit(self) -> None:
        """Make what was written durable, then say so in SQL."""
        for target in self.targets:
            if target.lost:  # first: what a shard has lost may be among what a newer shard has gained
                self.provenance.ledger.remove(target.release.row.id, self.set_id, target.lost)
                for place in target.lost:
                    del target.ledger[place]
                target.lost = set()
            if target.pending:
                self.store.flush(target.release.name)
                self.provenance.ledger.write(target.release.row.id, self.set_id, self.run.id, target.pending)
                target.ledger.update(target.pending)
                target.pending = {}
        self._unflushed = 0
        self._committed = time.monotonic()


def apply_tombstones(provenance: Provenance, store: Store, row: ReleaseRow, set_id: int) -> int:
    """Delete from a collection the points of rows that left an embedding set, as SQL remembers them; count them."""
    count = 0
    while left := provenance.ledger.tombstones(row.id, set_id, DELETIONS):
        store.delete(row.physical_name, [point_id(modality, key) for modality, key in left.values()])
        store.flush(row.physical_name)
        provenance.ledger.remove_tombstones(left)
        count += len(left)
    return count


def _ledger(release: Release, set_id: int, store: Store, provenance: Provenance) -> dict[BatchKey, LedgerEntry]:
    """Return what of the set is written; nothing, where points have vanished behind the ledger's back."""
    ledger = provenance.ledger.entries(release.row.id, set_id)
    expected = provenance.ledger.points(release.row.id)  # before the count, which others may be adding to
    if store.count(release.name) < expected:
        provenance.ledger.remove(release.row.id, set_id, ledger)
        return {}
    return ledger
