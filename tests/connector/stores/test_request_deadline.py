"""A server that answers slowly is not waited for without end."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from connector.errors import StoreUnavailableError
from connector.stores.qdrant_connection import connected
from tests.support.canned_server import version
from tests.support.errors import raises

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BODY = version("1.18.0")
ANSWER = HEAD + f"content-length: {len(BODY)}\r\n\r\n".encode() + BODY


@contextmanager
def slow_server(answer: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve every connection by `answer` in a thread; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)  # what nobody reads fills little of the network

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=respond, args=(connection,), daemon=True).start()

        def respond(plain: socket.socket) -> None:
            with (
                suppress(OSError),
                plain,
                context.wrap_socket(plain, server_side=True) if context else plain as connection,
            ):
                connection.recv(1 << 16)
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def trickling(first: bytes, rest: bytes) -> Callable[[socket.socket], None]:
    """Send the first bytes at once and the others one by one, for some minute."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(first)
        for byte in rest:
            time.sleep(0.3)
            connection.sendall(bytes([byte]))

    return answer


SLOW = {
    "head and body": trickling(b"", ANSWER),
    "head": trickling(HEAD, b"x-slow: " + b"x" * 300),
    "body": trickling(ANSWER[: len(ANSWER) - len(BODY)], BODY),
    "chunks": trickling(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n{\r\n" * 50),
    "informational": trickling(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20),
    "nothing": lambda connection: connection.recv(1) and None,  # until the client closes it
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SLOW)
@pytest.mark.parametrize("encrypted", [False, True])
def test_an_answer_that_comes_byte_by_byte_ends_at_the_timeout(tmp_path: Path, what: str, encrypted: bool) -> None:
    context, ca_file = None, None
    if encrypted:
        authority = trustme.CA()
        context, ca_file = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path / "ca.pem"
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(str(ca_file))
    with slow_server(SLOW[what], context) as port:
        url = f"http{'s' * encrypted}://127.0.0.1:{port}"
        connection = connected(url, timeout=1, ca_file=ca_file)
        started = time.monotonic()
        with raises(StoreUnavailableError, url, "MODALIGN_QDRANT_TIMEOUT"):
            connection.translated(connection.client.info)
        connection.client.close()
    assert 0.9 < time.monotonic() - started < 5


def test_an_answer_in_time_is_read_and_its_connection_is_used_again() -> None:
    connections: list[socket.socket] = []

    def answer(connection: socket.socket) -> None:
        connections.append(connection)
        while True:
            connection.sendall(ANSWER)
            if not connection.recv(1 << 16):
                return

    with slow_server(answer) as port:
        connection = connected(f"http://127.0.0.1:{port}", timeout=2)
        for _ in range(3):
            assert connection.translated(connection.client.info).version == "1.18.0"
        connection.client.close()
    assert len(connections) == 1


def test_a_request_body_that_nobody_reads_ends_at_the_timeout() -> None:
    with slow_server(lambda connection: time.sleep(6)) as port:
        connection = connected(f"http://127.0.0.1:{port}", timeout=1)
        started = time.monotonic()
        with raises(StoreUnavailableError):
            connection.translated(connection.client.retrieve, "c", list(range(700_000)))
        connection.client.close()
    assert time.monotonic() - started < 5
