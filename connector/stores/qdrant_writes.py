"""Writing points to a server: a batch is cut into requests, and a request that is refused is narrowed to its points."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass

import numpy as np
import orjson
from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import json_to_value
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
from connector.stores.qdrant_limits import LimitBook

UPLOADS = 4
# If so many points are all refused for the same reason, not the points are wrong but the request.
ALIKE = 16


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """Some points as a request of one protocol.

    Attributes:
        bytes: of its body.
        send: sends it; raises what the server refuses.
    """

    bytes: int
    send: Callable[[], None]


def local_batch(points: Points) -> models.Batch:
    """Return points as the client's local mode takes them."""
    vectors = {points.vector_name: points.vectors.tolist()}
    return models.Batch(ids=[*map(engine_id, points.ids)], vectors=vectors, payloads=list(points.payloads))


def rest_body(points: Points) -> bytes:
    """Return the body of a request over REST with points.

    A number has the digits that tell it from other float32: half of those that tell the same number from other
    float64, which are what the client writes.
    """
    vectors = {points.vector_name: np.ascontiguousarray(points.vectors, np.float32)}
    batch = {"ids": [*map(engine_id, points.ids)], "vectors": vectors, "payloads": list(points.payloads)}
    return orjson.dumps({"batch": batch}, option=orjson.OPT_SERIALIZE_NUMPY)


def grpc_request(points: Points) -> grpc.UpsertPoints:
    """Return a request with points, without the name of a collection.

    Messages are filled in place, and a vector is the bytes of a message that differs in its numbers only: half the
    time in which the client's own conversion makes a message of each part and copies it.
    """
    vectors = np.ascontiguousarray(points.vectors, "<f4")
    zeros = convert_vector_struct({points.vector_name: np.zeros(vectors.shape[1], np.float32)}).SerializeToString()
    before = zeros[: len(zeros) - 4 * vectors.shape[1]]  # they end with their numbers
    request = grpc.UpsertPoints()
    for id_, vector, payload in zip(points.ids, vectors, points.payloads, strict=True):
        point = request.points.add()
        if id_.isdecimal():
            point.id.num = int(id_)
        else:
            point.id.uuid = id_
        point.vectors.MergeFromString(before + vector.tobytes())
        fields = point.payload
        for name, value in payload.items():
            if type(value) is str:  # as most are
                fields[name].string_value = value
            else:
                fields[name].CopyFrom(json_to_value(value))
    return request


class PointWriter:
    """Writes batches of points in several requests at once.

    Args:
        request: makes a request of points for a collection.
        limits: of the collections.
        uploads: how many requests of one batch are under way at once.
    """

    def __init__(self, request: Callable[[str, Points], WriteRequest], limits: LimitBook, *, uploads: int = UPLOADS):
        self._request = request
        self._limits = limits
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
        rows = range(len(points.ids))
        # The threads write within the deadline that holds here.
        tasks = [(copy_context(), part) for part in _cut(rows, self._limits.of(name).points)]
        for of_request in self._threads.map(lambda task: task[0].run(self._write, name, points, task[1]), tasks):
            refused |= of_request
        if len(refused) == len(points.ids) >= ALIKE and len(set(refused.values())) == 1:
            raise RequestRefusedError(next(iter(refused.values())).detail)
        if refused:
            raise PointsRefusedError(f"collection {name}", refused)

    def _write(self, name: str, points: Points, rows: range) -> dict[int, Refusal]:
        """Write the points at `rows`, in halves if the server refuses the request; return the single points it refuses.

        Each half is written or refused on its own, so a wrong point takes no other one with it. A request of more bytes
        than are allowed is halved before it is sent; a single point is always sent.
        """
        limits = self._limits.of(name)
        parts = _cut(rows, limits.points)
        if len(parts) == 1:
            middle = len(rows) // 2
            parts = [rows[:middle], rows[middle:]]
            request = self._request(name, points.take(rows))
            if request.bytes <= limits.bytes or len(rows) == 1:
                try:
                    request.send()
                except (RequestRefusedError, RequestTooLargeError) as refusal:
                    if self._limits.learn(name, refusal, limits):
                        return self._write(name, points, rows)
                    if len(rows) == 1:
                        if isinstance(refusal, RequestOverRateError):
                            raise
                        too_large = isinstance(refusal, RequestTooLargeError)
                        reason = Reason.TOO_LARGE if too_large else Reason.REFUSED_BY_QDRANT
                        return {rows[0]: Refusal(reason, str(refusal))}
                    if isinstance(refusal, RequestOverRateError):  # the next batch is cut before it is sent
                        self._limits.narrow(name, points=middle)
                    elif isinstance(refusal, RequestTooLargeError):
                        self._limits.narrow(name, bytes=request.bytes // 2)
                else:
                    return {}
        refused: dict[int, Refusal] = {}
        for part in parts:
            refused |= self._write(name, points, part)
        return refused


def _cut(rows: range, most: int) -> list[range]:
    return [rows[start : start + most] for start in range(0, len(rows), most)]
