"""Audits with their measures."""

import random
from pathlib import Path

import pytest
from sqlalchemy import select

from connector.audits.strata import stratum
from connector.errors import ProvenanceError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import (
    AuditRow,
    MeasureRow,
)
from tests.support.rows import count, embedding_set, release


class TestAudits:
    def test_one_is_recorded_with_its_measures(self, provenance: Provenance, tmp_path: Path) -> None:
        released, set_id = release(provenance), provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        with provenance.runs.start("audit", {}) as run:
            audit_id = provenance.audits.record(
                run_id=run.id,
                release_id=released.id,
                set_id=set_id,
                verdict="passed",
                settings={"k": [1, 5], "indexed": 100},
                per_query={"t": b"packed"},
                measures=[
                    MeasureRow(direction="t", name="recall@5", value=1 / 3, low=0.1, high=0.9, queries=77),
                    MeasureRow(
                        direction="t", stage="index", name="recall@5", value=1.0, low=None, high=None, queries=7
                    ),
                ],
            )
        with provenance.database.session() as session:
            audit = session.get_one(AuditRow, audit_id)
            measures = session.scalars(select(MeasureRow).order_by(MeasureRow.id)).all()
        assert (audit.run_id, audit.release_id, audit.embedding_set_id) == (run.id, released.id, set_id)
        assert (audit.verdict, audit.settings) == ("passed", {"k": [1, 5], "indexed": 100})
        assert [(m.audit_id, m.stage, m.name, m.value, m.low, m.high, m.queries) for m in measures] == [
            (audit_id, "", "recall@5", 1 / 3, 0.1, 0.9, 77),
            (audit_id, "index", "recall@5", 1.0, None, None, 7),
        ]
        assert provenance.audits.per_query(audit_id) == {"t": b"packed"}

    def test_the_longest_names_of_parts_can_be_indexed(self, provenance: Provenance, tmp_path: Path) -> None:
        released, set_id = release(provenance), provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        rng = random.Random(0)  # what does not compress
        parts = [stratum("field", "".join(chr(rng.randrange(0x20000, 0x2A000)) for _ in range(5000))) for _ in "ab"]
        rows = [MeasureRow(direction="d", stratum=part, name="n", value=0.5, queries=1) for part in parts]
        with provenance.runs.start("audit", {}) as run:
            number = provenance.audits.record(
                run_id=run.id,
                release_id=released.id,
                set_id=set_id,
                verdict="measured",
                settings={},
                measures=rows,
                per_query={},
            )
        assert [row.stratum for row in provenance.audits.measures([number])[number]] == parts

    def test_one_with_a_measure_that_is_refused_is_not_recorded(self, provenance: Provenance, tmp_path: Path) -> None:
        released, set_id = release(provenance), provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        twice = [MeasureRow(direction="d", name="n", value=v, queries=1) for v in (0.1, 0.2)]
        with provenance.runs.start("audit", {}) as run, pytest.raises(ProvenanceError, match=r"(?i)unique"):
            provenance.audits.record(
                run_id=run.id,
                release_id=released.id,
                set_id=set_id,
                verdict="failed",
                settings={},
                measures=twice,
                per_query={},
            )
        assert (count(provenance, AuditRow), count(provenance, MeasureRow)) == (0, 0)

    def test_the_newest_audit(self, provenance: Provenance, tmp_path: Path) -> None:
        audited, set_id = release(provenance), provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        assert provenance.audits.newest(audited.id) is None
        for verdict in ("passed", "failed"):
            with provenance.runs.start("audit", {}) as run:
                provenance.audits.record(
                    run_id=run.id,
                    release_id=audited.id,
                    set_id=set_id,
                    verdict=verdict,
                    settings={},
                    measures=[],
                    per_query={},
                )
        found = provenance.audits.newest(audited.id)
        assert found is not None
        assert (found[0].verdict, found[1].id) == ("failed", run.id)
