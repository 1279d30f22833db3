"""What a job and its collection need, computed from rates: a pure function of numbers."""

import math
from dataclasses import dataclass

GIB = 1 << 30
# Qdrant's own rule for memory: vectors times 1.5, for the graph, ids and what optimizations need.
# https://qdrant.tech/documentation/guides/capacity-planning/
OVERHEAD = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What was measured, and what is assumed of machines that are not here.

    Attributes:
        taken_per_second: items that a driver takes into an embedding set.
        pushed_per_second: points that a driver writes into a server.
        passed_per_second: items in a set that a driver, when it begins, has read again and passes over.
        payload_bytes: of a point, with its key, group and hash, as JSON.
        encoded_per_second: items that a worker with a GPU reads and encodes: assumed.
    """

    taken_per_second: float
    pushed_per_second: float
    passed_per_second: float
    payload_bytes: float
    encoded_per_second: float = 1_000.0

    @property
    def driver_per_second(self) -> float:
        """Items that a driver takes and pushes, one after the other."""
        return 1 / (1 / self.taken_per_second + 1 / self.pushed_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How points are stored.

    Attributes:
        dim: of the vectors.
        replicas: of each shard of the collection.
        quantized: int8 vectors in memory, float32 on disk.
        node_bytes: memory of a node of Qdrant; three quarters of it are used.
        set_bytes: of a value in the embedding set: 2 for float16.
        shard_rows: rows of a shard of the embedding set.
        unit_items: items of a unit.
        upsert_points: points of a request to the server.
    """

    dim: int = 512
    replicas: int = 2
    quantized: bool = True
    node_bytes: float = 64 * GIB
    set_bytes: int = 2
    shard_rows: int = 1024
    unit_items: int = 100_000
    upsert_points: int = 256


@dataclass(frozen=True, slots=True)
class Size:
    """What so many items need, each one point.

    Attributes:
        gpus: workers that encode as quickly as the driver takes and pushes.
        hours: until all is encoded and pushed with these.
        units: of the corpus.
        set_bytes: of vectors in storage.
        memory_bytes: of vectors and their index in Qdrant, replicas counted.
        disk_bytes: of vectors and payloads in Qdrant, replicas counted.
        nodes: of Qdrant, by memory.
        reads, writes: requests to the storage of embedding sets and staged results.
        upserts: requests to Qdrant.
    """

    items: int
    gpus: int
    hours: float
    units: int
    set_bytes: float
    memory_bytes: float
    disk_bytes: float
    nodes: int
    reads: int
    writes: int
    upserts: int


def size(items: int, rates: Rates, layout: Layout) -> Size:
    """Compute what `items` need."""
    units, shards = -(-items // layout.unit_items), -(-items // layout.shard_rows)
    in_memory = items * layout.dim * (1 if layout.quantized else 4) * OVERHEAD * layout.replicas
    vectors = items * layout.dim * (5 if layout.quantized else 4)
    return Size(
        items,
        gpus=math.ceil(rates.driver_per_second / rates.encoded_per_second),
        hours=items / rates.driver_per_second / 3600,
        units=units,
        set_bytes=items * layout.dim * layout.set_bytes,
        memory_bytes=in_memory,
        disk_bytes=(vectors * OVERHEAD + items * rates.payload_bytes) * layout.replicas,
        nodes=max(layout.replicas, math.ceil(in_memory / (0.75 * layout.node_bytes))),
        reads=units + shards,  # each staged result once, each shard once, by the push
        writes=units + 2 * shards,  # staged results; shards, and the card before each
        upserts=-(-items // layout.upsert_points),
    )
