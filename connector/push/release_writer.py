"""The state of one release while a push writes into it."""

from dataclasses import dataclass, field

from connector.provenance.ledger import BatchKey, LedgerEntry
from connector.releases.release import Release
from connector.stores.points import Points


@dataclass(slots=True)
class ReleaseWriter:
    """The state of one release while a push writes into it.

    Attributes:
        new: this push made both its row and its collection.
        requested: the push is for this release. The collection's other releases only receive the same rows.
        ledger: what SQL records as written, by batch.
        rewrite: the collection holds fewer points than SQL records: look at every batch, whatever the ledger says.
        pending: what is written and not flushed yet.
        replacing: points of pending batches that may have replaced others, to be read back; some without vectors.
        met: batches that were looked at.
        lost: batches of the ledger that the embedding set has no rows for any more.
        begun: SQL knows that this set is being written into the release.
        fresh: it was never written into it before, so that no point is replaced.
    """

    release: Release
    new: bool
    requested: bool = True
    ledger: dict[BatchKey, LedgerEntry] = field(default_factory=dict)
    rewrite: bool = False
    pending: dict[BatchKey, LedgerEntry] = field(default_factory=dict)
    replacing: list[Points] = field(default_factory=list)
    met: set[BatchKey] = field(default_factory=set)
    lost: set[BatchKey] = field(default_factory=set)
    begun: bool = False
    fresh: bool = False

    def holds(self, key: BatchKey, entry: LedgerEntry) -> bool:
        """Whether the release holds a batch as it is."""
        return not self.rewrite and self.ledger.get(key) == entry
