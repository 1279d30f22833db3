"""Several addresses of one cluster: requests go to the one that answered last, and to the next if it does not answer.

Every request that modalign sends may be sent twice: points are written under ids of their own, aliases are replaced,
and whoever creates a collection looks whether an earlier attempt has.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from qdrant_client import QdrantClient

from connector.safe_text import redacted

_log = logging.getLogger(__name__)


class Addresses:
    """The addresses of a server or a cluster, and which of them is in use.

    Args:
        clients: by URL, at least one.

    Attributes:
        client: calls the client of the address in use.
        admit: called before the first request to an address; raises an error if it must not be used.
    """

    def __init__(self, clients: Mapping[str, QdrantClient]):
        self._clients = list(clients.items())
        self._present = self._told = 0
        self._reason = ""
        self._admitted: set[str] = set()
        self._lock = threading.RLock()
        only = self._clients[0][1] if len(self._clients) == 1 else None
        self.client = only or cast(QdrantClient, _ClientInUse(self))
        self.admit: Callable[[str, QdrantClient], None] = lambda url, client: None

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def urls(self) -> list[str]:
        """All of them, with their secrets."""
        return [url for url, _ in self._clients]

    @property
    def in_use(self) -> tuple[str, QdrantClient]:
        """The URL, with its secrets, and the client of the address in use."""
        return self._clients[self._present]

    def check(self) -> None:
        """Admit the address in use."""
        url, client = self.in_use
        with self._lock:
            if url not in self._admitted:
                self.admit(url, client)
                self._admitted.add(url)

    def leave(self, url: str, error: Exception) -> None:
        """Go on with the address after `url`, unless another thread has left it already."""
        with self._lock:
            if self.in_use[0] == url:
                if self._present == self._told:
                    what, _, status = str(error).partition(": ")[0].partition(" answered ")
                    self._reason = f"{what} could not do what was asked, and answered {status}" if status else what
                self._present = (self._present + 1) % len(self._clients)

    def tell(self) -> None:
        """Say once that another address than before is in use, now that it has answered."""
        if self._present == self._told:
            return
        with self._lock:
            if self._present != self._told:
                self._told = self._present
                _log.info("%s; going on with %s", self._reason, redacted(self.in_use[0]))

    def close(self) -> None:
        """Close the clients of all addresses."""
        for _, client in self._clients:
            client.close()


class _ClientInUse:
    """Has what a `QdrantClient` has, of the address that is in use when a method is called."""

    def __init__(self, addresses: Addresses):
        self._addresses = addresses

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._addresses.in_use[1], name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **options: Any) -> Any:
            method = getattr(self._addresses.in_use[1], name)  # another address may be in use by now
            return method(*args, **options)

        return call

    def close(self) -> None:
        self._addresses.close()
