"""Contact sheets: search results with their pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from connector.corpora.images import ImageRejectedError
from connector.reports.page_files import small_picture, templates, write_page
from connector.search.retriever import SearchHit
from connector.settings import MAX_PIXELS


@dataclass(frozen=True, slots=True)
class Answered:
    """A query with its hits. `query` is a text, or the path of an image."""

    query: str | Path
    found: Sequence[SearchHit]
    expected: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether the query is an image."""
        return isinstance(self.query, Path)


def write_contact_sheet(
    path: Path, title: str, subtitle: str, answers: Sequence[Answered], *, max_pixels: int = MAX_PIXELS
) -> None:
    """Write a page with queries and their hits, as texts and pictures.

    Raises:
        OutputError: the page cannot be written.
    """
    environment = templates()
    environment.filters |= {
        "thumbnail": partial(thumbnail, max_pixels=max_pixels),
        "embedded": partial(embedded_picture, max_pixels=max_pixels),
    }
    template = environment.get_template("contact_sheet.html")
    write_page(path, template.render(title=title, subtitle=subtitle, answers=answers))


def thumbnail(path: str | Path | None, sha256: str | None = None, *, max_pixels: int = MAX_PIXELS) -> str | None:
    """Return a thumbnail of an image file as a data URL, or None if it is missing, broken or not of this hash."""
    if path is None:
        return None
    try:
        return small_picture(Path(path), sha256, max_pixels)
    except ImageRejectedError:
        return None


def embedded_picture(payload: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS) -> str | None:
    """Return a thumbnail of the file that `payload` names if it holds what was embedded, else None.

    Others may write to the collection: the hash keeps private files that a payload names off the page.
    """
    path, sha256 = payload.get("image"), payload.get("content_sha256")
    return thumbnail(path, str(sha256), max_pixels=max_pixels) if isinstance(path, str) else None
