"""Every format says the same of the same content, and is recognised."""

import json
import os
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from connector.corpora.folder import Folder
from connector.corpora.formats import FORMATS, open_corpus
from connector.corpora.images import decode, read_image
from connector.corpora.items import Corpus, reached
from connector.corpora.row_checks import RESERVED
from connector.errors import CorpusError, SettingsError
from tests.support.corpora import (
    SUFFIXES,
    every_reader,
    items,
    no_pipes,
    rejects,
    write_rows,
)
from tests.support.errors import raises
from tests.support.sample_corpora import CAPTIONS, SAMPLES, sample_coco, sample_folder, sample_members, write_tar
from tests.support.units_contract import check_units

every_format = pytest.mark.parametrize("format", FORMATS)
ONE_FILE = ["jsonl", "csv", "parquet", "coco", "karpathy", "flickr", "webdataset"]


def test_every_format_is_tested() -> None:
    assert SAMPLES.keys() == FORMATS.keys()


@every_format
def test_every_format_is_recognised_and_says_the_same(format: str, tmp_path: Path) -> None:
    path = SAMPLES[format](tmp_path)
    opened = open_corpus(path)
    assert opened.format == format
    assert opened == open_corpus(path, format=format)
    entries = list(opened)
    assert rejects(entries) == []
    images = [item for item in items(entries) if item.modality == "image"]
    texts = [item for item in items(entries) if item.modality == "text"]
    expected = [Image.new("RGB", (4, 4), (50 * n, 9, 9)).tobytes() for n in range(3)]
    contents = [item.content for item in images]
    assert [decode(read_image(c)).tobytes() for c in contents if isinstance(c, (Path, bytes))] == expected
    assert [[text.content for text in texts if text.group == image.group] for image in images] == [*CAPTIONS.values()]
    assert [text.key for text in texts[:2]] == [f"{images[0].key}#0", f"{images[0].key}#1"]
    assert [text.payload["caption"] for text in texts] == [text.content for text in texts]
    assert all(isinstance(image.payload["image"], str) for image in images)


@every_format
def test_every_format_is_read_again_alike_and_counts_up(format: str, tmp_path: Path) -> None:
    opened = open_corpus(SAMPLES[format](tmp_path))
    entries = list(opened)
    assert entries == list(opened)
    positions = [reached(one) for one in entries]
    assert positions == sorted(positions)
    assert positions[0] == 1
    total = opened.total()
    assert total is None or total == positions[-1]
    for one in items(entries):
        assert not RESERVED & one.payload.keys()
        json.dumps([one.key, one.group, one.source, dict(one.payload)], ensure_ascii=False, allow_nan=False).encode()


@every_format
def test_the_units_of_every_format_are_the_whole(format: str, tmp_path: Path) -> None:
    check_units(open_corpus(SAMPLES[format](tmp_path)))


@pytest.mark.parametrize("format", ONE_FILE)
def test_a_file_that_was_cut_off_gives_a_part_of_its_items(format: str, tmp_path: Path) -> None:
    path = SAMPLES[format](tmp_path)
    whole, content = list(open_corpus(path)), path.read_bytes()
    for length in sorted({0, 1, 100, 512, 1000, *range(0, len(content), max(1, len(content) // 23))}):
        if length >= len(content):
            continue
        path.write_bytes(content[:length])
        try:
            entries = list(open_corpus(path, format=format))
        except CorpusError:
            continue
        if format in ("jsonl", "csv", "flickr"):  # lines have no end that could be missed, and the last may be cut
            assert all(item in whole for item in items(entries)[:-1])
        else:
            assert all(item in whole for item in items(entries))
            assert rejects(entries) or len(entries) == len(whole)


@pytest.mark.slow
@pytest.mark.parametrize("format", ONE_FILE)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_damaged_bytes_end_in_items_rejects_or_an_error(
    format: str, changes: list[tuple[float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = SAMPLES[format](tmp_path_factory.mktemp(format))
    content = bytearray(path.read_bytes())
    for where, byte in changes:
        content[int(where * len(content))] = byte
    path.write_bytes(content)
    try:
        for one in open_corpus(path, format=format):
            said = {name: value for name, value in zip(one.__slots__, astuple(one), strict=True) if name != "content"}
            json.dumps(said, default=str, allow_nan=False, ensure_ascii=False).encode()
    except CorpusError:
        pass


@every_format
def test_what_is_empty_has_no_items(format: str, tmp_path: Path) -> None:
    path = SAMPLES[format](tmp_path)
    if path.is_dir():
        path = tmp_path / "empty"
        path.mkdir()
    else:
        path.write_bytes(b"")
    try:
        entries = list(open_corpus(path, format=format))
    except CorpusError:
        return
    assert items(entries) == []
    assert rejects(entries) or format in ("jsonl", "flickr", "folder")


def test_a_format_that_there_is_not(tmp_path: Path) -> None:
    with raises(SettingsError, "xml", ", ".join(FORMATS)):
        open_corpus(sample_folder(tmp_path), format="xml")


def test_a_folder_that_may_be_read_in_two_ways_is_asked_about(tmp_path: Path) -> None:
    folder = sample_folder(tmp_path)
    write_tar(folder / "0.tar", sample_members(tmp_path))
    with raises(CorpusError, "folder, webdataset", "--format"):
        open_corpus(folder)
    assert open_corpus(folder, format="webdataset").format == "webdataset"


def test_the_folder_of_coco_is_asked_about(tmp_path: Path) -> None:
    sample_coco(tmp_path)
    with raises(CorpusError, tmp_path, "annotations/captions_*.json", "--format folder"):
        open_corpus(tmp_path)


@pytest.mark.parametrize("format", ["folder", "webdataset", "img2dataset"])
def test_the_images_of_a_corpus_that_holds_them_are_not_elsewhere(format: str, tmp_path: Path) -> None:
    with raises(SettingsError, format, "--images", "coco, karpathy, flickr"):
        open_corpus(SAMPLES[format](tmp_path), images=tmp_path)


def test_vectors_are_imported_and_not_encoded(tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    np.save(tmp_path / "x.npy", np.ones((1, 2)))
    for path in (tmp_path, tmp_path / "x.npy"):
        with raises(CorpusError, path, "modalign import"):
            open_corpus(path)


@pytest.mark.parametrize("name", ["m.json", "m.txt", "m", "m.jsonl.gz", ".jsonl"])
def test_a_file_of_another_kind_is_no_corpus(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with raises(CorpusError, tmp_path / name, ", ".join(SUFFIXES)):
        open_corpus(tmp_path / name)


def test_what_is_not_there_is_no_corpus(tmp_path: Path) -> None:
    with raises(CorpusError, tmp_path / "m.jsonl"):
        open_corpus(tmp_path / "m.jsonl")


@every_reader
def test_a_file_that_goes_or_cannot_be_read_is_a_corpus_error(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [{"key": "a", "caption": "c"}])
    opened = open_corpus(path)
    path.unlink()
    with raises(CorpusError, path, "No such file"):
        list(opened)
    with raises(CorpusError, path, "No such file"):
        opened.total()


@no_pipes
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", [*(f"manifest{suffix}" for suffix in SUFFIXES), "corpus", "corpus.png"])
def test_a_pipe_is_no_corpus_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with raises(CorpusError, tmp_path / name):
        open_corpus(tmp_path / name)


def test_a_corpus_is_a_value() -> None:
    assert Folder(Path("x")) == Folder(Path("x"))
    assert all(issubclass(reader, Corpus) for reader in SUFFIXES.values())


@every_reader
def test_images_of_which_none_is_there_are_told_of_before_any_model_loads(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"key": str(n), "image": f"photos/{n}.png", "caption": f"picture {n}"} for n in range(3)]
    path = write_rows(tmp_path, suffix, rows)
    open_corpus(path)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "3 images" in told
    assert str(tmp_path / "photos" / "0.png") in told
    assert "--images" in told
    caplog.clear()
    (tmp_path / "there" / "photos").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "there" / "photos" / "2.png")
    open_corpus(path, images=tmp_path / "there")
    write_rows(tmp_path, suffix, [{"key": "a", "caption": "a text alone"}])
    open_corpus(path)
    assert not caplog.records


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet", "coco", "karpathy", "flickr"])
def test_a_folder_of_images_that_is_not_there(format: str, tmp_path: Path) -> None:
    path = SAMPLES[format](tmp_path)
    with raises(CorpusError, "--images", tmp_path / "nowhere"):
        open_corpus(path, format=format, images=tmp_path / "nowhere")
