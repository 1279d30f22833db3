"""Releases: names, the chain that opening one checks, and which one is live."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from alignment.errors import AlignmentError, MetricError
from alignment.metrics import METRICS, Cosine, Guarantee, Lowering, Metric, parse
from alignment.modality import MODALITIES, Modality
from connector.errors import CollectionNotFoundError, MismatchError, StoreUnavailableError
from connector.provenance.tables import EncoderRow, ReleaseRow
from connector.releases.aliases import alias_name, make_live, physical_name
from connector.releases.chain import METADATA
from connector.releases.release import Release, open_release
from connector.settings import checked_name
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.edge import EdgeStore
from connector.stores.points import Points
from tests.support.errors import raises
from tests.support.world import (
    ALL,
    COLLECTION,
    KINDS,
    LIVE,
    SOME,
    Calls,
    World,
    alignment,
    cards,
    pairs,
    world_over,
)

world = world_over(*KINDS)


def push(world: World, *metrics: str) -> list[Release]:
    return world.push(world.set("s", *pairs(5)), metrics=metrics or ("cosine",)).releases


def opened(world: World, metric: str | None = None) -> Release:
    return open_release(world.provenance, world.store, COLLECTION, metric)


def rewritten(world: World, release: Release, change: Callable[[dict[str, Any]], object]) -> None:
    """Put a collection with edited metadata in the place of a release's."""
    chain = dict(world.store.describe(release.name).metadata[METADATA])
    change(chain)
    lowering = release.lowerings["image"]
    vector = VectorConfig(lowering.dim, lowering.distance)
    world.store.drop(release.name)
    config = CollectionConfig({"image": vector, "text": vector}, metadata={METADATA: chain})
    world.store.create(release.name, config)


@dataclass(frozen=True)
class Texted:
    """Stands in for a metric with options in its text."""

    text: str

    def __str__(self) -> str:
        return self.text


class TestNames:
    @pytest.mark.parametrize("metric", METRICS.values(), ids=str)
    def test_alias_and_collection_are_named_after_metric_and_alignment(self, metric: Metric) -> None:
        ours = alignment()
        name = alias_name("emoji", metric)
        assert re.fullmatch(rf"emoji\.{metric.name}(-[a-z]+(-[a-z0-9]+)+)?", name)
        assert physical_name("emoji", metric, ours) == f"{name}.{ours.fingerprint[:8]}"

    def test_no_two_metrics_have_the_same_name(self) -> None:
        assert len({alias_name("emoji", parse(metric)) for metric in ALL}) == len(ALL)
        assert alias_name("emoji", parse("dot")) == "emoji.dot"
        assert alias_name("emoji", parse("mol")) == "emoji.mol-components-4-size-64-sway-0-1"
        assert alias_name("emoji", parse("dot+nnn")) == "emoji.dot-nnn-k-128-alpha-0-75"

    @given(st.text(min_size=1, max_size=20))
    def test_any_metric_gives_a_name_that_a_directory_can_have(self, text: str) -> None:
        name = alias_name("emoji", Texted(f"m{text}"))  # type: ignore[arg-type]
        assert checked_name(name, "alias") == name

    def test_options_of_a_metric_are_spelled_with_dashes(self) -> None:
        assert alias_name("emoji", Texted("minkowski(p=1.5)")) == "emoji.minkowski-p-1-5"  # type: ignore[arg-type]


class TestOpening:
    def test_the_only_metric_there_is_needs_no_name(self, world: World) -> None:
        (pushed,) = push(world, "euclid")
        found = opened(world)
        assert (found.name, found.metric, found.lowerings) == (pushed.name, METRICS["euclid"], pushed.lowerings)
        assert found.alignment.fingerprint == alignment().fingerprint

    def test_it_counts_no_points(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a server refuses exact counts, counting reads the id of every point."""
        push(world, "cosine")

        def count(*_: object, **__: object) -> int:
            raise AssertionError("counted")

        monkeypatch.setattr(type(world.store), "count", count)
        opened(world)

    def test_of_several_metrics_cosine_is_the_default(self, world: World) -> None:
        releases = push(world, "euclid", "cosine", "dot")
        assert opened(world).name == releases[1].name
        assert opened(world, "dot").name == releases[2].name

    def test_several_metrics_without_cosine_need_a_name(self, world: World) -> None:
        push(world, "euclid", "dot")
        world.push(world.set("s", *pairs(5)), metrics=["js"], collection="other")
        with raises(CollectionNotFoundError, "'things'", "cosine", "dot, euclid", "`modalign push`"):
            opened(world)

    @pytest.mark.slow
    def test_a_collection_that_does_not_exist(self, world: World) -> None:
        push(world, "cosine", "dot")
        world.push(world.set("s", *pairs(5)), collection="other")
        with raises(CollectionNotFoundError, "'nothing'", world.store.url, "other, things", "`modalign push`"):
            open_release(world.provenance, world.store, "nothing", "dot")

    def test_nothing_at_all(self, world: World) -> None:
        with raises(CollectionNotFoundError, "`modalign push`"):
            opened(world)

    def test_an_unknown_metric(self, world: World) -> None:
        push(world)
        with raises(MetricError, "'hamming'", "cosine"):
            opened(world, "hamming")

    def test_a_release_of_another_store_is_not_opened(self, world: World, tmp_path: Path) -> None:
        push(world)
        with (
            EdgeStore(tmp_path / "elsewhere") as world.store,
            raises(CollectionNotFoundError, "'things'", world.store.url, *world.provenance.stores.addresses()),
        ):
            opened(world)

    def test_a_release_that_is_not_live_is_not_opened(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        Calls(monkeypatch, world.store, "ready").fail(0, StoreUnavailableError("now"))
        with pytest.raises(StoreUnavailableError):
            push(world)
        with pytest.raises(CollectionNotFoundError):
            opened(world)

    def test_an_alignment_that_was_swapped_on_disk_is_refused(self, world: World) -> None:
        push(world)
        place = world.home / "alignments" / "a"
        shutil.rmtree(place)
        alignment(turn=1).save(place)
        with pytest.raises(MismatchError, match="alignment a ") as caught:
            opened(world)
        assert alignment().fingerprint[:12] in str(caught.value)
        assert alignment(turn=1).fingerprint[:12] in str(caught.value)

    def test_an_alignment_that_is_gone_is_an_error(self, world: World) -> None:
        push(world)
        shutil.rmtree(world.home / "alignments" / "a")
        with raises(AlignmentError):
            opened(world)

    def test_an_alignment_that_was_renamed_is_found_where_it_was_last_pushed_from(self, world: World) -> None:
        push(world)
        (world.home / "alignments" / "a").rename(world.home / "alignments" / "b")
        world.push(world.set("s", *pairs(5)), "b")
        assert opened(world).alignment.fingerprint == alignment().fingerprint

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("link", "edited"),
        [
            ("alignment", "0" * 64),
            ("metric", "dot"),
            ("image_encoder", {"spec": "fake-image:small", "fingerprint": "0" * 64}),
            ("text_encoder", {"spec": "fake-text:large", "fingerprint": "0" * 64}),
            ("lowering", {"distance": "Cosine", "dim": 6, "version": 2, "guarantee": "exact"}),
        ],
    )
    def test_edited_metadata_is_refused(self, world: World, link: str, edited: Any) -> None:
        (release,) = push(world)
        rewritten(world, release, lambda chain: chain.update({link: edited}))
        with raises(MismatchError, link):
            opened(world)

    @pytest.mark.slow
    @pytest.mark.parametrize("link", ["alignment", "metric", "image_encoder", "text_encoder", "lowering"])
    def test_missing_metadata_is_refused(self, world: World, link: str) -> None:
        (release,) = push(world)
        rewritten(world, release, lambda chain: chain.pop(link))
        with raises(MismatchError, link):
            opened(world)

    def test_a_collection_that_is_gone_is_an_error(self, world: World) -> None:
        (release,) = push(world)
        world.store.drop(release.name)
        with raises(CollectionNotFoundError, world.store.url, f"{release.name} is not in the store", "again: s"):
            opened(world)

    def test_a_lowering_that_changed_is_refused(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        push(world)
        original = Cosine.lower

        def newer(self: Cosine, dim: int) -> Lowering:
            return replace(original(self, dim), version=2)

        monkeypatch.setattr(Cosine, "lower", newer)
        with raises(MismatchError, "6, 1)", "('cosine', 'Cosine', 6, 2)"):
            opened(world)

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", SOME)
    def test_a_guarantee_that_changed_is_refused(
        self, world: World, metric: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The points were written for another way to search: without the vectors that are rescored, or with them."""
        push(world, metric)
        lowering = opened(world, metric).lowerings["image"]
        other = Guarantee.EXACT if lowering.guarantee is not Guarantee.EXACT else Guarantee.MEASURED
        monkeypatch.setattr(type(lowering), "guarantee", other)
        with pytest.raises(
            MismatchError,
            match=rf"was written with lowering .*, expected .*'guarantee': '{other}'.* push .* into a new collection",
        ):
            opened(world, metric)

    @pytest.mark.parametrize("metric", ["bilinear", "mlp", "dot+nnn"])
    def test_weights_that_are_gone_make_another_alignment(self, world: World, metric: str) -> None:
        push(world, metric)
        shutil.rmtree(world.home / "alignments" / "a")
        alignment(weights={}).save(world.home / "alignments" / "a")
        with raises(MismatchError, "alignment a "):
            opened(world, metric)

    @pytest.mark.parametrize(("column", "value"), [("metric", "dot"), ("dim", 7), ("distance", "Dot")])
    def test_an_edited_row_is_refused(self, world: World, column: str, value: Any) -> None:
        push(world)
        with world.provenance.database.session() as session:
            session.execute(update(ReleaseRow).values({column: value}))
        with pytest.raises(MismatchError):
            opened(world)

    @pytest.mark.parametrize("modality", MODALITIES)
    @pytest.mark.parametrize(("column", "value"), [("fingerprint", "0" * 64), ("spec", "other:model"), ("dim", 7)])
    def test_an_edited_encoder_in_sql_is_refused(
        self, world: World, modality: Modality, column: str, value: Any
    ) -> None:
        push(world)
        card = cards()[modality]
        with world.provenance.database.session() as session:
            session.execute(update(EncoderRow).where(EncoderRow.modality == modality).values({column: value}))
        with pytest.raises(MismatchError, match=f"alignment a .*{modality}") as caught:
            opened(world)
        assert str(replace(card, **{column: value})) in str(caught.value)
        assert f"its card names {card}; restore the one that was changed" in str(caught.value)

    def test_an_encoder_that_no_release_uses_may_be_anything(self, world: World) -> None:
        (release,) = push(world)
        with world.provenance.database.session() as session:
            session.add(EncoderRow(modality="text", fingerprint="0" * 64, spec=cards()["text"].spec, dim=99))
        assert opened(world).name == release.name


class TestRegistry:
    """What the registry of the embedded store says of a collection is checked too."""

    def edited(self, directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
        """Push into a store, close it, and let `change` edit the vector of the images in its registry."""
        with EdgeStore(directory / "qdrant") as store:
            world = World(directory, store)
            world.alignment()
            with world.provenance:
                (release,) = push(world)
        path = directory / "qdrant" / "registry.json"
        registry = json.loads(path.read_text(encoding="utf-8"))
        change(registry["collections"][release.name]["vectors"]["image"])
        path.write_text(json.dumps(registry), encoding="utf-8")

    @pytest.mark.parametrize(
        ("edit", "found"),
        [
            ({"distance": "Euclid"}, r"\('Euclid', 6\)"),
            ({"distance": "Dot"}, r"\('Dot', 6\)"),
            ({"dim": 7}, r"\('Cosine', 7\)"),
        ],
    )
    def test_an_edited_vector_is_refused(self, tmp_path: Path, edit: dict[str, Any], found: str) -> None:
        self.edited(tmp_path, lambda vector: vector.update(edit))
        with EdgeStore(tmp_path / "qdrant") as store:
            world = World(tmp_path, store)
            with world.provenance:
                message = rf"holds image vectors of {found}, expected \('Cosine', 6\); push .* into a new collection"
                with pytest.raises(MismatchError, match=message):
                    opened(world)
                with pytest.raises(MismatchError, match=message):
                    push(world)

    def test_an_untouched_one_opens(self, tmp_path: Path) -> None:
        self.edited(tmp_path, lambda vector: None)
        with EdgeStore(tmp_path / "qdrant") as store:
            world = World(tmp_path, store)
            with world.provenance:
                assert opened(world).alignment.fingerprint == alignment().fingerprint


@pytest.mark.parametrize("world", [*KINDS, *LIVE], indirect=True)
class TestLive:
    def test_a_second_alignment_is_a_shadow_beside_the_first(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (first,) = push(world)
        world.alignment("b", turn=1)
        switches = Calls(monkeypatch, world.store, "set_aliases")
        (second,) = world.push(world.set("s", *pairs(5)), "b").releases
        assert first.name != second.name
        assert len(switches) == 0
        assert world.store.aliases() == {f"{COLLECTION}.cosine": first.name}
        assert world.states() == {first.name: ("live", 10), second.name: ("ready", 10)}
        assert opened(world).name == first.name
        for which in ("ready", second.name):
            shadow = open_release(world.provenance, world.store, COLLECTION, which=which)
            assert shadow.alignment.fingerprint == alignment(turn=1).fingerprint

    @pytest.mark.slow
    def test_the_newest_shadow_is_the_ready_one(self, world: World) -> None:
        push(world)
        names = []
        for turn in (1, 2):
            world.alignment(f"turn-{turn}", turn=turn)
            names += [r.name for r in world.push(world.set("s", *pairs(5)), f"turn-{turn}").releases]
        assert open_release(world.provenance, world.store, COLLECTION, which="ready").name == names[1]
        assert open_release(world.provenance, world.store, COLLECTION, which=names[0]).name == names[0]

    def test_a_shadow_that_is_not_there(self, world: World) -> None:
        push(world)
        with raises(CollectionNotFoundError, "ready", "'things'"):
            open_release(world.provenance, world.store, COLLECTION, which="ready")
        with raises(CollectionNotFoundError, "nothing"):
            open_release(world.provenance, world.store, COLLECTION, which="nothing")

    @pytest.mark.slow
    def test_an_alias_that_vanished_goes_to_nobody_else(self, world: World) -> None:
        """A shadow that nobody audited does not go live because someone deleted a collection."""
        (first,) = push(world)
        world.store.drop(first.name)
        world.alignment("b", turn=1)
        (second,) = world.push(world.set("s", *pairs(5)), "b").releases
        assert world.states() == {first.name: ("live", 10), second.name: ("ready", 10)}
        assert world.store.aliases() == {}
        push(world)
        assert world.store.aliases() == {f"{COLLECTION}.cosine": first.name}

    @pytest.mark.slow
    def test_other_metrics_and_collections_stay_live(self, world: World) -> None:
        push(world, "cosine", "dot")
        other = world.push(world.set("s", *pairs(5)), collection="other").releases[0]
        world.alignment("b", turn=1)
        (shadow,) = world.push(world.set("s", *pairs(5)), "b", metrics=["cosine"]).releases
        live = {(row.collection, row.metric) for row in world.provenance.releases.find(state="live")}
        assert live == {(COLLECTION, "cosine"), (COLLECTION, "dot"), ("other", "cosine")}
        assert world.store.aliases()["other.cosine"] == other.name
        assert [row.physical_name for row in world.provenance.releases.find(state="ready")] == [shadow.name]

    @pytest.mark.slow
    def test_all_aliases_are_switched_at_one_moment(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        switches = Calls(monkeypatch, world.store, "set_aliases")
        releases = push(world, *ALL)
        assert [arguments for (arguments,) in switches.arguments] == [
            {alias_name(COLLECTION, parse(metric)): r.name for metric, r in zip(ALL, releases, strict=True)}
        ]

    @pytest.mark.slow
    def test_a_shadow_that_is_not_verified_is_not_ready(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        (first,) = push(world)
        world.alignment("b", turn=1)
        embedding_set, name = world.set("s", *pairs(5)), physical_name(COLLECTION, parse("cosine"), alignment(turn=1))
        with monkeypatch.context() as patched:
            Calls(patched, world.store, "ready").fail(0, StoreUnavailableError("now"))
            with pytest.raises(StoreUnavailableError):
                world.push(embedding_set, "b")
        assert world.states() == {first.name: ("live", 10), name: ("building", 0)}
        foreign = Points("image", ["00000000-0000-0000-0000-000000000001"], np.ones((1, 6), np.float32), [{}])
        world.store.upsert(name, foreign)
        with pytest.raises(MismatchError):
            world.push(embedding_set, "b")
        assert world.states() == {first.name: ("live", 10), name: ("building", 0)}

    def test_a_crash_between_alias_and_sql_is_mended(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            Calls(patched, world.store, "set_aliases").fail(0, StoreUnavailableError("now"), after=True)
            with pytest.raises(StoreUnavailableError):
                push(world)
        (first,) = push(world)
        assert world.states() == {first.name: ("live", 10)}
        assert world.store.aliases() == {f"{COLLECTION}.cosine": first.name}

    def test_making_live_again_changes_nothing(self, world: World) -> None:
        releases = push(world)
        assert make_live(world.provenance, world.store, releases) is False

    @pytest.mark.slow
    def test_an_alias_that_was_moved_is_moved_back(self, world: World) -> None:
        releases = push(world)
        other = world.push(world.set("s", *pairs(5)), collection="other").releases[0]
        world.store.set_aliases({f"{COLLECTION}.cosine": other.name})
        assert make_live(world.provenance, world.store, releases) is True
        assert world.store.aliases()[f"{COLLECTION}.cosine"] == releases[0].name
