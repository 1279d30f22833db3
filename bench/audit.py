"""What an audit takes: its recalls beside other evaluators', the memory of its reference, the demo's audits, top-k.

Each side runs in a process of its own, on one thread, from the vectors to the recalls; both must give the same.
CLIP_benchmark holds all scores, and a one-hot vector of every hit. ir-measures takes scores as dictionaries; those of
all queries would fill a machine, so it is given a twenty-fifth of the captions and compared on these.

The reference of an audit reads points page by page. Those of the larger collection are made as they are read, so
that no side of it is ever in memory whole.

The demo's home is made, or copied from MODALIGN_BENCH_HOME, and audited under every metric by the command line, as
whoever waits for it does.
"""

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from alignment.metrics import Dot
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.ranks import IntArray, ranks, recall_at, top_k
from alignment.vectors import FloatArray
from bench.figure import Figure
from connector.states import ReleaseState

# What both sides of a figure are asked.
ASKED = "Both compute the same recalls of the same vectors, on one thread, each in a process of its own."

IMAGES, CAPTIONS, DIM = 5_000, 5, 256
FEWER = 25
BATCH = 64  # of CLIP_benchmark's own command line
POINTS, QUERIES = 1_000_000, 10_000  # of the larger reference
DEMO = "emoji"
# Queries and items of the search on a GPU: 8 GiB of scores.
GPU_QUERIES, GPU_ITEMS = 8_192, 262_144


@dataclass(frozen=True, slots=True)
class Took:
    """What a process took for its recalls."""

    seconds: float
    mebibytes: float
    recalls: list[float]


def data() -> tuple[FloatArray, FloatArray, IntArray]:
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


def took(started: float, recalls: list[float]) -> Took:
    seconds = time.perf_counter() - started
    return Took(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, recalls)


SIDES: dict[str, Callable[[], Took]] = {
    "modalign": modalign,
    "modalign-fewer": lambda: modalign(FEWER),
    "clip-benchmark": clip_benchmark,
    "ir-measures": by_ir_measures,
}


def figures() -> list[Figure]:
    """Measure each side in a process of its own."""
    found = []
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    size = f"{IMAGES:,} images × {IMAGES * CAPTIONS:,} captions"
    if importlib.util.find_spec("clip_benchmark"):
        found += _against("clip-benchmark", "modalign", f"CLIP_benchmark, {size}", memory=10.0)
    else:
        print("no CLIP_benchmark here: pip install --no-deps clip-benchmark", flush=True)
    found += _against("ir-measures", "modalign-fewer", f"ir-measures, a {FEWER}th of that", memory=3.0)
    return found + _references() + _demo() + _gpu()


def _against(other: str, ours: str, what: str, *, memory: float) -> list[Figure]:
    """Ratios of time and of peak memory, once both are known to give the same."""
    one, two = _in_child(other), _in_child(ours)
    np.testing.assert_allclose(two.recalls, one.recalls, rtol=1e-12)
    seconds, peaks = f"{one.seconds:.2f} s, {two.seconds:.2f} s", f"{one.mebibytes:.0f} MiB, {two.mebibytes:.0f} MiB"
    return [
        Figure(f"recall, time of {what} / of modalign ({seconds})", one.seconds / two.seconds, 3.0),
        Figure(f"recall, peak memory of {what} / of modalign ({peaks})", one.mebibytes / two.mebibytes, memory),
    ]


def _references() -> list[Figure]:
    """Peak memory beside that of a matrix of all scores, once the smaller reference is known to be right."""
    small, large = (_in_child(what, "bench.reference") for what in ("small", "large"))
    # It puts an item that float32 cannot tell from a relevant one before that: a few queries in 10,000 lose a rank.
    np.testing.assert_allclose(small.recalls, _in_child("modalign").recalls, atol=3e-4)
    found = []
    for side, n, m, target in ((small, IMAGES * CAPTIONS, IMAGES, 1.0), (large, QUERIES, POINTS, 0.1)):
        matrix = n * m * 4 / 2**20
        size = f"{n:,} queries × {m:,} points"
        peaks = f"{side.mebibytes:.0f} MiB, {matrix:,.0f} MiB; {side.seconds:.0f} s"
        what = f"reference, peak memory of the process, {size} / of a float32 matrix of the scores ({peaks})"
        found.append(Figure(what, side.mebibytes / matrix, target, at_most=True))
    times = POINTS * QUERIES / (IMAGES * IMAGES * CAPTIONS)
    what = f"reference, peak memory with {times:.0f} times the scores / with {IMAGES * CAPTIONS:,} × {IMAGES:,}"
    return [*found, Figure(what, large.mebibytes / small.mebibytes, 1.5, at_most=True)]


def _demo() -> list[Figure]:
    """Seconds of `modalign audit` under every metric of the demo."""
    modalign = str(Path(sysconfig.get_path("scripts")) / "modalign")
    found, given = [], os.environ.get("MODALIGN_BENCH_HOME")
    with tempfile.TemporaryDirectory() as directory:
        home = f"{directory}/home"
        if given:
            shutil.copytree(given, home)
        else:
            subprocess.run([modalign, "demo", "--home", home, "--json"], check=True, capture_output=True)
        told = subprocess.run([modalign, "status", "--home", home, "--json"], check=True, capture_output=True)
        status = json.loads(told.stdout)
        for release in status["releases"]:
            if (release["collection"], release["state"]) != (DEMO, ReleaseState.LIVE):
                continue
            metric, before = release["metric"], _cpu_seconds()
            started = time.perf_counter()
            command = [modalign, "audit", DEMO, "--pairs", DEMO, "--metric", metric, "--home", home, "--json"]
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - started
            computed = f"{_cpu_seconds() - before:.1f} s of it computing, load {os.getloadavg()[0]:.1f}"
            what = f"modalign audit of the demo under {metric}, seconds ({computed})"
            found.append(Figure(what, seconds, 30, at_most=True))
    return found


def _cpu_seconds() -> float:
    """Of all children so far."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def _in_child(what: str, module: str = "bench.audit") -> Took:
    """Measure in a new process. This one must stay small: a child's peak starts at its parent's size."""
    command = [sys.executable, "-m", module, what]
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
