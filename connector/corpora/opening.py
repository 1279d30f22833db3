"""Open files of a corpus, and say of a file that cannot be read what it is and how to convert it."""

import codecs
import errno
import os
import re
import shlex
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.object_storage import as_remote, is_remote
from connector.errors import CorpusError
from connector.resources import raise_lack

SAMPLE = 1 << 16  # bytes at the beginning of a file that tell its encoding
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
WIDE_SAMPLE = 256  # bytes: a header or the first names are ASCII in any language
ASCII_SHARE = 0.3  # of the characters of the sample, if it is in a wide encoding
# One or two letters or punctuation marks of Windows-1252 beside an ASCII letter, as in caf\xe9, gr\xf6\xdfer or
# it\x92s. Latin-1 has the letters at the same places, and not the punctuation.
_HIGH = rb"[\x80\x85\x91-\x97\xc0-\xff]{1,2}"
_WESTERN = re.compile(rb"(?<=[A-Za-z])" + _HIGH + rb"(?![\x80-\xff])|(?<![\x80-\xff])" + _HIGH + rb"(?=[A-Za-z])")
PARQUET_BUFFER = 4 << 20  # bytes of a column that are read at a time; otherwise all of its row group are
CERTAIN = 2  # lines with such a character refuse a file; a single one may be damaged, and is refused alone


def beginning(path: Path) -> bytes:
    """Return the first 64 kB of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(SAMPLE)
    except OSError:
        return b""


def ends(path: Path) -> bytes:
    """Return the first and last 64 kB of a file, which between them show the field names of a record."""
    first = beginning(path)
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(first)))
            return first + file.read(len(first))
    except OSError:
        return first


def listed(path: Path) -> list[Path]:
    """Return the entries of a directory; empty if it cannot be read."""
    try:
        return list(path.iterdir())
    except OSError:
        return []


def check_access(path: Path) -> None:
    """Raise a `CorpusError` if the system does not say what is at `path`, or lets no one look into the folder there."""
    try:
        if not path.exists() or is_remote(path):
            return  # in object storage, what is read says whether it may be
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        code = "storage-denied" if is_remote(path) else None
        raise CorpusError(f"corpus {path} cannot be read: {error.strerror}", code=code) from error


def opened(path: Path) -> Any:
    """Open a file of a corpus in binary mode; raises a `CorpusError` if it cannot be read."""
    try:
        return path.open("rb")
    except OSError as error:
        raise CorpusError(f"corpus {path} cannot be read: {error.strerror}") from error


def open_text(path: Path) -> IO[str]:
    """Open a file of a corpus as UTF-8. Invalid bytes become surrogates, so that only their own rows are rejected.

    Raises:
        CorpusError: the file cannot be read, or is in another encoding.
    """
    check_utf8(path)
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def parquet_file(path: Path) -> Any:
    """Open a Parquet file and decode its column names.

    Raises:
        CorpusError: the file is no Parquet file, or is damaged.
    """
    opened(path).close()
    try:
        file = pq.ParquetFile(parquet_source(path), buffer_size=PARQUET_BUFFER)
        _ = file.schema_arrow.names  # decodes them
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise_lack(error, f"reading {path}")
        raise CorpusError(f"{path} is not a Parquet file: {error}") from error
    return file


def parquet_source(path: Path) -> Any:
    """Return what pyarrow reads a Parquet file from: its path, or an object that it reads by ranges."""
    return remote.ranges() if (remote := as_remote(path)) else path


def check_utf8(path: Path) -> None:
    """Raise a `CorpusError` if a file cannot be read, or is in another encoding than UTF-8 by its beginning."""
    with opened(path) as file:
        sample = file.read(SAMPLE)
    encoding = wide_encoding(sample)
    lines = sample.splitlines()[: -1 if len(sample) == SAMPLE else None]  # the last one may be cut in a character
    if encoding is None and not has_utf8_characters(sample):
        western = sum(_WESTERN.search(line) is not None for line in lines)
        encoding = "WINDOWS-1252" if western >= CERTAIN else None
    if encoding:
        raise CorpusError(f"corpus {path}: {expected_utf8(encoding, str(path))}")
    beyond_ascii = [line for line in lines if not line.isascii()]
    if len(beyond_ascii) >= CERTAIN and not any(map(_is_utf8, beyond_ascii)):
        raise CorpusError(
            f"corpus {path}: expected UTF-8, got another encoding, such as Shift_JIS, GBK or Windows-1251: none of "
            f"{len(beyond_ascii)} lines beyond ASCII at its beginning is UTF-8; save the file as UTF-8, or convert it "
            f"with `iconv -f ENCODING -t UTF-8 {shlex.quote(str(path))} > NEW`"
        )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True


def why_not_utf8(content: bytes, name: str) -> str:
    """Say what bytes are that are not valid UTF-8, and how to convert the file `name` that holds them."""
    encoding = wide_encoding(content)
    if encoding is None and not has_utf8_characters(content) and _WESTERN.search(content):
        encoding = "WINDOWS-1252"
    if encoding:
        return expected_utf8(encoding, name)
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return f"expected UTF-8, got the byte {content[error.start]:#04x} at byte {error.start + 1}"
    return "expected UTF-8"


def decoded(content: bytes, name: str) -> str:
    """Decode the content of the file `name`.

    Raises:
        ValueError: it is not UTF-8, or holds a NUL character; the message says what it is instead.
    """
    encoding = wide_encoding(content)
    if encoding:
        raise ValueError(expected_utf8(encoding, name))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(why_not_utf8(content, name)) from error
    if "\0" in text:
        raise ValueError("the text holds a NUL character")
    return text


def expected_utf8(encoding: str, name: str) -> str:
    """Say that a file seems to be in `encoding`, named as iconv names it, and how to convert it."""
    latin, doubt = "", ""
    if encoding == "WINDOWS-1252":
        latin = ", or Latin-1,"
        doubt = "; look at the accents in the result, as other encodings of one byte a character look alike"
    return (
        f"expected UTF-8, got what looks like {encoding}{latin} by its bytes; convert the file with "
        f"`iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > NEW`, or save it as UTF-8{doubt}"
    )


def wide_encoding(content: bytes) -> str | None:
    """Return which encoding of two or four bytes a character the beginning of a file has; None: none of them.

    >>> wide_encoding("key,caption".encode("utf-16-be")), wide_encoding(b"key,caption")
    ('UTF-16BE', None)
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return encoding
    sample = content[:WIDE_SAMPLE]
    if b"\0" not in sample:
        return None
    for encoding in WIDE:
        text = sample[: len(sample) // 4 * 4 or len(sample)].decode(encoding, "replace")
        ascii_count = sum(character.isascii() and character != "\0" for character in text)
        if "\0" not in text and ascii_count >= max(1, ASCII_SHARE * len(text)):
            return encoding
    return None


def has_utf8_characters(content: bytes) -> bool:
    """Whether bytes hold a character beyond ASCII in UTF-8, which text of another encoding hardly ever does.

    >>> has_utf8_characters("caf\\u00e9".encode()), has_utf8_characters("caf\\u00e9".encode("latin-1"))
    (True, False)
    """
    text = content.decode("utf-8-sig", "ignore")
    return not text.isascii()
