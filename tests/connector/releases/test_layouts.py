"""Layouts of releases: new ones inherit, promotions keep filters working, and a lost database forgets nothing."""

from dataclasses import replace
from typing import Any

import pytest

from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import GateError, MismatchError
from connector.provenance.database import upgrade
from connector.releases.dropping import drop
from connector.releases.promotion import AliasSwitch, Lifecycle, PromotionOverride
from connector.releases.release import Release, open_release
from connector.requests import AuditRequest
from connector.stores.filters import parse_filter
from connector.stores.layout import Layout, PayloadKind
from tests.support.audits import audited
from tests.support.errors import raises
from tests.support.world import COLLECTION, World, embedded, latent, rows

N = 40
CHEAP = '{"must": [{"key": "price", "range": {"lt": 10}}]}'
# A layout without a default, but for what takes a server.
LAYOUT: dict[str, Any] = {
    "payload_indexes": {"price": "float", "meta.year": "integer"},
    "m": 8,
    "ef_construct": 40,
    "indexing_threshold": 3,
    "quantization": "binary",
    "compression": "two_bits",
    "oversampling": 7.0,
    "rescore": False,
    "vectors_on_disk": True,
    "hnsw_on_disk": True,
    "payload_on_disk": False,
    "caption_payload": False,
}
TYPED: dict[str, PayloadKind] = {"price": "float"}


@pytest.fixture
def world(world: World) -> World:
    world.alignment("b", turn=3)
    return world


@pytest.fixture
def priced(world: World) -> EmbeddingSet:
    """Pairs as a CSV has them: every price is a text; half of them are below ten."""
    payloads = [{"price": f"{number * 0.5}", "meta": {"year": f"{1990 + number}"}} for number in range(N)]
    points = latent(N)
    return world.set("s", *(rows(m, embedded(m, points), payloads=payloads) for m in ("image", "text")))


def cheap(world: World, release: Release) -> int:
    return world.store.count(release.name, filter=parse_filter(CHEAP))


def promote(world: World, *, force: bool = False) -> list[AliasSwitch]:
    forced = PromotionOverride("me@here", "a trial") if force else None
    with world.provenance.runs.start("promote", {}) as run:
        return Lifecycle(world.provenance, world.store, COLLECTION).promote(run.id, forced=forced)


def audit(world: World, pairs: EmbeddingSet, release: str = "ready") -> Any:
    request = AuditRequest(
        collection=COLLECTION,
        pairs="s",
        metric="cosine",
        release=release,
        require=["recall@1>=0"],
        queries="all",
        gallery="all",
    )
    (found,) = audited(world, request, pairs)
    return found


class TestNewReleases:
    @pytest.mark.slow
    @pytest.mark.parametrize("what", [{"alignment_name": "b"}, {"metrics": ["euclid"]}, {"metrics": ["chi2"]}])
    def test_a_shadow_and_a_further_metric_inherit_the_layout_of_the_live_release(
        self, world: World, priced: EmbeddingSet, what: dict[str, Any]
    ) -> None:
        (live,) = world.push(priced, **LAYOUT).releases
        (other,) = world.push(priced, **what).releases
        assert other.row.settings == live.row.settings
        assert world.store.describe(other.name).layout == world.store.describe(live.name).layout
        assert cheap(world, other) == cheap(world, live) == N
        world.push(priced, **what)  # again, as it is

    @pytest.mark.slow
    def test_they_inherit_from_the_release_of_their_metric(self, world: World, priced: EmbeddingSet) -> None:
        world.push(priced, m=8)
        world.push(priced, metrics=["euclid"], m=32)
        for metric, m in (("cosine", 8), ("euclid", 32), ("dot", 8)):
            (other,) = world.push(priced, "b", metrics=[metric]).releases
            assert other.row.settings["m"] == m

    def test_what_is_chosen_goes_before_what_is_inherited(self, world: World, priced: EmbeddingSet) -> None:
        world.push(priced, **LAYOUT)
        (other,) = world.push(priced, "b", m=12, quantization="turbo", payload_indexes={"price": "keyword"}).releases
        settings = other.row.settings
        assert (settings["m"], settings["ef_construct"], settings["compression"]) == (12, 40, None)
        assert settings["payload_indexes"].items() >= {"price": "keyword", "meta.year": "integer"}.items()

    def test_a_fresh_layout_inherits_nothing(self, world: World, priced: EmbeddingSet) -> None:
        world.push(priced, **LAYOUT)
        for _ in range(2):
            (other,) = world.push(priced, "b", fresh_layout=True, ef_construct=60).releases
            assert other.row.settings["m"] == Layout().m
            assert other.row.settings["ef_construct"] == 60
            assert "price" not in other.row.settings["payload_indexes"]
        with raises(MismatchError, "payload_indexes", "price"):
            world.push(priced, fresh_layout=True)

    def test_a_release_whose_collection_is_lost_is_laid_out_as_it_was(self, world: World, priced: EmbeddingSet) -> None:
        (live,) = world.push(priced, **LAYOUT).releases
        world.store.drop(live.name)
        (again,) = world.push(priced).releases
        assert again.row.settings == live.row.settings
        assert cheap(world, again) == N

    def test_a_release_that_was_dropped_is_laid_out_as_the_live_one(self, world: World, priced: EmbeddingSet) -> None:
        world.push(priced, m=8)
        (other,) = world.push(priced, "b", m=24).releases
        lifecycle = Lifecycle(world.provenance, world.store, COLLECTION)
        drop(lifecycle, [other.row])
        (again,) = world.push(priced, "b").releases
        assert again.row.settings["m"] == 8


class TestPromotion:
    @pytest.mark.slow
    def test_filters_find_the_same_after_a_promotion(self, world: World, priced: EmbeddingSet) -> None:
        (live,) = world.push(priced, payload_indexes=TYPED).releases
        world.push(priced, "b")
        audit(world, priced)
        assert [switch.differences for switch in promote(world)] == [[]]
        present = open_release(world.provenance, world.store, COLLECTION)
        assert present.name != live.name
        assert cheap(world, present) == N

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("layout", "values"),
        [
            ({"fresh_layout": True}, ("price", "float", "not indexed")),
            ({"payload_indexes": {"price": "keyword"}}, ("price", "float", "keyword")),
            ({"payload_indexes": {"meta.year": "integer"}}, ("meta.year", "a text", "a number")),
        ],
    )
    def test_what_filters_depend_on_is_not_changed_without_force(
        self, world: World, priced: EmbeddingSet, layout: dict[str, Any], values: tuple[str, ...]
    ) -> None:
        (live,) = world.push(priced, payload_indexes=TYPED).releases
        (other,) = world.push(priced, "b", **layout).releases
        findings = " ".join(audit(world, priced).findings)
        assert all(value in findings for value in values)
        with raises(GateError, *values, live.name, other.name):
            promote(world)
        assert open_release(world.provenance, world.store, COLLECTION).name == live.name
        (switch,) = promote(world, force=True)
        assert switch.refused is not None
        assert values[0] in switch.refused
        assert switch.promotion.forced_by == "me@here"

    @pytest.mark.slow
    def test_other_differences_are_named(self, world: World, priced: EmbeddingSet) -> None:
        (live,) = world.push(priced).releases
        (other,) = world.push(priced, "b", m=8, oversampling=2.0).releases
        audit(world, priced)
        (switch,) = promote(world)
        assert switch.refused is None
        m, oversampling = switch.differences
        assert (m, oversampling) == (
            f"m is 16 in {live.name} and 8 in {other.name}",
            f"oversampling is 4.0 in {live.name} and 2.0 in {other.name}",
        )

    @pytest.mark.slow
    def test_an_index_that_changes_no_type_may_be_added(self, world: World) -> None:
        payloads = [{"year": 1990 + number} for number in range(N)]
        points = latent(N)
        numbered = world.set("s", *(rows(m, embedded(m, points), payloads=payloads) for m in ("image", "text")))
        world.push(numbered)
        world.push(numbered, "b", payload_indexes={"year": "integer"})
        audit(world, numbered)
        (switch,) = promote(world)
        assert switch.refused is None
        assert any("year" in sentence for sentence in switch.differences)

    @pytest.mark.slow
    @pytest.mark.parametrize(("before", "after"), [("keyword", "tenant"), ("tenant", "keyword")])
    def test_an_index_of_tenants_is_one_of_keywords(
        self, world: World, priced: EmbeddingSet, before: PayloadKind, after: PayloadKind
    ) -> None:
        (live,) = world.push(priced, payload_indexes={"price": before}).releases
        (other,) = world.push(priced, "b", payload_indexes={"price": after}).releases
        assert [world.store.describe(r.name).payload_indexes["price"] for r in (live, other)] == [before, after]
        audit(world, priced)
        (switch,) = promote(world)
        assert switch.refused is None
        assert switch.differences == [
            f"payload field price is indexed as {before} in {live.name} and indexed as {after} in {other.name}"
        ]

    @pytest.mark.parametrize("kind", ["integer", "float"])
    def test_an_added_index_that_no_longer_answers_a_filter_that_worked(self, world: World, kind: PayloadKind) -> None:
        """A whole number is found by its value without an index and with one of integers, by ranges alone otherwise."""
        points = latent(N)
        payloads = [{"meta": {"year": 1990 + number}} for number in range(N)]
        numbered = world.set("s", *(rows(m, embedded(m, points), payloads=payloads) for m in ("image", "text")))
        world.push(numbered)
        (other,) = world.push(numbered, "b", payload_indexes={"meta.year": kind}).releases
        findings = " ".join(audit(world, numbered).findings)
        if kind == "integer":
            assert "Filters would not" not in findings
            (switch,) = promote(world)
            assert switch.refused is None
        else:
            assert "meta.year" in findings
            with raises(GateError, "meta.year", "not indexed", "a whole number", other.name):
                promote(world)


class TestAFurtherMetric:
    """Searches under every metric of a collection take the same filters."""

    @pytest.mark.parametrize(
        ("layout", "value"),
        [
            ({"payload_indexes": {"price": "keyword"}}, "price"),
            ({"payload_indexes": {"meta.year": "integer"}}, "meta.year"),
            ({"fresh_layout": True}, "price"),
        ],
    )
    def test_one_on_which_filters_break_does_not_go_live_by_itself(
        self, world: World, priced: EmbeddingSet, layout: dict[str, Any], value: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.push(priced, payload_indexes=TYPED)
        for _ in range(2):  # nor when it is pushed again
            (other,) = world.push(priced, metrics=["euclid"], **layout).releases
            assert (other.row.state, sorted(world.store.aliases())) == ("ready", ["things.cosine"])
            assert value in caplog.text
            caplog.clear()
        with raises(GateError, value, other.name):
            promote(world)
        (switch,) = promote(world, force=True)
        assert switch.refused is not None
        assert switch.previous is None
        world.store.set_aliases({})
        world.push(priced, metrics=["euclid"], **layout)
        assert world.store.aliases()["things.euclid"] == other.name

    def test_one_with_the_same_filters_is_live_at_once(self, world: World, priced: EmbeddingSet) -> None:
        world.push(priced, payload_indexes=TYPED)
        (other,) = world.push(priced, metrics=["euclid"], m=8, payload_indexes={"label": "keyword"}).releases
        assert other.row.state == "live"


class TestLostDatabase:
    def forget(self, world: World) -> World:
        """Lose the database and start with a new one, over the same store."""
        world.provenance.close()
        (world.home / "modalign.db").unlink()
        upgrade(world.url)
        return World(world.home, world.store)

    @pytest.mark.slow
    def test_the_same_push_finds_the_same(self, world: World, priced: EmbeddingSet) -> None:
        (before,) = world.push(priced, **LAYOUT).releases
        world = self.forget(world)
        with world.provenance:
            for _ in range(2):
                (after,) = world.push(priced, take_over=True).releases
                assert after.row.settings == before.row.settings
                assert after.row.state == "live"
                assert after.quantized_search == {"oversampling": 7.0, "rescore": False}
                assert cheap(world, after) == N
            assert world.push(priced).counts == {"unchanged": 2 * N}
            with raises(MismatchError, "ef_construct", 40, 50):
                world.push(priced, ef_construct=50)

    @pytest.mark.slow
    def test_a_shadow_inherits_from_what_the_alias_names(self, world: World, priced: EmbeddingSet) -> None:
        (before,) = world.push(priced, **LAYOUT).releases
        world = self.forget(world)
        with world.provenance:
            (shadow,) = world.push(priced, "b", take_over=True).releases
            assert shadow.row.settings == before.row.settings
            assert shadow.row.state == "ready"

    def test_fields_of_another_kind_are_left_out_as_before(self, world: World, priced: EmbeddingSet) -> None:
        world.push(priced, payload_indexes=TYPED)
        world = self.forget(world)
        with world.provenance:
            payloads = [{"price": "x" if number == 7 else number} for number in range(N)]
            parts = (rows(m, embedded(m, latent(N)), payloads=payloads) for m in ("image", "text"))
            pushed = world.push(world.set("s", *parts), take_over=True)
            assert world.reasons(pushed.run) == [(m, "7", "payload-not-float") for m in ("image", "text")]


class TestIndexesOfOthers:
    @pytest.mark.slow
    def test_an_index_that_somebody_adds_is_known_from_the_next_push_on(
        self, world: World, priced: EmbeddingSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (release,) = world.push(priced).releases
        shown = world.store.describe(release.name)
        layout = {**shown.layout, "payload_indexes": {**shown.payload_indexes, "price": "float"}}
        monkeypatch.setattr(world.store, "describe", lambda name: replace(shown, layout=layout))
        (again,) = world.push(priced).releases
        assert again.row.settings["payload_indexes"]["price"] == "float"

    def test_an_index_of_another_kind_is_refused(
        self, world: World, priced: EmbeddingSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (release,) = world.push(priced, payload_indexes=TYPED).releases
        shown = world.store.describe(release.name)
        layout = {**shown.layout, "payload_indexes": {**shown.payload_indexes, "price": "keyword"}}
        monkeypatch.setattr(world.store, "describe", lambda name: replace(shown, layout=layout))
        with raises(MismatchError, "price", "keyword", "float"):
            world.push(priced)
