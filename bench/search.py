"""The Retriever on precomputed query embeddings against the bare engine's query."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from alignment.metrics import Cosine
from alignment.sets.embedding_set import EmbeddingSet
from bench.corpus import ENCODERS, alignment, vectors, write_set
from bench.row import Row, Sides
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.push.session import push
from connector.releases.release import Release, open_release
from connector.search.retriever import Retriever
from connector.stores.edge import EdgeStore

ASKED = "Both search one collection with the same hnsw_ef, limit and quantization, want payloads, and read every hit."

QUERIES = 256  # of a turn
BATCH = 64
K = 10
LAYOUT: dict[str, Any] = {}  # of the release, where it is not the default


@contextmanager
def _pushed(points: int) -> Iterator[tuple[Release, EdgeStore]]:
    """A release of so many points in an embedded store."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        url = f"sqlite:///{directory / 'modalign.db'}"
        upgrade(url)
        write_set(directory / "set", points)
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
            yield open_release(provenance, store, "bench"), store


@contextmanager
def beside_the_engine(points: int, *, batch: int) -> Iterator[Sides]:
    """Search by ready vectors, so many at once; both sides must find the same."""
    with _pushed(points) as (release, store):
        retriever = Retriever(release, store)
        with store._shards.reading(release.name, "search") as shard:
            pass  # it stays open
        X = vectors(QUERIES, seed=2)
        ready = [query.tolist() for query in release.alignment.project("text", X)]
        parameters = edge.SearchParams(
            exact=False,
            hnsw_ef=release.hnsw_ef,
            quantization=edge.QuantizationSearchParams(ignore=False, **release.quantized_search),
        )

        def request(row: int) -> edge.QueryRequest:
            query = edge.Query.Nearest(ready[row], using="image")
            return edge.QueryRequest(limit=K, query=query, filter=None, params=parameters, with_payload=True)

        def found_by_us() -> list[list[str]]:
            parts = [X[start : start + batch] for start in range(0, QUERIES, batch)]
            encoder = ENCODERS["text"].fingerprint
            return [
                [hit.key for hit in hits]
                for part in parts
                for hits in retriever.search_embeddings("text", part, K, encoder=encoder)
            ]

        def found_by_the_engine() -> list[list[str]]:
            answers: list[list[edge.ScoredPoint]] = []
            for start in range(0, QUERIES, batch):
                if batch == 1:
                    answers.append(shard.query(request(start)))
                else:
                    requests = [request(row) for row in range(start, start + batch)]
                    answers += shard.query_batch(edge.QueryBatchRequest(requests))
            # The engine converts a point's fields when they are read, and whoever searches reads them.
            read = [[(point.id, point.score, point.payload) for point in answer] for answer in answers]
            return [[str((payload or {})["key"]) for _, _, payload in points] for points in read]

        if found_by_us() != found_by_the_engine():  # what is compared must be the same work
            raise RuntimeError("the two sides do not find the same")

        def ours() -> None:
            found_by_us()

        def theirs() -> None:
            found_by_the_engine()

        yield Sides(ours, theirs, f"hnsw_ef {release.hnsw_ef}")


ROWS = (
    Row(
        what="search by ready vectors, single, {size} points in Edge",
        against="the engine's query",
        asked=ASKED,
        unit="time",
        goal=1.1,
        size=20_000,
        small=400,
        sides=partial(beside_the_engine, batch=1),
    ),
    Row(
        what=f"search by ready vectors, batches of {BATCH}, {{size}} points in Edge",
        against="the engine's batch query",
        asked=ASKED,
        unit="rate",
        goal=0.95,
        size=20_000,
        small=400,
        sides=partial(beside_the_engine, batch=BATCH),
    ),
)
