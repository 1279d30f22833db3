"""An HTTP server that answers as a test says, over pytest-httpserver."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ssl import SSLContext
from typing import Any

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

Answer = tuple[int, dict[str, str], bytes]


class CannedServer:
    """Answers what `answer(method, path)` says; None ends the connection. Notes what it is asked.

    Attributes:
        requests, bodies: of each request: method and path, and the JSON that it carries.
        keys, encodings: of each request: the headers `api-key` and `Accept-Encoding`.
    """

    def __init__(self, server: HTTPServer):
        self.url = server.url_for("").rstrip("/")
        self.port = server.port
        self.answer: Callable[[str, str], Answer | None] = lambda method, path: (200, {}, version("1.16.0"))
        self.requests: list[tuple[str, str]] = []
        self.keys: list[str | None] = []
        self.encodings: list[str | None] = []
        self.bodies: list[Any] = []
        server.expect_request(re.compile("")).respond_with_handler(self._respond)

    def always(self, status: int, body: bytes = b"") -> None:
        self.answer = lambda method, path: (status, {}, body)

    def _respond(self, request: Request) -> Response:
        self.bodies.append(json.loads(request.data) if request.data else None)
        self.requests.append((request.method, request.path))
        self.keys.append(request.headers.get("api-key"))
        self.encodings.append(request.headers.get("Accept-Encoding"))
        answer = self.answer(request.method, request.path)
        if answer is None:
            return cut(request)
        status, headers, body = answer
        return Response(body, status, headers)


@contextmanager
def serving(handler: Callable[[Request], Response], ssl_context: SSLContext | None = None) -> Iterator[HTTPServer]:
    """Serve every request by `handler`, several at once."""
    with HTTPServer("127.0.0.1", ssl_context=ssl_context, threaded=True) as server:
        server.expect_request(re.compile("")).respond_with_handler(handler)
        yield server


def cut(request: Request, content: bytes = b"", sent: int = 0) -> Response:
    """End the connection of a request after the first bytes of `content`, or without an answer if none are sent."""

    def body() -> Iterator[bytes]:
        if sent:
            yield content[:sent]
        connection: socket.socket = request.environ["werkzeug.socket"]
        connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    return Response(body(), headers={"Content-Length": str(len(content))})


def version(number: str) -> bytes:
    """What Qdrant answers at its root."""
    return json.dumps({"title": "qdrant - vector search engine", "version": number}).encode()


def result(value: Any) -> bytes:
    """What Qdrant wraps its results in."""
    return json.dumps({"result": value, "status": "ok", "time": 0.0}).encode()
