"""Real Qdrant servers and clusters that tests start, stop and kill.

`MODALIGN_TEST_QDRANT_BINARY` names the binary to run; without it, Docker runs the compose files of this repository.
Ports are free ones, data lie in temporary directories, in memory where there is room, and all of it goes away at the
end of the `with` block. A binary also ends when the tests themselves are killed, where the system has `setpriv`.
"""

import base64
import hashlib
import hmac
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trustme
from pytest_docker.plugin import DockerComposeExecutor

from tests.support.memory import memory, process_name
from tests.support.qdrant_nodes import READY_SECONDS, BinaryNode, ComposeNode, Node, Server

ROOT = Path(__file__).parent.parent.parent
BINARY = "MODALIGN_TEST_QDRANT_BINARY"
API_KEY = "key-of-the-tests"
NODES = 3
# Below the ports that systems give to outgoing connections: none takes the port of a stopped node meanwhile.
PORTS = range(20_000, 32_000)
MEMORY_BYTES = 2 << 30
# Small logs: a test writes little, and every shard preallocates one.
SMALL = {"QDRANT__STORAGE__WAL__WAL_CAPACITY_MB": "1", "QDRANT__TELEMETRY_DISABLED": "true"}


@dataclass(frozen=True)
class Cluster:
    """Nodes of one cluster."""

    nodes: Sequence[Node]

    def start(self) -> None:
        """Start every node that does not run; return once all of them see each other."""
        for node in self.nodes:
            node.start()
        deadline = time.monotonic() + READY_SECONDS
        while (states := [state_of(node) for node in self.nodes]) and not all(
            len(state["peers"]) == len(self.nodes) and state["raft_info"]["leader"] for state in states
        ):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the nodes do not see each other after {READY_SECONDS:.0f} s: {states}")
            time.sleep(0.1)


def state_of(node: Server) -> dict[str, Any]:
    """What a node says of its cluster: `peer_id`, `peers`, `raft_info`."""
    with node.client() as client:
        state: dict[str, Any] = client.get("/cluster").raise_for_status().json()["result"]
    return state


def skip_without_servers() -> None:
    """Skip the test where neither a binary nor Docker can start a server."""
    if binary := os.environ.get(BINARY):
        if not os.access(binary, os.X_OK):
            pytest.fail(f"{BINARY}: expected an executable file, got {binary!r}")
    elif not _is_docker(shutil.which("docker")):
        pytest.skip(f"needs {BINARY}, or Docker with compose, to start Qdrant")


@cache
def _is_docker(docker: str | None) -> bool:
    """Whether a program is Docker with compose, and reaches an engine. A test may put another one before it."""
    return (
        docker is not None
        and not subprocess.run([docker, "compose", "ls"], capture_output=True, check=False).returncode
    )


@contextmanager
def single_server(*, tls: bool = False, **settings: str) -> Iterator[Node]:
    """Start a server that asks for API_KEY and takes tokens signed with it.

    Args:
        tls: whether it speaks TLS, with a certificate for `localhost` and `127.0.0.1`.
        settings: environment variables of Qdrant, as `QDRANT__STORAGE__COLLECTION__STRICT_MODE__ENABLED="true"`.
    """
    skip_without_servers()
    with ExitStack() as stack:
        directory = stack.enter_context(_temporary_directory())
        settings |= {"QDRANT__SERVICE__JWT_RBAC": "true"} | (_certificate(directory) if tls else {})
        (node,) = _nodes(stack, directory, 1, settings, directory / "ca.pem" if tls else None)
        node.start()
        yield node


@contextmanager
def found_or_started() -> Iterator[Server]:
    """A running server that MODALIGN_TEST_QDRANT_URL names, or else one that is started."""
    if url := os.environ.get("MODALIGN_TEST_QDRANT_URL"):
        grpc_url, key = (os.environ.get(f"MODALIGN_TEST_QDRANT_{name}") for name in ("GRPC_URL", "API_KEY"))
        yield Server(url, grpc_url, key)
        return
    with single_server() as node:
        yield node


@contextmanager
def cluster(**settings: str) -> Iterator[Cluster]:
    """Start a cluster of NODES nodes that ask for API_KEY; `settings` as of `single_server`."""
    skip_without_servers()
    with ExitStack() as stack:
        directory = stack.enter_context(_temporary_directory())
        started = Cluster(_nodes(stack, directory, NODES, {"QDRANT__CLUSTER__ENABLED": "true", **settings}, None))
        started.start()
        yield started


def token(key: str = API_KEY, **claims: Any) -> str:
    """A token (JWT, HS256) that a server takes in place of its `key`.

    Args:
        key: of the server.
        claims: `access` is `"r"`, `"m"`, or a list of `{"collection": NAME, "access": "r" or "rw"}`; `exp` in seconds.
    """
    header = {"alg": "HS256", "typ": "JWT"}
    signed = b".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
    return (signed + b"." + _base64(hmac.digest(key.encode(), signed, hashlib.sha256))).decode()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    parent = memory(MEMORY_BYTES) or Path(tempfile.gettempdir())
    prefix = f"{process_name('qdrant-tests-', parent)}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as directory:
        yield Path(directory)


def _nodes(
    stack: ExitStack, directory: Path, count: int, settings: Mapping[str, str], ca_file: Path | None
) -> list[Node]:
    """Describe `count` nodes, none of which runs yet; what runs at the end of `stack` is ended."""
    ports = free_ports(3 * count)
    scheme, grpc_scheme = ("https", "grpcs") if ca_file else ("http", "grpc")
    addresses = [
        (f"{scheme}://127.0.0.1:{rest}", f"{grpc_scheme}://127.0.0.1:{grpc}", API_KEY, ca_file)
        for rest, grpc in zip(ports[:count], ports[count : 2 * count], strict=True)
    ]
    settings = {"QDRANT__SERVICE__API_KEY": API_KEY, **SMALL, **settings}
    if binary := os.environ.get(BINARY):
        nodes: list[Node] = []
        for number, address in enumerate(addresses):
            rest, grpc, p2p = ports[number::count]
            own = directory / f"node-{number + 1}"
            own.mkdir()
            options = ["--uri", f"http://127.0.0.1:{p2p}"] if count > 1 else []
            options += ["--bootstrap", f"http://127.0.0.1:{ports[2 * count]}"] if number else []
            node = BinaryNode(
                *address,
                command=[str(Path(binary).resolve()), "--disable-telemetry", *options],
                environment={**_environment(own), **_listening(rest, grpc, p2p), **settings},
                directory=own,
            )
            stack.callback(node.kill)
            nodes.append(node)
        return nodes
    compose = _compose(directory, ports, settings)
    stack.callback(compose.execute, "down --volumes")
    services = ["qdrant"] if count == 1 else [f"qdrant-{number + 1}" for number in range(count)]
    return [
        ComposeNode(*address, service=service, compose=compose)
        for address, service in zip(addresses, services, strict=True)
    ]


def _environment(directory: Path) -> dict[str, str]:
    """What a binary finds in its environment: all of its files lie in `directory`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("QDRANT_", "MODALIGN_"))}
    return {
        **inherited,
        "TMPDIR": str(directory),
        "QDRANT_INIT_FILE_PATH": str(directory / ".initialized"),
        "QDRANT__STORAGE__STORAGE_PATH": str(directory / "storage"),
        "QDRANT__STORAGE__SNAPSHOTS_PATH": str(directory / "snapshots"),
        "QDRANT__STORAGE__TEMP_PATH": str(directory / "temporary"),
    }


def _listening(rest: int, grpc: int, p2p: int) -> dict[str, str]:
    return {
        "QDRANT__SERVICE__HOST": "127.0.0.1",
        "QDRANT__SERVICE__HTTP_PORT": str(rest),
        "QDRANT__SERVICE__GRPC_PORT": str(grpc),
        "QDRANT__CLUSTER__P2P__PORT": str(p2p),
    }


def _compose(directory: Path, ports: Sequence[int], settings: Mapping[str, str]) -> DockerComposeExecutor:
    """Describe a project of a compose file: with `settings`, and at our ports, gRPC too."""
    count = len(ports) // 3
    environment = {"QDRANT_API_KEY": API_KEY, "POSTGRES_PASSWORD": secrets.token_hex()}
    if count == 1:
        base, names = "docker-compose.yml", ["qdrant"]
        environment |= {"QDRANT_PORT": str(ports[0]), "QDRANT_GRPC_PORT": str(ports[1])}
    else:
        base, names = "docker-compose.cluster.yml", [f"qdrant-{number + 1}" for number in range(count)]
        environment |= {f"QDRANT_PORT_{number + 1}": str(ports[number]) for number in range(count)}
    services: dict[str, Any] = {
        name: {"environment": dict(settings), "volumes": [f"{directory}:{directory}:ro"]} for name in names
    }
    if count > 1:
        for name, port in zip(names, ports[count:], strict=False):
            services[name]["ports"] = [f"127.0.0.1:{port}:6334"]
    more = directory / "compose.json"
    more.write_text(json.dumps({"services": services}))
    # In front of the command, because what the shell of the tests exports would win over a file.
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), "docker", "compose"]
    return DockerComposeExecutor(shlex.join(command), [str(ROOT / base), str(more)], f"modalign-{secrets.token_hex(4)}")


def _certificate(directory: Path) -> dict[str, str]:
    """Write an authority, and a certificate for this machine; return the settings that name them."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(directory / "certificate.pem"))
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    return {
        "QDRANT__SERVICE__ENABLE_TLS": "true",
        "QDRANT__TLS__CERT": str(directory / "certificate.pem"),
        "QDRANT__TLS__KEY": str(directory / "key.pem"),
        "QDRANT__TLS__CA_CERT": str(directory / "ca.pem"),
    }


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
