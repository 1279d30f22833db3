"""Qdrant as a server or a cluster, over REST or gRPC."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient, models
from typing_extensions import override

from alignment.distance import Distance
from connector.errors import (
    AccessDeniedError,
    CollectionNotFoundError,
    RequestRefusedError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
)
from connector.safe_text import redacted
from connector.settings import REQUEST_SECONDS
from connector.stores.collection import CollectionConfig, CollectionInfo, SearchLimits, SettingDifference, VectorConfig
from connector.stores.consistent_client import ConsistentClient
from connector.stores.contract import Store
from connector.stores.layout import Datatype, Layout, PayloadKind
from connector.stores.points import Hit, Points, Record, engine_id
from connector.stores.qdrant_cluster import Cluster
from connector.stores.qdrant_connection import ATTEMPTS_TO_CONNECT, Connection, RetryPolicy, connected
from connector.stores.qdrant_filter import check_known, check_rest_bounds
from connector.stores.qdrant_layout import index_schema, layout_of, makes_own_words
from connector.stores.qdrant_limits import ID_BYTES, LimitBook, Limits, check_strict_mode, search_limits
from connector.stores.qdrant_peers import PEER_SECONDS, Nodes
from connector.stores.qdrant_readiness import wait_until_ready
from connector.stores.qdrant_reads import PointReader
from connector.stores.qdrant_searches import Searcher
from connector.stores.qdrant_settings import creation, differences, restoration
from connector.stores.qdrant_writes import UPLOADS, PointWriter, WriteRequest, grpc_request, local_batch, rest_body
from connector.stores.replicas import Replicas
from connector.stores.search_options import SearchOptions

# Quantizations and compressions that the oldest server lacks, with the first version that has them.
SINCE: Mapping[str, tuple[int, int]] = {"turbo": (1, 18), "bits8": (1, 20)}


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
        self._urls = [redacted(url) for url in connection.addresses.urls]
        self._known: dict[str, models.CollectionInfo] = {}
        self._limits = LimitBook()
        self._closed = False
        self._writer = PointWriter(self._request, self._limits, uploads=uploads)
        self._reader = PointReader(connection.client, self._cluster, self._limits)
        self._searcher = Searcher(connection, self._cluster.read, self._limits, self._laid_out)

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
            url: `http(s)://HOST:PORT` for REST, `grpc(s)://HOST:PORT` for gRPC; several of one cluster with commas
                between.
            api_key: of the server.
            ca_file: PEM file of the authority to trust instead of the system's.
            timeout: seconds a request may take.
            retry: how failed requests are tried again.
            uploads: how many requests of one batch are under way at once.

        Raises:
            SettingsError: the URL, the key or the file is not a valid one.
            StoreUnavailableError: the server cannot be reached.
            StoreError: it refuses the key, has another version than is needed, or is no Qdrant.
        """
        first = replace(retry, attempts=min(retry.attempts, ATTEMPTS_TO_CONNECT))
        connection = connected(url, api_key=api_key, ca_file=ca_file, timeout=timeout, retry=first)
        store = cls(connection, uploads=uploads)
        try:
            secrets: dict[str, Any] = {"api_key": api_key, "ca_file": ca_file}
            nodes = Nodes(connection, lambda peer: connected(peer, timeout=PEER_SECONDS, **secrets).client)

            def admit(url: str, client: QdrantClient) -> None:
                nodes.check(url, client)
                store.url = redacted(url)

            connection.addresses.admit = admit
            connection.call(lambda: None)  # nothing is sent before the node is admitted
        except BaseException:
            store.close()
            raise
        connection.retry = retry
        return store

    @property
    @override
    def addresses(self) -> Sequence[str]:
        return self._urls

    @override
    def close(self) -> None:
        self._closed = True
        self._writer.close()
        self._connection.addresses.close()

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
    def lost_replicas(self, name: str) -> list[str]:
        return self._cluster.lost(name)

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
        """Change no alias; a server that refuses the request as empty has let the key pass, too."""
        with suppress(RequestRefusedError):
            self._cluster.change(self._client.update_collection_aliases, change_aliases_operations=[])

    @override
    def check_layout(self, layout: Layout) -> None:
        """Refuse what the server is too old for."""
        version = self._connection.version
        for setting, needed in SINCE.items():
            if setting in (layout.quantization, layout.compression) and version is not None and version < needed:
                expected, found = (".".join(map(str, numbers)) for numbers in (needed, version))
                raise SettingsError(
                    f"quantization {layout.quantization}, compression {layout.compression}: expected Qdrant {expected} "
                    f"or newer for {setting}, {self.url} is {found}; upgrade the server or choose another one"
                )

    @override
    def create(self, name: str, config: CollectionConfig) -> None:
        """Create a collection and its payload indexes before there is data to index."""
        self.check_layout(config)
        if self._call(self._client.collection_exists, name):
            raise StoreError(f"{self.url}: collection {name!r} exists")
        try:
            self._cluster.change(self._client.create_collection, name, **creation(config))
        except StoreError:
            if not self._is(name, config):
                raise  # otherwise an earlier attempt created it, and only its answer was lost
        try:
            info = self._call(self._client.get_collection, name)
            check_strict_mode(info.config.strict_mode_config, config, f"{self.url}: collection {name}")
            for field, kind in config.payload_indexes.items():
                self.add_payload_index(name, field, kind)
        except BaseException:
            self.drop(name)
            raise

    @override
    def add_payload_index(self, name: str, field: str, kind: PayloadKind) -> None:
        schema = index_schema(kind)
        self._cluster.change(self._client.create_payload_index, name, field_name=field, field_schema=schema, wait=True)
        self._known.clear()

    @override
    def setting_differences(self, name: str, config: CollectionConfig) -> list[SettingDifference]:
        return list(differences(self._call(self._client.get_collection, name), config))

    @override
    def restore_settings(self, name: str, config: CollectionConfig) -> None:
        info = self._call(self._client.get_collection, name)
        changed = [difference for difference in differences(info, config) if difference.restorable]
        indexes = {field: kind for field, kind in config.payload_indexes.items() if _of_index(field, changed)}
        for field, kind in indexes.items():
            if field in info.payload_schema:
                self._cluster.change(self._client.delete_payload_index, name, field_name=field, wait=True)
            self.add_payload_index(name, field, kind)
        if len(changed) > len(indexes):
            self._cluster.change(self._client.update_collection, name, **restoration(info, config))
        self._known.clear()

    def _is(self, name: str, config: CollectionConfig) -> bool:
        """Say whether the collection exists with the vectors and metadata of `config`, and has no points."""
        try:
            info = self.describe(name)
        except StoreError:
            return False
        return (info.name, info.vectors, info.metadata, info.points) == (name, config.vectors, config.metadata, 0)

    @override
    def drop(self, name: str) -> None:
        """Delete a collection; the server deletes its aliases with it."""
        self._known.clear()
        if self._call(self._client.collection_exists, name):
            self._cluster.change(self._client.delete_collection, name)

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
    def metadata(self, name: str, *, retry: bool = True) -> Mapping[str, Any]:
        call = self._call if retry else self._connection.translated
        return call(self._client.get_collection, name).config.metadata or {}

    @override
    def add_metadata(self, name: str, metadata: Mapping[str, Any]) -> None:
        self._cluster.change(self._client.update_collection, name, metadata=dict(metadata))

    @override
    def vectors(self, name: str) -> Mapping[str, VectorConfig]:
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
    def _understood(self, name: str, filter: models.Filter | None) -> models.Filter | None:
        understood = super()._understood(name, filter)
        if understood is not None and not self._connection.grpc:
            check_rest_bounds(understood, self.url)
        return understood

    @override
    def _check_conditions(self, names: Set[str]) -> None:
        check_known(names, self._connection.version, self.url)

    @override
    def payload_indexes(self, name: str) -> Mapping[str, str]:
        info = self._call(self._client.get_collection, name)
        indexes: Mapping[str, str] = layout_of(info)["payload_indexes"]
        return {
            field: kind
            for field, kind in indexes.items()
            if kind != "text" or makes_own_words(info.payload_schema[field])
        }

    @override
    def _upsert(self, name: str, points: Points) -> None:
        if self._closed:
            raise StoreError(f"{self.url} is closed")
        self._writer.write(name, points)

    def _request(self, name: str, points: Points) -> WriteRequest:
        """Make a request that writes points; only what the server calls completed counts as written."""
        client = cast(ConsistentClient, self._client)  # or of a client that goes on at another address
        send = partial(self._cluster.write, "a write to")
        if not hasattr(client, "upsert_json"):  # the client's local mode speaks no protocol
            return WriteRequest(0, partial(send, client.upsert, name, points=local_batch(points)))
        if self._connection.grpc:
            request, timeout = grpc_request(points), self._connection.timeout
            upsert = partial(send, client.upsert_over_grpc, name, request=request, timeout=timeout)
            return WriteRequest(request.ByteSize(), upsert)
        body = rest_body(points)
        return WriteRequest(len(body), partial(send, client.upsert_json, name, body=body))

    @override
    def flush(self, name: str) -> None:
        """Do nothing: what the server acknowledges is in its write-ahead log."""

    @override
    def delete(self, name: str, ids: Sequence[str]) -> None:
        def send(part: Sequence[str], limits: Limits) -> None:
            selector = models.PointIdsList(points=[*map(engine_id, part)])
            self._cluster.write("a deletion from", self._client.delete, name, points_selector=selector)

        deque(self._limits.obey_in_parts(name, ids, "ids", send, item_bytes=ID_BYTES), maxlen=0)

    @override
    def retrieve(
        self, name: str, ids: Sequence[str], *, vector_name: str | None = None, consistent: bool = False
    ) -> list[Record]:
        return self._reader.retrieve(name, ids, vector_name, consistent=consistent)

    @override
    def _search(
        self, name: str, vector_name: str, queries: npt.NDArray[np.floating], k: int, options: SearchOptions
    ) -> list[list[Hit]]:
        return self._searcher.search(name, vector_name, queries, k, options)

    @override
    def has_graph(self, name: str) -> bool:
        info = self._call(self._client.get_collection, name)
        return bool(info.indexed_vectors_count) or self._cluster.replication_factor(name) > 1

    @override
    def search_limits(self, name: str) -> SearchLimits:
        return search_limits(self._limits.of(name), self._laid_out(name).config.strict_mode_config)

    @override
    def _scroll(
        self,
        name: str,
        *,
        vector_name: str | None,
        filter: models.Filter | None,
        page: int,
        consistent: bool,
        first: str | None,
    ) -> Iterator[list[Record]]:
        return self._reader.scroll(name, vector_name, filter, page, consistent=consistent, first=first)

    @override
    def _count(self, name: str, *, filter: models.Filter | None, consistent: bool) -> int:
        return self._reader.count(name, filter, consistent=consistent)

    @override
    def ready(self, name: str) -> CollectionInfo:
        wait_until_ready(self._connection, name, self.replicas)
        info = self.describe(name)
        return replace(info, points=self.count(name, consistent=True)) if info.has_replicas else info

    @override
    def aliases(self) -> dict[str, str]:
        aliases = self._call(self._client.get_aliases).aliases
        return {alias.alias_name: alias.collection_name for alias in aliases}

    @override
    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """Switch aliases in one request, which creates them: deleting one first would lose it if the server died."""
        collections = self.collections()
        for alias, target in aliases.items():
            if target not in collections:
                raise CollectionNotFoundError(f"{self.url} has no collection {target!r} for alias {alias!r}")
            if alias in collections:
                raise StoreError(f"{self.url}: {alias!r} is a collection and cannot be an alias")
        actions: list[models.AliasOperations] = [
            models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=target, alias_name=alias))
            for alias, target in aliases.items()
        ]
        self._known.clear()
        self._cluster.change(self._client.update_collection_aliases, change_aliases_operations=actions)


def _of_index(field: str, changed: Sequence[SettingDifference]) -> bool:
    return any(difference.setting == f"payload index {field}" for difference in changed)


def _named_vectors(info: models.CollectionInfo) -> dict[str, VectorConfig]:
    vectors = info.config.params.vectors
    named = vectors if isinstance(vectors, dict) else {"": vectors} if vectors else {}
    return {name: VectorConfig(vector.size, Distance(vector.distance.value)) for name, vector in named.items()}
