"""Ingest: how well reading, encoding and writing overlap, and what the ledger costs.

The encoder multiplies matrices for as long as it is told to, without the interpreter's lock, as real models do.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from alignment.metrics import Cosine
from alignment.modality import Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetWriter
from bench.corpus import DIM, ENCODERS, Captions, alignment
from bench.figure import Figure
from connector.encoding.encode import encode
from connector.encoding.encoders import Encoder
from connector.provenance.database import upgrade
from connector.provenance.ledger import Ledger
from connector.provenance.recorder import Provenance
from connector.push.batches import FLUSH_POINTS
from connector.push.ingest import Ingest
from connector.push.session import push
from connector.requests import IngestRequest, PushRequest
from connector.stores.edge import EdgeStore

# What both sides of a figure are asked.
ASKED = "Every figure compares modalign with itself: the same corpus, encoder and batches on both sides."

ITEMS = 20_000
NO_GRAPH = 10_000_000  # kB: a graph is the engine's work, and comes after everything was written


class WorkingEncoder(Encoder):
    """Vectors that follow from the text, after multiplying matrices of a size that takes `ITEM_SECONDS` an item."""

    scheme = "bench"
    modalities = ("text",)
    item_seconds = 0.0

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        ends = time.perf_counter() + self.item_seconds * len(prepared)
        while time.perf_counter() < ends:
            self._square @ self._square
        numbers = torch.tensor([[int(text.split()[-1])] for text in prepared], dtype=torch.float32)
        return torch.sin(numbers * torch.arange(1, DIM + 1) * 0.37) + 1.01

    @classmethod
    def of(cls, item_seconds: float) -> "WorkingEncoder":
        made = cls("text", torch.device("cpu"))
        made.dim, made.fingerprint, made.item_seconds = DIM, ENCODERS["text"].fingerprint, item_seconds
        made._square = torch.rand(256, 256)
        return made

    _square: torch.Tensor


@contextmanager
def opened(directory: Path) -> Iterator[Provenance]:
    """The database of a home, with the alignment of the benchmarks beside it."""
    url = f"sqlite:///{directory / 'modalign.db'}"
    upgrade(url)
    if not (directory / "alignment").exists():
        alignment().save(directory / "alignment")
    with Provenance.open(url, home=directory) as provenance:
        yield provenance


def encoded(directory: Path, items: int, item_seconds: float) -> float:
    """Seconds to encode alone."""
    with opened(directory) as provenance, provenance.runs.start("bench", {}) as run:
        started = time.perf_counter()
        with SetWriter(directory / "set", corpus="bench", encoders={"text": ENCODERS["text"]}) as writer:
            encode(Captions(directory, items), writer, {"text": WorkingEncoder.of(item_seconds)}, run)
        return time.perf_counter() - started


def pushed(directory: Path) -> float:
    """Seconds to push alone what was encoded."""
    embedding_set, aligned = EmbeddingSet.open(directory / "set"), alignment()
    with (
        opened(directory) as provenance,
        EdgeStore(directory / "store") as store,
        provenance.runs.start("bench", {}) as run,
    ):
        started = time.perf_counter()
        push(
            embedding_set,
            aligned,
            PushRequest(set="set", into="bench", alignment="bench", layout={"indexing_threshold": NO_GRAPH}),
            set_id=provenance.artifacts.record_set(embedding_set),
            alignment_id=provenance.artifacts.record_alignment("bench", directory / "alignment", aligned),
            store=store,
            provenance=provenance,
            run=run,
        )
        return time.perf_counter() - started


def ingested(directory: Path, items: int, item_seconds: float) -> float:
    """Seconds to ingest."""
    aligned = alignment()
    with (
        opened(directory) as provenance,
        EdgeStore(directory / "store") as store,
        provenance.runs.start("bench", {}) as run,
    ):
        started = time.perf_counter()
        captions = Captions(directory, items)
        layout = {"indexing_threshold": NO_GRAPH}
        Ingest(
            IngestRequest(corpus=captions.path, into="bench", alignment="bench", layout=layout),
            captions,
            directory / "set",
            {"text": WorkingEncoder.of(item_seconds)},
            aligned,
            provenance.artifacts.record_alignment("bench", directory / "alignment", aligned),
            [Cosine()],
            store,
            provenance,
            run,
        ).execute()
        return time.perf_counter() - started


def overlap(name: str, item_seconds: float) -> Figure:
    """Wall time of ingest against the slower of encode and push alone."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        alone = encoded(Path(one), ITEMS, item_seconds), pushed(Path(one))
        together = ingested(Path(other), ITEMS, item_seconds)
    detail = f"{together:.1f} s; encode {alone[0]:.1f} s, push {alone[1]:.1f} s"
    what = f"ingest {ITEMS:,} items, {name}, wall time / the slower of encode and push alone ({detail})"
    return Figure(what, together / max(alone), 1.15, at_most=True)


def ledger() -> Figure:
    """Share of a push that is spent in the ledger: reading it, writing it, and the flush before."""
    spent = 0.0

    def timed(method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal spent
            started = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                spent += time.perf_counter() - started

        return call

    names = ("write", "entries", "points", "remove", "tombstones")
    plain = {name: getattr(Ledger, name) for name in names}
    with tempfile.TemporaryDirectory() as directory:
        encoded(Path(directory), ITEMS, 0.0)
        try:
            for name, method in plain.items():
                setattr(Ledger, name, timed(method))
            seconds = pushed(Path(directory))
        finally:
            for name, method in plain.items():
                setattr(Ledger, name, method)
    detail = f"{spent:.2f} of {seconds:.1f} s, a commit each {FLUSH_POINTS:,} points"
    what = f"push {ITEMS:,} items, time in the ledger / all ({detail})"
    return Figure(what, spent / seconds, 0.1, at_most=True)


def figures() -> Iterator[Figure]:
    """Measure."""
    # 2,000 items a second is a small model on a good GPU
    yield overlap("encoder slower", 5e-4)
    yield overlap("encoder as fast as the engine", 1e-4)
    yield ledger()


if __name__ == "__main__":
    ingested(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
