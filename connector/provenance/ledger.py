"""The ledger: which batches of which embedding set are durable in which release, and which points are to be deleted."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import cast

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.orm import Session, aliased

from alignment.modality import Modality
from connector.provenance.database import Database
from connector.provenance.tables import BatchRow, EmbeddingSetRow, ReleaseRow, TombstoneRow, now

BATCH_POINTS = 512
OUTDATED = ""  # the digest of a batch that must be written again
BatchKey = tuple[str, int]  # shard, and the row in it at which the batch starts
LedgerEntry = tuple[str, int]  # digest of what was written, and how many points


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

    def points_beyond(self, release_id: int, set_id: int, other_id: int) -> int:
        """Return how many points of a set a release holds that the release `other_id` does not."""
        theirs = aliased(BatchRow)
        same = and_(
            theirs.release_id == other_id,
            theirs.embedding_set_id == set_id,
            theirs.shard == BatchRow.shard,
            theirs.start == BatchRow.start,
            theirs.digest == BatchRow.digest,
        )
        query = select(func.coalesce(func.sum(BatchRow.points), 0)).outerjoin(theirs, same)
        query = query.where(BatchRow.release_id == release_id, BatchRow.embedding_set_id == set_id, theirs.id.is_(None))
        with self._database.session() as session:
            return int(session.scalar(query) or 0)

    def last_write(self, release_id: int) -> datetime | None:
        """Return when the newest entry of a release was written."""
        with self._database.session() as session:
            return session.scalar(select(func.max(BatchRow.written_at)).where(BatchRow.release_id == release_id))

    def write(self, release_id: int, set_id: int, run_id: int, batches: Mapping[BatchKey, LedgerEntry]) -> None:
        """Record batches that are durable in the store, in place of the entries under the same keys."""
        with self._database.session() as session:
            _remove(session, release_id, set_id, batches)
            session.add_all(
                BatchRow(
                    release_id=release_id,
                    embedding_set_id=set_id,
                    run_id=run_id,
                    shard=shard,
                    start=start,
                    points=points,
                    digest=digest,
                    written_at=now(),
                )
                for (shard, start), (digest, points) in batches.items()
            )

    def remove(self, release_id: int, set_id: int, keys: Iterable[BatchKey]) -> None:
        """Remove the entries of rows that are no longer in the embedding set."""
        with self._database.session() as session:
            _remove(session, release_id, set_id, keys)

    def clear(self, release_id: int) -> None:
        """Remove all entries and tombstones of a release, so that everything is written again."""
        with self._database.session() as session:
            clear_ledger(session, release_id)

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

        This concerns all releases that the set was written into, and the releases `also`. The ledger entries of the
        shard stay, marked as outdated.

        Args:
            set_id: the embedding set.
            modality: of the shard.
            shard: its name.
            keys: of the items whose rows leave it.
            also: releases that may have no ledger entry yet.
            retired: whether retired releases are written to now. If not, their entries stay as they are until they
                are written to again: a rollback then finds what it expects.
        """
        of_set = BatchRow.embedding_set_id == set_id
        with self._database.session() as session:
            releases = {*session.scalars(select(BatchRow.release_id).where(of_set).distinct()), *also}
            outdated = update(BatchRow).where(of_set, BatchRow.shard == shard)
            if not retired:
                at_rest = select(ReleaseRow.id).where(ReleaseRow.state == "retired")
                outdated = outdated.where(BatchRow.release_id.not_in(at_rest))
            session.execute(outdated.values(points=0, digest=OUTDATED))
            session.add_all(
                TombstoneRow(release_id=release_id, embedding_set_id=set_id, modality=modality, key=key)
                for key in keys
                for release_id in sorted(releases)
            )

    def tombstones(self, release_id: int, set_id: int, limit: int) -> dict[int, tuple[Modality, str]]:
        """Return at most `limit` points that a release has yet to delete: `{tombstone: (modality, key)}`."""
        query = select(TombstoneRow).where(
            TombstoneRow.release_id == release_id, TombstoneRow.embedding_set_id == set_id
        )
        with self._database.session() as session:
            rows = session.scalars(query.order_by(TombstoneRow.id).limit(limit))
            return {row.id: (cast(Modality, row.modality), row.key) for row in rows}

    def remove_tombstones(self, tombstones: Iterable[int]) -> None:
        """Remove tombstones whose points are durably deleted from the store."""
        with self._database.session() as session:
            session.execute(delete(TombstoneRow).where(TombstoneRow.id.in_(list(tombstones))))

    def sets_in(self, release_ids: Iterable[int]) -> list[EmbeddingSetRow]:
        """Return the embedding sets of which any of these releases has an entry, oldest first."""
        inside = select(BatchRow.embedding_set_id).where(BatchRow.release_id.in_(list(release_ids)))
        with self._database.session() as session:
            query = select(EmbeddingSetRow).where(EmbeddingSetRow.id.in_(inside)).order_by(EmbeddingSetRow.id)
            return list(session.scalars(query))

    def releases_of(self, set_id: int) -> list[ReleaseRow]:
        """Return the releases that an embedding set was written into, oldest first."""
        inside = select(BatchRow.release_id).where(BatchRow.embedding_set_id == set_id)
        with self._database.session() as session:
            return list(session.scalars(select(ReleaseRow).where(ReleaseRow.id.in_(inside)).order_by(ReleaseRow.id)))


def clear_ledger(session: Session, release_id: int) -> None:
    """Remove all entries and tombstones of a release, as part of a transaction."""
    session.execute(delete(TombstoneRow).where(TombstoneRow.release_id == release_id))
    session.execute(delete(BatchRow).where(BatchRow.release_id == release_id))


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
