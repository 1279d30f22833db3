"""HTTP requests with a deadline for the whole of them.

httpx limits every wait for bytes. A server or a proxy that sends one byte a second is so waited for without end.
"""

import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore
import httpx
from typing_extensions import override

WRITTEN_AT_ONCE = 1 << 16  # bytes; the time left is looked at in between
CONNECTIONS = 100


class RequestDeadline(threading.local):
    """The moment by the monotonic clock at which the request of this thread has to be answered; None: no limit."""

    at: float | None = None

    def left(self, timeout: float | None) -> float | None:
        """Return how long the next step may take, at most `timeout` seconds.

        Raises:
            httpcore.ReadTimeout: the moment has passed.
        """
        if self.at is None:
            return timeout
        seconds = self.at - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout("the whole answer did not arrive within the timeout")
        return seconds if timeout is None else min(timeout, seconds)


class DeadlineTransport(httpx.BaseTransport):
    """Sends requests of httpx. The time for reading bounds a whole request: connecting, sending and the answer."""

    def __init__(self, verify: ssl.SSLContext):
        self._deadline = RequestDeadline()
        self._pool = httpcore.ConnectionPool(
            ssl_context=verify,
            max_connections=CONNECTIONS,
            keepalive_expiry=5.0,
            network_backend=_Backend(self._deadline),
        )

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. The body of the response is to be read in the same thread."""
        seconds = request.extensions.get("timeout", {}).get("read")
        self._deadline.at = None if seconds is None else time.monotonic() + seconds
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        response = self._pool.handle_request(
            httpcore.Request(
                request.method, url, headers=request.headers.raw, content=request.stream, extensions=request.extensions
            )
        )
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response), extensions=response.extensions
        )

    @override
    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response):
        self._response = response

    @override
    def __iter__(self) -> Iterator[bytes]:
        yield from self._response.iter_stream()

    @override
    def close(self) -> None:
        self._response.close()


class _Backend(httpcore.NetworkBackend):
    def __init__(self, deadline: RequestDeadline):
        self._deadline = deadline
        self._backend = httpcore.SyncBackend()

    @override
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout)
        return _Stream(self._backend.connect_tcp(host, port, left, local_address, socket_options), self._deadline)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: RequestDeadline):
        self._stream, self._deadline = stream, deadline

    @override
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left(timeout))

    @override
    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), WRITTEN_AT_ONCE):
            self._stream.write(buffer[start : start + WRITTEN_AT_ONCE], self._deadline.left(timeout))

    @override
    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    @override
    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    @override
    def close(self) -> None:
        self._stream.close()
