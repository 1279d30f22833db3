"""The ledger: which batches of which set are durable in which release."""

from sqlalchemy import delete
from sqlalchemy.orm import Session

from connector.provenance.tables import BatchRow

OUTDATED = ""  # the digest of a batch that has to be written anew


def _forget(session: Session, release_id: int, set_id: int, places: list[tuple[str, int]]) -> None:
    for shard, start in places:
        session.execute(
            delete(BatchRow).where(
                BatchRow.release_id == release_id,
                BatchRow.embedding_set_id == set_id,
                BatchRow.shard == shard,
                BatchRow.start == start,
            )
        )


BATCH_POINTS = 512
BatchKey = tuple[str, int]
LedgerEntry = tuple[str, int]
