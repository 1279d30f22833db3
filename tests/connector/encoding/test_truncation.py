"""Captions that are longer than the text encoder reads are counted: in the run, and in the set."""

from pathlib import Path

import pytest

from alignment.sets.cards import SetCard
from tests.support.encoding import Encoders, encode_with
from tests.support.fakes import FakeImageEncoder, FakeTextEncoder, fake_pairs, write_manifest

SHORT, LONG = "a dog", "a dog that runs along the beach at dusk"


class Shortsighted(FakeTextEncoder):
    """Reads five words."""

    def truncates(self, text: str) -> bool:
        return len(text.split()) > 5


def manifest(directory: Path, *captions: str) -> Path:
    rows = [{"key": str(number), "caption": caption} for number, caption in enumerate(captions)]
    return write_manifest(directory / "m.jsonl", [], *rows)


def test_the_run_counts_those_it_took_and_the_set_all_it_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoders: Encoders = {"text": Shortsighted()}
    captions = [SHORT, LONG, f"{LONG} again"]
    assert encode_with(manifest(tmp_path, *captions), tmp_path / "s", encoders).counts["truncated"] == 2
    assert any("2" in text and "fake-text:small" in text for text in caplog.messages)
    assert SetCard.read(tmp_path / "s").truncated == 2
    caplog.clear()
    assert encode_with(manifest(tmp_path, *captions), tmp_path / "s", encoders).counts["truncated"] == 0
    assert SetCard.read(tmp_path / "s").truncated == 2
    assert caplog.messages == []
    captions = [SHORT, SHORT, f"{LONG} again", f"{LONG} once more"]
    assert encode_with(manifest(tmp_path, *captions), tmp_path / "s", encoders).counts["truncated"] == 1
    assert SetCard.read(tmp_path / "s").truncated == 2


def test_an_encoder_that_does_not_say_leaves_the_number_unknown(tmp_path: Path) -> None:
    run = encode_with(manifest(tmp_path, SHORT, LONG), tmp_path / "s", {"text": FakeTextEncoder()})
    assert (run.counts["truncated"], SetCard.read(tmp_path / "s").truncated) == (0, None)


def test_images_that_are_added_later_leave_the_number_as_it_is(tmp_path: Path) -> None:
    encode_with(manifest(tmp_path, SHORT, LONG), tmp_path / "s", {"text": Shortsighted()})
    encode_with(
        write_manifest(tmp_path / "i.jsonl", fake_pairs(tmp_path, 3)), tmp_path / "s", {"image": FakeImageEncoder()}
    )
    assert SetCard.read(tmp_path / "s").truncated == 1
