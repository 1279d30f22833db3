"""Corpora in object storage: the same entries as on disk, few requests, and what goes wrong, named."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.errors import StorageError
from alignment.object_storage import as_remote, located
from connector.corpora.formats import FORMATS, open_corpus
from connector.corpora.images import ImageRejectedError, reading
from connector.corpora.items import Corpus, Entry, Item
from connector.corpora.vector_files import open_vectors
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from tests.support.corpora import items, rejects, write_lines
from tests.support.errors import raises
from tests.support.object_storage import Storage
from tests.support.sample_corpora import CAPTIONS, SAMPLES, pictures, sample_folder, write_tar
from tests.support.slow import slow_unless
from tests.support.units_contract import check_units, said


def report(entries: Iterable[Entry], top: object) -> list[str]:
    """Everything that entries say, with the same name for their directory."""
    told, remarks = said(entries)
    texts = [json.dumps([kind.__name__, values], default=str) for kind, values in told]
    return [text.replace(str(top), "TOP") for text in (*texts, str(remarks))]


def image_of(item: Item) -> bytes:
    """The bytes of the file of an image."""
    assert isinstance(item.content, bytes) or as_remote(item.content) or isinstance(item.content, Path)
    content: Any = item.content
    with reading(content) as file:
        return file


def contents(corpus: Corpus) -> list[str]:
    """The SHA-256 of every image."""
    return [hashlib.sha256(image_of(item)).hexdigest() for item in items(corpus) if item.modality == "image"]


def spoil(directory: Path) -> None:
    """Add what readers refuse or pass over."""
    for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
        (folder / "broken.parquet.bak").write_bytes(b"?")
        (folder / "notes.md").write_text("nothing")
        (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
        (folder / "alone.txt").write_bytes(b"caf\xe9 latin")


@pytest.mark.parametrize("format", slow_unless({"csv", "img2dataset", "folder"}.__contains__, FORMATS))
def test_a_corpus_is_the_same_in_a_bucket(format: str, tmp_path: Path, storage: Storage, bucket: str) -> None:
    path = SAMPLES[format](tmp_path)
    spoil(path if path.is_dir() else path.parent)
    storage.upload(tmp_path, f"{bucket}/deep")
    local = open_corpus(path)
    remote = open_corpus(f"{bucket}/deep/{path.relative_to(tmp_path).as_posix()}")
    assert type(remote) is type(local)
    assert report(remote, f"{bucket}/deep") == report(local, tmp_path)
    assert report(remote.with_captions(), f"{bucket}/deep") == report(local.with_captions(), tmp_path)
    assert remote.total() == local.total()
    assert contents(remote) == contents(local)
    assert len(items(remote)) == 7
    check_units(remote)


@pytest.mark.slow
def test_archives_by_a_pattern_and_compressed(tmp_path: Path, storage: Storage, bucket: str) -> None:
    for number in range(3):
        write_tar(tmp_path / f"train-{number}.tar.gz", [(f"{number}.txt", b"a caption")])
    storage.upload(tmp_path, bucket)
    pattern = "train-{0..3}.tar.gz"
    assert report(open_corpus(f"{bucket}/{pattern}"), bucket) == report(open_corpus(tmp_path / pattern), tmp_path)


def test_a_manifest_names_images_wherever_they_are(tmp_path: Path, storage: Storage, bucket: str) -> None:
    pictures(tmp_path / "in")
    storage.upload(tmp_path / "in", f"{bucket}/in")
    rows = [
        {"key": "url", "image": f"{bucket}/in/a.png"},
        {"key": "without-suffix", "image": f"{bucket}/in/b"},
        {"key": "gone", "image": f"{bucket}/in/z.png"},
        {"key": "secret", "image": "s3://me:hidden@bucket/a.png"},
        {"key": "local", "image": "in/c.png"},
    ]
    manifest = write_lines(tmp_path, *rows)
    corpus = open_corpus(manifest)
    found = {item.key: item for item in items(corpus)}
    assert [str(found[key].content) for key in ("url", "without-suffix", "local")] == [
        f"{bucket}/in/a.png",
        f"{bucket}/in/b.png",
        str(tmp_path / "in" / "c.png"),
    ]
    assert found["url"].payload["image"] == f"{bucket}/in/a.png"
    with pytest.raises(ImageRejectedError) as missing:
        image_of(found["gone"])
    assert missing.value.reason is Reason.IMAGE_MISSING
    (refused,) = rejects(corpus)
    assert refused.key == "secret"
    assert refused.reason is Reason.PATH_UNSAFE
    assert "hidden" not in refused.detail
    storage.upload(tmp_path, f"{bucket}/other")
    elsewhere = open_corpus(f"{bucket}/other/{manifest.name}", images=located(f"{bucket}/in/.."))
    assert str({item.key: item for item in items(elsewhere)}["local"].content) == f"{bucket}/in/c.png"


def test_a_small_image_is_one_request_and_a_folder_one_listing(tmp_path: Path, storage: Storage, bucket: str) -> None:
    path = sample_folder(tmp_path)
    storage.upload(path, f"{bucket}/photos")
    corpus = open_corpus(f"{bucket}/photos")
    before = len(storage.proxy.requests)
    entries = list(corpus)
    paths = [path for method, path in storage.proxy.requests[before:] if method == "GET"]
    assert len([path for path in paths if "list-type" in path]) == 1
    assert len([path for path in paths if ".txt" in path]) == len(CAPTIONS)
    before = len(storage.proxy.requests)
    for item in items(entries):
        if item.modality == "image":
            image_of(item)
    assert [method for method, _ in storage.proxy.requests[before:]] == ["GET"] * len(CAPTIONS)


@pytest.mark.slow
def test_parquet_is_read_by_ranges_and_not_by_rows(tmp_path: Path, storage: Storage, bucket: str) -> None:
    count, groups = 5000, 5
    table = pa.table({"key": [str(n) for n in range(count)], "caption": [f"caption {n}" for n in range(count)]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=count // groups)
    storage.upload(tmp_path, bucket)
    corpus = open_corpus(f"{bucket}/rows.parquet")
    before = len(storage.proxy.requests)
    assert len(items(corpus)) == count
    assert len(storage.proxy.requests) - before <= 10 + 4 * groups


def test_a_large_image_is_read_whole(bucket: str) -> None:
    path = located(f"{bucket}/large.png")
    path.write_bytes(bytes(9 << 20))
    with reading(path) as content:
        assert len(content) == 9 << 20


@pytest.mark.parametrize(("content", "reason"), [(b"", Reason.IMAGE_EMPTY), (None, Reason.IMAGE_MISSING)])
def test_an_image_that_cannot_be_used_is_a_reject(content: bytes | None, reason: Reason, bucket: str) -> None:
    path = located(f"{bucket}/a.png")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageRejectedError) as caught, reading(path):
        pass
    assert caught.value.reason is reason
    assert str(path) in str(caught.value)


def test_images_that_may_not_be_read_are_rejects(storage: Storage, bucket: str) -> None:
    path = located(f"{bucket}/a.png")
    path.write_bytes(b"content")
    with storage.refusing(), pytest.raises(ImageRejectedError) as caught, reading(path):
        pass
    assert caught.value.reason is Reason.IMAGE_UNREADABLE


def test_storage_that_breaks_off_refuses_no_image(storage: Storage, bucket: str) -> None:
    path = located(f"{bucket}/a.png")
    path.write_bytes(bytes(1 << 20))
    storage.proxy.cut = 1000
    try:
        with raises(StorageError, path, code="storage-unavailable"), reading(path):
            pass
    finally:
        storage.proxy.cut = None


def test_a_listing_that_changes_while_it_is_read(tmp_path: Path, storage: Storage, bucket: str) -> None:
    storage.upload(sample_folder(tmp_path), f"{bucket}/photos")
    corpus = open_corpus(f"{bucket}/photos")
    entries = iter(corpus)
    read: list[Entry] = [next(entries)]
    located(f"{bucket}/photos/b.png").unlink()
    located(f"{bucket}/photos/c.txt").unlink()
    located(f"{bucket}/photos/d.png").write_bytes(b"new")
    read += entries
    # What the listing named is read as it is now, and what came later waits for the next pass.
    assert [item.key for item in items(read) if item.modality == "image"] == ["a.png", "b.png", "c.png"]
    (refused,) = rejects(read)
    assert (refused.key, refused.reason) == ("c.png", Reason.ROW_UNREADABLE)
    gone = next(item for item in items(read) if item.key == "b.png")
    with pytest.raises(ImageRejectedError) as caught:
        image_of(gone)
    assert caught.value.reason is Reason.IMAGE_MISSING
    assert [item.key for item in items(corpus) if item.modality == "image"] == ["a.png", "c.png", "d.png"]


@pytest.mark.parametrize("name", ["rows.jsonl", "photos", "train-{0..2}.tar"])
def test_a_corpus_that_is_not_there_is_named(name: str, bucket: str) -> None:
    with raises(CorpusError, f"{bucket}"):
        open_corpus(f"{bucket}/{name}")
    with raises(StorageError, "no-such-bucket", code="bucket-missing"):
        open_corpus(f"s3://no-such-bucket/{name}")


def test_a_corpus_that_may_not_be_read_is_named(tmp_path: Path, storage: Storage, bucket: str) -> None:
    storage.upload(write_lines(tmp_path, {"key": "a", "caption": "x"}).parent, bucket)
    with storage.refusing(), raises(CorpusError, bucket, code="storage-denied"):
        open_corpus(f"{bucket}/manifest.jsonl")


@pytest.mark.parametrize("kind", ["array", "table", "clip-retrieval"])
def test_vectors_are_the_same_in_a_bucket(
    kind: str, tmp_path: Path, storage: Storage, bucket: str, rng: np.random.Generator
) -> None:
    vectors = rng.standard_normal((2500, 3)).astype(np.float16)
    keys: dict[str, Any] = {"key": [f"k{n}" for n in range(len(vectors))], "caption": ["x"] * len(vectors)}
    path = tmp_path / "vectors"
    path.mkdir()
    if kind == "table":
        pq.write_table(pa.table({**keys, "vector": vectors.astype(np.float32).tolist()}), path / "0.parquet")
    elif kind == "array":
        np.save(path / "0.npy", vectors)
        pq.write_table(pa.table(keys), path / "0.parquet")
        path = path / "0.npy"
    else:
        for name in ("img_emb", "metadata"):
            (path / name).mkdir()
        np.save(path / "img_emb" / "img_emb_0.npy", vectors)
        pq.write_table(pa.table(keys), path / "metadata" / "metadata_0.parquet")
    storage.upload(tmp_path, bucket)
    remote = open_vectors(f"{bucket}/{path.relative_to(tmp_path).as_posix()}", ["image"])
    local = open_vectors(path, ["image"])
    assert report(remote, bucket) == report(local, tmp_path)
    assert len(items(remote)) == len(vectors)
    assert remote.dims() == local.dims()


def test_an_array_in_a_bucket_that_is_cut_short_is_refused(
    tmp_path: Path, storage: Storage, bucket: str, rng: np.random.Generator
) -> None:
    np.save(tmp_path / "a.npy", rng.standard_normal((9, 3)).astype(np.float32))
    pq.write_table(pa.table({"key": [str(n) for n in range(9)]}), tmp_path / "a.parquet")
    storage.upload(tmp_path, bucket)
    whole = (tmp_path / "a.npy").read_bytes()
    for content in (whole[:-1], whole + b"1", b"\x93NUMPY", b""):
        located(f"{bucket}/a.npy").write_bytes(content)
        with raises(CorpusError, f"{bucket}/a.npy"):
            list(open_vectors(f"{bucket}/a.npy", ["image"]))


def test_rejects_of_a_bucket_name_its_objects(tmp_path: Path, storage: Storage, bucket: str) -> None:
    path = write_lines(tmp_path, {"key": "a", "caption": "x"}, b"{", {"key": "c", "caption": "y"})
    storage.upload(tmp_path, bucket)
    refused = [entry for entry in open_corpus(f"{bucket}/{path.name}") if isinstance(entry, Reject)]
    assert [(reject.source, reject.position) for reject in refused] == [(f"{bucket}/{path.name}", 2)]
    assert all(isinstance(entry, Item | Reject) for entry in open_corpus(f"{bucket}/{path.name}"))
