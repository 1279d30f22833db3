"""CSV and TSV: quotes change nothing without a word, and hide no rows."""

import csv
from pathlib import Path

import pytest

from connector.corpora.formats import open_corpus
from connector.corpora.items import PassedOver
from connector.errors import CorpusError, SettingsError
from tests.support.corpora import items, read, reasons, rejects, remarks
from tests.support.errors import raises

HEADER = {"csv": "key,image,caption", "tsv": "key\timage\tcaption"}


def write(directory: Path, text: str, suffix: str = "csv") -> Path:
    path = directory / f"m.{suffix}"
    path.write_text(f"{HEADER[suffix]}\n{text}", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "swallowing",
    [
        '2,2.png,"welcome mat\n3,3.png,c\n4,4.png,d\n',
        '2,2.png,"welcome mat\n3,3.png,c\n4,4.png,"closed"\n',
        '2,2.png,"welcome mat\n3,3.png,c\n4,4.png,size 5"\n',
        '2,2.png,"welcome mat\n3,3.heic,c\n4,4.png,"\n',
        '2,"2.png,welcome mat\n3,3.png,c\n4,4.png","d"\n',
        '2,2.png,"one","two\n3,3.png,c\n4,4.png,d"\n',
    ],
)
def test_every_row_that_an_unclosed_quote_swallows_is_a_reject(swallowing: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"1,1.png,a\n{swallowing}")
    entries = read(path)
    assert [item.key for item in items(entries)] == ["1", "1#0"]
    assert reasons(entries) == [(position, "row-unreadable") for position in (2, 3, 4)]
    assert "line 3" in rejects(entries)[1].detail
    assert open_corpus(path).total() == 4


def test_rows_after_a_swallowed_one_are_read(tmp_path: Path) -> None:
    entries = read(write(tmp_path, '1,1.png,"a\n2,2.png,"b"\n3,3.png,c\n'))
    assert [item.key for item in items(entries)] == ["3", "3#0"]
    assert reasons(entries) == [(1, "row-unreadable"), (2, "row-unreadable")]


@pytest.mark.parametrize("caption", ['"Open" sign', '"a"b', '"say \\"hi\\" there"', '"a" "b"'])
def test_a_quote_out_of_place_refuses_its_row_and_changes_no_caption(caption: str, tmp_path: Path) -> None:
    entries = read(write(tmp_path, f"1,1.png,{caption}\n2,2.png,b\n"))
    assert [item.key for item in items(entries)] == ["2", "2#0"]
    assert reasons(entries) == [(1, "row-unreadable")]


@pytest.mark.parametrize(
    ("written", "caption"),
    [('"a, ""b"" c"', 'a, "b" c'), ('a 5" nail', 'a 5" nail'), ('"one\n\ntwo, three"', "one\n\ntwo, three")],
)
def test_quotes_in_their_place_are_read(written: str, caption: str, tmp_path: Path) -> None:
    entries = read(write(tmp_path, f"1,1.png,{written}\n2,2.png,b\n"))
    assert [item.content for item in items(entries) if item.modality == "text"] == [caption, "b"]
    assert not rejects(entries)


def test_a_field_with_a_line_that_may_be_a_row_is_named_and_keeps_items_from_pruning(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text('key,caption\n1,"welcome\n2,mat"\n3,c\n')
    entries = read(path)
    (remark,) = remarks(entries)
    assert (remark.count, remark.first) == (1, f"{path}, line 2")
    assert [item.key for item in items(entries)] == ["1#0", "3#0"]
    assert [entry.may_hide for entry in entries if isinstance(entry, PassedOver)] == [True]
    assert open_corpus(path).total() == 2


@pytest.mark.parametrize("caption", ['"welcome mat', '"Open" sign', 'a "b" c', '"', '5"', '"all"', '""'])
def test_quotes_of_a_tsv_are_characters(caption: str, tmp_path: Path) -> None:
    entries = read(write(tmp_path, f"1\t1.png\t{caption}\n2\t2.png\tb\n", "tsv"))
    assert [item.content for item in items(entries) if item.modality == "text"] == [caption, "b"]
    assert not rejects(entries)


def test_quotes_of_a_tsv_enclose_fields_if_asked(tmp_path: Path) -> None:
    path = write(tmp_path, '1\t1.png\t"a ""b""\tc"\n', "tsv")
    quoted = open_corpus(path, quoting=True)
    assert [item.content for item in items(quoted) if item.modality == "text"] == ['a "b"\tc']
    plain = write(tmp_path, '1\t1.png\t"a ""b"""\n2\t2.png\t"c"\n', "tsv")
    entries = read(plain)
    assert [item.content for item in items(entries) if item.modality == "text"] == ['"a ""b"""', '"c"']
    assert [(one.count, one.first, "--quoting" in one.text) for one in remarks(entries)] == [(2, "row 1", True)]


def test_quotes_of_a_csv_are_characters_if_asked(tmp_path: Path) -> None:
    entries = list(open_corpus(write(tmp_path, '1,1.png,"a\n2,2.png,b\n'), quoting=False))
    assert [item.content for item in items(entries) if item.modality == "text"] == ['"a', "b"]


def test_quoting_is_for_tables_alone(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("")
    with raises(SettingsError, "--quoting", "csv"):
        open_corpus(tmp_path / "m.jsonl", quoting=True)


@pytest.mark.parametrize("line", ["1,1.png", "1,1.png,a,b", "1,1.png,a,", "1"])
def test_a_row_with_more_or_fewer_fields_than_the_header_is_refused(line: str, tmp_path: Path) -> None:
    assert reasons(read(write(tmp_path, f"{line}\n2,2.png,b\n"))) == [(1, "row-unreadable")]


@pytest.mark.parametrize("newline", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("suffix", HEADER)
def test_line_ends_of_every_system_are_read(suffix: str, newline: str, tmp_path: Path) -> None:
    separator = "," if suffix == "csv" else "\t"
    text = newline.join([HEADER[suffix], separator.join(("1", "1.png", "a")), separator.join(("2", "2.png", "b")), ""])
    (tmp_path / f"m.{suffix}").write_bytes(b"\xef\xbb\xbf" + text.encode())
    entries = read(tmp_path / f"m.{suffix}")
    assert [item.content for item in items(entries) if item.modality == "text"] == ["a", "b"]
    assert not rejects(entries)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl", "m.token"])
def test_a_file_in_another_unicode_encoding_is_named(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("key,caption\n1,a\n".encode(encoding))
    with raises(CorpusError, tmp_path / name, "UTF-8"):
        read(tmp_path / name)


def test_columns_without_a_name_are_left_out_and_named_once(tmp_path: Path) -> None:
    """The first is what pandas writes for its index, the last what a spreadsheet writes for an empty column."""
    (tmp_path / "m.csv").write_text(",key,caption,,\n0,1,a,,\n1,2,b,x,\n")
    entries = read(tmp_path / "m.csv")
    assert [(item.key, item.payload) for item in items(entries)] == [
        ("1#0", {"caption": "a"}),
        ("2#0", {"caption": "b"}),
    ]
    (remark,) = remarks(entries)
    assert "1, 4, 5" in str(remark)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoted", [False, True])
def test_every_usual_separator_is_recognised(delimiter: str, quoted: bool, tmp_path: Path) -> None:
    rows = [["key", "image", "caption", "price"], ["1", "1.png", f"a{delimiter}b, c; d" if quoted else "a b", "1,5"]]
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL if quoted or delimiter == "," else 0).writerows(
            rows
        )
    image, text = items(open_corpus(tmp_path / "m.csv"))
    assert (image.key, text.content, text.payload["price"]) == ("1", rows[1][2], "1,5")
    assert open_corpus(tmp_path / "m.csv").total() == 1


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "\ufeffsep=;", "sep=\t", "sep=^", "sep=,"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_first_line_of_excel_names_the_delimiter_and_is_no_row(first: str, newline: str, tmp_path: Path) -> None:
    lines = ["key,image,caption", "1,1.png,a", "2,2.png,b,b", "3,3.png,c"]
    delimiter = first.rstrip('"')[-1]
    path = tmp_path / "manifest.csv"
    text = newline.join([first, *(line.replace(",", delimiter) for line in lines)])
    path.write_text(text, encoding="utf-8", newline="")
    entries = read(path)
    assert [(item.key, item.position) for item in items(entries)] == [("1", 1), ("1#0", 1), ("3", 3), ("3#0", 3)]
    assert reasons(entries) == [(2, "row-unreadable")]
    assert "line 4" in rejects(entries)[0].detail
    assert open_corpus(path).total() == 3
