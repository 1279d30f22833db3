"""A real S3 server on this machine, behind a proxy that counts requests and cuts connections."""

import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from alignment.object_storage import located

_REQUEST = re.compile(rb"^([A-Z]{3,6}) (\S+) HTTP/1\.1\r$", re.MULTILINE)


class Proxy:
    """Passes connections on to a port.

    Attributes:
        requests: method and path of each request so far.
        cut: bytes of what comes at a time of an answer, after which the connection is closed; None: all come.
        silent: whether requests get no answer.
    """

    def __init__(self, port: int):
        self.requests: list[tuple[str, str]] = []
        self.cut: int | None = None
        self.silent = False
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
                threading.Thread(target=self._pass_on, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with closing(source), closing(target), suppress(OSError):
            while content := source.recv(1 << 16):
                if asks:
                    found = [(method.decode(), path.decode()) for method, path in _REQUEST.findall(content)]
                    self.requests += found
                    if self.silent:
                        continue
                elif self.cut is not None and len(content) > self.cut:
                    target.sendall(content[: self.cut])
                    break
                target.sendall(content)
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


class Storage:
    """An S3 server, and what the environment has to say so that it is found.

    Attributes:
        proxy: before the server.
        client: of the server itself.
    """

    def __init__(self, port: int):
        self.proxy = Proxy(port)
        self._server = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "of-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        keys = {name.lower(): value for name, value in self.environment.items() if "KEY" in name}
        self.client: Any = boto3.client("s3", endpoint_url=self._server, region_name="us-east-1", **keys)

    def bucket(self) -> str:
        """Make a bucket; return its URL."""
        name = f"bucket-{uuid4().hex}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def upload(self, directory: Path, url: str) -> None:
        """Put all files below a directory below a URL."""
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                located(f"{url}/{file.relative_to(directory).as_posix()}").write_bytes(file.read_bytes())

    def keys(self, url: str) -> list[str]:
        """Return the names of all objects of a bucket."""
        bucket = url.removeprefix("s3://").partition("/")[0]
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse the credentials of the tests during the block."""
        httpx.post(f"{self._server}/moto-api/reset-auth", content=b"0").raise_for_status()
        try:
            yield
        finally:
            httpx.post(f"{self._server}/moto-api/reset-auth", content=b"1000000000").raise_for_status()


@contextmanager
def storage_server() -> Iterator[Storage]:
    """Start a server, and name it in the environment during the block."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        storage = Storage(server.get_host_and_port()[1])
        with pytest.MonkeyPatch.context() as patched:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patched.delenv(name)
            for name, value in storage.environment.items():
                patched.setenv(name, value)
            S3FileSystem.clear_instance_cache()
            yield storage
        storage.proxy.close()
    finally:
        S3FileSystem.clear_instance_cache()
        server.stop()
