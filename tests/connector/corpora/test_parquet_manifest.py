"""Parquet as Hugging Face and img2dataset write it."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from connector.corpora.formats import open_corpus
from connector.corpora.items import reached
from connector.errors import CorpusError
from tests.support.corpora import items, read, reasons, rejects
from tests.support.errors import raises

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def picture(shade: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 9, 9)).save(buffer, form)
    return buffer.getvalue()


def content_key(shade: int) -> str:
    """The key of a picture that has no other."""
    return hashlib.sha256(picture(shade)).hexdigest()


def write_dataset(path: Path, columns: dict[str, Any], features: dict[str, str]) -> Path:
    """Write a table as `datasets.Dataset.to_parquet` does, with the features in the metadata of the schema."""
    table = pa.table(columns)
    info = {"info": {"features": {name: {"_type": kind} for name, kind in features.items()}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path, row_group_size=2)
    return path


def flickr30k(path: Path, numbers: range) -> Path:
    """The columns of the Flickr30k that is spread over many files on the hub."""
    return write_dataset(
        path,
        {
            "image": pa.array([{"bytes": picture(n), "path": f"{n}.jpg"} for n in numbers], IMAGE),
            "caption": [[f"picture {n}", f"shade {n}"] for n in numbers],
            "sentids": [["0", "1"] for _ in numbers],
            "split": ["train" for _ in numbers],
            "img_id": [str(n) for n in numbers],
            "filename": [f"{n}.jpg" for n in numbers],
        },
        {"image": "Image"},
    )


@pytest.mark.parametrize("named", [{}, {"key": "img_id"}])
def test_a_dataset_of_hugging_face_is_read_as_it_is(named: dict[str, Any], tmp_path: Path) -> None:
    path = flickr30k(tmp_path / "train-00000-of-00001.parquet", range(3))
    entries = list(open_corpus(path, **named))
    keys = ["0", "1", "2"] if named else [content_key(n) for n in range(3)]
    images = [item for item in items(entries) if item.modality == "image"]
    assert rejects(entries) == []
    assert [item.key for item in images] == keys
    assert [item.content for item in images] == [picture(n) for n in range(3)]
    assert images[0].payload["image"] == f"{path}/0.jpg"
    assert (images[0].payload["corpus_split"], "img_id" in images[0].payload) == ("train", not named)
    assert [item.content for item in items(entries) if item.modality == "text"][:2] == ["picture 0", "shade 0"]


def test_the_files_of_a_dataset_are_one_corpus(tmp_path: Path) -> None:
    for number in range(2):
        flickr30k(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", range(3 * number, 3 * number + 3))
    opened = open_corpus(tmp_path / "data")
    assert (opened.format, opened.total()) == ("parquet", 6)
    assert [(item.key, item.position) for item in items(opened) if item.modality == "image"] == [
        (content_key(n), n % 3 + 1) for n in range(6)
    ]
    assert [reached(item) for item in items(opened) if item.modality == "image"] == [1, 2, 3, 4, 5, 6]
    assert items(opened)[-1].source == str(tmp_path / "data" / "train-00001-of-00002.parquet")


def test_pictures_without_a_path_are_their_own_keys(tmp_path: Path) -> None:
    """The columns of many small datasets: `image` and `text`, and no path of an image."""
    pictures = pa.array([{"bytes": picture(n), "path": None} for n in range(2)], IMAGE)
    path = write_dataset(tmp_path / "0000.parquet", {"image": pictures, "text": ["a", "b"]}, {"image": "Image"})
    entries = items(open_corpus(path, caption=["text"]))
    keys = [content_key(n) for n in range(2)]
    assert [item.key for item in entries] == [keys[0], f"{keys[0]}#0", keys[1], f"{keys[1]}#0"]
    assert entries[0].payload == {"image": f"{path}/1"}


def test_pictures_may_be_bytes_alone_or_paths_alone(tmp_path: Path) -> None:
    columns = {"id": [1, 2, 3], "jpeg": [picture(1), None, picture(3)], "alt": ["a", "b", "c"]}
    pq.write_table(pa.table(columns), tmp_path / "bytes.parquet")
    opened = open_corpus(tmp_path / "bytes.parquet", key="id", image="jpeg", caption=["alt"])
    assert [item.key for item in items(opened)] == ["1", "1#0", "2#0", "3", "3#0"]
    paths = pa.array([{"bytes": None, "path": "img/1.jpg"}], IMAGE)
    pq.write_table(pa.table({"key": ["1"], "image": paths}), tmp_path / "paths.parquet")
    (image,) = items(open_corpus(tmp_path / "paths.parquet"))
    assert image.content == tmp_path / "img/1.jpg"


def test_pictures_that_nobody_named_are_not_lost(tmp_path: Path) -> None:
    columns = {"key": ["1"], "photo": pa.array([{"bytes": picture(1), "path": None}], IMAGE), "caption": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with raises(CorpusError, tmp_path / "m.parquet", "'photo'", "--image"):
        read(tmp_path / "m.parquet")


def test_a_file_that_lacks_the_columns_of_the_others_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["1"], "caption": ["a"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"id": ["2"], "caption": ["a"]}), tmp_path / "1.parquet")
    with raises(CorpusError, tmp_path / "1.parquet", "id, caption"):
        read(tmp_path)


class TestImg2dataset:
    """`--output_format parquet`: the columns of the list, of the download, and `jpg` beside `txt`."""

    def write(self, folder: Path, kind: str = "jpg") -> Path:
        keys = ["000000000", "000000001", "000000002"]
        columns = {
            "url": [f"http://example.org/{n}.jpg?token=x" for n in range(3)],
            "caption": ["a dog", "gone", "a cat"],
            "key": keys,
            "status": ["success", "failed_to_download", "success"],
            "error_message": [None, "HTTP Error 404: Not Found", None],
            "width": pa.array([4, None, 4], pa.int32()),
            "exif": ["{}", None, "{}"],
            "sha256": ["x", None, "y"],
            "txt": ["a dog", None, "a cat"],
            kind: [picture(0), None, picture(2)],
        }
        folder.mkdir()
        pq.write_table(pa.table(columns), folder / "00000.parquet")
        (folder / "00000_stats.json").write_text("{}")
        return folder

    @pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
    def test_its_pictures_are_read_and_its_failures_are_rejects(self, kind: str, tmp_path: Path) -> None:
        folder = self.write(tmp_path / "out", kind)
        opened = open_corpus(folder)
        entries = list(opened)
        assert (opened.format, opened.total()) == ("img2dataset", 3)
        assert [(item.key, item.content) for item in items(entries)] == [
            ("000000000", picture(0)),
            ("000000000#0", "a dog"),
            ("000000002", picture(2)),
            ("000000002#0", "a cat"),
        ]
        assert reasons(entries) == [(2, "failed-to-download")]
        assert rejects(entries)[0].key == "000000001"
        image = items(entries)[0]
        assert image.payload["image"] == f"{folder}/00000.parquet/000000000.{kind}"
        assert set(image.payload) == {"image", "url", "width", "sha256"}

    def test_a_shard_is_recognised_without_its_statistics(self, tmp_path: Path) -> None:
        folder = self.write(tmp_path / "out")
        (folder / "00000_stats.json").unlink()
        assert open_corpus(folder).format == "img2dataset"

    def test_one_of_its_files_is_read_with_its_columns(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "out") / "00000.parquet"
        with raises(CorpusError, path, "'jpg'", "--image"):
            read(path)
        entries = list(open_corpus(path, image="jpg", caption=["txt"]))
        assert [item.key for item in items(entries)] == ["000000000", "000000000#0", "000000002", "000000002#0"]
        assert reasons(entries) == [(2, "row-without-image-or-caption")]


def test_pictures_of_one_path_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    """Folders of classes give the same base names: cat/1.jpg, dog/1.jpg."""
    images = pa.array([{"bytes": picture(n), "path": "1.jpg"} for n in (1, 2)], IMAGE)
    path = write_dataset(tmp_path / "m.parquet", {"image": images, "caption": ["a cat", "a dog"]}, {"image": "Image"})
    entries = list(open_corpus(path))
    assert rejects(entries) == []
    contents = {content_key(1): picture(1), f"{content_key(1)}#0": "a cat"}
    contents |= {content_key(2): picture(2), f"{content_key(2)}#0": "a dog"}
    assert {item.key: item.content for item in items(entries)} == contents


def test_paths_are_keys_where_they_are_named(tmp_path: Path) -> None:
    images = pa.array(
        [{"bytes": picture(n), "path": name} for n, name in enumerate(("1.jpg", "2.jpg", "2.jpg", None))], IMAGE
    )
    columns = {"image": images, "caption": ["a cat", "a dog", "a fox", "a cow"]}
    path = write_dataset(tmp_path / "m.parquet", columns, {"image": "Image"})
    entries = list(open_corpus(path, key="image"))
    assert [item.key for item in items(entries)] == ["1.jpg", "1.jpg#0", "2.jpg", "2.jpg#0"]
    twice, nameless = rejects(entries)
    assert (twice.reason, twice.position, "--key" in twice.detail) == ("key-duplicate", 3, True)
    assert (nameless.reason, nameless.position, "'image'" in nameless.detail) == ("key-missing", 4, True)


@pytest.mark.parametrize("name", [None, "1.jpg"])
def test_rows_of_one_picture_are_one_image_with_all_captions(name: str | None, tmp_path: Path) -> None:
    images = pa.array([{"bytes": picture(1), "path": name}] * 3, IMAGE)
    texts = ["a cat", "a pet", "an animal"]
    path = write_dataset(tmp_path / "m.parquet", {"image": images, "caption": texts}, {"image": "Image"})
    entries = list(open_corpus(path))
    assert rejects(entries) == []
    assert [item.content for item in items(entries)] == [picture(1), *texts]
