"""A group goes as a whole, such as a product with its pictures and captions, and nothing else does."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from connector.provenance.runs import Run
from connector.push.delete import Deletion, DeletionPreview
from connector.releases.reconcile import reconcile
from connector.releases.release import open_release
from tests.support.world import COLLECTION, LIVE, World, embedded, latent, rows, world_over

METRICS = ("cosine", "chi2")


world = world_over("edge", *LIVE)


def products(world: World, name: str, groups: Sequence[str], *, prefix: str = "") -> EmbeddingSet:
    """A set of products with two pictures and two captions each, whose keys do not tell what they are of."""
    keys = [f"{prefix}{number}" for number in range(2 * len(groups))]
    named = [group for group in groups for _ in range(2)]
    return world.set(name, *(rows(m, embedded(m, latent(len(keys))), keys=keys, groups=named) for m in MODALITIES))


def delete(world: World, *groups: str, **options: Any) -> tuple[list[DeletionPreview], Run]:
    asked: list[DeletionPreview] = []

    def agree(preview: DeletionPreview) -> bool:
        asked.append(preview)
        return True

    with world.provenance.runs.start("delete", {}) as run:
        Deletion(COLLECTION, world.store, world.provenance, run).delete(groups=groups, confirm=agree, **options)
    return asked, run


def held(world: World, collection: str = COLLECTION) -> set[str]:
    """The groups of the points of a collection, which is as its sets and SQL say."""
    release = open_release(world.provenance, world.store, collection, "cosine")
    assert reconcile(release, world.store, world.provenance, seed=0).consistent
    return {record.payload["group"] for page in world.store.scroll(release.name) for record in page}


def test_all_items_of_a_group_go_from_every_set_and_release(world: World) -> None:
    world.push(products(world, "s", ["lamp", "chair", "sofa"]), metrics=METRICS)
    world.push(products(world, "more", ["chair", "desk"], prefix="more-"), metrics=METRICS)
    asked, run = delete(world, "chair", "sofa")
    assert asked == [DeletionPreview(12, ["s", "more"], COLLECTION, [])]
    assert (run.counts["deleted"], run.counts["rows_deleted"]) == (12, 12)
    assert held(world) == {"lamp", "desk"}
    assert set(world.states().values()) == {("live", 8)}
    assert EmbeddingSet.open(world.home / "sets" / "s").card.counts == {"image": 2, "text": 2}


def test_groups_that_name_nothing_are_named_and_counted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.push(products(world, "s", ["lamp", "chair"]))
    asked, run = delete(world, "Chair", "stool")
    assert asked == []  # nobody is asked where there is nothing to delete
    assert (run.counts["deleted"], run.counts["unknown_groups"], run.counts["unknown"]) == (0, 2, 0)
    (line,) = caplog.messages
    assert all(word in line for word in ("2 groups", "Chair", "stool", COLLECTION))
    assert held(world) == {"lamp", "chair"}


def test_of_one_modality(world: World) -> None:
    world.push(products(world, "s", ["lamp", "chair"]))
    _, run = delete(world, "chair", modalities=["text"])
    assert run.counts["deleted"] == 2
    assert EmbeddingSet.open(world.home / "sets" / "s").card.counts == {"image": 4, "text": 2}
    assert held(world) == {"lamp", "chair"}


def test_with_keys_of_other_items(world: World) -> None:
    world.push(products(world, "s", ["lamp", "chair"]))
    _, run = delete(world, "chair", keys=["0", "2"])
    assert run.counts["deleted"] == 2 + 4  # the item 2 is of the chair
    assert held(world) == {"lamp"}


def test_an_item_that_has_moved_to_another_group_stays(world: World) -> None:
    """Its point has the old group until the set is pushed again; the set is what the next push goes by."""
    before = products(world, "s", ["lamp", "chair"])
    world.push(before)
    parts = [before.load(m) for m in MODALITIES]
    world.set("s", *(replace(part, groups=["lamp", "lamp", "lamp", "chair"]) for part in parts))
    _, run = delete(world, "chair")
    assert run.counts["deleted"] == 2
    assert EmbeddingSet.open(world.home / "sets" / "s").card.counts == {"image": 3, "text": 3}


def test_a_group_of_that_name_in_a_set_of_another_collection_stays(world: World) -> None:
    shared = products(world, "s", ["lamp", "chair"])
    world.push(shared)
    world.push(shared, collection="beside")
    world.push(products(world, "other", ["chair", "desk"], prefix="other-"), collection="beside")
    asked, run = delete(world, "chair")
    assert asked == [DeletionPreview(4, ["s"], COLLECTION, ["beside"])]
    assert run.counts["deleted"] == 4
    assert held(world) == {"lamp"}
    assert held(world, "beside") == {"lamp", "chair", "desk"}
    assert EmbeddingSet.open(world.home / "sets" / "other").card.counts == {"image": 4, "text": 4}
