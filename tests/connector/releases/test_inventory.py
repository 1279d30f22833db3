"""What a home holds: every set and alignment on disk or in SQL, with what is wrong with it and who uses it."""

import shutil
from dataclasses import replace

from alignment.sets.cards import CARD
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetWriter
from connector.releases.inventory import HeldAlignment, HeldSet, SetGroups, held_alignments, held_sets
from tests.support.world import COLLECTION, World, cards, pairs, several


def sets(world: World) -> dict[str, HeldSet]:
    return {held.name: held for held in held_sets(world.provenance, world.home / "sets")}


def alignments(world: World) -> dict[str, HeldAlignment]:
    return {held.name: held for held in held_alignments(world.provenance, world.home / "alignments")}


class TestSets:
    def test_releases_that_hold_a_set_and_how_much_of_it(self, world: World) -> None:
        world.push(world.set("s", *pairs(6)), metrics=["cosine", "dot"])
        world.push(world.set("more", *pairs(4, seed=3, prefix="more-")))
        world.set("s", *pairs(9))  # three pairs are not pushed yet
        held = sets(world)["s"]
        assert (held.counts, held.fault, held.collections) == ({"image": 9, "text": 9}, "", [COLLECTION])
        assert [(release.metric, points) for release, points in held.releases] == [("cosine", 12), ("dot", 12)]
        assert [points for _, points in sets(world)["more"].releases] == [8, 8]  # a push reaches all of a collection

    def test_one_that_was_never_pushed_or_recorded(self, world: World) -> None:
        world.set("s", *pairs(3))
        held = sets(world)["s"]
        assert (held.counts, held.fault, held.updated_at, held.releases) == ({"image": 3, "text": 3}, "", None, [])

    def test_one_that_was_not_written_to_the_end_has_the_rows_that_are_there(self, world: World) -> None:
        image, text = pairs(5)
        with SetWriter(world.home / "sets" / "half", corpus="c", encoders=cards()) as writer:
            writer.append(image)
            writer.append(text.take([0, 1]))
        held = sets(world)["half"]
        assert held.counts == {"image": 5, "text": 2}
        assert "modalign encode" in held.fault

    def test_one_that_is_damaged_keeps_no_other_from_being_listed(self, world: World) -> None:
        world.push(world.set("s", *pairs(3)))
        world.set("other", *pairs(3))
        (world.home / "sets" / "s" / CARD).write_text("{")
        held = sets(world)
        assert held["other"].fault == ""
        assert (held["s"].card, held["s"].counts) == (None, {"image": 3, "text": 3})  # as SQL has it
        assert "damaged" in held["s"].fault
        assert held["s"].collections == [COLLECTION]

    def test_one_that_is_not_on_this_disk(self, world: World) -> None:
        world.push(world.set("s", *pairs(3)))
        shutil.rmtree(world.home / "sets" / "s")
        held = sets(world)["s"]
        assert (held.card, held.counts) == (None, {"image": 3, "text": 3})
        assert str(world.home / "sets" / "s") in held.fault

    def test_releases_that_were_dropped_hold_nothing(self, world: World) -> None:
        (release,) = world.push(world.set("s", *pairs(3))).releases
        world.provenance.releases.begin_drop(release.row.id)
        world.provenance.releases.finish_drop(release.row.id)
        assert sets(world)["s"].releases == []


def test_groups_and_captions_of_a_set(world: World) -> None:
    image, text = several(6)  # one to three captions an image
    alone = image.take([5])
    texts = text.take([row for row, group in enumerate(text.groups) if group != alone.groups[0]])
    embedded: EmbeddingSet = world.set("s", image, texts)
    assert SetGroups.of(embedded) == SetGroups(6, 5, {1: 2, 2: 2, 3: 1, 0: 1})


def test_captions_are_those_of_an_image_alone_whatever_its_group_has(world: World) -> None:
    image, text = several(6)
    of_shops = world.set(
        "s", replace(image, groups=["a shop"] * 6), replace(text, groups=["a shop"] * len(text.groups))
    )
    assert SetGroups.of(of_shops) == SetGroups(1, 1, {1: 2, 2: 2, 3: 2})


class TestAlignments:
    def test_releases_that_were_written_with_one(self, world: World) -> None:
        world.alignment("spare", turn=3)
        world.push(world.set("s", *pairs(4)), metrics=["cosine", "dot"])
        held = alignments(world)
        assert [release.metric for release in held["a"].releases] == ["cosine", "dot"]
        assert {release.collection for release in held["a"].releases} == {COLLECTION}
        assert held["spare"].releases == []
        assert held["spare"].created_at is None  # nothing was pushed with it
        assert held["spare"].held is not None
        assert held["a"].fingerprint != held["spare"].fingerprint

    def test_one_that_is_gone_or_damaged_and_the_releases_that_need_it(self, world: World) -> None:
        world.push(world.set("s", *pairs(4)))
        shutil.move(world.home / "alignments" / "a", world.home / "elsewhere")
        gone = alignments(world)["a"]
        assert gone.card is None
        assert [release.collection for release in gone.releases] == [COLLECTION]
        assert str(world.home / "alignments" / "a") in gone.fault
        world.alignment("b", turn=1)
        (world.home / "alignments" / "b" / CARD).write_text('{"format": 1}')
        damaged = alignments(world)["b"]
        assert (damaged.card, damaged.releases) == (None, [])
        assert "damaged" in damaged.fault

    def test_another_one_of_the_same_name_is_told_from_the_one_that_serves(self, world: World) -> None:
        (release,) = world.push(world.set("s", *pairs(4))).releases
        shutil.rmtree(world.home / "alignments" / "a")
        world.alignment("a", turn=2)
        present, recorded = sorted(
            held_alignments(world.provenance, world.home / "alignments"), key=lambda held: bool(held.fault)
        )
        assert (present.name, recorded.name) == ("a", "a")
        assert (present.releases, [row.id for row in recorded.releases]) == ([], [release.row.id])
        assert recorded.fingerprint == release.alignment.fingerprint
