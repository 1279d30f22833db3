"""Rejects: rows that a run could not use, each with a reason.

`Reason` lists all reasons. `modalign rejects --by-reason` counts them, and docs/corpora.md shows them as a table. To
add one, add a member with its sentence, use it where a row is rejected, and write the table again:

    python -m connector.rejects
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from alignment.modality import Modality

Stage = Literal["read", "decode", "encode", "write"]


class Reason(StrEnum):
    """Why a row was rejected: a short name, and its meaning in `sentence`.

    >>> Reason("vector-zero").sentence
    'The vector has length zero, so it has no direction to compare.'
    """

    sentence: str

    def __new__(cls, name: str, sentence: str = "") -> Self:
        """Make a member from its name and sentence."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.sentence = sentence
        return member

    # rows of a manifest, an annotation file or a table
    ROW_UNREADABLE = "row-unreadable", "The row cannot be parsed, or holds text that a database cannot store."
    ROW_WITHOUT_IMAGE_OR_CAPTION = "row-without-image-or-caption", "The row names neither an image nor a caption."
    LINE_TOO_LONG = "line-too-long", "The line is longer than any row can be."
    FILE_TRUNCATED = "file-truncated", "The file ends or breaks before its last row."
    KEY_MISSING = "key-missing", "The row has no key."
    KEY_NOT_TEXT = "key-not-text", "The key is neither a text nor an integer."
    KEY_DUPLICATE = "key-duplicate", "Another row has the same key and says something else."
    GROUP_NOT_TEXT = "group-not-text", "The group is neither a text nor an integer."
    IMAGE_NOT_TEXT = "image-not-text", "The image column holds no path."
    IMAGE_DUPLICATE = "image-duplicate", "The annotations list the same image twice."
    CAPTION_NOT_TEXT = "caption-not-text", "The caption is no text."
    CAPTION_EMPTY = "caption-empty", "The caption is empty."
    CAPTION_TOO_LONG = "caption-too-long", "The caption has more bytes than any encoder can use."
    CAPTION_DUPLICATE = "caption-duplicate", "The annotations list the same caption twice."
    CAPTION_WITHOUT_IMAGE = "caption-without-image", "The caption names an image that the corpus does not hold."
    PAYLOAD_NOT_JSON = "payload-not-json", "A field cannot be written as JSON; its item is kept without it."

    # payload that Qdrant cannot store, or not under its index
    PAYLOAD_NOT_UNICODE = "payload-not-unicode", "The payload holds text that is not valid Unicode."
    PAYLOAD_NOT_FINITE = "payload-not-finite", "The payload holds NaN or infinity."
    PAYLOAD_INTEGER_TOO_LARGE = "payload-integer-too-large", "The payload holds an integer beyond 64 bits."
    PAYLOAD_NOT_KEYWORD = "payload-not-keyword", "A field indexed as keyword is no text; its item is kept."
    PAYLOAD_NOT_INTEGER = "payload-not-integer", "A field indexed as integer holds something else; its item is kept."
    PAYLOAD_NOT_FLOAT = "payload-not-float", "A field indexed as float holds something else; its item is kept."
    PAYLOAD_NOT_BOOL = "payload-not-bool", "A field indexed as bool is neither true nor false; its item is kept."
    PAYLOAD_NOT_DATETIME = "payload-not-datetime", "A field indexed as datetime is no valid time; its item is kept."
    PAYLOAD_NOT_UUID = "payload-not-uuid", "A field indexed as uuid holds something else; its item is kept."
    PAYLOAD_NOT_GEO = "payload-not-geo", "A field indexed as geo is no place; its item is kept."
    PAYLOAD_NOT_TEXT = "payload-not-text", "A field indexed as text holds something else; its item is kept."

    # folders and archives
    PATH_NOT_UNICODE = "path-not-unicode", "The file name is not valid Unicode."
    PATH_UNSAFE = "path-unsafe", "The path leads out of the corpus."
    FOLDER_UNREADABLE = "folder-unreadable", "The folder cannot be listed."
    MEMBER_NAME_DOTTED = (
        "member-name-dotted",
        "The member's name has dots, so its suffix is none; see `--key-rule last-dot`.",
    )
    ARCHIVE_MISSING = "archive-missing", "The archive is not there."
    ARCHIVE_UNREADABLE = "archive-unreadable", "The archive cannot be opened."
    ARCHIVE_DAMAGED = "archive-damaged", "The archive is damaged; samples after the damage are not read."
    ARCHIVE_TRAILING_DATA = "archive-trailing-data", "Data follows the end of the archive and is not read."
    MEMBER_NOT_A_FILE = "member-not-a-file", "The archive member is no regular file."
    MEMBER_TOO_LARGE = "member-too-large", "The archive member is larger than any picture or caption."
    MEMBER_UNSAFE_NAME = "member-unsafe-name", "The archive member's path leads out of the archive."
    SHARD_UNFINISHED = "shard-unfinished", "img2dataset did not finish this shard."
    SHARD_TABLE_UNREADABLE = "shard-table-unreadable", "The table of this img2dataset shard cannot be read."
    FAILED_TO_DOWNLOAD = "failed-to-download", "img2dataset could not download the image."
    FAILED_TO_RESIZE = "failed-to-resize", "img2dataset could not resize the image."
    DOWNLOAD_FAILED = "download-failed", "img2dataset has no image, for a reason of its own in the detail."

    # images
    IMAGE_MISSING = "image-missing", "There is no file at the image's path."
    IMAGE_AMBIGUOUS = "image-ambiguous", "The image's path has no suffix, and several pictures have this name."
    IMAGE_NOT_A_FILE = "image-not-a-file", "The image's path is a folder or a device."
    IMAGE_UNREADABLE = "image-unreadable", "The image file cannot be read."
    IMAGE_FORMAT_UNSUPPORTED = "image-format-unsupported", "The picture's format, depth or colours cannot be read."
    IMAGE_EMPTY = "image-empty", "The image file is empty."
    IMAGE_TOO_LARGE = "image-too-large", "The image has too many bytes or pixels to decode safely."
    IMAGE_TOO_ELONGATED = "image-too-elongated", "The image is too narrow for any encoder."
    IMAGE_UNIDENTIFIED = "image-unidentified", "The content is in no known image format."
    IMAGE_CHANGED = "image-changed", "The file holds another image than the one that was encoded."
    IMAGE_BROKEN = "image-broken", "The image starts well and cannot be decoded."

    # vectors
    PREPROCESSING_FAILED = "preprocessing-failed", "The encoder's preprocessing failed on this item."
    VECTOR_NOT_FINITE = "vector-not-finite", "The vector holds NaN or infinity."
    VECTOR_ZERO = "vector-zero", "The vector has length zero, so it has no direction to compare."
    VECTOR_OVERFLOW = "vector-overflow", "The vector has values beyond the range of the stored type."
    VECTOR_UNDERFLOW = (
        "vector-underflow",
        "The vector's values are too small for the stored type.",
    )
    VECTOR_DIMENSION = "vector-dimension", "The vector has another dimension than the others."

    # writing into Qdrant
    TOO_LARGE = "too-large", "The point alone is larger than a request to the server may be."
    REFUSED_BY_QDRANT = "refused-by-qdrant", "Qdrant refused the point; the detail holds its answer."


# Reasons of readers for leaving a field out, whose item they keep.
OF_FIELDS = frozenset((Reason.PAYLOAD_NOT_JSON,))


@dataclass(frozen=True, slots=True)
class Reject:
    """An item or row that was rejected, and why.

    Attributes:
        source, position: the file, and the row in it (from 1); 0: the file as a whole.
        detail: what was expected and received, for people.
        reached: rows of the corpus up to this one, where its files are several; None: `position`.
    """

    source: str
    position: int
    stage: Stage
    reason: Reason
    detail: str
    key: str | None = None
    modality: Modality | None = None
    reached: int | None = field(default=None, compare=False)


def at_line(line: int | None, detail: str) -> str:
    """Begin a detail with the line of its file, where that has lines.

    >>> at_line(3, "expected a caption"), at_line(None, "expected a caption")
    ('line 3: expected a caption', 'expected a caption')
    """
    return detail if line is None else f"line {line}: {detail}"


def table() -> str:
    """Return a Markdown table of all reasons."""
    rows = [f"| `{reason}` | {reason.sentence} |" for reason in Reason]
    return "\n".join(["| reason | meaning |", "| --- | --- |", *rows])


def with_table(page: str) -> str:
    """Return the Markdown `page` with a new table between the two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n\n{table()}\n\n{end}{after}"


BEGIN, END = "<!-- reasons -->", "<!-- end of reasons -->"

if __name__ == "__main__":
    path = Path("docs/corpora.md")
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
