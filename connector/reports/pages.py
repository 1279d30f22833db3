"""Pages that need no network: everything they show is inlined, and bounded in size."""

import base64
import hashlib
import io
from pathlib import Path
from tempfile import TemporaryFile

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from alignment.durable import write_durably
from connector.corpora.images import ImageRejectedError, decode, read_image
from connector.errors import ConnectorError
from connector.rejects import Reason

THUMBNAIL = 160  # pixels, longer side
# Embeddings, overrides and isolates of Unicode's bidirectional algorithm, and what ends them.
TURNING = {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def templates() -> Environment:
    """What pages and pictures are written by: everything is escaped, and nothing may be missing."""
    return Environment(
        loader=PackageLoader("connector.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_harmless,
    )


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
        raise ImageRejectedError(Reason.IMAGE_CHANGED, f"{path} holds another content than it did")
    image = decode(content)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def claim(path: Path) -> None:
    """Make sure that a file can be written, before an audit takes its time. Its directory has to be there.

    Raises:
        ConnectorError: it cannot.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("what stands there is no file")
        if path.exists():
            with path.open("ab"):
                pass
        with TemporaryFile(dir=path.parent):  # only that tells of read-only disks and of access lists
            pass
    except OSError as error:
        raise ConnectorError(f"{path} cannot be written: {error}; name another file") from error
