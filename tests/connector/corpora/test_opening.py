"""Files that are not UTF-8 are named by what they are, with the way to convert them."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from connector.corpora.formats import open_corpus
from connector.errors import CorpusError
from tests.support.corpora import items, read, reasons, rejects
from tests.support.errors import raises

TEXTS = {
    "m.csv": "key,caption\n1,un café\n2,l’été à la mer\n3,a dog\n",
    "m.tsv": "key\tcaption\n1\tun café\n2\tl’été à la mer\n3\ta dog\n",
    "m.jsonl": '{"key": "1", "caption": "un café"}\n{"key": "2", "caption": "l’été à la mer"}\n',
    "m.token": "1.jpg#0\tun café\n2.jpg#0\tl’été à la mer\n",
    "captions.txt": "image,caption\n1.jpg,un café\n2.jpg,l’été à la mer\n",
    "results.csv": "image_name| comment_number| comment\n1.jpg| 0| un café\n2.jpg| 0| l’été à la mer\n",
}
WIDE = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE", "utf-32-le": "UTF-32LE"}
WIDE |= {"utf-16": "UTF-16", "utf-32": "UTF-32"}  # with a byte order mark
every_text = pytest.mark.parametrize("name", TEXTS)


@every_text
@pytest.mark.parametrize("encoding", [*WIDE, "cp1252", "latin-1"])
def test_another_encoding_is_named_before_anything_is_read(name: str, encoding: str, tmp_path: Path) -> None:
    text = TEXTS[name].replace("’", "'") if encoding == "latin-1" else TEXTS[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    found = WIDE.get(encoding, "WINDOWS-1252")
    named = "flickr" if name in ("captions.txt", "results.csv") else None
    with raises(CorpusError, tmp_path / name, "UTF-8", found, f"iconv -f {found} -t UTF-8 {tmp_path / name}"):
        open_corpus(tmp_path / name, format=named)


@every_text
@pytest.mark.parametrize("encoding", ["shift_jis", "gbk", "cp1251", "euc-kr"])
def test_a_file_without_a_line_of_utf_8_is_refused_whole(name: str, encoding: str, tmp_path: Path) -> None:
    words = {"cp1251": ("красный дом", "синее море"), "euc-kr": ("빨간 집", "파란 바다")}
    one, two = words.get(encoding, ("日本語の写真", "赤い車"))
    text = TEXTS[name].replace("un café", one).replace("l’été à la mer", two)
    (tmp_path / name).write_bytes(text.encode(encoding, "replace"))
    with raises(CorpusError, tmp_path / name, "UTF-8", "iconv"):
        open_corpus(tmp_path / name, format="flickr" if name in ("captions.txt", "results.csv") else None)


@every_text
@pytest.mark.parametrize("characters", ["é", "日本語の写真", "\N{CAT FACE}", "ÿþ", ""])
def test_utf_8_is_never_taken_for_anything_else(name: str, characters: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(TEXTS[name].replace("café", characters), encoding="utf-8")
    (tmp_path / "1.jpg").touch()
    assert items(read(tmp_path / name))


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl", "m.token"])
def test_a_single_line_in_another_encoding_is_refused_by_name(name: str, tmp_path: Path) -> None:
    lines = TEXTS[name].replace("l’été à la mer", "a cat").encode("cp1252").splitlines(keepends=True)
    (tmp_path / name).write_bytes(b"".join(lines))
    (tmp_path / "1.jpg").touch()
    (reject,) = rejects(open_corpus(tmp_path / name, images=tmp_path if name == "m.token" else None))
    assert (reject.reason, "WINDOWS-1252" in reject.detail, "iconv" in reject.detail) == ("row-unreadable", True, True)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_header_in_another_encoding_is_named(suffix: str, tmp_path: Path) -> None:
    header = "key,caption,größe".replace(",", "," if suffix == "csv" else "\t")
    (tmp_path / f"m.{suffix}").write_bytes(f"{header}\n".encode("cp1252"))
    with raises(CorpusError, tmp_path / f"m.{suffix}", "WINDOWS-1252", "iconv"):
        open_corpus(tmp_path / f"m.{suffix}")


@pytest.mark.parametrize(("encoding", "found"), [("cp1252", "WINDOWS-1252"), ("utf-16-le", "UTF-16LE")])
def test_captions_beside_pictures_are_refused_by_name(encoding: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").write_bytes("un café\nun thé".encode(encoding))
    entries = read(tmp_path)
    assert reasons(entries) == [(0, "row-unreadable")]
    assert found in rejects(entries)[0].detail


@pytest.mark.parametrize("name", ["1.txt", "1.json"])
@pytest.mark.parametrize(("encoding", "found"), [("cp1252", "WINDOWS-1252"), ("utf-16-be", "UTF-16BE")])
def test_captions_in_archives_are_refused_by_name(name: str, encoding: str, found: str, tmp_path: Path) -> None:
    text = "un café" if name == "1.txt" else '{"caption": "un café"}'
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for member, content in (("1.jpg", b"x"), (name, text.encode(encoding))):
            header = tarfile.TarInfo(member)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    entries = read(tmp_path / "x.tar")
    assert [item.key for item in items(entries)] == ["1"]
    (reject,) = rejects(entries)
    assert (reject.reason, found in reject.detail) == ("row-unreadable", True)


def test_annotations_of_a_benchmark_are_named_too(tmp_path: Path) -> None:
    document = {"images": [], "annotations": [{"image_id": 1, "caption": "un café"}]}
    path = tmp_path / "captions_val2017.json"
    path.write_bytes(json.dumps(document, ensure_ascii=False).encode("cp1252"))
    with raises(CorpusError, path, "WINDOWS-1252", "iconv"):
        open_corpus(path)
