"""Samples of WebDataset and img2dataset: members of one key that belong together.

A sample has one image, a caption in `.txt` or `.caption`, and a `.json` whose fields become payload; its `caption` is
used if there is no text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from alignment.value_kinds import kind_of
from connector.corpora.items import LONGEST_FIELD, PassedOver
from connector.corpora.manifest import ManifestRow
from connector.corpora.opening import decoded
from connector.corpora.picture_files import (
    image_suffixes,
    is_apple_double,
    is_image_name,
    is_unsupported_name,
    may_hold_pictures,
    unsupported,
)
from connector.corpora.row_checks import RowError, check_caption, parse_json, without_collisions
from connector.corpora.tar_members import BROKEN, Member, members
from connector.rejects import Reason, Reject
from connector.safe_text import printable

KeyRule = Literal["first-dot", "last-dot"]

LARGEST_PICTURE = 64 << 20  # bytes; a whole batch of images is in memory at a time
TEXTS = (".txt", ".caption")
METADATA = ".json"


@dataclass(slots=True)
class Sample:
    """The members of one key, collected while they are read.

    Attributes:
        source: the archive, or the folder of files.
        fields: of the `.json`; None: there is none.
        faults: rejects of its members.
        dotted: names of members that have dots before their suffix, as in `KEY.seg.png`.
        key_rule: as given, see `connector.corpora.webdataset.WebDataset`.
    """

    source: Path
    position: int
    key: str
    image: str | None = None
    picture: bytes | None = None
    caption: Any = None
    fields: Mapping[str, Any] | None = None
    faults: list[Reject] = field(default_factory=list)
    dotted: list[str] = field(default_factory=list)
    key_rule: KeyRule | None = None

    def refuse(self, reason: Reason, detail: str, kind: str, key: str | None = None) -> None:
        """Reject a member with the suffix `kind`; the rest of the sample is kept."""
        modality: Any = "text" if kind in TEXTS else None if kind == METADATA else "image"
        source, key = str(self.source), printable(key or self.key)
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
            text = decoded(content, name)
            if kind == METADATA:
                self._take_fields(name, parse_json(text))
            elif self.caption:
                self.refuse(Reason.CAPTION_DUPLICATE, f"{name} is the second caption of this key", kind)
            else:
                self.caption = check_caption(text)
        except RowError as error:
            self.refuse(error.reason, f"{name}: {error}", kind)
        except ValueError as error:
            self.refuse(Reason.ROW_UNREADABLE, f"{name}: {error}", kind)

    def _take_fields(self, name: str, fields: Any) -> None:
        if not isinstance(fields, dict):
            raise ValueError(f"expected a JSON object, got {kind_of(fields)}")
        if self.fields is None:
            self.fields = fields
        elif fields != self.fields:
            self.refuse(Reason.KEY_DUPLICATE, f"{name} is the second metadata of this key, with other values", METADATA)

    def rows(self) -> Iterator[ManifestRow | Reject | PassedOver]:
        """Yield the rejects, then the row if anything is left of the sample."""
        aside = list(self._set_aside())
        yield from self.faults
        yield from aside
        rest = dict(self.fields or {})
        caption = self.caption or rest.get("caption")
        if rest.get("caption") == caption:
            rest.pop("caption", None)  # another one than that of the text becomes payload
        if rest.get("key") == self.key:
            del rest["key"]
        if self.image or caption or (not self.faults and (self.fields is not None or not self.dotted)):
            given = {"key": self.key, "image": self.image, "caption": caption}
            fields = {**without_collisions(rest), **{k: v for k, v in given.items() if v is not None}}
            yield ManifestRow(self.position, fields, self.source, self.picture)

    def _set_aside(self) -> Iterator[PassedOver]:
        """Refuse members with dots that seem to be samples of their own, and yield the others.

        `KEY.seg.png` is a further field of a sample that has an image. Without one, or together with `KEY.seg.txt`, it
        is the image of a sample that is named `KEY.seg`.
        """
        held: dict[str | None, object] = {".png": self.image, ".txt": self.caption, METADATA: self.fields}
        for key, of_key in groupby(sorted(self.dotted), key=lambda name: str(PurePosixPath(name).with_suffix(""))):
            kinds = {name: _family(PurePosixPath(name).suffix.lower()) for name in of_key}
            alone = ".png" in kinds.values() and len(set(kinds.values())) > 1
            for name, family in kinds.items():
                if family and self.key_rule is None and (alone or not held[family]):
                    detail = (
                        f"{name}: the key of a sample ends at the first dot, which leaves no suffix that is read; add "
                        "--format webdataset --key-rule last-dot if it ends at the last, or first-dot if this is no "
                        "sample"
                    )
                    self.refuse(Reason.MEMBER_NAME_DOTTED, detail, family, key)
                else:
                    path = printable(str(self.source / name))
                    yield PassedOver(path, self.position, may_hide=self.key_rule is None)


def samples(archive: Path, key_rule: KeyRule | None = None) -> Iterator[ManifestRow | Reject | PassedOver]:
    """Yield the samples of an archive, its rejects and what is passed over.

    The sample in which a damaged archive breaks off is rejected.
    """
    sample: Sample | None = None
    position = 0
    for member in members(archive, lambda path: _limit(split(path, key_rule)[1])):
        if isinstance(member, Reject):
            key = None
            if member.reason in BROKEN and sample:  # members of it may be lost
                yield from sample.faults
                key, sample = printable(sample.key), None
            yield replace(member, position=position, key=key)
            continue
        key, kind = split(member.path, key_rule)
        if not key or not _family("." + kind.rpartition(".")[2]):
            yield _unused(archive, member, position)
            continue
        if sample is None or key != sample.key:
            if sample:
                yield from sample.rows()
            position += 1
            sample = Sample(archive, position, key, key_rule=key_rule)
        _take(sample, member, kind)
    if sample:
        yield from sample.rows()


def _take(sample: Sample, member: Member, kind: str) -> None:
    name = str(member.path)
    if kind.count(".") > 1:
        sample.dotted.append(name)
    elif not _limit(kind):
        sample.refuse(Reason.IMAGE_FORMAT_UNSUPPORTED, unsupported(name), kind)
    elif member.content is None:
        sample.refuse(Reason.MEMBER_TOO_LARGE, f"{name} has {member.size} bytes", kind)
    elif kind in image_suffixes():
        sample.take_image(name, member.content)
    else:
        sample.take_text(name, kind, member.content)


def split(path: PurePosixPath, key_rule: KeyRule | None) -> tuple[str, str]:
    """Split the path of a member into the key of its sample and the rest in lower case; a hidden file has no key.

    >>> split(PurePosixPath("a/b.1.jpg"), None), split(PurePosixPath("a/b.1.jpg"), "last-dot")
    (('a/b', '.1.jpg'), ('a/b.1', '.jpg'))
    """
    if not path.name or path.name.startswith("."):
        return "", ""
    stem = path.stem if key_rule == "last-dot" else path.name.partition(".")[0]
    return str(path.with_name(stem)), path.name[len(stem) :].lower()


def _limit(kind: str) -> int:
    """Return how many bytes a member with this suffix may have; 0 if it is not read."""
    if kind in image_suffixes():
        return LARGEST_PICTURE
    return LONGEST_FIELD if kind in TEXTS or kind == METADATA else 0


def _family(suffix: str) -> str | None:
    """Return one suffix for all pictures, one for all texts and one for metadata; None for another file."""
    if is_image_name(f"_{suffix}") or is_unsupported_name(f"_{suffix}"):
        return ".png"
    return ".txt" if suffix in TEXTS else METADATA if suffix == METADATA else None


def _unused(archive: Path, member: Member, position: int) -> PassedOver:
    name = member.path.name
    is_picture = is_image_name(name) and not is_apple_double(name, member.beginning)
    may_hide = is_picture or may_hold_pictures(name, member.beginning)
    return PassedOver(printable(str(archive / member.path)), position, may_hide)
