"""A deletion from a set that many collections share names them all, and writes in proportion to what it deletes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from connector.push import batches as pushing
from connector.push.delete import Deletion, DeletionPreview
from connector.releases import reconcile as reconciling
from connector.releases.points import point_id
from connector.releases.reconcile import reconcile
from connector.releases.release import Release, open_release
from tests.support.world import KINDS, LIVE, Calls, World, opened_world, pairs, the_set

COLLECTIONS = ("one", "three", "two")


@pytest.fixture(params=[*KINDS, *LIVE])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for module in (pushing, reconciling):
        monkeypatch.setattr(module, "BATCH_POINTS", 4)
    with opened_world(request.param, tmp_path, request) as world:
        world.alignment()
        embedded = world.set("s", *pairs(12))
        for collection in COLLECTIONS:
            world.push(embedded, metrics=["cosine", "chi2"], collection=collection)
        yield world


def releases(world: World) -> list[Release]:
    return [
        open_release(world.provenance, world.store, collection, metric)
        for collection in COLLECTIONS
        for metric in ("cosine", "chi2")
    ]


def delete(world: World, key: str, collection: str = "two") -> tuple[list[DeletionPreview], dict[str, int]]:
    said: list[DeletionPreview] = []

    def agree(preview: DeletionPreview) -> bool:
        said.append(preview)
        return True

    with world.provenance.runs.start("delete", {}) as run:
        Deletion(collection, world.store, world.provenance, run).delete(keys=[key], confirm=agree)
    return said, dict(run.counts)


def consistent(world: World) -> bool:
    return all(reconcile(each, world.store, world.provenance, seed=0).consistent for each in releases(world))


def test_what_a_push_refused_of_rows_beside_those_deleted_is_not_refused_again(world: World) -> None:
    image, text = pairs(6, prefix="new-")
    years = [json.dumps({"year": year}) for year in ("1999", "soon", "2000", "2001", "later", "2002")]
    unjson = [*years[:-1], "no JSON"]
    embedded = world.set("years", replace(image, payloads=years), replace(text, payloads=unjson))
    pushed = world.push(embedded, collection="four", payload_indexes={"year": "integer"})
    refused = world.reasons(pushed.run)
    assert [reason for _, _, reason in refused].count("payload-not-integer") == 4
    _, counts = delete(world, "new-2", "four")
    assert (counts["points_deleted"], counts.get("rejected", 0)) == (2, 0)


def test_every_collection_that_loses_the_items_is_named(world: World) -> None:
    said, _ = delete(world, "5")
    assert said == [DeletionPreview(2, ["s"], "two", ["one", "three"])]
    assert "from 2 more that share its embedding sets: one, three" in str(said[0])
    assert [world.store.count(release.name) for release in releases(world)] == [22] * 6


@pytest.mark.slow
def test_points_that_stay_are_not_written_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Calls(monkeypatch, world.store, "upsert")
    _, counts = delete(world, "1")  # all batches after it move up
    assert len(writes) == 0
    assert (counts["deleted"], counts["rows_deleted"], counts.get("written", 0)) == (2, 2, 0)
    assert consistent(world)
    for collection in COLLECTIONS:
        assert "written" not in world.push(the_set(world), metrics=["cosine", "chi2"], collection=collection).counts


@pytest.mark.slow
def test_a_point_that_vanished_before_is_written(world: World) -> None:
    lost = releases(world)[0]
    world.store.delete(lost.name, [point_id("image", "9")])
    _, counts = delete(world, "1")
    assert counts["written"] == 1
    assert consistent(world)
