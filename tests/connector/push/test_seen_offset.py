"""The life of a release whose alignment lowers seen items: pushed again, promoted, damaged, deleted from, added to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.metrics import parse
from alignment.modality import MODALITIES, Modality
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from connector.errors import MismatchError
from connector.push.delete import Deletion
from connector.releases import verify as verification
from connector.releases.points import point_id
from connector.releases.promotion import Lifecycle, PromotionOverride
from connector.releases.reconcile_releases import repair_releases
from connector.releases.release import Release, open_release
from connector.search.retriever import Retriever, SearchHit
from connector.stores.points import Points
from tests.support.errors import raises
from tests.support.world import COLLECTION, LIVE, World, cards, embedded, latent, opened_world, pairs, rows, stored

N = 20
NO_HOLD_OUT = HoldOut(0.01, 0)
OFFSETS: dict[Modality, float] = {"image": 0.4, "text": 0.2}
PARTS = pairs(N, noise=0.2)
SEEN = [part.take(list(range(N // 2))) for part in PARTS]
# One that Qdrant orders, and one that is rescored.
METRICS = [str(parse("cosine")), str(parse("chi2"))]


@pytest.fixture(params=["edge", *LIVE])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with opened_world(request.param, tmp_path, request) as opened:
        opened.alignment("a", hold_out=NO_HOLD_OUT, seen=SEEN, offsets=OFFSETS)
        yield opened


def split(world: World, release: Release, key: str, modality: Modality = "image") -> str:
    return str(stored(world.store, release.name, modality)[point_id(modality, key)][1]["split"])


def hits(world: World, metric: str = "cosine") -> list[SearchHit]:
    """What the text of item 0 finds."""
    retriever = Retriever.open(world.provenance, world.store, COLLECTION, metric)
    (result,) = retriever.search_embeddings("text", PARTS[1].vectors[:1], N, encoder=cards()["text"].fingerprint)
    return list(result)


def of_key(world: World, key: str, metric: str = "cosine") -> SearchHit:
    return next(hit for hit in hits(world, metric) if hit.key == key)


def verify(world: World, release: Release) -> None:
    verification.verify(release, world.store, world.provenance, seed=0)


def test_the_same_push_again_writes_nothing_and_the_release_opens_with_its_chain(world: World) -> None:
    embedding_set = world.set("s", *PARTS)
    assert world.push(embedding_set, metrics=METRICS).counts == {"written": 4 * N}
    before = world.snapshot()
    assert world.push(embedding_set, metrics=METRICS).counts == {"unchanged": 4 * N}
    assert world.snapshot() == before
    for metric in METRICS:
        release = open_release(world.provenance, world.store, COLLECTION, metric)
        lowering = release.lowerings["text"]
        recorded = world.store.metadata(release.name)["modalign"]["lowering"]
        assert (recorded["distance"], recorded["dim"]) == (release.row.distance, release.row.dim)
        assert (lowering.distance, lowering.dim) == (release.row.distance, release.row.dim)
        verify(world, release)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_an_item_that_is_encoded_anew_with_another_content_is_new(world: World, metric: str) -> None:
    (release,) = world.push(world.set("s", *PARTS), metrics=[metric]).releases
    before = of_key(world, "3", metric)
    image, text = PARTS
    vectors = np.concatenate([image.vectors[:3], embedded("image", latent(1, seed=33)), image.vectors[4:]])
    world.push(world.set("s", rows("image", vectors), text), metrics=[metric])
    after = of_key(world, "3", metric)
    assert (split(world, release, "3"), split(world, release, "3", "text")) == ("new", "fitted")
    assert (before.seen_offset, after.seen_offset) == (OFFSETS["image"], 0.0)
    world.push(world.set("s", *PARTS), metrics=[metric])  # and with its old content, it was seen
    assert of_key(world, "3", metric).seen_offset == OFFSETS["image"]
    verify(world, release)


def test_an_item_that_is_deleted_and_added_anew_is_seen(world: World) -> None:
    (release,) = world.push(world.set("s", *PARTS)).releases
    with world.provenance.runs.start("delete", {}) as run:
        Deletion(COLLECTION, world.store, world.provenance, run).delete(keys=["3"])
    assert "3" not in {hit.key for hit in hits(world)}
    alone = [part.take([3]) for part in PARTS]
    world.push(world.set("again", *alone))
    assert split(world, release, "3") == "fitted"
    assert of_key(world, "3").seen_offset == OFFSETS["image"]


def test_items_that_come_after_the_fit_are_new_and_rank_before_seen_ones_that_are_alike(world: World) -> None:
    (release,) = world.push(world.set("s", *SEEN)).releases
    later = [rows(part.modality, part.vectors + 1e-3, keys=[f"later {key}" for key in part.keys]) for part in SEEN]
    world.push(world.set("later", *later))
    assert split(world, release, "later 0") == "new"
    found = hits(world)
    assert found[0].key == "later 0"
    seen = of_key(world, "0")
    assert seen.score == pytest.approx(found[0].score, abs=1e-3)
    assert seen.score - seen.seen_offset < found[0].score
    ranked_by = [hit.score - hit.seen_offset for hit in found]
    assert ranked_by == sorted(ranked_by, reverse=True)


def test_a_new_alignment_with_an_offset_is_a_shadow_that_is_promoted_and_rolled_back(world: World) -> None:
    world.alignment("plain", hold_out=NO_HOLD_OUT, seen=SEEN)
    embedding_set = world.set("s", *PARTS)
    (plain,) = world.push(embedding_set, "plain").releases
    before = hits(world)
    (lowered,) = world.push(embedding_set, "a").releases
    assert plain.name != lowered.name
    assert world.states() == {plain.name: ("live", 2 * N), lowered.name: ("ready", 2 * N)}
    lifecycle = Lifecycle(world.provenance, world.store, COLLECTION)
    with world.provenance.runs.start("promote", {}) as run:
        lifecycle.promote(run.id, forced=PromotionOverride("somebody", "a test"))
    assert {hit.seen_offset for hit in before} == {0.0}
    assert {hit.seen_offset for hit in hits(world)} == {0.0, OFFSETS["image"]}
    assert {hit.key: pytest.approx(hit.score, abs=1e-5) for hit in before} == {h.key: h.score for h in hits(world)}
    with world.provenance.runs.start("rollback", {}) as run:
        lifecycle.rollback(run.id)
    assert hits(world) == before


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_a_point_that_says_otherwise_whether_it_was_seen_is_found_and_repaired(world: World, metric: str) -> None:
    (release,) = world.push(world.set("s", *PARTS), metrics=[metric]).releases
    verify(world, release)
    before = world.snapshot()
    id_ = point_id("image", "3")
    vector, payload = stored(world.store, release.name, "image")[id_]
    assert vector is not None
    wrong = np.concatenate([vector.values[:-16], np.zeros(16, np.float32)])
    broken: list[tuple[Any, dict[str, Any]]] = [(vector.values, {**payload, "split": "new"}), (wrong, payload)]
    for values, says in broken:
        world.store.upsert(release.name, Points("image", [id_], values[None], [says]))
        with raises(MismatchError, release.name):
            verify(world, release)
        with world.provenance.runs.start("repair", {}) as run:
            repair_releases(world.provenance, world.store, run, COLLECTION, full=True)
        assert world.snapshot()["collections"] == before["collections"]


def strangers() -> list[Rows]:
    keys = [f"strange {number}" for number in range(N)]
    return [rows(m, embedded(m, latent(N, seed=77)), keys=keys) for m in MODALITIES]


def test_an_offset_without_any_seen_item_is_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    (release,) = world.push(world.set("s", *strangers())).releases
    lines = [message for message in caplog.messages if "offset" in message]
    assert len(lines) == 2
    for line, modality in zip(lines, MODALITIES, strict=True):
        assert all(word in line for word in (release.name, modality, f"{OFFSETS[modality]:g}"))
    caplog.clear()
    world.push(world.set("others", *[part.take([4]) for part in SEEN]))
    assert not [message for message in caplog.messages if "offset" in message]


@pytest.mark.slow
def test_a_modality_without_items_or_without_an_offset_is_not_warned_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.alignment("images", hold_out=NO_HOLD_OUT, seen=SEEN, offsets={"image": 0.4, "text": 0.0})
    images, texts = strangers()
    world.push(world.set("s", SEEN[0], images, texts), "images", collection="one")
    world.push(world.set("t", SEEN[0], images), "a", collection="two")
    assert not [message for message in caplog.messages if "offset" in message]
