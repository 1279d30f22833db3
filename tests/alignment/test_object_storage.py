"""Paths in object storage: the methods of `Path`, and what goes wrong, named."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem

from alignment.errors import StorageError
from alignment.object_storage import as_remote, is_remote, joined, located
from alignment.storages import CREDENTIALS
from tests.support.errors import raises
from tests.support.object_storage import Storage

FILES = {"a.txt": b"one\ntwo", "b/c.txt": b"", "b/d.bin": bytes(range(256)) * 3, "b/e f#?.txt": b"odd"}


@pytest.fixture(params=["directory", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same files in a directory, in memory and in a bucket."""
    kind = request.param
    place = tmp_path if kind == "directory" else located(f"memory://{uuid4().hex}/top")
    if kind == "s3":
        place = located(request.getfixturevalue("bucket") + "/top")
    for name, content in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def names(paths: Iterator[Path] | list[Path], below: Path) -> list[str]:
    return sorted(path.relative_to(below).as_posix() for path in paths)


def test_a_folder_is_the_same_wherever_it_is(place: Path) -> None:
    assert names(place.iterdir(), place) == ["a.txt", "b"]
    assert [path.is_dir() for path in sorted(place.iterdir())] == [False, True]
    assert [path.is_file() for path in sorted(place.iterdir())] == [True, False]
    assert names(place.glob("*/c.txt"), place) == ["b/c.txt"]
    assert names(place.glob("*/*.txt"), place) == ["b/c.txt", "b/e f#?.txt"]
    assert names(place.glob("*/"), place) == ["b"]
    for name, content in FILES.items():
        path = place / name
        assert path.read_bytes() == content
        assert path.stat().st_size == len(content)
        assert (path.exists(), path.is_file(), path.is_dir()) == (True, True, False)
    assert (place.is_dir(), (place / "b").exists(), (place / "b").is_file()) == (True, True, False)
    assert ((place / "z").exists(), (place / "z").is_dir()) == (False, False)
    assert located(str(place)) == place


def test_a_file_is_read_here_and_there(place: Path) -> None:
    with (place / "b" / "d.bin").open("rb") as file:
        file.seek(250)
        assert file.read(12) == FILES["b/d.bin"][250:262]
        assert file.seek(-3, 2) == 765
        assert file.read() == FILES["b/d.bin"][-3:]
        assert file.read(1) == b""
    with (place / "a.txt").open(encoding="utf-8") as lines:
        assert list(lines) == ["one\n", "two"]


def test_what_is_not_there_is_not_there_as_a_file_is_not(place: Path) -> None:
    for read in (Path.read_bytes, Path.stat, lambda path: list(path.iterdir()), lambda path: path.open("rb")):
        call: Callable[[Path], Any] = getattr(type(place), getattr(read, "__name__", ""), read)
        with pytest.raises(FileNotFoundError):
            call(place / "z")
    (place / "a.txt").unlink()
    (place / "a.txt").unlink(missing_ok=True)
    assert names(place.iterdir(), place) == ["b"]


def test_names_are_those_of_paths() -> None:
    path = located("memory://bucket/a/b.tar.gz")
    plain = Path("/bucket/a/b.tar.gz")
    assert (path.name, path.stem, path.suffix) == (plain.name, plain.stem, plain.suffix)
    assert str(path.with_suffix(".x")) == "memory://bucket/a/b.tar.x"
    assert str(path.parent.parent.parent) == "memory://bucket"
    assert path.relative_to(located("memory://bucket")).as_posix() == "a/b.tar.gz"
    assert str(path.parent / "../c/x") == "memory://bucket/c/x"
    assert str(path.parent / "../../../other/x") != "memory://other/x"  # not out of its bucket
    assert sorted([path, path.parent]) == [path.parent, path]
    assert (is_remote(path), is_remote(plain)) == (True, False)


def test_a_url_is_no_name_of_a_file_here() -> None:
    with pytest.raises(TypeError):
        Path(located("memory://bucket/a"))
    with pytest.raises(TypeError):
        open(located("memory://bucket/a"))  # noqa: PTH123, SIM115


@pytest.mark.parametrize(
    ("folder", "name", "whole"),
    [
        ("/here", "a.jpg", "/here/a.jpg"),
        ("/here", "/there/a.jpg", "/there/a.jpg"),
        ("/here", "s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("s3://bucket/in", "a.jpg", "s3://bucket/in/a.jpg"),
        ("s3://bucket/in", "s3://other/a.jpg", "s3://other/a.jpg"),
        ("memory://x", "memory://y/a.jpg", "memory://y/a.jpg"),
        ("/here", "memory://y/a.jpg", "/here/memory:/y/a.jpg"),  # a file names none but the usual kinds
        ("/here", "https://host/a.jpg", "/here/https:/host/a.jpg"),
    ],
)
def test_a_name_in_a_file_may_be_a_url(folder: str, name: str, whole: str, storage: Storage) -> None:
    assert str(joined(located(folder), name)) == whole


@pytest.mark.parametrize(
    "url",
    ["s3://me:secret@bucket/a", "s3://secret@bucket/a", "s3://bucket/a?X-Amz-Signature=secret", "s3://host:secret/a"],
)
def test_secrets_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        located(url)
    assert caught.value.code == "storage-url"
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3:/bucket/a", "s3:bucket", "GS:/bucket", "s3://bucket/a?versionId=4"])
def test_what_is_nearly_a_url_is_named_and_no_local_file(url: str) -> None:
    with raises(StorageError, url, code="storage-url"):
        located(url)


@pytest.mark.parametrize("url", ["http://me:secret@host:80/a", "https://host/a?key=secret", "ftp://me:sec/ret@host/a"])
def test_of_what_is_no_storage_credentials_are_not_asked_for(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        located(url)
    assert caught.value.code == "storage-url"
    assert "secret" not in str(caught.value).replace("sec/ret", "secret")
    assert "AWS" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://host/a", "file:///a", "zip://a", "nothing://a/b", "s3://", "s3:///a"])
def test_what_is_no_object_storage_is_refused(url: str) -> None:
    with raises(StorageError, url.partition(":")[0], code="storage-url"):
        located(url)


@pytest.mark.parametrize(
    ("url", "module", "install"),
    [("s3://b/a", "s3fs", "modalign[s3]"), ("gs://b/a", "gcsfs", "gcsfs"), ("az://b/a", "adlfs", "adlfs")],
)
def test_a_missing_package_is_named(url: str, module: str, install: str) -> None:
    script = f"""
import subprocess
import sys
sys.modules["{module}"] = None
from alignment.errors import MissingPackageError
from alignment.object_storage import located
try:
    located("{url}")
except MissingPackageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"pip install {install}" in done.stdout.replace("'", "")


def test_a_bucket_that_is_not_there_is_named(storage: Storage) -> None:
    path = located("s3://nowhere-at-all/a.txt")
    for ask in (path.exists, lambda: list(path.iterdir()), path.read_bytes, lambda: path.write_bytes(b"x")):
        with raises(StorageError, "nowhere-at-all", code="bucket-missing"):
            ask()


def test_credentials_that_are_refused_are_no_missing_file(storage: Storage, bucket: str) -> None:
    path = located(f"{bucket}/a.txt")
    path.write_bytes(b"content")
    with storage.refusing():
        for ask in (path.exists, path.read_bytes, lambda: list(path.parent.iterdir())):
            with pytest.raises(PermissionError):
                ask()
        with raises(StorageError, str(path), code="storage-denied"):
            path.write_bytes(b"")
    assert path.read_bytes() == b"content"


class AnswerError(Exception):
    """What the packages of other storages than S3 raise: an error of their own, with the status of the answer."""

    def __init__(self, status: int):
        super().__init__(f"answered {status}")
        self.status_code = status
        self.response = object()  # which is no dictionary as that of S3


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class Failing(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A storage with the bucket `there`, which answers each request about an object with an error."""

    protocol = "failing"
    cachable = False
    error: Exception

    def info(self, path: str, **_: Any) -> Any:
        raise self.error

    def pipe_file(self, path: str, value: bytes, mode: Any = "overwrite", **_: Any) -> None:
        raise self.error

    def exists(self, path: str, **_: Any) -> bool:
        return path.strip("/") == "there"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    fsspec.register_implementation("failing", Failing, clobber=True)
    return lambda error: monkeypatch.setattr(Failing, "error", error, raising=False)


FORBIDDEN = OSError("Forbidden: https://host/bucket/a\nthe caller lacks storage.objects.get")


@pytest.mark.parametrize("error", [AnswerError(401), AnswerError(403), FORBIDDEN, PermissionError()])
def test_any_storage_may_forbid(answers: Callable[[Exception], None], error: Exception) -> None:
    answers(error)
    path = located("failing://there/a")
    with pytest.raises(PermissionError):
        path.exists()
    with raises(StorageError, str(path), code="storage-denied"):
        path.write_bytes(b"")


@pytest.mark.parametrize(
    "error", [AnswerError(404), FileNotFoundError(), caused(FileNotFoundError(), AnswerError(404))]
)
def test_any_storage_may_lack_an_object_or_its_bucket(answers: Callable[[Exception], None], error: Exception) -> None:
    answers(error)
    assert not located("failing://there/a").exists()
    for ask in (located("failing://nowhere/a").exists, lambda: located("failing://nowhere/a").write_bytes(b"")):
        with raises(StorageError, "nowhere", code="bucket-missing"):
            ask()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("error", [AnswerError(503), ConnectionError("reset")])
def test_any_storage_may_not_answer(answers: Callable[[Exception], None], error: Exception) -> None:
    answers(error)
    with raises(StorageError, "failing://there/a", code="storage-unavailable"):
        located("failing://there/a").exists()


def test_credentials_that_are_not_there_are_asked_for(
    answers: Callable[[Exception], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_credentials(self: Any, **_: Any) -> None:
        raise ValueError("Must provide either a connection_string or account_name with credentials!!")

    monkeypatch.setattr(Failing, "__init__", no_credentials)
    monkeypatch.setitem(CREDENTIALS, "failing", "FAILING_KEY")
    with raises(StorageError, "FAILING_KEY", code="storage-credentials"):
        located("failing://bucket/a")


@pytest.mark.slow
def test_a_connection_that_is_cut_gives_no_half_object(storage: Storage, bucket: str) -> None:
    path = as_remote(located(f"{bucket}/large"))
    assert path
    path.write_bytes(bytes(1 << 20))
    storage.proxy.cut = 1000
    try:
        for read in (path.read_bytes, lambda: path.beginning(1 << 21), lambda: path.open("rb").read()):
            with raises(StorageError, path, code="storage-unavailable"):
                read()
    finally:
        storage.proxy.cut = None
    assert path.read_bytes() == bytes(1 << 20)


def test_an_object_that_is_replaced_while_it_is_read_is_named(bucket: str) -> None:
    path = located(f"{bucket}/large")
    path.write_bytes(bytes(9 << 20))
    with path.open("rb") as file:
        file.read(1)
        path.write_bytes(b"1" * (9 << 20))
        with raises(StorageError, path, code="object-changed"):
            file.read()


@pytest.mark.slow
def test_storage_that_does_not_answer_is_given_up(
    storage: Storage, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3FileSystem, "read_timeout", 0.05)
    S3FileSystem.clear_instance_cache()
    storage.proxy.silent = True
    before = len(storage.proxy.requests)
    try:
        with raises(StorageError, bucket, "AWS_ENDPOINT_URL", code="storage-unavailable"):
            located(f"{bucket}/a").read_bytes()
    finally:
        storage.proxy.silent = False
        S3FileSystem.clear_instance_cache()
    assert 0 < len(storage.proxy.requests) - before <= 9


@pytest.mark.slow
def test_nobody_listens_where_the_endpoint_is(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    S3FileSystem.clear_instance_cache()
    try:
        with raises(StorageError, "127.0.0.1:9", code="storage-unavailable"):
            located(f"{bucket}/a").exists()
    finally:
        S3FileSystem.clear_instance_cache()
