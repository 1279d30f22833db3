"""COCO, Karpathy and Flickr: what stands in the files, where the images are looked for, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from connector.corpora.annotations import CocoCaptions, Karpathy
from connector.corpora.flickr_tokens import FlickrTokens
from connector.corpora.formats import open_corpus
from connector.corpora.items import Entry, Item
from connector.errors import CorpusError
from connector.rejects import Reject
from tests.support.errors import raises


def coco(directory: Path, images: Any, annotations: Any, name: str = "captions_val2017.json") -> Path:
    path = directory / "annotations" / name
    path.parent.mkdir(exist_ok=True)
    (directory / "val2017").mkdir(exist_ok=True)
    (directory / "val2017" / "1.jpg").touch()
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def karpathy(directory: Path, *images: Any, name: str = "dataset_flickr30k.json") -> Path:
    (directory / "1.jpg").touch()
    (directory / name).write_text(json.dumps({"images": images, "dataset": "x"}))
    return directory / name


def flickr(directory: Path, text: str | bytes, name: str = "results_20130124.token") -> Path:
    (directory / "1.jpg").touch()
    (directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return directory / name


def captions(found: list[Entry]) -> dict[str, Any]:
    return {item.key: item.content for item in found if isinstance(item, Item) and item.modality == "text"}


def reasons(found: list[Entry]) -> list[tuple[int, str, str | None]]:
    return [(one.position, one.reason, one.key) for one in found if isinstance(one, Reject)]


IMAGE = {"id": 1, "file_name": "1.jpg"}
SENTENCES = [{"raw": "a dog"}]
RECORD = {"filename": "1.jpg", "sentences": SENTENCES, "split": "test"}


class TestCoco:
    def test_the_id_of_an_image_is_key_and_group_and_its_record_the_payload(self, tmp_path: Path) -> None:
        image = {"id": 391895, "file_name": "1.jpg", "license": 3, "split": "x", "coco_url": "http://x/1.jpg"}
        told = [{"id": n, "image_id": 391895, "caption": f"caption {n}"} for n in (9, 4, 7, 1, 2)]
        found = list(open_corpus(coco(tmp_path, [image], told)))
        assert reasons(found) == []
        first = found[0]
        assert isinstance(first, Item)
        assert (first.key, first.group, first.content) == ("391895", "391895", tmp_path / "val2017" / "1.jpg")
        assert dict(first.payload) == {
            "image": str(first.content),
            "license": 3,
            "corpus_split": "x",
            "coco_url": "http://x/1.jpg",
        }
        assert list(captions(found).values()) == ["caption 9", "caption 4", "caption 7", "caption 1", "caption 2"]

    @pytest.mark.parametrize(
        ("annotation", "refused"),
        [
            ({"id": 5, "image_id": 2, "caption": "x"}, (0, "caption-without-image", "2")),
            ({"id": 5, "caption": "x"}, (0, "caption-without-image", None)),
            ({"id": 5, "image_id": [1], "caption": "x"}, (0, "caption-without-image", None)),
            ({"id": 5, "image_id": True, "caption": "x"}, (0, "caption-without-image", "True")),
            ({"id": 5, "image_id": 1, "caption": 7}, (0, "caption-not-text", "1")),
            ({"id": 5, "image_id": 1, "caption": " "}, (0, "caption-empty", "1")),
            ({"id": 5, "image_id": 1}, (0, "caption-not-text", "1")),
            ({"id": 0, "image_id": 1, "caption": "again"}, (0, "key-duplicate", "1")),
            ("text", (0, "caption-not-text", None)),
        ],
    )
    def test_an_annotation_that_cannot_be_used(self, annotation: Any, refused: Any, tmp_path: Path) -> None:
        whole = {"id": 0, "image_id": 1, "caption": "a dog"}
        found = list(open_corpus(coco(tmp_path, [IMAGE], [whole, annotation])))
        assert reasons(found) == [refused]
        assert isinstance(found[0], Reject)
        assert found[0].detail.startswith("annotation 2: ")
        assert captions(found) == {"1#0": "a dog"}

    @pytest.mark.parametrize(
        ("image", "refused"),
        [
            ({"id": 1, "file_name": "2.jpg"}, (2, "key-duplicate", "1")),
            ({"id": 2}, (2, "row-unreadable", None)),
            ({"file_name": "2.jpg"}, (2, "row-unreadable", None)),
            ({"id": [2], "file_name": "2.jpg"}, (2, "row-unreadable", None)),
            (None, (2, "row-unreadable", None)),
            ({"id": 2, "file_name": 2}, (2, "row-unreadable", None)),
            ({"id": 2, "file_name": "../../secret.jpg"}, (2, "path-unsafe", "2")),
            ({"id": 2, "file_name": "/etc/passwd"}, (2, "path-unsafe", "2")),
            ({"id": 2, "file_name": "..\\x.jpg"}, (2, "path-unsafe", "2")),
            ({"id": 2, "file_name": "2.jpg", "n": float("nan")}, (2, "payload-not-json", "2")),
            ({"id": 2, "file_name": "x\0.jpg"}, (2, "row-unreadable", "2")),
        ],
    )
    def test_an_image_that_cannot_be_used(self, image: Any, refused: Any, tmp_path: Path) -> None:
        told = [{"id": n, "image_id": n, "caption": "a dog"} for n in (1,)]
        found = list(open_corpus(coco(tmp_path, [IMAGE, image], told)))
        assert reasons(found) == [refused]
        assert captions(found) == {"1#0": "a dog"}

    def test_annotations_of_objects_are_no_captions(self, tmp_path: Path) -> None:
        path = coco(tmp_path, [IMAGE], [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}], "instances_val2017.json")
        with raises(CorpusError, path, "captions_*.json"):
            list(open_corpus(path))


class TestKarpathy:
    def test_the_split_is_kept_beside_ours(self, tmp_path: Path) -> None:
        first = {**RECORD, "imgid": 7, "sentids": [1, 2], "sentences": [*SENTENCES, {"raw": "a hound", "tokens": []}]}
        found = list(open_corpus(karpathy(tmp_path, first)))
        assert [dict(item.payload) for item in found if isinstance(item, Item)] == [
            {"image": str(tmp_path / "1.jpg"), "corpus_split": "test", "imgid": 7},
            {"caption": "a dog", "corpus_split": "test", "imgid": 7},
            {"caption": "a hound", "corpus_split": "test", "imgid": 7},
        ]
        assert list(captions(found)) == ["1.jpg#0", "1.jpg#1"]

    def test_images_of_coco_have_their_ids_as_in_its_own_captions(self, tmp_path: Path) -> None:
        (tmp_path / "images" / "val2014").mkdir(parents=True)
        (tmp_path / "images" / "val2014" / "1.jpg").touch()
        record = {**RECORD, "cocoid": 391895, "filepath": "val2014"}
        (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [record]}))
        image, _ = open_corpus(tmp_path / "dataset_coco.json")
        assert isinstance(image, Item)
        assert (image.key, image.content) == ("391895", tmp_path / "images" / "val2014" / "1.jpg")

    @pytest.mark.parametrize(
        ("record", "refused"),
        [
            ({**RECORD, "filename": "2.jpg", "sentences": None}, (2, "caption-not-text", "2.jpg#0")),
            ({**RECORD, "filename": "2.jpg", "sentences": [{"tokens": ["a"]}]}, (2, "caption-not-text", "2.jpg#0")),
            ({**RECORD, "filename": "2.jpg", "sentences": [{"raw": 3}]}, (2, "caption-not-text", "2.jpg#0")),
            ({"sentences": SENTENCES}, (2, "row-unreadable", None)),
            ([], (2, "row-unreadable", None)),
            ({**RECORD, "filename": "2.jpg", "filepath": "../up"}, (2, "path-unsafe", "2.jpg")),
            ({**RECORD, "filename": "2.jpg", "cocoid": [2]}, (2, "key-not-text", "[2]")),
            (RECORD, (2, "key-duplicate", "1.jpg")),
        ],
    )
    def test_an_image_that_cannot_be_used(self, record: Any, refused: Any, tmp_path: Path) -> None:
        found = list(open_corpus(karpathy(tmp_path, RECORD, record)))
        assert reasons(found) == [refused]
        assert captions(found) == {"1.jpg#0": "a dog"}


class TestFlickr:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("results_20130124.token", "1.jpg#0\ta dog , it runs\n1.jpg#1\ta hound\n"),
            ("Flickr8k.token.txt", "\ufeff1.jpg#0\ta dog , it runs\r\n1.jpg#1\ta hound\r\n"),
            ("results.csv", "image_name| comment_number| comment\n1.jpg| 0| a dog , it runs\n1.jpg| 1| a hound\n"),
            ("captions.txt", 'image,caption\n1.jpg,"a dog , it runs"\n1.jpg,a hound\n'),
            ("captions.csv", '\ufeff"image","caption"\r\n"1.jpg","a dog , it runs"\r\n"1.jpg","a hound"\r\n'),
            (
                "captions.txt",
                'image_name,comment_number,comment\n1.jpg,0," a dog , it runs"\n1.jpg,1, a hound\n',
            ),
        ],
    )
    def test_every_form(self, name: str, text: str, tmp_path: Path) -> None:
        opened = open_corpus(flickr(tmp_path, text, name))
        assert isinstance(opened, FlickrTokens)
        found = list(opened)
        assert reasons(found) == []
        assert captions(found) == {"1.jpg#0": "a dog , it runs", "1.jpg#1": "a hound"}
        assert [item.key for item in found if isinstance(item, Item) and item.modality == "image"] == ["1.jpg"]

    @pytest.mark.parametrize(
        ("name", "lines", "refused"),
        [
            ("x.token", b"1.jpg#0\tone\nno mark\n2.jpg#0\ttwo\n", (2, "row-unreadable", None)),
            ("x.token", b"1.jpg#0\tone\n2.jpg#0\t\xff\n2.jpg#0\ttwo\n", (2, "row-unreadable", None)),
            ("x.token", b"1.jpg#0\tone\n../3.jpg#0\tup\n2.jpg#0\ttwo\n", (2, "path-unsafe", "../3.jpg")),
            ("x.token", b"1.jpg#0\tone\n1.jpg#1\tone\n2.jpg#0\ttwo\n", (2, "key-duplicate", "1.jpg")),
            # as it stands in the file that everybody has
            (
                "x.csv",
                b"image_name| comment_number| comment\n1.jpg| 0| one\n2.jpg| 4   A dog .\n2.jpg| 0| two\n",
                (2, "row-unreadable", None),
            ),
            ("x.txt", b"image,caption\n1.jpg,one\n1.jpg,\n2.jpg,two\n", (2, "caption-empty", "1.jpg#1")),
            ("x.csv", b'"image","caption"\n"1.jpg","one"\n"1.jpg"," "\n2.jpg,two\n', (2, "caption-empty", "1.jpg#1")),
            ("x.token", b"1.jpg#0\tone\n1.jpg#1\t\n2.jpg#0\ttwo\n", (2, "caption-empty", "1.jpg#1")),
            ("x.txt", b"image,caption\n1.jpg,one\n2.jpg,a,b\n2.jpg,two\n", (2, "row-unreadable", None)),
            (
                "x.txt",
                b"image_name,comment_number,comment\n1.jpg,0,one\n2.jpg,0,a,b\n2.jpg,1,two\n",
                (2, "row-unreadable", None),
            ),
        ],
    )
    def test_a_line_that_cannot_be_used(self, name: str, lines: bytes, refused: Any, tmp_path: Path) -> None:
        found = list(open_corpus(flickr(tmp_path, lines, name)))
        assert reasons(found) == [refused]
        (reject,) = [one for one in found if isinstance(one, Reject)]
        assert reject.detail.startswith(f"line {2 if name.endswith('.token') else 3}: ")  # a header is no row
        assert captions(found) == {"1.jpg#0": "one", "2.jpg#0": "two"}

    @pytest.mark.parametrize("others", [b"", b"1.jpg,one\n"])
    def test_an_empty_caption_is_refused_alone_and_leaves_its_image(self, others: bytes, tmp_path: Path) -> None:
        found = list(open_corpus(flickr(tmp_path, b"image,caption\n1.jpg,\n" + others, "captions.txt")))
        assert reasons(found) == [(1, "caption-empty", "1.jpg#0")]
        assert [item.key for item in found if isinstance(item, Item) and item.modality == "image"] == ["1.jpg"]
        assert captions(found) == ({"1.jpg#1": "one"} if others else {})


WHOLE = [
    lambda directory: coco(directory, [IMAGE], [{"id": 1, "image_id": 1, "caption": "a"}]),
    lambda directory: karpathy(directory, RECORD),
    lambda directory: flickr(directory, "1.jpg#0\ta\n"),
]
every_kind = pytest.mark.parametrize("make", WHOLE, ids=["coco", "karpathy", "flickr"])
Make = Callable[[Path], Path]


@every_kind
def test_images_may_lie_elsewhere(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "far" / "Images").mkdir(parents=True)
    (tmp_path / "far" / "Images" / "1.jpg").touch()
    [image] = [item for item in open_corpus(path, images=tmp_path / "far") if getattr(item, "modality", "") == "image"]
    assert isinstance(image, Item)
    assert image.content == tmp_path / "far" / "Images" / "1.jpg"


@every_kind
def test_images_that_are_nowhere_are_asked_for(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path)
    for file in tmp_path.rglob("1.jpg"):
        file.unlink()
    with raises(CorpusError, path, "1.jpg", "--images"):
        list(open_corpus(path))
    (tmp_path / "none").mkdir()
    [image, _] = open_corpus(path, images=tmp_path / "none")  # named, so each is refused when it is not there
    assert isinstance(image, Item)
    assert image.content == tmp_path / "none" / "1.jpg"


@pytest.mark.parametrize("reader", [CocoCaptions, Karpathy])
@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"", []),
        (b'{"images": [{"id": 1', []),
        (b'{"images": [], "annotations": [], "x": "\xff"}', []),
        (b"[" * 100_000, []),
        (b"[]", ["list"]),
        (b"{}", ["images", "nothing"]),
        (b'{"images": {}, "annotations": []}', ["images", "an object"]),
    ],
)
def test_a_document_that_is_none(reader: Any, content: bytes, values: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    for read in (list, lambda opened: opened.total()):
        with raises(CorpusError, tmp_path / "x.json", *values):
            read(reader(tmp_path / "x.json"))


def test_a_coco_file_without_annotations_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"images": []}')
    with raises(CorpusError, "x.json", "annotations"):
        list(CocoCaptions(tmp_path / "x.json"))


def test_a_json_file_of_something_else_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"name": "x", "images": []}')
    with raises(CorpusError, "package.json", "coco", ".json"):
        open_corpus(tmp_path / "package.json")
