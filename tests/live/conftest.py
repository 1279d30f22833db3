"""What the tests against real servers start from. Each skips, and says why, without a server and without Docker."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from pytest_docker.plugin import get_docker_services

from connector.stores.qdrant import QdrantStore
from tests.conftest import ROOT
from tests.support.world import World

NODES = ("qdrant-1", "qdrant-2", "qdrant-3")


@pytest.fixture
def collection() -> str:
    """A name that no one else has, because a server may be shared."""
    return f"live-{uuid4().hex[:8]}"


@pytest.fixture(params=["REST", "gRPC"])
def store(request: pytest.FixtureRequest) -> Iterator[QdrantStore]:
    """The server by either protocol; what a test leaves there is dropped."""
    url, key = request.getfixturevalue("qdrant_server" if request.param == "REST" else "qdrant_grpc_server")
    with QdrantStore.connect(url, api_key=key) as store:
        before = set(store.collections())
        yield store
        for left in set(store.collections()) - before:
            store.drop(left)


@pytest.fixture
def world(store: QdrantStore, tmp_path: Path) -> Iterator[World]:
    """A home with an alignment beside the server."""
    world = World(tmp_path, store)
    with world.provenance:
        world.alignment()
        yield world


@dataclass(frozen=True)
class Cluster:
    """Three nodes: their URLs, their key, and `docker compose` for them."""

    urls: tuple[str, ...]
    key: str
    compose: Callable[[str], None]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of one's own: it is stopped in parts, so no running one will do."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        pytest.skip("needs Docker to start docker-compose.cluster.yml")
    key = os.environ.setdefault("QDRANT_API_KEY", "test")
    for number in range(1, len(NODES) + 1):
        os.environ.setdefault(f"QDRANT_PORT_{number}", "0")  # whichever port is free
    file, project = str(ROOT / "docker-compose.cluster.yml"), f"modalign-cluster-{os.getpid()}"

    def compose(command: str) -> None:
        subprocess.run([docker, "compose", "-f", file, "-p", project, *command.split()], check=True)

    with get_docker_services("docker compose", file, project, ["up --detach --wait"], ["down -v"]) as services:
        yield Cluster(tuple(f"http://127.0.0.1:{services.port_for(node, 6333)}" for node in NODES), key, compose)
