"""One query, from the command line: a text, or the path of an image."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.metrics import Guarantee
from connector.corpora.items import IMAGE_SUFFIXES
from connector.requests import SearchRequest
from connector.search.retriever import Retriever, SearchResult

if TYPE_CHECKING:
    from qdrant_client.models import Filter


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a search with one query found.

    Attributes:
        query: the text, or the path of the image.
        metric: of the release, as it prints.
        guarantee: how good the search is; see `Retriever.guarantee`.
        hits: the items, best first.
    """

    query: str | Path
    metric: str
    guarantee: Guarantee
    hits: SearchResult


def search(retriever: Retriever, request: SearchRequest, condition: "Filter | None") -> QueryResult:
    """Search a release as `request` asks, among the points that match `condition`."""
    options: dict[str, Any] = {"filter": condition, "exact": request.exact, "max_candidates": request.max_candidates}
    query: str | Path = request.query
    if Path(request.query).suffix.lower() in IMAGE_SUFFIXES:
        query = Path(request.query)
        (hits,) = retriever.search_images([query], request.k, target=request.target or "text", **options)
    else:
        (hits,) = retriever.search_texts([request.query], request.k, target=request.target or "image", **options)
    return QueryResult(query, str(retriever.release.metric), retriever.guarantee, hits)
