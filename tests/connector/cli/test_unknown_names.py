"""A name that there is not: every command that takes one says which there are, the nearest ones by name."""

from pathlib import Path

import pytest

from tests.support.cli import done, modalign
from tests.support.sparse_copy import copy_sparse

# Each command with a name that is one letter off, and the name that it should offer.
MISTYPED = [
    *((["verify", "thingz"], "things"), (["repair", "thingz"], "things"), (["status", "thingz"], "things")),
    *(
        (["promote", "thingz"], "things"),
        (["rollback", "thingz"], "things"),
        (["drop", "thingz", "--retired"], "things"),
    ),
    *((["search", "thingz", "red"], "things"), (["delete", "thingz", "--key", "0", "--yes"], "things")),
    (["audit", "thingz", "--pairs", "pairs"], "things"),
    (["audit", "thingz", "--history"], "things"),
    (["audit", "things", "--pairs", "pears"], "pairs"),
    (["promote", "things", "--release", "things.cosine.x"], "things.cosine."),
    (["audit", "things", "--pairs", "pairs", "--release", "things.cosine.x"], "things.cosine."),
    (["rollback", "things", "--to", "things.cosine.x"], "things.cosine."),
    (["drop", "things", "--release", "things.cosine.x"], "things.cosine."),
    (["sets", "Pair"], "pairs"),
    (["gap", "Pair"], "pairs"),
    (["fit", "Pair", "--alignment", "new"], "pairs"),
    (["compare", "Pair"], "pairs"),
    (["push", "Pair", "--into", "things", "--alignment", "first"], "pairs"),
    (["push", "pairs", "--into", "things", "--alignment", "furst"], "first"),
    (["gap", "pairs", "--alignment", "furst"], "first"),
    (["alignments", "furst"], "first"),
    (["rejects", "999999"], "newest"),
]


@pytest.fixture(scope="module")
def held(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared home with an alignment more, whose name is no prefix of others."""
    home = copy_sparse(shared, tmp_path_factory.mktemp("names") / "home")
    done("fit", "pairs", "--alignment", "first", "--method", "procrustes", "--home", home)
    return home


@pytest.mark.parametrize(
    ("arguments", "offered"), MISTYPED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistyped_name_is_answered_with_those_that_there_are(arguments: list[str], offered: str, held: Path) -> None:
    ended = modalign(*arguments, "--home", held)
    assert ended.code == 1
    assert offered in ended.error
    if offered != "newest":
        assert f"did you mean '{offered}" in ended.error


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in MISTYPED], ids=" ".join)
def test_in_an_empty_home_the_answer_is_how_to_begin(arguments: list[str], tmp_path: Path) -> None:
    ended = modalign(*arguments, "--home", tmp_path / "new")
    assert (ended.code, ended.error_code) == (1, "home-new")
    assert "modalign encode" in ended.error
    assert not (tmp_path / "new").exists()
