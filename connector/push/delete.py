"""Delete items for good: their rows from the embedding sets, their points from every release that has them.

    1  SQL gets a tombstone for each point that a release has to delete, and marks the ledger of these shards outdated
    2  the rows leave the embedding sets, once all tombstones are there
    3  the points leave the collections
    4  the changed shards are compared with the releases, what differs is written, and the ledgers agree

Each step ends for all releases before the next begins, the releases of the collection that was named first. What keeps
a release of another collection from step 4 is a warning.

After a kill in between, the same command finishes the deletion, and so does the next push of the set. Releases in other
stores, and those that are being built, apply the tombstones when the set is next pushed there.

Rows that were encoded and not pushed yet stay so: a deletion publishes nothing. Deletions and repairs of a store wait
for each other.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alignment.errors import AlignmentError, ModalignError
from alignment.modality import MODALITIES, Modality
from alignment.plurals import counted
from alignment.sets.cards import CARD, SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetWriter
from connector.errors import (
    MismatchError,
    ProvenanceError,
    StoreBusyError,
    StoreError,
    StoreUnavailableError,
)
from connector.provenance.leases import repair_lock, set_lock
from connector.provenance.ledger import OUTDATED, UNPLACED
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import EmbeddingSetRow, ReleaseRow
from connector.push.item_selection import (
    RETRIEVED,
    ItemSelection,
    check_ambiguous,
    items_matching,
    say_texts_that_stay,
    say_unknown,
    stored_items,
)
from connector.push.session import PushSession
from connector.releases.points import Item, point_id
from connector.releases.release import load_release
from connector.releases.rights import check_may_write, present
from connector.releases.store_identity import claim_collection, here, no_release, record_store
from connector.releases.tombstones import apply_tombstones
from connector.states import ReleaseState
from connector.stores.contract import Store

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from qdrant_client.models import Filter


class DeletionPreview(NamedTuple):
    """What a deletion will remove.

    Attributes:
        items: their number.
        sets: names of the embedding sets that hold them.
        collection: that was named.
        others: collections that share embedding sets with it, and lose the items too.
    """

    items: int
    sets: list[str]
    collection: str
    others: list[str]

    def __str__(self) -> str:
        sets, others = ", ".join(self.sets) or "none", ", ".join(self.others)
        shared = f", and from {len(self.others)} more that share its embedding sets: {others}" if others else ""
        items = counted(self.items, "item")
        return f"{items}, from the embedding sets: {sets}; from the collection {self.collection}{shared}"


@dataclass(frozen=True, slots=True)
class Deletion:
    """A deletion from the embedding sets of `collection`, and from every collection that they were pushed into.

    Raises:
        CollectionNotFoundError: there is no release of that collection.
        MismatchError: an embedding set that was pushed into it is not on this disk.
        AccessDeniedError: the key may not write into a release that this would change, or does not show it. Nothing is
            changed.
    """

    collection: str
    store: Store
    provenance: Provenance
    run: Run

    def delete(
        self,
        *,
        keys: Iterable[str] = (),
        groups: Iterable[str] = (),
        filter: "Filter | None" = None,
        modalities: Sequence[Modality] = MODALITIES,
        confirm: Callable[[DeletionPreview], bool] = lambda preview: True,
    ) -> bool:
        """Delete the items with these keys, of these groups, and whose points match a filter, if `confirm` says True.

        Returns False, and deletes nothing, if it does not. It is not asked where there is nothing to delete.

        Raises:
            SettingsError: a key is of an image and of a text of another item.
            FilterError: see `items_matching`.

        Counts in the run `deleted` items, `points_deleted` of all releases, `rows_deleted` of embedding sets, `unknown`
        keys and `unknown_groups`. Warns of these, and of texts that stay although their image goes.
        """
        selection = ItemSelection(list(keys), list(dict.fromkeys(groups)), filter, modalities)
        rows = self._releases()
        sets = self.provenance.ledger.sets_in(row.id for row in rows)
        self._check_present(sets)
        requested = selection.by_keys() | items_matching(selection, self.collection, rows, self.store)
        concerned = self._concerned(rows, sets)
        store_id = record_store(self.provenance, self.store)
        with repair_lock(self.provenance.database, store_id, self.run.id):  # another deletion has the sets
            of_groups = selection.by_groups(self._rows_of(sets))
            requested = requested.union(*of_groups.values())
            items, names = self._items(concerned, sets, requested)
        check_ambiguous(selection, items, concerned, self.store)
        self._say_unknown(
            selection.unknown_keys(items), [group for group, of_group in of_groups.items() if not of_group]
        )
        if "text" in modalities:
            say_texts_that_stay(rows, items, self.store)
        check_may_write(self.store, [row.physical_name for row in concerned])
        others = sorted({row.collection for row in concerned} - {self.collection})
        if items and not confirm(DeletionPreview(len(items), names, self.collection, others)):
            return False
        with repair_lock(self.provenance.database, store_id, self.run.id):
            rows = self._releases()  # another deletion may have ended meanwhile
            sets = self.provenance.ledger.sets_in(row.id for row in rows)
            self._check_present(sets)
            for row in self._concerned(rows, sets):
                claim_collection(self.provenance, self.store, row)
            self._drop_rows(sets, requested)
            concerned = self._concerned(rows, sets)
            self._drop_points(concerned, [point_id(*item) for item in sorted(items)], sets)
            self._write_anew(concerned)
        self.run.counts["deleted"] = len(items)
        return True

    def _items(
        self, rows: Sequence[ReleaseRow], sets: Sequence[EmbeddingSetRow], requested: Collection[Item]
    ) -> tuple[set[Item], list[str]]:
        """Return those of the requested items that a release or a set holds, and the names of these sets."""
        items = stored_items(rows, self.store, requested)
        names = []
        for embedding_set in sets:
            with self._writer(embedding_set) as writer:
                if of_set := {item for *_, of_shard in _shards_with(writer, requested) for item in of_shard.values()}:
                    items |= of_set
                    names.append(embedding_set.name)
        return items, names

    def _rows_of(self, sets: Iterable[EmbeddingSetRow]) -> Iterator[tuple[Modality, str, str]]:
        """Yield modality, key and group of every row."""
        for embedding_set in sets:
            with self._writer(embedding_set) as writer:
                for modality in MODALITIES:
                    for _, identity in writer.identities(modality):
                        keys, groups = (identity.column(name).to_pylist() for name in ("key", "group"))
                        yield from ((modality, key, group) for key, group in zip(keys, groups, strict=True))

    def _say_unknown(self, keys: Sequence[str], groups: Sequence[str]) -> None:
        for name, unknown in (("unknown", keys), ("unknown_groups", groups)):
            if unknown:
                self.run.counts[name] = len(unknown)
        say_unknown(self.collection, key=keys, group=groups)

    def _concerned(self, rows: Sequence[ReleaseRow], sets: Sequence[EmbeddingSetRow]) -> list[ReleaseRow]:
        """Return the releases of the collection, then all others of this store that these sets were pushed into."""
        of_sets = {row.id: row for s in sets for row in self.provenance.ledger.releases_of(s.id) if self._is_here(row)}
        own = {row.id for row in rows}
        return [*rows, *present(self.store, [row for number, row in of_sets.items() if number not in own])]

    def _check_present(self, sets: Sequence[EmbeddingSetRow]) -> None:
        """Refuse to delete while an embedding set is elsewhere: the items would come back with it."""
        if gone := [row for row in sets if not (self._path(row) / CARD).is_file()]:
            raise MismatchError(
                f"embedding set {gone[0].name} of collection {self.collection} is not at {self._path(gone[0])}, and "
                "deleted items would come back with it; bring it here, or run this where it is"
            )

    def _drop_points(self, rows: Sequence[ReleaseRow], ids: Sequence[str], sets: Sequence[EmbeddingSetRow]) -> None:
        """Apply the tombstones of the sets, and delete points that no set has. Counts `points_deleted` in the run.

        Raises:
            StoreError: a collection refused it, or cannot be reached; all others are done.
        """
        failed: StoreError | None = None
        for row in rows:
            try:
                held = self._held(row, ids)
                for embedding_set in sets:
                    apply_tombstones(self.provenance, self.store, row, embedding_set.id, self.run.id)
                for start in range(0, len(ids), RETRIEVED):
                    self.store.delete(row.physical_name, ids[start : start + RETRIEVED])
                self.store.flush(row.physical_name)
                self.run.counts["points_deleted"] += held
            except StoreBusyError:
                raise
            except StoreError as error:
                failed = failed or error
        if failed:
            raise failed

    def _held(self, row: ReleaseRow, ids: Sequence[str]) -> int:
        """Count the points of these that a release holds."""
        parts = (ids[start : start + RETRIEVED] for start in range(0, len(ids), RETRIEVED))
        return sum(len(self.store.retrieve(row.physical_name, part)) for part in parts)

    def _write_anew(self, rows: Sequence[ReleaseRow]) -> None:
        """Bring the ledgers of releases up to date.

        Raises:
            ModalignError: a release of the collection that was named cannot be; all others are.
        """
        failed: ModalignError | None = None
        for row in rows:
            try:
                if row.state != ReleaseState.BUILDING:
                    self._write_outdated(row)
            except (StoreUnavailableError, StoreBusyError, ProvenanceError):
                raise
            except ModalignError as error:
                if row.collection == self.collection:
                    failed = failed or error
                else:
                    _log.warning(
                        "the items are deleted; release %s of collection %s shares their embedding sets and could not "
                        "be verified: %s",
                        *(row.physical_name, row.collection, error),
                    )
        if failed:
            raise failed

    def _releases(self) -> list[ReleaseRow]:
        rows = [row for row in self.provenance.releases.find(collection=self.collection) if self._is_here(row)]
        rows = present(self.store, rows)
        if not rows:
            raise no_release(self.provenance, self.store, self.collection)
        return rows

    def _is_here(self, row: ReleaseRow) -> bool:
        return row.store_id == here(self.provenance, self.store) and row.dropped_at is None

    def _path(self, row: EmbeddingSetRow) -> Path:
        return self.provenance.database.located(row.path)

    def _writer(self, row: EmbeddingSetRow) -> SetWriter:
        path = self._path(row)
        card, lock = SetCard.read(path), set_lock(self.provenance.database, path, self.run.id)
        return SetWriter(path, corpus=card.corpus, encoders=card.encoders, dtype=card.dtype, lock=lock)

    def _drop_rows(self, sets: Sequence[EmbeddingSetRow], requested: Collection[Item]) -> None:
        """Write all tombstones, then drop the rows. All sets are locked before anything is written."""
        with ExitStack() as stack:
            opened = [(row, stack.enter_context(self._writer(row))) for row in sets]
            shards = [
                (row, writer, *of_shard) for row, writer in opened for of_shard in _shards_with(writer, requested)
            ]
            for row, _, modality, shard, items in shards:
                self.provenance.ledger.add_tombstones(row.id, modality, shard.name, [key for _, key in items.values()])
            for _, writer, modality, shard, items in shards:
                writer.drop(shard, modality, set(items))
                self.run.counts["rows_deleted"] += len(items)
            for _, writer in opened:
                if writer.card.complete:  # an encode that was killed completes it when it is run again
                    writer.finish()
                    self.provenance.artifacts.record_set(EmbeddingSet.open(writer.path))

    def _write_outdated(self, row: ReleaseRow) -> None:
        """Write the shards that have lost rows into a release again, so that its ledger agrees with them."""
        sets = self.provenance.ledger.sets_in([row.id])
        outdated = {embedding_set.id: self._outdated(row, embedding_set) for embedding_set in sets}
        if not any(outdated.values()) and row.points == self.provenance.ledger.points(row.id):
            return
        try:
            release = load_release(self.provenance, self.store, row)
        except (AlignmentError, MismatchError) as error:
            if row.state != ReleaseState.RETIRED:
                raise
            _log.warning(
                "release %s (retired) has lost the points, and no rollback returns to it: %s", row.physical_name, error
            )
            return
        push = PushSession.into(release, self.store, self.provenance, self.run)
        complete = [embedding_set for embedding_set in sets if self._is_complete(embedding_set)]
        for set_row in complete:
            embedding_set = EmbeddingSet.open(self._path(set_row))
            writer = push.open(embedding_set.path, set_row.id)
            writer.pass_over_recorded(outdated[set_row.id])
            writer.finish(embedding_set, only=outdated[set_row.id])
        recorded, held = self.provenance.ledger.points(row.id), self.store.count(row.physical_name, consistent=True)
        if held != recorded:  # it was so before
            _log.warning(
                "the items are deleted; collection %s holds %s and the ledger says %s, because something else "
                "changed it: run `modalign verify %s`, and push its embedding sets again or run `modalign repair %s`",
                *(row.physical_name, counted(held, "point"), f"{recorded:,}", row.collection, row.collection),
            )
        elif complete and complete == sets:  # otherwise the push that completes the other sets verifies
            push.verify(EmbeddingSet.open(self._path(complete[-1])), complete[-1].id)

    def _is_complete(self, row: EmbeddingSetRow) -> bool:
        return (self._path(row) / CARD).is_file() and SetCard.read(self._path(row)).complete

    def _outdated(self, row: ReleaseRow, embedding_set: EmbeddingSetRow) -> set[str]:
        ledger = self.provenance.ledger.entries(row.id, embedding_set.id)
        return {key[0] for key, (digest, _) in ledger.items() if digest == OUTDATED and key != UNPLACED}


def _shards_with(writer: SetWriter, requested: Collection[Item]) -> Iterator[tuple[Modality, Path, dict[int, Item]]]:
    """Yield every shard of a set that holds requested items: modality, path, and these items by row number."""
    for modality in MODALITIES:
        for shard, identity in writer.identities(modality):
            keys = identity.column("key").to_pylist()
            if here := {row: (modality, key) for row, key in enumerate(keys) if (modality, key) in requested}:
                yield modality, shard, here
