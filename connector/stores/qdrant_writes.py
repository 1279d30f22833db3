"""Writing points to a server: a batch is cut into requests, and a request that is refused is narrowed to its points."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import RestToGrpc, payload_to_grpc
from qdrant_client.uploader.grpc_uploader import convert_vector_struct

from connector.errors import (
    PointsRefusedError,
    Refusal,
    RequestOverRateError,
    RequestRefusedError,
    RequestTooLargeError,
)
from connector.rejects import Reason
from connector.stores.points import Points, engine_id
from connector.stores.qdrant_limits import LimitBook, Limits

UPLOADS = 4
NUMBER_BYTES = 25  # of a float32 written as JSON, at most: a sign, 17 digits, a point, an exponent, a comma
POINT_BYTES = 128  # of an id and the JSON around it
# If so many points are all refused for the same reason, not the points are wrong but the request.
ALIKE = 16


def rest_points(points: Points) -> models.Batch:
    """Return points as a request over REST has them."""
    vectors = {points.vector_name: points.vectors.tolist()}
    return models.Batch(ids=[*map(engine_id, points.ids)], vectors=vectors, payloads=list(points.payloads))


def grpc_points(points: Points) -> list[grpc.PointStruct]:
    """Return points as a request over gRPC has them, made as bulk uploads of the client make them."""
    return [
        grpc.PointStruct(
            id=RestToGrpc.convert_extended_point_id(engine_id(id_)),
            vectors=convert_vector_struct({points.vector_name: vector}),
            payload=payload_to_grpc(payload),
        )
        for id_, vector, payload in zip(points.ids, points.vectors, points.payloads, strict=True)
    ]


class PointWriter:
    """Writes batches of points in several requests at once.

    Args:
        send: writes the points of one request into a collection; raises what the server refuses.
        limits: of the collections.
        binary: vectors are sent as float32, as gRPC does, instead of as JSON.
        uploads: how many requests of one batch are under way at once.
    """

    def __init__(self, send: Callable[[str, Points], None], limits: LimitBook, *, binary: bool, uploads: int = UPLOADS):
        self._send = send
        self._limits = limits
        self._binary = binary
        self._threads = ThreadPoolExecutor(uploads, thread_name_prefix="upload")

    def close(self) -> None:
        """Wait for requests under way."""
        self._threads.shutdown()

    def write(self, name: str, points: Points) -> None:
        """Write a batch; return once the server has completed all of it.

        Raises:
            PointsRefusedError: the server refuses some points; all others are written.
            RequestRefusedError: it refuses all of them for one reason.
        """
        refused: dict[int, Refusal] = {}
        requests = self._requests(points, range(len(points.ids)), self._limits.of(name))
        tasks = [(copy_context(), rows) for rows in requests]  # the threads write within the deadline that holds here
        for of_request in self._threads.map(lambda task: task[0].run(self._write, name, points, task[1]), tasks):
            refused |= of_request
        if len(refused) == len(points.ids) >= ALIKE and len(set(refused.values())) == 1:
            raise RequestRefusedError(next(iter(refused.values())).detail)
        if refused:
            raise PointsRefusedError(f"collection {name}", refused)

    def _requests(self, points: Points, rows: range, limits: Limits) -> Iterator[range]:
        """Cut rows into requests within the limits; a single row is never cut."""
        start, size = rows.start, 0
        for row in rows:
            added = self._bytes(points, row)
            if row > start and (size + added > limits.bytes or row - start >= limits.points):
                yield range(start, row)
                start, size = row, 0
            size += added
        yield range(start, rows.stop)

    def _bytes(self, points: Points, row: int) -> int:
        """Return the bytes of a point in a request, at most: json.dumps writes escapes, which are longer than UTF-8."""
        number = points.vectors.itemsize if self._binary else NUMBER_BYTES
        return POINT_BYTES + int(points.vectors.shape[1]) * number + len(json.dumps(points.payloads[row]))

    def _write(self, name: str, points: Points, rows: range) -> dict[int, Refusal]:
        """Write the points at `rows`, in halves if the server refuses the request; return the single points it refuses.

        Each half is written or refused on its own, so a wrong point takes no other one with it.
        """
        limits = self._limits.of(name)
        parts = list(self._requests(points, rows, limits))
        if len(parts) == 1:
            try:
                self._send(name, points.take(rows))
            except (RequestRefusedError, RequestTooLargeError) as refusal:
                if self._limits.learn(name, refusal, limits):
                    return self._write(name, points, rows)
                if len(rows) == 1:
                    if isinstance(refusal, RequestOverRateError):
                        raise
                    too_large = isinstance(refusal, RequestTooLargeError)
                    reason = Reason.TOO_LARGE if too_large else Reason.REFUSED_BY_QDRANT
                    return {rows[0]: Refusal(reason, str(refusal))}
                middle = len(rows) // 2
                if isinstance(refusal, RequestOverRateError):  # the next batch is cut before it is sent
                    self._limits.narrow(name, points=middle)
                elif isinstance(refusal, RequestTooLargeError):
                    self._limits.narrow(name, bytes=sum(self._bytes(points, row) for row in rows) // 2)
                parts = [rows[:middle], rows[middle:]]
            else:
                return {}
        refused: dict[int, Refusal] = {}
        for part in parts:
            refused |= self._write(name, points, part)
        return refused
