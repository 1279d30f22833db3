"""Ingest: how well reading, encoding and writing overlap, what the ledger costs, what a kill costs, and 50 of them.

The encoder multiplies matrices for as long as it is told to, without the interpreter's lock, as real models do.
"""

import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from alignment.metrics import Cosine
from alignment.modality import MODALITIES, Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetWriter
from bench.corpus import DIM, ENCODERS, Captions, alignment
from bench.figure import Figure
from connector.encoding.encode import SHARD_ROWS, encode
from connector.encoding.encoders import Encoder
from connector.provenance.database import upgrade
from connector.provenance.ledger import Ledger
from connector.provenance.recorder import Provenance
from connector.push.batches import FLUSH_POINTS
from connector.push.ingest import Ingest
from connector.push.session import push
from connector.stores.edge import EdgeStore

# What both sides of a figure are asked.
ASKED = "Every figure compares modalign with itself: the same corpus, encoder and batches on both sides."

ITEMS = 20_000
KILLS, KILLED_ITEMS, SEED = 50, 8_000, 20240229
RESUMED, KILL_AT = 40_000, 0.9  # of the items
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
            set_id=provenance.artifacts.record_set(embedding_set),
            alignment_id=provenance.artifacts.record_alignment("bench", directory / "alignment", aligned),
            collection="bench",
            metrics=[Cosine()],
            store=store,
            provenance=provenance,
            run=run,
            indexing_threshold=NO_GRAPH,
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
        Ingest(
            Captions(directory, items),
            directory / "set",
            {"text": WorkingEncoder.of(item_seconds)},
            aligned,
            provenance.artifacts.record_alignment("bench", directory / "alignment", aligned),
            "bench",
            [Cosine()],
            store,
            provenance,
            run,
            {"indexing_threshold": NO_GRAPH},
        ).whole()
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


def held(directory: Path) -> tuple[Any, ...]:
    """Everything that an ingest leaves: set, points, ledger, release, alias."""
    card = EmbeddingSet.open(directory / "set").card
    with opened(directory) as provenance, EdgeStore(directory / "store") as store:
        (row,) = provenance.releases.find()
        points = {
            (modality, record.id, None if record.vector is None else record.vector.tobytes())
            for modality in MODALITIES
            for page in store.scroll(row.physical_name, vector_name=modality)
            for record in page
        }
        (found,) = provenance.ledger.sets_in([row.id])
        lines = provenance.ledger.entries(row.id, found.id)
        return card.fingerprint, card.counts, points, lines, row.state, row.points, store.aliases()


def start(directory: Path, items: int, item_seconds: float) -> "subprocess.Popen[bytes]":
    """Ingest in a process of its own."""
    command = [sys.executable, "-m", "bench.ingest", str(directory), str(items), str(item_seconds)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kills() -> Figure:
    """Share of 50 SIGKILLs at random moments after which a rerun ends as an undisturbed run does."""
    rng, equal = random.Random(SEED), 0
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name, "plain")
        plain.mkdir()
        started = time.perf_counter()
        if start(plain, KILLED_ITEMS, 2e-4).wait():
            raise RuntimeError("an undisturbed ingest failed")
        seconds, expected = time.perf_counter() - started, held(plain)
        for number in range(KILLS):
            with tempfile.TemporaryDirectory() as place:
                process = start(Path(place), KILLED_ITEMS, 2e-4)
                try:
                    process.wait(seconds * (number + rng.random()) / KILLS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                equal += start(Path(place), KILLED_ITEMS, 2e-4).wait() == 0 and held(Path(place)) == expected
    what = f"{KILLS} SIGKILLs at random moments of {seconds:.1f} s (seed {SEED}), share that a rerun mends completely"
    return Figure(what, equal / KILLS, 1.0)


def resume() -> Figure:
    """Time of the run after a kill at 90% of the items against a whole run, start-up of the process left out."""
    item_seconds = 1e-3
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        whole = ingested(Path(one), RESUMED, item_seconds)
        process = start(Path(other), RESUMED, item_seconds)
        shard = Path(other, "set", f"text-{math.ceil(RESUMED * KILL_AT / SHARD_ROWS) - 1:06d}.parquet")
        while not shard.exists() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        again = ingested(Path(other), RESUMED, item_seconds)
    detail = f"{again:.1f} s, {whole:.1f} s"
    what = f"ingest {RESUMED:,} items again after a kill at {KILL_AT:.0%}, time / a whole run ({detail})"
    return Figure(what, again / whole, 0.15, at_most=True)


def figures() -> Iterator[Figure]:
    """Measure."""
    # 2,000 items a second is a small model on a good GPU
    yield overlap("encoder slower", 5e-4)
    yield overlap("encoder as fast as the engine", 1e-4)
    yield ledger()
    yield resume()
    yield kills()


if __name__ == "__main__":
    ingested(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
