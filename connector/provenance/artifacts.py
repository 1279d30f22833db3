"""Embedding sets, alignments and their encoders in SQL."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from alignment.modality import Modality
from alignment.sets.cards import EncoderCard
from connector.errors import MismatchError
from connector.provenance.database import Database
from connector.provenance.tables import AlignmentRow, EmbeddingSetRow, EncoderRow, now

if TYPE_CHECKING:
    from alignment.model.alignment import Alignment
    from alignment.sets.embedding_set import EmbeddingSet


class Artifacts:
    """The embedding sets and alignments in SQL, each with the encoders that made it."""

    def __init__(self, database: Database):
        self._database = database

    def record_set(self, embedding_set: "EmbeddingSet") -> int:
        """Record an embedding set as it stands now; return its id. A path has one row, which is updated."""
        card, path = embedding_set.card, self._database.stored(embedding_set.path.absolute())
        with self._database.write_session(EncoderRow, EmbeddingSetRow) as session:
            encoders = {m: _encoder_id(session, m, c) for m, c in card.encoders.items()}
            row = session.scalars(select(EmbeddingSetRow).where(EmbeddingSetRow.path == path)).one_or_none()
            row = row or EmbeddingSetRow(path=path)
            if row.fingerprint != card.fingerprint:
                row.updated_at = now()
            row.name, row.corpus, row.fingerprint = card.name, card.corpus, card.fingerprint
            row.image_encoder_id, row.text_encoder_id = encoders.get("image"), encoders.get("text")
            row.image_count, row.text_count = card.counts.get("image", 0), card.counts.get("text", 0)
            session.add(row)
        return row.id

    def record_alignment(self, name: str, path: Path, alignment: "Alignment") -> int:
        """Record an alignment; return its id. A fingerprint has one row, of which name and path are updated.

        Raises:
            MismatchError: SQL links the recorded alignment to other encoders.
        """
        with self._database.write_session(EncoderRow, AlignmentRow) as session:
            row = session.scalars(
                select(AlignmentRow).where(AlignmentRow.fingerprint == alignment.fingerprint)
            ).one_or_none()
            if row is not None:
                self.check_encoders(row, alignment)
            encoders = {m: _encoder_id(session, m, c) for m, c in alignment.card.encoders.items()}
            row = row or AlignmentRow(fingerprint=alignment.fingerprint, created_at=now())
            row.name, row.path = name, self._database.stored(path.absolute())
            row.method, row.dim = alignment.card.method, alignment.dim
            row.image_encoder_id, row.text_encoder_id = encoders["image"], encoders["text"]
            row.card = asdict(alignment.card)
            session.add(row)
        return row.id

    def check_encoders(self, recorded: AlignmentRow, alignment: "Alignment") -> None:
        """Raise a `MismatchError` that names both sides if SQL links an alignment to other encoders than its card."""
        for modality, encoder in self.encoders(recorded).items():
            in_sql = EncoderCard(encoder.spec, encoder.fingerprint, encoder.dim)
            if in_sql != (in_card := alignment.card.encoders[modality]):
                raise MismatchError(
                    f"SQL recorded alignment {recorded.name} with the {modality} encoder {in_sql}, its card names "
                    f"{in_card}; restore the one that was changed"
                )

    def alignment(self, alignment_id: int) -> AlignmentRow:
        """Return an alignment.

        Raises:
            ProvenanceError: there is none with this id.
        """
        with self._database.session() as session:
            return session.get_one(AlignmentRow, alignment_id)

    def sets(self) -> list[EmbeddingSetRow]:
        """Return all embedding sets, oldest first."""
        with self._database.session() as session:
            return list(session.scalars(select(EmbeddingSetRow).order_by(EmbeddingSetRow.id)))

    def alignments(self) -> list[AlignmentRow]:
        """Return all alignments, oldest first."""
        with self._database.session() as session:
            return list(session.scalars(select(AlignmentRow).order_by(AlignmentRow.id)))

    def encoders(self, made: AlignmentRow | EmbeddingSetRow) -> dict[Modality, EncoderRow]:
        """Return the encoders of an alignment or an embedding set. A set may have one for a single modality."""
        ids: dict[Modality, int | None] = {"image": made.image_encoder_id, "text": made.text_encoder_id}
        with self._database.session() as session:
            return {m: session.get_one(EncoderRow, number) for m, number in ids.items() if number is not None}


def _encoder_id(session: Session, modality: Modality, card: EncoderCard) -> int:
    identity = {"modality": modality, "fingerprint": card.fingerprint, "spec": card.spec}
    row = session.scalars(select(EncoderRow).filter_by(**identity)).one_or_none()
    if row is None:
        row = EncoderRow(**identity, dim=card.dim)
        session.add(row)
        session.flush()
    return row.id
