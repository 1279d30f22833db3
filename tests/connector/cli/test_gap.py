"""`modalign gap` end to end: what it prints and records, and how it ends."""

from pathlib import Path

import numpy as np
import pytest

from alignment.geometry.geometry import SAMPLE, geometry, sampled
from connector.cli.group import FAILED
from connector.cli.sets import gap
from connector.home import Home
from connector.settings import Settings
from tests.support.cli import done, modalign
from tests.support.fakes import fake_pairs, fake_rows, fake_set, write_manifest

N = 240


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an aligned set of two encoders, and one whose modalities have one dimension."""
    home, place = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("corpus")
    corpus = write_manifest(place / "things.jsonl", fake_pairs(place, N))
    done("db", "upgrade", "--home", home)
    specs = ["--image-encoder", "fake-image:small", "--text-encoder", "fake-text:small"]
    done("encode", corpus, "--set", "pairs", *specs, "--home", home)
    done("fit", "pairs", "--alignment", "a", "--method", "ridge", "--home", home)
    rng = np.random.default_rng(3)
    X = rng.standard_normal((N, 6))
    groups = [f"g{i}" for i in range(N)]
    texts = X + 0.3 * rng.standard_normal((N, 6)) + 2 * np.eye(6)[0]
    fake_set(home / "sets" / "one", fake_rows("image", X, groups=groups), fake_rows("text", texts, groups=groups))
    return home


@pytest.mark.slow
def test_the_document_is_what_the_library_measures(home: Path) -> None:
    document = done("gap", "pairs", "--alignment", "a", "--seed", 5, "--json", "--home", home).document
    with Home(Settings.load(home=home)) as opened:
        alignment, pairs = opened.alignment("a"), opened.embedding_set("pairs")
    drawn = sampled(pairs, alignment.card.hold_out, seed=5)
    expected = geometry(drawn.project((alignment.projections["image"], alignment.projections["text"])), seed=5)
    assert document.items() >= expected.to_json().items()
    assert (document["set"], document["alignment"], document["seed"]) == ("pairs", "a", 5)
    assert document["groups"] == alignment.card.held_out_groups
    for direction, recalls in alignment.card.held_out_recall["cosine"].items():
        for name, recall in recalls.items():
            assert document["recall"][direction][name]["value"] == pytest.approx(recall, abs=1e-6)


@pytest.mark.slow
def test_the_table_begins_with_recall_and_ends_with_what_it_means(home: Path) -> None:
    ended = done("gap", "one", "--home", home)
    lines = [line.strip() for line in ended.out.splitlines() if line.strip()]
    assert lines[0].startswith("one as encoded: ")
    places = {name: ended.out.index(name) for name in ("chance, image-to-text", "gap: W2", "hubness", "Images and")}
    assert list(places.values()) == sorted(places.values())
    assert "p = 0.005" in ended.out
    assert "only recall says what is found" in " ".join(lines)


def test_clouds_that_cannot_be_told_apart_are_said_to_be(home: Path, rng: np.random.Generator) -> None:
    X, Y = rng.standard_normal((2, N, 6))
    groups = [f"g{i}" for i in range(N)]
    fake_set(home / "sets" / "alike", fake_rows("image", X, groups=groups), fake_rows("text", Y, groups=groups))
    document = done("gap", "alike", "--json", "--home", home).document
    assert document["p"] > 0.05
    assert document["meaning"].startswith("Images and texts cannot be told apart as clouds")


def test_a_sample_is_drawn(home: Path) -> None:
    document = done("gap", "one", "--sample", 30, "--json", "--home", home).document
    assert (document["groups"], document["gap"]["n"], document["items"]) == (30, 15, {"image": 30, "text": 30})


def test_every_use_is_a_run(home: Path) -> None:
    document = done("gap", "one", "--json", "--home", home).document
    (run,) = done("status", "-n", 1, "--json", "--home", home).document["runs"]
    assert (run["run"], run["command"], run["outcome"]) == (document["run"], "gap", "done")
    assert run["counts"] == {"groups": document["groups"], "left_out": 0}


def test_two_spaces_need_an_alignment(home: Path) -> None:
    ended = modalign("gap", "pairs", "--home", home)
    assert (ended.code, ended.out) == (FAILED, "")
    assert "name an alignment" in ended.err


def test_an_alignment_of_other_encoders_is_refused(home: Path) -> None:
    ended = modalign("gap", "one", "--alignment", "a", "--home", home)
    assert (ended.code, ended.out) == (FAILED, "")
    assert "the alignment was fitted for" in ended.err


def test_the_default_sample_is_the_librarys() -> None:
    (option,) = [option for option in gap.params if option.name == "sample"]
    assert option.default == SAMPLE
