"""How the components of a mixture of logits are best laid out in Qdrant: the bare engine, three ways, one run.

named        a named vector for each component of the items, a search for each pair of components
multivector  one multivector, a search for each component of the queries
row          the components in one row, one search with the query's own mixture: what `mol` does
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge

from alignment.metrics import MixtureOfLogits, parse
from alignment.retrieval.ranks import top_k
from bench.corpus import DIM
from bench.figure import Figure
from bench.metrics import POINTS, QUERIES, TIMED, K, prepared

# What both sides of a figure are asked.
ASKED = (
    "All take the engine's own hnsw_ef and want no payloads. A layout is asked for so many candidates as "
    "its row says, cosine for its first 10."
)

SIZES = (32, 128, 512)
BATCH = 512


def figures() -> list[Figure]:
    """Measure, print the table, and compare what `mol` does with its targets."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with prepared(directory) as home:
            alignment = home.alignment("synthetic")
            metric = alignment.metric(parse("mol"), "image")
            X = home.embedding_set("synthetic").load("image").vectors
            Q = np.load(directory / "queries.npy")[:QUERIES]
        assert isinstance(metric, MixtureOfLogits)
        best = top_k(Q, X, K, metric=metric)[0]
        asks, native = _layouts(directory, metric, X, Q)
        print("\n| layout | search | candidates a search | candidates | candidate recall | latency / cosine |")
        print("| --- | --- | --- | --- | --- | --- |")
        found = []
        for exact in (True, False):
            for layout, ask in asks.items():
                for size in SIZES:
                    pools = [{point.id for point in ask(row, size, exact)} for row in range(len(Q))]
                    recall = float(
                        np.mean([len(pool & set(b.tolist())) / K for pool, b in zip(pools, best, strict=True)])
                    )
                    ratio = _ratio(lambda row: ask(row, size, exact), lambda row: native(row, K, exact))  # noqa: B023
                    count = statistics.median(map(len, pools))
                    search = "exact" if exact else "HNSW"
                    print(f"| {layout} | {search} | {size} | {count:.0f} | {recall:.3f} | {ratio:.2f} × |", flush=True)
                    if (layout, exact, size) == ("row", True, SIZES[0]):
                        found.append(Figure(f"row, exact, {size} candidates, recall of the true top {K}", recall, 0.99))
                        found.append(
                            Figure(
                                f"row, exact, {size} candidates, latency / cosine's first {K}", ratio, 6, at_most=True
                            )
                        )
    return found


def _layouts(directory: Path, metric: MixtureOfLogits, X: Any, Q: Any) -> tuple[dict[str, Any], Any]:
    count, size = metric.components, metric.size
    lowering = metric.lower(DIM)
    G = lowering.item(X).reshape(-1, count, size)
    mixed = lowering.query(Q)
    F = metric.computed(metric.trained().query_components, Q)
    dot = edge.Distance.Dot
    many = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    named = _shard(
        directory / "named",
        {f"{b}": edge.EdgeVectorParams(size=size, distance=dot) for b in range(count)},
        lambda row: {f"{b}": G[row, b].tolist() for b in range(count)},
    )
    multi = _shard(
        directory / "multi",
        {"v": edge.EdgeVectorParams(size=size, distance=dot, multivector_config=many)},
        lambda row: {"v": G[row].tolist()},
    )
    rows = _shard(
        directory / "row",
        {"v": edge.EdgeVectorParams(size=count * size, distance=dot)},
        lambda row: {"v": G[row].ravel().tolist()},
    )
    cosine = _shard(
        directory / "cosine",
        {"v": edge.EdgeVectorParams(size=DIM, distance=edge.Distance.Cosine)},
        lambda row: {"v": X[row].tolist()},
    )

    def ask(shard: edge.EdgeShard, queries: list[tuple[str, Any]], limit: int, exact: bool) -> list[edge.ScoredPoint]:
        parameters = edge.SearchParams(exact=exact)
        requests = [
            edge.QueryRequest(limit=limit, query=edge.Query.Nearest(query.tolist(), using=using), params=parameters)
            for using, query in queries
        ]
        return [point for answer in shard.query_batch(edge.QueryBatchRequest(requests)) for point in answer]

    pairs = [(a, b) for a in range(count) for b in range(count)]
    asks = {
        "named": lambda row, limit, exact: ask(named, [(f"{b}", F[row, a]) for a, b in pairs], limit, exact),
        "multivector": lambda row, limit, exact: ask(
            multi, [("v", F[row, a : a + 1]) for a in range(count)], limit, exact
        ),
        "row": lambda row, limit, exact: ask(rows, [("v", mixed[row])], limit, exact),
    }
    return asks, lambda row, limit, exact: ask(cosine, [("v", Q[row])], limit, exact)


def _shard(directory: Path, vectors: dict[str, Any], vectors_of: Callable[[int], dict[str, Any]]) -> edge.EdgeShard:
    directory.mkdir()
    shard = edge.EdgeShard.create(
        str(directory),
        edge.EdgeConfig(vectors=vectors, optimizers=edge.EdgeOptimizersConfig(indexing_threshold=10_000)),
    )
    for start in range(0, POINTS, BATCH):
        points = [edge.Point(row, vectors_of(row), {}) for row in range(start, min(POINTS, start + BATCH))]
        shard.update(edge.UpdateOperation.upsert_points(points))
    while shard.optimize():
        pass
    shard.flush()
    return shard


def _ratio(one: Callable[[int], Any], other: Callable[[int], Any]) -> float:
    """Ratio of median durations; the two take turns, on different queries."""
    durations: tuple[list[float], list[float]] = ([], [])
    for turn in range(TIMED):
        for call, row, seconds in ((one, turn, durations[0]), (other, turn + TIMED, durations[1])):
            started = time.perf_counter()
            call(row)
            seconds.append(time.perf_counter() - started)
    return statistics.median(durations[0]) / statistics.median(durations[1])


if __name__ == "__main__":
    for figure in figures():
        print(figure)
