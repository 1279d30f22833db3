"""A Qdrant client with requests that its own methods cannot send, or send slowly.

Its `count` does not pass a read consistency on. Its `upsert` makes an object of each number of a vector. Its
`query_batch_points` copies every number of every query, in case that one is a text for a model to encode: of 64
queries of 256 numbers, a third of the time until the answer.
"""

from collections.abc import Sequence
from typing import Any

from qdrant_client import QdrantClient, grpc, models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.http.models import QueryResponse  # `models` has another class of this name
from typing_extensions import override


class ConsistentClient(QdrantClient):
    """A `QdrantClient` with three more requests, for queries that are vectors.

    Args:
        timeout: seconds that a search may take.
        prefer_grpc: send searches over gRPC; over REST otherwise.
        options: as `QdrantClient` takes them.
    """

    def __init__(self, *, timeout: int, prefer_grpc: bool = False, **options: Any):
        super().__init__(timeout=timeout, prefer_grpc=prefer_grpc, **options)
        self._over_grpc, self._seconds = prefer_grpc, timeout

    def upsert_over_grpc(
        self,
        name: str,
        *,
        request: grpc.UpsertPoints,
        wait: bool,
        ordering: models.WriteOrdering,
        timeout: int,
    ) -> models.UpdateResult:
        """Write the points of a request, as `upsert` does; `timeout` is in seconds."""
        request.collection_name, request.wait = name, wait
        request.ordering.CopyFrom(RestToGrpc.convert_write_ordering(ordering))
        return GrpcToRest.convert_update_result(self.grpc_points.Upsert(request, timeout=timeout).result)

    def upsert_json(self, name: str, *, body: bytes, wait: bool, ordering: models.WriteOrdering) -> models.UpdateResult:
        """Write points over REST, as `upsert` does, given the JSON of its body."""
        sent: Any = body  # instead of a model, which would be written as JSON
        answer = self.http.points_api.upsert_points(
            collection_name=name, wait=wait, ordering=ordering, point_insert_operations=sent
        )
        assert answer.result is not None  # as the client's own methods do of an answer without a result
        return answer.result

    def count_consistently(
        self, name: str, filter: models.Filter | None, consistency: Any, *, over_grpc: bool, timeout: int
    ) -> int:
        """Count exactly: of each shard, the smallest number that the replicas hold which are asked.

        Args:
            name: of the collection.
            filter: only points that match it.
            consistency: how many replicas of each shard to ask.
            over_grpc: send it over gRPC; over REST otherwise.
            timeout: seconds that a gRPC request may take; one over REST takes what the client allows.
        """
        if over_grpc:
            request = grpc.CountPoints(
                collection_name=name,
                filter=None if filter is None else RestToGrpc.convert_filter(filter),
                exact=True,
                read_consistency=RestToGrpc.convert_read_consistency(consistency),
            )
            return int(self.grpc_points.Count(request, timeout=timeout).result.count)
        counted = self.http.points_api.count_points(
            collection_name=name, consistency=consistency, count_request=models.CountRequest(filter=filter, exact=True)
        )
        assert counted.result is not None  # as the client's own methods do of an answer without a result
        return int(counted.result.count)

    @override
    def query_batch_points(
        self,
        collection_name: str,
        requests: Sequence[models.QueryRequest],
        consistency: Any = None,
        timeout: int | None = None,
        **kwargs: Any,
    ) -> list[QueryResponse]:
        """Search with vectors; any other query is the caller's mistake."""
        if self._over_grpc:
            request = grpc.QueryBatchPoints(
                collection_name=collection_name,
                query_points=[RestToGrpc.convert_query_request(query, collection_name) for query in requests],
                read_consistency=None if consistency is None else RestToGrpc.convert_read_consistency(consistency),
            )
            answer = self.grpc_points.QueryBatch(request, timeout=self._seconds)
            convert = GrpcToRest.convert_scored_point
            return [QueryResponse(points=[*map(convert, of.result)]) for of in answer.result]
        answers: list[QueryResponse] | None = self.http.search_api.query_batch_points(
            collection_name=collection_name,
            consistency=consistency,
            query_request_batch=models.QueryRequestBatch(searches=list(requests)),
        ).result
        assert answers is not None  # as above
        return answers
