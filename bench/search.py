"""The Retriever on precomputed query embeddings against the bare engine's query."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge

from alignment.metrics import Cosine
from alignment.sets.embedding_set import EmbeddingSet
from bench.corpus import DIM, ENCODERS, alignment, vectors, write_set
from bench.figure import Figure
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.push.session import push
from connector.releases.release import open_release
from connector.search.retriever import Retriever
from connector.stores.edge import EdgeStore

# What both sides of a figure are asked.
ASKED = "Both search one collection with the same hnsw_ef, limit and quantization, want payloads, and read every hit."

POINTS = 20_000
QUERIES = 1_000
BATCH = 64
K = 10
LAYOUT: dict[str, Any] = {}  # of the release, where it is not the default


def figures() -> list[Figure]:
    """Measure."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        url = f"sqlite:///{directory / 'modalign.db'}"
        upgrade(url)
        write_set(directory / "set", POINTS)
        aligned = alignment()
        aligned.save(directory / "alignment")
        embedding_set = EmbeddingSet.open(directory / "set")
        with (
            Provenance.open(url) as provenance,
            EdgeStore(directory / "store") as store,
            provenance.runs.start("bench", {}) as run,
        ):
            push(
                embedding_set,
                aligned,
                set_id=provenance.artifacts.record_set(embedding_set),
                alignment_id=provenance.artifacts.record_alignment("bench", directory / "alignment", aligned),
                collection="bench",
                metrics=[Cosine()],
                store=store,
                provenance=provenance,
                run=run,
                **LAYOUT,
            )
            release = open_release(provenance, store, "bench")
            retriever = Retriever(release, store)
            with store._shards.reading(release.name, "search") as shard:
                pass  # it stays open
            X = vectors(QUERIES, seed=2)
            ready = [query.tolist() for query in aligned.project("text", X)]
            parameters = edge.SearchParams(
                exact=False,
                hnsw_ef=release.hnsw_ef,
                quantization=edge.QuantizationSearchParams(ignore=False, **release.quantized_search),
            )

            def request(row: int) -> edge.QueryRequest:
                query = edge.Query.Nearest(ready[row], using="image")
                return edge.QueryRequest(limit=K, query=query, filter=None, params=parameters, with_payload=True)

            def ours(row: int) -> None:
                found = retriever.search_embeddings("text", X[row : row + 1], K, encoder=ENCODERS["text"].fingerprint)
                assert len(found[0]) == K

            def read(answer: list[edge.ScoredPoint]) -> None:
                # The engine converts a point's fields when they are read, and whoever searches reads them.
                assert len([(point.id, point.score, point.payload) for point in answer]) == K

            def bare(row: int) -> None:
                read(shard.query(request(row)))

            def ours_batch(row: int) -> None:
                found = retriever.search_embeddings(
                    "text", X[row : row + BATCH], K, encoder=ENCODERS["text"].fingerprint
                )
                assert len(found) == BATCH

            def bare_batch(row: int) -> None:
                requests = [request(r) for r in range(row, row + BATCH)]
                for answer in shard.query_batch(edge.QueryBatchRequest(requests)):
                    read(answer)

            for row in range(QUERIES):  # what is compared must be the same work
                (hits,) = retriever.search_embeddings("text", X[row : row + 1], K, encoder=ENCODERS["text"].fingerprint)
                if [hit.key for hit in hits] != [(point.payload or {})["key"] for point in shard.query(request(row))]:
                    raise RuntimeError(f"query {row} does not find the same on both sides")
            single = _side_by_side(ours, bare, range(QUERIES))
            batched = _side_by_side(ours_batch, bare_batch, list(range(0, QUERIES - BATCH, BATCH)) * 4)
    what = f"{POINTS:,} x {DIM}, k = {K}, HNSW, hnsw_ef {release.hnsw_ef} and payloads on both sides"
    return [
        Figure(f"Retriever, median latency / bare engine's query ({what})", single, 1.3, at_most=True),
        Figure(f"Retriever, rate in batches of {BATCH} / bare engine's batch query ({what})", 1 / batched, 0.8),
    ]


def _side_by_side(ours: Callable[[int], None], bare: Callable[[int], None], rows: range | list[int]) -> float:
    """Ratio of median durations; the two take turns, on different queries, so that neither warms the other's cache."""
    durations: tuple[list[float], list[float]] = ([], [])
    half = len(rows) // 2
    for turn in range(len(rows)):
        for call, row, seconds in ((ours, rows[turn], durations[0]), (bare, rows[turn - half], durations[1])):
            started = time.perf_counter()
            call(row)
            seconds.append(time.perf_counter() - started)
    return float(np.median(durations[0]) / np.median(durations[1]))
