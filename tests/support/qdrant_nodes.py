"""A Qdrant server, and nodes that tests stop, kill and start: processes of a binary, or services of a compose file."""

import shutil
import signal
import ssl
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from pytest_docker.plugin import DockerComposeExecutor
from typing_extensions import override

from connector.stores.qdrant import QdrantStore

READY_SECONDS = 60.0
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """The addresses of a server, and what opens it.

    Attributes:
        url: of REST.
        grpc_url: of gRPC; None: not known.
        api_key: that may do everything; None: the server asks for none.
        ca_file: the authority of its certificate; None: it speaks no TLS.
    """

    url: str
    grpc_url: str | None
    api_key: str | None = None
    ca_file: Path | None = None

    def connect(self, protocol: str = "REST", **options: Any) -> QdrantStore:
        """Open a store by `REST` or `gRPC`."""
        url = self.url if protocol == "REST" else self.grpc_url
        if url is None:
            pytest.skip("needs MODALIGN_TEST_QDRANT_GRPC_URL beside MODALIGN_TEST_QDRANT_URL")
        return QdrantStore.connect(url, **{"api_key": self.api_key, "ca_file": self.ca_file, **options})

    def client(self) -> httpx.Client:
        """A client of its REST API with the key, for requests that no store sends."""
        verify: Any = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else True
        headers = {"api-key": self.api_key} if self.api_key else {}
        return httpx.Client(base_url=self.url, headers=headers, verify=verify, timeout=30)


@dataclass(frozen=True)
class Node(Server, ABC):
    """A server that tests may stop, kill and start again; its data and its ports remain."""

    @abstractmethod
    def start(self) -> None:
        """Start it; return once it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it as its operator does, with SIGTERM."""

    @abstractmethod
    def kill(self) -> None:
        """Kill it with SIGKILL."""

    @property
    @abstractmethod
    def running(self) -> bool: ...

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        with self.client() as client:
            while True:
                try:
                    if client.get("/readyz").is_success:
                        return
                except httpx.TransportError as error:
                    if not self.running:
                        raise RuntimeError(f"{self.url} ended while it started: {self.log()}") from error
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.url} is not ready after {READY_SECONDS:.0f} s: {self.log()}")
                time.sleep(0.05)

    @abstractmethod
    def log(self) -> str:
        """The end of what it has printed."""


@dataclass(frozen=True)
class BinaryNode(Node):
    """A process of the binary."""

    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path = Path()
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @override
    def start(self) -> None:
        if self.running:
            return
        # Ctrl-C is for the tests, which then stop it; killed tests take it with them.
        setpriv = shutil.which("setpriv")
        command = [*([setpriv, "--pdeathsig", "KILL"] if setpriv else []), *self.command]
        with (self.directory / "log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    command,
                    cwd=self.directory,
                    env=dict(self.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        self.wait_until_ready()

    @override
    def stop(self) -> None:
        self._end(signal.SIGTERM)

    @override
    def kill(self) -> None:
        self._end(signal.SIGKILL)

    @property
    @override
    def running(self) -> bool:
        return bool(self.processes) and self.processes[-1].poll() is None

    def _end(self, number: signal.Signals) -> None:
        if not self.running:
            return
        process = self.processes[-1]
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @override
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-2000:]


@dataclass(frozen=True)
class ComposeNode(Node):
    """A service of a compose file."""

    service: str = ""
    compose: DockerComposeExecutor = field(default_factory=lambda: DockerComposeExecutor("docker compose", [], ""))

    @override
    def start(self) -> None:
        self.compose.execute(f"up --detach {self.service}")
        self.wait_until_ready()

    @override
    def stop(self) -> None:
        self.compose.execute(f"stop {self.service}")

    @override
    def kill(self) -> None:
        self.compose.execute(f"kill {self.service}")

    @property
    @override
    def running(self) -> bool:
        return self.service.encode() in self.compose.execute("ps --services --status running").split()

    @override
    def log(self) -> str:
        return bytes(self.compose.execute(f"logs --tail 20 {self.service}")).decode(errors="replace")
