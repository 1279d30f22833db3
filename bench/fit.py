"""Speed of fitting: closed forms beside the products and decompositions that they need, training beside a plain loop.

Everything is drawn: 100,000 pairs of a latent vector of 128 dimensions, 1024 and 384 wide, under noise. Where there is
an NVIDIA GPU it also trains on a million pairs in batches of 32,768, beside the card's own matrix products.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.cross_decomposition import CCA
from torch.nn.functional import cross_entropy, normalize

from alignment.fitting.heads import Linear
from alignment.fitting.methods import Fitter, paired
from alignment.fitting.pairs import BLOCK_ROWS
from alignment.fitting.trainer import Model, train
from alignment.fitting.training import Training
from alignment.metrics import Cosine
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.vectors import FloatArray
from bench.figure import Figure
from bench.row import Row, Sides

# What both sides of a figure are asked.
ASKED = "Both sides get the same pairs, batch and number of steps, on the same threads and device."

PAIRS, D_X, D_Y, LATENT, NOISE = 100_000, 1024, 384, 128, 0.5
CPU = torch.device("cpu")
RIDGE: dict[str, Any] = {"target": "text", "penalty": 0.1}
RCCA: dict[str, Any] = {"shrinkage_image": 1.0, "shrinkage_text": 1.0, "components": 256, "power": 0.5}
# Components that scikit-learn is asked for: it finds one after the other, and ours finds all at once.
SKLEARN_COMPONENTS, SKLEARN_PAIRS = 4, 20_000
BATCHES = {256: 12_800, 1024: 20_480, 4096: 16_384}  # pairs of each
LARGE_BATCH, MANY_PAIRS, OUT = 32_768, 1_000_000, 256


def figures() -> list[Figure]:
    """Measure closed forms, then training."""
    small, large = (peak_in_child(batch) for batch in (1024, LARGE_BATCH))  # a child's peak starts at its parent's
    X, Y = draw(PAIRS)
    data = grouped(X, Y)
    shared = paired(data, CPU)
    assert shared.products
    candidate = alternating({"one more": lambda: Fitter("rcca", data, CPU, pairs=shared).fit(RCCA)})["one more"]
    some = slice(0, SKLEARN_PAIRS)
    few = grouped(X[some], Y[some])
    theirs = alternating(
        {
            "sklearn": lambda: CCA(SKLEARN_COMPONENTS, max_iter=200, tol=1e-4).fit(X[some], Y[some]),
            "rcca": lambda: Fitter("rcca", few, CPU).fit(RCCA),
        },
        rounds=1,
    )
    print(f"rcca with the products shared, as in a cross-validation: {candidate:.2f} s")
    what = f"times faster than scikit-learn's CCA of {SKLEARN_COMPONENTS} components on {SKLEARN_PAIRS:,} pairs"
    found = [Figure(f"rcca of all components, {what}", theirs["sklearn"] / theirs["rcca"], 10.0)]
    for batch, pairs in BATCHES.items():
        rates = training_rates(data, batch, pairs)
        print(f"training at batch {batch}: {rates['ours']:,.0f} pairs/s, plain loop {rates['plain']:,.0f} pairs/s")
        found.append(
            Figure(
                f"pairs/s of training a linear head at batch {batch}, over a plain loop",
                rates["ours"] / rates["plain"],
                0.8,
            )
        )
    logits = LARGE_BATCH**2 * 4 / 2**20
    print(f"peak memory of training: {small:.0f} MiB at batch 1,024, {large:.0f} MiB at batch {LARGE_BATCH:,}")
    what = f"memory that a batch of {LARGE_BATCH:,} adds, over one matrix of its logits ({logits:.0f} MiB)"
    found.append(Figure(what, (large - small) / logits, 0.25, at_most=True))
    if torch.cuda.is_available():
        what = f"share of the GPU's matrix rate in training on {MANY_PAIRS:,} pairs at batch {LARGE_BATCH:,}"
        found.append(Figure(what, gpu_share(torch.device("cuda"), MANY_PAIRS, LARGE_BATCH), 0.25))
    return found


def draw(count: int, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((count, LATENT), np.float32)
    views = []
    for dim in (D_X, D_Y):
        view = Z @ rng.standard_normal((LATENT, dim), np.float32) / np.float32(LATENT**0.5)
        views.append(view + NOISE * rng.standard_normal((count, dim), np.float32))
    return views[0], views[1]


def alternating(tasks: dict[str, Callable[[], Any]], rounds: int = 3) -> dict[str, float]:
    """Seconds of each task, the best of some rounds that take turns."""
    best = dict.fromkeys(tasks, np.inf)
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def needed(X: FloatArray, Y: FloatArray, *, cca: bool) -> None:
    """The matrix products and decompositions of a fit, on blocks in float64, and nothing else."""
    x, y = (torch.from_numpy(side[:BLOCK_ROWS]).double() for side in (X, Y))
    xx, yy, xy = torch.zeros(D_X, D_X).double(), torch.zeros(D_Y, D_Y).double(), torch.zeros(D_X, D_Y).double()
    for start in range(0, len(X), BLOCK_ROWS):
        rows = min(BLOCK_ROWS, len(X) - start)
        xx.addmm_(x[:rows].T, x[:rows])
        yy.addmm_(y[:rows].T, y[:rows])
        xy.addmm_(x[:rows].T, y[:rows])
    torch.linalg.eigh(xx)
    if cca:
        torch.linalg.eigh(yy)
        torch.linalg.svd(xy, full_matrices=False)


def training_rates(data: GroupedEmbeddings, batch: int, pairs: int) -> dict[str, float]:
    """Pairs per second of the training loop and of a plain one, both with a linear head and AdamW."""
    chosen = data.only(np.arange(pairs))
    training = Training(batch=batch, epochs=1, patience=1)

    seconds = alternating(
        {
            "ours": partial(ours, chosen, training, CPU),
            "plain": partial(plain, chosen, training),
        }
    )
    return {name: pairs / time for name, time in seconds.items()}


def heads(data: GroupedEmbeddings) -> tuple[Linear, Linear]:
    """Random linear heads to the same space."""
    torch.manual_seed(0)
    dims = (side.vectors.shape[1] for side in (data.image, data.text))
    image, text = (Linear(torch.randn(dim, OUT) / dim**0.5) for dim in dims)
    return image, text


def ours(data: GroupedEmbeddings, training: Training, device: torch.device) -> None:
    """Train without validation."""
    train(Model([Cosine()], heads(data)), data, data.groups, None, training=training, device=device)


def peak_in_child(batch: int) -> float:
    """Peak memory in MiB of a process that takes a step."""
    command = [sys.executable, "-m", "bench.fit", str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak(batch: int) -> float:
    """Train on as many pairs as a large batch holds; return this process's peak memory in MiB."""
    X, Y = draw(LARGE_BATCH)
    data = grouped(X, Y)
    ours(data.only(np.arange(LARGE_BATCH)), Training(batch=batch, epochs=1, patience=1), CPU)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def gpu_share(device: torch.device, pairs: int, batch: int) -> float:
    """Floating-point operations per second that training needs, over those of a large product in bfloat16."""
    rng = np.random.default_rng(0)
    X, Y = (rng.standard_normal((pairs, D_X), np.float32) for _ in range(2))
    data = grouped(X, Y)
    training = Training(batch=batch, epochs=1, patience=1)
    A = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)
    seconds = alternating(
        {
            "product": lambda: float((A @ A)[0, 0]),  # reading a number waits for the device
            "training": partial(ours, data, training, device),
        }
    )
    # Logits, and from them the gradients of both sides; each head, and from it the gradient of its weight.
    needed = pairs * (3 * 2 * batch * OUT + 2 * 2 * 2 * D_X * OUT)
    print(f"training on {device}: {pairs / seconds['training']:,.0f} pairs/s at batch {batch:,}")
    return (needed / seconds["training"]) / (2 * 8192**3 / seconds["product"])


def plain(data: GroupedEmbeddings, training: Training) -> None:
    """One epoch with the loss of open_clip: one matrix of logits, cross-entropy along both sides."""
    image, text = heads(data)
    X, Y = (normalize(torch.from_numpy(side.vectors), dim=1) for side in (data.image, data.text))
    scale = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = torch.optim.AdamW([*image.parameters(), *text.parameters(), scale], lr=training.learning_rate)
    for rows in torch.split(torch.randperm(len(X)), training.batch):
        logits = scale.exp() * normalize(image(X[rows]), dim=1) @ normalize(text(Y[rows]), dim=1).T
        target = torch.arange(len(rows))
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@contextmanager
def beside_its_matrix_work(pairs: int, *, method: str, values: dict[str, Any]) -> Iterator[Sides]:
    """A fit with given hyperparameters beside what it cannot do without."""
    X, Y = draw(pairs)
    data = grouped(X, Y)

    def ours() -> None:
        Fitter(method, data, CPU).fit(values)

    yield Sides(ours, lambda: needed(X, Y, cca=method == "rcca"))


def grouped(X: FloatArray, Y: FloatArray) -> GroupedEmbeddings:
    """Pairs that are a group each."""
    groups = np.arange(len(X))
    return GroupedEmbeddings(ModalityEmbeddings(X, groups), ModalityEmbeddings(Y, groups))


ROWS = tuple(
    Row(
        what=f"fit by {method}, {{size}} pairs of {D_X} and {D_Y}",
        against="its matrix products and decompositions alone",
        asked="Both get the same pairs and compute in float64 in the same blocks, on the same threads.",
        unit="time",
        goal=1.3,
        size=20_000,
        small=200,
        sides=partial(beside_its_matrix_work, method=method, values=values),
    )
    for method, values in {"ridge": RIDGE, "rcca": RCCA}.items()
)


if __name__ == "__main__":
    print(peak(int(sys.argv[1])))
