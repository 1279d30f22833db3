"""What an audit reads: of a collection with replicas, what all of them hold and find alike."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from connector.audits import captions, subject
from connector.errors import FilterRefusedError
from connector.stores.collection import CollectionInfo
from connector.stores.edge import EdgeStore
from connector.stores.points import Record
from tests.support.world import World, audit, opened, pairs, several, the_set


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


class Strict(EdgeStore):
    """A store that refuses conditions of more than five values, as strict mode does, with the first page."""

    refused = 0

    @override
    def _scroll(self, name: str, *, filter: Any, **options: Any) -> Iterator[list[Record]]:
        outer = filter.must if filter else []
        conditions = [condition for each in outer for condition in getattr(each, "must", [each])]
        if any(len(getattr(getattr(each, "match", None), "any", ())) > 5 for each in conditions):
            self.refused += 1
            raise FilterRefusedError("Condition size limit reached")
        yield from super()._scroll(name, filter=filter, **options)


@pytest.mark.parametrize("metric", ["cosine", "chi2"])
def test_what_is_right_does_not_depend_on_whether_relevant_points_can_be_filtered(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "IMAGES", 3)  # whose groups it also filters by
    with EdgeStore(tmp_path / "qdrant") as store:
        world = World(tmp_path, store)
        with world.provenance:
            world.alignment()
            world.push(world.set("s", *several(12)), metrics=[metric])
            expected = recalls(world, metric)
            with monkeypatch.context() as patched:
                patched.setattr(subject, "FILTERED_GROUPS", 11)
                assert recalls(world, metric) == expected
    with Strict(tmp_path / "qdrant") as strict:
        world = World(tmp_path, strict)
        with world.provenance:
            assert recalls(world, metric) == expected
        assert strict.refused > 0


def recalls(world: World, metric: str) -> dict[Any, float]:
    measured = audit(opened(world, metric), world.store, the_set(world), ks=(1, 5), queries="all").measures
    return {(m.direction, m.part, m.name): m.value for m in measured if "latency" not in m.name}
