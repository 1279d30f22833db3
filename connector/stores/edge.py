"""Qdrant Edge: the Qdrant engine in this process, in the collections of a `StoreDirectory`.

The modules `edge*` alone import qdrant_edge.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import qdrant_edge as edge
from typing_extensions import override

from connector.errors import CollectionNotFoundError, SettingsError, StoreError
from connector.stores.collection import CollectionConfig, CollectionInfo, SettingDifference, VectorConfig
from connector.stores.contract import Store
from connector.stores.edge_directory import StoreDirectory
from connector.stores.edge_errors import translated
from connector.stores.edge_files import may_be_named
from connector.stores.edge_filter import check_supported, to_edge
from connector.stores.edge_layout import INDEX, differences, edge_config, kind_of
from connector.stores.edge_shards import OpenShards
from connector.stores.layout import ENGINE_FIELDS, Datatype, Layout, PayloadKind
from connector.stores.points import Hit, Points, Record, engine_id
from connector.stores.search_options import SearchOptions

if TYPE_CHECKING:
    from qdrant_client.models import Filter

# The engine maps its files into memory: on a full disk it does not fail, the process is killed.
SPARE_BYTES = 128 << 20


class EdgeStore(Store):
    """Qdrant Edge in the directory `path`. A missing or an empty one is an empty store; the first write makes it.

    Raises:
        StoreBusyError: another process has it open.
        StoreError: the directory holds something else, or its registry is damaged.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path).absolute()
        self.url = f"edge:{self.path}"
        self._directory = StoreDirectory(self.path)
        self._shards = OpenShards(self.url, self._directory)

    @override
    def close(self) -> None:
        """Flush and close every collection, then release the lock."""
        try:
            self._shards.close()
        finally:
            self._directory.release()

    def _check_space(self) -> None:
        if (free := shutil.disk_usage(self.path).free) < SPARE_BYTES:
            raise StoreError(
                f"{self.path} has {free >> 20} MiB of disk left, Qdrant Edge needs {SPARE_BYTES >> 20} MiB to spare; "
                "make room and run the same command again"
            )

    @override
    def collections(self) -> list[str]:
        return sorted(filter(self._directory.exists, self._directory.collections))

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
        self._shards.check_usable()
        if not may_be_named(name):
            raise StoreError(f"{self.url}: {name!r} cannot name a collection, which is a directory here")
        directory = self._directory
        directory.prepare()
        if directory.exists(name) or name in directory.aliases:
            raise StoreError(f"{self.url}: collection or alias {name!r} exists")
        self._check_space()
        home = directory.begin(name)
        shard = None
        try:
            with translated(f"create collection {name}"):
                shard = edge.EdgeShard.create(str(home), edge_config(config))
                for field, kind in config.payload_indexes.items():
                    shard.update(edge.UpdateOperation.create_field_index(field, INDEX[kind]))
                shard.flush()
            directory.commit({**directory.collections, name: config}, directory.aliases)
        except BaseException:
            if shard is not None:
                with translated(f"close collection {name}"):
                    shard.close()
            directory.remove(name)
            raise
        self._shards.add(name, shard)

    @override
    def drop(self, name: str) -> None:
        """Delete a collection; it is gone once the registry does not name it."""
        self._shards.check_usable()
        directory = self._directory
        if name not in directory.collections:
            return
        directory.prepare()
        self._shards.forget(name)
        if directory.exists(name):
            directory.set_state(name, "dropping")
        directory.commit(
            {other: config for other, config in directory.collections.items() if other != name},
            {alias: target for alias, target in directory.aliases.items() if target != name},
        )
        directory.remove(name)

    @override
    def describe(self, name: str) -> CollectionInfo:
        resolved = self._shards.resolve(name)
        config = self._directory.collections[resolved]
        with self._shards.reading(resolved, "describe") as shard:
            info = shard.info()
            indexed = int(info.indexed_vectors_count)
            indexes = {name: kind_of(index) for name, index in sorted(info.payload_schema.items())}
        return CollectionInfo(
            resolved,
            config.vectors,
            config.metadata,
            self.count(resolved),
            indexed,
            layout={name: getattr(config, name) for name in ENGINE_FIELDS} | {"payload_indexes": indexes},
        )

    @override
    def has_graph(self, name: str) -> bool:
        with self._shards.reading(name, "describe") as shard:
            return int(shard.info().indexed_vectors_count) > 0

    @override
    def metadata(self, name: str, *, retry: bool = True) -> Mapping[str, Any]:
        return self._directory.collections[self._shards.resolve(name)].metadata

    @override
    def add_metadata(self, name: str, metadata: Mapping[str, Any]) -> None:
        self._shards.check_usable()
        directory = self._directory
        if not directory.exists(name):
            raise CollectionNotFoundError(f"{self.url} has no collection {name!r}")
        directory.prepare()
        config = directory.collections[name]
        changed = replace(config, metadata={**config.metadata, **metadata})
        directory.commit({**directory.collections, name: changed}, directory.aliases)

    @override
    def add_payload_index(self, name: str, field: str, kind: PayloadKind) -> None:
        with self._shards.writing(name, "index") as shard:
            shard.update(edge.UpdateOperation.create_field_index(field, INDEX[kind]))
            shard.flush()

    @override
    def setting_differences(self, name: str, config: CollectionConfig) -> list[SettingDifference]:
        indexes = self.describe(name).payload_indexes
        return [
            *differences(self._directory.collections[self._shards.resolve(name)], config),
            *(
                SettingDifference(f"payload index {field}", expected, present, restorable=expected is not None)
                for field in sorted(indexes.keys() | config.payload_indexes.keys())
                if (present := indexes.get(field)) != (expected := config.payload_indexes.get(field))
            ),
        ]

    @override
    def restore_settings(self, name: str, config: CollectionConfig) -> None:
        """Restore indexes, then the registry; the engine has no request for the rest and takes it as it is opened."""
        name, indexes = self._shards.resolve(name), self.describe(name).payload_indexes
        wrong = {field: kind for field, kind in config.payload_indexes.items() if indexes.get(field) != kind}
        if wrong:
            with self._shards.writing(name, "index") as shard:
                for field, kind in wrong.items():
                    if field in indexes:
                        shard.update(edge.UpdateOperation.delete_field_index(field))
                    shard.update(edge.UpdateOperation.create_field_index(field, INDEX[kind]))
                shard.flush()
        present = self._directory.collections[name]
        if not any(difference.restorable for difference in differences(present, config)):
            return
        metadata = {**present.metadata, **config.metadata}
        restored = replace(config, vectors=present.vectors, datatype=present.datatype, metadata=metadata)
        self._shards.reload(name, restored)
        self._directory.commit({**self._directory.collections, name: restored}, self._directory.aliases)

    @override
    def vectors(self, name: str) -> Mapping[str, VectorConfig]:
        return self._directory.collections[self._shards.resolve(name)].vectors

    @override
    def datatype(self, name: str) -> Datatype:
        return self._directory.collections[self._shards.resolve(name)].datatype

    @override
    def _upsert(self, name: str, points: Points) -> None:
        vector_name = points.vector_name
        self._check_space()
        with self._shards.writing(name, "write to") as shard:
            # A list a vector, because the lists of a whole batch leave the processor's cache.
            vectors = map(np.ndarray.tolist, points.vectors)
            batch = [
                edge.Point(engine_id(id_), {vector_name: vector}, payload)
                for id_, vector, payload in zip(points.ids, vectors, points.payloads, strict=True)
            ]
            shard.update(edge.UpdateOperation.upsert_points(batch))

    @override
    def flush(self, name: str) -> None:
        """Flush segments and write-ahead log to disk."""
        with self._shards.reading(name, "flush") as shard:
            shard.flush()

    @override
    def delete(self, name: str, ids: Sequence[str]) -> None:
        with self._shards.writing(name, "delete from") as shard:
            shard.update(edge.UpdateOperation.delete_points([*map(engine_id, ids)]))

    @override
    def retrieve(
        self, name: str, ids: Sequence[str], *, vector_name: str | None = None, consistent: bool = False
    ) -> list[Record]:
        with self._shards.reading(name, "read") as shard:
            points = shard.retrieve([*map(engine_id, ids)], True, [vector_name] if vector_name else False)
            return [_record(point, vector_name) for point in points]

    @override
    def _search(
        self, name: str, vector_name: str, queries: npt.NDArray[np.floating], k: int, options: SearchOptions
    ) -> list[list[Hit]]:
        condition = to_edge(options.filter)
        with self._shards.reading(name, "search") as shard:
            quantization = edge.QuantizationSearchParams(
                ignore=not options.quantized, rescore=options.rescore, oversampling=options.oversampling
            )
            parameters = edge.SearchParams(exact=options.exact, hnsw_ef=options.ef, quantization=quantization)
            requests = [
                edge.QueryRequest(
                    limit=k,
                    query=edge.Query.Nearest(query, using=vector_name),
                    filter=condition,
                    params=parameters,
                    with_payload=options.fields,
                )
                for query in queries.tolist()
            ]
            if len(requests) == 1:
                answers = [shard.query(requests[0])]
            else:
                answers = shard.query_batch(edge.QueryBatchRequest(requests))
            return [[Hit(str(point.id), point.score, point.payload or {}) for point in answer] for answer in answers]

    @override
    def _check_conditions(self, names: Set[str]) -> None:
        check_supported(names)

    @override
    def _scroll(
        self,
        name: str,
        *,
        vector_name: str | None,
        filter: "Filter | None",
        page: int,
        consistent: bool,
        first: str | None,
    ) -> Iterator[list[Record]]:
        condition = to_edge(filter)
        offset: Any = None if first is None else engine_id(first)
        while True:
            with self._shards.reading(name, "read") as shard:
                request = edge.ScrollRequest(
                    offset=offset,
                    limit=page,
                    filter=condition,
                    with_payload=True,
                    with_vector=[vector_name] if vector_name else False,
                )
                points, offset = shard.scroll(request)
                records = [_record(point, vector_name) for point in points]
            if records:
                yield records
            if offset is None:
                return

    @override
    def _count(self, name: str, *, filter: "Filter | None", consistent: bool) -> int:
        condition = to_edge(filter)
        with self._shards.reading(name, "count") as shard:
            return int(shard.count(edge.CountRequest(exact=True, filter=condition)))

    @override
    def ready(self, name: str) -> CollectionInfo:
        """Build the graph in this thread; the engine has no background optimizer."""
        with self._shards.writing(name, "index") as shard:
            self._check_space()
            while shard.optimize():
                pass
            shard.flush()
        return self.describe(name)

    @override
    def aliases(self) -> dict[str, str]:
        return dict(self._directory.aliases)

    @override
    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """Switch aliases by one replacement of the registry."""
        self._shards.check_usable()
        for alias, target in aliases.items():
            if not self._directory.exists(target):
                raise CollectionNotFoundError(f"{self.url} has no collection {target!r} for alias {alias!r}")
            if alias in self._directory.collections:
                raise StoreError(f"{self.url}: {alias!r} is a collection and cannot be an alias")
        self._directory.prepare()
        self._directory.commit(self._directory.collections, {**self._directory.aliases, **aliases})


def _record(point: Any, vector_name: str | None) -> Record:
    vector = point.vector.get(vector_name) if vector_name and point.vector else None
    return Record(str(point.id), None if vector is None else np.asarray(vector, np.float32), point.payload or {})
