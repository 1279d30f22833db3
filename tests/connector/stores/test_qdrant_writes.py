"""How points are written to a server: the bytes of a request, and how a batch is cut into requests."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import RestToGrpc

from connector.stores.points import Points, engine_id
from connector.stores.qdrant_limits import LimitBook, Limits
from connector.stores.qdrant_writes import PointWriter, WriteRequest, grpc_request, rest_body
from tests.support.json_values import JSON_VALUES
from tests.support.store_contract import ids

PAYLOADS = st.lists(st.dictionaries(st.text(), JSON_VALUES), min_size=1, max_size=4)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def some_points(payloads: list[dict[str, Any]], number: float = 0.1, dtype: Any = np.float32) -> Points:
    """Points of which one has the id of another program."""
    vectors = np.full((len(payloads), 5), number, dtype)
    return Points("v", ["7", *ids(len(payloads))][: len(payloads)], vectors, payloads)


@pytest.mark.slow
@given(PAYLOADS, FLOAT32)
def test_a_message_is_the_one_that_the_client_makes(payloads: list[dict[str, Any]], number: float) -> None:
    points = some_points(payloads, number)
    made = [
        models.PointStruct(id=engine_id(id_), vector={"v": vector}, payload=payload)
        for id_, vector, payload in zip(points.ids, points.vectors.tolist(), payloads, strict=True)
    ]
    expected = grpc.UpsertPoints(points=[RestToGrpc.convert_point_struct(point) for point in made])
    assert grpc_request(points) == expected


@pytest.mark.slow
@given(PAYLOADS, FLOAT32)
def test_a_body_holds_what_was_given(payloads: list[dict[str, Any]], number: float) -> None:
    points = some_points(payloads, number)
    batch = json.loads(rest_body(points))["batch"]
    assert batch["ids"] == [*map(engine_id, points.ids)]
    assert json.dumps(batch["payloads"]) == json.dumps(payloads)
    read = np.array(batch["vectors"]["v"], np.float32)
    assert read.tobytes() == points.vectors.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_any_numbers_are_sent_as_float32(dtype: Any) -> None:
    points = some_points([{}, {}], 0.25, dtype)
    assert grpc_request(points) == grpc_request(some_points([{}, {}], 0.25))
    assert rest_body(points) == rest_body(some_points([{}, {}], 0.25))


def test_columns_of_an_array_are_sent_as_a_copy_of_them_is() -> None:
    wide = np.arange(40, dtype=np.float32).reshape(4, 10)
    columns = Points("v", ids(4), wide[:, ::2], [{}] * 4)
    copied = Points("v", ids(4), wide[:, ::2].copy(), [{}] * 4)
    assert grpc_request(columns) == grpc_request(copied)
    assert rest_body(columns) == rest_body(copied)


def test_a_request_of_too_many_bytes_is_halved_before_it_is_sent() -> None:
    sent: list[tuple[int, list[str]]] = []

    def request(name: str, points: Points) -> WriteRequest:
        size = len(rest_body(points))
        return WriteRequest(size, lambda: sent.append((size, [*points.ids])))

    most = 2000
    writer = PointWriter(request, LimitBook(Limits(bytes=most)), uploads=1)
    payloads = [{"text": "x" * (3 * most if row == 50 else 100)} for row in range(100)]
    points = Points("v", ids(100), np.ones((100, 4), np.float32), payloads)
    writer.write("c", points)
    writer.close()
    assert [id_ for _, of_request in sent for id_ in of_request] == points.ids
    assert [of_request for size, of_request in sent if size > most] == [[points.ids[50]]]
    assert len(sent) < 40
