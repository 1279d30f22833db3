"""Corpora are cut into units that several processes can read: their entries are those of the whole, whatever it holds.

`check_units` compares everything that the entries say. Sizes of units are random.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connector.corpora import annotations as annotation_files
from connector.corpora import bounded_lines, folder, line_ranges, parquet_manifest, tables
from connector.corpora.annotations import CocoCaptions, Karpathy
from connector.corpora.flickr_tokens import FlickrTokens
from connector.corpora.folder import Folder
from connector.corpora.formats import open_corpus
from connector.corpora.img2dataset import Img2Dataset
from connector.corpora.items import Corpus, Item
from connector.corpora.parquet_manifest import Parquet, records
from connector.corpora.row_checks import parse_json
from connector.corpora.tables import JsonLines
from connector.corpora.webdataset import WebDataset
from connector.errors import CorpusChangedError, CorpusError
from tests.support.corpora import items, write_lines, write_rows
from tests.support.errors import raises
from tests.support.sample_corpora import sample_img2dataset, write_tar
from tests.support.units_contract import check_units

again = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@contextmanager
def small(size: int) -> Iterator[None]:
    """Let units have some `size` bytes, images or files, and lines at most 150."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(line_ranges, "UNIT_BYTES", size)
        patched.setattr(line_ranges, "UNIT_LINES", max(1, size // 20))
        patched.setattr(line_ranges, "COUNTED_BYTES", 11)
        patched.setattr(line_ranges, "BLOCK", 7)
        patched.setattr(annotation_files, "UNIT_RECORDS", size)
        patched.setattr(folder, "UNIT_FILES", size)
        patched.setattr(parquet_manifest, "UNIT_ROWS", size)
        patched.setattr(parquet_manifest, "BATCH_ROWS", 5)
        patched.setattr(bounded_lines, "LONGEST_LINE", 150)
        yield


def check_whole(corpus: Corpus) -> None:
    """Check the units of a corpus, and that what cannot be read as a whole cannot be cut."""
    try:
        list(corpus)
    except CorpusError as error:
        with raises(CorpusError, error):
            list(corpus.units())
    else:
        check_units(corpus)


TEXTS = st.sampled_from(["a dog", "", "zwei Katzen \N{CAT FACE}", "x" * 200, "\r", "\u2028", "y" * 60])
ROWS = st.fixed_dictionaries(
    {"key": st.sampled_from("abc")},
    optional={
        "image": st.sampled_from(["1.png", "2.png"]),
        "caption": TEXTS | st.lists(TEXTS, max_size=3) | st.just(4),
        "group": st.sampled_from(["", "g", "h"]),
        "Image": st.just("1.png"),
        "year": st.sampled_from([1999, float("nan")]),
    },
)
JSON_LINES = st.one_of(
    ROWS.map(lambda row: json.dumps(row, ensure_ascii=False).encode()),
    ROWS.map(lambda row: json.dumps(row).encode()[:-3]),
    st.sampled_from([b"", b" ", b"[]", b"\r", b'{"caption": "no key"}', b"\xff\xfe", b"{" * 400]),
)


ENDS = st.sampled_from([b"\n", b"\n", b"\r\n"])
ENDED_LINES = st.lists(st.tuples(JSON_LINES, ENDS).map(b"".join), max_size=30)
SIZES = st.integers(1, 400)
MARKS = st.sampled_from([b"", b"\xef\xbb\xbf"])


@given(lines=ENDED_LINES, mark=MARKS, is_cut=st.booleans(), size=SIZES, group=st.none() | st.just("group"))
@again
def test_units_of_jsonl_are_the_whole(
    lines: list[bytes],
    mark: bytes,
    is_cut: bool,
    size: int,
    group: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "m.jsonl"
    path.write_bytes((mark + b"".join(lines))[: -1 if is_cut else None])
    with small(size):
        check_whole(JsonLines(path, group=group))


CUNNING = {
    "a caption of a key that comes again": [
        {"key": "b", "image": "1.png"},
        {"key": "a", "caption": 4},
        {"key": "a", "caption": "refused, because its group is another", "group": "g"},
        {"key": "b", "caption": "of the image"},
        {"key": "c", "caption": "the end"},
    ],
    "a refused row within a key": [
        {"key": "a", "caption": "first"},
        {"key": "a", "caption": "first"},
        {"key": "", "caption": "of no key"},
        {"key": "a", "caption": "second"},
        {"key": "b", "caption": "alone"},
    ],
    "rejects between an image and its captions": [
        {"key": "a", "caption": "first"},
        {"key": "b", "image": "1.png", "year": float("nan")},
        {"key": "b", "caption": 4},
        {"key": "c", "caption": 4},
        {"key": "b", "caption": "of the image"},
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("rows", CUNNING.values(), ids=CUNNING)
def test_units_of_rows_that_hang_together_are_the_whole(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = write_lines(tmp_path, *({"key": key, "caption": "before"} for key in "xyz"), *rows)
    for size in range(1, path.stat().st_size, 7):
        with small(size):
            check_units(JsonLines(path))


@pytest.mark.slow
def test_units_are_cut_where_the_key_changes(tmp_path: Path) -> None:
    rows = [{"key": f"{number // 5}", "caption": f"text {number}"} for number in range(1000)]
    corpus = JsonLines(write_lines(tmp_path, *rows))
    with small(2000):
        units = check_units(corpus)
        sizes = [unit.stop - unit.start for unit in units]
        firsts = [next(iter(corpus.within(unit))) for unit in units]
    assert max(sizes) < 2500
    assert len(units) > 10
    assert all(isinstance(first, Item) and first.key.endswith("#0") for first in firsts)


@pytest.mark.slow
def test_cutting_and_reading_units_costs_one_parse_of_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 20_000
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f'{{"key": "{number // 3}", "caption": "text {number}"}}\n' for number in range(rows)))
    parsed: list[int] = []

    def parse(text: str) -> Any:
        parsed.append(len(text))
        return parse_json(text)

    monkeypatch.setattr(tables, "parse_json", parse)
    monkeypatch.setattr(tables, "ROWS_PROBED", 100)
    monkeypatch.setattr(line_ranges, "UNIT_BYTES", path.stat().st_size // 50)
    corpus = JsonLines(path)
    units = list(corpus.units())
    assert sum(1 for unit in units for _ in corpus.within(unit)) == rows
    assert len(units) > 40
    assert len(parsed) <= 1.05 * rows


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "replaced": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "appended to": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_file_that_changes_after_it_was_cut_is_an_error_and_never_other_rows(
    suffix: str, change: Callable[[Path], object], tmp_path: Path
) -> None:
    path = write_rows(tmp_path, suffix, [{"key": f"{number}", "caption": "c"} for number in range(100)])
    corpus = open_corpus(path)
    with small(100):
        *_, unit = corpus.units()
    before = list(corpus.within(unit))
    time.sleep(0.01)  # a file system may tell times only so well
    change(path)
    assert before
    with raises(CorpusChangedError, path):
        list(corpus.within(unit))


def test_a_file_that_changes_while_a_unit_is_read_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path, *({"key": f"{number}", "caption": "c"} for number in range(100)))
    corpus = JsonLines(path)
    with small(1000):
        unit = next(iter(corpus.units()))
    entries = iter(corpus.within(unit))
    next(entries)
    os.truncate(path, 500)
    with raises(CorpusChangedError, path):
        list(entries)


PARQUET_ROWS = st.fixed_dictionaries(
    {
        "key": st.sampled_from([*"aabbcc", ""]),
        "image": st.sampled_from([None, "1.png", "2.png"]),
        "caption": st.none() | st.lists(TEXTS, max_size=2),
        "group": st.sampled_from([None, "g"]),
    }
)


@pytest.mark.slow
@given(
    files=st.lists(st.lists(PARQUET_ROWS, max_size=12), min_size=1, max_size=4),
    group_rows=st.integers(1, 5),
    size=st.integers(1, 9),
)
@again
def test_units_of_parquet_are_the_whole(
    files: list[list[dict[str, Any]]], group_rows: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("parquet")
    names = ["key", "image", "caption", "group"]
    kinds = [pa.string(), pa.string(), pa.list_(pa.string()), pa.string()]
    for number, rows in enumerate(files):
        columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in zip(names, kinds, strict=True)}
        pq.write_table(pa.table({**columns, "raw": [b"x"] * len(rows)}), directory / f"{number}.parquet", group_rows)
    with small(1 << 30):
        whole = list(Parquet(directory, group="group"))
    with small(size):
        check_units(Parquet(directory, group="group"))
        assert list(Parquet(directory, group="group")) == whole


def test_units_of_parquet_are_row_groups_that_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 3000
    for number in range(2):
        keys = [f"{number}-{row // 3}" for row in range(rows)]
        table = pa.table({"key": keys, "caption": [f"text {row}" for row in range(rows)]})
        pq.write_table(table, tmp_path / f"{number}.parquet", 500)
    parsed: list[int] = []

    def parse(batch: pa.RecordBatch) -> list[dict[str, Any]]:
        parsed.append(batch.num_rows)
        return records(batch)

    monkeypatch.setattr(parquet_manifest, "records", parse)
    corpus = Parquet(tmp_path)
    with small(500):
        units = list(corpus.units())
        assert len(units) == 12
        assert all(abs((unit.rows or 0) - 500) < 6 for unit in units)
        assert sum(1 for unit in units for _ in corpus.within(unit)) == 2 * rows
        assert sum(parsed) <= 1.05 * 2 * rows


def test_a_parquet_file_that_is_written_again_after_it_was_cut_is_an_error(tmp_path: Path) -> None:
    for number in range(3):
        pq.write_table(pa.table({"key": [f"{number}"], "caption": ["c"]}), tmp_path / f"{number}.parquet")
    corpus = Parquet(tmp_path)
    with small(1):
        (unit,) = corpus.units()
    time.sleep(0.01)
    pq.write_table(pa.table({"key": ["9"], "caption": ["c"]}), tmp_path / "1.parquet")
    with raises(CorpusChangedError, tmp_path / "1.parquet"):
        list(corpus.within(unit))


# Annotations

NAMES = st.sampled_from(["1.png", "2.png", "../3.png", ""])
FLICKR_LINES = st.one_of(
    st.tuples(NAMES, st.integers(0, 2), TEXTS).map(lambda line: f"{line[0]}#{line[1]}\t{line[2]}".encode()),
    st.tuples(NAMES, TEXTS).map(lambda line: f'{line[0]},"{line[1]}"'.encode()),
    st.sampled_from([b"", b" ", b"\xff", b"no tab"]),
)


@given(
    lines=st.lists(st.tuples(FLICKR_LINES, ENDS).map(b"".join), max_size=30),
    header=st.sampled_from([b"", b"image,caption\n", b"\xef\xbb\xbfimage,caption\r\n"]),
    size=SIZES,
)
@again
def test_units_of_the_token_files_of_flickr_are_the_whole(
    lines: list[bytes], header: bytes, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("flickr")
    (directory / "1.png").touch()
    (directory / "captions.txt").write_bytes(header + b"".join(lines))
    with small(size):
        check_whole(FlickrTokens(directory / "captions.txt"))


IMAGES = st.lists(
    st.fixed_dictionaries(
        {"id": st.sampled_from([1, 2, "2", None]), "file_name": NAMES}, optional={"year": st.just(1999)}
    ),
    max_size=20,
)
ANNOTATIONS = st.lists(
    st.fixed_dictionaries({"image_id": st.sampled_from([1, 2, "2", 9]), "caption": TEXTS | st.just(4)}), max_size=9
)


@given(images=IMAGES, annotations=ANNOTATIONS, size=st.integers(1, 5))
@again
def test_units_of_coco_are_the_whole(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    size: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("coco")
    (directory / "1.png").touch()
    (directory / "2.png").touch()
    (directory / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    with small(size):
        check_whole(CocoCaptions(directory / "c.json"))


@pytest.mark.slow
@given(
    records=st.lists(
        st.fixed_dictionaries(
            {"filename": NAMES, "sentences": st.lists(st.fixed_dictionaries({"raw": TEXTS | st.just(4)}), max_size=3)},
            optional={"cocoid": st.sampled_from([1, "1", 2]), "split": st.just("test")},
        ),
        max_size=20,
    ),
    size=st.integers(1, 5),
)
@again
def test_units_of_karpathy_are_the_whole(
    records: list[dict[str, Any]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("karpathy")
    (directory / "1.png").touch()
    (directory / "2.png").touch()
    (directory / "d.json").write_text(json.dumps({"images": records}))
    with small(size):
        check_whole(Karpathy(directory / "d.json"))


def test_a_process_that_reads_several_units_of_an_annotation_file_parses_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1.png").touch()
    images = [{"filename": "1.png", "cocoid": number, "sentences": []} for number in range(100)]
    (tmp_path / "d.json").write_text(json.dumps({"images": images}))
    parsed: list[int] = []
    plain = Karpathy.document

    def document(self: Karpathy) -> dict[str, Any]:
        parsed.append(1)
        return plain(self)

    monkeypatch.setattr(Karpathy, "document", document)
    corpus = Karpathy(tmp_path / "d.json")
    with small(10):
        units = list(corpus.units())
    for unit in units:
        assert len(list(corpus.within(unit))) == unit.rows
    assert len(units) > 5
    assert len(parsed) == 1


# Folders and archives

SUFFIXES = [".png", ".PNG", ".txt", ".TXT", ".heic", ".zip", ".md"]


@pytest.mark.slow
@given(
    names=st.sets(
        st.tuples(st.sampled_from(["", "a/", "a/b/", "c/"]), st.sampled_from("pqr"), st.sampled_from(SUFFIXES)),
        max_size=30,
    ),
    size=st.integers(1, 6),
)
@again
def test_units_of_a_folder_are_the_whole(
    names: set[tuple[str, str, str]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("folder")
    for name in sorted(map("".join, names)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"one\n\ntwo" if "p." in name else b"\xff")
    with small(size):
        check_whole(Folder(directory))


def test_an_image_and_its_captions_are_in_one_unit_of_a_folder(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.png").touch()
        (tmp_path / f"{number}.txt").write_text("one\ntwo")
    with small(2):
        corpus = Folder(tmp_path)
        groups = [{item.group for item in items(corpus.within(unit))} for unit in corpus.units()]
    assert groups == [{"0.png", "1.png"}, {"2.png", "3.png"}, {"4.png", "5.png"}, {"6.png", "7.png"}, {"8.png"}]


def test_files_that_join_a_folder_after_it_was_cut_wait_for_the_next_run(tmp_path: Path) -> None:
    for number in range(1, 9, 2):
        (tmp_path / f"{number}.png").touch()
    corpus = Folder(tmp_path)
    with small(2):
        units = list(corpus.units())
    before = [list(corpus.within(unit)) for unit in units]
    for number in range(0, 9, 2):
        (tmp_path / f"{number}.png").touch()
    assert [list(corpus.within(unit)) for unit in units] == before


ARCHIVES = st.lists(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([".png", ".txt", ".json", ".seg.png", ".heic"]))),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@given(archives=ARCHIVES, others=st.sets(st.sampled_from(["x.zip", "a.png", "notes.txt", "y.tar.xz"])))
@settings(again, max_examples=30)
def test_units_of_archives_are_the_whole(
    archives: list[list[tuple[str, str]]], others: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("archives")
    for number, members in enumerate(archives):
        write_tar(directory / f"{number}.tar", ((f"{key}{suffix}", b"{}") for key, suffix in members))
    for name in sorted(others):
        (directory / name).write_bytes(b"x")
    units = check_units(WebDataset(directory))
    assert len(units) == len(archives) + 1
    assert len(check_units(WebDataset(directory / "{0..9}.tar"))) == 10


def test_a_sample_of_the_next_archive_is_its_own_whatever_its_key(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", b"x")])
    write_tar(tmp_path / "1.tar", [("a.txt", b"a caption")])
    image, text = items(WebDataset(tmp_path).with_captions())
    assert (image.key, text.key, "caption" in image.payload) == ("a", "a#0", False)
    check_units(WebDataset(tmp_path))


def test_units_of_img2dataset_are_its_shards_and_the_rest(tmp_path: Path) -> None:
    folder = sample_img2dataset(tmp_path)
    for number in (1, 3):
        for suffix in (".tar", ".parquet", "_stats.json"):
            shutil.copy(folder / f"00000{suffix}", folder / f"0000{number}{suffix}")
    (folder / "00003.parquet").unlink()
    (folder / "notes.txt").touch()
    assert [unit.name for unit in check_units(Img2Dataset(folder))] == ["00000", "00001", "00003", "other files"]


@pytest.mark.parametrize("reader", [WebDataset, Img2Dataset])
def test_an_archive_that_joins_the_folder_after_it_was_cut_is_an_error(
    reader: type[WebDataset | Img2Dataset], tmp_path: Path
) -> None:
    folder = sample_img2dataset(tmp_path)
    corpus = reader(folder)
    *_, rest = corpus.units()
    time.sleep(0.01)
    shutil.copy(folder / "00000.tar", folder / "00001.tar")
    with raises(CorpusChangedError, folder):
        list(corpus.within(rest))
