"""An audit verifies the release before it measures it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from connector.audits.result import Audit
from connector.audits.run import run_audit
from connector.releases import verify as verifying
from connector.releases.points import point_id
from connector.requests import AuditRequest
from connector.stores.points import Points
from tests.support.world import COLLECTION, World, opened, opened_world, pairs, the_set


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with opened_world("edge", tmp_path, monkeypatch) as world:
        world.alignment()
        world.push(world.set("s", *pairs(8)))
        yield world


def audited(world: World) -> Audit:
    request = AuditRequest(collection=COLLECTION, pairs="s", queries="all", gallery="all", seed=3)
    with world.provenance.runs.start("audit", {}) as run:
        return run_audit(request, the_set(world), world.store, world.provenance, run)


def test_audits_of_one_seed_verify_other_points_each_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "ROWS", 3)
    name, id_ = opened(world).name, point_id("image", "5")
    (record,) = world.store.retrieve(name, [id_], vector_name="image")
    assert record.vector is not None
    world.store.upsert(name, Points("image", [id_], np.roll(record.vector, 1)[None], [record.payload]))
    verdicts = [audited(world).verdict for _ in range(12)]
    assert set(verdicts) == {"measured", "broken"}
