"""Which items a deletion is about: those that keys, groups and a filter name; and what it says of the others."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignment.modality import MODALITIES, Modality
from alignment.plurals import counted
from connector.errors import FilterError, SettingsError
from connector.provenance.tables import ReleaseRow
from connector.releases.payload_fields import missing_in_words, unlike_in_words
from connector.releases.points import CAPTION_KEY, Item, image_keys, item_of, point_id
from connector.states import ReleaseState
from connector.stores.contract import Store
from connector.stores.payload_kinds import check_kinds, fields_of

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from qdrant_client.models import Filter

RETRIEVED = 256  # ids a request
EXAMPLES = 5  # of names in a warning


@dataclass(frozen=True, slots=True)
class ItemSelection:
    """The items to delete.

    Attributes:
        keys: of some of them.
        groups: all items of each.
        filter: all items whose points match it.
        modalities: only items of these.
    """

    keys: Sequence[str] = ()
    groups: Sequence[str] = ()
    filter: "Filter | None" = None
    modalities: Sequence[Modality] = MODALITIES

    def by_keys(self) -> set[Item]:
        """Return the items that the keys may name, whether there are such items or not."""
        return {(modality, key) for key in self.keys for modality in self.modalities}

    def by_groups(self, rows: Iterable[tuple[Modality, str, str]]) -> Mapping[str, set[Item]]:
        """Return the items of each group.

        Args:
            rows: modality, key and group of every row of the embedding sets, whose word counts: a point keeps the group
                that its row had when it was pushed.
        """
        of_groups: dict[str, set[Item]] = {group: set() for group in self.groups}
        for modality, key, group in rows if of_groups else ():
            if group in of_groups and modality in self.modalities:
                of_groups[group].add((modality, key))
        return of_groups

    def unknown_keys(self, items: Collection[Item]) -> list[str]:
        """Return the keys that name none of the items."""
        return [key for key in dict.fromkeys(self.keys) if not any((m, key) in items for m in self.modalities)]


def items_matching(selection: ItemSelection, collection: str, rows: Iterable[ReleaseRow], store: Store) -> set[Item]:
    """Return the items whose points match the filter in any of these releases that is not retired.

    Raises:
        FilterError: an index cannot answer the filter; or items match it though no item has a field that it reads.
    """
    if selection.filter is None:
        return set()
    items: set[Item] = set()
    strange: set[str] = set()
    missing: list[str] = []
    for row in rows:
        if row.state != ReleaseState.RETIRED:
            indexes = row.settings.get("payload_indexes", {})
            check_kinds(selection.filter, indexes, what=f"filter on release {row.physical_name}")
            for page in store.scroll(row.physical_name, filter=selection.filter):
                of_page = [*map(item_of, page)]
                items.update(item for item in of_page if item is not None)
                strange.update(r.id for r, item in zip(page, of_page, strict=True) if item is None)
            fields = fields_of(selection.filter)
            missing += missing_in_words(store, row.physical_name, fields)
            missing += unlike_in_words(store, row.physical_name, selection.filter, fields, whole=True)
    if missing and items:
        raise FilterError(
            f"filter: it matches {counted(items, 'item')}, but {missing[0]}; leave out the condition on that field"
        )
    for sentence in missing:
        _log.warning("filter: %s", sentence)
    if strange:
        _log.warning(
            "filter: it matches %s that modalign did not write, for example %s: they stay. Run `modalign verify %s`, "
            "which names them, and `modalign repair %s`, which deletes them",
            *(counted(strange, "point"), min(strange), collection, collection),
        )
    return {item for item in items if item[0] in selection.modalities}


def stored_items(rows: Iterable[ReleaseRow], store: Store, items: Iterable[Item]) -> set[Item]:
    """Return those of the items that have a point in any of these releases."""
    by_id = {point_id(*item): item for item in items}
    ids = sorted(by_id)
    return {
        by_id[record.id]
        for row in rows
        for start in range(0, len(ids), RETRIEVED)
        for record in store.retrieve(row.physical_name, ids[start : start + RETRIEVED])
    }


def check_ambiguous(
    selection: ItemSelection, items: Collection[Item], rows: Iterable[ReleaseRow], store: Store
) -> None:
    """Refuse a key that an image and a text of different items have: `a#0` is an image, or a caption of `a`.

    Raises:
        SettingsError: there is such a key.
    """
    for key in selection.keys:
        ids = [point_id(modality, key) for modality in MODALITIES]
        if all((modality, key) in items for modality in MODALITIES):
            records = [record for row in rows for record in store.retrieve(row.physical_name, ids)]
            if CAPTION_KEY.search(key) or len({record.payload.get("group") for record in records}) > 1:
                raise SettingsError(
                    f"key {key!r} names an image and a text of another item; say which one is meant with "
                    "--modality image or --modality text"
                )


def say_unknown(collection: str, **unknown: Sequence[str]) -> None:
    """Warn of keys and groups that name nothing, given by the noun."""
    for noun, names in unknown.items():
        if names:
            _log.warning("%s of no item in collection %s: %s", counted(names, noun), collection, _shown(names))


def say_texts_that_stay(rows: Sequence[ReleaseRow], items: Collection[Item], store: Store) -> None:
    """Warn of texts that stay though their image goes: a key is of one item.

    The text `a#0` is of image `a`, and `a` may be of image `a`. A group may have several images, so a text of another
    image is not meant; one whose key names no image may be of any image of its group.
    """
    own: set[str] = set()
    of_groups: set[str] = set()
    for row in [row for row in rows if row.state != ReleaseState.RETIRED][:1]:
        for texts in _texts_beside(row, items, store):
            images: dict[str, list[Item]] = {
                text: [("image", key) for key in image_keys(text)] for text in texts if ("text", text) not in items
            }
            there = stored_items([row], store, {image for named in images.values() for image in named})
            for text, named in images.items():
                image = next((image for image in named if image in there or image in items), None)
                if image is None:
                    of_groups.add(text)
                elif image in items:
                    own.add(text)
    if own:
        _log.warning(
            "kept: %s of the images that go: %s. To delete them too, name their keys; --group GROUP deletes all items "
            "of a group, its other images too",
            *(counted(own, "text"), _shown(sorted(own))),
        )
    if of_groups:
        _log.warning(
            "kept: %s with the group of an image that goes: %s. Their keys name no image, so they may be of any image "
            "of the group. To delete them too, name their keys",
            *(counted(of_groups, "text"), _shown(sorted(of_groups))),
        )


def _texts_beside(row: ReleaseRow, items: Iterable[Item], store: Store) -> Iterator[list[str]]:
    """Yield the keys of the texts in a release that have the group of an image among the items, by pages."""
    from qdrant_client.models import FieldCondition, Filter, MatchAny  # takes a second to import

    images = sorted(point_id(*item) for item in items if item[0] == "image")
    for start in range(0, len(images), RETRIEVED):
        records = store.retrieve(row.physical_name, images[start : start + RETRIEVED])
        groups = MatchAny(any=sorted({str(record.payload.get("group")) for record in records}))
        # One condition alone, for strict mode may allow no more: images of these groups are read, and left out.
        of_groups = Filter(must=[FieldCondition(key="group", match=groups)])
        for page in store.scroll(row.physical_name, filter=of_groups) if records else ():
            yield [item[1] for item in map(item_of, page) if item is not None and item[0] == "text"]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + ", ..." * (len(names) > EXAMPLES)
