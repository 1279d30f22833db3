"""Pages that need no network: everything they show is inlined, and bounded in size."""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from alignment.embeddings import write_durably
from connector.errors import ConnectorError
from connector.images import ImageRejectedError, decode, read_image
from connector.search import Found

THUMBNAIL = 160  # pixels, longer side
# Embeddings, overrides and isolates of Unicode's bidirectional algorithm, and what ends them.
TURNING = {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


@dataclass(frozen=True, slots=True)
class Answered:
    """A query with what it found. `query` is a text, or the path of an image."""

    query: str | Path
    found: Sequence[Found]
    expected: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether the query is an image."""
        return isinstance(self.query, Path)


def templates() -> Environment:
    """What pages and pictures are written by: everything is escaped, and nothing may be missing."""
    return Environment(
        loader=PackageLoader("connector"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        finalize=_harmless,
    )  # fmt: skip


def _harmless(value: object) -> object:
    """Show characters that turn the direction of all text after them: names may hold them, numbers must be read."""
    return value.translate(TURNING) if isinstance(value, str) else value


def claim_page(path: Path) -> None:
    """Make sure that a page can be written, before anything takes time.

    Raises:
        ConnectorError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("a directory stands there")
        if path.exists() and not path.is_file():
            raise OSError("what stands there is no file")
        with TemporaryFile(dir=path.parent):  # only that tells of read-only disks and of access lists
            pass
    except OSError as error:
        raise ConnectorError(f"page {path} cannot be written: {error}; name another file") from error


def write_page(path: Path, html: str) -> None:
    """Write a page, in place of an older one as a whole.

    Raises:
        ConnectorError: the page cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, html.encode(errors="backslashreplace"))  # names of files may be no Unicode
    except OSError as error:
        raise ConnectorError(f"page {path} cannot be written: {error}") from error


def write_contact_sheet(path: Path, title: str, subtitle: str, answers: Sequence[Answered]) -> None:
    """Write a page with the pictures that searches were asked with and found.

    Raises:
        ConnectorError: the page cannot be written.
    """
    environment = templates()
    environment.filters["thumbnail"] = thumbnail
    template = environment.get_template("contact_sheet.html")
    write_page(path, template.render(title=title, subtitle=subtitle, answers=answers))


def thumbnail(path: str | Path | None) -> str | None:
    """Return a small picture of an image file as a data URL, or None if it is gone or broken."""
    if path is None:
        return None
    try:
        return small_picture(Path(path))
    except ImageRejectedError:
        return None


def small_picture(path: Path, sha256: str | None = None) -> str:
    """Return a small picture of an image file as a data URL.

    Args:
        path: of the file.
        sha256: of the content that it is known to have had, in hexadecimal; None: not known.

    Raises:
        ImageRejectedError: it is gone, broken or another one now.
    """
    content = read_image(path)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ImageRejectedError("image-changed", f"{path} holds another content than it did")
    image = decode(content)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
