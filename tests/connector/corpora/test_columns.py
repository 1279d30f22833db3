"""Own data needs no renaming: columns are named, files of strangers are read as they are."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.modality import Modality
from connector.corpora.columns import Columns
from connector.corpora.formats import check_holds, open_corpus
from connector.errors import CorpusError, SettingsError
from tests.support.corpora import PYTHON, every_reader, items, read, reasons, rejects, remarks, write_lines, write_rows
from tests.support.errors import raises

PRODUCT = {"sku": "b-1", "photo": "img/1.jpg", "title": "a red cap", "blurb": "a cap for summer", "brand": "acme"}
ENCODERS: dict[Modality, str] = {"image": "some:images", "text": "some:texts"}
NAMES: dict[str, Any] = {"key": "sku", "image": "photo", "caption": ("title", "blurb"), "group": "brand"}


@every_reader
def test_columns_of_other_names_are_named(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [PRODUCT, {**PRODUCT, "sku": "b-2", "photo": "img/2.jpg", "blurb": ""}])
    entries = list(open_corpus(path, **NAMES))
    assert rejects(entries) == []
    assert [(item.key, item.group) for item in items(entries)] == [
        ("b-1", "acme"),
        ("b-1#0", "acme"),
        ("b-1#1", "acme"),
        ("b-2", "acme"),
        ("b-2#0", "acme"),
    ]
    image, title, blurb = items(entries)[:3]
    assert (image.content, image.payload) == (tmp_path / "img/1.jpg", {"image": str(tmp_path / "img/1.jpg")})
    assert (title.content, blurb.content) == (PRODUCT["title"], PRODUCT["blurb"])


@every_reader
def test_the_path_of_an_image_may_be_its_key_and_a_column_of_our_name_is_payload(suffix: str, tmp_path: Path) -> None:
    row = {"key": "internal", "file": "1.jpg", "title": "a cap", "caption": "old", "group": "g", "image": "thumb.jpg"}
    path = write_rows(tmp_path, suffix, [row])
    named = open_corpus(path, key="file", image="file", caption=["title"], group="title")
    image, text = items(named)
    assert (image.key, image.group, image.content) == ("1.jpg", "a cap", tmp_path / "1.jpg")
    kept = {"corpus_key": "internal", "corpus_caption": "old", "corpus_group": "g", "corpus_image": "thumb.jpg"}
    assert image.payload == {"image": str(tmp_path / "1.jpg"), **kept}
    assert text.payload == {"caption": "a cap", **kept}


@every_reader
def test_images_may_lie_in_a_folder_of_their_own(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [PRODUCT])
    (tmp_path / "far").mkdir()
    image = items(open_corpus(path, images=tmp_path / "far", **NAMES))[0]
    assert (image.content, image.payload["image"]) == (tmp_path / "far/img/1.jpg", str(tmp_path / "far/img/1.jpg"))


@pytest.mark.slow
@every_reader
@pytest.mark.parametrize("role", NAMES)
def test_a_named_column_that_is_not_there_is_named_with_those_that_are(suffix: str, role: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [PRODUCT])
    wrong: Any = ("title", "colour") if role == "caption" else "colour"
    with raises(CorpusError, path, f"--{role}", "'colour'", ", ".join(PRODUCT)):
        open_corpus(path, **{**NAMES, role: wrong})


def test_a_name_that_is_nearly_right_is_suggested(tmp_path: Path) -> None:
    with raises(CorpusError, "did you mean 'photo'?"):
        open_corpus(write_rows(tmp_path, ".csv", [PRODUCT]), **{**NAMES, "image": "foto"})


@every_reader
def test_a_file_without_our_columns_says_how_to_name_its_own(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [PRODUCT])
    with raises(CorpusError, path, "--key", "--image", "--caption", "--group", ", ".join(PRODUCT)):
        open_corpus(path)


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (Columns.of(), ["column key and at least one of image, caption "]),
        (Columns.of(caption=["title", "blurb"]), ["column key and at least one of image, title, blurb "]),
        (Columns(key="k", image="file"), ["column k and at least one of file, caption "]),
        (Columns(key="image"), ["column image of images, which gives the keys too"]),
    ],
)
def test_which_columns_are_needed_is_said_so_that_it_can_be_read_in_one_way(columns: Columns, names: list[str]) -> None:
    with raises(CorpusError, *names):
        columns.check(Path("m.parquet"), ["sku", "title", "blurb"])


@pytest.mark.parametrize(
    ("named", "values"),
    [
        ({"caption": ["title", "title"]}, ["--caption", "'title'"]),
        ({"key": "title", "caption": ["title"]}, ["--caption", "--key", "'title'"]),
        ({"image": "title", "caption": ["blurb", "title"]}, ["--caption", "--image", "'title'"]),
        ({"key": "caption"}, ["--caption", "--key", "'caption'"]),
    ],
)
def test_a_column_that_cannot_be_meant_is_refused(named: dict[str, Any], values: list[str], tmp_path: Path) -> None:
    with raises(SettingsError, *values):
        open_corpus(write_rows(tmp_path, ".csv", [PRODUCT]), **named)


@pytest.mark.parametrize("named", [{"key": "k"}, {"image": "i"}, {"caption": ["c"]}, {"group": "g"}])
def test_a_folder_has_no_columns(named: dict[str, Any], tmp_path: Path) -> None:
    with raises(SettingsError, f"--{next(iter(named))}", "folder", "jsonl, csv, parquet"):
        open_corpus(tmp_path, **named)


@every_reader
@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize(
    ("named", "values"),
    [
        ({"image": "photo"}, ["captions", "some:texts", "--caption title", ", ".join(PRODUCT)]),
        ({"caption": ["blurb"]}, ["images", "some:images", "--image photo", ", ".join(PRODUCT)]),
    ],
)
def test_a_column_that_may_be_what_an_encoder_lacks_is_named(
    suffix: str, named: dict[str, Any], values: list[str], chosen: bool, tmp_path: Path
) -> None:
    corpus = open_corpus(write_rows(tmp_path, suffix, [PRODUCT]), key="sku", **named)
    way_out = "-encoder out" if chosen else " '' that it has none"
    with raises(CorpusError, corpus.path, *values, way_out):
        check_holds(corpus, ENCODERS, chosen=chosen)
    held: dict[Modality, str] = {"image": "some:images"} if "image" in named else {"text": "some:texts"}
    check_holds(corpus, held, chosen=chosen)
    check_holds(open_corpus(corpus.path, **NAMES), ENCODERS, chosen=chosen)


@every_reader
def test_a_manifest_of_one_kind_is_one_where_nothing_may_be_the_other(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    plain = open_corpus(write_rows(tmp_path, suffix, [{"key": "1", "image": "1.png"}]))
    check_holds(plain, ENCODERS, chosen=False)
    assert "captions" not in " ".join(caplog.messages)
    with raises(CorpusError, "captions", "key, image", "--text-encoder"):
        check_holds(plain, ENCODERS, chosen=True)
    caplog.clear()
    check_holds(
        open_corpus(write_rows(tmp_path, suffix, [{"key": "1", "image": "1", "brand": "x"}])), ENCODERS, chosen=False
    )
    (said,) = [text for text in caplog.messages if "captions" in text]
    assert [value for value in ("--caption", "key, image, brand") if value not in said] == []


@every_reader
def test_an_empty_name_says_that_there_is_no_such_column(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [{"key": "1", "image": "1.png", "caption": "a", "title": "b", "img": "2.png"}])
    (image,) = items(without_captions := open_corpus(path, caption=[""]))
    assert (image.content, image.payload["corpus_caption"]) == (tmp_path / "1.png", "a")
    check_holds(without_captions, ENCODERS, chosen=False)
    (text,) = items(without_images := open_corpus(path, image=""))
    assert (text.content, text.payload["corpus_image"]) == ("a", "1.png")
    check_holds(without_images, ENCODERS, chosen=False)
    with raises(SettingsError, "--image", "--caption"):
        open_corpus(path, image="", caption=[""])
    (tmp_path / "other").mkdir()
    nothing = write_rows(tmp_path / "other", suffix, [{"key": "1", "image": "1.png"}, {"key": "2", "image": ""}])
    (refused,) = rejects(open_corpus(nothing, caption=[""]))
    assert refused.detail.endswith("expected an image in 'image'")
    with raises(CorpusError, "column key and at least one of caption "):
        open_corpus(nothing, image="")


def test_a_column_is_there_if_any_row_has_it(tmp_path: Path) -> None:
    rows = [{"key": str(number), "image": "1.png", "title": "x"} for number in range(5000)]
    path = write_lines(tmp_path, *rows, {"key": "last", "caption": "a"})
    check_holds(open_corpus(path), ENCODERS, chosen=True)


@every_reader
def test_a_column_that_may_say_what_belongs_together_is_named(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = write_rows(tmp_path, suffix, [{"key": "1", "caption": "a", "product_id": "7"}])
    check_holds(open_corpus(path), {"text": "some:texts"}, chosen=True)
    (said,) = caplog.messages
    assert [value for value in ("product_id", "--group") if value not in said] == []
    check_holds(open_corpus(path, group="product_id"), {"text": "some:texts"}, chosen=True)
    assert caplog.messages == [said]


@every_reader
def test_rows_without_a_group_are_counted_and_are_groups_of_their_own(suffix: str, tmp_path: Path) -> None:
    rows = [{**PRODUCT, "sku": f"b-{n}", "brand": brand} for n, brand in enumerate(["acme", None, "acme", None])]
    path = write_rows(tmp_path, suffix, rows)
    entries = list(open_corpus(path, **NAMES))
    assert [item.group for item in items(entries) if item.modality == "image"] == ["acme", "b-1", "acme", "b-3"]
    (remark,) = remarks(entries)
    assert (remark.count, "'brand'" in remark.text) == (2, True)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_is_ours_but_for_its_case_is_no_fault_if_another_was_named(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, suffix, [{"key": "1", "Image": "x.png", "file": "1.png", "caption": "c"}])
    image, _ = items(open_corpus(path, image="file"))
    assert (image.content, image.payload["Image"]) == (tmp_path / "1.png", "x.png")
    image, _ = items(open_corpus(path, image="Image"))
    assert image.content == tmp_path / "x.png"
    with raises(CorpusError, "--image 'Image'"):
        read(path)


def test_lines_are_checked_one_by_one_where_any_line_has_the_columns(tmp_path: Path) -> None:
    path = write_lines(tmp_path, {"sku": "1", "caption": "c"}, {"id": "2", "caption": "c"}, {"sku": "3"})
    entries = list(open_corpus(path, key="sku"))
    assert [item.key for item in items(entries)] == ["1#0"]
    assert reasons(entries) == [(2, "key-missing"), (3, "row-without-image-or-caption")]


def test_a_spreadsheet_of_europe_is_read_as_it_is(tmp_path: Path) -> None:
    """Excel writes a byte order mark, semicolons, decimal commas and line ends of Windows."""
    lines = ["Artikel;Bild;Titel;Preis", 'A1;"bilder/a 1.jpg";"Hut, rot; ""neu""";12,50', "A2;bilder/2.jpg;Schuh;7"]
    (tmp_path / "katalog.csv").write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    opened = open_corpus(tmp_path / "katalog.csv", key="Artikel", image="Bild", caption=["Titel"])
    assert [item.key for item in items(opened)] == ["A1", "A1#0", "A2", "A2#0"]
    assert (items(opened)[1].content, items(opened)[1].payload["Preis"]) == ('Hut, rot; "neu"', "12,50")


def test_a_table_of_flickr_may_be_read_as_a_manifest(tmp_path: Path) -> None:
    with (tmp_path / "results.csv").open("w", newline="") as file:
        rows = [["image_name", " comment_number", " comment"], ["1.jpg", " 0", " a dog , it runs"]]
        csv.writer(file, delimiter="|").writerows(rows)
    opened = open_corpus(tmp_path / "results.csv", key="image_name", image="image_name", caption=[" comment"])
    assert [item.key for item in items(opened)] == ["1.jpg", "1.jpg#0"]
    assert {item.payload[" comment_number"] for item in items(opened)} == {" 0"}


@pytest.mark.parametrize("named", [{}, {"key": "sku"}, {"key": "img/1.jpg", "caption": ["title"]}])
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_a_table_without_a_header_is_named_as_such(
    named: dict[str, Any], suffix: str, delimiter: str, tmp_path: Path
) -> None:
    path = tmp_path / f"catalogue.{suffix}"
    path.write_text("\n".join(delimiter.join([f"b-{n}", f"img/{n}.jpg", "a red cap"]) for n in (1, 2)))
    with raises(CorpusError, path, "'img/1.jpg'"):
        open_corpus(path, **named)


@every_reader
def test_pictures_are_found_by_names_without_a_suffix(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    names = ["15970.jpg", "v1.5.PNG", "bare", "twice.jpg", "twice.webp", "here.heic", "here.heic.png"]
    for name in [*names, "bare.jpg", "1.jpg.png", "text.txt"]:
        (tmp_path / "images" / name).touch()
    ids = ["15970", "v1.5", "bare", "here.heic", "1.jpg", "text", "x" * 300, "twice"]
    path = write_rows(tmp_path, suffix, [{"id": name, "title": f"a {name}"} for name in ids])
    entries = list(open_corpus(path, key="id", image="id", images=tmp_path / "images", caption=["title"]))
    found = {item.key: Path(item.payload["image"]).name for item in items(entries) if item.modality == "image"}
    assert found == {**{name: name for name in ids[:-1]}, "15970": "15970.jpg", "v1.5": "v1.5.PNG"}
    [reject] = rejects(entries)
    assert (reject.position, reject.reason, reject.key, reject.modality) == (8, "image-ambiguous", "twice", "image")
    assert "twice.jpg, twice.webp" in reject.detail
    assert [item.key for item in items(entries) if item.modality == "text"] == [f"{name}#0" for name in ids]


WRONG: dict[str, tuple[str, Any]] = {
    "key": ("key-missing", ""),
    "image": ("row-without-image-or-caption", ""),
    "group": ("group-not-text", ["acme"]),
    "caption": ("caption-not-text", 7),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize("role", WRONG)
def test_rejects_name_the_column_that_the_file_has(suffix: str, role: str, tmp_path: Path) -> None:
    reason, value = WRONG[role]
    if suffix == ".csv" and value:
        return  # every value of a CSV is a text
    own: dict[str, Any] = {"key": "sku", "image": "photo", "caption": "title", "group": "brand"}
    row = {"sku": "b-1", "photo": "img/1.jpg", "title": "a red cap", "brand": "acme"} | {own[role]: value}
    if role == "image":
        row["title"] = "" if suffix == ".csv" else None
    path = write_rows(tmp_path, suffix, [row])
    (reject,) = rejects(open_corpus(path, **own | {"caption": ["title"]}))
    assert reject.reason == reason
    assert repr(own[role]) in reject.detail
    assert not any(f"'{usual}'" in reject.detail for usual in own)
    assert reject.detail.startswith({".jsonl": "line 1: ", ".csv": "line 2: "}.get(suffix, "expected"))


def test_rejects_of_a_csv_name_the_line_in_which_their_row_begins(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('sku,title\na,"two\nlines"\n\n,x\nb,c\nb,c\n')
    found = rejects(open_corpus(tmp_path / "m.csv", key="sku", caption=["title"]))
    assert [(r.position, r.reason, r.detail.partition(":")[0]) for r in found] == [
        (2, "key-missing", "line 5"),
        (4, "key-duplicate", "line 7"),
    ]


def test_a_row_of_a_known_key_with_an_empty_caption_is_refused_for_its_caption(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("sku,photo,title\na,1.jpg,one\na,1.jpg,\na,1.jpg,two\n")
    entries = list(open_corpus(tmp_path / "m.csv", key="sku", image="photo", caption=["title"]))
    (reject,) = rejects(entries)
    assert (reject.reason, reject.position, reject.key) == ("caption-empty", 2, "a")
    assert "'title'" in reject.detail
    assert [item.key for item in items(entries)] == ["a", "a#0", "a#1"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from(["key", "image", "caption", "group", "price"]), VALUES), st.binary(max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_no_reject_of_a_manifest_speaks_python(tmp_path: Path, row: dict[str, Any], damage: bytes) -> None:
    sound = b'{"key": "a", "caption": "b"}'
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\n".join([sound, json.dumps(row).encode(), sound[:-1] + damage, damage + sound, damage]))
    try:
        said = [reject.detail for reject in rejects(open_corpus(path))]
    except CorpusError as error:  # of the encoding of the whole file
        said = [str(error)]
    assert [detail for detail in said if PYTHON.search(detail)] == []


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("1;b.png;two", "give each item a key of its own"),
        ("1;a.png;one", "the same caption"),
        ("1;a.png;", "a caption"),
    ],
)
def test_a_reject_of_a_key_names_the_column_of_the_user(second: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_text(f"sku;photo;title\n1;a.png;one\n{second}\n")
    (reject,) = rejects(open_corpus(path, key="sku", image="photo", caption=["title"]))
    assert "key '1' (column 'sku')" in reject.detail
    assert says in reject.detail
