"""The commands `sets` and `alignments`: list what there is, show one."""

from pathlib import Path

import pytest

from alignment.model.alignment import Alignment
from alignment.sets.cards import CARD
from alignment.sets.embedding_set import EmbeddingSet
from tests.support.cli import SPECS, N, done, modalign
from tests.support.fakes import FakeTextEncoder, fake_pairs, write_manifest


def test_sets_are_listed_with_their_encoders_and_collections(unbroken: Path) -> None:
    (row,) = done("sets", "--json", "--home", unbroken).document["sets"]
    card = EmbeddingSet.open(unbroken / "sets" / "pairs").card
    assert (row["set"], row["counts"], row["fault"]) == ("pairs", {"image": N, "text": N}, None)
    assert {m: encoder["spec"] for m, encoder in row["encoders"].items()} == {
        "image": "fake-image:small",
        "text": "fake-text:small",
    }
    assert row["fingerprint"] == card.fingerprint
    (release,) = row["releases"]
    assert (release["collection"], release["state"]) == ("things", "live")
    assert (release["points_of_set"], release["lag"]) == (2 * N, 0)
    out = done("sets", "--home", unbroken).out
    assert all(word in out for word in ("pairs", str(N), "fake-image:small", "fake-text:small", "things"))


def test_one_set_with_groups_captions_and_what_is_not_pushed(home: Path, tmp_path: Path) -> None:
    found = fake_pairs(tmp_path, 3, seed=5)
    done("encode", write_manifest(tmp_path / "m.jsonl", found), "--set", "pairs", *SPECS, "--home", home)
    document = done("sets", "pairs", "--json", "--home", home).document
    assert document["groups"] == {"count": N + 3, "with_image_and_text": N + 3, "captions": {"1": N + 3}}
    assert [release["lag"] for release in document["releases"]] == [6]
    shown = done("sets", "pairs", "--home", home).out
    assert f"{N + 3} images with 1 caption" in shown
    assert shown.splitlines()[-2].split()[-2:] == [str(2 * N), "6"]


def test_a_set_says_how_many_of_its_captions_are_longer_than_its_encoder_reads(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTextEncoder, "truncates", lambda self, text: len(text) > 20)
    rows = [{"key": "a", "caption": "red"}, {"key": "b", "caption": "lime and a very long end"}]
    manifest = write_manifest(tmp_path / "m.jsonl", [], *rows)
    arguments = ("encode", manifest, "--set", "long", *SPECS[2:], "--home", home)
    ended = done(*arguments, "--json")
    assert ended.document["counts"]["truncated"] == 1
    assert "1 caption is longer" in ended.err
    assert done("status", "-n", 1, "--json", "--home", home).document["runs"][0]["counts"]["truncated"] == 1
    assert done("sets", "long", "--json", "--home", home).document["truncated"] == 1
    assert "1 caption longer" in done("sets", "long", "--home", home).out
    assert "truncated" not in done(*arguments, "--json").document["counts"]
    assert done("sets", "long", "--json", "--home", home).document["truncated"] == 1


def test_alignments_are_listed_with_what_they_serve(unbroken: Path) -> None:
    (row,) = done("alignments", "--json", "--home", unbroken).document["alignments"]
    alignment = Alignment.load(unbroken / "alignments" / "a")
    assert (row["alignment"], row["fingerprint"], row["dim"]) == ("a", alignment.fingerprint, alignment.dim)
    assert [(release["collection"], release["state"]) for release in row["releases"]] == [("things", "live")]
    out = done("alignments", "--home", unbroken).out
    assert all(word in out for word in ("a", "ridge", alignment.fingerprint[:8], "things"))


def test_one_alignment_with_what_it_finds(unbroken: Path) -> None:
    document = done("alignments", "a", "--json", "--home", unbroken).document
    card = Alignment.load(unbroken / "alignments" / "a").card
    assert document["card"]["held_out_recall"] == card.held_out_recall
    assert document["card"]["whole_recall"] == card.whole_recall
    assert document["set_names"] == ["pairs"]
    out = done("alignments", "a", "--home", unbroken).out
    for direction, recalls in card.held_out_recall["cosine"].items():
        assert direction in out
        assert all(f"{recall:.4g}" in out for recall in recalls.values())
    assert f"{card.pairs} pairs" in out


@pytest.mark.parametrize("command", ["sets", "alignments"])
def test_a_name_that_there_is_not(unbroken: Path, command: str) -> None:
    ended = modalign(command, "nothing", "--home", unbroken)
    assert (ended.code, "'nothing'" in ended.error) == (1, True)
    assert {"sets": "pairs", "alignments": "this home has a"}[command] in ended.error
    assert modalign(command, "../x", "--home", unbroken).code == 2


@pytest.mark.parametrize(("command", "path"), [("sets", "sets/pairs"), ("alignments", "alignments/a")])
def test_what_is_damaged_is_listed_with_the_reason(home: Path, command: str, path: str) -> None:
    (home / path / CARD).write_text("{")
    assert "is damaged" in done(command, "--home", home).out
    assert "is damaged" in done(command, Path(path).name, "--home", home).out
    (row,) = [row for row in done(command, "--json", "--home", home).document[command] if row["fault"]][:1]
    assert "is damaged" in row["fault"]


EMPTY = {
    "status": {"releases": [], "runs": [], "replicas": {}},
    "sets": {"sets": []},
    "alignments": {"alignments": []},
    "rejects": {"run": None, "rejects": []},
    "verify": {"verified": [], "examples": {}},
}


@pytest.mark.parametrize("command", EMPTY)
def test_a_home_in_which_nothing_was_made_yet_is_no_error_and_says_how_to_begin(tmp_path: Path, command: str) -> None:
    home = tmp_path / "home"
    shown = done(command, "--home", home)
    assert str(home) in shown.err
    assert "`modalign encode`" in shown.err
    assert done(command, "--json", "--home", home).document == EMPTY[command]
    assert not home.exists()


@pytest.mark.parametrize("command", EMPTY)
def test_a_home_that_lost_its_database_is_an_error(tmp_path: Path, command: str) -> None:
    (tmp_path / "sets").mkdir()
    ended = modalign(command, "--home", tmp_path)
    assert (ended.code, "modalign db upgrade" in ended.error) == (1, True)


@pytest.mark.parametrize("arguments", [("sets", "mine"), ("alignments", "first"), ("rejects", 1), ("verify", "shop")])
def test_a_name_in_a_home_in_which_nothing_was_made_yet(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert modalign(*arguments, "--home", tmp_path).code == 1


@pytest.mark.parametrize("command", ["sets", "alignments"])
def test_a_home_without_any(tmp_path: Path, command: str) -> None:
    done("db", "upgrade", "--home", tmp_path)
    assert done(command, "--json", "--home", tmp_path).document == {command: []}
    assert "none" in done(command, "--home", tmp_path).out
