"""Releases, promotions and drops."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from connector.errors import ProvenanceError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import (
    PromotionRow,
    ReleaseRow,
)
from tests.support.rows import count, embedding_set, release


class TestReleases:
    def test_one_is_saved_and_found(self, provenance: Provenance) -> None:
        first = release(provenance)
        second = release(provenance, "c.dot.1", metric="dot", state="live")
        assert first.id < second.id
        assert [row.physical_name for row in provenance.releases.find()] == ["c.cosine.1", "c.dot.1"]
        assert [row.id for row in provenance.releases.find(state="live", collection="c")] == [second.id]
        assert provenance.releases.find(collection="other") == []
        [row] = provenance.releases.find(metric="cosine")
        assert (row.settings, row.dim, row.points) == ({"m": 16}, 2, 0)
        assert row.created_at == datetime(2024, 5, 1, tzinfo=UTC)

    def test_one_is_updated_in_place(self, provenance: Provenance) -> None:
        row = release(provenance)
        before = row.updated_at
        row.state, row.points, row.settings = "live", 42, {"m": 8, "deep": {"list": [1, None, "ü", 0.5]}}
        provenance.releases.save(row)
        [found] = provenance.releases.find()
        assert (found.id, found.state, found.points) == (row.id, "live", 42)
        assert found.settings == {"m": 8, "deep": {"list": [1, None, "ü", 0.5]}}
        assert found.updated_at > before

    def test_a_physical_name_is_unique_in_its_store(self, provenance: Provenance) -> None:
        release(provenance)
        with pytest.raises(ProvenanceError, match=r"(?i)unique"):
            release(provenance)
        release(provenance, store="http://other:6333")
        assert count(provenance, ReleaseRow) == 2


class TestPromotions:
    def begun(self, provenance: Provenance, run: int, row: ReleaseRow, previous: ReleaseRow | None) -> PromotionRow:
        promotion = PromotionRow(
            kind="promote",
            store_id=row.store_id,
            collection=row.collection,
            metric=row.metric,
            release_id=row.id,
            previous_id=previous.id if previous else None,
            run_id=run,
            started_at=datetime(2024, 5, 1, tzinfo=UTC),
        )
        provenance.releases.begin_promotions([promotion])
        return promotion

    def test_one_is_begun_and_finished(self, provenance: Provenance) -> None:
        old, new = release(provenance, "c.1", state="live"), release(provenance, "c.2", state="ready")
        other = release(provenance, "c.3", state="live", metric="dot")
        with provenance.runs.start("promote", {}) as run:
            promotion = self.begun(provenance, run.id, new, old)
            assert [found.id for found in provenance.releases.unfinished_promotions(collection="c")] == [promotion.id]
            assert {row.id: row.state for row in provenance.releases.find()} == {
                old.id: "live",
                new.id: "ready",
                other.id: "live",
            }
            for _ in range(2):
                provenance.releases.finish_promotions([promotion], run.id)
                assert {row.id: row.state for row in provenance.releases.find()} == {
                    old.id: "retired",
                    new.id: "live",
                    other.id: "live",
                }
        assert provenance.releases.unfinished_promotions() == []
        (found,) = provenance.releases.promotions(release_id=new.id)
        assert found.finished_at is not None
        assert found.finished_at > found.started_at

    def test_one_without_a_previous_release(self, provenance: Provenance) -> None:
        new = release(provenance, state="ready")
        with provenance.runs.start("promote", {}) as run:
            provenance.releases.finish_promotions([self.begun(provenance, run.id, new, None)], run.id)
        assert [row.state for row in provenance.releases.find()] == ["live"]

    def test_a_drop_forgets_what_was_held_and_keeps_the_release(self, provenance: Provenance, tmp_path: Path) -> None:
        dropped, set_id = (
            release(provenance, state="ready"),
            provenance.artifacts.record_set(embedding_set(tmp_path / "s")),
        )
        with provenance.runs.start("push", {}) as run:
            provenance.ledger.write(dropped.id, set_id, run.id, {("image-000000.parquet", 0): ("d", 3)})
            self.begun(provenance, run.id, dropped, None)
        provenance.releases.begin_drop(dropped.id)
        (row,) = provenance.releases.find()
        assert (row.state, row.drop_begun_at is None, row.dropped_at) == ("retired", False, None)
        assert provenance.ledger.points(dropped.id) == 3
        provenance.releases.finish_drop(dropped.id)
        (row,) = provenance.releases.find()
        assert (row.state, row.points, row.dropped_at is None) == ("retired", 0, False)
        assert (provenance.ledger.points(dropped.id), provenance.releases.promotions()) == (0, [])
