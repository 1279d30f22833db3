"""The Retriever on precomputed query embeddings: beside the bare engine, the client of a server, and native cosine."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from alignment.sets.embedding_set import EmbeddingSet
from alignment.vectors import FloatArray
from bench.corpus import ENCODERS, alignment, vectors, write_set
from bench.row import Row, Sides
from bench.server import server
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.push.session import push
from connector.releases.release import Release, open_release
from connector.requests import PushRequest
from connector.search.retriever import Retriever, SearchResult
from connector.stores.contract import Store
from connector.stores.edge import EdgeStore

ASKED = "Both search one collection with the same hnsw_ef, limit and quantization, want payloads, and read every hit."
ASKED_EXACT = "Both compare every point, so that recall is 1, and return the first 10 with payloads; all are certified."

QUERIES = 256  # of a turn
CERTIFIED_QUERIES = 64
BATCH = 64
K = 10
LAYOUT: dict[str, Any] = {}  # of the release, where it is not the default
UNINDEXED = 1 << 30  # an indexing threshold that no collection reaches

Found = Callable[[], list[list[str]]]


@contextmanager
def _pushed(points: int, store: Store, metrics: Sequence[str] = ("cosine",), **layout: Any) -> Iterator[list[Release]]:
    """Releases of so many points, one of each metric; they are dropped afterwards."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        url = f"sqlite:///{directory / 'modalign.db'}"
        upgrade(url)
        write_set(directory / "set", points)
        aligned = alignment()
        aligned.save(directory / "alignment")
        embedding_set = EmbeddingSet.open(directory / "set")
        provenance = stack.enter_context(Provenance.open(url))
        run = stack.enter_context(provenance.runs.start("bench", {}))
        push(
            embedding_set,
            aligned,
            PushRequest(set="bench", into="bench", alignment="bench", metrics=metrics, layout={**LAYOUT, **layout}),
            set_id=provenance.artifacts.record_set(embedding_set),
            alignment_id=provenance.artifacts.record_alignment("bench", directory / "alignment", aligned),
            store=store,
            provenance=provenance,
            run=run,
        )
        releases = [open_release(provenance, store, "bench", metric) for metric in metrics]
        for release in releases:
            stack.callback(store.drop, release.name)
        yield releases


@contextmanager
def beside_the_engine(points: int, *, batch: int) -> Iterator[Sides]:
    """Search by ready vectors, so many at once; both sides must find the same."""
    with (
        tempfile.TemporaryDirectory() as directory,
        EdgeStore(Path(directory) / "store") as store,
        _pushed(points, store) as (release,),
    ):
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

        yield _sides(Retriever(release, store), X, batch, found_by_the_engine)


@contextmanager
def beside_the_client(points: int, *, protocol: str, batch: int) -> Iterator[Sides]:
    """Search a server by ready vectors, so many at once, beside the client of Qdrant; both sides must find the same."""
    with ExitStack() as stack:
        found = stack.enter_context(server())
        store = stack.enter_context(found.connect(protocol))
        (release,) = stack.enter_context(_pushed(points, store))
        url = urlsplit(found.url if protocol == "REST" else str(found.grpc_url))
        ports: dict[str, Any] = {"port": url.port}
        if protocol == "gRPC":
            ports = {"grpc_port": url.port, "prefer_grpc": True}
        client = QdrantClient(host=url.hostname, api_key=found.api_key, https=False, check_compatibility=False, **ports)
        stack.callback(client.close)
        X = vectors(QUERIES, seed=2)
        ready = [query.tolist() for query in release.alignment.project("text", X)]
        options: dict[str, Any] = {"using": "image", "limit": K, "with_payload": True}
        params = models.SearchParams(hnsw_ef=release.hnsw_ef)

        def found_by_the_client() -> list[list[str]]:
            answers: list[Any] = []
            for start in range(0, QUERIES, batch):
                if batch == 1:
                    answers.append(client.query_points(release.name, ready[start], search_params=params, **options))
                else:
                    queries = ready[start : start + batch]
                    requests = [models.QueryRequest(query=query, params=params, **options) for query in queries]
                    answers += client.query_batch_points(release.name, requests)
            return [[str((point.payload or {})["key"]) for point in answer.points] for answer in answers]

        yield _sides(Retriever(release, store), X, batch, found_by_the_client)


@contextmanager
def in_edge() -> Iterator[Store]:
    """A new store of the engine in this process."""
    with tempfile.TemporaryDirectory() as directory, EdgeStore(Path(directory) / "store") as store:
        yield store


@contextmanager
def in_a_server() -> Iterator[Store]:
    """A server, by its REST address."""
    with server() as found, found.connect("REST") as store:
        yield store


@contextmanager
def certified(
    points: int, *, metric: str, batch: int, where: Callable[[], AbstractContextManager[Store]]
) -> Iterator[Sides]:
    """Exact search under a metric whose order Qdrant has not, beside cosine."""
    with (
        where() as store,
        _pushed(points, store, (metric, "cosine"), indexing_threshold=UNINDEXED) as (ours, native),
    ):
        X = vectors(CERTIFIED_QUERIES, seed=2)
        found = _searched(Retriever(ours, store), X, batch, exact=True)
        if not all(hits.certified for hits in found):
            raise RuntimeError("not all hits are certified")
        candidates = int(np.median([hits.candidates for hits in found]))

        def side(release: Release) -> Callable[[], None]:
            return partial(_discarded, partial(_searched, Retriever(release, store), X, batch, exact=True))

        yield Sides(side(ours), side(native), f"{candidates} candidates a query in the median")


def _searched(retriever: Retriever, X: FloatArray, batch: int, *, exact: bool = False) -> list[SearchResult]:
    parts = [X[start : start + batch] for start in range(0, len(X), batch)]
    encoder = ENCODERS["text"].fingerprint
    return [
        hits for part in parts for hits in retriever.search_embeddings("text", part, K, encoder=encoder, exact=exact)
    ]


def _sides(retriever: Retriever, X: FloatArray, batch: int, theirs: Found) -> Sides:
    """Both sides, once they have found the same keys for each query."""

    def ours() -> list[list[str]]:
        return [[hit.key for hit in hits] for hits in _searched(retriever, X, batch)]

    if ours() != theirs():  # what is compared must be the same work
        raise RuntimeError("the two sides do not find the same")
    return Sides(partial(_discarded, ours), partial(_discarded, theirs), f"hnsw_ef {retriever.release.hnsw_ef}")


def _discarded(search: Callable[[], Any]) -> None:
    search()


def _rows(where: str, against: str, sides: Callable[..., Any], **options: Any) -> tuple[Row, Row]:
    """A row of single searches, and one of batches."""
    common: dict[str, Any] = {"asked": ASKED, "size": 20_000, "small": 400}
    return (
        Row(
            what=f"search by ready vectors, single, {{size}} points {where}",
            against=f"{against} query",
            unit="time",
            goal=1.1,
            sides=partial(sides, batch=1, **options),
            **common,
        ),
        Row(
            what=f"search by ready vectors, batches of {BATCH}, {{size}} points {where}",
            against=f"{against} batch query",
            unit="rate",
            goal=0.95,
            sides=partial(sides, batch=BATCH, **options),
            **common,
        ),
    )


def _certified_rows(metric: str, goal: float) -> tuple[Row, ...]:
    return tuple(
        Row(
            what=f"certified {metric}, {how}, {{size}} points {place}",
            against="native cosine, exact as well",
            asked=ASKED_EXACT,
            unit="time",
            goal=goal,
            size=size,
            small=400,
            sides=partial(certified, metric=metric, batch=batch, where=where),
        )
        for place, size, where in (("in Edge", 50_000, in_edge), ("in a server, REST", 20_000, in_a_server))
        for how, batch in (("single", 1), (f"batches of {BATCH}", BATCH))
    )


ROWS = (
    *_rows("in Edge", "the engine's", beside_the_engine),
    *_rows("in a server, REST", "the client's", beside_the_client, protocol="REST"),
    *_rows("in a server, gRPC", "the client's", beside_the_client, protocol="gRPC"),
    *_certified_rows("chi2", 3.0),
    *_certified_rows("js", 2.0),
)
