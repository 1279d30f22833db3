"""Bad input ends in one clear line."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.cli import SPECS, modalign
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


BAD: list[tuple[str, str | Callable[[Path], Sequence[object]], str]] = [
    ("empty manifest", empty_manifest, r"corpus .*m\.jsonl is empty"),
    ("empty folder", empty_folder, r"corpus .*pictures is empty"),
    ("manifest without columns", headless_csv, "expected the columns key and image or caption"),
    ("no corpus", "encode /no/such/corpus.jsonl --set bad --text-encoder fake-text:small", "does not exist"),
    ("corpus of no kind", f"encode {__file__} --set bad --text-encoder fake-text:small", r"got \.py"),
    ("unknown format", "encode {corpus} --set bad --text-encoder fake-text:small --format xml", "unknown format 'xml'"),
    ("images of a manifest", "ingest {corpus} --into bad --alignment a --images x", "--images is not for format"),
    ("vectors that are none", "import {corpus} --set bad --text-encoder mine", r"expected a \.npy, a \.parquet"),
    ("no vectors", "import /no/such.npy --set bad --text-encoder mine", "do not exist"),
    ("vectors of nobody", "import {corpus} --set bad", "expected --image-encoder, --text-encoder or both, got neither"),
    ("an imported encoder to load", "encode {corpus} --set bad --text-encoder imported:x", "imported:x names"),
    ("no encoder", "encode {corpus} --set bad", "expected --image-encoder, --text-encoder or both, got neither"),
    ("unknown scheme", "encode {corpus} --set bad --text-encoder fake:1", "unknown encoder 'fake:1'; expected"),
    ("encoder without a name", "encode {corpus} --set bad --text-encoder fake-text", "expected SCHEME:NAME"),
    ("encoder of the other modality", "encode {corpus} --set bad --text-encoder fake-image:small", "encodes image"),
    ("another encoder into a set", "encode {corpus} --set pairs --text-encoder fake-text:other", "cannot be mixed"),
    ("another type into a set", "encode {corpus} --set pairs --text-encoder fake-text:small --dtype float16", "32"),
    ("no such device", "encode {corpus} --set bad --text-encoder fake-text:small --device tpu", "tpu"),
    ("no such set to fit", "fit nothing --alignment bad", "is not an embedding set: it has no card.json"),
    ("unknown method", "fit pairs --alignment bad --method magic", "unknown method 'magic'; expected one of auto, "),
    ("unknown metric to fit", "fit pairs --alignment bad --metric hamming", "unknown metric 'hamming'"),
    ("alignment that exists", "fit pairs --alignment a", "alignment a exists at"),
    ("too many folds", "fit pairs --alignment bad --folds 1000", "needs at least 2000 groups"),
    ("no such set to push", "push nothing --into bad --alignment a", "is not an embedding set"),
    ("no such alignment", "push pairs --into bad --alignment nothing", "is not an alignment"),
    ("unknown metric to push", "push pairs --into bad --alignment a --metric hamming", "unknown metric 'hamming'"),
    (
        "metric that was not fitted",
        "push pairs --into bad --alignment a --metric mlp",
        r"holds no parameters for metric mlp\(hidden=64\); fit one with `modalign fit --metric 'mlp\(hidden=64\)'`",
    ),
    (
        "one of several that was not fitted",
        "push pairs --into bad --alignment a --metric cosine --metric dot+nnn",
        r"holds no parameters for metric dot\+nnn\(k=128,alpha=0\.75\); fit one with",
    ),
    (
        "metric that was not fitted to ingest",
        "ingest {corpus} --into bad --alignment a --metric cosine --metric mol",
        r"holds no parameters for metric mol\(components=4,size=64,sway=0\.1\); fit one with",
    ),
    ("metric with an unknown map", "push pairs --into bad --alignment a --metric chi2(map=cube)", "expected map to be"),
    ("metric with an unknown parameter", "search things red --metric chi2(size=3)", "no parameter 'size'; it has map"),
    ("correction of what is no product", "fit pairs --alignment bad --metric chi2+nnn", "lowers exactly to Dot"),
    ("correction by too many", "fit pairs --alignment bad --metric dot+nnn", "at least 128 training vectors of each"),
    ("metric that was not pushed", "search things red --metric mlp", r"under mlp\(hidden=64\); it has cosine"),
    ("metric that was not pushed to audit", "audit things --pairs pairs --metric mol", r"no live .* under mol\("),
    ("budget below k", "search things red --candidates 9", "max_candidates of at least k, 10, got 9"),
    ("no such corpus to ingest", "ingest /no/such.jsonl --into bad --alignment a", "does not exist"),
    ("no alignment to ingest with", "ingest {corpus} --into bad --alignment nothing", "is not an alignment"),
    ("unknown collection", "search nothing red", "'nothing'; this store has things"),
    ("unknown metric", "search things red --metric hamming", "unknown metric 'hamming'"),
    ("metric without a release", "search things red --metric dot", "under dot; it has cosine"),
    ("filter that is no JSON", "search things red --filter {{", "filter is no JSON"),
    ("filter that is none", 'search things red --filter {{"must":[{{"foo":1}}]}}', "filter is not valid at must"),
    ("filter that is a list", "search things red --filter [1]", "filter is not valid"),
    ("filter of no length", "search things red --filter ", "filter is no JSON"),
    ("filter that asks for nothing", 'search things red --filter {{"must":{{"key":"a"}}}}', "asks for nothing"),
    ("query of no length", "search things ", "expected a text of Unicode to search for, got ''"),
    ("query of nothing but a space", "search things \t", r"expected a text of Unicode to search for, got '\\t'"),
    ("picture that is missing", "search things no-such.png", r"no-such\.png cannot be used \(image-missing\)"),
    ("query that is not a number", f"search things {NAN_WORD}", "vector-not-finite"),
    ("unknown collection to audit", "audit nothing --pairs pairs", "no live release"),
    ("no pairs", "audit things --pairs nothing", "is not an embedding set"),
    ("requirement that cannot be read", "audit things --pairs pairs --require recall", "expected MEASURE>=NUMBER"),
    ("requirement on nothing", "audit things --pairs pairs --require recall@7>=1", "names no measure"),
    ("requirement on a proof of what is exact", "audit things --pairs pairs --require certified>=0.9", "no measure"),
    ("list of no length", "audit things --pairs pairs --k 0", "expected every k in the range 1 to 10000"),
    ("store of no kind", "search things red --qdrant-url ftp://host", "expected one of edge:DIRECTORY, http"),
    ("database of no kind", "status --database-url nonsense://host/db", "expected an SQLAlchemy URL such as"),
    *(
        (f"name {name} in {command}", f"{command} {name}", "expected 1 to 128 letters, digits")
        for command in (
            "encode {corpus} --text-encoder fake-text:small --set",
            "fit pairs --alignment",
            "fit",
            "push pairs --alignment a --into",
            "push pairs --into bad --alignment",
            "push --into bad --alignment a",
            "ingest {corpus} --alignment a --into",
            "ingest {corpus} --into bad --alignment a --set",
            "audit things --pairs",
        )
        for name in ("../escape", ".hidden", "a/b")
    ),
]


# What the command line itself says wrong is a usage error; what it names and is not there, or broken, is a failure.
COMMAND_LINE = re.compile(
    r"unknown metric|unknown method|expected auto, cpu|no parameters for|expected map|no parameter '|exactly to Dot"
    r"|filter is|does not take this filter|asks for nothing|requirement '|expected every k"
    r"|expected one of edge:|got neither|unknown format|--images is not|(set|alignment|collection) name '"
)


@pytest.mark.parametrize(("make", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_input_ends_in_one_clear_line(
    unbroken: Path, tmp_path: Path, corpus: Path, make: str | Callable[[Path], Sequence[object]], message: str
) -> None:
    arguments = make.format(corpus=corpus).split(" ") if isinstance(make, str) else make(tmp_path)
    if arguments[0] == "fit" and "--alignment" not in arguments:
        arguments = [*arguments, "--alignment", "bad"]
    ended = modalign(*arguments, "--home", unbroken)
    assert re.search(message, ended.error), ended.error
    assert ended.code == (2 if COMMAND_LINE.search(ended.error) else 1)
    assert not (unbroken.parent / "escape").exists()
    assert not (unbroken / "escape").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("search things red -k 0", "Invalid value for '-k'"),
        ("search things red --candidates 0", "Invalid value for '--candidates'"),
        ("audit things --pairs pairs --k one", "expected numbers such as 1,5,10, got 'one'"),
        ("push pairs --into x --alignment a --payload-index year", "expected FIELD=KIND"),
        ("fit pairs --alignment x --budget 10", "expected a time above zero such as 90s, 10m or 2h, got '10'"),
        ("fit pairs --alignment x --budget 0s", "expected a time above zero such as 90s, 10m or 2h, got '0s'"),
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


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        ("fit pairs --alignment x --method procruste", "procrustes"),
        ("compare pairs --method rida", "ridge"),
        ("fit pairs --alignment x --metric cosin", "cosine"),
        ("push pairs --into x --alignment a --metric chi(map=l1)", "chi2"),
        ("search things red --metric dott+nnn", "dot"),
        ("encode corpus --set x --text-encoder fake-text:small --format parket", "parquet"),
        ("audit things --pairs none --protocol flickr30", "flickr30k"),
        ("fit pairs --alignment x --training epoch=3", "epochs"),
    ],
)
def test_a_mistyped_name_is_a_usage_error_that_tells_the_near_one(unbroken: Path, arguments: str, near: str) -> None:
    """Before anything is opened, so whether the set is there does not matter."""
    ended = modalign(*arguments.replace(" pairs", " no-such-set").split(), "--home", unbroken)
    assert (ended.code, f"did you mean {near!r}" in ended.error) == (2, True), ended.error
