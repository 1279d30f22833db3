"""Files that readers pass over leave a trace: pictures that cannot be opened are rejects, the rest is counted."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from connector.corpora.formats import open_corpus
from connector.corpora.images import decode
from connector.corpora.items import PassedOver
from connector.corpora.picture_files import image_suffixes, is_image_name, is_unsupported_name
from connector.rejects import Reject
from tests.support.corpora import items, passed_over, read, rejects
from tests.support.unprivileged import unprivileged, unprivileged_python

APPLE_DOUBLE = b"\0\x05\x16\x07\0\x02\0\0Mac OS X"


def picture(form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, form)
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def folder(path: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def crawl(path: Path, members: dict[str, bytes]) -> Path:
    folder(path / "00000", members)
    pq.write_table(pa.table({"key": ["a"], "status": ["success"]}), path / "00000.parquet")
    (path / "00000_stats.json").write_text("{}")
    return path


WRITERS = {"folder": folder, "archive": lambda path, members: tar(path.with_suffix(".tar"), members), "crawl": crawl}
every_place = pytest.mark.parametrize("place", WRITERS)


def unsupported(entries: Any) -> list[str]:
    return [reject.reason for reject in rejects(entries) if reject.modality == "image"]


@pytest.mark.parametrize("form", ["AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"])
def test_every_suffix_of_a_format_that_is_opened_is_an_image(form: str) -> None:
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name == form}
    assert suffixes
    assert suffixes <= image_suffixes()
    decode(picture(form))


@every_place
@pytest.mark.parametrize("name", ["b.jp2", "b.JPE", "b.jpg", "b.j2k", "b.Tif"])
def test_names_of_every_format_that_is_opened_are_read(name: str, place: str, tmp_path: Path) -> None:
    entries = read(WRITERS[place](tmp_path / "c", {"a.png": picture(), name: picture()}))
    assert sum(item.modality == "image" for item in items(entries)) == 2


@every_place
@pytest.mark.parametrize("name", ["b.HEIC", "b.svg", "b.nef", "b.jxl", "b.psd", "b.jpg~", "b.jpg_large"])
def test_a_picture_that_cannot_be_opened_is_a_reject(name: str, place: str, tmp_path: Path) -> None:
    entries = read(WRITERS[place](tmp_path / "c", {"a.png": picture(), name: b"x"}))
    refused = [reject for reject in rejects(entries) if reject.reason == "image-format-unsupported"]
    assert [(reject.modality, name in reject.detail) for reject in refused] == [("image", True)]


@every_place
@pytest.mark.parametrize(
    ("name", "content", "may_hide"),
    [
        ("notes.md", b"hello", False),
        ("labels.npy", b"\x93NUMPY", False),
        ("empty", b"", False),
        ("BMW", b"BMW and P3 are no pictures", False),
        ("photo", picture(), True),
        ("photo.orig", picture("JPEG"), True),
        ("photo.download", picture("WEBP"), True),
        ("more.zip", b"PK", True),
        ("more.tar", b"x", True),
        ("._a.png", APPLE_DOUBLE, False),
    ],
)
def test_every_other_file_is_counted_as_passed_over(
    name: str, content: bytes, may_hide: bool, place: str, tmp_path: Path
) -> None:
    corpus = WRITERS[place](tmp_path / "c", {"a.png": picture(), name: content})
    entries = list(open_corpus(corpus, format={"folder": "folder"}.get(place)))
    assert passed_over(entries) == [(name, may_hide)]
    assert not rejects(entries)


def test_a_text_in_a_picture_s_place_does_not_hide_its_loss(tmp_path: Path) -> None:
    entries = read(tar(tmp_path / "x.tar", {"001.heic": b"x", "001.txt": b"a dog"}))
    assert [item.key for item in items(entries)] == ["001#0"]
    assert unsupported(entries) == ["image-format-unsupported"]


def test_caption_files_that_differ_in_case_are_not_chosen_between(tmp_path: Path) -> None:
    entries = read(folder(tmp_path / "c", {"a.png": picture(), "a.txt": b"one", "a.TXT": b"two"}))
    assert [item.content for item in items(entries) if item.modality == "text"] == ["two"]
    assert [(reject.reason, Path(reject.source).name) for reject in rejects(entries)] == [
        ("caption-duplicate", "a.txt")
    ]


def test_what_lies_beside_archives_is_counted(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"a.png": picture()})
    folder(
        tmp_path, {"1.tar.xz": b"x", "read.me": b"x", "sub/b.png": picture(), "sub/deep/2.tar": b"", "sub/c.md": b""}
    )
    entries = read(tmp_path)
    assert [(reject.reason, Path(reject.source).name) for reject in rejects(entries)] == [
        ("archive-unreadable", "1.tar.xz")
    ]
    assert sorted(passed_over(entries)) == [("2.tar", True), ("b.png", True), ("c.md", False), ("read.me", False)]


def test_what_lies_beside_shards_is_counted(tmp_path: Path) -> None:
    path = crawl(tmp_path / "c", {"a.png": picture(), "deep/b.png": picture()})
    folder(path, {"loose.png": picture(), "notes.md": b"x"})
    tar(path / "00001.tar", {"b.png": picture()})
    folder(path, {"00001/c.png": picture()})
    assert sorted(passed_over(list(open_corpus(path, format="img2dataset")))) == [
        ("b.png", True),
        ("c.png", True),
        ("loose.png", True),
        ("notes.md", False),
    ]


class TestDots:
    """Names with several dots in archives."""

    MEMBERS: ClassVar = {
        "trip.2024.05.png": picture(),
        "trip.2024.05.txt": b"May",
        "22.5mm.png": picture(),
        "22.5mm.txt": b"a lens",
        "22.5mm.json": json.dumps({"price": 3}).encode(),
    }

    def test_what_the_first_dot_makes_unreadable_is_a_reject(self, tmp_path: Path) -> None:
        entries = read(tar(tmp_path / "x.tar", self.MEMBERS))
        assert not items(entries)
        assert [(reject.reason, reject.key) for reject in rejects(entries)] == [
            ("member-name-dotted", "trip.2024.05"),
            ("member-name-dotted", "trip.2024.05"),
            *[("member-name-dotted", "22.5mm")] * 3,
        ]
        assert all("--key-rule last-dot" in reject.detail for reject in rejects(entries))

    def test_the_last_dot_reads_them(self, tmp_path: Path) -> None:
        entries = list(open_corpus(tar(tmp_path / "x.tar", self.MEMBERS), key_rule="last-dot"))
        assert [item.key for item in items(entries)] == ["trip.2024.05", "trip.2024.05#0", "22.5mm", "22.5mm#0"]
        assert not rejects(entries)

    @pytest.mark.parametrize("name", ["a.v2.png", "a.v2.txt", "a.x.y.heic"])
    def test_a_dotted_member_alone_is_a_reject(self, name: str, tmp_path: Path) -> None:
        entries = read(tar(tmp_path / "x.tar", {name: b"x", "b.png": picture()}))
        assert [item.key for item in items(entries)] == ["b"]
        assert [reject.reason for reject in rejects(entries)] == ["member-name-dotted"]

    def test_further_fields_of_a_sample_are_passed_over(self, tmp_path: Path) -> None:
        members = {"a.png": picture(), "a.txt": b"x", "a.seg.png": picture(), "a.de.txt": b"y"}
        path = tar(tmp_path / "x.tar", members)
        assert passed_over(read(path)) == [("a.de.txt", True), ("a.seg.png", True)]
        named = list(open_corpus(path, key_rule="first-dot"))
        assert passed_over(named) == [("a.de.txt", False), ("a.seg.png", False)]
        assert not [entry for entry in (*read(path), *named) if isinstance(entry, Reject)]

    def test_a_second_sample_beside_the_plain_one_is_a_reject(self, tmp_path: Path) -> None:
        members = {"a.png": picture(), "a.txt": b"x", "a.v2.png": picture(), "a.v2.txt": b"y"}
        entries = read(tar(tmp_path / "x.tar", members))
        assert [item.key for item in items(entries)] == ["a", "a#0"]
        assert [(reject.reason, reject.key) for reject in rejects(entries)] == [("member-name-dotted", "a.v2")] * 2


def test_second_metadata_with_other_values_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (
            ("a.txt", b"x"),
            ("a.json", b'{"n": 1}'),
            ("a.json", b'{"n": 1}'),
            ("a.json", b'{"n": 2}'),
        ):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    entries = read(path)
    assert [item.payload["n"] for item in items(entries)] == [1]
    assert [reject.reason for reject in rejects(entries)] == ["key-duplicate"]


@pytest.mark.parametrize(
    ("name", "image", "unsupported_name"),
    [
        ("a.jpg", True, False),
        ("a.JPE", True, False),
        ("a.jpg?width=300", False, True),
        ("a.txt", False, False),
        ("a", False, False),
        (".jpg", False, False),
        ("a.jpg.txt", False, False),
    ],
)
def test_names_of_pictures(name: str, image: bool, unsupported_name: bool) -> None:
    assert (is_image_name(name), is_unsupported_name(name)) == (image, unsupported_name)


def test_links_to_what_is_not_there_may_hide_items(tmp_path: Path) -> None:
    """As a folder on a disk that is not mounted: nothing says whether it holds pictures."""
    path = folder(tmp_path / "pictures", {"a.png": picture()})
    (path / "more").symlink_to(tmp_path / "disk" / "more")
    archives = tmp_path / "archives"
    archives.mkdir()
    tar(archives / "a.tar", {"a.png": picture()})
    (archives / "more").symlink_to(tmp_path / "disk" / "more")
    for corpus in (path, archives):
        (entry,) = [entry for entry in open_corpus(corpus) if isinstance(entry, PassedOver)]
        assert (entry.name, entry.may_hide) == (str(corpus / "more"), True)


def test_a_folder_behind_a_link_beside_archives_is_not_looked_into_and_may_hide_items(tmp_path: Path) -> None:
    folder(tmp_path / "disk", {"b.txt": b"x"})
    archives = tmp_path / "archives"
    (archives / "sub").mkdir(parents=True)
    tar(archives / "a.tar", {"a.png": picture()})
    (archives / "sub" / "more").symlink_to(tmp_path / "disk")
    (entry,) = [entry for entry in open_corpus(archives) if isinstance(entry, PassedOver)]
    assert (entry.name, entry.may_hide) == (str(archives / "sub" / "more"), True)


READ = """
import sys
from connector.corpora.formats import open_corpus
for entry in open_corpus(sys.argv[1]):
    print(type(entry).__name__, getattr(entry, "reason", ""), getattr(entry, "may_hide", ""))
"""


class TestWithoutPermission:
    """What may not be looked into is named, and no traceback; it may hide items."""

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
    def test_a_folder_of_pictures_within_a_corpus(self, tmp_path: Path, mode: int) -> None:
        path = folder(tmp_path / "pictures", {"a.png": picture(), "sub/b.png": picture()})
        (path / "sub").chmod(mode)
        ended = unprivileged_python("-c", READ, path)
        (path / "sub").chmod(0o755)
        assert ended.stdout.splitlines() == ["Item  ", "Reject folder-unreadable "], ended.stderr

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
    def test_a_shard_of_files(self, tmp_path: Path, mode: int) -> None:
        path = crawl(tmp_path, {"a.png": picture()})
        (path / "00000").chmod(mode)
        ended = unprivileged_python("-c", READ, path)
        (path / "00000").chmod(0o755)
        assert ended.stdout.splitlines() == ["Reject folder-unreadable ", "Reject image-missing "], ended.stderr

    def test_a_file_without_suffix(self, tmp_path: Path) -> None:
        path = folder(tmp_path / "pictures", {"a.png": picture(), "b": picture()})
        (path / "b").chmod(0o000)
        ended = unprivileged_python("-c", READ, path)
        assert ended.stdout.splitlines() == ["Item  ", "PassedOver  True"], ended.stderr

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["m.jsonl", "folder", "a-{0..3}.tar", ""])
    def test_a_corpus(self, tmp_path: Path, name: str) -> None:
        path = folder(tmp_path / "top", {"m.jsonl": b"{}", "folder/a.png": picture(), "a-0.tar": b""})
        path.chmod(0o600)
        options = ("--set", "s", "--text-encoder", "sentence-transformers:x", "--home", tmp_path / "home")
        assert unprivileged("db", "upgrade", *options[-2:]).returncode == 0
        ended = unprivileged("encode", path / name, *options)
        path.chmod(0o755)
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert "Permission denied" in ended.stderr
