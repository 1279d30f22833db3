"""Writes over gRPC beside a connection over REST: a vector takes a sixth of the bytes and no time to parse.

A server listens for gRPC at the port after that of REST, unless it was told otherwise. Nothing is written there before
it has shown a collection with the same metadata. A release's metadata name its store by an id that is used once.
"""

import logging
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from qdrant_client import QdrantClient

from connector.errors import SettingsError, StoreError
from connector.safe_text import redacted
from connector.stores.qdrant_connection import Connection

_log = logging.getLogger(__name__)

REST_PORT = 6333
WEB_PORTS = (80, 443)  # of a proxy, which has nothing at the next port
GRPC_SECONDS = 2  # that a server has to show a collection over gRPC


class BulkClients:
    """Finds the client that points are written with.

    Args:
        connection: to the server.
        client_at: makes a client for another URL, with the same key and certificates.
        probe_at: as `client_at`, for requests that end after `GRPC_SECONDS`.
    """

    def __init__(
        self,
        connection: Connection,
        client_at: Callable[[str], QdrantClient],
        probe_at: Callable[[str], QdrantClient],
    ):
        self._connection = connection
        self._client_at = client_at
        self._probe_at = probe_at
        self._url = None if connection.grpc else grpc_url(connection.addresses.urls)
        self._client: QdrantClient | None = None
        self._offered: dict[str, bool] = {}  # by collection
        self._lock = threading.Lock()

    def of(self, name: str) -> QdrantClient | None:
        """Return the gRPC client to write a collection with; None: the connection's own client."""
        with self._lock:
            if self._url is None:
                return None
            if name not in self._offered:
                self._offered[name] = self._shows(self._url, name)
            if not self._offered[name]:
                return None
            if self._client is None:
                self._client = self._client_at(self._url)
            return self._client

    def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            self._client.close()

    def _shows(self, url: str, name: str) -> bool:
        """Say whether the server at `url` shows the collection that the connection shows."""
        expected = self._connection.call(self._connection.client.get_collection, name).config.metadata
        if not expected:
            return False
        try:
            probe = self._probe_at(url)
            try:
                found = self._connection.once(probe.get_collection, name).config.metadata
            finally:
                probe.close()
        except (StoreError, SettingsError) as error:
            _log.debug("%s is written to over REST, because gRPC is not offered: %s", redacted(url), error)
            self._url = None
            return False
        return found == expected


def grpc_url(urls: list[str]) -> str | None:
    """Return where the server at a REST address listens for gRPC by default; None: that is not known.

    It is not known of several addresses, and of a proxy: one with a path, with a user, or at a port of the web.

    >>> grpc_url(["https://db.example:6333"]), grpc_url(["http://db.example/qdrant"])
    ('grpcs://db.example:6334', None)
    """
    if len(urls) != 1:
        return None
    parts = urlsplit(urls[0])
    port = (parts.port or REST_PORT) + 1
    proxied = bool(parts.path.strip("/")) or "@" in parts.netloc or parts.port in WEB_PORTS
    if parts.scheme not in ("http", "https") or proxied or port > 65_535:
        return None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme.replace('http', 'grpc')}://{host}:{port}"
