"""WebDataset: samples in tar archives, read in one pass. Nothing is unpacked to disk.

An archive may be damaged or hostile. The size of members is bounded. Links, devices and names that lead out of the
archive are rejected. Damage yields a reject with the number of members read so far.
"""

import gzip
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from typing_extensions import override

from connector.corpora.annotations import leads_out
from connector.corpora.items import IMAGE_SUFFIXES, LONGEST_FIELD
from connector.corpora.manifest import Manifest, Row, listed, without_collisions
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.safe_text import printable

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LARGEST_PICTURE = 64 << 20  # bytes; a whole batch of images is in memory at a time
LARGEST_HEADER = 1 << 20  # bytes of a member's extended header
LONGEST_END = 1 << 24  # bytes after the end of an archive that are checked
MOST_SHARDS = 1_000_000
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

BROKEN = (Reason.ARCHIVE_DAMAGED, Reason.ARCHIVE_UNREADABLE)
TEXTS = (".txt", ".caption")
METADATA = ".json"


class WebDataset(Manifest):
    """Samples in an archive, a folder of archives, or archives by a pattern such as `train-{0000..0099}.tar`.

    Members with the same name up to the first dot form a sample: an image, a caption in `.txt` or `.caption`, and a
    `.json`. Its fields become payload, and its `caption` is used if there is no text. Other members are skipped.
    """

    format = "webdataset"

    @classmethod
    @override
    def fits(cls, path: Path) -> bool:
        if path.is_dir():
            return any(_is_archive(entry) for entry in listed(path))
        return _is_archive(path)

    @override
    def total(self) -> None:
        """Archives have no table of contents."""

    @override
    def rows(self) -> Iterator[Row | Reject]:
        position = 0
        for archive in self.shards():
            if not archive.is_file():
                yield Reject(
                    str(archive), position, "read", Reason.ARCHIVE_MISSING, f"expected an archive at {archive}"
                )
                continue
            for row in samples(archive, position):
                yield row
                position = row.position

    def shards(self) -> list[Path]:
        """Return the archives in order.

        Raises:
            CorpusError: none exists.
        """
        if self.path.is_dir():
            archives = sorted(entry for entry in self.path.iterdir() if _is_archive(entry))
        else:
            archives = expanded(self.path)
        if not any(archive.is_file() for archive in archives):
            raise CorpusError(f"corpus {self.path}: expected archives ending in {', '.join(SUFFIXES)}, found none")
        return archives


@dataclass(slots=True)
class Sample:
    """The members of one key, collected while they are read.

    Attributes:
        source: the archive, or the folder of files.
        faults: rejects of its members.
    """

    source: Path
    position: int
    key: str
    image: str | None = None
    picture: bytes | None = None
    caption: Any = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    faults: list[Reject] = field(default_factory=list)

    def refuse(self, reason: Reason, detail: str, kind: str) -> None:
        """Reject a member with the suffix `kind`; the rest of the sample is kept."""
        modality: Any = "image" if kind in IMAGE_SUFFIXES else "text" if kind in TEXTS else None
        source, key = str(self.source), printable(self.key)
        self.faults.append(Reject(source, self.position, "read", reason, printable(detail), key, modality))

    def take_image(self, name: str, content: bytes | None = None) -> None:
        """Add the image with the path `name` below the source."""
        if self.image:
            self.refuse(Reason.IMAGE_DUPLICATE, f"{name} is the second image of this key", ".png")
        else:
            self.image, self.picture = str(self.source / name), content

    def take_text(self, name: str, kind: str, content: bytes) -> None:
        """Add a caption, or the metadata."""
        try:
            text = content.decode("utf-8-sig")
            if kind == METADATA:
                fields = json.loads(text)
                if not isinstance(fields, dict):
                    raise ValueError(f"expected a JSON object, got {type(fields).__name__}")
                self.fields = fields
            elif "\0" in text:
                raise ValueError("the text holds a NUL character")
            elif self.caption:
                self.refuse(Reason.CAPTION_DUPLICATE, f"{name} is the second caption of this key", kind)
            else:
                self.caption = text.strip()
        except (ValueError, RecursionError) as error:
            self.refuse(Reason.ROW_UNREADABLE, f"{name}: {error}", kind)

    def rows(self) -> Iterator[Row | Reject]:
        """Yield the rejects, then the row if anything is left of the sample."""
        yield from self.faults
        rest = dict(self.fields)
        caption = rest.pop("caption", None)
        if self.caption:
            caption = self.caption
        if rest.get("key") == self.key:
            del rest["key"]
        if not self.faults or self.image or caption:
            given = {"key": self.key, "image": self.image, "caption": caption}
            fields = {**without_collisions(rest), **{k: v for k, v in given.items() if v is not None}}
            yield Row(self.position, fields, self.source, self.picture)


def samples(archive: Path, before: int) -> Iterator[Row | Reject]:
    """Yield the samples and rejects of an archive; positions go on from `before`.

    The sample in which a damaged archive breaks off is rejected.
    """
    sample: Sample | None = None
    position = before
    for member in members(archive):
        if isinstance(member, Reject):
            key = None
            if member.reason in BROKEN and sample:  # members of it may be lost
                yield from sample.faults
                key, sample = printable(sample.key), None
            yield replace(member, position=position, key=key)
            continue
        if sample is None or member.key != sample.key:
            if sample:
                yield from sample.rows()
            position += 1
            sample = Sample(archive, position, member.key)
        if member.content is None:
            sample.refuse(Reason.MEMBER_TOO_LARGE, f"{member.name} has {member.size} bytes", member.kind)
        elif member.kind in IMAGE_SUFFIXES:
            sample.take_image(member.name, member.content)
        else:
            sample.take_text(member.name, member.kind, member.content)
    if sample:
        yield from sample.rows()


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive that belongs to a sample.

    Attributes:
        key: its path up to the first dot of the file name.
        kind: the rest of the file name in lower case, with the dot.
        content: None if it is larger than the bound.
    """

    name: str
    key: str
    kind: str
    size: int
    content: bytes | None


def members(archive: Path) -> Iterator[Member | Reject]:
    """Yield the members that belong to samples, and a reject for each unsafe member and for damage."""
    number = 0

    def refused(reason: Reason, detail: str) -> Reject:
        return Reject(str(archive), number, "read", reason, printable(detail))

    try:
        with _stream(archive) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as tar:
            while (header := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all of them otherwise
                number += 1
                if header.isdir():
                    continue
                if reason := _refusal(header):
                    yield refused(reason, f"member {number}, {header.name}")
                    continue
                path = PurePosixPath(header.name)
                stem, dot, rest = path.name.partition(".")
                kind = (dot + rest).lower()
                if not stem or not (kind in IMAGE_SUFFIXES or kind in TEXTS or kind == METADATA):
                    continue
                limit = LARGEST_PICTURE if kind in IMAGE_SUFFIXES else LONGEST_FIELD
                content = None
                if header.size <= limit and (reader := tar.extractfile(header)):
                    content = reader.read()
                yield Member(str(path), str(path.with_name(stem)), kind, header.size, content)
            if trailing := _trailing_data(tar.fileobj):
                yield refused(Reason.ARCHIVE_TRAILING_DATA, f"{trailing} after the end of the archive are not read")
    except OSError as error:
        yield refused(Reason.ARCHIVE_UNREADABLE, f"after {number} members: {error}")
    except Exception as error:  # noqa: BLE001  tarfile and zlib raise any exception on a damaged archive
        yield refused(Reason.ARCHIVE_DAMAGED, f"after {number} members: {type(error).__name__}: {error}")


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


def expanded(path: Path) -> list[Path]:
    """Expand each range such as `{0..9}` in a path; a path without one is returned alone.

    >>> [str(path) for path in expanded(Path("a-{08..10}.tar"))]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    match = RANGE.search(str(path))
    if not match:
        return [path]
    start, stop = int(match[1]), int(match[2])
    if not 0 <= stop - start < MOST_SHARDS:
        raise CorpusError(f"corpus {path}: expected a range of 1 to {MOST_SHARDS} archives, got {match[0]}")
    paths = (f"{number:0{len(match[1])}d}" for number in range(start, stop + 1))
    before, after = str(path)[: match.start()], str(path)[match.end() :]
    return [expansion for number in paths for expansion in expanded(Path(f"{before}{number}{after}"))]


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.is_dir()


def _stream(archive: Path) -> Any:
    # gzip verifies checksums; tarfile's own compressed streams do not.
    return gzip.open(archive) if archive.name.lower().endswith(SUFFIXES[1:]) else archive.open("rb")


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
