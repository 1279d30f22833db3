"""The nodes behind an address: their versions, and whether two addresses are of one cluster.

Qdrant 1.18 tells the versions of all peers that answer. An older one tells only where peers talk to each other: a peer
is then asked at that host, at the port of the address, and believed if it has the peer's id. gRPC tells of no peers.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qdrant_client import QdrantClient, models

from connector.errors import CollectionNotFoundError, SettingsError, StoreError
from connector.safe_text import redacted
from connector.stores.qdrant_connection import Connection
from connector.stores.qdrant_filter import OLDEST_SERVER

_log = logging.getLogger(__name__)

Version = tuple[int, int]

NEWEST_MAJOR = 1  # of the client; in another version the same requests may mean something else
PEER_SECONDS = 2  # that a peer has to answer
COMPARED = 16  # collections whose metadata tell servers apart that have no peers


@dataclass(frozen=True, slots=True)
class _Node:
    """What is behind an address.

    Attributes:
        version: the oldest of the node and its peers.
        peers: ids of the cluster's nodes; empty: there is no cluster; None: not known.
        collections: names of its collections.
        metadata: of the first of them, by name.
    """

    version: Version
    peers: frozenset[int] | None
    collections: Sequence[str] = ()
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Nodes:
    """Checks each address of a connection before it is used for the first time.

    Args:
        connection: its `version` becomes that of the oldest node.
        client_at: makes a client for another URL, with the same key.
    """

    def __init__(self, connection: Connection, client_at: Callable[[str], QdrantClient]):
        self._connection = connection
        self._call = connection.once
        self._client_at = client_at
        self._first: tuple[str, _Node] | None = None

    def check(self, url: str, client: QdrantClient) -> None:
        """Check the node at an address, and the peers that it tells of.

        Raises:
            StoreError: a node has a version that modalign does not know.
            SettingsError: it is of another cluster than the addresses before.
            StoreUnavailableError: it does not answer.
        """
        node = self._node(url, client)
        where, first = self._first or (url, node)
        if not _may_be_one_cluster(first, node):
            raise SettingsError(
                f"MODALIGN_QDRANT_URL: expected addresses of one cluster, got {redacted(where)} and {redacted(url)}, "
                "which have different nodes or collections"
            )
        self._first = (where, first)
        self._connection.version = min(node.version, self._connection.version or node.version)

    def _node(self, url: str, client: QdrantClient) -> _Node:
        try:
            versions = {redacted(url): self._call(client.info).version}
        except CollectionNotFoundError as error:  # the answer of 404, which means a collection elsewhere
            raise StoreError(
                f"{redacted(url)}: nothing of Qdrant answers here; check the host, the port and the path in "
                "MODALIGN_QDRANT_URL"
            ) from error
        peers: frozenset[int] | None = None
        if not self._connection.grpc:
            try:
                cluster = self._call(client.cluster_status)
            except StoreError as error:  # a key may lack the right, a proxy the path
                _log.debug("%s does not tell of peers: %s", redacted(url), error)
            else:
                peers = frozenset()
                if isinstance(cluster, models.ClusterStatusOneOf1):
                    peers = frozenset(map(int, cluster.peers))
                    versions |= self._versions_of_peers(url, client, cluster)
        version = min(_checked(where, found) for where, found in versions.items())
        if len(self._connection.addresses) == 1 or peers:
            return _Node(version, peers)
        names = sorted(c.name for c in self._call(client.get_collections).collections)
        first = self._first[1].metadata if self._first else {}
        compared = [name for name in names if name in first] if first else names[:COMPARED]
        return _Node(version, peers, names, {name: self._metadata(client, name) for name in compared})

    def _metadata(self, client: QdrantClient, name: str) -> Mapping[str, Any]:
        try:
            return self._call(client.get_collection, name).config.metadata or {}
        except StoreError:  # a node that holds it is away
            return {}

    def _versions_of_peers(self, url: str, client: QdrantClient, cluster: models.ClusterStatusOneOf1) -> dict[str, str]:
        """Return the versions of the peers, by where they are; warn of those that cannot be known."""
        versions, silent = dict[str, str](), dict[str, str]()
        for peer, uri, version in self._told(client) or self._asked(url, cluster):
            where = f"peer {peer} at {uri}"
            if version is None:
                silent[where] = uri
            else:
                versions[where] = version
        if silent:
            _log.warning(
                "%s: the versions of %s are not known, because they do not answer; modalign needs Qdrant %s or newer",
                redacted(url),
                ", ".join(silent),
                _printed(OLDEST_SERVER),
            )
        return versions

    def _told(self, client: QdrantClient) -> list[tuple[int, str, str | None]]:
        """Return id, URI and version of each peer as the cluster tells; empty: this server does not."""
        try:
            cluster = self._call(client.cluster_telemetry, timeout=PEER_SECONDS).cluster
        except (StoreError, NotImplementedError):
            return []
        if cluster is None:
            return []
        return [
            (int(peer), info.uri, info.details.version if info.details else None)
            for peer, info in cluster.peers.items()
        ]

    def _asked(self, url: str, cluster: models.ClusterStatusOneOf1) -> list[tuple[int, str, str | None]]:
        """Return id, URI and version of each other peer, asked itself."""
        return [
            (int(peer), info.uri, self._version_of(url, int(peer), info.uri))
            for peer, info in cluster.peers.items()
            if int(peer) != cluster.peer_id
        ]

    def _version_of(self, url: str, peer: int, uri: str) -> str | None:
        """Ask a peer at the host where the others reach it and at the port of `url`; None: it is not there."""
        own, host = urlsplit(url), urlsplit(uri).hostname
        if host is None:
            return None
        shown = f"[{host}]" if ":" in host else host
        client = self._client_at(f"{own.scheme}://{shown}{f':{own.port}' if own.port else ''}")
        try:
            cluster = self._call(client.cluster_status)
            if not isinstance(cluster, models.ClusterStatusOneOf1) or cluster.peer_id != peer:
                return None
            return self._call(client.info).version
        except StoreError:
            return None
        finally:
            client.close()


def _checked(where: str, found: str) -> Version:
    """Return the version of a node.

    Raises:
        StoreError: modalign does not know it.
    """
    match = re.match(r"(\d+)\.(\d+)", found)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < OLDEST_SERVER:
        raise StoreError(
            f"{where}: expected Qdrant {_printed(OLDEST_SERVER)} or newer, got {found}; upgrade the server"
        )
    if version[0] > NEWEST_MAJOR:
        raise StoreError(f"{where}: expected Qdrant {NEWEST_MAJOR}.x, got {found}; upgrade modalign")
    return version


def _may_be_one_cluster(one: _Node, other: _Node) -> bool:
    if one.peers or other.peers:
        return one.peers is None or other.peers is None or not one.peers.isdisjoint(other.peers)
    if not one.collections or not other.collections:
        return True
    for name in one.metadata.keys() & other.metadata.keys():
        ours, theirs = one.metadata[name], other.metadata[name]
        if any(ours[key] != theirs[key] for key in ours.keys() & theirs.keys()):
            return False
    return not set(one.collections).isdisjoint(other.collections)


def _printed(version: Version) -> str:
    return ".".join(map(str, version))
