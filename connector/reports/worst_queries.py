"""The worst queries of an audit for a page, with shortened texts and thumbnails."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import MissingPackageError, StorageError
from alignment.modality import DIRECTIONS, Modality
from alignment.object_storage import joined
from connector.audits.result import StoredItem, WorstQuery
from connector.corpora.images import ImageRejectedError
from connector.reports.page_files import small_picture
from connector.settings import MAX_PIXELS

# Characters of a text, and bytes of all thumbnails of a page.
LONGEST = 280
MOST_BYTES = 3_000_000
NOT_HASHED = "not compared: nothing says which files imported vectors were made of"
REASONS = {"image-missing": "gone from disk", "image-changed": "changed on disk since they were embedded"}


@dataclass(slots=True)
class Shown:
    """Thumbnails of a page, and the reasons for missing ones.

    Attributes:
        hashed: whether content hashes are those of image files, which they are not for imported vectors.
        max_pixels: of a file to show.
        left: remaining bytes for thumbnails.
        files: reason by file that is not shown; None for files that are shown.
    """

    hashed: bool = True
    max_pixels: int = MAX_PIXELS
    left: int = MOST_BYTES
    files: dict[str, str | None] = field(default_factory=dict)
    _pictures: dict[str, str] = field(default_factory=dict)

    def picture(self, path: str, sha256: object) -> str | None:
        """Return a thumbnail as a data URL, or None with the reason in `files`.

        A changed file is not shown. Paths come from the collection, which others may write to: the hash keeps private
        files that they name off the page.
        """
        if path not in self.files:
            self.files[path] = None if self.hashed else NOT_HASHED
            try:
                if self.hashed:
                    self._pictures[path] = small_picture(joined(Path(), path), str(sha256), self.max_pixels)
            except ImageRejectedError as error:
                self.files[path] = REASONS.get(error.reason, error.reason.removeprefix("image-").replace("-", " "))
            except (MissingPackageError, StorageError):
                self.files[path] = "in object storage that did not answer here"
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
        """Number of files that are not shown, by reason."""
        return Counter(reason for reason in self.files.values() if reason)


def shown_worst(worst: Sequence[WorstQuery], shown: Shown) -> dict[str, list[dict[str, Any]]]:
    """Return the worst queries by direction, as the template shows them."""
    by_direction: dict[str, list[dict[str, Any]]] = {direction: [] for direction in DIRECTIONS}
    for entry in worst:
        asking, target = DIRECTIONS[entry.direction]
        by_direction[entry.direction].append(
            {
                "query": _point(entry.query, asking, shown),
                "rank": entry.rank,
                "found": [_point(point, target, shown) for point in entry.found],
                "expected": [_point(point, target, shown) for point in entry.expected],
            }
        )
    return by_direction


def _point(point: StoredItem, modality: Modality, shown: Shown) -> dict[str, Any]:
    title = _cut(str(point.payload.get("caption") or point.key))
    shown_point = {
        "key": _cut(point.key),
        "title": title,
        "relevant": point.relevant,
        "score": point.score,
        "modality": modality,
    }
    if modality == "text":
        return shown_point | {"text": title}
    path = point.payload.get("image")
    if not isinstance(path, str):
        return shown_point | {"picture": None, "file": _cut(point.key), "why_not": "no file was recorded"}
    picture = shown.picture(path, point.payload.get("content_sha256"))
    return shown_point | {"picture": picture, "file": _cut(Path(path).name), "why_not": shown.files[path]}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
