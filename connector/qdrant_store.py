"""Qdrant as a server. The only importer of qdrant_client's client."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import httpx
import numpy as np
import numpy.typing as npt
import stamina
from pydantic import ValidationError
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from alignment.metrics import Distance
from connector.errors import CollectionNotFoundError, SettingsError, StoreError, StoreUnavailableError
from connector.settings import redacted
from connector.store import OVERSAMPLING, CollectionConfig, CollectionInfo, Hit, Points, Record, Store, VectorConfig

T = TypeVar("T")

OLDEST_SERVER = (1, 16)  # collection metadata
REQUEST_SECONDS = 60
ATTEMPTS, LONGEST_RETRYING = 5, 60.0
INDEX_SECONDS = 3600.0
POLL_SECONDS = 0.5
STABLE_POLLS = 3
TRANSIENT_STATUS = frozenset((408, 429, 500, 502, 503, 504))


class QdrantStore(Store):
    """A Qdrant server, through a `QdrantClient`."""

    def __init__(self, client: QdrantClient, url: str):
        self._client = client
        self.url = redacted(url)
        self._known_vectors: dict[str, Mapping[str, VectorConfig]] = {}

    @classmethod
    def connect(cls, url: str, *, api_key: str | None = None) -> Self:
        """Connect to the server at `url`.

        Raises:
            SettingsError: the URL cannot be meant.
            StoreUnavailableError: it cannot be reached.
            StoreError: it refuses the key, is older than 1.16, or is no Qdrant.
        """
        try:
            client = QdrantClient(url=url, api_key=api_key, timeout=REQUEST_SECONDS, check_compatibility=False)
        except ValueError:  # its text may hold the URL with the password in it
            raise SettingsError(f"store {redacted(url)!r}: expected http(s)://HOST:PORT") from None
        store = cls(client, url)
        try:
            store._require_version(store._call(client.info).version)
        except BaseException:
            client.close()
            raise
        return store

    def _require_version(self, found: str) -> None:
        oldest = ".".join(map(str, OLDEST_SERVER))
        version = re.match(r"(\d+)\.(\d+)", found)
        if version is None or tuple(map(int, version.groups())) < OLDEST_SERVER:
            raise StoreError(f"{self.url}: expected Qdrant {oldest} or newer, got {found}; upgrade the server")

    def _call(self, operation: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call the client, translate its errors, and try again what may pass."""
        for attempt in stamina.retry_context(on=StoreUnavailableError, attempts=ATTEMPTS, timeout=LONGEST_RETRYING):
            with attempt:
                return self._translated(operation, *args, **options)
        raise AssertionError("unreachable: the last attempt raises")

    def _translated(self, operation: Callable[..., T], *args: Any, **options: Any) -> T:
        """The one boundary at which the client's errors become ours, most specific first."""
        try:
            return operation(*args, **options)
        except UnexpectedResponse as error:
            content = error.content.decode(errors="replace")[:500]
            message = f"{self.url} answered {error.status_code}: {content}"
            if error.status_code in TRANSIENT_STATUS:
                raise StoreUnavailableError(message) from error
            if error.status_code == 404:
                raise CollectionNotFoundError(message) from error
            if error.status_code in (401, 403):
                message += "; check MODALIGN_QDRANT_API_KEY"
            raise StoreError(message) from error
        except (ResponseHandlingException, httpx.TransportError) as error:
            if isinstance(error, ResponseHandlingException) and isinstance(error.source, ValidationError):
                raise StoreError(self._no_qdrant(error)) from error
            raise StoreUnavailableError(
                f"{self.url} cannot be reached: {error}; check that it runs and that MODALIGN_QDRANT_URL names it"
            ) from error
        except QdrantException as error:
            # 429 with the header Retry-After, and the client's complaint about one that names a date
            raise StoreUnavailableError(f"{self.url} asks for fewer requests: {error}") from error
        except ApiException as error:
            raise StoreError(f"{self.url}: {error}") from error
        except (json.JSONDecodeError, UnicodeDecodeError, AssertionError) as error:
            # the client asserts that an answer holds a result
            raise StoreError(self._no_qdrant(error)) from error
        except ValueError as error:  # the client's word for bad arguments and, in memory, for missing collections
            if "not found" in str(error):
                raise CollectionNotFoundError(f"{self.url}: {error}") from error
            raise StoreError(f"{self.url}: {error}") from error

    def _no_qdrant(self, error: Exception) -> str:
        return f"{self.url} did not answer as Qdrant does ({error}); check that MODALIGN_QDRANT_URL names its HTTP port"

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def collections(self) -> list[str]:
        """Return the names of all collections, sorted."""
        return sorted(c.name for c in self._call(self._client.get_collections).collections)

    def create(self, name: str, config: CollectionConfig) -> None:
        """Create a collection and its payload indexes before there is data to index."""
        if self._call(self._client.collection_exists, name):
            raise StoreError(f"{self.url}: collection {name!r} exists")
        self._call(
            self._client.create_collection,
            name,
            vectors_config={
                vector_name: models.VectorParams(size=vector.dim, distance=models.Distance(vector.distance.value))
                for vector_name, vector in config.vectors.items()
            },
            hnsw_config=models.HnswConfigDiff(
                m=config.m, ef_construct=config.ef_construct, full_scan_threshold=max(10, config.indexing_threshold)
            ),
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=config.indexing_threshold),
            quantization_config=_QUANTIZATION[config.quantization] if config.quantization else None,
            metadata=dict(config.metadata),
        )
        try:
            for field, kind in config.payload_indexes.items():
                schema = models.PayloadSchemaType(kind)
                self._call(self._client.create_payload_index, name, field_name=field, field_schema=schema)
        except BaseException:
            self.drop(name)
            raise

    def drop(self, name: str) -> None:
        """Delete a collection; the server removes its aliases with it."""
        self._known_vectors.pop(name, None)
        targets = [alias for alias, target in self.aliases().items() if target == name]
        if targets:
            self._change_aliases([_delete_alias(alias) for alias in targets])
        if self._call(self._client.collection_exists, name):
            self._call(self._client.delete_collection, name)

    def describe(self, name: str) -> CollectionInfo:
        """Describe a collection."""
        resolved = self.aliases().get(name, name)
        info = self._call(self._client.get_collection, resolved)
        return CollectionInfo(
            resolved,
            _named_vectors(info),
            info.config.metadata or {},
            self.count(resolved),
            info.indexed_vectors_count or 0,
        )

    def _vectors(self, name: str) -> Mapping[str, VectorConfig]:
        if name not in self._known_vectors:
            self._known_vectors[name] = _named_vectors(self._call(self._client.get_collection, name))
        return self._known_vectors[name]

    def _upsert(self, name: str, points: Points) -> None:
        batch = models.Batch(
            ids=list(points.ids),
            vectors={points.vector_name: points.vectors.tolist()},
            payloads=list(points.payloads),
        )
        result = self._call(self._client.upsert, name, points=batch, wait=True)
        self._require_completed(result, f"write to collection {name}")

    def _require_completed(self, result: models.UpdateResult, what: str) -> None:
        if result.status != models.UpdateStatus.COMPLETED:
            raise StoreUnavailableError(f"{self.url} did not complete to {what}: {result.status.value}")

    def flush(self, name: str) -> None:
        """Do nothing: the server acknowledges what stands in its write-ahead log."""

    def delete(self, name: str, ids: Sequence[str]) -> None:
        """Delete points."""
        if not ids:  # the server refuses a request without points
            return
        selector = models.PointIdsList(points=list(ids))
        result = self._call(self._client.delete, name, points_selector=selector, wait=True)
        self._require_completed(result, f"delete from collection {name}")

    def retrieve(self, name: str, ids: Sequence[str], *, vector_name: str | None = None) -> list[Record]:
        """Return the points with these ids."""
        wanted = [vector_name] if vector_name else False
        found = self._call(self._client.retrieve, name, list(ids), with_payload=True, with_vectors=wanted)
        return [_record(point, vector_name) for point in found]

    def search(
        self,
        name: str,
        vector_name: str,
        queries: npt.NDArray[np.floating],
        k: int,
        *,
        filter: models.Filter | None = None,
        exact: bool = False,
        ef: int | None = None,
        with_payload: bool | Sequence[str] = True,
    ) -> list[list[Hit]]:
        """Search for each of the queries in one request."""
        fields = with_payload if isinstance(with_payload, bool) else list(with_payload)
        requests = [
            models.QueryRequest(
                query=query,
                using=vector_name,
                filter=filter,
                limit=k,
                params=models.SearchParams(exact=exact, hnsw_ef=ef, quantization=_QUANTIZED_SEARCH),
                with_payload=fields,
            )
            for query in queries.tolist()
        ]
        answers = self._call(self._client.query_batch_points, name, requests=requests)
        return [[Hit(str(p.id), p.score, p.payload or {}) for p in answer.points] for answer in answers]

    def scroll(
        self, name: str, *, vector_name: str | None = None, filter: models.Filter | None = None, page: int = 1000
    ) -> Iterator[list[Record]]:
        """Yield all points in pages."""
        offset = None
        wanted = [vector_name] if vector_name else False
        while True:
            found, offset = self._call(
                self._client.scroll,
                name,
                scroll_filter=filter,
                limit=page,
                offset=offset,
                with_payload=True,
                with_vectors=wanted,
            )
            if found:
                yield [_record(point, vector_name) for point in found]
            if offset is None:
                return

    def count(self, name: str, *, filter: models.Filter | None = None) -> int:
        """Count points exactly."""
        return self._call(self._client.count, name, count_filter=filter, exact=True).count

    def ready(self, name: str) -> CollectionInfo:
        """Wait until the server has nothing left to optimise over several polls."""
        deadline = time.monotonic() + INDEX_SECONDS
        stable = 0
        while stable < STABLE_POLLS:
            info = self._call(self._client.get_collection, name)
            if info.optimizer_status != models.OptimizersStatusOneOf.OK:
                raise StoreError(f"{self.url}: the optimizer of collection {name} failed: {info.optimizer_status}")
            stable = stable + 1 if info.status == models.CollectionStatus.GREEN else 0
            if info.status == models.CollectionStatus.GREY:
                # Grey means paused until the next update; an empty one wakes the optimizer.
                wake = models.OptimizersConfigDiff()
                self._call(self._client.update_collection, name, optimizers_config=wake)
            if stable < STABLE_POLLS:
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"{self.url}: collection {name} was not indexed within {INDEX_SECONDS:.0f} s (status "
                        f"{info.status.value}); it goes on, run the same command again later"
                    )
                time.sleep(POLL_SECONDS)
        return self.describe(name)

    def aliases(self) -> dict[str, str]:
        """Return `{alias: collection}`."""
        found = self._call(self._client.get_aliases).aliases
        return {alias.alias_name: alias.collection_name for alias in found}

    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """Switch aliases in one request, which the server applies as one."""
        existing, collections = self.aliases(), self.collections()
        for alias, target in aliases.items():
            if target not in collections:
                raise CollectionNotFoundError(f"{self.url} has no collection {target!r} for alias {alias!r}")
            if alias in collections:
                raise StoreError(f"{self.url}: {alias!r} is a collection and cannot be an alias")
        actions: list[models.AliasOperations] = []
        for alias, target in aliases.items():
            if alias in existing:
                actions.append(_delete_alias(alias))
            create = models.CreateAlias(collection_name=target, alias_name=alias)
            actions.append(models.CreateAliasOperation(create_alias=create))
        self._change_aliases(actions)

    def _change_aliases(self, actions: Sequence[models.AliasOperations]) -> None:
        self._known_vectors.clear()
        self._call(self._client.update_collection_aliases, change_aliases_operations=list(actions))


_QUANTIZATION = {
    "scalar": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
    )
}


_QUANTIZED_SEARCH = models.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)


def _delete_alias(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def _named_vectors(info: models.CollectionInfo) -> dict[str, VectorConfig]:
    vectors = info.config.params.vectors
    named = vectors if isinstance(vectors, dict) else {"": vectors} if vectors else {}
    return {name: VectorConfig(vector.size, Distance(vector.distance.value)) for name, vector in named.items()}


def _record(point: models.Record, vector_name: str | None) -> Record:
    vector = point.vector.get(vector_name) if vector_name and isinstance(point.vector, dict) else None
    return Record(str(point.id), None if vector is None else np.asarray(vector, np.float32), point.payload or {})
