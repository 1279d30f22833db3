"""Servers of the tests start, come back with their data after a kill, and never outlive the tests."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.qdrant_nodes import Node, Server
from tests.support.qdrant_servers import BINARY, single_server
from tests.support.store_contract import config, normal, points


def answers(server: Server) -> bool:
    with server.client() as client:
        try:
            return client.get("/readyz").is_success
        except httpx.TransportError:
            return False


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_node_comes_back_at_its_ports_with_its_data(
    own_server: Node, collection: str, rng: np.random.Generator, how: str
) -> None:
    with own_server.connect() as store:
        store.create(collection, config())
        store.upsert(collection, points(normal(rng, 3)))
    getattr(own_server, how)()
    assert not answers(own_server)
    own_server.start()
    for protocol in ("REST", "gRPC"):
        with own_server.connect(protocol) as store:
            assert store.count(collection) == 3
    with own_server.connect() as store:
        store.drop(collection)


@pytest.mark.parametrize("error", [AssertionError, KeyboardInterrupt])
def test_a_server_ends_with_the_test_that_fails_or_is_interrupted(error: type[BaseException]) -> None:
    started: list[Server] = []

    def test() -> None:
        with single_server() as node:
            started.append(node)
            assert answers(node)
            raise error

    with pytest.raises(error):
        test()
    assert [answers(node) for node in started] == [False]


PROGRAM = """
import time
from tests.support.qdrant_servers import single_server

with single_server() as node:
    print(node.url, node.directory, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv, which ends a server with its parent")
@pytest.mark.skipif(BINARY not in os.environ, reason=f"needs {BINARY}: containers outlive who started them")
def test_a_server_ends_with_tests_that_are_killed_and_the_next_one_removes_its_data() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        url, directory = tests.stdout.readline().split()
        server = Server(url, None)
        assert answers(server)
        tests.kill()
    deadline = time.monotonic() + 10
    while answers(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with single_server():
        assert not Path(directory).exists()
