"""Peak memory of encode and push with a hundred times the items.

The embedded engine keeps its collections in this process: ids and payload indexes in memory, vectors in mapped files.
So push is measured twice: modalign alone, with a store that discards, and together with the engine, with ten times the
items.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alignment.modality import Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetWriter
from bench.corpus import DIM, ENCODERS, Captions, alignment
from bench.figure import Figure
from connector.encoding.encode import encode
from connector.encoding.encoders import Encoder
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.push.session import push
from connector.requests import PushRequest
from connector.stores.edge import EdgeStore
from connector.stores.points import Points

# What both sides of a figure are asked.
ASKED = "Both sides are modalign: the same work with another number of items, each in a process of its own."

SMALL = 10_000
LARGE = {"encode": 1_000_000, "push": 1_000_000, "push into the embedded engine": 100_000}


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

    def count(self, name: str, *, filter: Any = None, consistent: bool = False) -> int:
        return self.points


def measure(what: str, count: int, directory: Path) -> float:
    """Run `what` over `count` items; return this process's peak memory in MiB. What is pushed was encoded before."""
    place = directory / what
    place.mkdir()
    url = f"sqlite:///{place / 'modalign.db'}"
    upgrade(url)
    with Provenance.open(url) as provenance, provenance.runs.start("bench", {}) as run:
        if what == "encode":
            encoder = BenchEncoder("text", torch.device("cpu"))
            encoder.dim, encoder.fingerprint = DIM, "1" * 64
            with SetWriter(directory / "set", corpus="bench", encoders={"text": ENCODERS["text"]}) as writer:
                encode(Captions(directory, count), writer, {"text": encoder}, run)
        else:
            embedding_set = EmbeddingSet.open(directory / "set")
            aligned = alignment()
            aligned.save(place / "alignment")
            kind = DiscardingStore if what == "push" else EdgeStore
            with kind(place / "store") as store:
                push(
                    embedding_set,
                    aligned,
                    # The graph is the engine's memory, not ours.
                    PushRequest(set="set", into="bench", alignment="bench", layout={"indexing_threshold": 10_000_000}),
                    set_id=provenance.artifacts.record_set(embedding_set),
                    alignment_id=provenance.artifacts.record_alignment("bench", place / "alignment", aligned),
                    store=store,
                    provenance=provenance,
                    run=run,
                )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def figures() -> list[Figure]:
    """Measure each size in a process of its own."""
    peaks = {}
    for count in sorted({SMALL, *LARGE.values()}):
        with tempfile.TemporaryDirectory() as name:
            for what, large in LARGE.items():
                if what == "encode" or count in (SMALL, large):
                    peaks[what, count] = _in_child(what, count, name)
    found = []
    for what, large in LARGE.items():
        small_peak, large_peak = peaks[what, SMALL], peaks[what, large]
        title = (
            f"{what}, peak memory with {large:,} items / with {SMALL:,} ({large_peak:.0f} MiB, {small_peak:.0f} MiB)"
        )
        found.append(Figure(title, large_peak / small_peak, 1.1, at_most=True))
    return found


def _in_child(what: str, count: int, directory: str) -> float:
    """Measure in a new process. This one must stay small: a child's peak starts at its parent's size."""
    command = [sys.executable, "-m", "bench.memory", what, str(count), directory]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    print(measure(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
