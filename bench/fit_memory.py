"""Peak memory and time of a fit whose vectors stay in their shards, at growing numbers of pairs.

Pairs are drawn and written as an embedding set of float16, 512 and 384 wide: 1.8 GB a million. Each fit runs in a
process of its own with a budget that ends after one candidate, so that what is measured is the passes over the set, and
not how many candidates a method has. `python -m bench.fit_memory SIZE ...` takes other sizes; ten millions need 18 GB
of disk.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from alignment.fitting.closed_forms import LANDMARKS, PAIRS
from alignment.fitting.fit import fit
from alignment.modality import MODALITIES, Modality
from alignment.sets.cards import EncoderCard, SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from bench.figure import Figure

# What both sides of a figure are asked.
ASKED = (
    "CPU seconds. Reading takes every shard's vectors once, by pyarrow. The matrix work is X'X, Y'Y and X'Y of the "
    "training pairs in float64 and the decompositions, or the kernels of the pairs that kcca draws, of as many fits as "
    "the budget leaves: one of a fold, the final one, and one for the seen offset."
)

SIZES = (250_000, 500_000, 1_000_000)
METHODS = ("ridge", "rcca", "kcca")
DIMS: dict[Modality, int] = {"image": 512, "text": 384}
LATENT, NOISE, SHARD, FITTED = 64, 0.5, 1024, 0.75
FITS = 3
MANY, MOST_GIB = 10_000_000, 3.0


def write(path: Path, pairs: int) -> None:
    """Write a set of so many pairs."""
    maps = {m: np.random.default_rng(0).standard_normal((LATENT, dim), np.float32) for m, dim in DIMS.items()}
    cards = {m: EncoderCard(f"bench-{m}", "0" * 64, dim) for m, dim in DIMS.items()}
    with SetWriter(path, corpus="bench", encoders=cards, dtype="float16") as writer:
        for start in range(0, pairs, SHARD):
            rng = np.random.default_rng(start)
            Z = rng.standard_normal((min(SHARD, pairs - start), LATENT), np.float32)
            keys = [f"item-{row:09}" for row in range(start, start + len(Z))]
            hashes = [f"{row:064x}" for row in range(start, start + len(Z))]
            for modality, dim in DIMS.items():
                noise = rng.standard_normal((len(Z), dim), np.float32)
                vectors = Z @ maps[modality] / np.float32(LATENT**0.5) + NOISE * noise
                writer.append(Rows(modality, keys, keys, hashes, ["{}"] * len(keys), vectors.astype(np.float32)))
        writer.finish()


def fitted(made: EmbeddingSet, method: str) -> None:
    """Fit one candidate."""
    fit([made], method=method, budget=1e-6, device="cpu")


def read(made: EmbeddingSet, _method: str) -> None:
    """Read the vectors of every shard."""
    for modality in MODALITIES:
        for shard in made.shards(modality):
            pq.read_table(shard, columns=["vector"])


def matrix_work(made: EmbeddingSet, method: str) -> None:
    """Multiply and decompose what a method needs of so many pairs, without reading any."""
    pairs = int(FITTED * made.card.counts["image"])
    if method == "kcca":
        for _ in range(FITS):
            kernel_work(min(pairs, PAIRS))
        return
    x, y = (torch.randn(8192, dim, dtype=torch.float64) for dim in DIMS.values())
    xx, yy, xy = (torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64) for a, b in ((x, x), (y, y), (x, y)))
    for start in range(0, pairs, len(x)):
        rows = min(len(x), pairs - start)
        xx.addmm_(x[:rows].T, x[:rows])
        yy.addmm_(y[:rows].T, y[:rows])
        xy.addmm_(x[:rows].T, y[:rows])
    for _ in range(FITS):
        torch.linalg.eigh(xx)
        torch.linalg.eigh(yy)
        torch.linalg.svd(xy, full_matrices=False)


def kernel_work(pairs: int) -> None:
    """Kernels with the landmarks twice, once for their mean, their products, and the decompositions of one fit."""
    grams = [torch.zeros(LANDMARKS, LANDMARKS, dtype=torch.float64) for _ in range(3)]
    sides = [torch.nn.functional.normalize(torch.randn(8192, dim).double()) for dim in DIMS.values()]
    vectors = [torch.linalg.eigh(Z[:LANDMARKS] @ Z[:LANDMARKS].T)[1] for Z in sides]
    for _ in range(0, pairs, 8192):
        for _ in range(2):  # their products with themselves, and those with the other side
            X, Y = (torch.exp(Z @ Z[:LANDMARKS].T - 1) @ V for Z, V in zip(sides, vectors, strict=True))
        _means = [torch.exp(Z @ Z[:LANDMARKS].T - 1).sum(dim=0) for Z in sides]
        for gram, left, right in zip(grams, (X, Y, X), (X, Y, Y), strict=True):
            gram.addmm_(left.T, right)
    torch.linalg.eigh(grams[0])
    torch.linalg.eigh(grams[1])
    torch.linalg.svd(grams[2])


STEPS = {"fit": fitted, "read": read, "matrices": matrix_work}


def figures(sizes: Sequence[int] = SIZES) -> Iterator[Figure]:
    """Measure every method at every size; say what ten millions would take, by the slope."""
    peaks: dict[str, list[float]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as name:
        for pairs in sizes:
            path = Path(name) / str(pairs)
            write(path, pairs)
            for method in METHODS:
                reading, matrices, ours = (in_child(step, path, method) for step in ("read", "matrices", "fit"))
                peaks[method].append(ours[1] / 2**20)
                seconds = f"{ours[0]:.1f} s, reading {reading[0]:.1f} s, matrices {matrices[0]:.1f} s"
                print(f"{method}, {pairs:,} pairs: peak {peaks[method][-1]:.2f} GiB; {seconds}", flush=True)
                what = f"{method} of {pairs:,} pairs, over reading the shards and the matrix work"
                yield Figure(what, ours[0] / (reading[0] + matrices[0]), 1.3, at_most=True)
    for method, found in peaks.items():
        slope = (found[-1] - found[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else 0.0
        most = found[-1] + slope * max(0, MANY - sizes[-1])
        yield Figure(f"{method}, peak GiB of {MANY:,} pairs by the slope", most, MOST_GIB, at_most=True)


def in_child(step: str, path: Path, method: str) -> tuple[float, float]:
    """Return the seconds of a step and the peak memory of its process in KiB."""
    command = [sys.executable, "-m", "bench.fit_memory", step, str(path), method]
    seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return seconds, peak


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in STEPS:
        opened = EmbeddingSet(Path(sys.argv[2]), SetCard.read(Path(sys.argv[2])))
        started = time.process_time()
        STEPS[sys.argv[1]](opened, sys.argv[3])
        print(json.dumps([time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
    else:
        for figure in figures([int(size) for size in sys.argv[1:]] or SIZES):
            print(figure, flush=True)
