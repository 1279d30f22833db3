"""Captions on images: what a hit carries, how a push that says otherwise changes it, and sets of earlier versions."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.modality import Modality
from alignment.sets.embedding_set import EmbeddingSet
from connector.push import batches as pushing
from connector.releases import reconcile as reconciling
from connector.releases import verify as verification
from connector.releases.promotion import Lifecycle, PromotionOverride
from connector.releases.reconcile import reconcile
from connector.releases.release import Release
from connector.releases.verify import verify
from tests.support.world import KINDS, World, embedded, latent, opened, opened_world, rows, stored

N = 10


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for module in (pushing, reconciling, verification):
        monkeypatch.setattr(module, "BATCH_POINTS", 4)
    with opened_world(request.param, tmp_path) as made:
        made.alignment()
        yield made


def titled(world: World, *, on_images: bool = True, last: str = "number 9") -> EmbeddingSet:
    """A set with a caption for each image, the `last` of which may be another one."""
    captions = [*(f"number {number}" for number in range(N - 1)), last]
    images = [{"image": f"{n}.png", "year": n} | ({"caption": c} if on_images else {}) for n, c in enumerate(captions)]
    texts = [{"caption": caption, "year": number} for number, caption in enumerate(captions)]
    points = latent(N)
    return world.set(
        "s",
        rows("image", embedded("image", points), payloads=images, keys=[f"k{n}" for n in range(N)]),
        rows("text", embedded("text", points), payloads=texts, keys=[f"k{n}#0" for n in range(N)]),
    )


def captions(world: World, release: Release, modality: Modality = "image") -> list[str | None]:
    found = sorted(payload["key"] for _, payload in stored(world.store, release.name, modality).values())
    by_key = {payload["key"]: payload for _, payload in stored(world.store, release.name, modality).values()}
    return [by_key[key].get("caption") for key in found if by_key[key]["modality"] == modality]


ALL_OF_THEM = [f"number {number}" for number in range(N)]


def check_consistent(world: World) -> None:
    for release in (opened(world, "cosine"), opened(world, "chi2")):
        report = reconcile(release, world.store, world.provenance, seed=0, full=True)
        assert report.consistent
        checked = verify(release, world.store, world.provenance, seed=0)
        assert (checked.points > 0, checked.outdated) == (True, {})


def test_both_points_of_an_item_carry_its_caption_and_its_other_columns(world: World) -> None:
    (release,) = world.push(titled(world)).releases
    assert captions(world, release) == captions(world, release, "text") == ALL_OF_THEM
    years = [payload["year"] for _, payload in stored(world.store, release.name, "image").values()]
    assert sorted(years) == sorted([*range(N), *range(N)])


@pytest.mark.slow
def test_a_release_leaves_captions_out_of_images_and_keeps_doing_so(world: World) -> None:
    (release,) = world.push(titled(world), caption_payload=False).releases
    assert captions(world, release) == [None] * N
    assert captions(world, release, "text") == ALL_OF_THEM
    again = world.push(titled(world))
    assert again.counts == {"unchanged": 2 * N}
    (shadow,) = world.push(titled(world), world.alignment("b", turn=2)).releases  # it inherits the layout
    assert captions(world, shadow) == [None] * N


@pytest.mark.slow
def test_a_push_that_says_otherwise_writes_the_images_again_once(world: World) -> None:
    embedding_set = titled(world)
    world.push(embedding_set, metrics=["cosine", "chi2"])
    for wanted in (False, True):
        changed = world.push(embedding_set, metrics=["cosine"], caption_payload=wanted)
        assert changed.counts == {"written": N, "unchanged": 3 * N}
        assert captions(world, opened(world, "cosine")) == (ALL_OF_THEM if wanted else [None] * N)
        assert captions(world, opened(world, "chi2")) == ALL_OF_THEM
        check_consistent(world)
        assert world.push(embedding_set, metrics=["cosine"]).counts == {"unchanged": 4 * N}


@pytest.mark.slow
def test_a_release_of_an_earlier_version_gets_captions_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    world.push(titled(world, on_images=False), metrics=["cosine", "chi2"])
    for name in ("cosine", "chi2"):  # as before this setting was there
        row = opened(world, name).row
        settings = {name: value for name, value in row.settings.items() if name != "caption_payload"}
        world.provenance.releases.change(row, settings=settings)
    assert "run the command that made the set again" in caplog.text
    caplog.clear()
    written = world.push(titled(world), metrics=["cosine", "chi2"])
    assert written.counts == {"written": 2 * N, "unchanged": 2 * N}
    assert captions(world, opened(world, "chi2")) == ALL_OF_THEM
    check_consistent(world)
    assert not caplog.records
    assert world.push(titled(world), metrics=["cosine", "chi2"]).counts == {"unchanged": 4 * N}


def test_a_release_of_an_earlier_version_may_stay_without_captions(world: World) -> None:
    world.push(titled(world, on_images=False))
    assert world.push(titled(world, on_images=False), caption_payload=False).counts == {"unchanged": 2 * N}
    assert world.push(titled(world)).counts == {"unchanged": 2 * N}


def test_another_caption_reaches_both_points(world: World) -> None:
    world.push(titled(world))
    (release,) = world.push(titled(world, last="another")).releases
    expected = [*ALL_OF_THEM[:-1], "another"]
    assert captions(world, release) == captions(world, release, "text") == expected


@pytest.mark.slow
def test_a_shadow_that_leaves_captions_out_can_be_promoted_and_rolled_back(world: World) -> None:
    embedding_set = titled(world)
    (live,) = world.push(embedding_set).releases
    (shadow,) = world.push(embedding_set, world.alignment("b", turn=2), caption_payload=False).releases
    lifecycle = Lifecycle(world.provenance, world.store, live.row.collection)
    forced = PromotionOverride("tests", "no audit here")
    with world.provenance.runs.start("promote", {}) as run:
        (switched,) = lifecycle.promote(run.id, forced=forced)
    assert (switched.row.physical_name, switched.lacks) == (shadow.name, [])
    with world.provenance.runs.start("rollback", {}) as run:
        (switched,) = lifecycle.rollback(run.id)
    assert (switched.row.physical_name, switched.lacks) == (live.name, [])
