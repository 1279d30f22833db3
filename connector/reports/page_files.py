"""Pages that need no network: all content is inlined, and bounded in size."""

import base64
import hashlib
import io
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from connector.corpora.images import ImageRejectedError, decode, read_image
from connector.errors import OutputError
from connector.rejects import Reason
from connector.reports.output_files import claim_file, write_file
from connector.settings import MAX_PIXELS

THUMBNAIL = 160  # pixels, longer side
# Control characters of Unicode's bidirectional algorithm.
BIDI_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def templates() -> Environment:
    """Return the environment of the templates: values are escaped, and missing ones raise."""
    return Environment(
        loader=PackageLoader("connector.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_without_bidi_controls,
    )


def _without_bidi_controls(value: object) -> object:
    """Escape control characters in names that would reverse the text after them."""
    return value.translate(BIDI_CONTROLS) if isinstance(value, str) else value


def claim_page(path: Path) -> None:
    """Make the directory of a page and check that the page can be written, before the work for it starts.

    Raises:
        OutputError: the page cannot be written.
    """
    _make_directory(path)
    claim_file(path)


def write_page(path: Path, html: str) -> None:
    """Write a page; an older one is replaced atomically.

    Raises:
        OutputError: the page cannot be written.
    """
    _make_directory(path)
    write_file(path, html)


def _make_directory(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}; name another file") from error


def small_picture(path: Path, sha256: str | None = None, max_pixels: int = MAX_PIXELS) -> str:
    """Return a thumbnail of an image file as a data URL.

    Args:
        path: the file.
        sha256: expected hexadecimal hash of its content; None: not checked.
        max_pixels: of the image.

    Raises:
        ImageRejectedError: the file is missing, broken or changed.
    """
    content = read_image(path)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ImageRejectedError(Reason.IMAGE_CHANGED, f"{path} has changed")
    image = decode(content, max_pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
