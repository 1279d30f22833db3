"""The compose files: what is in them is pinned, checked, kept and closed to others. Knowing that needs no Docker."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from connector.stores.qdrant_filter import OLDEST_SERVER
from tests.support import fake_docker
from tests.support.qdrant_nodes import Node
from tests.support.qdrant_servers import BINARY, cluster, single_server, state_of

ROOT = Path(__file__).parent.parent
FILES = sorted(path.name for path in ROOT.glob("docker-compose*.yml"))


def services(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    kept = set(read["volumes"])
    for service in read["services"].values():
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= kept
    found: dict[str, Any] = read["services"]
    return found


def test_there_are_a_server_and_a_cluster() -> None:
    assert FILES == ["docker-compose.cluster.yml", "docker-compose.yml"]
    assert set(services("docker-compose.yml")) == {"qdrant", "postgres"}
    assert set(services("docker-compose.cluster.yml")) == {"qdrant-1", "qdrant-2", "qdrant-3"}


@pytest.mark.parametrize("file", FILES)
def test_every_service_is_pinned_checked_kept_and_closed(file: str) -> None:
    for name, service in services(file).items():
        assert re.fullmatch(r"[a-z/]+:v?\d+(\.\d+)+", service["image"]), name
        check = service["healthcheck"]
        assert check["test"][0].startswith("CMD")
        assert {"interval", "timeout", "retries"} <= set(check)
        assert service["volumes"]
        for port in service["ports"]:  # on this machine only, at a port that can be chosen
            assert re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z_0-9]+:-\d+\}:\d+", port), port


@pytest.mark.parametrize("file", FILES)
def test_secrets_come_from_the_environment_and_are_demanded(file: str) -> None:
    for name, service in services(file).items():
        secrets = {key: value for key, value in service["environment"].items() if "KEY" in key or "PASSWORD" in key}
        assert secrets, name
        assert all(re.fullmatch(r"\$\{[A-Z_]+:\?.+\}", value) for value in secrets.values())


def test_every_qdrant_is_the_same_and_new_enough() -> None:
    images = {each["image"] for file in FILES for name, each in services(file).items() if name.startswith("qdrant")}
    (image,) = images
    version = tuple(int(number) for number in image.partition(":v")[2].split("."))
    assert version >= OLDEST_SERVER


def test_the_nodes_of_the_cluster_find_each_other() -> None:
    nodes = services("docker-compose.cluster.yml")
    first = "http://qdrant-1:6335"
    for name, node in nodes.items():
        command = node["command"]
        assert command[command.index("--uri") + 1] == f"http://{name}:6335"
        assert node["environment"]["QDRANT__CLUSTER__ENABLED"] == "true"
        if name == "qdrant-1":
            assert "--bootstrap" not in command
        else:
            assert command[command.index("--bootstrap") + 1] == first
            assert node["depends_on"]["qdrant-1"]["condition"] == "service_healthy"


def test_the_makefile_starts_stops_and_tests_them() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^up:\n\tdocker compose up --detach --wait$", makefile, re.MULTILINE)
    assert re.search(r"^down:\n\tdocker compose down$", makefile, re.MULTILINE)
    assert re.search(r"^live:.*\n\t\$\(PYTEST\) tests -m live$", makefile, re.MULTILINE)


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a fake Docker, whose servers take three nodes for their cluster."""
    monkeypatch.delenv(BINARY, raising=False)
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_docker.__file__} {tmp_path} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "readyz").touch()
    state = {"peers": {peer: {} for peer in "123"}, "raft_info": {"leader": 1}}
    (tmp_path / "files" / "cluster").write_text(json.dumps({"result": state}))
    return tmp_path


def is_up(node: Node) -> bool:
    with node.client() as client:
        try:
            return client.get("/readyz").is_success
        except httpx.TransportError:
            return False


def test_live_tests_start_the_server_and_end_it(docker: Path) -> None:
    with single_server() as node:
        assert is_up(node)
        node.stop()
        assert not node.running
        node.start()
    assert not is_up(node)
    calls = (docker / "calls").read_text().splitlines()
    assert [call for call in calls if not call.startswith("ps ")] == [
        "up --detach qdrant",
        "stop qdrant",
        "up --detach qdrant",
        "down --volumes",
    ]


@pytest.mark.slow
def test_live_tests_start_the_cluster_and_kill_its_nodes(docker: Path) -> None:
    with cluster() as started:
        assert all(len(state_of(node)["peers"]) == 3 for node in started.nodes)
        started.nodes[2].kill()
        assert [node.running for node in started.nodes] == [True, True, False]
        started.start()
        assert all(map(is_up, started.nodes))
    assert not any(map(is_up, started.nodes))
    assert "kill qdrant-3\n" in (docker / "calls").read_text()
