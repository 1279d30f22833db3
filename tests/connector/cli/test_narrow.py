"""Every table of the command line fits 80 columns and breaks no name, in a terminal as in a pipe."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

from tests.support.cli import COMMANDS, SPECS, done, modalign
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.sparse_copy import copy_sparse

SET = "photographs-of-our-own-spring-catalogue"
COLLECTION = "the-shop-of-our-own-spring-catalogue"
FIRST, SECOND = "the-alignment-of-last-november", "the-alignment-of-this-december"
INTO = ("--into", COLLECTION)
# Commands without a table, and those whose tables other tests make: of the demo, and of two addresses of one server.
WITHOUT = {("db", "upgrade"), ("demo",), ("db", "merge-stores")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    rows = [{"key": "a-key-that-is-rather-long-for-a-key-of-an-item", "image": "an-image-that-is-not-there.png"}]
    return write_manifest(directory / "catalogue.jsonl", fake_pairs(directory, 100), *rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A home of long names: a live release under two metrics, a shadow, audits, rejects."""
    home = tmp_path_factory.mktemp("long") / "home"
    done("db", "upgrade", "--home", home)
    assert modalign("encode", corpus, "--set", SET, *SPECS, "--home", home).code == 4
    for name, method in ((FIRST, "ridge"), (SECOND, "procrustes")):
        done("fit", SET, "--alignment", name, "--method", method, "--home", home)
    two = ("--metric", "cosine", "--metric", "chi2(map=split)")
    done("push", SET, *INTO, "--alignment", FIRST, *two, "--home", home)
    done("push", SET, *INTO, "--alignment", SECOND, *two, "--home", home)
    done("audit", COLLECTION, "--pairs", SET, "--metric", "cosine", "--home", home)
    return home


def names_of(home: Path) -> set[str]:
    """Names that a table must not break: of releases, and what they are made of."""
    releases = done("status", "--json", "--home", home).document["releases"]
    return {SET, COLLECTION, FIRST, SECOND, *(row["physical_name"] for row in releases)}


def pieces(name: str) -> set[str]:
    """What stands at the end of a line where a name was broken at it."""
    return {name[:length] for length in range(len(name) // 2, len(name))}


def assert_fits(out: str, names: set[str], width: int = 80) -> None:
    broken = {piece for name in names for piece in pieces(name)} - names
    for line in out.splitlines():
        assert not broken & set(line.split()), line
        if line.startswith(" ") and not line.startswith("  ("):  # of a table; sentences are one line each in a pipe
            assert cell_len(line) <= width or is_whole(line), line


def is_whole(line: str) -> bool:
    """Whether a line holds one name, or a command, which is never broken."""
    return len(re.sub("`[^`]*`", "", line).split()) <= 1


LISTED: dict[tuple[str, ...], Sequence[Sequence[object]]] = {
    ("status",): [[], [COLLECTION], ["-n", 3]],
    ("sets",): [[], [SET]],
    ("alignments",): [[], [FIRST]],
    ("search",): [[COLLECTION, "a red lime"], [COLLECTION, "a red lime", "--target", "text"]],
    ("verify",): [[], [COLLECTION]],
    ("repair",): [[COLLECTION]],
    ("rejects",): [[], ["--by-reason"]],
    ("gap",): [[SET, "--alignment", FIRST]],
    ("audit",): [
        [COLLECTION, "--pairs", SET, "--metric", "cosine", "--baseline", "last", "--slice", "caption"],
        [COLLECTION, "--history"],
    ],
    ("compare",): [[SET, "--method", "ridge", "--metric", "cosine", "--folds", 2, "--to", "compared"]],
    ("export",): [[FIRST, "--metric", "cosine", "--to", "exported"]],
}


@pytest.mark.slow
@pytest.mark.parametrize("words", LISTED, ids=" ".join)
def test_what_only_shows(made: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    names = names_of(made)
    for arguments in LISTED[words]:
        ended = modalign(*words, *arguments, "--home", made)
        assert ended.code == 0, ended.err
        assert_fits(ended.out, names)


CHANGING: dict[tuple[str, ...], Sequence[object]] = {
    ("push",): [SET, *INTO, "--alignment", FIRST],
    ("promote",): [COLLECTION, "--force", "--reason", "a test"],
    ("rollback",): [COLLECTION],
    ("delete",): [COLLECTION, "--group", "s0-00003", "--yes"],
    ("drop",): [COLLECTION, "--release", "SHADOW", "--yes"],
    ("encode",): ["CORPUS", "--set", SET, *SPECS, "--max-rejects", 1],
    ("ingest",): ["CORPUS", *INTO, "--set", SET, "--alignment", FIRST, "--max-rejects", 1],
    ("import",): ["VECTORS", "--set", SET + "-imported", "--image-encoder", "of-another-program"],
    ("fit",): [SET, "--alignment", "another-" + FIRST, "--method", "ridge", "--metric", "cosine", "--metric", "dot"],
}


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    columns = {"key": ["a", "b"], "vector": [[1.0, 2.0], [2.0, 1.0]]}
    pq.write_table(pa.table(columns), tmp_path / "vectors.parquet")
    return tmp_path / "vectors.parquet"


@pytest.fixture(scope="module")
def changed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sparse(made, tmp_path_factory.mktemp("changed") / "home")


@pytest.mark.parametrize("words", CHANGING, ids=" ".join)
def test_what_changes_something(
    changed: Path, corpus: Path, vectors: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    names = names_of(changed)
    releases = done("status", "--json", "--home", changed).document["releases"]
    waiting = [row["physical_name"] for row in releases if row["state"] != "live"]
    shadow = next(iter(waiting), "none")
    given = {"CORPUS": corpus, "VECTORS": vectors, "SHADOW": shadow}
    ended = modalign(*words, *(given.get(str(word), word) for word in CHANGING[words]), "--home", changed)
    assert ended.code == 0, ended.err
    assert_fits(ended.out, names)


def assert_prose_fits(shown: str, width: int) -> None:
    for line in shown.splitlines():
        bar = "━" in line  # which rich draws
        assert bar or cell_len(line) <= width or is_whole(line), line


@pytest.mark.parametrize("words", [words for words in LISTED if words != ("export",)], ids=" ".join)
def test_sentences_fit_a_terminal_and_no_command_in_them_is_broken(
    made: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in LISTED[words]:
        shown = modalign(*words, *arguments, "--home", made, terminal=60)
        assert shown.code == 0, shown.err
        assert_prose_fits(shown.out + shown.err, 60)
        assert all("`" not in re.sub("`[^`]*`", "", line) for line in (shown.out + shown.err).splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("push", SET, *INTO, "--alignment", "one-that-was-never-made-in-this-home"),
        ("push", "a-set-that-was-never-made-in-this-home", *INTO, "--alignment", FIRST),
        ("encode", "a-corpus-that-is-not-there.csv", "--set", SET, "--image-encoder", "nothing:of-this-name"),
        ("promote", COLLECTION),
        ("search", COLLECTION, "a red lime", "--metric", "a-metric-that-there-is-not"),
        ("audit", COLLECTION, "--pairs", SET, "--metric", "cosine", "--require", "recall@10<=0.01"),
        ("audit", COLLECTION, "--protocol", "coco", "--queries", "all"),
    ],
    ids=lambda arguments: " ".join(arguments[:1]),
)
def test_errors_and_refusals_fit_a_terminal(made: Path, arguments: tuple[str, ...]) -> None:
    shown = modalign(*arguments, "--home", made, terminal=70)
    assert shown.code in (1, 2, 3)
    assert_prose_fits(shown.out + shown.err, 70)


def test_every_command_with_a_table_is_among_them() -> None:
    assert LISTED.keys() | CHANGING.keys() | WITHOUT == COMMANDS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_gets_tables_of_its_width(made: Path, width: int) -> None:
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "connector.cli.main", "status", "--home", str(made)]
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment)
    os.close(other)
    out = b""
    while True:
        try:
            read = os.read(main, 65536)
        except OSError:  # the process has ended
            break
        if not read:
            break
        out += read
    os.close(main)
    assert process.wait(120) == 0
    plain = out.decode().replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\r", "")
    assert_fits(plain, names_of(made), width)
    release = max(names_of(made), key=len)
    lines = [line.split() for line in plain.splitlines() if release in line.split()]
    # Beside the other columns, below them with its name, or below its name.
    assert [len(words) for words in lines] == [{60: 1, 80: 2, 200: 6}[width]]
