"""Folders of images with captions beside them."""

import json
import os
from dataclasses import astuple
from pathlib import Path

import pytest

from connector.corpora import folder
from connector.corpora.folder import Folder
from connector.corpora.formats import check_holds, open_corpus
from connector.corpora.items import reached
from connector.corpora.picture_files import image_suffixes
from connector.errors import CorpusError, SettingsError
from tests.support.corpora import (
    WRITERS,
    items,
    no_pipes,
    read,
    rejects,
)
from tests.support.errors import raises


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
    assert [astuple(item)[:7] for item in items(opened)] == [
        ("image", "a.PNG", "a.PNG", tmp_path / "a.PNG", {"image": f"{path}/a.PNG"}, f"{path}/a.PNG", 1),
        ("image", "b.jpg", "b.jpg", tmp_path / "b.jpg", {"image": f"{path}/b.jpg"}, f"{path}/b.jpg", 1),
        ("text", "b.jpg#0", "b.jpg", "one", {"caption": "one"}, f"{path}/b.txt", 1),
        ("text", "b.jpg#1", "b.jpg", "two", {"caption": "two"}, f"{path}/b.txt", 3),
        (
            "image",
            "sub/c.webp",
            "sub/c.webp",
            tmp_path / "sub/c.webp",
            {"image": f"{path}/sub/c.webp"},
            f"{path}/sub/c.webp",
            1,
        ),
        ("text", "sub/c.webp#0", "sub/c.webp", "one", {"caption": "one"}, f"{path}/sub/c.txt", 1),
        ("text", "sub/c.webp#1", "sub/c.webp", "two", {"caption": "two"}, f"{path}/sub/c.txt", 3),
    ]
    assert [reached(item) for item in items(opened)] == [1, 2, 2, 2, 3, 3, 3]
    assert rejects(opened) == []
    assert opened.total() == 3


def test_a_folder_without_captions_is_refused_where_a_text_encoder_was_chosen(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "sub/b.png", "notes.md")
    opened = open_corpus(tmp_path)
    with raises(CorpusError, tmp_path, "some:texts", ".txt", "--text-encoder"):
        check_holds(opened, {"image": "some:images", "text": "some:texts"}, chosen=True)
    check_holds(opened, {"image": "some:images"}, chosen=True)
    check_holds(opened, {"image": "some:images", "text": "some:texts"}, chosen=False)
    touch(tmp_path, "sub/b.txt")
    check_holds(opened, {"image": "some:images", "text": "some:texts"}, chosen=True)


def test_a_folder_whose_caption_files_are_refused_may_have_captions(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "misnamed.txt")
    check_holds(open_corpus(tmp_path), {"text": "some:texts"}, chosen=True)


@pytest.mark.parametrize("suffix", sorted(image_suffixes()))
def test_every_suffix_of_an_image_is_known_in_any_case(suffix: str, tmp_path: Path) -> None:
    touch(tmp_path, f"a{suffix}", f"b{suffix.upper()}", f"c{suffix.title()}", "a.txt", "b.TXT", "c.Txt")
    entries = read(tmp_path)
    assert rejects(entries) == []
    assert len(items(entries)) == 9
    assert open_corpus(tmp_path).total() == 3


def test_captions_without_an_image_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.txt", "b.txt", "sub/a.txt")
    entries = read(tmp_path)
    assert [(r.source, r.reason) for r in rejects(entries)] == [
        (str(tmp_path / "b.txt"), "caption-without-image"),
        (str(tmp_path / "sub/a.txt"), "caption-without-image"),
    ]
    assert len(items(entries)) == 3


def test_captions_that_are_no_utf8_are_refused_and_their_image_is_kept(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    entries = read(tmp_path)
    assert [item.key for item in items(entries)] == ["a.png"]
    [reject] = rejects(entries)
    assert (reject.reason, reject.key, reject.modality) == ("row-unreadable", "a.png", "text")


def test_captions_may_start_with_a_byte_order_mark_and_hold_odd_separators(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028still one\x0cstill\r\ntwo\rthree\n".encode())
    entries = [item.content for item in items(read(tmp_path)) if item.modality == "text"]
    assert entries == ["one\u2028still one\x0cstill", "two", "three"]


def test_captions_with_a_nul_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"one\x00")
    assert [reject.reason for reject in rejects(read(tmp_path))] == ["row-unreadable"]


@no_pipes
@pytest.mark.usefixtures("impatient")
def test_captions_that_are_a_pipe_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "b.txt")
    os.mkfifo(tmp_path / "a.txt")
    entries = read(tmp_path)
    assert [item.key for item in items(entries)] == ["a.png", "b.png", "b.png#0", "b.png#1"]
    [reject] = rejects(entries)
    assert (reject.source, reject.position, reject.stage) == (str(tmp_path / "a.txt"), 0, "read")
    assert (reject.reason, reject.key, reject.modality) == ("row-unreadable", "a.png", "text")


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
    entries = read(tmp_path)
    assert [item.key for item in items(entries)] == ["a.png"]
    [reject] = rejects(entries)
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
    entries = read(tmp_path)
    assert {item.content.name for item in items(entries) if isinstance(item.content, Path)} == {
        "top.png",
        "a.png",
        "b.png",
        "c.png",
        "s.png",
    }
    assert {reject.reason for reject in rejects(entries)} == {"folder-unreadable"}
    assert len(entries) < 40


def test_a_dangling_link_is_left_to_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    assert [item.key for item in items(read(tmp_path))] == ["a.png"]


def test_an_empty_folder_has_no_items(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    assert open_corpus(tmp_path).total() == 0


def test_a_folder_that_is_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "album.png/a.png")
    assert [item.key for item in items(read(tmp_path))] == ["album.png/a.png"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("split", ["", "train"])
def test_captions_of_an_image_folder_of_hugging_face_are_named_and_read_as_it_is_said(
    suffix: str, split: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / split, "1.jpg", "more/2.png")
    metadata = tmp_path / split / f"metadata{suffix}"
    WRITERS[suffix](metadata, [{"file_name": name, "text": f"a {name}"} for name in ("1.jpg", "more/2.png")])
    advice = [str(metadata), "--key file_name --image file_name --caption"]
    if suffix == ".parquet" and not split:
        with raises(CorpusError, *advice):
            open_corpus(tmp_path)
    else:
        assert [item.modality for item in items(read(tmp_path))] == ["image", "image"]
        (said,) = caplog.messages
        assert [value for value in advice if value not in said] == []
        with raises(SettingsError, "--caption", *advice):
            open_corpus(tmp_path, caption=["text"])
    found = items(open_corpus(metadata, key="file_name", image="file_name", caption=["text"]))
    assert [(item.key, item.content) for item in found if item.modality == "text"] == [
        ("1.jpg#0", "a 1.jpg"),
        ("more/2.png#0", "a more/2.png"),
    ]
    assert [item.content for item in found if item.modality == "image"] == [
        tmp_path / split / "1.jpg",
        tmp_path / split / "more/2.png",
    ]


def test_metadata_of_something_else_is_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "1.jpg", "metadata.csv")
    assert len(items(read(tmp_path))) == 1
    assert caplog.messages == []
