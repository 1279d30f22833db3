"""In place of `docker compose`, for tests without Docker: `python fake_docker.py DIRECTORY compose ...`.

It demands the variables that the compose files demand, and what it starts is a web server of the static files in
DIRECTORY/files, at the port that the compose file would publish. What it was asked for goes to DIRECTORY/calls.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path


def main(directory: Path, arguments: list[str]) -> None:
    if arguments == ["compose", "ls"]:
        return
    _, _, file, _, more, _, _, command, *options = arguments
    for path in (file, more):
        for variable in re.findall(r"\$\{(\w+):\?", Path(path).read_text(encoding="utf-8")):
            assert os.environ[variable], variable
    with (directory / "calls").open("a", encoding="utf-8") as calls:
        print(command, *options, file=calls)
    running = directory / "running"
    running.mkdir(exist_ok=True)
    if command == "up":
        if not (running / options[-1]).exists():
            start(directory, running / options[-1])
    elif command == "ps":
        sys.stdout.writelines(f"{service.name}\n" for service in running.iterdir())
    else:
        for service in running.iterdir() if command == "down" else [running / options[-1]]:
            os.kill(int(service.read_text()), signal.SIGKILL)
            service.unlink()


def start(directory: Path, service: Path) -> None:
    port = os.environ["QDRANT_PORT" + service.name.removeprefix("qdrant").replace("-", "_")]
    program = [
        sys.executable,
        "-m",
        "http.server",
        port,
        "--bind",
        "127.0.0.1",
        "--directory",
        str(directory / "files"),
    ]
    server = subprocess.Popen(program, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    service.write_text(str(server.pid))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
