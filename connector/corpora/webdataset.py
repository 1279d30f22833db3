"""WebDataset: samples in tar archives, read in one pass. Nothing is unpacked to disk.

An archive from elsewhere may be damaged or hostile. Members are bounded in size, links and devices are refused and
never followed, names that lead out are refused although nothing is ever written under them, and what breaks off
is said.
"""

import gzip
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from connector.corpora.annotations import leads_out
from connector.corpora.items import IMAGE_SUFFIXES, LONGEST_FIELD
from connector.corpora.manifest import Manifest, Row, listed, without_collisions
from connector.errors import CorpusError
from connector.rejects import Reason, Reject
from connector.safe_text import printable

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LARGEST_PICTURE = 64 << 20  # bytes; of these, as many are in memory as an encoder takes at a time
LARGEST_HEADER = 1 << 20  # bytes of a member's name and attributes
LONGEST_END = 1 << 24  # bytes after the end of an archive that are looked at
MOST_SHARDS = 1_000_000
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

BROKEN = (Reason.ARCHIVE_DAMAGED, Reason.ARCHIVE_UNREADABLE)
TEXTS = (".txt", ".caption")
METADATA = ".json"


class WebDataset(Manifest):
    """Samples in an archive, a folder of archives, or archives by a pattern such as `train-{0000..0099}.tar`.

    Members of one name, up to the first dot, are a sample: an image, a caption in `.txt` or `.caption`, and a `.json`
    whose fields become payload, and whose `caption` is used where there is no text. Other members are passed over.
    """

    format = "webdataset"

    @classmethod
    def fits(cls, path: Path) -> bool:
        """Look for archives by their suffix."""
        if path.is_dir():
            return any(_is_archive(entry) for entry in listed(path))
        return _is_archive(path)

    def total(self) -> None:
        """Archives have no table of contents."""

    def rows(self) -> Iterator[Row | Reject]:
        """Yield the samples of one archive after the other, counting on."""
        position = 0
        for archive in self.shards():
            if not archive.is_file():
                yield Reject(str(archive), position, "read", Reason.ARCHIVE_MISSING, "expected an archive here")
                continue
            for found in samples(archive, position):
                yield found
                position = found.position

    def shards(self) -> list[Path]:
        """Return the archives in their order.

        Raises:
            CorpusError: there is none.
        """
        if self.path.is_dir():
            found = sorted(entry for entry in self.path.iterdir() if _is_archive(entry))
        else:
            found = expanded(self.path)
        if not any(archive.is_file() for archive in found):
            raise CorpusError(f"corpus {self.path}: expected archives ending in {', '.join(SUFFIXES)}, found none")
        return found


@dataclass(slots=True)
class Sample:
    """What belongs together under one key, while its members come in.

    Attributes:
        source: the archive, or the folder of files.
        faults: what was refused of it.
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
        """Refuse a member of the kind `kind`; what else the sample holds is kept."""
        modality: Any = "image" if kind in IMAGE_SUFFIXES else "text" if kind in TEXTS else None
        source, key = str(self.source), printable(self.key)
        self.faults.append(Reject(source, self.position, "read", reason, printable(detail), key, modality))

    def take_image(self, name: str, content: bytes | None = None) -> None:
        """Take the image with the path `name` under the source."""
        if self.image:
            self.refuse(Reason.IMAGE_DUPLICATE, f"{name} is the second image of this key", ".png")
        else:
            self.image, self.picture = str(self.source / name), content

    def take_text(self, name: str, kind: str, content: bytes) -> None:
        """Take a caption, or the metadata."""
        try:
            text = content.decode("utf-8-sig")
            if kind == METADATA:
                fields = json.loads(text)
                if not isinstance(fields, dict):
                    raise ValueError(f"expected a JSON object, got {type(fields).__name__}")
                self.fields = fields
            elif "\0" in text:
                raise ValueError("a NUL character in a text")
            elif self.caption:
                self.refuse(Reason.CAPTION_DUPLICATE, f"{name} is the second caption of this key", kind)
            else:
                self.caption = text.strip()
        except (ValueError, RecursionError) as error:
            self.refuse(Reason.ROW_UNREADABLE, f"{name}: {error}", kind)

    def found(self) -> Iterator[Row | Reject]:
        """Yield what was refused, then the row."""
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
    """Yield the samples of an archive, numbered on from `before`, and what is wrong with it.

    The sample that an archive breaks off in is refused.
    """
    sample: Sample | None = None
    position = before
    for member in members(archive):
        if isinstance(member, Reject):
            key = None
            if member.reason in BROKEN and sample:  # who knows what else belonged to it
                yield from sample.faults
                key, sample = printable(sample.key), None
            yield replace(member, position=position, key=key)
            continue
        if sample is None or member.key != sample.key:
            if sample:
                yield from sample.found()
            position += 1
            sample = Sample(archive, position, member.key)
        if member.content is None:
            sample.refuse(Reason.MEMBER_TOO_LARGE, f"{member.name} has {member.size} bytes", member.kind)
        elif member.kind in IMAGE_SUFFIXES:
            sample.take_image(member.name, member.content)
        else:
            sample.take_text(member.name, member.kind, member.content)
    if sample:
        yield from sample.found()


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive that a sample is made of.

    Attributes:
        key: its path up to the first dot of its name.
        kind: the rest of its name, lower case, with the dot.
        content: None where it is larger than is read.
    """

    name: str
    key: str
    kind: str
    size: int
    content: bytes | None


def members(archive: Path) -> Iterator[Member | Reject]:
    """Yield the members of an archive that samples are made of, and a reject for what is not as it should be."""
    number = 0

    def refused(reason: Reason, detail: str) -> Reject:
        return Reject(str(archive), number, "read", reason, printable(detail))

    try:
        with _stream(archive) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as tar:
            while (header := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile remembers all of them
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
            if left := _after(tar.fileobj):
                yield refused(Reason.ARCHIVE_TRAILING_DATA, f"{left} after the end of the archive, which are not read")
    except OSError as error:
        yield refused(Reason.ARCHIVE_UNREADABLE, f"after {number} members: {error}")
    except Exception as error:  # noqa: BLE001  tarfile and zlib raise whatever a damaged archive makes them raise
        yield refused(Reason.ARCHIVE_DAMAGED, f"after {number} members: {type(error).__name__}: {error}")


class _Header(tarfile.TarInfo):
    """A member's header that is bounded, and without which an archive does not just end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _EXTENSIONS and found.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {found.size} bytes")
        return found

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            # tarfile takes a damaged or a missing header for the end
            raise tarfile.ReadError(str(error)) from error


_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def expanded(path: Path) -> list[Path]:
    """Return the paths that a pattern stands for; a path without `{0..9}` stands for itself.

    >>> [str(path) for path in expanded(Path("a-{08..10}.tar"))]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = RANGE.search(str(path))
    if not found:
        return [path]
    start, stop = int(found[1]), int(found[2])
    if not 0 <= stop - start < MOST_SHARDS:
        raise CorpusError(f"corpus {path}: expected a range of 1 to {MOST_SHARDS} archives, got {found[0]}")
    paths = (f"{number:0{len(found[1])}d}" for number in range(start, stop + 1))
    before, after = str(path)[: found.start()], str(path)[found.end() :]
    return [each for number in paths for each in expanded(Path(f"{before}{number}{after}"))]


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.is_dir()


def _stream(archive: Path) -> Any:
    # gzip checks what it has unpacked; tarfile's own way through a compressed stream does not.
    return gzip.open(archive) if archive.name.lower().endswith(SUFFIXES[1:]) else archive.open("rb")


def _refusal(header: tarfile.TarInfo) -> Reason | None:
    if leads_out(header.name):
        return Reason.MEMBER_UNSAFE_NAME
    if not header.isreg() or header.issparse():
        return Reason.MEMBER_NOT_A_FILE
    if header.name != header.name.encode("utf-8", "replace").decode() or "\0" in header.name:
        return Reason.PATH_NOT_UNICODE
    return None


def _after(stream: Any) -> str:
    """Say what follows the end of an archive but padding."""
    read = 0
    while read < LONGEST_END and (chunk := stream.read(1 << 20)):
        if chunk.strip(b"\0"):
            return "more bytes"
        read += len(chunk)
    return "" if read < LONGEST_END else f"more than {LONGEST_END} bytes"
