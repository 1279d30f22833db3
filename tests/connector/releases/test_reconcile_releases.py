"""A verification of all releases says which ones it did not look at."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from connector.releases.reconcile_releases import reconcile_releases
from connector.stores.edge import EdgeStore
from tests.support.world import COLLECTION, World, opened_world, pairs


def test_replicas_that_differ_are_said_of_a_release_whose_embedding_set_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an ingest that a write consistency factor ended: no repair mends what that would finish."""
    with opened_world("edge", tmp_path) as world:
        world.alignment()
        embedding_set = world.set("s", *pairs(4))
        world.push(embedding_set)
        replace(embedding_set.card, complete=False).write(embedding_set.path)
        monkeypatch.setattr(world.store, "replica_differences", lambda name: [f"replicas of {name} differ"])
        monkeypatch.setattr(world.store, "lost_replicas", lambda name: [f"a replica of {name} is lost"])
        (report,) = reconcile_releases(world.provenance, world.store, seed=0)
    assert "`modalign encode`, `ingest` or `import` again" in str(report.broken)
    assert (report.replicas, report.lost) == (
        [f"replicas of {report.name} differ"],
        [f"a replica of {report.name} is lost"],
    )
    assert not report.has_orphans_elsewhere


@pytest.mark.parametrize("collection", [None, COLLECTION])
def test_a_live_release_in_another_store_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, collection: str | None
) -> None:
    with opened_world("edge", tmp_path) as world:
        world.alignment()
        world.push(world.set("s", *pairs(4)))
        world.push(world.set("s", *pairs(4)), collection="other")
        with EdgeStore(tmp_path / "elsewhere") as elsewhere:
            second = World(world.home, elsewhere)
            with second.provenance:
                (release,) = second.push(second.set("s", *pairs(4)), metrics=["euclid"]).releases
                second.push(second.set("s", *pairs(4)))
        with caplog.at_level(logging.WARNING):
            reports = reconcile_releases(world.provenance, world.store, collection, seed=0)
        assert all(report.consistent for report in reports)
        assert len(reports) == (1 if collection else 2)
        messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(messages) == 2
        assert all("elsewhere" in message for message in messages)
        assert any(release.name in message for message in messages)
