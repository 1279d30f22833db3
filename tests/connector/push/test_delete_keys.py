"""Keys of a deletion are exact: one that could mean two items is refused."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from alignment.modality import MODALITIES, Modality
from connector.errors import SettingsError
from connector.push.delete import Deletion
from tests.support.errors import raises
from tests.support.world import COLLECTION, LIVE, World, embedded, latent, opened_world, rows


@pytest.fixture(params=["edge", *LIVE])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with opened_world(request.param, tmp_path, monkeypatch, request) as world:
        world.alignment()
        yield world


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
    assert all(word in line for word in ("2 texts", "a#0", "group"))
    caplog.clear()
    assert delete(world, "b", ["image"]) == 1  # whoever names the modality knows
    assert delete(world, "a#0") == 1
    assert caplog.messages == []


def test_an_image_and_a_text_of_one_item_go_together(world: World) -> None:
    given(world, ["a", "b"], ["a", "b"], [["1", "2"], ["1", "2"]])
    assert delete(world, "a") == 2
