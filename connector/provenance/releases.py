"""Releases in SQL, their promotions and their ends."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from connector.provenance.database import Database
from connector.provenance.ledger import bump_revision, clear_ledger
from connector.provenance.tables import PromotionRow, ReleaseRow, ReleaseSetRow, now
from connector.states import ReleaseState

PROMOTE, ROLLBACK = "promote", "rollback"  # kinds of a promotion


class Releases:
    """The releases and promotions in SQL."""

    def __init__(self, database: Database):
        self._database = database

    def find(self, **where: Any) -> list[ReleaseRow]:
        """Return the releases whose columns have these values, oldest first."""
        with self._database.session() as session:
            return list(session.scalars(select(ReleaseRow).filter_by(**where).order_by(ReleaseRow.id)))

    def save(self, row: ReleaseRow) -> ReleaseRow:
        """Insert a release, or write all its columns."""
        row.updated_at = now()
        with self._database.session() as session:
            return session.merge(row)

    def change(self, row: ReleaseRow, **values: Any) -> None:
        """Write only these columns of a release, then read all of them into `row`.

        Columns that another process may have changed keep what it wrote.
        """
        with self._database.session() as session:
            session.execute(update(ReleaseRow).where(ReleaseRow.id == row.id).values(**values, updated_at=now()))
        self.refresh(row)

    def refresh(self, row: ReleaseRow) -> None:
        """Read the columns of a release again, into `row`."""
        with self._database.session() as session:
            present = session.get_one(ReleaseRow, row.id)
        for column in ReleaseRow.__table__.columns:
            set_committed_value(row, column.key, getattr(present, column.key))

    def begin_write(self, row: ReleaseRow, set_id: int) -> bool:
        """Record, before the first point is written, that an embedding set belongs to a release, which changes.

        Whoever resumes after a crash finds here what the points may be of, and that the release has to be tuned.

        Returns:
            Whether the set did not belong to it before.
        """
        with self._database.session() as session:
            bump_revision(session, [row.id])  # locks the row, so that no other process adds the set now
            session.execute(update(ReleaseRow).where(ReleaseRow.id == row.id).values(needs_tuning=True))
            is_new = session.get(ReleaseSetRow, (row.id, set_id)) is None
            if is_new:
                session.add(ReleaseSetRow(release_id=row.id, embedding_set_id=set_id))
        self.refresh(row)
        return is_new

    def bump_revision(self, row: ReleaseRow) -> None:
        """Record that points of a release are about to change: no audit of before allows a promotion."""
        with self._database.session() as session:
            bump_revision(session, [row.id])
        self.refresh(row)

    def restart(self, row: ReleaseRow, **values: Any) -> None:
        """Record that the collection of a release was created and is empty, with these columns.

        Its embedding sets still belong to it: what they hold is missing until they are pushed again.
        """
        with self._database.session() as session:
            bump_revision(session, [row.id])
            clear_ledger(session, row.id)
            session.execute(update(ReleaseRow).where(ReleaseRow.id == row.id).values(**values, updated_at=now()))
        self.refresh(row)

    def delete(self, release_id: int) -> None:
        """Delete a release that was never audited, with its ledger."""
        with self._database.session() as session:
            _clear(session, release_id)
            session.execute(delete(ReleaseRow).where(ReleaseRow.id == release_id))

    def promotions(self, **where: Any) -> list[PromotionRow]:
        """Return the promotions whose columns have these values, oldest first."""
        with self._database.session() as session:
            return list(session.scalars(select(PromotionRow).filter_by(**where).order_by(PromotionRow.id)))

    def unfinished_promotions(self, **where: Any) -> list[PromotionRow]:
        """Return those of the promotions that were started and not finished."""
        return self.promotions(finished_at=None, **where)

    def begin_promotions(self, promotions: Sequence[PromotionRow]) -> None:
        """Record which releases are to go live, before any alias names them."""
        with self._database.session() as session:
            session.add_all(promotions)

    def forget_promotions(self, promotions: Sequence[PromotionRow]) -> None:
        """Remove promotions that the store refused: their run keeps the reason, and no alias was switched."""
        with self._database.session() as session:
            ids = [promotion.id for promotion in promotions]
            session.execute(delete(PromotionRow).where(PromotionRow.id.in_(ids), PromotionRow.finished_at.is_(None)))

    def finish_promotions(self, promotions: Sequence[PromotionRow], run_id: int) -> None:
        """Record that run `run_id` switched the aliases: the new releases are live, the old ones retired."""
        with self._database.session() as session:
            for promotion in promotions:
                place = {name: getattr(promotion, name) for name in ("store_id", "collection", "metric")}
                live = session.scalars(select(ReleaseRow).filter_by(**place, state=ReleaseState.LIVE))
                for row in (*live, session.get_one(ReleaseRow, promotion.release_id)):
                    row.state = ReleaseState.LIVE if row.id == promotion.release_id else ReleaseState.RETIRED
                    row.updated_at = now()
                if promotion.kind == ROLLBACK and promotion.previous_id is not None:
                    bump_revision(session, [promotion.previous_id])  # its audit no longer allows a promotion
                merged = session.merge(promotion)
                merged.finished_at, merged.run_id = now(), run_id

    def begin_drop(self, release_id: int) -> None:
        """Record that a release is to be dropped, before its collection is: it is retired from now on."""
        values = {"state": ReleaseState.RETIRED, "drop_begun_at": now(), "updated_at": now()}
        with self._database.session() as session:
            session.execute(update(ReleaseRow).where(ReleaseRow.id == release_id).values(**values))

    def finish_drop(self, release_id: int) -> None:
        """Record that the collection of a release is gone, and remove its ledger."""
        without_effect = (PromotionRow.release_id == release_id, PromotionRow.finished_at.is_(None))
        with self._database.session() as session:
            _clear(session, release_id)
            session.execute(delete(PromotionRow).where(*without_effect))
            values = {"points": 0, "dropped_at": now(), "updated_at": now()}
            session.execute(update(ReleaseRow).where(ReleaseRow.id == release_id).values(**values))


def _clear(session: Session, release_id: int) -> None:
    """Forget what a release holds, and its embedding sets."""
    clear_ledger(session, release_id)
    session.execute(delete(ReleaseSetRow).where(ReleaseSetRow.release_id == release_id))
