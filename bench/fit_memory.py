"""Peak memory and time of a fit whose vectors stay in their shards, at growing numbers of pairs.

Pairs are drawn and written as an embedding set of float16, 512 and 384 wide: 1.8 GB a million. Each fit runs in a
process of its own with a budget that ends after one candidate, so that what is measured is the passes over the set, and
not how many candidates a method has. `python -m bench.fit_memory SIZE ...` takes other sizes; ten millions need 18 GB
of disk. `python -m bench.fit_memory groups SIZE ...` measures what is done before any vector is read: groups are
numbered. Its sets have vectors of one number.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from alignment.fitting import split
from alignment.fitting.closed_forms import CLOSED_FORMS, LANDMARKS, PAIRS
from alignment.fitting.fit import fit
from alignment.fitting.folds import Folds
from alignment.fitting.methods import Fitter, candidates
from alignment.fitting.moments import Moments
from alignment.fitting.pairs import cell_moments
from alignment.modality import MODALITIES, Modality
from alignment.sets.cards import EncoderCard, SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import IDENTITY
from alignment.sets.shards import PARQUET
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
LATENT, NOISE, SHARD, FITTED = 64, 0.5, 4096, 0.75
FITS = 3
MANY, MOST_GIB = 10_000_000, 3.0
AGREEING, WORKERS = 100_000, 4  # pairs, and workers, of which results are compared


def write(path: Path, pairs: int, dims: Mapping[Modality, int] = DIMS) -> None:
    """Write a set of so many pairs, without waiting for the disk; noise comes again after some shards, shifted."""
    rng, texts = np.random.default_rng(0), pa.string()
    maps = {m: rng.standard_normal((LATENT, dim), np.float32) / np.float32(LATENT**0.5) for m, dim in dims.items()}
    noises = {m: NOISE * rng.standard_normal((16 * SHARD, dim), np.float32) for m, dim in dims.items()}
    path.mkdir()
    for number, start in enumerate(range(0, pairs, SHARD)):
        rows = range(start, min(start + SHARD, pairs))
        Z = rng.standard_normal((len(rows), LATENT), np.float32)
        keys, hashes = pa.array([f"item-{row:09}" for row in rows]), pa.array([f"{row:064x}" for row in rows])
        payloads = pa.array(["{}"] * len(rows), texts)
        for modality, dim in dims.items():
            shift = rng.integers(15 * SHARD)
            vectors = torch.from_numpy(Z @ maps[modality] + noises[modality][shift : shift + len(rows)]).half().numpy()
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
            table = pa.table([keys, keys, hashes, payloads, column], names=[*IDENTITY, "vector"])
            pq.write_table(table, path / f"{modality}-{number:06}.parquet", **PARQUET)
    encoders = {m: EncoderCard(f"bench-{m}", "0" * 64, dim) for m, dim in dims.items()}
    counts = dict.fromkeys(MODALITIES, pairs)
    SetCard(path.name, "bench", encoders, "float16", counts, complete=True, fingerprint=f"{pairs:064x}").write(path)


def fitted(made: EmbeddingSet, method: str) -> None:
    """Fit one candidate."""
    fit([made], method=method, budget=1e-6, device="cpu")


def number(made: EmbeddingSet, _method: str) -> None:
    """Number the groups, and say which are held out."""
    split.Identities.read([made], HoldOut())


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


def held_fit(made: EmbeddingSet, method: str, held_bytes: int) -> list[np.ndarray]:
    """Fit the first candidate of a method on the training pairs, which are held in memory up to so many bytes."""
    with patch.object(split, "HELD_BYTES", held_bytes):
        training = split.training_and_test([made], HoldOut()).training
    if training.image.is_stored == bool(held_bytes):
        raise RuntimeError(f"expected pairs {'in memory' if held_bytes else 'on disk'}")
    device = torch.device("cpu")
    fitter = Fitter(method, training, device, pairs=Folds(training, 4, 0, device).pairs())
    projections = fitter.fit(candidates(method, *DIMS.values())[0])
    return [tensor for projection in projections for tensor in projection.tensors().values()]


def part_moments(path: Path, part: int, parts: int) -> Moments:
    """Moments of one of so many parts of the training pairs, as a worker computes them."""
    with patch.object(split, "HELD_BYTES", 0):
        training = split.training_and_test([EmbeddingSet(path, SetCard.read(path))], HoldOut()).training
    rows = training.pair_rows()
    own = np.array_split(rows[0], parts)[part], np.array_split(rows[1], parts)[part]
    cells = np.zeros(len(own[0]), np.int64)
    return cell_moments(training, own, cells, 1, torch.device("cpu"), products=True)[0]


def apart(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """The largest difference, as a share of the largest number of the same array."""
    return max(float(abs(one - other).max() / abs(other).max()) for one, other in zip(ones, others, strict=True))


def agreement(path: Path) -> Iterator[Figure]:
    """Compare fits from shards with those in memory, and moments of four parts with those of one pass."""
    made = EmbeddingSet(path, SetCard.read(path))
    for method in (name for name in CLOSED_FORMS if candidates(name, *DIMS.values())):
        difference = apart(held_fit(made, method, 0), held_fit(made, method, 1 << 40))
        yield Figure(
            f"{method} of {AGREEING:,} pairs, weights from shards beside memory", difference, 1e-6, at_most=True
        )
    a, b, c, d = (part_moments(path, part, WORKERS) for part in range(WORKERS))
    tree, one = (a + b) + (c + d), part_moments(path, 0, 1)
    if tree.pairs != one.pairs:
        raise RuntimeError(f"expected {one.pairs} pairs, got {tree.pairs}")
    difference = apart([*tree.means, *tree.products], [*one.means, *one.products])
    yield Figure(
        f"moments of {AGREEING:,} pairs, by a tree of {WORKERS} workers beside one", difference, 1e-10, at_most=True
    )


STEPS = {"fit": fitted, "read": read, "matrices": matrix_work, "number": number}


def figures(sizes: Sequence[int] = SIZES) -> Iterator[Figure]:
    """Measure every method at every size; say what ten millions would take, by the slope."""
    peaks: dict[str, list[float]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "agreeing", AGREEING)
        yield from agreement(Path(name) / "agreeing")
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


def groups(sizes: Sequence[int]) -> Iterator[Figure]:
    """Measure what precedes the vectors."""
    with tempfile.TemporaryDirectory() as name:
        for pairs in sizes:
            write(Path(name) / str(pairs), pairs, dict.fromkeys(MODALITIES, 1))
            seconds, peak = in_child("number", Path(name) / str(pairs), "")
            what = f"{pairs:,} pairs, peak GiB while groups are numbered, in {seconds:.0f} s of CPU time"
            yield Figure(what, peak / 2**20, MOST_GIB, at_most=True)


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
        measured = groups if sys.argv[1:2] == ["groups"] else figures
        for figure in measured([int(size) for size in sys.argv[1:] if size != "groups"] or SIZES):
            print(figure, flush=True)
