"""Peak memory of encode and push with ten times the items.

The embedded engine keeps its collections in this process: ids and payload indexes in memory, vectors in mapped files.
So push is measured twice: modalign alone, with a store that discards, and together with the engine.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignment.embeddings import EmbeddingSet, Modality, SetWriter
from alignment.metrics import Cosine
from bench.corpus import DIM, ENCODERS, Captions, alignment, write_set
from bench.figure import Figure
from connector.edge_store import EdgeStore
from connector.encode import encode
from connector.encoders import Encoder
from connector.provenance import Provenance, upgrade
from connector.push import push
from connector.store import Points

SMALL, LARGE = 10_000, 100_000


class BenchEncoder(Encoder):
    """Vectors that cost nothing, so that memory and time are modalign's own."""

    scheme = "bench"
    modalities = ("text",)

    def forward(self, modality: Modality, prepared: Sequence[Any]) -> torch.Tensor:
        return torch.rand(len(prepared), DIM) + 0.1


class DiscardingStore(EdgeStore):
    """A store that counts points and forgets them."""

    points = 0

    def _upsert(self, name: str, points: Points) -> None:
        self.points += len(points.ids)

    def count(self, name: str, *, filter: Any = None) -> int:
        return self.points


def measure(what: str, count: int, directory: Path) -> float:
    """Run `what` over `count` items; return this process's peak memory in MiB."""
    if what == "write":
        write_set(directory / "set", count)
        return 0.0
    url = f"sqlite:///{directory / 'modalign.db'}"
    upgrade(url)
    with Provenance.open(url) as provenance, provenance.run("bench", {}) as run:
        if what == "encode":
            encoder = BenchEncoder("text", torch.device("cpu"))
            encoder.dim, encoder.fingerprint = DIM, "1" * 64
            with SetWriter(directory / "set", corpus="bench", encoders={"text": ENCODERS["text"]}) as writer:
                encode(Captions(directory, count), writer, {"text": encoder}, run)
        else:
            embedding_set = EmbeddingSet.open(directory / "set")
            aligned = alignment()
            aligned.save(directory / "alignment")
            kind = DiscardingStore if what == "push" else EdgeStore
            with kind(directory / "store") as store:
                push(
                    embedding_set,
                    aligned,
                    set_id=provenance.record_set(embedding_set),
                    alignment_id=provenance.record_alignment("bench", directory / "alignment", aligned),
                    collection="bench",
                    metrics=[Cosine()],
                    store=store,
                    provenance=provenance,
                    run=run,
                    indexing_threshold=10_000_000,  # the graph is the engine's memory, not ours
                )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def figures() -> list[Figure]:
    """Measure each size in a process of its own."""
    found = []
    for what in ("encode", "push", "push into the embedded engine"):
        peaks = []
        for count in (SMALL, LARGE):
            with tempfile.TemporaryDirectory() as name:
                if what != "encode":
                    _in_child("write", count, name)
                peaks.append(_in_child(what, count, name))
        detail = f"{peaks[0]:.0f} MiB, {peaks[1]:.0f} MiB"
        ratio = float(np.divide(peaks[1], peaks[0]))
        title = f"{what}, peak memory with {LARGE:,} items / with {SMALL:,} ({detail})"
        found.append(Figure(title, ratio, 1.1, at_most=True))
    return found


def _in_child(what: str, count: int, directory: str) -> float:
    """Measure in a new process. This one must stay small: a child's peak starts at its parent's size."""
    command = [sys.executable, "-m", "bench.memory", what, str(count), directory]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    print(measure(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
