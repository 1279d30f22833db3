"""Ingest after a kill: what a rerun costs, and whether it mends what any of fifty kills has left."""

import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from bench.figure import Figure
from bench.ingest import ingested, opened
from connector.encoding.encode import SHARD_ROWS
from connector.stores.edge import EdgeStore

# What both sides of a figure are asked.
ASKED = "Every figure compares modalign with itself: the same corpus, encoder and batches on both sides."

KILLS, KILLED_ITEMS, SEED = 50, 8_000, 20240229
RESUMED, KILL_AT = 40_000, 0.9  # of the items


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
    yield resume()
    yield kills()
