"""Keys of a deletion are exact: one that could mean two items is refused."""

from collections.abc import Sequence
from typing import Any

import pytest

from alignment.modality import MODALITIES, Modality
from connector.errors import SettingsError
from connector.push.delete import Deletion
from tests.support.errors import raises
from tests.support.world import COLLECTION, LIVE, World, embedded, latent, rows, world_over

world = world_over("edge", *LIVE)


def given(world: World, images: Sequence[str], texts: Sequence[str], groups: Sequence[Sequence[str]]) -> None:
    named: dict[Modality, Sequence[str]] = {"image": images, "text": texts}
    parts = [
        rows(m, embedded(m, latent(len(named[m]))), keys=named[m], groups=of)
        for m, of in zip(MODALITIES, groups, strict=True)
    ]
    world.push(world.set("s", *parts))


def delete(world: World, key: str, modalities: Sequence[Modality] = MODALITIES) -> int:
    with world.provenance.runs.start("delete", {}) as run:
        Deletion(COLLECTION, world.store, world.provenance, run).delete(keys=[key], modalities=modalities)
        return run.counts["deleted"]


@pytest.mark.parametrize("groups", [["g", "g"], ["g1", "g2"]])
def test_an_image_that_is_named_as_a_caption_of_another_item(world: World, groups: list[str]) -> None:
    given(world, ["a", "a#0"], ["a#0", "a#0#0"], [groups, groups])
    with raises(SettingsError, "a#0", "--modality"):
        delete(world, "a#0")
    assert delete(world, "a#0", ["text"]) == 1
    assert delete(world, "a#0", ["image"]) == 1
    assert delete(world, "a") == 1


def test_an_image_and_a_text_of_two_groups(world: World) -> None:
    given(world, ["a", "b"], ["a", "c"], [["1", "2"], ["3", "4"]])
    with raises(SettingsError, "a", "--modality"):
        delete(world, "a")
    assert delete(world, "b") == 1


def test_keys_that_name_nothing_are_named_and_counted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    given(world, ["a", "b"], ["a#0", "b#0"], [["1", "2"], ["1", "2"]])
    with world.provenance.runs.start("delete", {}) as run:
        deletion = Deletion(COLLECTION, world.store, world.provenance, run)
        deletion.delete(keys=["A", "a#0", "a#1", "A"])
        assert (run.counts["deleted"], run.counts["unknown"]) == (1, 2)
        (line,) = caplog.messages
        assert all(word in line for word in ("A", "a#1", COLLECTION))
        caplog.clear()
        deletion.delete(keys=["b#0", "b"])
        assert caplog.messages == []


def test_captions_that_stay_when_their_image_goes_are_named_and_counted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    given(world, ["a", "b", "c"], ["a#0", "a#1", "b#0", "c#0"], [["1", "2", "3"], ["1", "1", "2", "3"]])
    assert delete(world, "a") == 1
    (line,) = caplog.messages
    assert all(word in line for word in ("2 texts", "a#0, a#1", "--group"))
    caplog.clear()
    assert delete(world, "b", ["image"]) == 1  # whoever names the modality knows
    assert delete(world, "a#0") == 1
    assert caplog.messages == []


SIX = [f"a#{number}" for number in range(6)]
BOTH = ["a#0", "a#1", "b#0", "b#1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "texts", "kept"),
    [
        (["a", "b"], ["b#0", "b#1"], []),
        (["a", "b"], BOTH, [("2 texts", "a#0, a#1.", True)]),
        (["a", "a#1"], ["a#1#0", "a#0"], [("1 text", "a#0.", True)]),
        (["a", "b"], [*SIX, "b#0"], [("6 texts", "a#0, a#1, a#2, a#3, a#4, ...", True)]),
        (["a", "b"], ["b", "b#0"], []),
        (["a", "b"], ["title", "b#0"], [("1 text", "title.", False)]),
        (["a", "b"], ["c#0", "b#0"], [("1 text", "c#0.", False)]),
    ],
)
def test_texts_of_other_images_of_a_group_are_not_named(
    world: World, caplog: pytest.LogCaptureFixture, images: list[str], texts: list[str], kept: list[Any]
) -> None:
    given(world, images, texts, [["1"] * len(images), ["1"] * len(texts)])
    assert delete(world, "a") == 1
    for line, (count, keys, are_of_the_image) in zip(caplog.messages, kept, strict=True):
        assert (count in line, keys in line, "--group" in line) == (True, True, are_of_the_image)


def test_an_image_and_a_text_of_one_item_go_together(world: World) -> None:
    given(world, ["a", "b"], ["a", "b"], [["1", "2"], ["1", "2"]])
    assert delete(world, "a") == 2
