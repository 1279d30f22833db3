"""Every metric served from Qdrant Edge: what it finds, what it proves, what it costs beside native cosine.

Two corpora: the emoji of the demo, and 100k vectors of dimension 256 that are drawn with the mean and the covariance
of the aligned emoji, images and captions jointly, so that a query has its own image as a real caption has.
`python -m bench.metrics` prints the tables; docs/metrics-figures.md keeps them.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from alignment.fitting.fit import fit_metrics
from alignment.fitting.methods import FitSpec
from alignment.metrics import Metric, Nnn, parse
from alignment.modality import Modality
from alignment.model.alignment import Alignment
from alignment.model.projections import Projection
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import group_codes, top_k
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray, l2_normalize
from bench.corpus import DIM, ENCODERS, SHARD, card
from bench.figure import Figure
from connector.demo.emoji import ENCODERS as DEMO_ENCODERS
from connector.demo.emoji import SERVED, write_emoji
from connector.home import Home
from connector.provenance.database import upgrade
from connector.requests import EncodeRequest, FitRequest, PushRequest
from connector.search.retriever import Retriever, SearchResult
from connector.settings import Settings

# What both sides of a figure are asked.
ASKED = (
    "Both ask for the same first 10 with payloads. Exact search compares with every point. HNSW search "
    "takes the hnsw_ef of its own release, which its push tuned to the same recall, as production does: "
    "the column says it."
)

POINTS, QUERIES, TIMED, K = 100_000, 200, 200, 10
CAPTIONS = 2000  # that the set holds, other ones than the queries
NATIVE = "cosine"


@dataclass(frozen=True, slots=True)
class Served:
    """What was measured of one metric; times and sizes are ratios to native cosine in the same store."""

    metric: str
    guarantee: str
    recall: dict[bool, float]  # by whether the search was exact
    hnsw_ef: int | None
    certified: float | None
    candidates: dict[bool, float]
    latency: dict[bool, float]
    size: float
    push: float


def figures() -> list[Figure]:
    """Measure, print the tables, and compare the larger corpus with the targets."""
    found = []
    synthetic, emoji = measure()
    for title, rows in (("synthetic", synthetic), ("emoji", emoji)):
        print(f"\n{title}\n\n{table(rows)}\n", flush=True)
    for row in synthetic:
        if row.guarantee == "exact":
            found.append(Figure(f"{row.metric}, exact search, recall of the true top {K}", row.recall[True], 1.0))
        if row.guarantee == "certified":
            found.append(Figure(f"{row.metric}, exact search, recall of the true top {K}", row.recall[True], 1.0))
            found.append(Figure(f"{row.metric}, exact search, share certified", row.certified or 0.0, 0.99))
            found.append(Figure(f"{row.metric}, exact search, latency / cosine", row.latency[True], 4.0, at_most=True))
        if row.guarantee == "bounded":
            found.append(Figure(f"{row.metric}, exact search, recall of the true top {K}", row.recall[True], 0.99))
            found.append(Figure(f"{row.metric}, exact search, latency / cosine", row.latency[True], 6.0, at_most=True))
        if row.guarantee != "measured":
            found.append(Figure(f"{row.metric}, default HNSW, recall of the true top {K}", row.recall[False], 0.98))
    return found


def measure() -> tuple[list[Served], list[Served]]:
    """Measure every metric on both corpora."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with prepared(directory) as home:
            embedding_set, alignment = home.embedding_set("emoji"), home.alignment("emoji")
            drawn = _serve(home, "synthetic", directory / "queries.npy", indexing_threshold=None)
            texts = embedding_set.load("text")
            held_out = alignment.card.hold_out.held_out(texts.groups)
            np.save(directory / "captions.npy", texts.vectors[held_out][:QUERIES])
            real = _serve(home, "emoji", directory / "captions.npy", indexing_threshold=100)
    return drawn, real


@contextmanager
def prepared(directory: Path) -> Iterator[Home]:
    """Make a home with both corpora encoded and fitted."""
    settings = Settings.load(home=directory / "home", database_url=f"sqlite:///{directory / 'modalign.db'}")
    upgrade(settings.database_url)
    with Home(settings) as home:
        home.encode(EncodeRequest(corpus=write_emoji(directory / "emoji"), set="emoji", encoders=DEMO_ENCODERS))
        # Without an offset for seen items: what is measured is what the metrics find by themselves.
        home.fit(FitRequest(sets=["emoji"], alignment="emoji", metrics=SERVED, method="rcca", seen_offset=0.0))
        synthetic(directory, home.alignment("emoji"), home.embedding_set("emoji"))
        yield home


def synthetic(directory: Path, alignment: Alignment, embedding_set: EmbeddingSet) -> None:
    """Write a set of 100k images, queries, and an alignment that changes neither but knows every metric.

    The first 256 directions of a canonical correlation analysis are the strongest; learned metrics are fitted on the
    real pairs in those.
    """
    rows = {m: embedding_set.load(m) for m in ("image", "text")}
    codes = group_codes(rows["image"].groups, rows["text"].groups)
    sides = [l2_normalize(alignment.project(m, rows[m].vectors)[:, :DIM]) for m in ("image", "text")]
    metrics = [parse(name) for name in SERVED]
    aligned = GroupedEmbeddings(
        *(ModalityEmbeddings(vectors, groups) for vectors, groups in zip(sides, codes, strict=True))
    )
    weights = fit_metrics(metrics, aligned, task=FitSpec(), device=torch.device("cpu"))
    paired = np.concatenate([sides[0][np.argsort(codes[0])], sides[1][np.argsort(codes[1])]], axis=1)
    images, texts = drawn_like(paired.astype(np.float64), POINTS)
    np.save(directory / "queries.npy", texts[:QUERIES])
    home = directory / "home"
    with SetWriter(home / "sets" / "synthetic", corpus="bench", encoders=ENCODERS) as writer:
        for start in range(0, POINTS, SHARD):
            part = images[start : start + SHARD]
            keys = [f"{row}" for row in range(start, start + len(part))]
            writer.append(Rows("image", keys, keys, ["0" * 64] * len(keys), ["{}"] * len(keys), part))
        captions = texts[-CAPTIONS:]
        keys = [f"{row}" for row in range(POINTS - CAPTIONS, POINTS)]
        writer.append(Rows("text", keys, keys, ["0" * 64] * len(keys), ["{}"] * len(keys), captions))
        writer.finish()
    plain: dict[Modality, Projection] = {"image": Projection(DIM), "text": Projection(DIM)}
    Alignment(card(), plain, weights).save(home / "alignments" / "synthetic")


def drawn_like(pairs: npt.NDArray[np.float64], count: int, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Draw `count` pairs of unit vectors with the mean and covariance of `pairs` (n, 2 d): two times (count, d)."""
    values, directions = np.linalg.eigh(np.cov(pairs.T))
    factor = directions * np.sqrt(values.clip(min=0))
    drawn = np.random.default_rng(seed).standard_normal((count, len(values))) @ factor.T + pairs.mean(axis=0)
    half = pairs.shape[1] // 2
    return l2_normalize(drawn[:, :half]), l2_normalize(drawn[:, half:])


def _serve(home: Home, name: str, queries: Path, *, indexing_threshold: int | None) -> list[Served]:
    """Push the set `name` under every metric and measure the releases."""
    alignment, embedding_set = home.alignment(name), home.embedding_set(name)
    seconds = {}
    layout = {"indexing_threshold": indexing_threshold}
    for metric in SERVED:
        started = time.perf_counter()
        home.push(PushRequest(set=name, into=name, alignment=name, metrics=[metric], layout=layout))
        seconds[metric] = time.perf_counter() - started
    asked = np.load(queries)
    texts = alignment.project("text", asked)
    items = alignment.project("image", embedding_set.load("image").vectors)
    native = home.retriever(name, NATIVE)
    sizes = {metric: _size(home, home.retriever(name, metric).release.name) for metric in SERVED}
    rows = []
    for metric in SERVED:
        retriever = home.retriever(name, metric)
        bars = _kth(alignment.metric(parse(metric), "image"), texts, items)
        bars = bars - 1e-6 * np.maximum(1.0, np.abs(bars))  # ties, and what float32 rounds
        fields: dict[str, dict[bool, float]] = {"recall": {}, "candidates": {}, "latency": {}}
        certified: float | None = None
        for exact in (True, False):
            answers = [_ask(retriever, query, exact=exact) for query in asked]
            shares = [sum(f.score >= bar for f in found) / K for found, bar in zip(answers, bars, strict=True)]
            fields["recall"][exact] = float(np.mean(shares))
            fields["candidates"][exact] = statistics.median(answer.candidates for answer in answers)
            proved = [answer.certified for answer in answers]
            if exact and None not in proved:
                certified = float(np.mean([bool(p) for p in proved]))
            fields["latency"][exact] = _latency(retriever, native, asked, exact=exact)
        rows.append(
            Served(
                metric,
                retriever.guarantee.value,
                fields["recall"],
                retriever.release.hnsw_ef,
                certified,
                fields["candidates"],
                fields["latency"],
                sizes[metric] / sizes[NATIVE],
                seconds[metric] / seconds[NATIVE],
            )
        )
        print(f"{name}: {rows[-1]}", flush=True)
    return rows


def _ask(retriever: Retriever, query: FloatArray, *, exact: bool) -> SearchResult:
    encoder = retriever.release.alignment.card.encoders["text"].fingerprint
    return retriever.search_embeddings("text", query[None], K, encoder=encoder, exact=exact)[0]


def _latency(retriever: Retriever, native: Retriever, asked: FloatArray, *, exact: bool) -> float:
    """Ratio of median latencies; the two take turns, on different queries."""
    durations: tuple[list[float], list[float]] = ([], [])
    for turn in range(min(TIMED, len(asked))):
        for each, row, seconds in ((retriever, turn, durations[0]), (native, turn - TIMED // 2, durations[1])):
            started = time.perf_counter()
            _ask(each, asked[row], exact=exact)
            seconds.append(time.perf_counter() - started)
    return statistics.median(durations[0]) / statistics.median(durations[1])


def _kth(metric: Metric, queries: FloatArray, items: FloatArray) -> npt.NDArray[np.floating]:
    """The score of the true K-th item of each query, by brute force: (n,)."""
    if isinstance(metric, Nnn):  # the bias of an item is worth computing once
        scores = metric.base.score(queries, items) - metric.bias(items)
        return np.sort(scores, axis=1)[:, -K]
    return top_k(queries, items, K, metric=metric)[1][:, -1]


def _size(home: Home, collection: str) -> int:
    """Bytes on disk."""
    root = home.settings.home / "qdrant" / "collections" / collection
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


def table(rows: list[Served]) -> str:
    """Lay the rows out in Markdown."""
    names = (
        "metric",
        "guarantee",
        "recall, exact",
        "recall, HNSW",
        "hnsw_ef",
        "certified, exact",
        "candidates, exact",
        "latency, exact",
        "latency, HNSW",
        "size",
        "push",
    )
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    for row in rows:
        proved = "" if row.certified is None else f"{row.certified:.3f}"
        cells = [
            row.metric,
            row.guarantee,
            f"{row.recall[True]:.3f}",
            f"{row.recall[False]:.3f}",
            str(row.hnsw_ef or ""),
            proved,
            f"{row.candidates[True]:.0f}",
            f"{row.latency[True]:.2f} ×",
            f"{row.latency[False]:.2f} ×",
            f"{row.size:.2f} ×",
            f"{row.push:.2f} ×",
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    for figure in figures():
        print(figure)
