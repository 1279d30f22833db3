"""Push beside the bare engine and three packages that write into Qdrant, all with the same precomputed vectors.

The packages reach Qdrant through its client: a server, or an imitation in memory. The embedded engine is closed to
them, so modalign is measured both embedded and over the same client in memory. Everyone keeps his own defaults. What
the packages write stands ready as their documents, with vectors as lists; modalign reads a set from disk, projects it
and keeps a ledger. Nobody builds a graph, which is the engine's work. They take turns, and the best of them counts.
"""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from qdrant_client import QdrantClient, models

from alignment.modality import MODALITIES
from bench.corpus import DIM, vectors, write_set
from bench.figure import Figure
from bench.ingest import NO_GRAPH
from bench.push import by_hand, pushed
from connector.home import Home
from connector.provenance.database import upgrade
from connector.push.open_releases import OWN_INDEXES
from connector.settings import Settings
from connector.stores.edge import EdgeStore
from connector.stores.qdrant import QdrantStore
from connector.stores.qdrant_connection import Connection
from connector.stores.qdrant_limits import REQUEST_POINTS
from connector.stores.qdrant_writes import UPLOADS

# What both sides of a figure are asked.
ASKED = "All write the same vectors and payloads, without a graph, each with the defaults of its own."

POINTS = 20_000
TURNS = 3
TARGET = 0.7
SERVER_TARGET = 0.9
PAYLOAD = {"image": "/data/item.jpg", "language": "en"}


def langchain(X: list[list[float]]) -> float:
    """Seconds of `add_texts`."""
    from langchain_core.embeddings import Embeddings
    from langchain_qdrant import QdrantVectorStore

    texts = [f"item-{row}" for row in range(len(X))]
    ready = dict(zip(texts, X, strict=True))

    class Ready:
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [ready.get(text, X[0]) for text in texts]  # a text of its own checks the dimension

    Embeddings.register(Ready)
    client = QdrantClient(":memory:")
    client.create_collection("bench", models.VectorParams(size=DIM, distance=models.Distance.COSINE))
    store = QdrantVectorStore(client, "bench", Ready())
    payloads = [PAYLOAD] * len(X)
    started = time.perf_counter()
    store.add_texts(texts, payloads)
    return _written(client, "bench", len(X), started)


def llama_index(X: list[list[float]]) -> float:
    """Seconds of `add`, which makes the collection as well."""
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    nodes = [TextNode(text=f"item-{row}", embedding=x, metadata=PAYLOAD) for row, x in enumerate(X)]
    client = QdrantClient(":memory:")
    store = QdrantVectorStore("bench", client=client)
    started = time.perf_counter()
    store.add(nodes)
    return _written(client, "bench", len(X), started)


def haystack(X: list[list[float]]) -> float:
    """Seconds of `write_documents`."""
    from haystack import Document
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

    documents = [Document(content=f"item-{row}", embedding=x, meta=PAYLOAD) for row, x in enumerate(X)]
    store = QdrantDocumentStore(":memory:", index="bench", embedding_dim=DIM, progress_bar=False)
    if store.count_documents():  # which also opens the client
        raise RuntimeError("an empty store holds documents")
    started = time.perf_counter()
    store.write_documents(documents)
    seconds = time.perf_counter() - started
    if store.count_documents() != len(X):
        raise RuntimeError(f"expected {len(X)} points, found {store.count_documents()}")
    return seconds


PEERS: dict[str, Callable[[list[list[float]]], float]] = {
    "langchain-qdrant": langchain,
    "llama-index-vector-stores-qdrant": llama_index,
    "qdrant-haystack": haystack,
}


def _written(client: QdrantClient, collection: str, count: int, started: float) -> float:
    """Seconds since `started`, if everything has arrived."""
    seconds = time.perf_counter() - started
    if (found := client.count(collection).count) != count:
        raise RuntimeError(f"expected {count} points, found {found}")
    return seconds


@contextmanager
def home_with_set(directory: Path, count: int) -> Iterator[Home]:
    """A home in `directory`, with a set of `count` vectors beside it."""
    settings = Settings.load(home=directory / "home", database_url=f"sqlite:///{directory / 'modalign.db'}")
    write_set(directory / "set", count)
    upgrade(settings.database_url)
    with Home(settings) as home:
        yield home


def embedded(count: int) -> tuple[float, float]:
    """Points a second of push and of a loop by hand."""
    with tempfile.TemporaryDirectory() as name, home_with_set(Path(name), count) as home:
        with EdgeStore(Path(name, "pushed")) as store:
            seconds, _ = pushed(Path(name), home, store, indexing_threshold=NO_GRAPH)
        return count / seconds, count / by_hand(Path(name, "set"), Path(name, "bare"), NO_GRAPH)[0]


def in_memory(count: int) -> float:
    """Points a second of push over the client's imitation, which takes one request at a time."""
    with (
        tempfile.TemporaryDirectory() as name,
        home_with_set(Path(name), count) as home,
        QdrantStore(Connection(QdrantClient(":memory:"), "http://memory"), uploads=1) as store,
    ):
        return count / pushed(Path(name), home, store, indexing_threshold=NO_GRAPH)[0]


def on_server(url: str, key: str | None, count: int) -> tuple[float, float]:
    """Points a second of push, and of `upload_collection` with the same points, batches and parallelism."""
    names = [f"bench-{uuid4().hex[:8]}" for _ in range(2)]
    with (
        tempfile.TemporaryDirectory() as name,
        home_with_set(Path(name), count) as home,
        QdrantStore.connect(url, api_key=key) as store,
    ):
        client = QdrantClient(url=url, api_key=key)
        try:
            seconds, _ = pushed(Path(name), home, store, names[0], indexing_threshold=NO_GRAPH)
            (release,) = (found for found in store.collections() if found.startswith(names[0]))
            records = [record for page in store.scroll(release, vector_name="image") for record in page]
            vector = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
            no_graph = models.OptimizersConfigDiff(indexing_threshold=NO_GRAPH)
            client.create_collection(names[1], dict.fromkeys(MODALITIES, vector), optimizers_config=no_graph)
            for field in OWN_INDEXES:
                client.create_payload_index(names[1], field, models.PayloadSchemaType.KEYWORD)
            points = [{"image": r.vector.tolist()} for r in records if r.vector is not None]
            started = time.perf_counter()
            client.upload_collection(
                names[1],
                points,
                [record.payload for record in records],
                [record.id for record in records],
                batch_size=REQUEST_POINTS,
                parallel=UPLOADS,
                wait=True,
            )
            uploaded = _written(client, names[1], count, started)
        finally:
            for left in store.collections():
                if left.startswith(tuple(names)):
                    store.drop(left)
            client.close()
    return count / seconds, count / uploaded


def installed() -> Iterator[str]:
    """Yield the names of the packages that can be compared with; say which are left out, and why."""
    for name, write in PEERS.items():
        try:
            write([[1.0] * DIM])
        except ImportError as error:
            print(f"left out: {name} ({error}); install modalign[bench]")
        else:
            yield name


def figures() -> Iterator[Figure]:
    """Measure."""
    rates: defaultdict[str, float] = defaultdict(float)

    def keep(**found: float) -> None:
        for name, rate in found.items():
            rates[name] = max(rates[name], rate)

    def figure(what: str, ours: str, other: str, target: float) -> Figure:
        detail = f"{rates[ours]:,.0f}/s, {rates[other]:,.0f}/s"
        return Figure(f"{what} ({detail})", rates[ours] / rates[other], target)

    X: list[list[float]] = vectors(POINTS).tolist()
    peers = list(installed())
    for _ in range(TURNS):
        ours, engine = embedded(POINTS)
        keep(embedded=ours, engine=engine, memory=in_memory(POINTS))
        keep(**{name: POINTS / PEERS[name](X) for name in peers})
    yield figure(f"push {POINTS:,} x {DIM} embedded, rate / bare engine", "embedded", "engine", TARGET)
    for name in peers:
        yield figure(f"push {POINTS:,} embedded, rate / {name} in memory", "embedded", name, 1.0)
        yield figure(f"push {POINTS:,} in memory, rate / {name} in memory", "memory", name, TARGET)
    if url := os.environ.get("MODALIGN_TEST_QDRANT_URL"):
        for _ in range(TURNS):
            ours, bulk = on_server(url, os.environ.get("MODALIGN_TEST_QDRANT_API_KEY"), POINTS)
            keep(server=ours, bulk=bulk)
        what = f"push {POINTS:,} x {DIM} to the server, rate / upload_collection with {UPLOADS} x {REQUEST_POINTS}"
        yield figure(what, "server", "bulk", SERVER_TARGET)
    else:
        print("left out: push against upload_collection, which needs a server named by MODALIGN_TEST_QDRANT_URL")
