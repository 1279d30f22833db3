"""The ledger: which batches of which embedding set are durable in which release, and which points are to be deleted.

Which embedding sets belong to a release is a fact of its own (`Releases.begin_write` records it before the first point
of a set is written). It never follows from the ledger: a ledger may lack entries, and no point is an orphan for that.

The entries of a release add up to the number of its points, also while its embedding sets change. Points of rows that
have changed or moved since they were written are in no batch of the set any more. The entry `UNPLACED` counts them
until the set is pushed again.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.orm import Session, aliased

from alignment.modality import MODALITIES, Modality
from connector.provenance.database import Database
from connector.provenance.tables import BatchRow, EmbeddingSetRow, ReleaseRow, ReleaseSetRow, TombstoneRow, now
from connector.states import ReleaseState

BATCH_POINTS = 512
OUTDATED = ""  # the digest of a batch that must be written again
BatchKey = tuple[str, int]  # shard, and the row in it at which the batch starts
LedgerEntry = tuple[str, int]  # digest of what was written, and how many points
UNPLACED: BatchKey = ("", 0)  # its number of points may be negative


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A point that a release has yet to delete.

    Attributes:
        shard: that the row of the item leaves; empty: unknown.
        counted: the ledger does not count the point any more.
    """

    shard: str
    modality: Modality
    key: str
    counted: bool


class Ledger:
    """The ledger in SQL. An entry is written once its points are durable in the store, never before."""

    def __init__(self, database: Database):
        self._database = database

    def entries(self, release_id: int, set_id: int) -> dict[BatchKey, LedgerEntry]:
        """Return what a release holds of a set: `{(shard, start): (digest, points)}`."""
        query = select(BatchRow.shard, BatchRow.start, BatchRow.digest, BatchRow.points)
        query = query.where(BatchRow.release_id == release_id, BatchRow.embedding_set_id == set_id)
        with self._database.session() as session:
            return {(shard, start): (digest, points) for shard, start, digest, points in session.execute(query)}

    def points(self, release_id: int) -> int:
        """Return how many points a release holds, over all embedding sets."""
        query = select(func.coalesce(func.sum(BatchRow.points), 0)).where(BatchRow.release_id == release_id)
        with self._database.session() as session:
            return int(session.scalar(query) or 0)

    def points_beyond(self, release_id: int, set_id: int, other_id: int, *, same_payload: bool) -> int:
        """Return how many points of a set a release holds that the release `other_id` does not.

        Args:
            release_id, set_id, other_id: rows in SQL.
            same_payload: both carry the same payload of a row, so that their digests can be compared. Else a batch of
                the other release counts as held if it is up to date.
        """
        theirs = aliased(BatchRow)
        same = and_(
            theirs.release_id == other_id,
            theirs.embedding_set_id == set_id,
            theirs.shard == BatchRow.shard,
            theirs.start == BatchRow.start,
            theirs.digest == BatchRow.digest if same_payload else theirs.digest != OUTDATED,
        )
        query = select(func.coalesce(func.sum(BatchRow.points), 0)).outerjoin(theirs, same)
        of_set = (BatchRow.release_id == release_id, BatchRow.embedding_set_id == set_id)
        query = query.where(*of_set, BatchRow.digest != OUTDATED, theirs.id.is_(None))
        with self._database.session() as session:
            return int(session.scalar(query) or 0)

    def write(
        self,
        release_id: int,
        set_id: int,
        run_id: int,
        batches: Mapping[BatchKey, LedgerEntry],
        *,
        removed: Collection[BatchKey] = (),
        same_points: bool = False,
    ) -> None:
        """Record batches that are durable in the store, in place of the entries under the same keys.

        Args:
            release_id: the release that holds them.
            set_id: the embedding set whose rows they are.
            run_id: the run that wrote them.
            batches: what was written.
            removed: entries of rows that the embedding set has lost, which go in the same transaction.
            same_points: the release holds as many points as before, because these batches were only written again.
        """
        with self._database.session() as session:
            bump_revision(session, [release_id])  # first: its lock keeps other transactions from this ledger
            before = _sum(session, release_id, set_id) if same_points else 0
            _remove(session, release_id, set_id, {*batches, *removed})
            session.add_all(
                _entry(release_id, set_id, run_id, key, digest, points) for key, (digest, points) in batches.items()
            )
            if same_points:
                session.flush()
                _add_unplaced(session, release_id, set_id, run_id, before - _sum(session, release_id, set_id))

    def add_tombstones(
        self,
        set_id: int,
        modality: Modality,
        shard: str,
        keys: Iterable[str],
        also: Iterable[int] = (),
        *,
        retired: bool = True,
    ) -> None:
        """Record that rows leave a shard: releases must delete their points and write the rest of the shard again.

        This concerns all releases that the set was pushed into, and the releases `also`. The ledger entries of the
        shard keep their number of points, marked as outdated.

        Args:
            set_id: the embedding set.
            modality: of the shard.
            shard: its name.
            keys: of the items whose rows leave it.
            also: releases that the set may not have been pushed into yet.
            retired: whether retired releases are written to now. If not, their entries stay as they are until they
                are written to again: a rollback then finds what it expects.
        """
        of_set = BatchRow.embedding_set_id == set_id
        with self._database.session() as session:
            pushed_into = select(ReleaseSetRow.release_id).where(ReleaseSetRow.embedding_set_id == set_id)
            releases = sorted({*session.scalars(pushed_into), *also})
            bump_revision(session, releases)
            outdated = update(BatchRow).where(of_set, BatchRow.shard == shard)
            if not retired:
                at_rest = select(ReleaseRow.id).where(ReleaseRow.state == ReleaseState.RETIRED)
                outdated = outdated.where(BatchRow.release_id.not_in(at_rest))
            session.execute(outdated.values(digest=OUTDATED))
            session.add_all(
                TombstoneRow(release_id=release_id, embedding_set_id=set_id, modality=modality, shard=shard, key=key)
                for key in keys
                for release_id in releases
            )

    def outdate(self, release_id: int) -> None:
        """Have the next push of each set compare the points of a release, and write those that differ."""
        with self._database.session() as session:
            bump_revision(session, [release_id])
            session.execute(update(BatchRow).where(BatchRow.release_id == release_id).values(digest=OUTDATED))

    def tombstones(self, release_id: int, set_id: int, limit: int) -> dict[int, Tombstone]:
        """Return at most `limit` points that a release has yet to delete, by the number of the tombstone."""
        query = select(TombstoneRow).where(
            TombstoneRow.release_id == release_id, TombstoneRow.embedding_set_id == set_id
        )
        with self._database.session() as session:
            rows = session.scalars(query.order_by(TombstoneRow.id).limit(limit))
            return {row.id: Tombstone(row.shard, cast(Modality, row.modality), row.key, row.counted) for row in rows}

    def deleted_from(self, path: Path) -> dict[Modality, int]:
        """Count the items of the embedding set at `path` whose points some release has yet to delete, by modality."""
        query = select(TombstoneRow.modality, func.count(TombstoneRow.key.distinct())).join(EmbeddingSetRow)
        query = query.where(EmbeddingSetRow.path == self._database.stored(path.absolute()))
        with self._database.session() as session:
            rows = session.execute(query.group_by(TombstoneRow.modality)).all()
        counts = {row[0]: row[1] for row in rows}
        return {modality: counts.get(modality, 0) for modality in MODALITIES}

    def count_out(
        self, release_id: int, set_id: int, run_id: int, tombstones: Mapping[int, Tombstone], present: int
    ) -> None:
        """Take points out of the ledger that are deleted next, once: whoever resumes after a crash does not repeat it.

        The shards of the tombstones are outdated from now on: a row may have stayed in one because a deletion was
        killed, or have come back, and its point must be written again.

        Args:
            release_id: the release that holds the points.
            set_id: the embedding set that their rows left.
            run_id: the run that deletes them.
            tombstones: as `tombstones` returned them.
            present: how many points there are to delete, without those that were counted out before.
        """
        shards = {tombstone.shard for tombstone in tombstones.values()}
        of_set = (BatchRow.release_id == release_id, BatchRow.embedding_set_id == set_id)
        outdated = update(BatchRow).where(*of_set)
        if "" not in shards:
            outdated = outdated.where(BatchRow.shard.in_(shards))
        with self._database.session() as session:
            bump_revision(session, [release_id])
            session.execute(outdated.values(digest=OUTDATED))
            session.execute(update(TombstoneRow).where(TombstoneRow.id.in_(tombstones)).values(counted=True))
            _add_unplaced(session, release_id, set_id, run_id, -present)

    def remove_tombstones(self, tombstones: Iterable[int]) -> None:
        """Remove tombstones whose points were counted out and are durably deleted from the store."""
        with self._database.session() as session:
            session.execute(delete(TombstoneRow).where(TombstoneRow.id.in_(list(tombstones))))

    def sets_in(self, release_ids: Iterable[int]) -> list[EmbeddingSetRow]:
        """Return the embedding sets that were pushed into any of these releases, oldest first."""
        inside = select(ReleaseSetRow.embedding_set_id).where(ReleaseSetRow.release_id.in_(list(release_ids)))
        with self._database.session() as session:
            query = select(EmbeddingSetRow).where(EmbeddingSetRow.id.in_(inside)).order_by(EmbeddingSetRow.id)
            return list(session.scalars(query))

    def releases_of(self, set_id: int) -> list[ReleaseRow]:
        """Return the releases that an embedding set was pushed into, oldest first."""
        inside = select(ReleaseSetRow.release_id).where(ReleaseSetRow.embedding_set_id == set_id)
        with self._database.session() as session:
            return list(session.scalars(select(ReleaseRow).where(ReleaseRow.id.in_(inside)).order_by(ReleaseRow.id)))


def clear_ledger(session: Session, release_id: int) -> None:
    """Remove all entries and tombstones of a release that holds no point, as part of a transaction."""
    session.execute(delete(TombstoneRow).where(TombstoneRow.release_id == release_id))
    session.execute(delete(BatchRow).where(BatchRow.release_id == release_id))


def bump_revision(session: Session, release_ids: Collection[int]) -> None:
    """Give releases a new revision, as part of a transaction that changes what SQL says of their points.

    On PostgreSQL this locks the rows of the releases until the transaction ends.
    """
    changed = update(ReleaseRow).where(ReleaseRow.id.in_(release_ids))
    session.execute(changed.values(revision=ReleaseRow.revision + 1))


def _entry(release_id: int, set_id: int, run_id: int, key: BatchKey, digest: str, points: int) -> BatchRow:
    shard, start = key
    return BatchRow(
        release_id=release_id,
        embedding_set_id=set_id,
        run_id=run_id,
        shard=shard,
        start=start,
        points=points,
        digest=digest,
        written_at=now(),
    )


def _sum(session: Session, release_id: int, set_id: int) -> int:
    """Return how many points of a set a release holds."""
    query = select(func.coalesce(func.sum(BatchRow.points), 0))
    query = query.where(BatchRow.release_id == release_id, BatchRow.embedding_set_id == set_id)
    return int(session.scalar(query) or 0)


def _add_unplaced(session: Session, release_id: int, set_id: int, run_id: int, points: int) -> None:
    """Add to the number of points that are in no batch of a set."""
    place = {"release_id": release_id, "embedding_set_id": set_id, "shard": UNPLACED[0], "start": UNPLACED[1]}
    present = session.scalar(select(BatchRow.points).filter_by(**place)) or 0
    _remove(session, release_id, set_id, [UNPLACED])
    if present + points:
        session.add(_entry(release_id, set_id, run_id, UNPLACED, OUTDATED, present + points))


def _remove(session: Session, release_id: int, set_id: int, keys: Iterable[BatchKey]) -> None:
    for shard, start in keys:
        session.execute(
            delete(BatchRow).where(
                BatchRow.release_id == release_id,
                BatchRow.embedding_set_id == set_id,
                BatchRow.shard == shard,
                BatchRow.start == start,
            )
        )
