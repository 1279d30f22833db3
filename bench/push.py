"""Push of an embedding set beside the loop that a user would write by hand, into Qdrant Edge and into a server."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4, uuid5

import numpy as np
import pyarrow.parquet as pq
import qdrant_edge as edge
from qdrant_client import QdrantClient, models

from alignment.modality import MODALITIES
from alignment.retrieval.kinds import HELD_OUT
from alignment.sets.embedding_set import EmbeddingSet
from alignment.vectors import l2_normalize
from bench.corpus import DIM, alignment, write_set
from bench.ingest import NO_GRAPH, encoded, ingested
from bench.ingest import pushed as pushed_after_encode
from bench.row import LeftOut, Row, Sides
from bench.server import server
from connector.home import Home
from connector.provenance.database import upgrade
from connector.push.open_releases import OWN_INDEXES
from connector.push.session import push
from connector.releases.points import FITTED, NAMESPACE
from connector.requests import PushRequest
from connector.settings import Settings
from connector.stores.contract import Store
from connector.stores.edge import EdgeStore
from tests.support.qdrant_nodes import Server

ON_EDGE = (
    "Both read the same shards, project, and write the same ids, vectors and payloads with the same layout into a new "
    "collection, and flush. The loop upserts 4,096 points at once and keeps no ledger."
)
INDEXED = f"{ON_EDGE} Then both build the same graph; the push also tunes hnsw_ef by it."
ON_SERVER = (
    "Both make a collection of the same layout and write the same points with wait=True, until the last is "
    "acknowledged. The four threads are given the points ready, as PointStruct, and send 128 a request over gRPC; the "
    "push reads, projects and records them."
)
INGESTED = (
    "Both write the same points into a new Edge collection without a graph. The ingest encodes them first, with an "
    "encoder that computes next to nothing; the push finds the set encoded."
)

INDEXING_THRESHOLD = 10_000  # kB, Qdrant's default
WRITTEN_AT_ONCE = 4096
REQUEST_POINTS, THREADS = 128, 4
LABELS = ("key", "group", "content_sha256", "payload")


def by_hand(path: Path, directory: Path, indexing_threshold: int) -> tuple[float, float]:
    """Seconds to load the embedding set at `path` into a new shard of the engine in `directory`, and to index it."""
    projection, hold_out = alignment().projections["image"], alignment().card.hold_out
    mean, weight = projection.tensors()["mean"], projection.tensors()["weight"]
    started = time.perf_counter()
    vector = edge.EdgeVectorParams(size=DIM, distance=edge.Distance.Cosine)
    directory.mkdir()
    shard = edge.EdgeShard.create(
        str(directory),
        edge.EdgeConfig(
            vectors=dict.fromkeys(MODALITIES, vector),
            hnsw_config=edge.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=indexing_threshold),
        ),
    )
    for field in OWN_INDEXES:
        shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Keyword))
    for file in sorted(path.glob("image-*.parquet")):
        table = pq.read_table(file)
        X = table.column("vector").combine_chunks().flatten().to_numpy().reshape(-1, DIM)
        X = l2_normalize((l2_normalize(X) - mean) @ weight)
        columns = [table.column(name).to_pylist() for name in LABELS]
        rows = [*zip(X, hold_out.held_out(columns[1]).tolist(), *columns, strict=True)]
        for start in range(0, len(rows), WRITTEN_AT_ONCE):
            points = []
            for x, held_out, key, group, sha, text in rows[start : start + WRITTEN_AT_ONCE]:
                payload = json.loads(text)
                payload |= {"key": key, "group": group, "modality": "image", "content_sha256": sha}
                payload["split"] = HELD_OUT if held_out else FITTED
                points.append(edge.Point(str(uuid5(NAMESPACE, f"image\0{key}")), {"image": x.tolist()}, payload))
            shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    loaded = time.perf_counter()
    while shard.optimize():
        pass
    shard.flush()
    indexed = time.perf_counter()
    shard.close()
    return loaded - started, indexed - loaded


def pushed(directory: Path, home: Home, store: Store, collection: str = "bench", **layout: Any) -> tuple[float, float]:
    """Seconds that `push` spends before the index, and in building it and tuning the searches along it.

    `layout` is that of the request.
    """
    aligned = alignment()
    if not (directory / "alignment").exists():
        aligned.save(directory / "alignment")
    provenance = home.provenance
    marks: list[float] = []
    with provenance.runs.start("bench", {}) as run:
        started = time.perf_counter()
        embedding_set = EmbeddingSet.open(directory / "set")
        set_id = provenance.artifacts.record_set(embedding_set)
        alignment_id = provenance.artifacts.record_alignment("bench", directory / "alignment", aligned)
        _mark_index(store, marks)
        push(
            embedding_set,
            aligned,
            PushRequest(set="set", into=collection, alignment="bench", layout=layout),
            set_id=set_id,
            alignment_id=alignment_id,
            store=store,
            provenance=provenance,
            run=run,
        )
        ended = time.perf_counter()
    return marks[0] - started, ended - marks[0]


def _mark_index(store: Store, marks: list[float]) -> None:
    """Note when the index starts to be built."""
    ready = store.ready

    def marked(name: str) -> object:
        marks.append(time.perf_counter())
        return ready(name)

    store.ready = marked  # type: ignore[method-assign,assignment]


@contextmanager
def _home(directory: Path) -> Iterator[Home]:
    with tempfile.TemporaryDirectory(dir=directory) as place:
        settings = Settings.load(home=f"{place}/home", database_url=f"sqlite:///{place}/modalign.db")
        upgrade(settings.database_url)
        with Home(settings) as home:
            yield home


@contextmanager
def _on_edge(points: int, *, index: bool) -> Iterator[Sides]:
    """Both sides, each into a directory of its own in every turn."""
    threshold = INDEXING_THRESHOLD if index else NO_GRAPH
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_set(directory / "set", points)

        def ours() -> float:
            shutil.rmtree(directory / "pushed", ignore_errors=True)
            with _home(directory) as home, EdgeStore(directory / "pushed") as store:
                seconds, building = pushed(directory, home, store, indexing_threshold=threshold)
            return seconds + building * index

        def theirs() -> float:
            shutil.rmtree(directory / "bare", ignore_errors=True)
            seconds, building = by_hand(directory / "set", directory / "bare", threshold)
            return seconds + building * index

        ours()
        theirs()
        _check_same(directory / "pushed", directory / "bare")
        yield Sides(ours, theirs)


def _check_same(pushed_into: Path, bare: Path) -> None:
    """Raise unless a store and a shard hold the same: what is compared must be the same work."""
    shard = edge.EdgeShard.load(str(bare))
    try:
        with EdgeStore(pushed_into) as store:
            (name,) = store.collections()
            for page in store.scroll(name, vector_name="image"):
                theirs = {str(p.id): p for p in shard.retrieve([record.id for record in page], True, ["image"])}
                for record in page:
                    point: Any = theirs[record.id]
                    same = np.allclose(point.vector["image"], record.vector, atol=1e-6)  # type: ignore[arg-type]
                    if point.payload != record.payload or not same:
                        raise RuntimeError(f"the two sides write {record.payload} and {point.payload}")
            if store.count(name) != shard.count(edge.CountRequest(exact=True)):
                raise RuntimeError("the two sides do not write as many points")
    finally:
        shard.close()


@contextmanager
def _on_server(points: int, *, protocol: Literal["REST", "gRPC"]) -> Iterator[Sides]:
    """Both sides, each into a collection of its own in every turn; the push is given the address of `protocol`."""
    with ExitStack() as stack:
        found = stack.enter_context(server())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_set(directory / "set", points)
        client = _client(found)
        stack.callback(client.close)
        ready = _ready_points(directory / "set")

        def ours() -> float:
            with _home(directory) as home, found.connect(protocol) as store:
                name = f"bench-{uuid4().hex[:8]}"
                try:
                    return pushed(directory, home, store, name, indexing_threshold=NO_GRAPH)[0]
                finally:
                    for left in store.collections():
                        if left.startswith(name):
                            store.drop(left)

        yield Sides(ours, partial(_four_threads, client, ready))


def push_to_server(points: int) -> float:
    """Seconds of a push of so many points into a server by its REST address, without the index.

    Raises:
        LeftOut: there is no server.
    """
    with _on_server(points, protocol="REST") as sides:
        return sides.ours() or 0.0


def _client(found: Server) -> QdrantClient:
    if found.grpc_url is None:
        raise LeftOut("no gRPC: MODALIGN_TEST_QDRANT_GRPC_URL is not set")
    parts = urlsplit(found.grpc_url)
    return QdrantClient(
        host=parts.hostname,
        grpc_port=parts.port or 6334,
        prefer_grpc=True,
        https=parts.scheme == "grpcs",
        api_key=found.api_key,
        check_compatibility=False,
        timeout=60,
    )


def _ready_points(path: Path) -> list[models.PointStruct]:
    projection, hold_out = alignment().projections["image"], alignment().card.hold_out
    points = []
    for rows in EmbeddingSet.open(path).read("image"):
        sides = [HELD_OUT if held_out else FITTED for held_out in hold_out.held_out(rows.groups)]
        columns = (rows.keys, rows.groups, rows.content_sha256, rows.payloads, sides)
        for x, key, group, sha, text, split in zip(projection(rows.vectors).tolist(), *columns, strict=True):
            labels = {"key": key, "group": group, "modality": "image", "content_sha256": sha, "split": split}
            id_ = str(uuid5(NAMESPACE, f"image\0{key}"))
            points.append(models.PointStruct(id=id_, vector={"image": x}, payload=json.loads(text) | labels))
    return points


def _four_threads(client: QdrantClient, points: list[models.PointStruct]) -> float:
    name = f"bench-{uuid4().hex[:8]}"
    started = time.perf_counter()
    vector = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    no_graph = models.OptimizersConfigDiff(indexing_threshold=NO_GRAPH)
    client.create_collection(name, dict.fromkeys(MODALITIES, vector), optimizers_config=no_graph)
    try:
        for field in OWN_INDEXES:
            client.create_payload_index(name, field, models.PayloadSchemaType.KEYWORD)
        parts = [points[start : start + REQUEST_POINTS] for start in range(0, len(points), REQUEST_POINTS)]
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in threads.map(lambda part: client.upsert(name, part, wait=True), parts):
                pass
        seconds = time.perf_counter() - started
        if client.count(name).count != len(points):
            raise RuntimeError("points are missing")
        return seconds
    finally:
        client.delete_collection(name)


@contextmanager
def _ingested(items: int) -> Iterator[Sides]:
    """An ingest beside a push of the same items, each into a home of its own in every turn."""
    with tempfile.TemporaryDirectory() as name:
        before = Path(name, "encoded")
        before.mkdir()
        encoded(before, items, 0.0)

        def ours() -> float:
            with tempfile.TemporaryDirectory(dir=name) as place:
                return ingested(Path(place), items, 0.0)

        def theirs() -> float:
            with tempfile.TemporaryDirectory(dir=name) as place:
                shutil.copytree(before / "set", Path(place, "set"))
                return pushed_after_encode(Path(place))

        yield Sides(ours, theirs)


ROWS = (
    Row(
        what="push {size} x 256 into Edge, index not built",
        against="a loop by hand: Parquet, project, upserts of 4,096, flush",
        asked=ON_EDGE,
        unit="rate",
        goal=0.9,
        size=20_000,
        small=200,
        sides=partial(_on_edge, index=False),
    ),
    Row(
        what="push {size} x 256 into Edge, index included",
        against="the same loop and optimize()",
        asked=INDEXED,
        unit="rate",
        goal=0.95,
        size=20_000,
        small=200,
        sides=partial(_on_edge, index=True),
    ),
    *(
        Row(
            what=f"push {{size}} x 256 into a server, by its {protocol} address",
            against="four threads that upsert ready points over gRPC",
            asked=ON_SERVER,
            unit="rate",
            goal=0.9,
            size=20_000,
            small=200,
            sides=partial(_on_server, protocol=protocol),
        )
        for protocol in ("gRPC", "REST")
    ),
    Row(
        what="ingest {size} captions into Edge, instant encoder",
        against="a push of the encoded set",
        asked=INGESTED,
        unit="rate",
        goal=0.8,
        size=10_000,
        small=200,
        sides=_ingested,
    ),
)
