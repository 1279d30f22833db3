"""Something else changes settings, payload indexes and aliases: each command says so, and a repair restores them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from connector.errors import GateError, MismatchError
from connector.releases.promotion import Lifecycle
from connector.releases.reconcile_releases import reconcile_releases, repair_releases
from connector.releases.release import Release
from connector.requests import AuditRequest
from connector.stores.collection import CollectionConfig
from tests.support.audits import audited
from tests.support.errors import raises
from tests.support.world import COLLECTION, KINDS, LIVE, World, opened_world, pairs, the_set

ALIAS = "things.cosine"
FOREIGN = "foreign"


@pytest.fixture(params=[*KINDS, *LIVE])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with opened_world(request.param, tmp_path, request) as world:
        world.alignment("a")
        world.alignment("b", turn=1)
        world.set("s", *pairs(5))
        yield world


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[World]:
    with opened_world("edge", tmp_path) as world:
        world.alignment()
        world.alignment("b", turn=1)
        world.set("s", *pairs(5))
        yield world


def pushed(world: World, alignment: str = "a", **layout: Any) -> Release:
    (release,) = world.push(the_set(world), alignment, **layout).releases
    return release


def foreign(world: World, *names: str) -> None:
    config = world.store.describe(ALIAS)
    for name in names:
        world.store.create(name, CollectionConfig(config.vectors))


def lead_elsewhere(world: World) -> None:
    foreign(world, FOREIGN)
    world.store.set_aliases({ALIAS: FOREIGN})


def remove(world: World) -> None:
    """Point the alias to a collection that is then dropped, with which the alias goes."""
    lead_elsewhere(world)
    world.store.drop(FOREIGN)


ALIASES = pytest.mark.parametrize(("break_alias", "sentence"), [(lead_elsewhere, FOREIGN), (remove, "is gone")])


def promote(world: World, **options: Any) -> int:
    with world.provenance.runs.start("promote", {}) as run:
        return len(Lifecycle(world.provenance, world.store, COLLECTION).promote(run.id, **options))


def rollback(world: World) -> int:
    with world.provenance.runs.start("rollback", {}) as run:
        return len(Lifecycle(world.provenance, world.store, COLLECTION).rollback(run.id))


def audit(world: World, release: str = "live") -> str | None:
    request = AuditRequest(
        collection=COLLECTION, pairs="s", release=release, require=["recall@1>=0"], queries="all", gallery="all"
    )
    (found,) = audited(world, request)
    return found.broken


def verified(world: World) -> list[str]:
    reports = reconcile_releases(world.provenance, world.store, COLLECTION, seed=0)
    assert all(report.consistent == (not report.settings) for report in reports)
    return [sentence for report in reports for sentence in report.settings]


def repaired(world: World) -> dict[str, int]:
    with world.provenance.runs.start("repair", {}) as run:
        repair_releases(world.provenance, world.store, run, COLLECTION)
    return dict(run.counts)


class TestAliases:
    @ALIASES
    def test_an_alias_that_does_not_lead_to_the_live_release_is_named_and_restored(
        self, world: World, break_alias: Callable[[World], None], sentence: str
    ) -> None:
        release = pushed(world)
        assert (verified(world), audit(world), promote(world)) == ([], None, 0)
        break_alias(world)
        (said,) = verified(world)
        assert ALIAS in said
        assert sentence in said
        assert audit(world) == said
        with raises(MismatchError, ALIAS, sentence):
            promote(world)
        assert repaired(world) == {"restored": 1}
        assert (verified(world), audit(world), promote(world)) == ([], None, 0)
        assert world.store.aliases()[ALIAS] == release.name

    @pytest.mark.slow
    @ALIASES
    def test_a_promotion_replaces_it(self, edge: World, break_alias: Callable[[World], None], sentence: str) -> None:
        pushed(edge)
        shadow = pushed(edge, "b")
        assert audit(edge, "ready") is None
        break_alias(edge)
        assert promote(edge) == 1
        assert edge.store.aliases()[ALIAS] == shadow.name

    @ALIASES
    def test_a_rollback_with_nothing_to_do_does_not_say_so(
        self, edge: World, break_alias: Callable[[World], None], sentence: str
    ) -> None:
        pushed(edge)
        pushed(edge, "b")
        assert audit(edge, "ready") is None
        assert (promote(edge, request="now"), rollback(edge), rollback(edge)) == (1, 1, 0)
        break_alias(edge)
        with raises(MismatchError, ALIAS, sentence):
            promote(edge, request="now")  # done before under this name
        assert repaired(edge) == {"restored": 1}
        assert promote(edge, request="now") == 0

    def test_the_alias_of_another_metric_is_none_of_this_promotion(self, edge: World) -> None:
        edge.push(the_set(edge), metrics=["cosine", "euclid"])
        lead_elsewhere(edge)
        assert promote(edge, metrics=["euclid"]) == 0
        with raises(MismatchError, FOREIGN):
            promote(edge)

    def test_a_promotion_that_was_begun_is_finished_by_itself_and_not_by_a_repair(
        self, edge: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live, shadow = pushed(edge), pushed(edge, "b")
        assert audit(edge, "ready") is None
        finish = type(edge.provenance.releases).finish_promotions
        monkeypatch.setattr(type(edge.provenance.releases), "finish_promotions", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            promote(edge)
        monkeypatch.setattr(type(edge.provenance.releases), "finish_promotions", finish)
        (said,) = verified(edge)
        assert "modalign promote" in said
        assert repaired(edge) == {}
        assert edge.store.aliases()[ALIAS] == shadow.name != live.name
        assert promote(edge) == 1
        assert verified(edge) == []

    def test_a_collection_in_the_place_of_the_alias_is_named(self, edge: World) -> None:
        release = pushed(edge)
        config = CollectionConfig(edge.store.describe(release.name).vectors)
        remove(edge)
        edge.store.create(ALIAS, config)
        (said,) = verified(edge)
        assert "rename" in said
        assert repaired(edge) == {}


def record(world: World, release: Release, **settings: Any) -> None:
    """Have SQL say something else of a layout than the collection has, as if that had been changed."""
    world.provenance.releases.change(release.row, settings={**release.row.settings, **settings})


class TestSettings:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("recorded", "sentence"),
        [
            ({"m": 40}, "m is 16, SQL recorded 40"),
            ({"ef_construct": 7}, "ef_construct is 100, SQL recorded 7"),
            ({"indexing_threshold": 9}, "indexing_threshold is 10000, SQL recorded 9"),
            ({"quantization": "scalar"}, "quantization is nothing, SQL recorded scalar"),
            ({"vectors_on_disk": True}, "vectors_on_disk is False, SQL recorded True"),
            ({"oversampling": 9.0}, "metadata.modalign_search is"),
            ({"payload_indexes": {"number": "float", "key": "keyword"}}, "number is integer, SQL recorded float"),
            ({"payload_indexes": {"number": "integer", "color": "text"}}, "color is nothing, SQL recorded text"),
        ],
    )
    def test_what_the_collection_has_otherwise_is_named_and_restored(
        self, edge: World, recorded: dict[str, Any], sentence: str
    ) -> None:
        release = pushed(edge, payload_indexes={"number": "integer"})
        own = {} if "payload_indexes" not in recorded else {"group": "keyword", "split": "keyword", "key": "keyword"}
        if own:
            recorded = {"payload_indexes": own | recorded["payload_indexes"]}
        record(edge, release, **recorded)
        assert [said for said in verified(edge) if sentence in said and "modalign repair" in said]
        assert repaired(edge)["restored"] == 1
        assert verified(edge) == []
        assert edge.store.count(release.name) == 10
        assert audit(edge) is None

    def test_what_cannot_be_restored_says_what_to_do(self, edge: World) -> None:
        release = pushed(edge)
        record(edge, release, datatype="float16", m=5)
        assert repaired(edge) == {"restored": 1}
        (said,) = verified(edge)
        assert "datatype is float32, SQL recorded float16" in said
        assert f"drop {release.name}" in said

    def test_an_index_that_no_push_made_stays_until_a_push_records_it(self, edge: World) -> None:
        release = pushed(edge, payload_indexes={"number": "integer"})
        indexes = {field: kind for field, kind in release.row.settings["payload_indexes"].items() if field != "number"}
        record(edge, release, payload_indexes=indexes)
        (said,) = verified(edge)
        assert "payload index number is integer" in said
        assert "push again" in said
        assert repaired(edge) == {}
        pushed(edge)
        assert verified(edge) == []

    def test_a_shadow_whose_settings_were_changed_is_not_promoted(self, edge: World) -> None:
        pushed(edge)
        shadow = pushed(edge, "b")
        assert audit(edge, "ready") is None
        record(edge, shadow, m=40)
        with raises(MismatchError, shadow.name, "m is 16, SQL recorded 40"):
            promote(edge)
        assert repaired(edge) == {"restored": 1}
        with raises(GateError):  # the audit has measured other settings
            promote(edge)
        assert audit(edge, "ready") is None
        assert promote(edge) == 1

    def test_a_release_whose_layout_sql_has_lost_is_compared_with_nothing(self, edge: World) -> None:
        release = pushed(edge)
        edge.provenance.releases.change(release.row, settings={})
        assert verified(edge) == []
