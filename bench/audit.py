"""Recall@K of a whole benchmark against CLIP_benchmark and ir-measures on the same vectors, and exact top-k on a GPU.

Each side runs in a process of its own, on one thread, from the vectors to the recalls; both must give the same. So
does the truth of an audit, from pages of points as a store gives them, beside what all scores at once would take.
CLIP_benchmark holds all scores, and a one-hot vector of every hit. ir-measures takes scores as dictionaries; those of
all queries would fill a machine, so it is given a twenty-fifth of the captions and compared on these.
"""

import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from alignment.embeddings import Rows
from alignment.metrics import Dot
from alignment.recall import Codes, ranks, recall_at, top_k
from alignment.vectors import FloatArray
from bench.figure import Figure
from connector.galleries import Asked, Everything
from connector.reference import truth
from connector.store import Record

IMAGES, CAPTIONS, DIM = 5_000, 5, 256
FEWER = 25
KS = (1, 5, 10)
BATCH = 64  # of CLIP_benchmark's own command line
# Points and queries of the truth of an audit, and the dimension, for which a page is computed as it is asked for.
TRUTHS = {"truth-coco": (IMAGES * CAPTIONS, IMAGES, DIM), "truth-million": (1_000_000, 10_000, 32)}
PAGE = 1000
# Queries and items of the search on a GPU: 8 GiB of scores.
GPU_QUERIES, GPU_ITEMS = 8_192, 262_144


@dataclass(frozen=True, slots=True)
class Took:
    """What a process took for its recalls."""

    seconds: float
    mebibytes: float
    recalls: list[float]


def data() -> tuple[FloatArray, FloatArray, Codes]:
    """Images, captions that find them now and then, and the images of the captions."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((IMAGES, DIM), dtype=np.float32)
    groups = np.repeat(np.arange(IMAGES), CAPTIONS)
    Y = X[groups] + 3.5 * rng.standard_normal((len(groups), DIM), dtype=np.float32)
    return *(side / np.linalg.norm(side, axis=1, keepdims=True) for side in (X, Y)), groups


def modalign(every: int = 1) -> Took:
    """Recalls of captions that find images and, of all captions, of images that find captions."""
    X, Y, groups = data()
    Y, groups = Y[::every], groups[::every]
    started = time.perf_counter()
    found = [ranks(Y, X, groups, np.arange(IMAGES), metric=Dot())]
    if every == 1:
        found.append(ranks(X, Y, np.arange(IMAGES), groups, metric=Dot()))
    return took(started, [recall_at(side, k) for side in found for k in KS])


def clip_benchmark() -> Took:
    """The lines of its `evaluate` that come after the encoders."""
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    X, Y, groups = data()
    started = time.perf_counter()
    scores = torch.from_numpy(Y) @ torch.from_numpy(X).t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), torch.from_numpy(groups)] = True
    return took(
        started,
        [
            float((batchify(recall_at_k, side, of_side, BATCH, "cpu", k=k) > 0).double().mean())
            for side, of_side in ((scores, positive), (scores.T, positive.T))
            for k in KS
        ],
    )


def by_ir_measures() -> Took:
    """Success@K of every twenty-fifth caption."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ir_measures

    X, Y, groups = data()
    Y, groups = Y[::FEWER], groups[::FEWER]
    started = time.perf_counter()
    names = [f"i{item}" for item in range(IMAGES)]
    run = {f"q{q}": dict(zip(names, row, strict=True)) for q, row in enumerate((Y @ X.T).tolist())}
    qrels = {f"q{q}": {names[group]: 1} for q, group in enumerate(groups.tolist())}
    measures = [ir_measures.parse_measure(f"Success@{k}") for k in KS]
    found = ir_measures.calc_aggregate(measures, qrels, run)
    return took(started, [found[measure] for measure in measures])


def true_ranks(points: int, queries: int, dim: int) -> Took:
    """Recalls of the truth of an audit: image q is found by the points of its group, q, q + `queries` and so on."""
    centres = np.random.default_rng(0).standard_normal((queries, dim), dtype=np.float32)
    groups = [str(number) for number in range(queries)]
    rows = Rows("image", groups, groups, groups, ["{}"] * queries, centres)
    asked = Asked(rows, np.zeros(queries, np.int64), Everything())

    def pages() -> Iterator[list[Record]]:
        for start in range(0, points, PAGE):
            of = np.arange(start, min(start + PAGE, points)) % queries
            noise = np.random.default_rng(start + 1).standard_normal((len(of), dim), dtype=np.float32)
            vectors = centres[of] + 6.0 * noise
            yield [
                Record(str(start + place), vector, {"group": groups[group]})
                for place, (group, vector) in enumerate(zip(of, vectors, strict=True))
            ]

    started = time.perf_counter()
    found = truth(Dot().lower(dim), asked, centres, KS[-1] + 1, pages)
    return took(started, [recall_at(found.whole.best, k) for k in KS])


def took(started: float, recalls: list[float]) -> Took:
    seconds = time.perf_counter() - started
    return Took(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, recalls)


SIDES: dict[str, Callable[[], Took]] = {
    "modalign": modalign,
    "modalign-fewer": lambda: modalign(FEWER),
    "clip-benchmark": clip_benchmark,
    "ir-measures": by_ir_measures,
    "empty": lambda: took(time.perf_counter(), []),
    **{name: partial(true_ranks, *sizes) for name, sizes in TRUTHS.items()},
}


def figures() -> list[Figure]:
    """Measure each side in a process of its own."""
    found = []
    size = f"{IMAGES:,} images × {IMAGES * CAPTIONS:,} captions"
    if importlib.util.find_spec("clip_benchmark"):
        found += _against("clip-benchmark", "modalign", f"CLIP_benchmark, {size}", memory=10.0)
    else:
        print("no CLIP_benchmark here: pip install --no-deps clip-benchmark", flush=True)
    found += _against("ir-measures", "modalign-fewer", f"ir-measures, a {FEWER}th of that", memory=3.0)
    return found + _truths() + _gpu()


def _truths() -> list[Figure]:
    """Memory of all scores as float32, by what the truth of an audit takes beside the libraries."""
    found, libraries = [], _in_child("empty").mebibytes
    for name, (points, queries, _) in TRUTHS.items():
        one = _in_child(name)
        matrix, taken = points * queries * 4 / 2**20, one.mebibytes - libraries
        what = f"truth of {queries:,} queries among {points:,} points, memory of all scores / of the audit"
        found.append(Figure(f"{what} ({matrix:.0f} MiB, {taken:.0f} MiB; {one.seconds:.0f} s)", matrix / taken, 2.0))
    return found


def _against(other: str, ours: str, what: str, *, memory: float) -> list[Figure]:
    """Ratios of time and of peak memory, once both are known to give the same."""
    one, two = _in_child(other), _in_child(ours)
    np.testing.assert_allclose(two.recalls, one.recalls, rtol=1e-12)
    seconds, peaks = f"{one.seconds:.2f} s, {two.seconds:.2f} s", f"{one.mebibytes:.0f} MiB, {two.mebibytes:.0f} MiB"
    return [
        Figure(f"recall, time of {what} / of modalign ({seconds})", one.seconds / two.seconds, 3.0),
        Figure(f"recall, peak memory of {what} / of modalign ({peaks})", one.mebibytes / two.mebibytes, memory),
    ]


def _in_child(what: str) -> Took:
    """Measure in a new process. This one must stay small: a child's peak starts at its parent's size."""
    command = [sys.executable, "-m", "bench.audit", what]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=one_thread)
    return Took(**json.loads(done.stdout.splitlines()[-1]))


def _gpu() -> list[Figure]:
    """Multiplications of the exact top 10 a second, by those of a large product of float32 matrices."""
    import torch

    if not torch.cuda.is_available():
        print("no GPU here: exact top-k is not measured", flush=True)
        return []
    rng = np.random.default_rng(0)
    X, Y = (rng.standard_normal((n, DIM), dtype=np.float32) for n in (GPU_QUERIES, GPU_ITEMS))
    square = torch.randn(GPU_QUERIES, GPU_QUERIES, device="cuda")

    def product() -> None:
        torch.mm(square, square)
        torch.cuda.synchronize()

    rate = 2 * GPU_QUERIES**3 / _fastest(product)
    taken = _fastest(lambda: top_k(X, Y, KS[-1], metric=Dot(), device="cuda", chunk_scores=GPU_QUERIES * GPU_ITEMS))
    share = 2 * GPU_QUERIES * GPU_ITEMS * DIM / taken / rate
    what = f"exact top {KS[-1]} of {GPU_ITEMS:,} items, share of {torch.cuda.get_device_name()}'s float32 matrix rate"
    return [Figure(f"{what} ({rate / 1e12:.0f} Tflop/s)", share, 0.1)]


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of five runs, after one that warms up."""
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


if __name__ == "__main__":
    print(json.dumps(asdict(SIDES[sys.argv[1]]())))
