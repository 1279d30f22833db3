"""Contact sheets: search results with their pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from alignment.errors import MissingPackageError, StorageError
from alignment.object_storage import joined
from connector.corpora.images import ImageRejectedError
from connector.reports.page_files import small_picture, templates, write_page
from connector.search.retriever import SearchHit
from connector.settings import MAX_PIXELS


class RightAnswer(NamedTuple):
    """The best right answer of a query: its rank from 1 among the `compared` items, and the item."""

    rank: int
    hit: SearchHit
    compared: int

    @classmethod
    def among(cls, hits: Sequence[SearchHit], group: str) -> "RightAnswer | None":
        """Return the first hit of a group in a ranking of all items; None: there is none."""
        ranked = enumerate(hits, start=1)
        return next((cls(rank, hit, len(hits)) for rank, hit in ranked if hit.group == group), None)


@dataclass(frozen=True, slots=True)
class AnsweredQuery:
    """A query with its hits.

    Attributes:
        query: a text, or the path of an image.
        found: the hits to show, best first.
        expected: group of the right answers, which are marked; None: nobody knows.
        right: the best of them, which is shown after the hits where it is not one of them; None: not known.
    """

    query: str | Path
    found: Sequence[SearchHit]
    expected: str | None = None
    right: RightAnswer | None = None

    @property
    def is_image(self) -> bool:
        """Whether the query is an image."""
        return isinstance(self.query, Path)


class Link(NamedTuple):
    """A link to another page: its address, relative to this page, and what it says."""

    to: str
    says: str


def write_contact_sheet(
    path: Path,
    title: str,
    subtitle: str,
    answers: Sequence[AnsweredQuery],
    *,
    tiles: Sequence[Mapping[str, str]] = (),
    links: Sequence[Link] = (),
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write a page with queries and their hits, as texts and pictures.

    Args:
        path: the page.
        title, subtitle: at its top.
        answers: what it shows.
        tiles: numbers below the title: `value`, `name`, and `small` for what it is out of.
        links: to other pages, below these.
        max_pixels: of an image to show.

    Raises:
        OutputError: the page cannot be written.
    """
    environment = templates()
    environment.filters |= {
        "thumbnail": partial(thumbnail, max_pixels=max_pixels),
        "embedded": partial(embedded_picture, max_pixels=max_pixels),
    }
    template = environment.get_template("contact_sheet.html")
    write_page(path, template.render(title=title, subtitle=subtitle, answers=answers, tiles=tiles, links=links))


def thumbnail(path: str | Path | None, sha256: str | None = None, *, max_pixels: int = MAX_PIXELS) -> str | None:
    """Return a thumbnail of an image file as a data URL, or None if it is missing, broken or not of this hash."""
    if path is None:
        return None
    try:
        return small_picture(joined(Path(), str(path)), sha256, max_pixels)
    except (ImageRejectedError, MissingPackageError, StorageError):
        return None


def embedded_picture(payload: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS) -> str | None:
    """Return a thumbnail of the file that `payload` names if it holds what was embedded, else None.

    Others may write to the collection: the hash keeps private files that a payload names off the page.
    """
    path, sha256 = payload.get("image"), payload.get("content_sha256")
    return thumbnail(path, str(sha256), max_pixels=max_pixels) if isinstance(path, str) else None
