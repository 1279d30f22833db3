"""Encodes as tests run them: encoders that count, runs that keep their rejects, sets as dictionaries and bytes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from alignment.modality import Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetLock, SetWriter
from alignment.vectors import FloatArray
from connector.corpora.formats import open_corpus
from connector.corpora.items import Corpus
from connector.encoding.encode import encode
from connector.encoding.encoders import Encoder
from connector.provenance.runs import Run
from connector.rejects import Reject
from tests.support.fakes import FakeImageEncoder, FakeTextEncoder

BATCH, SHARD = 4, 10
Encoders = Mapping[Modality, Encoder]


class CountingImages(FakeImageEncoder):
    """Counts what it embeds."""

    def __init__(self, name: str = "small") -> None:
        super().__init__(name)
        self.batches: list[int] = []

    def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        self.batches.append(len(prepared))
        return super().embed(modality, prepared)


class CountingTexts(FakeTextEncoder):
    """Counts what it embeds."""

    def __init__(self, name: str = "small") -> None:
        super().__init__(name)
        self.batches: list[int] = []

    def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        self.batches.append(len(prepared))
        return super().embed(modality, prepared)


class RecordingRun(Run):
    """A run without a database that keeps its rejects."""

    def __init__(self) -> None:
        super().__init__(1)
        self.refused: list[Reject] = []

    @override
    def reject(self, refused: Reject) -> None:
        self.refused.append(refused)
        super().reject(refused)


def encode_with(
    corpus: Corpus | Path, path: Path, encoders: Encoders, *, lock: SetLock | None = None, **options: Any
) -> RecordingRun:
    read = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    run = RecordingRun()
    cards = {modality: encoder.card for modality, encoder in encoders.items()}
    with SetWriter(path, corpus="corpus", encoders=cards, lock=lock) as writer:
        encode(read, writer, encoders, run, **{"batch_items": BATCH, "shard_rows": SHARD, **options})
    return run


def stored(path: Path, modality: Modality) -> dict[str, tuple[str, str, Any, list[float]]]:
    """The rows of a set by key: group, content hash, payload, vector. A key that occurs twice is an error."""
    rows = EmbeddingSet.open(path).load(modality)
    assert len(set(rows.keys)) == len(rows)
    payloads = map(json.loads, rows.payloads)
    columns = zip(rows.keys, rows.groups, rows.content_sha256, payloads, rows.vectors.tolist(), strict=True)
    return {key: (group, sha, payload, vector) for key, group, sha, payload, vector in columns}


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
