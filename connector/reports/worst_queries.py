"""The queries that an audit found answered worst, as a page shows them: long texts cut, pictures small."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.modality import DIRECTIONS, Modality
from connector.audits.result import Point, WorstQuery
from connector.corpora.images import ImageRejectedError
from connector.reports.pages import small_picture

# Characters of a text, and bytes of all pictures of a page.
LONGEST = 280
MOST_BYTES = 3_000_000
REASONS = {"image-missing": "gone from disk", "image-changed": "changed on disk since they were embedded"}


@dataclass(slots=True)
class Shown:
    """Pictures that were put on a page, and why others were not.

    Attributes:
        hashed: whether the content hashes of items are those of image files; of imported vectors they are not.
        left: bytes that there is still room for.
        files: that were looked at; why each is not shown, where it is not.
    """

    hashed: bool = True
    left: int = MOST_BYTES
    files: dict[str, str | None] = field(default_factory=dict)
    _pictures: dict[str, str] = field(default_factory=dict)

    def picture(self, path: str, sha256: object) -> str | None:
        """Return a small picture as a data URL, or None where `files` says why not.

        A file is shown as what was embedded, so not if it holds something else now. Paths come from the collection,
        which others may write into: what they name must not end on a page that is passed on.
        """
        if path not in self.files:
            self.files[path] = None
            try:
                self._pictures[path] = small_picture(Path(path), str(sha256) if self.hashed else None)
            except ImageRejectedError as error:
                self.files[path] = REASONS.get(error.reason, error.reason.removeprefix("image-").replace("-", " "))
        url = self._pictures.get(path)
        if url is None:
            return None
        if len(url) > self.left:
            self.files[path] = "left out: the page would grow too large"
            return None
        self.left -= len(url)
        return url

    @property
    def missing(self) -> Counter[str]:
        """How many files are not shown, by reason."""
        return Counter(reason for reason in self.files.values() if reason)


def shown_worst(worst: Sequence[WorstQuery], shown: Shown) -> dict[str, list[dict[str, Any]]]:
    """Lay the worst queries out by direction."""
    laid: dict[str, list[dict[str, Any]]] = {direction: [] for direction in DIRECTIONS}
    for each in worst:
        asking, target = DIRECTIONS[each.direction]
        laid[each.direction].append(
            {
                "query": _point(each.query, asking, shown),
                "rank": each.rank,
                "found": [_point(point, target, shown) for point in each.found],
                "expected": [_point(point, target, shown) for point in each.expected],
            }
        )
    return laid


def _point(point: Point, modality: Modality, shown: Shown) -> dict[str, Any]:
    laid = {"key": _cut(point.key), "relevant": point.relevant, "score": point.score, "modality": modality}
    if modality == "text":
        return laid | {"text": _cut(str(point.payload.get("caption") or point.key))}
    path = point.payload.get("image")
    if not isinstance(path, str):
        return laid | {"picture": None, "file": _cut(point.key), "why_not": "no file was recorded"}
    picture = shown.picture(path, point.payload.get("content_sha256"))
    return laid | {"picture": picture, "file": _cut(Path(path).name), "why_not": shown.files[path]}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
