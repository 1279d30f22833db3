"""What of a shard has to be written, as points of each release: everything that needs neither a store nor SQL.

A thread can prepare shards while another one writes: reading, hashing and projecting mostly work without the
interpreter's lock.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.modality import Modality
from alignment.sets.rows import Rows
from alignment.sets.shards import shard_batches
from connector.provenance.ledger import BatchKey
from connector.push.release_writer import ReleaseWriter
from connector.releases.caption_payload import release_rows
from connector.releases.points import Projected, lowered, project
from connector.releases.release import Release
from connector.stores.layout import PayloadKind
from connector.stores.points import Points


@dataclass(frozen=True, slots=True)
class ReleaseBatch:
    """A batch of rows as one release stores it.

    Attributes:
        writer: of the release.
        digest: of the rows as the release carries them, for the ledger.
        projected: the rows that can be stored, and why others cannot.
        points: a point for each of them.
    """

    writer: ReleaseWriter
    digest: str
    projected: Projected
    points: Points


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """A batch of rows of a shard with what is to be written of it.

    Attributes:
        key: of the batch in the ledger.
        rows: of the embedding set.
        held: how many rows releases hold as they are, over all releases.
        behind: the batch for each release that does not hold it.
        projections: what `behind` shares.
    """

    key: BatchKey
    rows: Rows
    held: int
    behind: Sequence[ReleaseBatch]
    projections: Sequence[Projected]


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """The end of a shard, after its batches: its name and its number of rows."""

    name: str
    rows: int


def prepared_batches(
    shards: Iterable[tuple[Modality, Path]], writers: Sequence[ReleaseWriter], batch_rows: int
) -> Generator[PreparedBatch | ShardEnd, None, None]:
    """Read shards, and project what the ledgers of `writers` do not hold, in batches of `batch_rows` rows.

    Raises:
        VectorError, WeightsError: a release cannot take the vectors; as `lowered`.
    """
    for modality, path in shards:
        end = 0
        for start, rows in shard_batches(path, modality, batch_rows):
            yield _prepared((path.name, start), rows, writers)
            end = start + len(rows)
        yield ShardEnd(path.name, end)


def _prepared(key: BatchKey, rows: Rows, writers: Sequence[ReleaseWriter]) -> PreparedBatch:
    digests: dict[bool, str] = {}  # by whether images carry captions
    projections: dict[tuple[int, bool, frozenset[tuple[str, PayloadKind]]], Projected] = {}
    held = 0
    behind = []
    for writer in writers:
        release = writer.release
        if (captions := release.caption_payload) not in digests:
            digests[captions] = release_rows(release, rows).digest()
        # A batch with refused rows is never entered whole: its rows are refused again on every run.
        if writer.holds(key, (digests[captions], len(rows))):
            held += len(rows)
            continue
        if (shared := _shared(release)) not in projections:
            projections[shared] = project(release.alignment, release_rows(release, rows), release.indexes)
        projected = projections[shared]
        if writer.holds(key, (digests[captions], len(projected.rows))):
            held += len(projected.rows)
        else:
            behind.append(ReleaseBatch(writer, digests[captions], projected, lowered(release, projected)))
    return PreparedBatch(key, rows, held, behind, list(projections.values()))


def _shared(release: Release) -> tuple[int, bool, frozenset[tuple[str, PayloadKind]]]:
    """Return what releases have in common that rows are projected for once."""
    return release.row.alignment_id, release.caption_payload, frozenset(release.indexes.items())
