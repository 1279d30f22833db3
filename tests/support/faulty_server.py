"""A Qdrant server that fails as it is told to: REST by pytest-httpserver, with the client's local mode for its data.

Faults have to hit a push in the middle, and several processes have to share a server, so its answers cannot be canned.
`server.fail` sees every request and may return a `Fault`.
"""

import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

import trustme
import werkzeug
from pydantic import BaseModel, ValidationError
from qdrant_client import QdrantClient, models

from tests.support.canned_server import cut, serving

VERSION = "1.19.1"
BODY_LIMIT = 32 << 20
IN_PARAMS = ("on_disk_payload", "shard_number", "replication_factor", "write_consistency_factor")
FORBIDDEN = frozenset('<>:"/\\|?*')


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        status: is answered, unless the connection ends before.
        headers: of the answer.
        applied: whether the request is carried out before: all of it, the first half of its points, or nothing.
        cut: end the connection: instead of an answer, or in the middle of it.
        delay: seconds before the answer.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    applied: Literal["all", "half", "nothing"] = "nothing"
    cut: Literal["before", "middle"] | None = None
    delay: float = 0.0


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    key: str | None
    body: Any
    size: int = 0  # bytes of the body over HTTP

    @property
    def writes_points(self) -> bool:
        return self.method == "PUT" and self.path.endswith("/points")


class RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class FaultyServer:
    """The server. Its `data` is a client of ones own, to look behind its back.

    Attributes:
        url: once it is `running`.
        fail: sees every request, and may return a fault.
    """

    def __init__(self, *, version: str = VERSION, key: str | None = None, body_limit: int = BODY_LIMIT):
        self.data = QdrantClient(":memory:")
        # What local mode does not keep: how each collection was created, and its payload indexes by their field.
        self.created: dict[str, dict[str, Any]] = {}
        self.indexes: dict[str, dict[str, Any]] = {}
        self.version, self.key, self.body_limit = version, key, body_limit
        self.url = ""
        self.requests: list[Request] = []
        self.fail: Callable[[Request], Fault | None] = lambda request: None
        self.lock = threading.Lock()  # the data are no server's

    def admits(self, request: Request) -> bool:
        """Say whether the key of a request is the server's."""
        return self.key is None or request.key == self.key

    def check_payload(self, point: dict[str, Any]) -> None:
        """Refuse a payload that says so, as strict mode would."""
        if point.get("refuse"):
            raise RefusedError(400, f"Wrong input: payload of number {point.get('number')} is refused")

    def carry_out(self, request: Request, *, half: bool = False) -> Any:
        for (method, pattern), operation in ROUTES.items():
            if method == request.method and (match := re.fullmatch(pattern, request.path)):
                with self.lock:
                    try:
                        return operation(
                            self, *map(unquote, match.groups()), body=halved(request) if half else request.body
                        )
                    except ValidationError as error:
                        raise RefusedError(422, str(error)) from None
                    except ValueError as error:
                        raise RefusedError(404 if "not found" in str(error) else 400, f"Wrong input: {error}") from None
        raise RefusedError(404, "")

    def respond(self, http: werkzeug.Request) -> werkzeug.Response:
        """Answer a request over HTTP."""
        body = json.loads(http.data) if http.data else None
        request = Request(http.method, http.path, http.headers.get("api-key"), body, len(http.data))
        self.requests.append(request)
        fault = self.fail(request) or Fault(applied="all")
        answer: Any = None
        status = fault.status
        try:
            if not self.admits(request):
                raise RefusedError(401, "Must provide an API key")
            if request.size > self.body_limit:
                raise RefusedError(413, "Payload reached size limit")
            if fault.applied != "nothing":
                answer = self.carry_out(request, half=fault.applied == "half")
        except RefusedError as refused:
            status, answer = refused.status, {"status": {"error": str(refused)}}
        time.sleep(fault.delay)
        content = json.dumps(answer).encode()
        if fault.cut:
            return cut(http, content, len(content) // 2 if fault.cut == "middle" else 0)
        return werkzeug.Response(content, status, fault.headers)


def halved(request: Request) -> Any:
    """The body of a write with the first half of its points."""
    batch = request.body["batch"]
    half = len(batch["ids"]) // 2
    vectors = {name: rows[:half] for name, rows in batch["vectors"].items()}
    return {"batch": {"ids": batch["ids"][:half], "vectors": vectors, "payloads": batch["payloads"][:half]}}


def answer(result: Any) -> dict[str, Any]:
    """What Qdrant wraps its results in."""

    def plain(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json", exclude_none=True)
        return [plain(each) for each in value] if isinstance(value, list) else value

    return {"result": plain(result), "status": "ok", "time": 0.0}


def root(server: FaultyServer, body: Any) -> Any:
    return {"title": "qdrant - vector search engine", "version": server.version}


def create(server: FaultyServer, name: str, body: Any) -> Any:
    asked = models.CreateCollection.model_validate(body)
    if server.data.collection_exists(name):
        raise RefusedError(409, f"Wrong input: Collection `{name}` already exists!")
    if FORBIDDEN & set(name):
        raise RefusedError(
            422, f"Validation error: collection name {name!r} cannot contain {' '.join(sorted(FORBIDDEN))}"
        )
    if any(vector.size < 1 for vector in (asked.vectors or {}).values()):  # type: ignore[union-attr]
        raise RefusedError(422, "Validation error: vectors.size: value 0 invalid, must be 1 or larger")
    server.data.create_collection(name, vectors_config=asked.vectors, metadata=asked.metadata)
    server.created[name], server.indexes[name] = body, {}
    return answer(result=True)


def describe(server: FaultyServer, name: str, body: Any) -> Any:
    aliases = {each.alias_name: each.collection_name for each in server.data.get_aliases().aliases}
    resolved = aliases.get(name, name)
    described: dict[str, Any] = answer(server.data.get_collection(resolved))
    result, created = described["result"], server.created.get(resolved, {})
    config = result["config"]
    config["params"] |= {name: created[name] for name in IN_PARAMS if created.get(name) is not None}
    config["hnsw_config"] |= created.get("hnsw_config") or {}
    config["optimizer_config"] |= created.get("optimizers_config") or {}
    config["quantization_config"] = created.get("quantization_config")
    result["payload_schema"] = server.indexes.get(resolved, {})
    return described


def create_index(server: FaultyServer, name: str, body: Any) -> Any:
    schema = body["field_schema"]
    kind, params = (schema, None) if isinstance(schema, str) else (schema["type"], schema)
    index = {"data_type": kind, "params": params, "points": 0}
    server.indexes.setdefault(name, {})[body["field_name"]] = index
    return answer({"operation_id": 0, "status": "completed"})


def upsert(server: FaultyServer, name: str, body: Any) -> Any:
    batch = models.PointsBatch.model_validate(body).batch
    for payload in batch.payloads or []:
        server.check_payload(payload or {})
    return answer(server.data.upsert(name, points=batch))


def delete(server: FaultyServer, name: str, body: Any) -> Any:
    if not body["points"]:
        raise RefusedError(400, "Bad request: Empty update request")
    return answer(server.data.delete(name, points_selector=models.PointIdsList.model_validate(body)))


def retrieve(server: FaultyServer, name: str, body: Any) -> Any:
    found = server.data.retrieve(
        name, ids=body["ids"], with_payload=body["with_payload"], with_vectors=body["with_vector"]
    )
    return answer(found)


def query(server: FaultyServer, name: str, body: Any) -> Any:
    searches = models.QueryRequestBatch.model_validate(body).searches
    return answer(server.data.query_batch_points(name, requests=searches))


def scroll(server: FaultyServer, name: str, body: Any) -> Any:
    asked = models.ScrollRequest.model_validate(body)
    points, offset = server.data.scroll(
        name,
        scroll_filter=asked.filter,
        limit=asked.limit or 10,
        offset=asked.offset,
        with_payload=bool(asked.with_payload),
        with_vectors=asked.with_vector or False,
    )
    return answer({"points": answer(points)["result"], "next_page_offset": offset})


def count(server: FaultyServer, name: str, body: Any) -> Any:
    asked = models.CountRequest.model_validate(body)
    return answer(server.data.count(name, count_filter=asked.filter, exact=True))


def change_aliases(server: FaultyServer, body: Any) -> Any:
    actions = models.ChangeAliasesOperation.model_validate(body).actions
    return answer(server.data.update_collection_aliases(change_aliases_operations=actions))


COLLECTION = r"/collections/([^/]+)"
ROUTES: dict[tuple[str, str], Callable[..., Any]] = {
    ("GET", "/"): root,
    ("GET", "/collections"): lambda server, body: answer(server.data.get_collections()),
    ("GET", "/aliases"): lambda server, body: answer(server.data.get_aliases()),
    ("POST", "/collections/aliases"): change_aliases,
    ("GET", f"{COLLECTION}/exists"): lambda server, name, body: answer({"exists": server.data.collection_exists(name)}),
    ("PUT", COLLECTION): create,
    ("GET", COLLECTION): describe,
    ("PATCH", COLLECTION): lambda server, name, body: answer(result=True),
    ("DELETE", COLLECTION): lambda server, name, body: answer(server.data.delete_collection(name)),
    ("PUT", f"{COLLECTION}/index"): create_index,
    ("PUT", f"{COLLECTION}/points"): upsert,
    ("POST", f"{COLLECTION}/points"): retrieve,
    ("POST", f"{COLLECTION}/points/delete"): delete,
    ("POST", f"{COLLECTION}/points/query/batch"): query,
    ("POST", f"{COLLECTION}/points/scroll"): scroll,
    ("POST", f"{COLLECTION}/points/count"): count,
}


@contextmanager
def running(server: FaultyServer, certificate: trustme.LeafCert | None = None) -> Iterator[FaultyServer]:
    """Serve in threads, over TLS with this certificate."""
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
    with serving(server.respond, context) as http:
        server.url = http.url_for("").rstrip("/")
        yield server
    server.data.close()
