"""What can be known to be refused without a model is refused before one is loaded."""

from pathlib import Path

import pytest

from connector.releases.release import Release
from tests.support.cli import SPECS, done, modalign
from tests.support.fakes import fake_pairs, loads_no_encoder, write_manifest
from tests.support.sparse_copy import copy_sparse

OTHER = ["--image-encoder", "fake-image:other", "--text-encoder", "fake-text:small"]
AUDIT = "audit things --pairs pairs"
INGEST = "ingest {corpus} --into things --alignment a"


@pytest.fixture(scope="module")
def prepared(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared home with a set of other encoders, beside a corpus, a picture, a file and a directory in use."""
    place = tmp_path_factory.mktemp("checks")
    home = copy_sparse(shared, place / "home")
    corpus = write_manifest(place / "m.jsonl", fake_pairs(place, 6, seed=3))
    done("encode", corpus, "--set", "others", *OTHER, "--home", home)
    (place / "file").write_text("a file")
    (place / "empty.csv").write_text("key,image,caption\n")
    (place / "empty").mkdir()
    (place / "title.csv").write_text("key,image,title\n1,images/s3-00000.png,red\n")
    return place


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("search nothing red", "nothing"),
        ("search things red --metric euclid", "euclid"),
        ("search things red --metric nothing", "nothing"),
        ("search things red --filter {{", "JSON"),
        ('search things red --filter {{"must":[{{"key":"key","range":{{"gte":1}}}}]}}', "keyword"),
        ("search things red --by fused --target text", "fused"),
        ("search things {place}/nothing.png", "nothing.png"),
        ("search things {place}/images/s3-00000.png --by caption", "caption"),
        ("search things red --html {place}/file/found.html", "found.html"),
        ("encode {corpus} --set pairs {other}", "fake-image:other"),
        ("encode {corpus} --set pairs --image-encoder fake-text:small", "encodes texts"),
        ("encode {corpus} --set pairs {specs} --dtype float16", "float32"),
        ("encode {corpus} --set new {specs} --key sku", "sku"),
        ("encode {corpus} --set new --image-encoder fake-picture:small", "fake-picture"),
        ("encode {place}/nothing.csv --set new {specs}", "nothing.csv"),
        ("encode {place}/empty.csv --set new {specs}", "is empty"),
        ("encode {place}/empty --set new {specs}", "is empty"),
        ("encode {place}/title.csv --set new {specs}", "--caption title"),
        (f"{INGEST} --key sku", "sku"),
        ("ingest {place}/empty.csv --into things --alignment a", "is empty"),
        ("ingest {place}/title.csv --into things --alignment a", "--caption title"),
        (f"{INGEST} --metric nothing", "nothing"),
        (f"{INGEST} --set others", "fake-image:other"),
        (f"{INGEST} --m 7 --fresh-layout", "things"),
        ("ingest {corpus} --into things --alignment nothing", "nothing"),
        ("ingest {corpus} --into a/b --alignment a", "a/b"),
        ("push others --into things --alignment a", "fake-image:other"),
        ("push nothing --into things --alignment a", "nothing"),
        ("push pairs --into things --alignment nothing", "nothing"),
        ("push pairs --into things --alignment a --metric nothing", "nothing"),
        (f"{AUDIT} --require recall", "recall"),
        (f"{AUDIT} --require recall@10>=high", "high"),
        (f"{AUDIT} --require nothing@10>=0", "nothing@10"),
        (f"{AUDIT} --metric euclid", "euclid"),
        (f"{AUDIT} --report {{place}}/file/page.html", "page.html"),
        (f"{AUDIT} --jsonl {{place}}/file/audits.jsonl", "audits.jsonl"),
        (f"{AUDIT} --baseline 99", "99"),
        ("audit nothing --pairs pairs", "nothing"),
        ("audit things --pairs others", "fake-image:other"),
        ("compare pairs --to {place}/file", "file"),
        ("compare pairs --to {place}", "not empty"),
        ("compare nothing", "nothing"),
        ("compare pairs --metric nothing", "nothing"),
    ],
)
def test_no_encoder_is_loaded(command: str, says: str, prepared: Path) -> None:
    words = command.format(
        place=prepared, corpus=prepared / "m.jsonl", specs=" ".join(SPECS), other=" ".join(OTHER)
    ).split()
    with loads_no_encoder():
        ended = modalign(*words, "--home", prepared / "home")
    assert says in ended.error


def test_no_encoder_is_loaded_for_weights_that_are_not_there(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Release, "fusion", None)
    with loads_no_encoder():
        ended = modalign("search", "things", "red", "--by", "fused", "--home", prepared / "home")
    assert "weights" in ended.error


def test_no_encoder_is_loaded_where_no_set_can_be_written(prepared: Path, tmp_path: Path) -> None:
    home = copy_sparse(prepared / "home", tmp_path / "home")
    (home / "sets").rename(tmp_path / "away")
    (home / "sets").write_text("a file")
    with loads_no_encoder():
        ended = modalign("encode", prepared / "m.jsonl", "--set", "new", *SPECS, "--home", home)
    assert str(home / "sets") in ended.error
