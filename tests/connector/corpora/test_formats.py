import csv
import io
import json
import os
import signal
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from connector.corpora import bounded_lines as lines
from connector.corpora import folder, manifest
from connector.corpora.folder import Folder
from connector.corpora.formats import FORMATS, open_corpus
from connector.corpora.images import decode, read_image
from connector.corpora.items import IMAGE_SUFFIXES, Corpus, Item
from connector.corpora.manifest import RESERVED
from connector.errors import CorpusError, SettingsError
from connector.rejects import Reject
from tests.support.fakes import fake_pairs, write_manifest

Records = list[dict[str, Any]]


# How each reader's files are written: a new reader needs a line here. CSV has no types: texts only.


def write_jsonl(path: Path, records: Records) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_csv(path: Path, records: Records) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        names = list(dict.fromkeys(name for record in records for name in record))
        dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
        out = csv.DictWriter(file, names, restval="", dialect=dialect)
        out.writeheader()
        out.writerows(records)


def write_parquet(path: Path, records: Records) -> None:
    names = list(dict.fromkeys(name for record in records for name in record))
    pq.write_table(pa.table({name: [record.get(name) for record in records] for name in names}), path)


WRITERS: dict[str, Callable[[Path, Records], None]] = {
    ".jsonl": write_jsonl,
    ".ndjson": write_jsonl,
    ".csv": write_csv,
    ".tsv": write_csv,
    ".parquet": write_parquet,
}
SUFFIXES = {suffix: reader for reader in FORMATS.values() for suffix in reader.suffixes}
every_reader = pytest.mark.parametrize("suffix", SUFFIXES)
typed_reader = pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s not in (".csv", ".tsv")])


def read(path: Path) -> list[Item | Reject]:
    return list(open_corpus(path))


def made(directory: Path, suffix: str, records: Iterable[Mapping[str, Any]]) -> Path:
    path = directory / f"manifest{suffix}"
    WRITERS[suffix](path, [dict(record) for record in records])
    return path


def jsonl(directory: Path, *lines: str | bytes | dict[str, Any]) -> Path:
    path = directory / "manifest.jsonl"
    encoded = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in encoded))
    return path


def items(found: Iterable[Item | Reject]) -> list[Item]:
    return [one for one in found if isinstance(one, Item)]


def rejects(found: Iterable[Item | Reject]) -> list[Reject]:
    return [one for one in found if isinstance(one, Reject)]


def reasons(found: Iterable[Item | Reject]) -> list[tuple[int, str]]:
    return [(reject.position, reject.reason) for reject in rejects(found)]


@pytest.fixture
def impatient() -> Iterator[None]:
    """Fail where a test waits: for a writer of a pipe, there is none."""

    def waited(*_: object) -> None:
        pytest.fail("it waits")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


no_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


# Every reader


def test_every_reader_is_tested() -> None:
    assert WRITERS.keys() == SUFFIXES.keys()


@every_reader
def test_the_same_content_gives_the_same_items(suffix: str, tmp_path: Path) -> None:
    path = made(
        tmp_path,
        suffix,
        [
            {"key": "a", "image": "images/a.png", "caption": "first", "group": "g", "topic": "cats"},
            {"key": "a", "image": "images/a.png", "caption": 'second, "quoted"\tand\nbroken', "group": "g"},
            {"key": "b", "image": "images/b.png", "topic": "dogs"},
            {"key": "c", "caption": "  a text without an image \N{CAT FACE} "},
        ],
    )
    source, a = str(path), str(tmp_path / "images/a.png")
    second = 'second, "quoted"\tand\nbroken'
    assert [astuple(item) for item in items(read(path))] == [
        ("image", "a", "g", Path(a), {"image": a, "topic": "cats"}, source, 1),
        ("text", "a#0", "g", "first", {"caption": "first", "topic": "cats"}, source, 1),
        ("text", "a#1", "g", second, {"caption": second}, source, 2),
        (
            "image",
            "b",
            "b",
            tmp_path / "images/b.png",
            {"image": str(tmp_path / "images/b.png"), "topic": "dogs"},
            source,
            3,
        ),
        (
            "text",
            "c#0",
            "c",
            "a text without an image \N{CAT FACE}",
            {"caption": "a text without an image \N{CAT FACE}"},
            source,
            4,
        ),
    ]
    assert rejects(read(path)) == []
    assert open_corpus(path).total() == 4


@typed_reader
def test_a_list_of_captions_is_one_item_each(suffix: str, tmp_path: Path) -> None:
    path = made(
        tmp_path,
        suffix,
        [
            {"key": "a", "image": "a.png", "caption": ["one", "", "  ", "two"]},
            {"key": "b", "image": "b.png", "caption": []},
        ],
    )
    assert [(i.key, i.content) for i in items(read(path)) if i.modality == "text"] == [("a#0", "one"), ("a#1", "two")]
    assert rejects(read(path)) == []


@typed_reader
def test_types_survive_in_the_payload(suffix: str, tmp_path: Path) -> None:
    extra = {"number": 7, "share": 0.5, "yes": True, "tags": ["x", "y"], "nested": {"deep": [1, 2]}}
    [item] = items(read(made(tmp_path, suffix, [{"key": "a", "caption": "c", **extra}])))
    assert item.payload == {"caption": "c", **extra}


@typed_reader
def test_numbers_are_keys_and_groups_too(suffix: str, tmp_path: Path) -> None:
    [item] = items(read(made(tmp_path, suffix, [{"key": 7, "caption": "c", "group": 12}])))
    assert (item.key, item.group) == ("7#0", "12")


@every_reader
def test_reading_again_reads_again(suffix: str, tmp_path: Path) -> None:
    path = made(tmp_path, suffix, [{"key": str(i), "caption": f"text {i}"} for i in range(5)])
    opened = open_corpus(path)
    assert list(opened) == list(opened)
    assert len(list(opened)) == 5


@every_reader
def test_an_empty_corpus_has_no_items(suffix: str, tmp_path: Path) -> None:
    path = made(tmp_path, suffix, [{"key": "a", "caption": "c"}])
    if suffix == ".parquet":
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    elif suffix in (".csv", ".tsv"):
        path.write_text(path.read_text().splitlines()[0])
    else:
        path.write_text("")
    assert read(path) == []
    assert open_corpus(path).total() == 0


@every_reader
@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": "a.png", "caption": "c"}, "key-missing"),
        ({"key": "", "caption": "c"}, "key-missing"),
        ({"key": "a"}, "row-without-image-or-caption"),
        ({"key": "a", "image": "", "caption": "   "}, "row-without-image-or-caption"),
        *(({"key": "a", "caption": "c", name: "x"}, "payload-name-reserved") for name in sorted(RESERVED)),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_alone(
    suffix: str, record: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    columns = {"key": "ok", "image": "ok.png", "caption": "fine"}
    path = made(tmp_path, suffix, [columns, record, {**columns, "key": "after"}])
    found = read(path)
    assert [item.key for item in items(found)] == ["ok", "ok#0", "after", "after#0"]
    assert reasons(found) == [(2, reason)]
    [reject] = rejects(found)
    assert (reject.source, reject.stage, reject.modality) == (str(path), "read", None)
    assert reject.key == (record.get("key") or None if reason == "key-missing" else "a")
    assert reject.detail


@typed_reader
@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"key": 1.5, "caption": "c"}, "key-not-text"),
        ({"key": True, "caption": "c"}, "key-not-text"),
        ({"key": ["a"], "caption": "c"}, "key-not-text"),
        ({"key": "a", "caption": "c", "group": {"x": 1}}, "group-not-text"),
        ({"key": "a", "image": ["a.png"], "caption": "c"}, "image-not-text"),
        ({"key": "a", "caption": 7}, "caption-not-text"),
        ({"key": "a", "caption": [7]}, "caption-not-text"),
        ({"key": "a", "caption": ["fine", None]}, "caption-not-text"),
        ({"key": "a", "caption": "c", "score": float("nan")}, "payload-not-json"),
        ({"key": "a", "caption": "c", "score": float("inf")}, "payload-not-json"),
        ({"key": "a", "caption": "c", "deep": {"er": [1.0, float("nan")]}}, "payload-not-json"),
    ],
)
def test_a_row_of_wrong_types_is_refused(suffix: str, record: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert reasons(read(made(tmp_path, suffix, [record]))) == [(1, reason)]


@pytest.mark.parametrize(
    "payload",
    [
        {"n": 2**63},
        {"n": -(2**63) - 1},
        {"deep": {"n": 2**70}},
        {"list": [1, [2, {"n": 2**64}]]},
        {"text": "a\x00b"},
        {"deep": ["a\x00b"]},
        {"na\x00me": 1},
    ],
)
def test_what_no_database_can_store_is_refused(payload: dict[str, Any], tmp_path: Path) -> None:
    found = read(jsonl(tmp_path, {"key": "a", "caption": "c", **payload}, {"key": "b", "caption": "c"}))
    assert reasons(found) == [(1, "payload-not-json")]
    assert [item.key for item in items(found)] == ["b#0"]


def test_what_just_fits_is_kept(tmp_path: Path) -> None:
    payload = {"large": 2**63 - 1, "small": -(2**63), "true": True, "text": "\\u0000", "deep": [None, 1e308]}
    [item] = items(read(jsonl(tmp_path, {"key": "a", "caption": "c", **payload})))
    assert item.payload == {"caption": "c", **payload}


@pytest.mark.parametrize("field", ["key", "image", "caption", "group"])
def test_a_nul_is_no_text(field: str, tmp_path: Path) -> None:
    row = {"key": "a", "image": "a.png", "caption": "c", "group": "g", field: "x\x00y"}
    assert reasons(read(jsonl(tmp_path, row))) == [(1, "row-unreadable")]


def test_integers_of_thousands_of_digits_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    found = read(jsonl(tmp_path, '{"key": "a", "caption": "c", "n": ' + "9" * 100_000 + "}"))
    assert reasons(found) == [(1, "row-unreadable")]


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    found = read(jsonl(tmp_path, '{"key": "a", "caption": "c", "deep": ' + deep + "}", {"key": "b", "caption": "c"}))
    assert reasons(found) == [(1, "row-unreadable")]
    assert [item.key for item in items(found)] == ["b#0"]


# Every format, from one content: images a.png, b.png and c.png, with the captions of CAPTIONS


CAPTIONS = {"a": ['a dog, "running"', "a hound"], "b": ["zwei Katzen \N{CAT FACE}"], "c": ["a boat"]}


def pictures(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(CAPTIONS):
        Image.new("RGB", (4, 4), (50 * number, 9, 9)).save(directory / f"{name}.png")


def sample_rows(directory: Path) -> Records:
    pictures(directory / "images")
    return [
        {"key": name, "image": f"images/{name}.png", "caption": caption}
        for name, captions in CAPTIONS.items()
        for caption in captions
    ]


def sample_manifest(suffix: str) -> Callable[[Path], Path]:
    def write(directory: Path) -> Path:
        return made(directory, suffix, sample_rows(directory))

    return write


def sample_folder(directory: Path) -> Path:
    pictures(directory / "photos")
    for name, captions in CAPTIONS.items():
        (directory / "photos" / f"{name}.txt").write_text("\n".join(captions), encoding="utf-8")
    return directory / "photos"


def sample_coco(directory: Path) -> Path:
    pictures(directory / "val2017")
    (directory / "annotations").mkdir()
    path = directory / "annotations" / "captions_val2017.json"
    images = [{"id": n, "file_name": f"{name}.png", "height": 4} for n, name in enumerate(CAPTIONS)]
    told = [(n, caption) for n, captions in enumerate(CAPTIONS.values()) for caption in captions]
    annotations = [{"id": 90 - n, "image_id": image, "caption": text} for n, (image, text) in enumerate(told)]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return path


def sample_karpathy(directory: Path) -> Path:
    pictures(directory / "val2014")
    images = [
        {
            "filepath": "val2014",
            "filename": f"{name}.png",
            "imgid": n,
            "split": "restval",
            "cocoid": n,
            "sentids": [1],
            "sentences": [{"tokens": ["x"], "raw": text} for text in captions],
        }
        for n, (name, captions) in enumerate(CAPTIONS.items())
    ]
    (directory / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return directory / "dataset_coco.json"


def sample_flickr(directory: Path) -> Path:
    pictures(directory / "flickr30k-images")
    lines = [f"{name}.png#{n}\t{text}" for name, captions in CAPTIONS.items() for n, text in enumerate(captions)]
    (directory / "results.token").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory / "results.token"


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def sample_members(directory: Path, captions: Mapping[str, list[str]] = CAPTIONS) -> Iterator[tuple[str, bytes]]:
    pictures(directory / "pictures")
    for name, texts in captions.items():
        yield f"{name}.png", (directory / "pictures" / f"{name}.png").read_bytes()
        yield f"{name}.json", json.dumps({"caption": texts, "width": 4}).encode()


def sample_webdataset(directory: Path) -> Path:
    return write_tar(directory / "samples.tar", sample_members(directory))


def sample_img2dataset(directory: Path) -> Path:
    folder = directory / "downloaded"
    folder.mkdir()
    write_tar(folder / "00000.tar", sample_members(directory))
    table = {"key": [*CAPTIONS], "status": ["success"] * 3, "url": ["http://x/y"] * 3, "error_message": [None] * 3}
    pq.write_table(pa.table(table), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return folder


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "jsonl": sample_manifest(".jsonl"),
    "csv": sample_manifest(".csv"),
    "parquet": sample_manifest(".parquet"),
    "folder": sample_folder,
    "coco": sample_coco,
    "karpathy": sample_karpathy,
    "flickr": sample_flickr,
    "webdataset": sample_webdataset,
    "img2dataset": sample_img2dataset,
}
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
    found = list(opened)
    assert rejects(found) == []
    images = [item for item in items(found) if item.modality == "image"]
    texts = [item for item in items(found) if item.modality == "text"]
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
    found = list(opened)
    assert found == list(opened)
    positions = [one.position for one in found]
    assert positions == sorted(positions)
    assert positions[0] == 1
    total = opened.total()
    assert total is None or total == positions[-1]
    for one in items(found):
        assert not RESERVED & one.payload.keys()
        json.dumps([one.key, one.group, one.source, dict(one.payload)], ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("format", ONE_FILE)
def test_a_file_that_was_cut_off_gives_a_part_of_its_items(format: str, tmp_path: Path) -> None:
    path = SAMPLES[format](tmp_path)
    whole, content = list(open_corpus(path)), path.read_bytes()
    for length in sorted({0, 1, 100, 512, 1000, *range(0, len(content), max(1, len(content) // 23))}):
        if length >= len(content):
            continue
        path.write_bytes(content[:length])
        try:
            found = list(open_corpus(path, format=format))
        except CorpusError:
            continue
        if format in ("jsonl", "csv", "flickr"):  # lines have no end that could be missed, and the last may be cut
            assert all(item in whole for item in items(found)[:-1])
        else:
            assert all(item in whole for item in items(found))
            assert rejects(found) or len(found) == len(whole)


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
        found = list(open_corpus(path, format=format))
    except CorpusError:
        return
    assert items(found) == []
    assert rejects(found) or format in ("jsonl", "flickr", "folder")


def test_a_format_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown format 'xml'; expected one of jsonl, csv, parquet, folder, coco"):
        open_corpus(sample_folder(tmp_path), format="xml")


def test_a_folder_that_may_be_read_in_two_ways_is_asked_about(tmp_path: Path) -> None:
    folder = sample_folder(tmp_path)
    write_tar(folder / "0.tar", sample_members(tmp_path))
    with pytest.raises(CorpusError, match=r"may be read as folder, webdataset; say which with --format"):
        open_corpus(folder)
    assert open_corpus(folder, format="webdataset").format == "webdataset"


def test_the_folder_of_coco_is_asked_about(tmp_path: Path) -> None:
    sample_coco(tmp_path)
    with pytest.raises(CorpusError, match=r"expected one of its annotations/captions_\*\.json, or --format folder"):
        open_corpus(tmp_path)


@pytest.mark.parametrize("format", ["jsonl", "folder", "webdataset", "img2dataset"])
def test_the_images_of_a_corpus_that_holds_them_are_not_elsewhere(format: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{format} says itself .* --images goes with coco, karpathy, flickr"):
        open_corpus(SAMPLES[format](tmp_path), images=tmp_path)


def test_vectors_are_imported_and_not_encoded(tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    np.save(tmp_path / "x.npy", np.ones((1, 2)))
    for path in (tmp_path, tmp_path / "x.npy"):
        with pytest.raises(CorpusError, match="holds vectors, no images or texts: `modalign import` takes them"):
            open_corpus(path)


# Keys that repeat


@every_reader
def test_consecutive_rows_add_captions_to_one_image(suffix: str, tmp_path: Path) -> None:
    rows = [{"key": "a", "image": "a.png", "caption": f"caption {i}"} for i in range(4)]
    rows += [{"key": "b", "image": "b.png", "caption": "caption 0"}]
    found = read(made(tmp_path, suffix, rows))
    assert [(item.modality, item.key, item.position) for item in items(found)] == [
        ("image", "a", 1),
        ("text", "a#0", 1),
        ("text", "a#1", 2),
        ("text", "a#2", 3),
        ("text", "a#3", 4),
        ("image", "b", 5),
        ("text", "b#0", 5),
    ]
    assert rejects(found) == []


def test_an_image_may_follow_its_first_caption(tmp_path: Path) -> None:
    found = read(jsonl(tmp_path, {"key": "a", "caption": "c"}, {"key": "a", "image": "a.png", "caption": "d"}))
    assert [(item.modality, item.key) for item in items(found)] == [("text", "a#0"), ("image", "a"), ("text", "a#1")]


@pytest.mark.parametrize(
    "second",
    [
        {"key": "a", "image": "other.png", "caption": "d", "group": "g"},
        {"key": "a", "image": "a.png", "caption": "d", "group": "other"},
        {"key": "a", "image": "a.png", "caption": "c", "group": "g"},
        {"key": "a", "image": "a.png", "group": "g"},
        {"key": "a", "caption": ["e", "c"], "group": "g"},
    ],
)
def test_a_row_that_contradicts_or_repeats_the_one_before_is_refused(second: dict[str, Any], tmp_path: Path) -> None:
    first = {"key": "a", "image": "a.png", "caption": "c", "group": "g"}
    third = {"key": "a", "image": "a.png", "caption": "third", "group": "g"}
    found = read(jsonl(tmp_path, first, second, third))
    assert reasons(found) == [(2, "key-duplicate")]
    assert [item.key for item in items(found)] == ["a", "a#0", "a#1"]


def test_a_row_that_repeats_an_earlier_but_one_is_refused(tmp_path: Path) -> None:
    rows = [{"key": "a", "caption": caption} for caption in ("one", "two", "one")]
    assert reasons(read(jsonl(tmp_path, *rows))) == [(3, "key-duplicate")]


def test_a_key_that_names_everything_is_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MOST_CAPTIONS", 10)
    rows = [{"key": "same", "caption": f"caption {i}"} for i in range(13)]
    found = read(jsonl(tmp_path, *rows))
    assert len(items(found)) == 10
    assert reasons(found) == [(11, "key-duplicate"), (12, "key-duplicate"), (13, "key-duplicate")]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.booleans()), max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_every_row_gives_items_or_one_reject_and_keys_in_a_run_are_unique(
    tmp_path: Path, rows: list[tuple[str, int, bool]]
) -> None:
    written = [
        {"key": key, **({"image": f"{key}.png"} if image else {}), "caption": [f"c{i}" for i in range(captions)]}
        for key, captions, image in rows
    ]
    found = read(jsonl(tmp_path, *written))
    positions = [one.position for one in found]
    assert positions == sorted(positions)
    assert set(positions) == set(range(1, len(rows) + 1))
    refused = {reject.position for reject in rejects(found)}
    assert len(refused) == len(rejects(found))
    assert not refused & {item.position for item in items(found)}
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i][0] != rows[start][0]:
            run = [(item.modality, item.key) for item in items(found) if start < item.position <= i]
            assert len(run) == len(set(run))
            start = i


# Bytes


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".parquet"])
def test_a_byte_order_mark_means_nothing(suffix: str, tmp_path: Path) -> None:
    path = made(tmp_path, suffix, [{"key": "a", "caption": "c"}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [item.key for item in read(path) if isinstance(item, Item)] == ["a#0"]
    assert rejects(read(path)) == []


def test_blank_lines_mean_nothing_but_count_as_lines(tmp_path: Path) -> None:
    found = read(
        jsonl(tmp_path, "", '{"key": "a", "caption": "c"}\r', "   ", "\t\r", '{"key": "b", "caption": "c"}', "")
    )
    assert [(item.key, item.position) for item in items(found)] == [("a#0", 2), ("b#0", 5)]
    assert rejects(found) == []


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b"null",
        b'"key"',
        b"key,caption",
        b'{"key": "a" "caption": "c"}',
        b"\x00",
        b"\xff\xfe{",
        b'{"key": "\xff", "caption": "c"}',
        b'{"key": "\\ud800", "caption": "c"}',
        b'{"key": "a", "caption": "\\udfff"}',
        b'{"key": "a", "caption": "c", "x": "\\ud800"}',
        b'{"key": "a", "caption": "c", "\\ud800": 1}',
    ],
)
def test_a_line_that_is_no_json_object_in_utf8_is_refused_alone(line: bytes, tmp_path: Path) -> None:
    found = read(jsonl(tmp_path, {"key": "a", "caption": "c"}, line, {"key": "b", "caption": "c"}))
    assert [item.key for item in items(found)] == ["a#0", "b#0"]
    assert reasons(found) == [(2, "row-unreadable")]


@every_reader
def test_bytes_that_are_no_utf8_refuse_their_own_row(suffix: str, tmp_path: Path) -> None:
    path = made(tmp_path, suffix, [{"key": key, "caption": f"caption {key}"} for key in ("aa", "bb", "cc")])
    if suffix == ".parquet":
        broken = pa.array([b"caption aa", b"caption \xff\xfe", b"caption cc"], pa.binary()).view(pa.string())
        pq.write_table(pa.table({"key": ["aa", "bb", "cc"], "caption": broken}), path)
    else:
        path.write_bytes(path.read_bytes().replace(b"caption bb", b"caption \xff\xfe"))
    found = read(path)
    assert [item.key for item in items(found)] == ["aa#0", "cc#0"]
    assert reasons(found) == [(2, "row-unreadable")]


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("\ud800")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20).filter(lambda line: b"\n" not in line),
            st.fixed_dictionaries(
                {}, optional=dict.fromkeys(("key", "image", "caption", "group", "modality", "x"), ANYTHING)
            ),
            st.fixed_dictionaries({"key": st.text(max_size=3), "caption": st.text(max_size=3)}),
        ),
        max_size=6,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_file_everything_that_is_said_of_it_can_be_stored(
    tmp_path: Path, lines: list[bytes | dict[str, Any]]
) -> None:
    for one in read(jsonl(tmp_path, *lines)):
        text = json.dumps(astuple(one), default=str, allow_nan=False, ensure_ascii=False)
        text.encode()
        assert "\\u0000" not in text.replace("\\\\", "")
        if isinstance(one, Item):
            assert one.key.startswith(str(one.key.rpartition("#")[0]))
            assert one.content
            assert not RESERVED & one.payload.keys()


# CSV


def test_a_tab_separates_in_a_tsv_and_a_comma_in_a_csv(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text("key\tcaption\na\tone, two\n")
    (tmp_path / "m.CSV").write_text("key,caption\na,one\ttwo\n")
    assert [item.content for item in items(read(tmp_path / "m.tsv"))] == ["one, two"]
    assert [item.content for item in items(read(tmp_path / "m.CSV"))] == ["one\ttwo"]


def test_records_of_another_length_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("key,caption\na,one\nb\nc,one,two\n\nd,four\n")
    found = read(tmp_path / "m.csv")
    assert [(item.key, item.position) for item in items(found)] == [("a#0", 1), ("d#0", 4)]
    assert reasons(found) == [(2, "row-unreadable"), (3, "row-unreadable")]
    assert "2 fields" in rejects(found)[0].detail
    assert open_corpus(tmp_path / "m.csv").total() == 4


def test_a_quote_that_is_never_closed_is_refused_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = csv.field_size_limit()
    monkeypatch.setattr(manifest, "LONGEST_FIELD", 1000)
    (tmp_path / "m.csv").write_text('key,caption\na,"never closed\n' + "".join(f"b{i},fine\n" for i in range(400)))
    try:
        found = read(tmp_path / "m.csv")
        assert "row-unreadable" in {reason for _, reason in reasons(found)}
        assert len(items(found)) > 100
        assert open_corpus(tmp_path / "m.csv").total() == items(found)[-1].position
    finally:
        csv.field_size_limit(limit)


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(lines, "LONGEST_LINE", 100_000)
    return 100_000


# A line of 20 MB, and what is read after it, by the position of each.
LONG = 20_000_000
LONG_LINES = {
    ".jsonl": ('{"key": "a", "caption": "one"}\n{"key": "', '\n{"key": "c", "caption": "two"}\n'),
    ".csv": ("key,caption\na,one\nb,", "\nc,two\n"),
    ".tsv": ("key\tcaption\na\tone\nb\t", "\r\nc\ttwo\r\n"),
    ".token": ("a.jpg#0\tone\nb.jpg#0\t", "\nc.jpg#0\ttwo\n"),
}


@pytest.mark.parametrize("suffix", LONG_LINES)
@pytest.mark.parametrize("last", [False, True])
def test_a_line_without_end_is_a_reject_and_never_in_memory(
    tmp_path: Path, suffix: str, last: bool, short_lines: int
) -> None:
    path, (before, after) = tmp_path / f"m{suffix}", LONG_LINES[suffix]
    path.write_text(before + "x" * LONG + after * (not last), newline="")
    (tmp_path / "a.jpg").touch()
    tracemalloc.start()
    found = read(path)
    total = open_corpus(path).total()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [item.position for item in items(found) if item.modality == "text"] == [1, 3][: 1 if last else 2]
    assert reasons(found) == [(2, "line-too-long")]
    line = 3 if suffix in (".csv", ".tsv") else 2  # their header is a line and no record
    assert rejects(found)[0].detail.startswith(f"line {line} has a length of 200000")
    assert rejects(found)[0].detail.endswith(f"expected {short_lines} at most")
    assert total == 2 if last else 3
    assert peak < LONG / 4


def test_the_longest_line_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"key": "a", "caption": "one"}\n'
    monkeypatch.setattr(lines, "LONGEST_LINE", len(line))
    (tmp_path / "m.jsonl").write_text(line + line.replace('"a"', '"bb"') + line.replace('"a"', '"c"'))
    found = read(tmp_path / "m.jsonl")
    assert [item.key for item in items(found)] == ["a#0", "c#0"]
    assert rejects(found)[0].detail == f"line 2 has a length of {len(line) + 1}, expected {len(line)} at most"


def test_a_record_of_many_lines_is_refused_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 1000)
    endless = 'b,"two' + '\n","' * 2000 + '"\n'
    (tmp_path / "m.csv").write_text(f"key,caption\na,one\n{endless}c,three\n" + "d,four\n" * 1000)
    found = read(tmp_path / "m.csv")
    assert items(found)[0].key == "a#0"
    assert "d#0" in {item.key for item in items(found)}
    first = rejects(found)[0]
    assert (first.position, first.reason) == (2, "line-too-long")
    assert first.detail.startswith("the record that goes on in line 25")
    assert first.detail.endswith("look for a quote that is never closed")


def test_quoted_fields_may_hold_lines(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b'key,caption\r\na,"one\r\ntwo"\r\nb,three\r\n')
    found = items(read(tmp_path / "m.csv"))
    assert [(item.content, item.position) for item in found] == [("one\r\ntwo", 1), ("three", 2)]


# Parquet


def test_dates_and_bytes_are_no_json(tmp_path: Path) -> None:
    table = {"key": ["a", "b"], "caption": ["c", "c"], "when": [datetime(2024, 2, 29, tzinfo=UTC), None]}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    found = read(tmp_path / "m.parquet")
    assert reasons(found) == [(1, "payload-not-json")]
    assert [item.key for item in items(found)] == ["b#0"]
    pq.write_table(pa.table({"key": ["a"], "caption": ["c"], "raw": [b"\x00"]}), tmp_path / "m.parquet")
    assert reasons(read(tmp_path / "m.parquet")) == [(1, "payload-not-json")]


def test_a_value_that_python_cannot_hold_refuses_its_row(tmp_path: Path) -> None:
    when = pa.array([0, 2**62, 0], pa.timestamp("us"))  # beyond the year 9999
    pq.write_table(pa.table({"key": ["a", "b", "c"], "caption": ["c"] * 3, "when": when}), tmp_path / "m.parquet")
    assert reasons(read(tmp_path / "m.parquet"))[1] == (2, "row-unreadable")
    assert len(read(tmp_path / "m.parquet")) == 3


def test_a_truncated_parquet_file_is_no_corpus(tmp_path: Path) -> None:
    path = made(tmp_path, ".parquet", [{"key": str(i), "caption": f"text {i}"} for i in range(100)])
    content = path.read_bytes()
    for length in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CorpusError, match=r"manifest.parquet is not a Parquet file"):
            read(path)
        with pytest.raises(CorpusError, match=r"manifest.parquet is not a Parquet file"):
            open_corpus(path).total()


def test_damage_within_a_parquet_file_ends_it_with_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    keys = [f"{i:06d}" for i in range(3000)]
    table = pa.table({"key": keys, "caption": [f"text {k}" for k in keys]})
    pq.write_table(table, path, row_group_size=1024, compression="zstd", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xaa" * column.total_compressed_size
    path.write_bytes(content)
    found = read(path)
    assert [item.key for item in items(found)] == [f"{key}#0" for key in keys[:1024]]
    assert reasons(found) == [(1025, "file-truncated")]


# Columns


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("names", [["caption"], ["key"], ["Key", "Caption"], ["key", "text"]])
def test_a_manifest_without_its_columns_is_no_corpus(suffix: str, names: list[str], tmp_path: Path) -> None:
    path = made(tmp_path, suffix, [dict.fromkeys(names, "x")])
    with pytest.raises(CorpusError) as caught:
        read(path)
    assert "expected the columns key and image or caption" in str(caught.value)
    assert str(caught.value).endswith(f"got {', '.join(names)}")


def test_a_csv_without_a_header_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("")
    with pytest.raises(CorpusError, match="got none"):
        read(tmp_path / "m.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_stands_there_twice_is_no_column(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    if suffix == ".csv":
        path.write_text("key,caption,caption\na,one,two\n")
    else:
        columns = [pa.array(["a"]), pa.array(["one"]), pa.array(["two"])]
        pq.write_table(pa.Table.from_arrays(columns, names=["key", "caption", "caption"]), path)
    with pytest.raises(CorpusError, match=r"caption.*twice"):
        read(path)


def test_a_header_without_end_is_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = csv.field_size_limit()
    monkeypatch.setattr(manifest, "LONGEST_FIELD", 1000)
    (tmp_path / "m.csv").write_text("key,caption," + "x" * 2000 + "\na,c,d\n")
    try:
        with pytest.raises(CorpusError, match="header cannot be read"):
            read(tmp_path / "m.csv")
        assert open_corpus(tmp_path / "m.csv").total() == 1
    finally:
        csv.field_size_limit(limit)


# Paths


@every_reader
def test_images_are_relative_to_the_manifest(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    absolute = str(tmp_path / "elsewhere.png")
    rows = [{"key": "a", "image": "x/a.png"}, {"key": "b", "image": "../b.png"}, {"key": "c", "image": absolute}]
    path = made(tmp_path / "deep", suffix, rows)
    expected = [tmp_path / "deep/x/a.png", tmp_path / "deep/../b.png", Path(absolute)]
    assert [item.content for item in items(read(path))] == expected
    monkeypatch.chdir(tmp_path)
    assert [item.content for item in items(open_corpus(f"deep/manifest{suffix}"))] == expected


def test_written_manifests_are_read(tmp_path: Path) -> None:
    pairs = fake_pairs(tmp_path, 5, captions=2)
    found = read(write_manifest(tmp_path / "m.jsonl", pairs, {"key": "extra"}))
    assert [item.key for item in items(found) if item.modality == "image"] == [pair.key for pair in pairs]
    assert all(item.content.is_file() for item in items(found) if isinstance(item.content, Path))
    assert reasons(found) == [(6, "row-without-image-or-caption")]


@pytest.mark.parametrize("name", ["m.json", "m.txt", "m", "m.jsonl.gz", ".jsonl"])
def test_a_file_of_another_kind_is_no_corpus(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CorpusError) as caught:
        open_corpus(tmp_path / name)
    assert "expected a folder of images or a file ending in .jsonl, .ndjson, .csv, .tsv, .parquet" in str(caught.value)
    assert str(caught.value).endswith(f"got {(tmp_path / name).suffix or 'no suffix'}")


def test_what_is_not_there_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"m.jsonl does not exist"):
        open_corpus(tmp_path / "m.jsonl")


@every_reader
def test_a_file_that_goes_or_cannot_be_read_is_a_corpus_error(suffix: str, tmp_path: Path) -> None:
    path = made(tmp_path, suffix, [{"key": "a", "caption": "c"}])
    opened = open_corpus(path)
    path.unlink()
    with pytest.raises(CorpusError, match="cannot be read: No such file"):
        list(opened)
    with pytest.raises(CorpusError, match="cannot be read: No such file"):
        opened.total()


# Memory


class Counting(io.FileIO):
    """A file that knows how far it was read."""

    reached = 0

    def readinto(self, buffer: Any) -> Any:
        count = super().readinto(buffer)
        Counting.reached = max(Counting.reached, self.tell())
        return count

    def read(self, size: int | None = -1) -> Any:
        content = super().read(-1 if size is None else size)
        Counting.reached = max(Counting.reached, self.tell())
        return content


@every_reader
def test_the_first_item_does_not_read_the_whole_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    words = np.random.default_rng(0).integers(0, 2**62, 20_000)
    path = tmp_path / f"m{suffix}"
    records = [{"key": str(i), "caption": f"caption {word}"} for i, word in enumerate(words)]
    if suffix == ".parquet":
        columns = {name: [record[name] for record in records] for name in ("key", "caption")}
        pq.write_table(pa.table(columns), path, row_group_size=1000, use_dictionary=False)
        original = manifest.records

        def watched(batch: pa.RecordBatch) -> list[Any]:
            batches.append(batch.num_rows)
            return original(batch)

        monkeypatch.setattr(manifest, "records", watched)
    else:
        WRITERS[suffix](path, records)

        def opened(self: Path, mode: str = "r", *_: Any, **options: Any) -> Any:
            raw = io.BufferedReader(Counting(str(self)))
            return raw if "b" in mode else io.TextIOWrapper(raw, **options)

        monkeypatch.setattr(Path, "open", opened)
    Counting.reached = 0
    first = next(iter(open_corpus(path)))
    assert isinstance(first, Item)
    assert first.key == "0#0"
    if suffix == ".parquet":
        assert sum(batches) <= 1024
    else:
        assert 0 < Counting.reached < path.stat().st_size / 3


@no_pipes
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", [*(f"manifest{suffix}" for suffix in SUFFIXES), "corpus", "corpus.png"])
def test_a_pipe_is_no_corpus_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CorpusError, match=f"{name} is no regular file, and could not be read again after a kill"):
        open_corpus(tmp_path / name)


# Folders


def touch(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one\n\n  two  \n" if path.suffix.lower() == ".txt" else "not decoded here")


def test_a_folder_is_its_images_with_the_lines_beside_them(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "b.txt", "a.PNG", "sub/c.webp", "sub/c.txt", "notes.md", "movie.mp4")
    opened = open_corpus(tmp_path)
    assert isinstance(opened, Folder)
    path = str(tmp_path)
    assert [astuple(item) for item in items(opened)] == [
        ("image", "a.PNG", "a.PNG", tmp_path / "a.PNG", {"image": f"{path}/a.PNG"}, f"{path}/a.PNG", 1),
        ("image", "b.jpg", "b.jpg", tmp_path / "b.jpg", {"image": f"{path}/b.jpg"}, f"{path}/b.jpg", 2),
        ("text", "b.jpg#0", "b.jpg", "one", {"caption": "one"}, f"{path}/b.txt", 2),
        ("text", "b.jpg#1", "b.jpg", "two", {"caption": "two"}, f"{path}/b.txt", 2),
        (
            "image",
            "sub/c.webp",
            "sub/c.webp",
            tmp_path / "sub/c.webp",
            {"image": f"{path}/sub/c.webp"},
            f"{path}/sub/c.webp",
            3,
        ),
        ("text", "sub/c.webp#0", "sub/c.webp", "one", {"caption": "one"}, f"{path}/sub/c.txt", 3),
        ("text", "sub/c.webp#1", "sub/c.webp", "two", {"caption": "two"}, f"{path}/sub/c.txt", 3),
    ]
    assert rejects(opened) == []
    assert opened.total() == 3


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_of_an_image_is_known_in_any_case(suffix: str, tmp_path: Path) -> None:
    touch(tmp_path, f"a{suffix}", f"b{suffix.upper()}", f"c{suffix.title()}", "a.txt", "b.TXT", "c.Txt")
    found = read(tmp_path)
    assert rejects(found) == []
    assert len(items(found)) == 9
    assert open_corpus(tmp_path).total() == 3


def test_captions_without_an_image_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.txt", "b.txt", "sub/a.txt")
    found = read(tmp_path)
    assert [(r.source, r.reason) for r in rejects(found)] == [
        (str(tmp_path / "b.txt"), "caption-without-image"),
        (str(tmp_path / "sub/a.txt"), "caption-without-image"),
    ]
    assert len(items(found)) == 3


def test_captions_that_are_no_utf8_are_refused_and_their_image_is_kept(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    found = read(tmp_path)
    assert [item.key for item in items(found)] == ["a.png"]
    [reject] = rejects(found)
    assert (reject.reason, reject.key, reject.modality) == ("row-unreadable", "a.png", "text")


def test_captions_may_start_with_a_byte_order_mark_and_hold_odd_separators(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028still one\x0cstill\r\ntwo\rthree\n".encode())
    found = [item.content for item in items(read(tmp_path)) if item.modality == "text"]
    assert found == ["one\u2028still one\x0cstill", "two", "three"]


def test_captions_with_a_nul_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"one\x00")
    assert [reject.reason for reject in rejects(read(tmp_path))] == ["row-unreadable"]


@no_pipes
@pytest.mark.usefixtures("impatient")
def test_captions_that_are_a_pipe_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "b.txt")
    os.mkfifo(tmp_path / "a.txt")
    found = read(tmp_path)
    assert [item.key for item in items(found)] == ["a.png", "b.png", "b.png#0", "b.png#1"]
    [reject] = rejects(found)
    assert (reject.source, reject.position, reject.stage) == (str(tmp_path / "a.txt"), 1, "read")
    assert (reject.reason, reject.key, reject.modality) == ("row-unreadable", "a.png", "text")
    assert reject.detail == "no regular file"


def test_captions_of_many_megabytes_are_no_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LONGEST_FIELD", 10)
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("x" * 11)
    assert [reject.reason for reject in rejects(read(tmp_path))] == ["row-unreadable"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_file_whose_name_is_no_unicode_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):  # noqa: PTH123
        pass
    found = read(tmp_path)
    assert [item.key for item in items(found)] == ["a.png"]
    [reject] = rejects(found)
    assert reject.reason == "path-not-unicode"
    json.dumps(astuple(reject), ensure_ascii=False).encode()


def test_links_to_other_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.png", "elsewhere/b.png")
    (tmp_path / "photos/more").symlink_to(tmp_path / "elsewhere")
    assert [item.key for item in items(read(tmp_path / "photos"))] == ["a.png", "more/b.png"]


@pytest.mark.parametrize(
    "links",
    [
        {"loop": "."},
        {"sub/loop": "."},
        {"sub/loop": "sub"},
        {"a/x": "b", "b/y": "a"},
        {"a/x": "b", "b/y": "c", "c/z": "a"},
    ],
)
def test_links_in_a_circle_end(links: dict[str, str], tmp_path: Path) -> None:
    touch(tmp_path, "top.png", "a/a.png", "b/b.png", "c/c.png", "sub/s.png")
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    found = read(tmp_path)
    assert {item.content.name for item in items(found) if isinstance(item.content, Path)} == {
        "top.png",
        "a.png",
        "b.png",
        "c.png",
        "s.png",
    }
    assert {reject.reason for reject in rejects(found)} == {"folder-unreadable"}
    assert len(found) < 40


def test_a_dangling_link_is_left_to_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    assert [item.key for item in items(read(tmp_path))] == ["a.png"]


def test_an_empty_folder_has_no_items(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    assert open_corpus(tmp_path).total() == 0


def test_a_folder_that_is_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "album.png/a.png")
    assert [item.key for item in items(read(tmp_path))] == ["album.png/a.png"]


def test_a_corpus_is_a_value() -> None:
    assert Folder(Path("x")) == Folder(Path("x"))
    assert all(issubclass(reader, Corpus) for reader in SUFFIXES.values())
