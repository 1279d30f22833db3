"""One query, from the command line: a text, or the path of an image."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.metrics import Guarantee
from alignment.object_storage import is_url, located
from connector.corpora.picture_files import is_image_name, is_unsupported_name
from connector.errors import PictureError
from connector.requests import SearchRequest
from connector.search.retriever import Retriever, SearchResult, load_picture
from connector.search.search_arguments import check_way

if TYPE_CHECKING:
    from PIL import Image
    from qdrant_client.models import Filter


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a search with one query found.

    Attributes:
        query: the text, or the path of the image.
        metric: of the release, as it prints.
        guarantee: how good this search is: what `Retriever.guarantee` says, but `bounded` where that is `certified`
            and these hits are not.
        hits: the items, best first.
        compares_with_all: whether the query was compared with every item, because that was asked for or because there
            is no index that could miss some.
    """

    query: str | Path
    metric: str
    guarantee: Guarantee
    hits: SearchResult
    compares_with_all: bool


def search(retriever: Retriever, request: SearchRequest, condition: "Filter | None") -> QueryResult:
    """Search a release as `request` asks, among the points that match `condition`.

    Raises:
        QueryError: the query is an image, and it shall be compared with captions.
        PictureError: the query is the path of an image that cannot be opened, or of a file that is none.
    """
    options: dict[str, Any] = {"filter": condition, "exact": request.exact, "max_candidates": request.max_candidates}
    query: str | Path = request.query
    if _is_path(request.query):
        query = located(request.query) if is_url(request.query) else Path(request.query)
        picture = _load(query, retriever.max_pixels)
        target = request.target or "text"
        check_way(request.by, "image", target)
        (hits,) = retriever.search_images([picture], request.k, target=target, **options)
    else:
        options |= {"target": request.target or "image", "by": request.by}
        (hits,) = retriever.search_texts([request.query], request.k, **options)
    guarantee = retriever.guarantee
    if guarantee is Guarantee.CERTIFIED and not hits.certified:
        guarantee = Guarantee.BOUNDED
    compares_with_all = request.exact or retriever.compares_with_all()
    return QueryResult(query, str(retriever.release.metric), guarantee, hits, compares_with_all)


def _is_path(query: str) -> bool:
    """Whether a query is an existing file, or has the name of an image."""
    try:
        exists = Path(query).is_file()
    except OSError:  # a text that is too long for a name
        exists = False
    return exists or is_image_name(query) or (is_unsupported_name(query) and not re.search(r"\s", query))


def _load(path: Path, max_pixels: int) -> "Image.Image":
    try:
        return load_picture(path, max_pixels)
    except PictureError as error:
        if is_image_name(path.name) or not path.exists():
            raise
        raise PictureError(
            f"{error}; there is a file {path}, so the query is taken for its path: to search for a text of this name, "
            "run the command in another folder"
        ) from error
