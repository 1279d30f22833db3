"""The status counts the points of every release in its store: what changed behind SQL's back is seen at once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from connector.home import Home
from connector.releases.reconcile_releases import reconcile_releases
from connector.releases.status import StoredRelease, read_status, read_stored
from connector.settings import Settings
from connector.stores.edge import EdgeStore
from connector.stores.points import Points
from tests.support.cli import done
from tests.support.world import COLLECTION, KINDS, LIVE, World, opened, opened_world, pairs, points_of


@pytest.fixture(params=[*KINDS, *LIVE])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with opened_world(request.param, tmp_path, request) as world:
        world.alignment()
        world.push(world.set("s", *pairs(6)), m=8)
        yield world


def stored(world: World) -> StoredRelease:
    (of_release,) = read_stored(world.provenance, world.store, world.provenance.releases.find()).values()
    return of_release


class TestReadStored:
    def test_a_release_as_sql_knows_it_has_no_fault(self, world: World) -> None:
        assert stored(world) == StoredRelease(12, [])

    @pytest.mark.parametrize(("more", "sentence"), [(-3, "holds 9 points, 3 fewer"), (2, "holds 14 points, 2 more")])
    def test_points_that_came_or_went_are_counted(self, world: World, more: int, sentence: str) -> None:
        name = opened(world).name
        if more < 0:
            world.store.delete(name, [record.id for record in next(world.store.scroll(name, page=-more))])
        else:
            vectors = np.eye(6, dtype=np.float32)[:more]
            world.store.upsert(name, Points("image", points_of(more), vectors, [{}] * more))
        (said,) = stored(world).faults
        assert sentence in said
        assert f"modalign verify {COLLECTION}" in said

    def test_nothing_is_said_of_counts_while_a_push_writes(self, world: World) -> None:
        world.store.delete(opened(world).name, [next(world.store.scroll(opened(world).name))[0].id])
        with world.provenance.runs.start("push", {"into": COLLECTION}):
            assert stored(world) == StoredRelease(11, [])

    def test_a_lost_collection_is_named_with_what_makes_it_anew_in_its_own_layout(self, world: World) -> None:
        release = opened(world)
        before = world.provenance.releases.find()[0].settings
        world.store.drop(release.name)
        assert stored(world).points == 0
        (said,) = stored(world).faults
        assert f"{release.name} is not in the store" in said
        assert said.endswith(": s")
        (report,) = reconcile_releases(world.provenance, world.store, COLLECTION, seed=0)
        assert said in str(report.broken)
        world.push(world.set("s", *pairs(6)))
        assert stored(world) == StoredRelease(12, [])
        assert world.provenance.releases.find()[0].settings == before
        assert before["m"] == 8
        assert world.store.aliases() == {"things.cosine": release.name}


@pytest.mark.slow
def test_a_push_into_a_lost_collection_names_all_sets_that_it_held(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.push(world.set("more", *pairs(4, seed=3, prefix="more-")))
    assert "made anew" not in caplog.text
    world.store.drop(opened(world).name)
    world.push(world.set("s", *pairs(6)))
    assert "made anew; push all its embedding sets: s, more" in caplog.text


def test_an_older_copy_of_an_embedded_store_is_seen_without_opening_it(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "home" / "qdrant") as store:
        world = World(tmp_path / "home", store)
        world.alignment()
        world.push(world.set("s", *pairs(6)))
    collections = tmp_path / "home" / "qdrant" / "collections"
    shutil.copytree(collections, tmp_path / "older")
    with EdgeStore(tmp_path / "home" / "qdrant") as world.store:
        world.push(world.set("more", *pairs(4, seed=3, prefix="more-")))
    with Home(Settings.load(home=tmp_path / "home")) as home:
        (row,) = home.provenance.releases.find()
        assert home.stored(COLLECTION) == {row.id: StoredRelease(20, [])}
        shutil.rmtree(collections)
        shutil.copytree(tmp_path / "older", collections)
        with EdgeStore(tmp_path / "home" / "qdrant"):  # another process
            (of_release,) = home.stored().values()
        assert of_release.points == 12
        assert "8 fewer than SQL says" in of_release.faults[0]
        shutil.rmtree(collections / row.physical_name)
        (of_release,) = home.stored().values()
        assert of_release.points == 0
    world.provenance.close()


def test_what_one_store_holds_is_not_said_of_another_that_has_a_collection_of_the_same_name(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "elsewhere") as store:
        world = World(tmp_path / "home", store)
        world.alignment()
        world.push(world.set("s", *pairs(6)))
    with EdgeStore(tmp_path / "home" / "qdrant") as world.store:
        world.push(world.set("more", *pairs(4, seed=3, prefix="more-")))
    world.provenance.close()
    elsewhere, here = done("status", "--json", "--home", tmp_path / "home").document["releases"]
    assert elsewhere["physical_name"] == here["physical_name"]
    assert (elsewhere["points"], elsewhere["stored"], elsewhere["faults"]) == (12, None, [])
    assert (here["points"], here["stored"], here["faults"]) == (8, 8, [])
    table = done("status", "--home", tmp_path / "home").out
    assert here["store"] in table  # a column tells two rows of one name apart


class TestPending:
    @pytest.mark.slow
    def test_a_shadow_of_an_older_alignment_than_the_live_one_is_promoted_by_name(self, world: World) -> None:
        """A plain promotion does not go back to it."""
        newer = world.alignment("newer", turn=1)
        world.push(world.set("t", *pairs(6)), newer, collection="other")
        (shadow,) = world.push(world.set("t", *pairs(6)), collection="other").releases
        said = {
            release.row.physical_name: release.pending for release in read_status(world.provenance, "other").releases
        }
        assert f"`modalign promote other --release {shadow.name}`" in said[shadow.name]
