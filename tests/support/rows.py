"""Rows of a provenance database, and the artifacts that they describe, with plausible values."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select

from alignment.modality import Modality
from alignment.model.alignment import Alignment
from alignment.model.card import AlignmentCard
from alignment.model.projections import Projection
from alignment.sets.cards import EncoderCard, SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from connector.provenance.recorder import Provenance
from connector.provenance.tables import (
    Base,
    ReleaseRow,
)

IMAGE = EncoderCard("fake-image:1", hashlib.sha256(b"image").hexdigest(), 4)
TEXT = EncoderCard("fake-text:1", hashlib.sha256(b"text").hexdigest(), 3)
CARDS: dict[Modality, EncoderCard] = {"image": IMAGE, "text": TEXT}
# Names that file systems allow and databases refuse: bytes that are no UTF-8, and NUL.
ODD, ESCAPED = "caf\udce9\0.png", "caf\\udce9\\0.png"


def embedding_set(path: Path, **changes: Any) -> EmbeddingSet:
    card = SetCard(path.name, "corpus.jsonl", dict(CARDS), counts={"image": 5, "text": 9}, complete=True)
    return EmbeddingSet(path, replace(card, **{"fingerprint": "1" * 64, **changes}))


def alignment(seed: int = 0, **changes: Any) -> Alignment:
    rng = np.random.default_rng(seed)
    card = AlignmentCard(
        encoders=dict(CARDS),
        method="ridge",
        hyperparameters={"alpha": 0.1},
        metrics=["cosine"],
        sets=["1" * 64],
        pairs=100,
        hold_out=HoldOut(0.25, 3),
        held_out_recall={"cosine": {"text->image": {"1": 0.5}}},
        candidates=[{"alpha": 0.1, "score": 0.4}],
    )
    weights: dict[Modality, Projection] = {
        modality: Projection(encoder.dim, None, rng.standard_normal((encoder.dim, 2)).astype(np.float32))
        for modality, encoder in CARDS.items()
    }
    return Alignment(replace(card, **changes), weights)


def release(
    provenance: Provenance, physical_name: str = "c.cosine.1", *, store: str = "edge:qdrant", **changes: Any
) -> ReleaseRow:
    alignment_id = provenance.artifacts.record_alignment("a", Path("alignments/a"), alignment())
    values: dict[str, Any] = {
        "store_id": provenance.stores.record(store),
        "collection": "c",
        "metric": "cosine",
        "physical_name": physical_name,
        "alignment_id": alignment_id,
        "distance": "Cosine",
        "dim": 2,
        "lowering_version": 1,
        "settings": {"m": 16},
        "state": "building",
        "points": 0,
        "created_at": datetime(2024, 5, 1, tzinfo=UTC),
    }
    return provenance.releases.save(ReleaseRow(**{**values, **changes}))


def count(provenance: Provenance, table: type[Base]) -> int:
    with provenance.database.session() as session:
        return len(session.scalars(select(table)).all())
