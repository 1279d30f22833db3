"""The ledger."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from connector.provenance.recorder import Provenance
from connector.provenance.tables import (
    BatchRow,
)
from tests.support.rows import embedding_set, release


class TestLedger:
    @pytest.fixture
    def places(self, provenance: Provenance, tmp_path: Path) -> tuple[int, int, int, int]:
        """Two releases, a set and a run."""
        first, second = release(provenance), release(provenance, "c.cosine.2")
        set_id = provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        with provenance.runs.start("push", {}) as run:
            pass
        return first.id, second.id, set_id, run.id

    def test_what_is_written_is_read(self, provenance: Provenance, places: tuple[int, int, int, int]) -> None:
        first, second, set_id, run = places
        batches = {("image-0", 0): ("d0", 256), ("image-0", 256): ("d1", 10), ("text-0", 0): ("d2", 7)}
        provenance.ledger.write(first, set_id, run, batches)
        assert provenance.ledger.entries(first, set_id) == batches
        assert provenance.ledger.entries(second, set_id) == {}
        assert provenance.ledger.points(first) == 273
        assert provenance.ledger.points(second) == 0
        provenance.ledger.write(first, set_id, run, {})
        assert provenance.ledger.entries(first, set_id) == batches

    def test_a_batch_replaces_what_stood_at_its_place(
        self, provenance: Provenance, places: tuple[int, int, int, int]
    ) -> None:
        first, second, set_id, run = places
        for written in (first, second):
            provenance.ledger.write(written, set_id, run, {("a", 0): ("old", 5), ("a", 5): ("keep", 1)})
        provenance.ledger.write(first, set_id, run, {("a", 0): ("new", 4), ("b", 0): ("more", 2)})
        assert provenance.ledger.entries(first, set_id) == {
            ("a", 0): ("new", 4),
            ("a", 5): ("keep", 1),
            ("b", 0): ("more", 2),
        }
        assert provenance.ledger.points(first) == 7
        assert provenance.ledger.entries(second, set_id) == {("a", 0): ("old", 5), ("a", 5): ("keep", 1)}

    def test_batches_are_forgotten_one_by_one_or_all(
        self, provenance: Provenance, places: tuple[int, int, int, int], tmp_path: Path
    ) -> None:
        first, second, set_id, run = places
        other_set = provenance.artifacts.record_set(embedding_set(tmp_path / "other"))
        for written in (first, second):
            provenance.ledger.write(written, set_id, run, {("a", 0): ("x", 5), ("a", 5): ("y", 1)})
        provenance.ledger.write(first, other_set, run, {("a", 0): ("z", 100)})
        provenance.ledger.write(first, set_id, run, {}, removed=[("a", 0), ("missing", 0)])
        assert provenance.ledger.entries(first, set_id) == {("a", 5): ("y", 1)}
        assert provenance.ledger.points(first) == 101
        provenance.releases.restart(provenance.releases.find(id=first)[0])
        assert provenance.ledger.entries(first, set_id) == provenance.ledger.entries(first, other_set) == {}
        assert provenance.ledger.points(second) == 6

    def test_each_line_names_its_run(self, provenance: Provenance, places: tuple[int, int, int, int]) -> None:
        first, _, set_id, run = places
        provenance.ledger.write(first, set_id, run, {("a", 0): ("x", 5)})
        with provenance.database.session() as session:
            row = session.scalars(select(BatchRow)).one()
        assert row.run_id == run
        assert datetime.now(UTC) - row.written_at < timedelta(minutes=1)

    def test_what_one_release_holds_and_another_does_not(self, provenance: Provenance, tmp_path: Path) -> None:
        first, second = release(provenance, "c.1"), release(provenance, "c.2")
        set_id = provenance.artifacts.record_set(embedding_set(tmp_path / "s"))
        assert provenance.ledger.sets_in([first.id]) == []
        with provenance.runs.start("push", {}) as run:
            lines = {("shard", 0): ("same", 5), ("shard", 5): ("another", 7), ("shard", 12): ("more", 2)}
            provenance.ledger.write(first.id, set_id, run.id, lines)
            provenance.ledger.write(
                second.id, set_id, run.id, {("shard", 0): ("same", 5), ("shard", 5): ("otherwise", 7)}
            )
        assert provenance.ledger.points_beyond(first.id, set_id, second.id, same_payload=True) == 9
        assert provenance.ledger.points_beyond(second.id, set_id, first.id, same_payload=True) == 7
        assert provenance.ledger.points_beyond(first.id, set_id, second.id, same_payload=False) == 2
        assert provenance.ledger.sets_in([second.id]) == []  # what belongs to a release never follows from the ledger
        assert provenance.releases.begin_write(second, set_id)
        assert not provenance.releases.begin_write(second, set_id)
        assert [row.id for row in provenance.ledger.sets_in([second.id])] == [set_id]
        assert [row.id for row in provenance.ledger.releases_of(set_id)] == [second.id]
        assert set(provenance.artifacts.encoders(provenance.ledger.sets_in([second.id])[0])) == {
            "image",
            "text",
        }
