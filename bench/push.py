"""Push of precomputed embeddings into Qdrant Edge against the bare engine fed with ready-made points."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from alignment.metrics import Cosine
from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from bench.corpus import DIM, alignment, write_set
from bench.row import Row, Sides
from connector.home import Home
from connector.provenance.database import upgrade
from connector.push.open_releases import OWN_INDEXES
from connector.push.session import push
from connector.settings import Settings
from connector.stores.contract import Store
from connector.stores.edge import EdgeStore

ASKED = (
    "Both write the same ids, vectors and payloads with the same layout. The bare engine is given points "
    "that stand ready; a push projects, records, and tunes searches too."
)

BATCH = 512


def bare(directory: Path, pushed: Path) -> tuple[float, float]:
    """Seconds to load and to index ready-made points of the store `pushed`, with the same layout, in `directory`."""
    with EdgeStore(pushed) as store:
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
    if not (directory / "alignment").exists():
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


@contextmanager
def _written(points: int, *, index: bool) -> Iterator[Sides]:
    """Both sides, each into a directory of its own in every turn."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_set(directory / "set", points)

        def ours() -> float:
            seconds, building = _push(directory)
            return seconds + building * index

        def theirs() -> float:
            with tempfile.TemporaryDirectory(dir=directory) as place:
                seconds, building = bare(Path(place), directory / "pushed")
            return seconds + building * index

        _push(directory)
        yield Sides(ours, theirs)


def _push(directory: Path) -> tuple[float, float]:
    """As `pushed`, into a new store at `directory / "pushed"`."""
    shutil.rmtree(directory / "pushed", ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=directory) as place:
        settings = Settings.load(home=f"{place}/home", database_url=f"sqlite:///{place}/modalign.db")
        upgrade(settings.database_url)
        with Home(settings) as home, EdgeStore(directory / "pushed") as store:
            return pushed(directory, home, store)


ROWS = (
    Row(
        what="push {size} x 256 into Edge, index not built",
        against="the bare engine with ready points",
        asked=ASKED,
        unit="rate",
        goal=0.9,
        size=20_000,
        small=200,
        sides=partial(_written, index=False),
    ),
    Row(
        what="push {size} x 256 into Edge, index included",
        against="the bare engine with ready points",
        asked=ASKED,
        unit="rate",
        goal=0.95,
        size=20_000,
        small=200,
        sides=partial(_written, index=True),
    ),
)
