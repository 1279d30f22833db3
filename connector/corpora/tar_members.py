"""Members of tar archives, read in one pass. Nothing is unpacked to disk.

An archive may be damaged or hostile. The size of members is bounded. Links, devices and names that lead out of the
archive are rejected. Damage yields a reject with the number of members read so far.
"""

import gzip
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from connector.corpora.annotations import leads_out
from connector.corpora.picture_files import BEGINNING, is_folder
from connector.rejects import Reason, Reject
from connector.resources import raise_lack
from connector.safe_text import printable

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LARGEST_HEADER = 1 << 20  # bytes of a member's extended header
LONGEST_END = 1 << 24  # bytes after the end of an archive that are checked
BROKEN = (Reason.ARCHIVE_DAMAGED, Reason.ARCHIVE_UNREADABLE)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive.

    Attributes:
        size: in bytes.
        beginning: its first bytes.
        content: None if it is larger than the reader asked for.
    """

    path: PurePosixPath
    size: int
    beginning: bytes
    content: bytes | None


def members(archive: Path, limit: Callable[[PurePosixPath], int]) -> Iterator[Member | Reject]:
    """Yield the regular files, and a reject for each other or unsafe member and for damage.

    `limit` says how many bytes a member of this path may have for its content to be read.
    """
    number = files = 0

    def refused(reason: Reason, detail: str) -> Reject:
        return Reject(str(archive), number, "read", reason, printable(detail))

    try:
        with _stream(archive) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as tar:
            while (header := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all of them otherwise
                number += 1
                if header.isdir():
                    continue
                files += 1
                if reason := _refusal(header):
                    yield refused(reason, f"member {number}, {header.name}")
                    continue
                path = PurePosixPath(header.name)
                reader = tar.extractfile(header)
                fits = header.size <= limit(path)
                content = (reader.read() if fits else reader.read(BEGINNING)) if reader else b""
                yield Member(path, header.size, content[:BEGINNING], content if fits else None)
            if not files:  # zeros, as a download leaves them that never began: the end of an archive is zeros too
                yield refused(Reason.ARCHIVE_DAMAGED, "expected at least one file in it, found none")
            if trailing := _trailing_data(tar.fileobj):
                yield refused(Reason.ARCHIVE_TRAILING_DATA, f"{trailing} after the end of the archive are not read")
    except OSError as error:
        raise_lack(error, f"reading {archive}")
        yield refused(Reason.ARCHIVE_UNREADABLE, f"after {number} members: {error}")
    except Exception as error:  # noqa: BLE001  tarfile and zlib raise any exception on a damaged archive
        raise_lack(error, f"reading {archive}")
        yield refused(Reason.ARCHIVE_DAMAGED, f"after {number} members: {error or type(error).__name__}")


class _Header(tarfile.TarInfo):
    """A bounded member header. A damaged or missing one raises instead of ending the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENSIONS and header.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes, expected at most {LARGEST_HEADER}")
        return header

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            # tarfile would treat a damaged or missing header as the end
            raise tarfile.ReadError(str(error)) from error


_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def is_archive(path: Path) -> bool:
    """Whether `path` is an archive by its name."""
    return path.name.lower().endswith(SUFFIXES) and not is_folder(path)


@contextmanager
def _stream(archive: Path) -> Iterator[Any]:
    with archive.open("rb") as file:
        if archive.name.lower().endswith(SUFFIXES[1:]):
            with gzip.open(file) as unpacked:  # verifies checksums; tarfile's own compressed streams do not
                yield unpacked
        else:
            yield file


def _refusal(header: tarfile.TarInfo) -> Reason | None:
    if leads_out(header.name):
        return Reason.MEMBER_UNSAFE_NAME
    if not header.isreg() or header.issparse():
        return Reason.MEMBER_NOT_A_FILE
    if header.name != header.name.encode("utf-8", "replace").decode() or "\0" in header.name:
        return Reason.PATH_NOT_UNICODE
    return None


def _trailing_data(stream: Any) -> str:
    """Describe data after the end of an archive; empty if there is only padding."""
    read = 0
    while read < LONGEST_END and (chunk := stream.read(1 << 20)):
        if chunk.strip(b"\0"):
            return "more bytes"
        read += len(chunk)
    return "" if read < LONGEST_END else f"more than {LONGEST_END} bytes"
