"""Aliases do not change as one: what a store that died in between, or refused, leaves is whole, told and finished."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from connector.errors import StoreError, StoreUnavailableError
from connector.provenance.tables import ReleaseRow
from connector.releases.promotion import Lifecycle, PromotionOverride
from connector.releases.release import Release
from connector.releases.status import pending
from tests.support.errors import raises
from tests.support.world import COLLECTION, World, pairs

METRICS = ("cosine", "dot", "euclid")
FORCED = PromotionOverride("someone@somewhere", "a test")
SetAliases = Callable[[Any, Mapping[str, str]], None]


@pytest.fixture
def world(world: World) -> World:
    world.alignment("b", turn=1)
    return world


@pytest.fixture
def releases(world: World) -> tuple[list[Release], list[Release]]:
    """Live releases under several metrics, and their shadows."""
    embedding_set = world.set("s", *pairs(6))
    live, shadows = (world.push(embedding_set, name, metrics=METRICS).releases for name in ("a", "b"))
    return live, shadows


def promote(world: World) -> None:
    with world.provenance.runs.start("promote", {}) as run:
        Lifecycle(world.provenance, world.store, COLLECTION).promote(run.id, forced=FORCED)


def row_of(world: World, release: Release) -> ReleaseRow:
    (row,) = world.provenance.releases.find(physical_name=release.name)
    return row


def replaced(world: World, monkeypatch: pytest.MonkeyPatch, error: StoreError, applied: int) -> None:
    """Let the next switch change so many aliases, then fail."""
    original = type(world.store).set_aliases

    def failing(store: Any, aliases: Mapping[str, str]) -> None:
        original(store, dict(list(aliases.items())[:applied]))
        raise error

    monkeypatch.setattr(type(world.store), "set_aliases", failing)


@pytest.mark.parametrize("applied", range(len(METRICS) + 1))
def test_a_store_that_dies_in_a_switch(
    world: World, releases: tuple[list[Release], list[Release]], monkeypatch: pytest.MonkeyPatch, applied: int
) -> None:
    live, shadows = releases
    aliases = world.store.aliases()
    with monkeypatch.context() as patched:
        replaced(world, patched, StoreUnavailableError("killed"), applied)
        with raises(StoreUnavailableError, "killed"):
            promote(world)
    left = world.store.aliases()
    new = {release.name for release in shadows}
    assert left.keys() == aliases.keys()
    assert sum(target in new for target in left.values()) == applied
    for old, shadow in zip(live, shadows, strict=True):
        (alias,) = (alias for alias, target in aliases.items() if target == old.name)
        said = pending(world.provenance, row_of(world, shadow))
        assert all(word in said for word in (alias, old.name, f"modalign promote {COLLECTION}"))
    promote(world)
    assert set(world.store.aliases().values()) == new
    assert not any(pending(world.provenance, row_of(world, shadow)) for shadow in shadows)


@pytest.mark.parametrize("applied", range(len(METRICS)))
def test_a_store_that_refuses_a_switch(
    world: World, releases: tuple[list[Release], list[Release]], monkeypatch: pytest.MonkeyPatch, applied: int
) -> None:
    """If no alias was switched, nothing is left begun, and the run says why; otherwise the rest is to be finished."""
    _, shadows = releases
    with monkeypatch.context() as patched:
        replaced(world, patched, StoreError("no such thing"), applied)
        with raises(StoreError, "no such thing"):
            promote(world)
    said = {pending(world.provenance, row_of(world, shadow)).partition(" ")[0] for shadow in shadows}
    assert said == ({"promote"} if applied else {"a"})  # a shadow
    (run,) = world.provenance.runs.newest(1)
    assert (run.outcome, run.error) == ("failed", "StoreError: no such thing")
    promote(world)
    assert {row_of(world, shadow).state for shadow in shadows} == {"live"}
