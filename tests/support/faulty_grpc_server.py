"""The failing Qdrant server over gRPC: enough of it to create a collection, write points and read them back."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import quote

import grpc
import trustme
from pydantic import TypeAdapter
from qdrant_client import grpc as proto
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from connector.stores.qdrant_failures import HTTP_STATUS
from tests.support.faulty_server import Fault, FaultyServer, RefusedError, Request

CODES = {422: grpc.StatusCode.INVALID_ARGUMENT} | {status: code for code, status in reversed(HTTP_STATUS.items())}


def place(request: Any) -> str:
    """The path of the collection that a call names."""
    return f"/collections/{quote(request.collection_name, safe='')}"


class _Asking:
    """Turns a call into a request and its failures into gRPC's."""

    def __init__(self, server: FaultyServer):
        self.server = server

    def ask(self, context: Any, method: str, path: str, body: Any = None) -> Any:
        key = dict(context.invocation_metadata()).get("api-key")
        request = Request(method, path, key, body)
        self.server.requests.append(request)
        fault = self.server.fail(request) or Fault(applied="all")
        try:
            if self.server.key is not None and key != self.server.key:
                raise RefusedError(401, "Must provide an API key")
            answer = None
            if fault.applied != "nothing":
                answer = self.server.carry_out(request, half=fault.applied == "half")
        except RefusedError as refused:
            self.abort(context, refused.status, str(refused))
        time.sleep(fault.delay)
        if fault.status != 200 or fault.cut:
            context.set_trailing_metadata([(name.lower(), value) for name, value in fault.headers.items()])
            self.abort(context, 503 if fault.cut else fault.status, "as it was told to")
        return answer["result"] if answer and "result" in answer else answer

    def abort(self, context: Any, status: int, message: str) -> NoReturn:
        context.abort(CODES[status], message)
        raise AssertionError("unreachable: abort raises")


class _Root(_Asking, proto.QdrantServicer):
    def HealthCheck(self, request: Any, context: Any) -> Any:
        answer = self.ask(context, "GET", "/")
        return proto.HealthCheckReply(title=answer["title"], version=answer["version"])


class _Collections(_Asking, proto.CollectionsServicer):
    def List(self, request: Any, context: Any) -> Any:
        names = [each["name"] for each in self.ask(context, "GET", "/collections")["collections"]]
        return proto.ListCollectionsResponse(collections=[proto.CollectionDescription(name=name) for name in names])

    def CollectionExists(self, request: Any, context: Any) -> Any:
        found = self.ask(context, "GET", f"{place(request)}/exists")["exists"]
        return proto.CollectionExistsResponse(result=proto.CollectionExists(exists=found))

    def Create(self, request: Any, context: Any) -> Any:
        vectors = GrpcToRest.convert_vectors_config(request.vectors_config)
        metadata = GrpcToRest.convert_payload(request.metadata)
        asked = models.CreateCollection(vectors=vectors, metadata=metadata)
        self.ask(context, "PUT", place(request), asked.model_dump(mode="json"))
        return proto.CollectionOperationResponse(result=True)

    def Get(self, request: Any, context: Any) -> Any:
        found = models.CollectionInfo.model_validate(self.ask(context, "GET", place(request)))
        return proto.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(found))


class _Points(_Asking, proto.PointsServicer):
    def Upsert(self, request: Any, context: Any) -> Any:
        points = [GrpcToRest.convert_point_struct(each) for each in request.points]
        vectors = [point.vector for point in points]
        assert all(isinstance(vector, dict) for vector in vectors)
        names = {name for vector in vectors if isinstance(vector, dict) for name in vector}
        batch = {
            "ids": [point.id for point in points],
            "vectors": {name: [vector[name] for vector in vectors if isinstance(vector, dict)] for name in names},
            "payloads": [point.payload for point in points],
        }
        return self._done(self.ask(context, "PUT", f"{place(request)}/points", {"batch": batch}))

    def _done(self, answer: Any) -> Any:
        result = models.UpdateResult.model_validate(answer)
        return proto.PointsOperationResponse(result=RestToGrpc.convert_update_result(result))

    def _records(self, found: Any) -> list[Any]:
        records = TypeAdapter(list[models.Record]).validate_python(found)
        return [
            proto.RetrievedPoint(
                id=RestToGrpc.convert_extended_point_id(each.id),
                payload=RestToGrpc.convert_payload(each.payload or {}),
                vectors=None if each.vector is None else RestToGrpc.convert_vector_struct_output(each.vector),
            )
            for each in records
        ]

    def Scroll(self, request: Any, context: Any) -> Any:
        asked = models.ScrollRequest(
            filter=GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None,
            limit=request.limit,
            offset=GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None,
            with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
            with_vector=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
        )
        body = asked.model_dump(mode="json", exclude_none=True, by_alias=True)
        found = self.ask(context, "POST", f"{place(request)}/points/scroll", body)
        offset = found["next_page_offset"]
        return proto.ScrollResponse(
            result=self._records(found["points"]),
            next_page_offset=None if offset is None else RestToGrpc.convert_extended_point_id(offset),
        )


@contextmanager
def over_grpc(faulty: FaultyServer, certificate: trustme.LeafCert | None = None) -> Iterator[str]:
    """Serve it over gRPC as well; yield the URL."""
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, options=[("grpc.max_receive_message_length", faulty.body_limit)])
        proto.add_QdrantServicer_to_server(_Root(faulty), server)  # type: ignore[no-untyped-call]
        proto.add_CollectionsServicer_to_server(_Collections(faulty), server)  # type: ignore[no-untyped-call]
        proto.add_PointsServicer_to_server(_Points(faulty), server)  # type: ignore[no-untyped-call]
        if certificate is None:
            scheme, port = "grpc", server.add_insecure_port("127.0.0.1:0")
        else:
            chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
            credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
            scheme, port = "grpcs", server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield f"{scheme}://127.0.0.1:{port}"
        finally:
            server.stop(grace=0).wait()
