"""Qdrant as a server or a cluster, over REST or gRPC."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from qdrant_client import models
from typing_extensions import override

from alignment.metrics import Distance
from connector.errors import (
    AccessDeniedError,
    CollectionNotFoundError,
    PointsRefusedError,
    Refusal,
    RequestRefusedError,
    RequestTooLargeError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
)
from connector.rejects import Reason
from connector.settings import REQUEST_SECONDS
from connector.stores.contract import (
    CollectionConfig,
    CollectionInfo,
    Hit,
    Points,
    Record,
    Store,
    VectorConfig,
    engine_id,
)
from connector.stores.layout import Datatype, Layout
from connector.stores.qdrant_cluster import Cluster
from connector.stores.qdrant_connection import ATTEMPTS_TO_CONNECT, Connection, RetryPolicy, connected
from connector.stores.qdrant_filter import OLDEST_SERVER, check_known
from connector.stores.qdrant_layout import index_schema, layout_of, quantization_config
from connector.stores.qdrant_readiness import wait_until_ready
from connector.stores.replicas import Replicas

NEWEST_MAJOR = 1  # of the client; in another version the same requests may mean something else
WITH_TURBO = (1, 18)
# One request: enough points to keep the server's threads busy, and bytes well below its limit of 32 MB.
REQUEST_POINTS = 128
REQUEST_BYTES = 8 << 20
NUMBER_BYTES = 25  # of a float32 written as JSON, at most: a sign, 17 digits, a point, an exponent, a comma
POINT_BYTES = 128  # of an id and the JSON around it
UPLOADS = 4
# If so many points are all refused for the same reason, not the points are wrong but the request.
ALIKE = 16


class QdrantStore(Store):
    """A Qdrant server, through a connection.

    Args:
        connection: a client and its URL.
        uploads: how many requests of one batch are under way at once.
    """

    def __init__(self, connection: Connection, *, uploads: int = UPLOADS):
        self._connection = connection
        self._client = connection.client
        self._cluster = Cluster(connection, lambda name: self._laid_out(name).config.params)
        self._call = self._cluster.call
        self.url = self._connection.url
        self._known: dict[str, models.CollectionInfo] = {}
        self._request_bytes = REQUEST_BYTES
        self._closed = False
        self._uploads = ThreadPoolExecutor(uploads, thread_name_prefix="upload")

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        api_key: str | None = None,
        ca_file: Path | None = None,
        timeout: int = REQUEST_SECONDS,
        retry: RetryPolicy = RetryPolicy(),
        uploads: int = UPLOADS,
    ) -> Self:
        """Connect to the server at `url`.

        Args:
            url: `http(s)://HOST:PORT` for REST, `grpc(s)://HOST:PORT` for gRPC.
            api_key: of the server.
            ca_file: PEM file of the authority to trust instead of the system's.
            timeout: seconds a request may take.
            retry: how failed requests are tried again.
            uploads: how many requests of one batch are under way at once.

        Raises:
            SettingsError: the URL, the key or the file cannot be meant.
            StoreUnavailableError: the server cannot be reached.
            StoreError: it refuses the key, has another version than is needed, or is no Qdrant.
        """
        first = replace(retry, attempts=min(retry.attempts, ATTEMPTS_TO_CONNECT))
        connection = connected(url, api_key=api_key, ca_file=ca_file, timeout=timeout, retry=first)
        store = cls(connection, uploads=uploads)
        try:
            store._check_version(connection.call(connection.client.info).version)
        except BaseException:
            store.close()
            raise
        connection.retry = retry
        return store

    def _check_version(self, found: str) -> None:
        oldest = ".".join(map(str, OLDEST_SERVER))
        match = re.match(r"(\d+)\.(\d+)", found)
        version = (int(match[1]), int(match[2])) if match else (0, 0)
        if version < OLDEST_SERVER:
            raise StoreError(f"{self.url}: expected Qdrant {oldest} or newer, got {found}; upgrade the server")
        if version[0] > NEWEST_MAJOR:
            raise StoreError(f"{self.url}: expected Qdrant {NEWEST_MAJOR}.x, got {found}; upgrade modalign")
        self._connection.version = version

    @override
    def close(self) -> None:
        self._closed = True
        self._uploads.shutdown()
        self._client.close()

    @override
    def collections(self) -> list[str]:
        return sorted(c.name for c in self._call(self._client.get_collections).collections)

    @override
    def replicas(self, name: str) -> Replicas | None:
        return self._cluster.replicas(name)

    @override
    def replica_differences(self, name: str) -> list[str]:
        return self._cluster.differences(name)

    @override
    def exists(self, name: str) -> bool:
        return self._call(self._client.collection_exists, name)

    @override
    def check_may_write(self, name: str) -> None:
        """Delete no points: the server looks at the right first, and then refuses the request as empty."""
        try:
            self._call(self._client.delete, name, points_selector=models.PointIdsList(points=[]), wait=True)
        except (AccessDeniedError, CollectionNotFoundError, StoreUnavailableError):
            raise
        except StoreError:  # it is empty
            return

    @override
    def check_may_manage(self) -> None:
        """Change no alias."""
        self._call(self._client.update_collection_aliases, change_aliases_operations=[])

    @override
    def check_layout(self, layout: Layout) -> None:
        """Refuse what the server is too old for."""
        version = self._connection.version
        if layout.quantization == "turbo" and version is not None and version < WITH_TURBO:
            needed, found = (".".join(map(str, numbers)) for numbers in (WITH_TURBO, version))
            raise SettingsError(
                f"quantization turbo: expected Qdrant {needed} or newer, {self.url} is {found}; upgrade the server or "
                "choose another quantization"
            )

    @override
    def create(self, name: str, config: CollectionConfig) -> None:
        """Create a collection and its payload indexes before there is data to index."""
        self.check_layout(config)
        if self._call(self._client.collection_exists, name):
            raise StoreError(f"{self.url}: collection {name!r} exists")
        try:
            self._call(
                self._client.create_collection,
                name,
                vectors_config={
                    vector_name: models.VectorParams(
                        size=vector.dim,
                        distance=models.Distance(vector.distance.value),
                        datatype=models.Datatype(config.datatype),
                        on_disk=config.vectors_on_disk,
                    )
                    for vector_name, vector in config.vectors.items()
                },
                hnsw_config=models.HnswConfigDiff(
                    m=config.m,
                    ef_construct=config.ef_construct,
                    full_scan_threshold=max(10, config.indexing_threshold),
                    on_disk=config.hnsw_on_disk,
                ),
                optimizers_config=models.OptimizersConfigDiff(indexing_threshold=config.indexing_threshold),
                quantization_config=quantization_config(config),
                on_disk_payload=config.payload_on_disk,
                shard_number=config.shards,
                replication_factor=config.replication_factor,
                write_consistency_factor=config.write_consistency_factor,
                metadata=dict(config.metadata),
            )
        except StoreError:
            if not self._is(name, config):
                raise  # otherwise an earlier attempt created it, and only its answer was lost
        try:
            for field, kind in config.payload_indexes.items():
                schema = index_schema(kind)
                self._call(self._client.create_payload_index, name, field_name=field, field_schema=schema, wait=True)
        except BaseException:
            self.drop(name)
            raise

    def _is(self, name: str, config: CollectionConfig) -> bool:
        """Say whether the collection exists with the vectors and metadata of `config`, and has no points."""
        try:
            info = self.describe(name)
        except StoreError:
            return False
        return (info.name, info.vectors, info.metadata, info.points) == (name, config.vectors, config.metadata, 0)

    @override
    def drop(self, name: str) -> None:
        """Delete the aliases of a collection, then the collection."""
        self._known.pop(name, None)
        targets = [alias for alias, target in self.aliases().items() if target == name]
        if targets:
            self._change_aliases([_delete_alias(alias) for alias in targets])
        if self._call(self._client.collection_exists, name):
            self._call(self._client.delete_collection, name)

    @override
    def describe(self, name: str) -> CollectionInfo:
        resolved = self.aliases().get(name, name)
        info = self._call(self._client.get_collection, resolved)
        return CollectionInfo(
            resolved,
            _named_vectors(info),
            info.config.metadata or {},
            self.count(resolved),
            info.indexed_vectors_count or 0,
            layout=layout_of(info),
            status=info.status.value,
        )

    @override
    def _vectors(self, name: str) -> Mapping[str, VectorConfig]:
        return _named_vectors(self._laid_out(name))

    @override
    def datatype(self, name: str) -> Datatype:
        datatype: Datatype = layout_of(self._laid_out(name))["datatype"]
        return datatype

    def _laid_out(self, name: str) -> models.CollectionInfo:
        if name not in self._known:
            self._known[name] = self._call(self._client.get_collection, name)
        return self._known[name]

    @override
    def _check_conditions(self, names: Set[str]) -> None:
        check_known(names, self._connection.version, self.url)

    @override
    def payload_indexes(self, name: str) -> Mapping[str, str]:
        indexes: Mapping[str, str] = layout_of(self._call(self._client.get_collection, name))["payload_indexes"]
        return indexes

    @override
    def _upsert(self, name: str, points: Points) -> None:
        """Write points in several requests at once; only what the server calls completed counts as written."""
        if self._closed:
            raise StoreError(f"{self.url} is closed")
        refused: dict[int, Refusal] = {}
        for of_request in self._uploads.map(lambda rows: self._write(name, points, rows), self._requests(points)):
            refused |= of_request
        if len(refused) == len(points.ids) >= ALIKE and len(set(refused.values())) == 1:
            raise RequestRefusedError(next(iter(refused.values())).detail)
        if refused:
            raise PointsRefusedError(f"collection {name}", refused)

    def _requests(self, points: Points) -> Iterator[range]:
        """Cut the rows of a batch into requests of at most `REQUEST_POINTS` points and about `_request_bytes` bytes."""
        start, size = 0, 0
        for row in range(len(points.ids)):
            added = self._bytes(points, row)
            if row > start and (size + added > self._request_bytes or row - start == REQUEST_POINTS):
                yield range(start, row)
                start, size = row, 0
            size += added
        yield range(start, len(points.ids))

    def _bytes(self, points: Points, row: int) -> int:
        """Return the bytes of a point in a request, at most: json.dumps writes escapes, which are longer than UTF-8."""
        number = points.vectors.itemsize if self._connection.grpc else NUMBER_BYTES
        return POINT_BYTES + int(points.vectors.shape[1]) * number + len(json.dumps(points.payloads[row]))

    def _write(self, name: str, points: Points, rows: range) -> dict[int, Refusal]:
        """Write the points at `rows`, in halves if the server refuses the request; return the single points it refuses.

        Each half is written or refused on its own, so a wrong point takes no other one with it.
        """
        part = points.take(rows)
        batch = models.Batch(
            ids=[*map(engine_id, part.ids)],
            vectors={part.vector_name: part.vectors.tolist()},
            payloads=list(part.payloads),
        )
        try:
            self._cluster.write("a write to", self._client.upsert, name, points=batch)
        except RequestTooLargeError as error:
            if len(rows) == 1:
                return {rows[0]: Refusal(Reason.TOO_LARGE, str(error))}
            half = sum(self._bytes(points, row) for row in rows) // 2
            self._request_bytes = min(self._request_bytes, half)  # the next batch is cut before it is sent
        except RequestRefusedError as error:
            if len(rows) == 1:
                return {rows[0]: Refusal(Reason.REFUSED_BY_QDRANT, str(error))}
        else:
            return {}
        middle = len(rows) // 2
        return self._write(name, points, rows[:middle]) | self._write(name, points, rows[middle:])

    @override
    def flush(self, name: str) -> None:
        """Do nothing: what the server acknowledges is in its write-ahead log."""

    @override
    def delete(self, name: str, ids: Sequence[str]) -> None:
        if not ids:  # the server refuses a request without points
            return
        selector = models.PointIdsList(points=[*map(engine_id, ids)])
        self._cluster.write("a deletion from", self._client.delete, name, points_selector=selector)

    @override
    def retrieve(
        self, name: str, ids: Sequence[str], *, vector_name: str | None = None, consistent: bool = False
    ) -> list[Record]:
        wanted = [vector_name] if vector_name else False

        def read(consistency: Any) -> list[models.Record]:
            return self._client.retrieve(
                name, [*map(engine_id, ids)], with_payload=True, with_vectors=wanted, consistency=consistency
            )

        points = self._cluster.read(name, read, consistent=consistent)
        return [_record(point, vector_name) for point in points]

    @override
    def _search(
        self,
        name: str,
        vector_name: str,
        queries: npt.NDArray[np.floating],
        k: int,
        *,
        filter: models.Filter | None,
        exact: bool,
        ef: int | None,
        with_payload: bool | Sequence[str],
        quantized: bool,
        oversampling: float,
        rescore: bool,
    ) -> list[list[Hit]]:
        """Search for each of the queries in one request."""
        fields = with_payload if isinstance(with_payload, bool) else list(with_payload)
        quantization = models.QuantizationSearchParams(ignore=not quantized, rescore=rescore, oversampling=oversampling)
        requests = [
            models.QueryRequest(
                query=query,
                using=vector_name,
                filter=filter,
                limit=k,
                params=models.SearchParams(exact=exact, hnsw_ef=ef, quantization=quantization),
                with_payload=fields,
            )
            for query in queries.tolist()
        ]
        answers = self._call(self._client.query_batch_points, name, requests=requests)
        return [[Hit(str(p.id), p.score, p.payload or {}) for p in answer.points] for answer in answers]

    @override
    def _scroll(
        self, name: str, *, vector_name: str | None, filter: models.Filter | None, page: int
    ) -> Iterator[list[Record]]:
        offset = None
        wanted = [vector_name] if vector_name else False
        while True:
            points, offset = self._call(
                self._client.scroll,
                name,
                scroll_filter=filter,
                limit=page,
                offset=offset,
                with_payload=True,
                with_vectors=wanted,
            )
            if points:
                yield [_record(point, vector_name) for point in points]
            if offset is None:
                return

    @override
    def _count(self, name: str, *, filter: models.Filter | None, consistent: bool) -> int:
        return self._cluster.count(name, filter, consistent=consistent)

    @override
    def ready(self, name: str) -> CollectionInfo:
        wait_until_ready(self._connection, name, self.replicas)
        info = self.describe(name)
        if info.layout.get("replication_factor", 1) == 1:
            return info
        return replace(info, points=self.count(name, consistent=True))

    @override
    def aliases(self) -> dict[str, str]:
        aliases = self._call(self._client.get_aliases).aliases
        return {alias.alias_name: alias.collection_name for alias in aliases}

    @override
    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """Switch aliases in one request."""
        collections = self.collections()
        for alias, target in aliases.items():
            if target not in collections:
                raise CollectionNotFoundError(f"{self.url} has no collection {target!r} for alias {alias!r}")
            if alias in collections:
                raise StoreError(f"{self.url}: {alias!r} is a collection and cannot be an alias")
        actions: list[models.AliasOperations] = []
        # An alias that exists is replaced. Deleting it first would lose it if the server were killed in between.
        for alias, target in aliases.items():
            create = models.CreateAlias(collection_name=target, alias_name=alias)
            actions.append(models.CreateAliasOperation(create_alias=create))
        self._change_aliases(actions)

    def _change_aliases(self, actions: Sequence[models.AliasOperations]) -> None:
        self._known.clear()
        self._call(self._client.update_collection_aliases, change_aliases_operations=list(actions))


def _delete_alias(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def _named_vectors(info: models.CollectionInfo) -> dict[str, VectorConfig]:
    vectors = info.config.params.vectors
    named = vectors if isinstance(vectors, dict) else {"": vectors} if vectors else {}
    return {name: VectorConfig(vector.size, Distance(vector.distance.value)) for name, vector in named.items()}


def _record(point: models.Record, vector_name: str | None) -> Record:
    vector = point.vector.get(vector_name) if vector_name and isinstance(point.vector, dict) else None
    return Record(str(point.id), None if vector is None else np.asarray(vector, np.float32), point.payload or {})
