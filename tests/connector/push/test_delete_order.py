"""A deletion reaches every collection that has the items, whatever keeps some of them from being verified."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import ModalignError
from connector.errors import StoreError, StoreUnavailableError
from connector.push.delete import Deletion
from connector.releases.reconcile import reconcile
from connector.releases.release import open_release
from tests.support.errors import raises
from tests.support.world import COLLECTION, World, opened_world, pairs

OTHERS = ("before", "zulu")  # pushed into before and after the collection that is named


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Three collections that share one embedding set, each through an alignment of its own."""
    with opened_world("edge", tmp_path) as world:
        embedding_set = world.set("s", *pairs(8))
        for number, collection in enumerate((OTHERS[0], COLLECTION, OTHERS[1])):
            world.push(embedding_set, world.alignment(collection, turn=number), collection=collection)
        yield world


def delete(world: World, *keys: str) -> None:
    with world.provenance.runs.start("delete", {}) as run:
        Deletion(COLLECTION, world.store, world.provenance, run).delete(keys=keys)


def counts(world: World) -> dict[str, int]:
    return {row.collection: world.store.count(row.physical_name) for row in world.provenance.releases.find()}


def lose_alignment(world: World, collection: str) -> None:
    shutil.rmtree(world.home / "alignments" / collection)


def consistent(world: World, collection: str) -> bool:
    return reconcile(
        open_release(world.provenance, world.store, collection), world.store, world.provenance, seed=0
    ).consistent


def test_points_leave_every_collection_before_any_is_verified(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for method in ("delete", "ready"):
        original = getattr(type(world.store), method)

        def noting(store: Any, name: str, *rest: Any, method: str = method, original: Any = original) -> Any:
            calls.append(f"{method} {name.split('.', maxsplit=1)[0]}")
            return original(store, name, *rest)

        monkeypatch.setattr(type(world.store), method, noting)
    delete(world, "3")
    deleted = [call for call in calls if call.startswith("delete")]
    assert calls[: len(deleted)] == deleted
    assert {call.split()[1] for call in deleted} == {COLLECTION, *OTHERS}
    assert calls[0] == f"delete {COLLECTION}"
    assert {call.split()[1] for call in calls[len(deleted) :]} == {COLLECTION, *OTHERS}


@pytest.mark.parametrize("other", OTHERS)
def test_an_other_collection_that_cannot_be_verified_is_a_warning(
    world: World, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    lose_alignment(world, other)
    delete(world, "3")
    assert set(counts(world).values()) == {2 * 7}
    assert [record.levelname for record in caplog.records if other in record.getMessage()] == ["WARNING"]
    assert all(consistent(world, collection) for collection in (COLLECTION, *OTHERS) if collection != other)


def test_the_collection_that_is_named_and_cannot_be_verified_is_an_error_after_all_is_deleted(world: World) -> None:
    lose_alignment(world, COLLECTION)
    with pytest.raises(ModalignError, match=COLLECTION):
        delete(world, "3")
    assert set(counts(world).values()) == {2 * 7}
    assert all(consistent(world, collection) for collection in OTHERS)


@pytest.mark.parametrize("kind", [StoreError, StoreUnavailableError])
@pytest.mark.parametrize("other", OTHERS)
def test_a_collection_that_does_not_take_the_deletion_keeps_no_other_from_it(
    world: World, other: str, kind: type[StoreError], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = type(world.store).delete

    def refusing(store: Any, name: str, ids: Any) -> None:
        if name.startswith(f"{other}."):
            raise kind(f"collection {name} takes no writes")
        original(store, name, ids)

    with monkeypatch.context() as patched:
        patched.setattr(type(world.store), "delete", refusing)
        with raises(kind, other):
            delete(world, "3")
    assert counts(world) == {COLLECTION: 14, **dict.fromkeys(OTHERS, 14), other: 16}
    delete(world, "3")
    assert set(counts(world).values()) == {14}
    assert all(consistent(world, collection) for collection in (COLLECTION, *OTHERS))
