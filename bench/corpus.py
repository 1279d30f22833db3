"""Synthetic embedding sets, alignments and corpora for the benchmarks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignment.modality import Modality
from alignment.model.alignment import Alignment
from alignment.model.card import AlignmentCard
from alignment.model.projections import Projection
from alignment.sets.cards import EncoderCard
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray
from connector.corpora.items import Corpus, Item
from connector.rejects import Reject

DIM = 256
SHARD = 4096
ENCODERS: dict[Modality, EncoderCard] = {
    "image": EncoderCard("bench:image", "0" * 64, DIM),
    "text": EncoderCard("bench:text", "1" * 64, DIM),
}


def vectors(count: int, seed: int = 0) -> FloatArray:
    """Random vectors (count, DIM) with a decaying spectrum, as embeddings have."""
    scale = 1.0 / np.sqrt(1.0 + np.arange(DIM))
    drawn: FloatArray = (np.random.default_rng(seed).standard_normal((count, DIM)) * scale).astype(np.float32)
    return drawn


def write_set(path: Path, count: int) -> FloatArray:
    """Write an embedding set of `count` images; return their vectors."""
    X = vectors(count)
    with SetWriter(path, corpus="bench", encoders=ENCODERS) as writer:
        for start in range(0, count, SHARD):
            part = X[start : start + SHARD]
            keys = [f"item-{row}" for row in range(start, start + len(part))]
            payloads = [json.dumps({"image": f"/data/{key}.jpg", "language": "en"}) for key in keys]
            writer.append(Rows("image", keys, keys, ["0" * 64] * len(keys), payloads, part))
        writer.finish()
    return X


def card(**changes: Any) -> AlignmentCard:
    """The card of an alignment that nobody fitted."""
    plain = AlignmentCard(
        encoders=ENCODERS,
        method="bench",
        hyperparameters={},
        metrics=["cosine"],
        sets=[],
        pairs=0,
        hold_out=HoldOut(),
        held_out_recall={},
        candidates=[],
    )
    return replace(plain, **changes)


def alignment() -> Alignment:
    """An alignment with a dense projection of each modality."""
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].astype(np.float32)
    projection = Projection(DIM, np.zeros(DIM, np.float32), rotation)
    return Alignment(card(), {"image": projection, "text": projection})


@dataclass(frozen=True, slots=True)
class Captions(Corpus):
    """A corpus of `count` captions that no file holds."""

    count: int = 0

    def __iter__(self) -> Iterator[Item | Reject]:
        for row in range(self.count):
            caption = f"caption number {row}"
            yield Item("text", f"{row}", f"{row}", caption, {"caption": caption}, "bench", row + 1)

    def total(self) -> int:
        return self.count
