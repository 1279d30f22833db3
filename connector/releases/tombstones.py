"""Tombstones: delete from a release the points of rows that left an embedding set."""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from alignment.errors import EmbeddingSetError
from alignment.modality import MODALITIES
from alignment.object_storage import is_remote
from alignment.plurals import counted
from alignment.sets.cards import SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.shards import shard_paths, shard_rows
from alignment.sets.writer import SetWriter
from connector.errors import StoreError
from connector.provenance.ledger import Tombstone
from connector.provenance.recorder import Provenance
from connector.provenance.tables import ReleaseRow
from connector.releases.points import point_id
from connector.stores.contract import Store

TOMBSTONES_AT_ONCE = 1024


def apply_tombstones(provenance: Provenance, store: Store, row: ReleaseRow, set_id: int, run_id: int) -> None:
    """Count the points of rows that left an embedding set out of a release's ledger, then delete them.

    Raises:
        StoreError: a deletion was acknowledged and not done. The tombstones stay.
    """
    while tombstones := provenance.ledger.tombstones(row.id, set_id, TOMBSTONES_AT_ONCE):
        uncounted = {number: tombstone for number, tombstone in tombstones.items() if not tombstone.counted}
        ids = _ids(tombstones.values())
        if uncounted:
            to_count = set(_ids(uncounted.values())) - set(_ids(t for t in tombstones.values() if t.counted))
            present = len(store.retrieve(row.physical_name, sorted(to_count))) if to_count else 0
            provenance.ledger.count_out(row.id, set_id, run_id, uncounted, present)
        store.delete(row.physical_name, ids)
        store.flush(row.physical_name)
        if left := store.retrieve(row.physical_name, ids):
            raise StoreError(
                f"collection {row.physical_name} acknowledged the deletion of {counted(ids, 'point')} and still "
                f"holds {len(left):,} of them; run the same command again"
            )
        provenance.ledger.remove_tombstones(tombstones)


def _ids(tombstones: Iterable[Tombstone]) -> list[str]:
    return sorted({point_id(tombstone.modality, tombstone.key) for tombstone in tombstones})


def open_set(provenance: Provenance, path: Path) -> EmbeddingSet:
    """Open an embedding set; first count it again if a deletion was killed before it did.

    Raises:
        EmbeddingSetError: as `EmbeddingSet.open`, also if more rows are gone than deletions have taken.
    """
    try:
        return EmbeddingSet.open(path)
    except EmbeddingSetError:
        card = SetCard.read(path)
        if not card.complete:
            raise
        deleted = provenance.ledger.deleted_from(path)
        for modality in MODALITIES:
            encoder = card.encoders.get(modality)
            rows = sum(shard_rows(shard, encoder.dim if encoder else 0) for shard in shard_paths(path, modality))
            if not 0 <= card.counts.get(modality, 0) - rows <= deleted[modality]:
                raise
    # In object storage two processes may count at once: both write the same card.
    lock = nullcontext(lambda: None) if is_remote(path) else None
    with SetWriter(path, corpus=card.corpus, encoders=card.encoders, dtype=card.dtype, lock=lock) as writer:
        writer.finish()
    return EmbeddingSet.open(path)
