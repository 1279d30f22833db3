"""Types of columns, and rows that refer to rows."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from connector.errors import ProvenanceError
from connector.provenance.database import Database, upgrade
from connector.provenance.recorder import Provenance
from connector.provenance.tables import (
    AlignmentRow,
    Base,
    MeasureRow,
    RejectRow,
)
from tests.support.rows import count, release


class TestTypes:
    @pytest.mark.parametrize("hours", [0, 9, -5])
    def test_times_are_utc(self, provenance: Provenance, hours: int) -> None:
        moment = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=timezone(timedelta(hours=hours)))
        release(provenance, created_at=moment)
        [row] = provenance.releases.find()
        assert row.created_at == moment
        assert row.created_at.utcoffset() == timedelta(0)

    def test_times_are_utc_wherever_the_server_is(self, database_url: str) -> None:
        if database_url.startswith("sqlite"):
            pytest.skip("SQLite has no time zone")
        upgrade(database_url)
        with Provenance(Database(database_url)) as provenance, provenance.database.session() as session:
            name = session.connection().engine.url.database
            session.execute(text(f"ALTER DATABASE {name} SET timezone TO 'Asia/Tokyo'"))
        with Provenance.open(database_url) as provenance:
            release(provenance, created_at=datetime(2024, 5, 1, 12, tzinfo=UTC))
            [row] = provenance.releases.find()
        assert row.created_at.isoformat() == "2024-05-01T12:00:00+00:00"

    @pytest.mark.parametrize(
        "value",
        [{}, {"a": []}, {"n": 2**53, "f": 1e-9, "t": True, "null": None}, {"ü": "🖼 \\ \" '"}, {"a": {"b": [[1], {}]}}],
    )
    def test_json_comes_back_as_it_was(self, provenance: Provenance, value: dict[str, Any]) -> None:
        with provenance.runs.start("x", value):
            pass
        release(provenance, settings=value)
        assert provenance.runs.newest(1)[0].parameters == value
        assert provenance.releases.find()[0].settings == value

    def test_what_json_has_no_word_for_becomes_text(self, provenance: Provenance) -> None:
        with provenance.runs.start("x", {"path": Path("a"), "at": datetime(2024, 1, 1, tzinfo=UTC), "t": (1, 2)}):
            pass
        assert provenance.runs.newest(1)[0].parameters == {
            "path": "a",
            "at": "2024-01-01 00:00:00+00:00",
            "t": [1, 2],
        }


ODD_TIMES = {
    "sqlite": ["garbage", "", "2024-13-45 00:00:00", "10000-01-01 00:00:00", "1714521600", "2024-05-01T25:00:00"],
    "postgresql": ["infinity", "-infinity", "0044-03-15 BC", "20000-01-01", "0001-01-01 00:00:00+14"],
}


class TestValuesOfOthers:
    @pytest.mark.parametrize("number", range(6))
    def test_a_time_that_is_none_is_named(self, number: int, provenance: Provenance) -> None:
        times = ODD_TIMES[provenance.database.engine.dialect.name]
        value = times[number % len(times)]
        with provenance.runs.start("encode", {}):
            pass
        with provenance.database.session() as session:
            session.execute(text("UPDATE run SET finished_at = :value"), {"value": value})
        with pytest.raises(ProvenanceError):
            provenance.runs.newest(10)

    @pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "[1]", "7", '"x"'])
    def test_json_that_modalign_does_not_write_is_an_error(self, value: str, provenance: Provenance) -> None:
        with provenance.runs.start("encode", {}):
            pass
        with provenance.database.session() as session:
            session.execute(text("UPDATE run SET counts = :value"), {"value": value})
        with pytest.raises(ProvenanceError):
            provenance.runs.newest(10)


class TestIntegrity:
    @pytest.mark.parametrize(
        "row",
        [
            lambda: MeasureRow(audit_id=99, direction="d", name="n", value=1.0, queries=1),
            lambda: RejectRow(run_id=99, source="s", position=1, stage="read", reason="r", detail="d"),
            lambda: AlignmentRow(
                name="a",
                fingerprint="f",
                path="p",
                method="m",
                dim=1,
                image_encoder_id=99,
                text_encoder_id=99,
                card={},
                created_at=datetime.now(UTC),
            ),
        ],
        ids=["measure", "reject", "alignment"],
    )
    def test_rows_belong_to_rows(self, provenance: Provenance, row: Callable[[], Base]) -> None:
        def add() -> None:
            with provenance.database.session() as session:
                session.add(row())

        with pytest.raises(ProvenanceError, match=r"(?i)foreign key"):
            add()

    def test_what_is_referred_to_cannot_go(self, provenance: Provenance) -> None:
        release(provenance)

        def delete() -> None:
            with provenance.database.session() as session:
                session.execute(text("DELETE FROM alignment"))

        with pytest.raises(ProvenanceError, match=r"(?i)foreign key"):
            delete()
        assert count(provenance, AlignmentRow) == 1
