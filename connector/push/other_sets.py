"""What other embedding sets give to the releases of a push: a point is of one set alone."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self

from alignment.modality import MODALITIES, Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.shards import read_columns
from connector.corpora.images import ImageRejectedError, decode, reading
from connector.corpora.items import Corpus, Item, Vector
from connector.errors import MismatchError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import ReleaseRow
from connector.releases.point_id_set import PointIds
from connector.releases.points import point_ids

_log = logging.getLogger(__name__)

EXAMPLES = 3
KEYS_AT_ONCE = 4096


class OtherSets:
    """The points of the other embedding sets in some releases, read when the first rows are checked.

    Parts of one corpus, which earlier versions made, are passed over: a hash assigned each item to one of them. Close
    it after use.

    Args:
        path: directory of the set that is pushed.
        set_id: its row in SQL; None: it has none yet.
        releases: that it is pushed into.
        provenance: names the sets in these releases.
    """

    def __init__(self, path: Path, set_id: int | None, releases: Sequence[ReleaseRow], provenance: Provenance):
        self._path, self._set_id = path, set_id
        self._releases, self._provenance = releases, provenance
        self._points: dict[str, PointIds] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for points in (self._points or {}).values():
            points.__exit__()

    @property
    def names(self) -> list[str]:
        """The other sets."""
        return [path.name for path in self._paths()]

    def check(self, rows: Rows) -> None:
        """Raise a `MismatchError` if another set holds a point of these rows: writing them would replace it."""
        self.check_keys(rows.modality, rows.keys)

    def check_keys(
        self, modality: Modality, of_rows: Sequence[str], *, is_item: Callable[[str], bool] = lambda key: True
    ) -> None:
        """As `check`, of the keys of rows that are not encoded yet, but for those of which `is_item` says no."""
        if self._points is None:
            self._points = {path.name: _points_of(path) for path in self._paths()}
        if not self._points:
            return
        keys = dict(zip(point_ids(modality, of_rows), of_rows, strict=True))
        for name, points in self._points.items():
            held = sorted(keys[id_] for id_ in keys.keys() - points.missing([*keys]))
            if shared := list(islice(filter(is_item, held), EXAMPLES)):
                examples = ", ".join(shared)
                raise MismatchError(
                    f"embedding sets {self._path.name} and {name} share {modality} keys, such as {examples}, and "
                    f"collection {self._releases[0].collection} holds {name} already. An item is of one set: "
                    f"{_remedy(name)}. Nothing of these rows was written",
                    code="sets-share-keys",
                )

    def _paths(self) -> list[Path]:
        rows = self._provenance.ledger.sets_in(row.id for row in self._releases)
        paths = [self._provenance.database.located(row.path) for row in rows if row.id != self._set_id]
        return [path for path in paths if path.is_dir() and not self._is_same_or_sister(path)]

    def _is_same_or_sister(self, path: Path) -> bool:
        corpus = _corpus(self._path)
        return path.resolve() == self._path.resolve() or (corpus is not None and corpus == _corpus(path))


def _remedy(name: str) -> str:
    if ".part-" in name:
        return (
            "an earlier version ingested this corpus in parts, each a set: ingest it into a collection of another "
            "name, and drop the releases of this one when that is live"
        )
    return (
        f"encode its new content into {name} (`modalign ingest --set {name}`), give other items other keys, or push "
        "into a collection of another name"
    )


def refuse_keys_of_other_sets(
    corpus: Corpus, path: Path, provenance: Provenance, store_id: int, collection: str, max_pixels: int
) -> None:
    """Refuse to ingest a corpus into a set if other sets of the collection have its keys: nothing is encoded yet.

    Its rows are read for this, and images of shared keys: one that cannot be decoded is a reject, and shares nothing. A
    collection without other sets costs no read. A new set beside others is told of: it may be a slip.

    Raises:
        MismatchError: another set has one of the keys.
    """
    releases = provenance.releases.find(store_id=store_id, collection=collection, dropped_at=None)
    with OtherSets(path, None, releases, provenance) as others:
        if not others.names:
            return
        if not path.exists():
            _log.info(
                "embedding set %s is new; collection %s holds %s, too: --set names the set to add items to",
                *(path.name, collection, ", ".join(others.names)),
            )
        entries = (entry for entry in corpus if isinstance(entry, Item))
        while window := list(islice(entries, KEYS_AT_ONCE)):
            for modality in MODALITIES:
                items = {item.key: item for item in reversed(window) if item.modality == modality}
                if items:
                    others.check_keys(modality, [*items], is_item=partial(_is_sound, items, max_pixels))


def _is_sound(items: Mapping[str, Item], max_pixels: int, key: str) -> bool:
    """Whether the item of a key is none that will be refused for its image."""
    item = items[key]
    if item.modality != "image" or isinstance(item.content, Vector | str):
        return True
    try:
        with reading(item.content) as file:
            decode(file, max_pixels)
    except ImageRejectedError:
        return False
    return True


def _corpus(path: Path) -> Path | None:
    """Return what the parts of one corpus have in common; None: the set is no part."""
    base, part, _ = path.name.partition(".part-")
    return path.with_name(base) if part else None


def _points_of(path: Path) -> PointIds:
    points = PointIds()
    for modality in MODALITIES:
        for shard in EmbeddingSet.open(path).shards(modality):
            keys = read_columns(shard, ["key"]).column("key").to_pylist()
            points.add(point_ids(modality, keys))
    return points
