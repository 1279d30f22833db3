"""How far a release is behind its embedding sets."""

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from alignment.errors import EmbeddingSetError
from alignment.modality import Modality
from alignment.sets.cards import SetCard
from connector.provenance.recorder import Provenance
from connector.provenance.tables import ReleaseRow


class Lag(NamedTuple):
    """Rows of embedding sets that a release does not hold, refused ones among them, and since when at the earliest.

    Attributes:
        unread: why sets are not on this disk, or cannot be read; of these SQL says how many rows they have.
    """

    rows: int
    since: datetime | None
    unread: tuple[str, ...] = ()


def lag_of(provenance: Provenance, row: ReleaseRow) -> Lag:
    """Return how many rows of its embedding sets a release does not hold, by SQL's ledger."""
    behind, since, unread = 0, None, list[str]()
    for embedding_set in provenance.ledger.sets_in([row.id]):
        path = provenance.database.located(embedding_set.path)
        try:
            rows = sum(counts_of(path, SetCard.read(path)).values())
        except EmbeddingSetError as error:  # the set may be on another machine: take what SQL remembers of it
            unread.append(f"embedding set {embedding_set.name}: {error}")
            rows = embedding_set.image_count + embedding_set.text_count
        missing = rows - sum(points for _, points in provenance.ledger.entries(row.id, embedding_set.id).values())
        if missing > 0:
            behind += missing
            since = min(filter(None, (since, embedding_set.updated_at)))
    return Lag(behind, since, tuple(unread))


def counts_of(path: Path, card: SetCard) -> dict[Modality, int]:
    """Count the rows of each modality of the embedding set at `path`, which may be incomplete.

    Raises:
        EmbeddingSetError: a shard of an incomplete set cannot be read.
    """
    if card.complete:
        return card.counts
    from alignment.sets.embedding_set import EmbeddingSet  # loads pyarrow, which only footers of shards need

    return EmbeddingSet(path, card).counts()
