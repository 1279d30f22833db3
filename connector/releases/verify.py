"""Verify a release: its exact count, and a sample of its points, against its embedding sets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.modality import MODALITIES
from alignment.plurals import counted
from alignment.sets.cards import SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.shards import read_shard
from connector.errors import MismatchError
from connector.provenance.ledger import BATCH_POINTS, BatchKey, LedgerEntry
from connector.provenance.recorder import Provenance
from connector.releases.caption_payload import release_rows
from connector.releases.point_comparison import compare_points
from connector.releases.release import Release
from connector.releases.tombstones import open_set
from connector.stores.contract import Store

EXAMPLES = 5  # keys that an error names
# The sample, of each modality of a set: some rows of each batch of a few shards.
SHARDS, ROWS = 16, 64


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """How much a verification compared, all of it equal, and what it could not compare.

    Attributes:
        points: number of points read back.
        outdated: by embedding set, how many of the sampled batches differ from what was pushed, and how many were
            sampled; without the sets that have none.
        unfinished: embedding sets that are being encoded, or whose encode was interrupted.
    """

    points: int
    outdated: Mapping[str, tuple[int, int]]
    unfinished: Sequence[str] = ()

    @property
    def in_words(self) -> list[str]:
        """What could not be compared, a sentence for each set."""
        unfinished = [
            f"Embedding set {name} is being encoded, or its encode was interrupted: its points were not compared."
            for name in self.unfinished
        ]
        return unfinished + [
            f"Embedding set {name} has changed since it was pushed, in {outdated:,} of {sampled:,} sampled batches. "
            "Points of changed rows were not compared, and queries from these rows ask for what the collection does "
            "not hold. Push the set again."
            for name, (outdated, sampled) in self.outdated.items()
        ]


def verify(release: Release, store: Store, provenance: Provenance, *, seed: int, counts: bool = True) -> VerifyReport:
    """Check that a release is complete and holds what it should, on all replicas that can be asked.

    Its exact count equals the ledger's, and the vectors and payloads of a sample drawn with `seed` equal what follows
    from the embedding sets now. Rows that changed since their set was pushed say nothing of the release: in batches
    that the ledger does not record as they are, points that are missing or have another payload are only counted.

    Args:
        counts: compare the counts. They differ for moments while another process writes.

    Raises:
        MismatchError: a count, a vector or a payload differs, or replicas of a shard differ or are lost.
        EmbeddingSetError: an embedding set that was pushed into the release is not there.
    """
    if counts:
        check_replicas(release, store)
    recorded, held = provenance.ledger.points(release.row.id), store.count(release.name, consistent=True)
    if counts and held != recorded:
        raise MismatchError(
            f"collection {release.name} holds {counted(held, 'point')}, the ledger says {recorded:,}; run `modalign "
            f"verify {release.row.collection}`"
        )
    rng = np.random.default_rng(seed)
    compared, outdated, unfinished = 0, {}, []
    for row in provenance.ledger.sets_in([release.row.id]):
        path = provenance.database.located(row.path)
        if not SetCard.read(path).complete:
            unfinished.append(row.name)
            continue
        changed, sampled = 0, 0
        ledger, embedding_set = provenance.ledger.entries(release.row.id, row.id), open_set(provenance, path)
        for rows, is_recorded in _sampled(release, embedding_set, ledger, rng):
            sampled += 1
            changed += not is_recorded
            if rows is not None:
                compared += _check_rows(release, store, rows, embedding_set, is_recorded)
        if changed:
            outdated[row.name] = (changed, sampled)
    return VerifyReport(compared, outdated, unfinished)


def check_replicas(release: Release, store: Store) -> None:
    """Raise a `MismatchError` if replicas of a shard hold different numbers of points, or one is lost."""
    if differences := store.replica_differences(release.name):
        raise MismatchError(
            f"collection {release.name}: {'; '.join(differences)}: a write that was not confirmed by all of them was "
            f"never repeated; run `modalign repair {release.row.collection}`",
            code="replicas-differ",
        )
    if lost := store.lost_replicas(release.name):
        raise MismatchError(
            f"collection {release.name}: {'; '.join(lost)}; then run `modalign verify {release.row.collection}`",
            code="replica-lost",
        )


def _check_rows(release: Release, store: Store, rows: Rows, embedding_set: EmbeddingSet, is_recorded: bool) -> int:
    """Compare rows with their points; return how many could be compared.

    Raises:
        MismatchError: a point is missing or differs.
    """
    batch = compare_points(release, store, rows, np.ones(len(rows), bool))
    changed = set() if is_recorded else {*batch.missing, *batch.unlike}
    for what, positions in (("lacks", batch.missing), ("holds something else than", batch.differing)):
        if wrong := [position for position in positions if position not in changed]:
            raise MismatchError(
                f"collection {release.name} {what} {', '.join(batch.names(wrong)[:EXAMPLES])} of embedding set "
                f"{embedding_set.path}; run `modalign repair {release.row.collection}`"
            )
    return len(batch.points.ids) - len(changed)


def _sampled(
    release: Release,
    embedding_set: EmbeddingSet,
    ledger: Mapping[BatchKey, LedgerEntry],
    rng: np.random.Generator,
) -> Iterator[tuple[Rows | None, bool]]:
    """Yield some rows of each batch of a few shards, and whether the ledger records that batch as it is.

    Batches that the ledger records and the set no longer has are yielded as None.
    """
    shard_names: set[str] = set()
    met: set[BatchKey] = set()
    for modality in MODALITIES:
        shards = embedding_set.shards(modality)
        shard_names.update(shard.name for shard in shards)
        for number in rng.permutation(len(shards))[:SHARDS]:
            rows = read_shard(shards[number], modality)
            for start in range(0, len(rows), BATCH_POINTS):
                batch = rows.take(range(start, min(start + BATCH_POINTS, len(rows))))
                key = (shards[number].name, start)
                met.add(key)
                is_recorded = key in ledger and ledger[key][0] == release_rows(release, batch).digest()
                yield batch.take(np.sort(rng.permutation(len(batch))[:ROWS]).tolist()), is_recorded
    read = {shard for shard, _ in met}
    for key in ledger:
        if key not in met and (key[0] in read or key[0] not in shard_names):
            yield None, False
