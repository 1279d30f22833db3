"""Texts of a corpus, of file names and of arguments never act on the terminal that shows them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from connector.stores.edge import EdgeStore
from tests.support.cli import SPECS, Ended, done, modalign
from tests.support.sparse_copy import copy_sparse

FORGED = "modalign: all is well"
EVIL = f"x\n{FORGED}\n\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\r\x7f\u200f\u061c!"
OBEYED = set(EVIL) - set(f"x]0;owned[2J31mgnp.exe{FORGED}!\n")


def assert_harmless(ended: Ended) -> None:
    assert not OBEYED & set(ended.out + ended.err), repr(ended)
    assert not [line for line in (ended.out + ended.err).splitlines() if line.startswith(FORGED)], repr(ended)


@pytest.fixture(scope="module")
def evil(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a collection whose keys, captions, groups and rejects are full of escapes."""
    home = copy_sparse(shared, tmp_path_factory.mktemp("evil") / "home")
    folder = tmp_path_factory.mktemp("corpus")
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    rows = [
        {"key": f"good {EVIL}", "image": "a.png", "caption": f"red {EVIL}", "group": EVIL, EVIL: EVIL},
        {"key": f"bad {EVIL}", "image": f"gone {EVIL}.png", "caption": "red"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoded = modalign("encode", folder / "rows.jsonl", "--set", "evil", *SPECS, "--home", home)
    assert encoded.code == 4, encoded
    assert_harmless(encoded)
    assert_harmless(done("push", "evil", "--into", "evil", "--alignment", "a", "--home", home))
    with EdgeStore(home / "qdrant") as store:  # so that keys are named by what is repaired
        (name,) = [name for name in store.collections() if name.startswith("evil.")]
        store.delete(name, [record.id for page in store.scroll(name) for record in page][:1])
    return home


def test_what_was_found_and_refused_is_shown_without_its_escapes(evil: Path) -> None:
    for arguments in (
        ("search", "evil", "red", "--target", "text"),
        ("search", "evil", "red", "--target", "text", "--json"),
        ("rejects",),
        ("rejects", "--json"),
        ("rejects", "--export", "-"),
        ("status", "--json"),
        ("verify", "evil"),
        ("verify", "evil", "--json"),
        ("audit", "evil", "--pairs", "evil", "--queries", "all", "--gallery", "all"),
    ):
        shown = modalign(*arguments, "--home", evil)
        assert shown.code == {"verify": 1, "audit": 3}.get(arguments[0], 0), shown
        assert_harmless(shown)


def test_json_holds_the_exact_texts(evil: Path) -> None:
    hits = done("search", "evil", "red", "--target", "text", "--json", "--home", evil).document["found"]
    assert {(hit["key"], hit["payload"]["caption"]) for hit in hits} >= {(f"good {EVIL}#0", f"red {EVIL}")}
    (reject,) = done("rejects", "--json", "--home", evil).document["rejects"]
    assert reject["key"] == f"bad {EVIL}"


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", EVIL, "a dog"),
        ("search", "evil", f"{EVIL}.png"),
        ("search", "evil", "a", "--filter", EVIL),
        ("search", "evil", "a", "--metric", EVIL),
        ("encode", EVIL, "--set", "x"),
        ("encode", "/", "--set", EVIL),
        ("rejects", EVIL),
        (EVIL,),
        ("search", "evil", "a", f"--{EVIL}"),
        ("delete", "evil", "--key", EVIL, "--yes"),
    ],
)
def test_answers_and_errors_show_what_was_given_without_its_escapes(evil: Path, arguments: tuple[str, ...]) -> None:
    ended = modalign(*arguments, *(() if arguments == (EVIL,) else ("--home", evil)))
    assert not OBEYED & set(ended.out + ended.err), repr(ended)


@pytest.mark.parametrize("arguments", [("status",), ("sets", "pairs"), ("status", "nothing")])
@pytest.mark.parametrize(("kind", "no_color"), [("dumb", ""), ("unknown", ""), ("xterm", "1")])
def test_a_terminal_without_styles_is_sent_none(
    arguments: tuple[str, ...], kind: str, no_color: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    assert not modalign(*arguments, "--home", shared, terminal=80, kind=kind).styled


def test_other_terminals_show_titles_in_bold(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert modalign("status", "--home", shared, terminal=80, kind="xterm").styled
    assert not modalign("status", "--home", shared).styled
