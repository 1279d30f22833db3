"""Audits in SQL: verdicts, measures, and the values of each query."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from connector.errors import RequirementError
from connector.provenance.database import Database
from connector.provenance.tables import AuditRow, MeasureRow, PerQueryRow, RunRow, now


class Audits:
    """The audits in SQL."""

    def __init__(self, database: Database):
        self._database = database

    def record(
        self,
        *,
        run_id: int,
        release_id: int,
        set_id: int,
        verdict: str,
        settings: dict[str, Any],
        measures: Sequence[MeasureRow],
        per_query: Mapping[str, bytes],
    ) -> int:
        """Record an audit with its measures and its values of each query, by direction; return its id."""
        audit = AuditRow(
            run_id=run_id,
            release_id=release_id,
            embedding_set_id=set_id,
            verdict=verdict,
            settings=settings,
            created_at=now(),
        )
        with self._database.session() as session:
            session.add(audit)
            session.flush()
            for measure in measures:
                measure.audit_id = audit.id
            session.add_all(measures)
            session.add_all(
                PerQueryRow(audit_id=audit.id, direction=direction, data=data) for direction, data in per_query.items()
            )
        return audit.id

    def get(self, audit_id: int) -> AuditRow:
        """Return an audit.

        Raises:
            RequirementError: there is none with this number.
        """
        with self._database.session() as session:
            row = session.get(AuditRow, audit_id)
        if row is None:
            raise RequirementError(f"there is no audit {audit_id}; `modalign audit COLLECTION --history` lists them")
        return row

    def of(self, release_ids: Sequence[int]) -> list[AuditRow]:
        """Return the audits of releases, oldest first."""
        with self._database.session() as session:
            query = select(AuditRow).where(AuditRow.release_id.in_(release_ids)).order_by(AuditRow.id)
            return list(session.scalars(query))

    def newest(self, release_id: int) -> tuple[AuditRow, RunRow] | None:
        """Return the newest audit of a release, with its run."""
        query = select(AuditRow, RunRow).join(RunRow, AuditRow.run_id == RunRow.id)
        query = query.where(AuditRow.release_id == release_id).order_by(AuditRow.id.desc()).limit(1)
        with self._database.session() as session:
            row = session.execute(query).one_or_none()
        return (row[0], row[1]) if row else None

    def measures(self, audit_ids: Sequence[int]) -> dict[int, list[MeasureRow]]:
        """Return the measures of audits, by audit."""
        by_audit: dict[int, list[MeasureRow]] = {}
        with self._database.session() as session:
            query = select(MeasureRow).where(MeasureRow.audit_id.in_(audit_ids)).order_by(MeasureRow.id)
            for measure in session.scalars(query):
                by_audit.setdefault(measure.audit_id, []).append(measure)
        return by_audit

    def per_query(self, audit_id: int) -> dict[str, bytes]:
        """Return the values of each query of an audit, as Parquet, by direction."""
        with self._database.session() as session:
            rows = session.scalars(select(PerQueryRow).where(PerQueryRow.audit_id == audit_id))
            return {row.direction: row.data for row in rows}
