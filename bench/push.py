"""Push of precomputed embeddings into Qdrant Edge against the bare engine fed with ready-made points."""

import tempfile
import time
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from alignment.metrics import Cosine
from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from bench.corpus import DIM, alignment, write_set
from bench.figure import Figure
from connector.home import Home
from connector.provenance.database import upgrade
from connector.push.open_releases import OWN_INDEXES
from connector.push.session import push
from connector.settings import Settings
from connector.stores.contract import Store
from connector.stores.edge import EdgeStore

# What both sides of a figure are asked.
ASKED = (
    "Both write the same ids, vectors and payloads with the same layout. The bare engine is given points "
    "that stand ready; a push projects, records, and tunes searches too."
)

POINTS = 100_000
TARGET = 0.7
BATCH = 512


def bare(directory: Path) -> tuple[float, float]:
    """Seconds to load and to index ready-made points with the same layout, ids, vectors and payloads."""
    with EdgeStore(directory / "pushed") as store:
        (name,) = store.collections()
        points = []
        for page in store.scroll(name, vector_name="image", page=BATCH):
            batch = []
            for record in page:
                assert record.vector is not None
                batch.append(edge.Point(record.id, {"image": record.vector.tolist()}, record.payload))
            points.append(batch)
    vector = edge.EdgeVectorParams(size=DIM, distance=edge.Distance.Cosine)
    (directory / "bare").mkdir()
    shard = edge.EdgeShard.create(
        str(directory / "bare"),
        edge.EdgeConfig(
            vectors=dict.fromkeys(MODALITIES, vector),
            hnsw_config=edge.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=10_000),
        ),
    )
    for field in OWN_INDEXES:
        shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Keyword))
    started = time.perf_counter()
    for batch in points:
        shard.update(edge.UpdateOperation.upsert_points(batch))
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

    `layout` is as `push` takes it.
    """
    aligned = alignment()
    aligned.save(directory / "alignment")
    embedding_set = EmbeddingSet.open(directory / "set")
    provenance = home.provenance
    marks: list[float] = []
    with provenance.runs.start("bench", {}) as run:
        started = time.perf_counter()
        set_id = provenance.artifacts.record_set(embedding_set)
        alignment_id = provenance.artifacts.record_alignment("bench", directory / "alignment", aligned)
        _mark_index(store, marks)
        push(
            embedding_set,
            aligned,
            set_id=set_id,
            alignment_id=alignment_id,
            collection=collection,
            metrics=[Cosine()],
            store=store,
            provenance=provenance,
            run=run,
            **layout,
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


def figures() -> list[Figure]:
    """Measure."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        settings = Settings.load(home=directory / "home", database_url=f"sqlite:///{directory / 'modalign.db'}")
        upgrade(settings.database_url)
        write_set(directory / "set", POINTS)
        with Home(settings) as home:
            with EdgeStore(directory / "pushed") as store:
                our_load, our_index = pushed(directory, home, store)
            bare_load, bare_index = bare(directory)
    what = f"push {POINTS:,} x {DIM}, rate / bare engine with ready-made points"
    return [
        Figure(f"{what}, index included", (bare_load + bare_index) / (our_load + our_index), TARGET),
        Figure(f"{what}, loading alone", bare_load / our_load, TARGET),
    ]
