"""Programs of their own, because Ray reads its settings once a process, and writes where it likes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from connector.errors import ExecutorError
from connector.executors.ray_connection import HeadNode
from tests.support.errors import raises
from tests.support.ray_clusters import RayCluster

pytestmark = pytest.mark.cluster

SECONDS = 180  # on a busy machine


class Forwarder:
    """A network: hands bytes on to a port of this machine until it is cut. Use as a context manager."""

    def __init__(self, to: int):
        self._to = to
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._server]
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        for opened in self._open:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                target = socket.create_connection(("127.0.0.1", self._to))
                self._open += [client, target]
                for source, sink in ((client, target), (target, client)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)


@contextmanager
def driver(*arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A program that has tasks worked on, at the head of a session of processes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ray_driver", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def processes_of(session: int) -> Mapping[int, str]:
    """Command lines of the processes of a session that live, by their number."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (directory / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found[int(directory.name)] = (directory / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def wait_until_gone(session: int, *, but: str | None = None) -> None:
    deadline = time.monotonic() + SECONDS
    while left := [line for line in processes_of(session).values() if not (but and but in line)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
class TestOwnProcesses:
    def test_ctrl_c_ends_the_processes_of_ray_and_removes_their_files(self) -> None:
        with driver("local:1") as process:
            assert first_line(process).split()[0] == "0"
            started = processes_of(process.pid)
            assert len(started) > 3
            session = next(
                word
                for line in started.values()
                for word in line.split()
                if word.startswith(("--session-dir=", "--session_dir="))
            )
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            out, err = process.communicate(timeout=SECONDS)
            wait_until_gone(process.pid)
        assert "KeyboardInterrupt" in err
        assert "raylet" not in out + err.partition("Traceback")[0]
        assert not Path(session.partition("=")[2]).exists()

    @pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
    def test_a_driver_that_is_ended_leaves_nothing_that_works_or_answers(self, by: signal.Signals) -> None:
        with driver("local:1") as process:
            assert first_line(process).split()[0] == "0"
            assert len(processes_of(process.pid)) > 3
            process.send_signal(by)
            wait_until_gone(process.pid, but="Agent")  # these end by themselves, within a minute
            assert process.wait() == -by
            assert process.stderr
            assert "SIGTERM" not in process.stderr.read()  # Ray's stack trace


class TestCluster:
    def test_a_client_from_outside_sends_modules_of_its_own_and_prints_nothing_but_its_results(
        self, ray_machines: RayCluster, tmp_path: Path
    ) -> None:
        (tmp_path / "of_the_user.py").write_text("ANSWER = 42\n")
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        with driver(ray_machines.from_outside, "of_the_user", PYTHONPATH=path) as process:
            out, err = process.communicate(timeout=2 * SECONDS)
        assert sorted(out.splitlines()) == ["0 42", "1 WorkerDied", "2 42", "3 42"]
        ours = ("begun again", "started so far")  # the second where the machine is slow
        assert [line for line in err.splitlines() if not any(words in line for words in ours)] == []

    def test_a_client_whose_network_is_lost_says_so_and_ends(self, ray_machines: RayCluster) -> None:
        with (
            Forwarder(int(ray_machines.from_outside.rpartition(":")[2])) as network,
            driver(f"ray://127.0.0.1:{network.port}", RAY_CLIENT_RECONNECT_GRACE_PERIOD="2") as process,
        ):
            assert first_line(process).split()[0].isdigit()
            network.cut()
            out, _ = process.communicate(timeout=SECONDS)
        assert out.splitlines()[-1].split()[0] == "cluster-lost"


class TestHead:
    def test_a_head_that_answers_is_not_lost_and_one_that_does_not_is_an_error(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            head = HeadNode(address, every=0.0, patience=0.2)
            head.raise_if_lost()
            assert head.answers
        with raises(ExecutorError, code="cluster-lost"):
            head.raise_if_lost()
        assert not head.answers

    def test_a_head_that_comes_back_in_time_is_not_lost(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        back = threading.Timer(0.5, lambda: servers.append(socket.create_server(("127.0.0.1", port))))
        servers: list[socket.socket] = []
        back.start()
        HeadNode(f"127.0.0.1:{port}", every=0.0, patience=30.0).raise_if_lost()
        back.join()
        servers[0].close()
