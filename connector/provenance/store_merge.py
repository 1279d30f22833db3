"""Merging two stores in SQL that turned out to be one server."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from connector.provenance.database import Database
from connector.provenance.tables import (
    AuditRow,
    BatchRow,
    PromotionRow,
    ReleaseRow,
    ReleaseSetRow,
    StoreAddressRow,
    StoreRow,
    TombstoneRow,
    now,
)
from connector.states import ReleaseState

# Of two states of one collection the first holds.
PRECEDENCE: tuple[str, ...] = (
    ReleaseState.LIVE,
    ReleaseState.READY,
    ReleaseState.RETIRED,
    ReleaseState.BUILDING,
)


def merge_stores(database: Database, source_id: int, target_id: int, served: Mapping[str, bool]) -> None:
    """Move the releases, promotions and addresses of one store to another.

    Releases of one collection become one. It has the embedding sets, audits and promotions of both, and of each set the
    ledger that was written last. Its revision is new: no earlier audit allows a promotion.

    Args:
        database: where they are recorded.
        source_id: of the store that is given up.
        target_id: of the store that has all afterwards.
        served: by collection, whether the alias names it; without those whose alias there is not.
    """
    present = ReleaseRow.dropped_at.is_(None)
    with database.write_session(StoreRow, ReleaseRow, PromotionRow) as session:
        of_target = {
            row.physical_name: row
            for row in session.scalars(select(ReleaseRow).where(ReleaseRow.store_id == target_id))
        }
        for row in session.scalars(select(ReleaseRow).where(ReleaseRow.store_id == source_id)).all():
            if (same := of_target.get(row.physical_name)) is None:
                row.store_id = target_id
            else:
                _merge_releases(session, row, same)
        session.flush()
        for table in (PromotionRow, StoreAddressRow):
            session.execute(update(table).where(table.store_id == source_id).values(store_id=target_id))
        merged = or_(StoreRow.id == source_id, StoreRow.merged_into_id == source_id)
        session.execute(update(StoreRow).where(merged).values(merged_into_id=target_id))
        for row in session.scalars(select(ReleaseRow).where(ReleaseRow.store_id == target_id, present)):
            is_served = served.get(row.physical_name)
            if (
                is_served is not None
                and (row.state == ReleaseState.LIVE) != is_served
                and row.state != ReleaseState.BUILDING
            ):
                row.state = ReleaseState.LIVE if is_served else ReleaseState.RETIRED


def _merge_releases(session: Session, source: ReleaseRow, target: ReleaseRow) -> None:
    """Make one row of two of the same collection."""
    for set_id in session.scalars(select(ReleaseSetRow.embedding_set_id).filter_by(release_id=source.id)).all():
        _merge_set(session, source.id, target.id, set_id)
    session.execute(update(AuditRow).filter_by(release_id=source.id).values(release_id=target.id))
    session.execute(update(PromotionRow).filter_by(release_id=source.id).values(release_id=target.id))
    session.execute(update(PromotionRow).filter_by(previous_id=source.id).values(previous_id=target.id))
    present = [row for row in (source, target) if row.dropped_at is None] or [target]
    target.state = min((row.state for row in present), key=PRECEDENCE.index)
    target.dropped_at = None if len(present) > 1 or present[0] is source else target.dropped_at
    target.drop_begun_at = (
        target.drop_begun_at or source.drop_begun_at if target.state == ReleaseState.RETIRED else None
    )
    target.settings = target.settings or source.settings
    target.needs_tuning = True
    target.revision = max(source.revision, target.revision) + 1
    points = select(func.coalesce(func.sum(BatchRow.points), 0)).where(BatchRow.release_id == target.id)
    target.points = int(session.scalar(points) or 0)
    target.updated_at = now()
    session.delete(source)


def _merge_set(session: Session, source_id: int, target_id: int, set_id: int) -> None:
    """Give the release `target_id` what the other one has of an embedding set, if it was written later."""

    def last_written(release_id: int) -> datetime | None:
        of_set = (BatchRow.release_id == release_id, BatchRow.embedding_set_id == set_id)
        return session.scalar(select(func.max(BatchRow.written_at)).where(*of_set))

    theirs, ours = last_written(source_id), last_written(target_id)
    later = theirs is not None and (ours is None or theirs > ours)
    for table in (BatchRow, TombstoneRow):
        loser, winner = (target_id, source_id) if later else (source_id, target_id)
        session.execute(delete(table).filter_by(release_id=loser, embedding_set_id=set_id))
        session.execute(
            update(table).filter_by(release_id=winner, embedding_set_id=set_id).values(release_id=target_id)
        )
    if session.get(ReleaseSetRow, (target_id, set_id)) is None:
        session.add(ReleaseSetRow(release_id=target_id, embedding_set_id=set_id))
    session.execute(delete(ReleaseSetRow).filter_by(release_id=source_id, embedding_set_id=set_id))
