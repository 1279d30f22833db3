"""WebDataset and img2dataset: samples, damage, and archives that mean harm."""

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.modality import Modality
from connector.corpora import samples as archives
from connector.corpora.formats import check_holds, open_corpus
from connector.corpora.images import ImageRejectedError, read_image
from connector.corpora.items import Entry, Item, PassedOver, reached
from connector.corpora.webdataset import WebDataset, expanded
from connector.errors import CorpusError
from connector.rejects import Reject
from tests.support.corpora import placed, remarks
from tests.support.errors import raises

PICTURE = b"the bytes of a picture"
SearchHit = list[Entry]


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, link
    return made


def write(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                tar.addfile(header(member[0], len(member[1])), io.BytesIO(member[1]))
    return path


def sample(key: str, caption: str = "a dog") -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    return (f"{key}.jpg", PICTURE), (f"{key}.txt", caption.encode())


def keys(found: Iterable[Entry]) -> list[str]:
    return [item.key for item in found if isinstance(item, Item)]


def reasons(found: Iterable[Entry]) -> list[tuple[str, str | None]]:
    return [(one.reason, one.key) for one in found if isinstance(one, Reject)]


class TestSamples:
    def test_members_of_one_name_are_a_sample(self, tmp_path: Path) -> None:
        told = {"caption": "unused", "width": 7, "split": "train", "key": "a/1", "image": "x"}
        path = write(
            tmp_path / "x.tar",
            header("a", kind=tarfile.DIRTYPE),
            ("./a/1.JPG", PICTURE),
            ("./a/1.txt", b" a dog \n"),
            ("./a/1.json", json.dumps(told).encode()),
            ("./a/1.cls", b"3"),
            ("./a/1.seg.png", b"mask"),
        )
        payload = {"width": 7, "corpus_split": "train", "corpus_image": "x", "corpus_caption": "unused"}
        assert [entry for entry in open_corpus(path) if not isinstance(entry, PassedOver)] == [
            Item("image", "a/1", "a/1", PICTURE, {"image": f"{path}/a/1.JPG", **payload}, str(path), 1),
            Item("text", "a/1#0", "a/1", "a dog", {"caption": "a dog", **payload}, str(path), 1),
        ]

    @pytest.mark.parametrize("told", [{"caption": ["one", "two"]}, {"caption": "one"}])
    def test_captions_of_the_metadata(self, told: Any, tmp_path: Path) -> None:
        path = write(tmp_path / "x.tar", ("1.webp", PICTURE), ("1.json", json.dumps(told).encode()))
        texts = [item.content for item in open_corpus(path) if isinstance(item, Item) and item.modality == "text"]
        assert texts == (told["caption"] if isinstance(told["caption"], list) else [told["caption"]])

    @pytest.mark.parametrize("name", ["x-{00..02}.tar", "."])
    def test_shards_are_read_one_after_the_other(self, name: str, tmp_path: Path) -> None:
        for shard in (2, 0, 1):
            write(tmp_path / f"x-{shard:02d}.tar", *sample(f"{shard}a"), *sample(f"{shard}b"))
        found = list(open_corpus(tmp_path / name))
        assert [item.key for item in found if isinstance(item, Item) and item.modality == "image"] == [
            "0a",
            "0b",
            "1a",
            "1b",
            "2a",
            "2b",
        ]
        assert [one.position for one in placed(found)][::2] == [1, 2, 1, 2, 1, 2]
        assert [reached(one) for one in found][::2] == [1, 2, 3, 4, 5, 6]

    def test_a_shard_that_is_missing_is_said(self, tmp_path: Path) -> None:
        write(tmp_path / "x-0.tar", *sample("a"))
        found = list(open_corpus(tmp_path / "x-{0..1}.tar"))
        assert (keys(found), reasons(found)) == (["a", "a#0"], [("archive-missing", None)])
        with raises(CorpusError, "y-{0..1}.tar", ".tar.gz"):
            list(open_corpus(tmp_path / "y-{0..1}.tar"))

    def test_a_range_of_nothing_or_of_too_much(self) -> None:
        for text in ("{3..1}.tar", "{0..9999999}.tar"):
            with raises(CorpusError, text.removesuffix(".tar"), 1_000_000):
                expanded(Path(text))
        assert len(expanded(Path("{0..1}-{00..09}.tar"))) == 20

    def test_compressed_archives(self, tmp_path: Path) -> None:
        for name in ("x.tar.gz", "x.tgz"):
            assert keys(open_corpus(write(tmp_path / name, *sample("1")))) == ["1", "1#0"]

    @pytest.mark.parametrize(
        ("members", "kept", "refused"),
        [
            ([("1.jpg", PICTURE), ("1.png", PICTURE), ("1.txt", b"x")], ["1", "1#0"], [("image-duplicate", "1")]),
            ([("1.jpg", PICTURE), ("1.txt", b"x"), ("1.caption", b"y")], ["1", "1#0"], [("caption-duplicate", "1")]),
            ([("1.jpg", PICTURE), ("1.txt", b"\xff")], ["1"], [("row-unreadable", "1")]),
            ([("1.jpg", PICTURE), ("1.txt", b"a\0b")], ["1"], [("row-unreadable", "1")]),
            ([("1.jpg", PICTURE), ("1.json", b"{")], ["1"], [("row-unreadable", "1")]),
            ([("1.jpg", PICTURE), ("1.json", b"[1]")], ["1"], [("row-unreadable", "1")]),
            ([("1.jpg", PICTURE), ("1.json", b"[" * 100_000)], ["1"], [("row-unreadable", "1")]),
            ([("1.jpg", PICTURE), ("1.json", b'{"caption": 3}')], ["1"], [("caption-not-text", "1#0")]),
            ([("1.jpg", PICTURE), ("1.json", b'{"x": NaN}')], ["1"], [("payload-not-json", "1")]),
            ([("1.json", b'{"x": 1}')], [], [("row-without-image-or-caption", "1")]),
            ([("1.json", b"{")], [], [("row-unreadable", "1")]),
            ([("1.cls", b"3"), (".DS_Store", b"x"), ("._1.jpg", b"x")], [], []),
        ],
    )
    def test_a_sample_that_cannot_be_used(self, members: Any, kept: Any, refused: Any, tmp_path: Path) -> None:
        found = list(open_corpus(write(tmp_path / "x.tar", *members, *sample("z"))))
        assert keys(found) == [*kept, "z", "z#0"]
        assert reasons(found) == refused

    def test_a_picture_without_bytes_is_left_to_the_decoder(self, tmp_path: Path) -> None:
        (image,) = open_corpus(write(tmp_path / "x.tar", ("1.jpg", b"")))
        assert isinstance(image, Item)
        assert image.content == b""
        with pytest.raises(ImageRejectedError) as caught:
            read_image(b"")
        assert caught.value.reason == "image-empty"


class TestHostile:
    @pytest.mark.parametrize(
        ("member", "reason"),
        [
            (("../1.jpg", PICTURE), "member-unsafe-name"),
            (("a/../../1.jpg", PICTURE), "member-unsafe-name"),
            (("/etc/1.jpg", PICTURE), "member-unsafe-name"),
            (("C:\\1.jpg", PICTURE), "member-unsafe-name"),
            (("..\\1.jpg", PICTURE), "member-unsafe-name"),
            (header("1.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"), "member-not-a-file"),
            (header("1.jpg", kind=tarfile.LNKTYPE, link="a.jpg"), "member-not-a-file"),
            (header("1.jpg", kind=tarfile.CHRTYPE), "member-not-a-file"),
            (header("1.jpg", kind=tarfile.BLKTYPE), "member-not-a-file"),
            (header("1.jpg", kind=tarfile.FIFOTYPE), "member-not-a-file"),
        ],
    )
    def test_is_refused_and_never_followed(self, member: Any, reason: str, tmp_path: Path) -> None:
        before = set(tmp_path.rglob("*"))
        path = write(tmp_path / "x.tar", *sample("a"), member, *sample("z"))
        found = list(open_corpus(path))
        assert (keys(found), reasons(found)) == (["a", "a#0", "z", "z#0"], [(reason, None)])
        assert set(tmp_path.rglob("*")) == before | {path}

    def test_a_name_that_is_no_unicode(self, tmp_path: Path) -> None:
        found = list(open_corpus(write(tmp_path / "x.tar", (os.fsdecode(b"\xff.jpg"), PICTURE), *sample("z"))))
        assert (keys(found), reasons(found)) == (["z", "z#0"], [("path-not-unicode", None)])

    def test_large_members_are_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archives, "LARGEST_PICTURE", 100)
        monkeypatch.setattr(archives, "LONGEST_FIELD", 10)
        path = write(
            tmp_path / "x.tar", ("1.jpg", b"x" * 101), ("1.txt", b"a dog"), ("2.jpg", b"x" * 100), ("2.txt", b"x" * 11)
        )
        found = list(open_corpus(path))
        assert keys(found) == ["1#0", "2"]
        assert reasons(found) == [("member-too-large", "1"), ("member-too-large", "2")]
        assert [one.modality for one in found if isinstance(one, Reject)] == ["image", "text"]

    @pytest.mark.slow
    def test_a_bomb_takes_no_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archives, "LARGEST_PICTURE", 1 << 20)
        large = 96 << 20
        with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as file:
            file.write(header("1.jpg", large).tobuf())
            for _ in range(large >> 20):
                file.write(bytes(1 << 20))
            file.write(header("2.txt", 3).tobuf() + b"two".ljust(512, b"\0") + bytes(1024))
        tracemalloc.start()
        found = list(open_corpus(tmp_path / "x.tar.gz"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (keys(found), reasons(found)) == (["2#0"], [("member-too-large", "1")])
        assert peak < 8 << 20

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_a_name_of_gigabytes_is_not_read(self, kind: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.tar").write_bytes(header("x", 5 << 30, kind).tobuf() + bytes(4096))
        found = list(WebDataset(tmp_path / "x.tar"))
        assert reasons(found) == [("archive-damaged", None)]
        assert isinstance(found[0], Reject)
        assert "a header of 5368709120 bytes" in found[0].detail

    def test_headers_without_end_are_damage(self, tmp_path: Path) -> None:
        (tmp_path / "x.tar").write_bytes(header("x", 0, tarfile.XHDTYPE).tobuf() * 5000)
        assert reasons(WebDataset(tmp_path / "x.tar")) == [("archive-damaged", None)]


class TestDamage:
    def content(self, directory: Path) -> bytes:
        return write(directory / "x.tar", *sample("a"), *sample("b"), *sample("c")).read_bytes()

    @pytest.mark.parametrize("length", [512 * n for n in range(13)] + [700, 1400, 3000, 6000])
    def test_an_archive_that_breaks_off_says_so(self, length: int, tmp_path: Path) -> None:
        content = self.content(tmp_path)
        (tmp_path / "x.tar").write_bytes(content[:length])
        found = list(open_corpus(tmp_path / "x.tar"))
        whole = length // 2048  # a sample is two headers and two blocks
        left_out = "abc"[whole] if length - 2048 * whole > 512 else "abc"[whole - 1] if whole else None
        assert keys(found) == [key for one in "abc"[:whole] if one != left_out for key in (one, f"{one}#0")]
        assert reasons(found)[0][0] == "archive-damaged"
        assert len(reasons(found)) == 1

    def test_a_damaged_header_is_not_the_end(self, tmp_path: Path) -> None:
        content = bytearray(self.content(tmp_path))
        content[4096 + 150] ^= 0x55  # in the checksum of c.jpg
        (tmp_path / "x.tar").write_bytes(content)
        found = list(open_corpus(tmp_path / "x.tar"))
        assert (keys(found), reasons(found)) == (["a", "a#0"], [("archive-damaged", "b")])

    def test_bytes_behind_the_end_are_said(self, tmp_path: Path) -> None:
        content = self.content(tmp_path)
        (tmp_path / "x.tar").write_bytes(content * 2)
        found = list(open_corpus(tmp_path / "x.tar"))
        assert len(keys(found)) == 6
        assert reasons(found) == [("archive-trailing-data", None)]

    def test_compressed_content_is_checked(self, tmp_path: Path) -> None:
        content = bytearray(write(tmp_path / "x.tar.gz", *sample("a"), *sample("b")).read_bytes())
        content[-6] ^= 0x55  # in the checksum
        (tmp_path / "x.tar.gz").write_bytes(content)
        assert [reason for reason, _ in reasons(open_corpus(tmp_path / "x.tar.gz"))] == ["archive-unreadable"]
        (tmp_path / "x.tar.gz").write_bytes(content[: len(content) // 2])
        assert [reason for reason, _ in reasons(open_corpus(tmp_path / "x.tar.gz"))] == ["archive-damaged"]

    def test_one_bad_shard_leaves_the_others(self, tmp_path: Path) -> None:
        write(tmp_path / "0.tar", *sample("a"))
        (tmp_path / "1.tar").write_bytes(b"no archive")
        (tmp_path / "2.tar").touch()
        (tmp_path / "3.tar").write_bytes(bytes(40_960))  # the room that a download has reserved
        write(tmp_path / "4.tar", header("folder", kind=tarfile.DIRTYPE))
        write(tmp_path / "5.tar", *sample("z"))
        found = list(open_corpus(tmp_path))
        assert keys(found) == ["a", "a#0", "z", "z#0"]
        assert reasons(found) == [("archive-damaged", None)] * 4


def test_an_archive_is_read_in_little_memory(tmp_path: Path) -> None:
    picture = os.urandom(100_000)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(300):
            for name, content in ((f"{number}.jpg", picture), (f"{number}.txt", b"text")):
                tar.addfile(header(name, len(content)), io.BytesIO(content))
    tracemalloc.start()
    assert sum(1 for _ in open_corpus(tmp_path / "x.tar")) == 600
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20  # of 30 MB


class TestImg2Dataset:
    """Both of its layouts: archives, and files."""

    @pytest.fixture(params=["webdataset", "files"])
    def shard(self, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
        def made(number: int, arrived: dict[str, str], table: dict[str, tuple[str, str | None]] | None) -> Path:
            folder = tmp_path / "out"
            stem = f"{number:05d}"
            members = []
            for key, caption in arrived.items():
                told: dict[str, Any] = {"key": key, "caption": caption, "status": "success", "exif": "{}"}
                told |= {"error_message": None, "url": f"http://x/{key}", "width": 8, "sha256": "00"}
                members += [(f"{key}.jpg", PICTURE), (f"{key}.txt", caption.encode())]
                members += [(f"{key}.json", json.dumps(told).encode())]
            folder.mkdir(exist_ok=True)
            if request.param == "webdataset":
                write(folder / f"{stem}.tar", *members)
            else:
                (folder / stem).mkdir()
                for name, content in members:
                    (folder / stem / name).write_bytes(content)
            if table is not None:
                columns: dict[str, Any] = {"key": [*table], "status": [s for s, _ in table.values()]}
                columns |= {
                    "error_message": [e for _, e in table.values()],
                    "url": ["http://me:pw@x/?t=1"] * len(table),
                }
                pq.write_table(pa.table(columns), folder / f"{stem}.parquet")
                (folder / f"{stem}_stats.json").write_text("{}")
            return folder

        return made

    def test_a_gap_between_shards_is_named_and_keeps_items_from_pruning(self, shard: Callable[..., Path]) -> None:
        for number in (3, 4, 7):
            folder = shard(number, {f"{number}": "one"}, {f"{number}": ("success", None)})
        found = list(open_corpus(folder))
        hidden = [entry.name for entry in found if isinstance(entry, PassedOver) and entry.may_hide]
        assert hidden == [str(folder / name) for name in ("00005", "00006")]
        (remark,) = remarks(found)
        assert ("00005, 00006" in remark.text, remark.count) == (True, 2)
        assert keys(found) == ["3", "3#0", "4", "4#0", "7", "7#0"]

    def test_what_came_and_what_failed(self, shard: Callable[..., Path]) -> None:
        ok = ("success", None)
        shard(
            0,
            {"000": "one", "002": "three"},
            {
                "000": ok,
                "001": ("failed_to_download", "HTTP Error 404"),
                "002": ok,
                "003": ("failed_to_resize", "small"),
            },
        )
        folder = shard(1, {"100": "four"}, {"100": ok, "101": ok})
        opened = open_corpus(folder)
        found = list(opened)
        assert opened.format == "img2dataset"
        assert keys(found) == ["000", "000#0", "002", "002#0", "100", "100#0"]
        assert reasons(found) == [("failed-to-download", "001"), ("failed-to-resize", "003"), ("image-missing", "101")]
        first, failed = found[1], next(one for one in found if isinstance(one, Reject))
        assert isinstance(first, Item)
        assert first.payload == {"caption": "one", "url": "http://x/000", "width": 8, "sha256": "00"}
        assert failed.detail == "HTTP Error 404: http://***@x/"
        assert failed.source == str(folder / "00000.parquet")
        assert [one.position for one in placed(found)] == [1, 1, 2, 2, 2, 4, 1, 1, 2]
        assert [reached(one) for one in found] == [1, 1, 2, 2, 3, 4, 5, 5, 6]
        assert opened.total() == 6

    def test_a_shard_whose_download_did_not_end(self, shard: Callable[..., Path]) -> None:
        shard(0, {"000": "one"}, {"000": ("success", None)})
        opened = open_corpus(shard(1, {"100": "two"}, None))
        found = list(opened)
        assert (keys(found), reasons(found)) == (["000", "000#0", "100", "100#0"], [("shard-unfinished", None)])
        assert opened.total() is None

    @pytest.mark.parametrize("damage", ["cut", "columns", "types", "names"])
    def test_a_table_that_cannot_be_read(self, damage: str, shard: Callable[..., Path]) -> None:
        folder = shard(0, {"000": "one"}, {"000": ("success", None)})
        table = folder / "00000.parquet"
        if damage == "cut":
            table.write_bytes(table.read_bytes()[:-9])
        elif damage == "names":
            table.write_bytes(table.read_bytes().replace(b"error_message", b"e\xff" + b"r" * 11))
        else:
            pq.write_table(pa.table({"key": ["001"]} | ({"status": [7]} if damage == "types" else {})), table)
        opened = open_corpus(folder)
        found = list(opened)
        assert keys(found) == ["000", "000#0"]
        assert opened.total() == (1 if damage in ("columns", "types") else None)
        expected = ("download-failed", "001") if damage == "types" else ("shard-table-unreadable", None)
        assert reasons(found) == [expected]

    def test_a_folder_without_shards(self, tmp_path: Path) -> None:
        with raises(CorpusError, tmp_path, "00000.tar"):
            list(open_corpus(tmp_path, format="img2dataset"))


def test_an_encoder_with_nothing_among_the_first_entries_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoders: dict[Modality, str] = {"image": "some:images", "text": "some:texts"}
    pictures = open_corpus(write(tmp_path / "pictures.tar", *(sample(f"{n}")[0] for n in range(3))))
    check_holds(pictures, {"image": "some:images"}, chosen=True)
    check_holds(open_corpus(write(tmp_path / "both.tar", *sample("a"))), encoders, chosen=True)
    assert caplog.messages == []
    check_holds(pictures, encoders, chosen=True)
    (told,) = caplog.messages
    assert "some:texts" in told
    assert " 3 " in told
