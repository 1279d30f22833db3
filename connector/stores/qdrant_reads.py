"""Reads of points from a server: by id, page by page, and counted, within what the server allows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from connector.stores.filter_lowering import with_short_lists
from connector.stores.points import Record, engine_id
from connector.stores.qdrant_cluster import Cluster
from connector.stores.qdrant_limits import ID_BYTES, LimitBook, Limits

COUNTED_AT_ONCE = 10_000  # ids of a page, where exact counts are refused


class PointReader:
    """Reads points of collections.

    Args:
        client: of the server.
        cluster: asks one replica, or all of them.
        limits: of the collections.
    """

    def __init__(self, client: QdrantClient, cluster: Cluster, limits: LimitBook):
        self._client = client
        self._cluster = cluster
        self._limits = limits

    def retrieve(self, name: str, ids: Sequence[str], vector_name: str | None, *, consistent: bool) -> list[Record]:
        """Return the points with these ids, as `Store.retrieve`."""
        wanted = [vector_name] if vector_name else False

        def send(part: Sequence[str], limits: Limits) -> list[models.Record]:
            def read(consistency: Any) -> list[models.Record]:
                return self._client.retrieve(
                    name, [*map(engine_id, part)], with_payload=True, with_vectors=wanted, consistency=consistency
                )

            return self._cluster.read(name, read, consistent=consistent)

        parts = self._limits.obey_in_parts(name, ids, "ids", send, item_bytes=ID_BYTES)
        return [_record(point, vector_name) for points in parts for point in points]

    def scroll(
        self,
        name: str,
        vector_name: str | None,
        filter: models.Filter | None,
        page: int,
        *,
        consistent: bool,
        first: str | None,
    ) -> Iterator[list[Record]]:
        """Yield the points that match a filter, from `first` on, in pages of at most `page` and of what is allowed."""
        options: dict[str, Any] = {"with_payload": True, "with_vectors": [vector_name] if vector_name else False}
        for points in self._pages(name, filter, page, consistent=consistent, first=first, **options):
            yield [_record(point, vector_name) for point in points]

    def count(self, name: str, filter: models.Filter | None, *, consistent: bool) -> int:
        """Count the points that match a filter, page by page where the server refuses to count exactly."""

        def send(limits: Limits) -> int:
            if limits.exact:
                return self._cluster.count(name, with_short_lists(filter, limits.values), consistent=consistent)
            options: dict[str, Any] = {"with_payload": False, "with_vectors": False, "consistent": consistent}
            return sum(map(len, self._pages(name, filter, COUNTED_AT_ONCE, **options)))

        return self._limits.obey(name, send)

    def _pages(
        self,
        name: str,
        filter: models.Filter | None,
        page: int,
        *,
        consistent: bool = False,
        first: str | None = None,
        **options: Any,
    ) -> Iterator[list[models.Record]]:
        offset: Any = None if first is None else engine_id(first)

        def count(limits: Limits) -> int:
            return min(page, limits.hits)

        def send(limits: Limits) -> tuple[list[models.Record], Any]:
            def read(consistency: Any) -> tuple[list[models.Record], Any]:
                return self._client.scroll(
                    name,
                    scroll_filter=with_short_lists(filter, limits.values),
                    limit=count(limits),
                    offset=offset,
                    consistency=consistency,
                    **options,
                )

            return self._cluster.read(name, read, consistent=consistent)

        while True:
            points, offset = self._limits.obey(name, send, counted="hits", count=count)
            if points:
                yield points
            if offset is None:
                return


def _record(point: models.Record, vector_name: str | None) -> Record:
    vector = point.vector.get(vector_name) if vector_name and isinstance(point.vector, dict) else None
    return Record(str(point.id), None if vector is None else np.asarray(vector, np.float32), point.payload or {})
