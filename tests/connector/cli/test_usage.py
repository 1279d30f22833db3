"""Bad input ends in one clear line."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pytest

from tests.support.cli import COMMANDS, SPECS, modalign
from tests.support.fakes import NAN_WORD


def empty_manifest(directory: Path) -> list[object]:
    (directory / "m.jsonl").touch()
    return ["encode", directory / "m.jsonl", "--set", "bad", *SPECS]


def empty_folder(directory: Path) -> list[object]:
    (directory / "pictures").mkdir()
    return ["encode", directory / "pictures", "--set", "bad", *SPECS]


def headless_csv(directory: Path) -> list[object]:
    (directory / "m.csv").write_text("a,b\n1,2\n")
    return ["encode", directory / "m.csv", "--set", "bad", *SPECS]


Make = str | Callable[[Path], Sequence[object]]

# By what is wrong: the arguments, and what the message names. What the command line itself says wrong is a usage error.
USAGE: dict[str, tuple[Make, str]] = {
    "a key without its option": (
        "delete things s0-00001",
        "s0-00001; a value stands behind the name of its option, such as --key KEY",
    ),
    "a release without its option": ("drop things things.cosine.1", "--release RELEASE"),
    "a text without quotes": ("search things a red lime", "red lime;"),
    "an argument of a command in a group": ("db upgrade now", "got an argument too many: now"),
    "unknown format": ("encode {corpus} --set bad --text-encoder fake-text:small --format xml", "'xml'"),
    "key rule of a manifest": ("ingest {corpus} --into bad --alignment a --key-rule last-dot", "--key-rule"),
    "vectors of nobody": ("import {corpus} --set bad", "--image-encoder, --text-encoder"),
    "no encoder": ("encode {corpus} --set bad", "--image-encoder, --text-encoder"),
    "unknown scheme": ("encode {corpus} --set bad --text-encoder fake:1", "'fake:1'"),
    "encoder without a name": ("encode {corpus} --set bad --text-encoder fake-text", "'fake-text'"),
    "an imported encoder to load": ("encode {corpus} --set bad --text-encoder imported:x", "imported:x"),
    "no such device": ("encode {corpus} --set bad --text-encoder fake-text:small --device tpu", "'tpu'"),
    "unknown method": ("fit pairs --alignment bad --method magic", "'magic'"),
    "unknown metric to fit": ("fit pairs --alignment bad --metric hamming", "'hamming'"),
    "correction of what is no product": ("fit pairs --alignment bad --metric chi2+nnn", "chi2(map=split)"),
    "unknown metric to push": ("push pairs --into bad --alignment a --metric hamming", "'hamming'"),
    "metric that was not fitted": ("push pairs --into bad --alignment a --metric mlp", "--metric 'mlp(hidden=64)'"),
    "one of several that was not fitted": (
        "push pairs --into bad --alignment a --metric cosine --metric dot+nnn",
        "--metric 'dot+nnn(k=128,alpha=0.75)'",
    ),
    "metric that was not fitted to ingest": (
        "ingest {corpus} --into bad --alignment a --metric cosine --metric mol",
        "--metric 'mol(components=4,size=64,sway=0.1)'",
    ),
    "metric with an unknown map": ("push pairs --into bad --alignment a --metric chi2(map=cube)", "'cube'"),
    "metric with an unknown parameter": ("search things red --metric chi2(size=3)", "'size'"),
    "unknown metric": ("search things red --metric hamming", "'hamming'"),
    "budget below k": ("search things red --candidates 9", "10, got 9"),
    "index recall above one": ("push pairs --into bad --alignment a --min-index-recall 1.5", "0<=x<=1, got '1.5'"),
    "index recall of percent": ("ingest {corpus} --into bad --alignment a --min-index-recall 90", "0<=x<=1, got '90'"),
    "index recall that is no number": ("push pairs --into bad --alignment a --min-index-recall nan", "got 'nan'"),
    "filter that is no JSON": ("search things red --filter {{", "line 1 column 2"),
    "filter that is none": ('search things red --filter {{"must":[{{"foo":1}}]}}', "must"),
    "filter that is a list": ("search things red --filter [1]", "(top)"),
    "filter of no length": ("search things red --filter ", "line 1 column 1"),
    "filter that asks for nothing": ('search things red --filter {{"must":{{"key":"a"}}}}', "'a'"),
    "query of no length": ("search things ", "''"),
    "query of nothing but a space": ("search things \t", r"'\t'"),
    "requirement that cannot be read": ("audit things --pairs pairs --require recall", "'recall'"),
    "requirement on nothing": ("audit things --pairs pairs --require recall@7>=1", "'recall@7>=1'"),
    "requirement on a proof of what is exact": (
        "audit things --pairs pairs --require certified>=0.9",
        "'certified>=0.9'",
    ),
    "list of no length": ("audit things --pairs pairs --k 0", "1 to 10000, got [0]"),
    "store of no kind": ("search things red --qdrant-url ftp://host", "'ftp://host'"),
    "database of no kind": ("status --database-url nonsense://host/db", "nonsense://host/db"),
    **{
        f"name {name} in {command}": (f"{command} {name}", repr(name))
        for command in (
            "encode {corpus} --text-encoder fake-text:small --set",
            "fit pairs --alignment",
            "fit --alignment bad",
            "push pairs --alignment a --into",
            "push pairs --into bad --alignment",
            "push --into bad --alignment a",
            "ingest {corpus} --alignment a --into",
            "ingest {corpus} --into bad --alignment a --set",
            "audit things --pairs",
        )
        for name in ("../escape", ".hidden", "a/b")
    },
}

# What the command line names and is not there, or is broken, is a failure: the arguments, its code, and what is named.
FAILURES: dict[str, tuple[Make, str, str]] = {
    "empty manifest": (empty_manifest, "corpus", "m.jsonl"),
    "empty folder": (empty_folder, "corpus", "pictures"),
    "manifest without columns": (headless_csv, "corpus", "got a, b"),
    "no corpus": ("encode /no/such/corpus.jsonl --set bad --text-encoder fake-text:small", "corpus", "corpus.jsonl"),
    "corpus of no kind": (f"encode {__file__} --set bad --text-encoder fake-text:small", "corpus", "got .py"),
    "no such corpus to ingest": ("ingest /no/such.jsonl --into bad --alignment a", "corpus", "/no/such.jsonl"),
    "vectors that are none": ("import {corpus} --set bad --text-encoder mine", "corpus", "things.jsonl"),
    "no vectors": ("import /no/such.npy --set bad --text-encoder mine", "corpus", "/no/such.npy"),
    "encoder of the other modality": (
        "encode {corpus} --set bad --text-encoder fake-image:small",
        "encoder",
        "fake-image:small",
    ),
    "another encoder into a set": (
        "encode {corpus} --set pairs --text-encoder fake-text:other",
        "embedding-set",
        "fake-text:other",
    ),
    "another type into a set": (
        "encode {corpus} --set pairs --text-encoder fake-text:small --dtype float16",
        "embedding-set",
        "float16",
    ),
    "no such set to fit": ("fit nothing --alignment bad", "embedding-set", "nothing"),
    "alignment that exists": ("fit pairs --alignment a", "alignment", "--alignment"),
    "too many folds": ("fit pairs --alignment bad --folds 1000", "fit", "2000"),
    "correction by too many": ("fit pairs --alignment bad --metric dot+nnn", "fit", "128"),
    "no such set to push": ("push nothing --into bad --alignment a", "embedding-set", "nothing"),
    "no such alignment": ("push pairs --into bad --alignment nothing", "alignment", "nothing"),
    "no alignment to ingest with": ("ingest {corpus} --into bad --alignment nothing", "alignment", "nothing"),
    "unknown collection": ("search nothing red", "collection-not-found", "'nothing'"),
    "metric without a release": ("search things red --metric dot", "collection-not-found", "dot"),
    "metric that was not pushed": ("search things red --metric mlp", "collection-not-found", "mlp(hidden=64)"),
    "picture that is missing": ("search things no-such.png", "picture", "image-missing"),
    "query that is not a number": (f"search things {NAN_WORD}", "vector", "vector-not-finite"),
    "unknown collection to audit": ("audit nothing --pairs pairs", "collection-not-found", "'nothing'"),
    "metric that was not pushed to audit": (
        "audit things --pairs pairs --metric mol",
        "collection-not-found",
        "mol(components=4,size=64,sway=0.1)",
    ),
    "no pairs": ("audit things --pairs nothing", "embedding-set", "nothing"),
}


def arguments_of(make: Make, tmp_path: Path, corpus: Path) -> Sequence[object]:
    return make.format(corpus=corpus).split(" ") if isinstance(make, str) else make(tmp_path)


@pytest.mark.parametrize(("make", "value"), USAGE.values(), ids=USAGE)
def test_what_the_command_line_says_wrong_is_a_usage_error_of_one_line(
    unbroken: Path, tmp_path: Path, corpus: Path, make: Make, value: str
) -> None:
    ended = modalign(*arguments_of(make, tmp_path, corpus), "--home", unbroken)
    assert (ended.code, value in ended.error) == (2, True), ended.error
    assert not (unbroken.parent / "escape").exists()
    assert not (unbroken / "escape").exists()


@pytest.mark.parametrize(("make", "code", "value"), FAILURES.values(), ids=FAILURES)
def test_what_is_named_and_is_not_there_or_broken_is_a_failure_of_one_line(
    unbroken: Path, tmp_path: Path, corpus: Path, make: Make, code: str, value: str
) -> None:
    ended = modalign(*arguments_of(make, tmp_path, corpus), "--home", unbroken)
    assert (ended.code, ended.error_code, value in ended.error) == (1, code, True), ended.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("search things red -k 0", "Invalid value for '-k'"),
        ("search things red --candidates 0", "Invalid value for '--candidates'"),
        ("audit things --pairs pairs --k one", "expected numbers such as 1,5,10, got 'one'"),
        ("push pairs --into x --alignment a --payload-index year", "expected FIELD=KIND"),
        ("fit pairs --alignment x --budget 10", "expected a time above zero such as 90s, 10m or 2h, got '10'"),
        ("fit pairs --alignment x --budget 0s", "expected a time above zero such as 90s, 10m or 2h, got '0s'"),
        ("search things red --timeout 0", "expected a time above zero"),
        ("search things red --timeout soon", "expected a time above zero"),
        ("fit pairs --alignment x --budget -5m", "expected a time above zero"),
        ("push pairs --into x --alignment a --payload-index year=date", "expected FIELD=KIND"),
        ("push pairs --alignment a", "Missing option '--into'"),
        ("encode corpus", "Missing option '--set'"),
        ("fit pairs --alignment b --holdout 1", "Invalid value for '--holdout'"),
        ("rejects many", "Invalid value for '[RUN]'"),
        ("dance", "No such command 'dance'"),
        ("search things red --nonsense", "No such option"),
    ],
)
def test_usage(unbroken: Path, arguments: str, message: str) -> None:
    ended = modalign(*arguments.split(), *(["--home", unbroken] if "nonsense" not in arguments else []))
    assert (ended.code, message in ended.error) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        ("fit pairs --alignment x --method procruste", "procrustes"),
        ("compare pairs --method rida", "ridge"),
        ("fit pairs --alignment x --metric cosin", "cosine"),
        ("push pairs --into x --alignment a --metric chi(map=l1)", "chi2"),
        ("search things red --metric dott+nnn", "dot"),
        ("encode corpus --set x --text-encoder fake-text:small --format parket", "parquet"),
        ("encode corpus --set x --text-encoder fake-txt:small", "fake-text"),
        ("audit things --pairs none --protocol flickr30", "flickr30k"),
        ("fit pairs --alignment x --training epoch=3", "epochs"),
    ],
)
def test_a_mistyped_name_is_a_usage_error_that_tells_the_near_one(unbroken: Path, arguments: str, near: str) -> None:
    """Before anything is opened, so whether the set is there does not matter."""
    ended = modalign(*arguments.replace(" pairs", " no-such-set").split(), "--home", unbroken)
    assert (ended.code, f"did you mean {near!r}" in ended.error) == (2, True), ended.error


@pytest.mark.parametrize("share", ["0", "0.5", "1"])
def test_an_index_recall_is_a_share(unbroken: Path, share: str) -> None:
    arguments = ("--into", "things", "--alignment", "a", "--min-index-recall", share, "--home", unbroken)
    ended = modalign("push", "nothing", *arguments)
    assert ended.code == 1
    assert "nothing" in ended.error


PATHS = {
    f"{' '.join(name)} {param.name}": param
    for name, command in COMMANDS.items()
    for param in command.params
    if isinstance(param.type, click.Path)
}


@pytest.mark.parametrize("param", PATHS.values(), ids=PATHS.keys())
def test_an_empty_path_is_not_the_working_directory(param: click.Parameter) -> None:
    """It is what an unset variable of a script leaves, as in `--home "$HOME_OF_MODALIGN"`."""
    with pytest.raises(click.BadParameter, match="empty"):
        param.type.convert("", param, None)
    assert param.type.convert("x/y", param, None) == Path("x/y")


@pytest.mark.parametrize("arguments", [("status", "--home", ""), ("encode", "", "--set", "s", *SPECS)])
def test_an_empty_path_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    ended = modalign(*arguments)
    assert (ended.code, "empty" in ended.error) == (2, True)


def test_an_empty_variable_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALIGN_HOME", "")
    ended = modalign("status")
    assert (ended.code, "MODALIGN_HOME" in ended.error) == (2, True)
