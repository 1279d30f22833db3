"""What an audit reads: of a collection with replicas, what all of them hold and find alike."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from connector.stores.collection import CollectionInfo
from connector.stores.edge import EdgeStore
from tests.support.world import World, audit, opened, pairs, the_set


class Replicated(EdgeStore):
    """A store of a replication factor that notes how it is read.

    Attributes:
        asked: which method was called, and whether consistently.
    """

    def __init__(self, path: Path, factor: int):
        super().__init__(path)
        self.factor = factor
        self.asked: list[tuple[str, bool]] = []

    @override
    def describe(self, name: str) -> CollectionInfo:
        info = super().describe(name)
        return replace(info, layout={**info.layout, "replication_factor": self.factor})

    @override
    def search(self, *args: Any, consistent: bool = False, **options: Any) -> Any:
        self.asked.append(("search", consistent))
        return super().search(*args, consistent=consistent, **options)

    @override
    def scroll(self, *args: Any, consistent: bool = False, **options: Any) -> Any:
        self.asked.append(("scroll", consistent))
        return super().scroll(*args, consistent=consistent, **options)

    @override
    def retrieve(self, *args: Any, consistent: bool = False, **options: Any) -> Any:
        self.asked.append(("retrieve", consistent))
        return super().retrieve(*args, consistent=consistent, **options)


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with Replicated(tmp_path / "qdrant", request.param) as store:
        world = World(tmp_path, store)
        with world.provenance:
            world.alignment()
            world.push(world.set("s", *pairs(12)), metrics=["chi2", "cosine"])
            yield world


@pytest.mark.parametrize("world", [1, 2], indirect=True)
@pytest.mark.parametrize("metric", ["cosine", "chi2"])
def test_an_audit_asks_all_replicas_and_times_searches_that_ask_one(world: World, metric: str) -> None:
    store = world.store
    assert isinstance(store, Replicated)
    release = opened(world, metric)
    store.asked.clear()
    audit(release, store, the_set(world), ks=(1, 5), queries="all")
    replicated = store.factor > 1
    assert {consistent for method, consistent in store.asked if method == "scroll"} == {replicated}
    for method in {method for method, _ in store.asked} - {"scroll"}:
        consistently = [consistent for asked, consistent in store.asked if asked == method]
        assert not all(consistently)
        assert any(consistently) == replicated
