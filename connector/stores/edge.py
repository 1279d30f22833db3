"""Qdrant Edge: the Qdrant engine in this process, under a directory. It and edge_filter alone import qdrant_edge.

    DIR/.lock                    held while the store is open: one process at a time
    DIR/registry.json            collections (layout, metadata) and aliases, replaced atomically
    DIR/collections/NAME/        one shard of the engine

The engine has no collections, aliases or metadata; the registry adds them, and what it says holds. A directory that it
does not name is what a crash left of a create or a drop, and is removed at the next opening.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import qdrant_edge as edge
from filelock import FileLock, Timeout
from typing_extensions import override

from alignment.durable import write_durably
from alignment.metrics import Distance
from connector.errors import CollectionNotFoundError, SettingsError, StoreBusyError, StoreError
from connector.stores.contract import (
    FORBIDDEN,
    CollectionConfig,
    CollectionInfo,
    Hit,
    Points,
    Record,
    Store,
    VectorConfig,
)
from connector.stores.edge_filter import to_edge
from connector.stores.layout import COMPRESSIONS, OVERSAMPLING, Datatype, Layout

if TYPE_CHECKING:
    from qdrant_client.models import Filter

REGISTRY = "registry.json"
# The engine maps its files into memory: on a full disk it does not fail, the process is killed.
SPARE_BYTES = 128 << 20


class EdgeStore(Store):
    """Qdrant Edge in the directory `path`, which is created if it is missing.

    Raises:
        StoreBusyError: another process has it open.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path).absolute()
        self.url = f"edge:{self.path}"
        self._shards: dict[str, edge.EdgeShard] = {}
        self._owner = os.getpid()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreBusyError(
                f"{self.path} is in use by another process, and Qdrant Edge serves one at a time; wait until it ends, "
                "or run a Qdrant server and name it by MODALIGN_QDRANT_URL"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.path} cannot be used as a store: {error}") from error
        try:
            self._collections, self._aliases = self._recover()
        except BaseException:
            self._lock.release()
            raise

    def _recover(self) -> tuple[dict[str, CollectionConfig], dict[str, str]]:
        """Read the registry and remove what a crash left behind."""
        try:
            raw = json.loads((self.path / REGISTRY).read_text(encoding="utf-8"))
            collections = {name: _config(value) for name, value in raw["collections"].items()}
            aliases = dict(raw["aliases"])
        except FileNotFoundError:
            collections, aliases = {}, {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{self.path / REGISTRY} is damaged ({error!r}); restore it from a backup") from error
        for directory in self._home().iterdir() if self._home().exists() else ():
            if directory.name not in collections:
                shutil.rmtree(directory)
            else:
                for orphan in directory.glob("temp_segments/*"):
                    shutil.rmtree(orphan, ignore_errors=True)
        return collections, aliases

    def _home(self, *name: str) -> Path:
        return self.path.joinpath("collections", *name)

    def _commit(self, collections: dict[str, CollectionConfig], aliases: dict[str, str]) -> None:
        raw = {"collections": {n: asdict(c) for n, c in collections.items()}, "aliases": aliases}
        with _translated(f"write {REGISTRY}"):
            write_durably(self.path / REGISTRY, (json.dumps(raw, indent=2) + "\n").encode())
        self._collections, self._aliases = collections, aliases

    def _check_space(self) -> None:
        if (free := shutil.disk_usage(self.path).free) < SPARE_BYTES:
            raise StoreError(
                f"{self.path} has {free >> 20} MiB of disk left, Qdrant Edge needs {SPARE_BYTES >> 20} MiB to spare; "
                "make room and run the same command again"
            )

    def _resolve(self, name: str) -> str:
        resolved = self._aliases.get(name, name)
        if resolved not in self._collections:
            known = ", ".join([*self._collections, *self._aliases]) or "none"
            raise CollectionNotFoundError(f"{self.url} has no collection {name!r}; it has {known}")
        return resolved

    def _shard(self, name: str) -> edge.EdgeShard:
        resolved = self._resolve(name)
        if os.getpid() != self._owner:  # a forked child has none of the engine's threads, and would wait for ever
            raise StoreBusyError(
                f"{self.url} was opened by the process that this one was forked from, and works in that one only; "
                "start processes by spawning them, and open the store in one of them"
            )
        if resolved not in self._shards:
            if not self._lock.is_locked:
                raise StoreError(f"{self.url} is closed")
            with _translated(f"open collection {resolved}"):
                self._shards[resolved] = edge.EdgeShard.load(str(self._home(resolved)))
        return self._shards[resolved]

    @override
    def close(self) -> None:
        """Flush and close every collection, then release the lock."""
        try:
            while self._shards:
                name, shard = self._shards.popitem()
                with _translated(f"close collection {name}"):
                    shard.flush()
                    shard.close()
        finally:
            self._lock.release()

    @override
    def collections(self) -> list[str]:
        return sorted(self._collections)

    @override
    def check_layout(self, layout: Layout) -> None:
        """Refuse what takes several machines: the engine is one shard in this process."""
        single: dict[str, tuple[int | None, ...]] = {
            "shards": (None, 1),
            "replication_factor": (1,),
            "write_consistency_factor": (1,),
        }
        for field, allowed in single.items():
            if (value := getattr(layout, field)) not in allowed:
                raise SettingsError(
                    f"{field} {value}: Qdrant Edge is one shard in this process, with nothing to distribute it over; "
                    "leave it out, or name a server by MODALIGN_QDRANT_URL"
                )

    @override
    def create(self, name: str, config: CollectionConfig) -> None:
        """Create a collection; it exists once the registry names it."""
        self.check_layout(config)
        if name in self._collections or name in self._aliases:
            raise StoreError(f"{self.url}: collection or alias {name!r} exists")
        if not name or name in (".", "..") or FORBIDDEN & set(name):
            raise StoreError(f"{self.url}: {name!r} cannot name a collection, which is a directory here")
        self._check_space()
        home = self._home(name)
        with _translated(f"create collection {name}"):
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            shard = edge.EdgeShard.create(str(home), _edge_config(config))
            for field, kind in config.payload_indexes.items():
                shard.update(edge.UpdateOperation.create_field_index(field, _SCHEMA[kind]))
            shard.flush()
        self._commit({**self._collections, name: config}, self._aliases)
        self._shards[name] = shard

    @override
    def drop(self, name: str) -> None:
        """Delete a collection; it is gone once the registry does not name it."""
        if name not in self._collections:
            return
        if shard := self._shards.pop(name, None):
            shard.close()
        self._commit(
            {other: config for other, config in self._collections.items() if other != name},
            {alias: target for alias, target in self._aliases.items() if target != name},
        )
        shutil.rmtree(self._home(name))

    @override
    def describe(self, name: str) -> CollectionInfo:
        resolved = self._resolve(name)
        config, info = self._collections[resolved], self._shard(resolved).info()
        return CollectionInfo(
            resolved,
            config.vectors,
            config.metadata,
            self.count(resolved),
            int(info.indexed_vectors_count),
            payload_indexes=sorted(info.payload_schema),
            m=config.m,
            ef_construct=config.ef_construct,
            quantization=config.quantization,
        )

    @override
    def _vectors(self, name: str) -> Mapping[str, VectorConfig]:
        return self._collections[self._resolve(name)].vectors

    @override
    def datatype(self, name: str) -> Datatype:
        return self._collections[self._resolve(name)].datatype

    @override
    def _upsert(self, name: str, points: Points) -> None:
        vector_name = points.vector_name
        shard = self._shard(name)
        self._check_space()
        with _translated(f"write to collection {name}"):
            batch = [
                edge.Point(id_, {vector_name: vector}, payload)
                for id_, vector, payload in zip(points.ids, points.vectors.tolist(), points.payloads, strict=True)
            ]
            shard.update(edge.UpdateOperation.upsert_points(batch))

    @override
    def flush(self, name: str) -> None:
        """Flush segments and write-ahead log to disk."""
        shard = self._shard(name)
        with _translated(f"flush collection {name}"):
            shard.flush()

    @override
    def delete(self, name: str, ids: Sequence[str]) -> None:
        shard = self._shard(name)
        with _translated(f"delete from collection {name}"):
            shard.update(edge.UpdateOperation.delete_points(list(ids)))

    @override
    def retrieve(self, name: str, ids: Sequence[str], *, vector_name: str | None = None) -> list[Record]:
        shard = self._shard(name)
        with _translated(f"read collection {name}"):
            points = shard.retrieve(list(ids), True, [vector_name] if vector_name else False)
        return [_record(point, vector_name) for point in points]

    @override
    def search(
        self,
        name: str,
        vector_name: str,
        queries: npt.NDArray[np.floating],
        k: int,
        *,
        filter: "Filter | None" = None,
        exact: bool = False,
        ef: int | None = None,
        with_payload: bool | Sequence[str] = True,
        quantized: bool = True,
        oversampling: float = OVERSAMPLING,
        rescore: bool = True,
    ) -> list[list[Hit]]:
        shard = self._shard(name)
        condition = to_edge(filter)
        quantization = edge.QuantizationSearchParams(ignore=not quantized, rescore=rescore, oversampling=oversampling)
        parameters = edge.SearchParams(exact=exact, hnsw_ef=ef, quantization=quantization)
        fields = with_payload if isinstance(with_payload, bool) else list(with_payload)
        requests = [
            edge.QueryRequest(
                limit=k,
                query=edge.Query.Nearest(query, using=vector_name),
                filter=condition,
                params=parameters,
                with_payload=fields,
            )
            for query in queries.tolist()
        ]
        with _translated(f"search collection {name}"):
            if len(requests) == 1:
                answers = [shard.query(requests[0])]
            else:
                answers = shard.query_batch(edge.QueryBatchRequest(requests))
        return [[Hit(str(point.id), point.score, point.payload or {}) for point in answer] for answer in answers]

    @override
    def scroll(
        self, name: str, *, vector_name: str | None = None, filter: "Filter | None" = None, page: int = 1000
    ) -> Iterator[list[Record]]:
        shard = self._shard(name)
        condition = to_edge(filter)
        offset = None
        while True:
            request = edge.ScrollRequest(
                offset=offset,
                limit=page,
                filter=condition,
                with_payload=True,
                with_vector=[vector_name] if vector_name else False,
            )
            with _translated(f"read collection {name}"):
                points, offset = shard.scroll(request)
            if points:
                yield [_record(point, vector_name) for point in points]
            if offset is None:
                return

    @override
    def count(self, name: str, *, filter: "Filter | None" = None) -> int:
        shard = self._shard(name)
        condition = to_edge(filter)
        with _translated(f"count collection {name}"):
            return int(shard.count(edge.CountRequest(exact=True, filter=condition)))

    @override
    def ready(self, name: str) -> CollectionInfo:
        """Build the graph in this thread; the engine has no background optimizer."""
        shard = self._shard(name)
        self._check_space()
        with _translated(f"index collection {name}"):
            while shard.optimize():
                pass
            shard.flush()
        return self.describe(name)

    @override
    def aliases(self) -> dict[str, str]:
        return dict(self._aliases)

    @override
    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """Switch aliases by one replacement of the registry."""
        for alias, target in aliases.items():
            if target not in self._collections:
                raise CollectionNotFoundError(f"{self.url} has no collection {target!r} for alias {alias!r}")
            if alias in self._collections:
                raise StoreError(f"{self.url}: {alias!r} is a collection and cannot be an alias")
        self._commit(self._collections, {**self._aliases, **aliases})


# The engine's names of what layouts call `compression` and `datatype`.
_COMPRESSION: dict[str, Any] = {
    "one_bit": edge.BinaryQuantizationEncoding.OneBit,
    "one_and_half_bits": edge.BinaryQuantizationEncoding.OneAndHalfBits,
    "two_bits": edge.BinaryQuantizationEncoding.TwoBits,
    "x4": edge.CompressionRatio.X4,
    "x8": edge.CompressionRatio.X8,
    "x16": edge.CompressionRatio.X16,
    "x32": edge.CompressionRatio.X32,
    "x64": edge.CompressionRatio.X64,
    "bits1": edge.TurboQuantBitSize.Bits1,
    "bits1_5": edge.TurboQuantBitSize.Bits1_5,
    "bits2": edge.TurboQuantBitSize.Bits2,
    "bits4": edge.TurboQuantBitSize.Bits4,
    "bits8": edge.TurboQuantBitSize.Bits8,
}
_DATATYPE = {
    "float32": edge.VectorStorageDatatype.Float32,
    "float16": edge.VectorStorageDatatype.Float16,
    "uint8": edge.VectorStorageDatatype.Uint8,
}
_SCHEMA = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Bool,
}


def _config(raw: dict[str, Any]) -> CollectionConfig:
    vectors = {n: VectorConfig(v["dim"], Distance(v["distance"])) for n, v in raw["vectors"].items()}
    return CollectionConfig(**{**raw, "vectors": vectors})


def _edge_config(config: CollectionConfig) -> edge.EdgeConfig:
    memory = {True: edge.Memory.Cold, False: edge.Memory.Cached}
    return edge.EdgeConfig(
        vectors={
            name: edge.EdgeVectorParams(
                size=vector.dim,
                distance=getattr(edge.Distance, vector.distance.value),
                datatype=_DATATYPE[config.datatype],
                memory=memory[config.vectors_on_disk],
            )
            for name, vector in config.vectors.items()
        },
        hnsw_config=edge.HnswIndexConfig(
            m=config.m,
            ef_construct=config.ef_construct,
            full_scan_threshold=config.indexing_threshold,
            memory=memory[config.hnsw_on_disk],
        ),
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=config.indexing_threshold),
        quantization_config=_quantization(config),
        payload_memory=memory[config.payload_on_disk],
    )


def _quantization(layout: Layout) -> Any:
    if layout.quantization is None:
        return None
    if layout.quantization == "scalar":
        return edge.ScalarQuantizationConfig(edge.ScalarType.Int8, always_ram=True)
    compression = _COMPRESSION[layout.compression or COMPRESSIONS[layout.quantization][0]]
    if layout.quantization == "binary":
        return edge.BinaryQuantizationConfig(always_ram=True, encoding=compression)
    if layout.quantization == "product":
        return edge.ProductQuantizationConfig(compression, always_ram=True)
    return edge.TurboQuantQuantizationConfig(always_ram=True, bits=compression)


def _record(point: Any, vector_name: str | None) -> Record:
    vector = point.vector.get(vector_name) if vector_name and point.vector else None
    return Record(str(point.id), None if vector is None else np.asarray(vector, np.float32), point.payload or {})


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn the engine's errors, which are plain exceptions, into a `StoreError`. The only place that does."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        busy = "WouldBlock" in str(error)
        kind = StoreBusyError if busy else StoreError
        raise kind(f"Qdrant Edge could not {what}: {error}") from error
