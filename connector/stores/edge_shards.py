"""The collections of an embedded store that this process has open in the engine, a shard each."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import qdrant_edge as edge

from connector.errors import CollectionNotFoundError, StoreBusyError, StoreError
from connector.stores.collection import CollectionConfig
from connector.stores.edge_directory import StoreDirectory
from connector.stores.edge_errors import translated
from connector.stores.edge_layout import edge_config

ENGINE = version("qdrant-edge-py")


class OpenShards:
    """The open shards of a store, by collection: each is opened when it is first used. Several threads may use them.

    Args:
        url: of the store, for messages.
        directory: of the store.
    """

    def __init__(self, url: str, directory: StoreDirectory):
        self._url = url
        self._directory = directory
        self._shards: dict[str, edge.EdgeShard] = {}
        self._written: set[str] = set()
        self._owner = os.getpid()
        self._closed = False
        self._lock = threading.RLock()  # held while a shard opens or closes: the engine opens a directory once

    def check_usable(self) -> None:
        """Raise if the store is closed, or open in the process that this one was forked from."""
        if os.getpid() != self._owner:  # a forked child has none of the engine's threads, and would wait for ever
            raise StoreBusyError(
                f"{self._url} was opened by the process that this one was forked from, and works in that one only; "
                "start processes by spawning them, and open the store in one of them"
            )
        if self._closed:
            raise StoreError(f"{self._url} is closed")

    def resolve(self, name: str) -> str:
        """Return the collection that `name` is, or is an alias of.

        Raises:
            CollectionNotFoundError: there is none, or its directory is missing.
        """
        directory = self._directory
        resolved = directory.aliases.get(name, name)
        if resolved not in directory.collections:
            known = ", ".join([*directory.collections, *directory.aliases]) or "none"
            raise CollectionNotFoundError(f"{self._url} has no collection {name!r}; it has {known}")
        if resolved not in self._shards and not directory.exists(resolved):
            raise CollectionNotFoundError(
                f"{self._url}: the directory of collection {resolved!r} is missing; restore {directory.home(resolved)} "
                "from a backup, or push its embedding sets again"
            )
        return resolved

    @contextmanager
    def reading(self, name: str, what: str) -> Iterator[edge.EdgeShard]:
        """Yield the shard of a collection; the engine's errors say that it could not `what` it."""
        resolved = self.resolve(name)
        self.check_usable()
        shard = self._shards.get(resolved) or self._opened(resolved)
        with translated(f"{what} collection {resolved}"):
            yield shard

    @contextmanager
    def writing(self, name: str, what: str) -> Iterator[edge.EdgeShard]:
        """Yield a shard to change; if this process dies before it is closed, its files are no proof of damage."""
        resolved = self.resolve(name)
        with self.reading(resolved, what) as shard:
            self._directory.prepare()
            self._mark_open(resolved)
            yield shard

    def add(self, name: str, shard: edge.EdgeShard) -> None:
        """Take a shard that was just created."""
        with self._lock:
            self._mark_open(name)
            self._shards[name] = shard

    def reload(self, name: str, config: CollectionConfig) -> None:
        """Close the shard of a collection, and open it with the settings of `config`."""
        with self._lock, self.writing(name, "restore the settings of") as shard:
            shard.close()
            del self._shards[name]
            self._shards[name] = edge.EdgeShard.load(str(self._directory.home(name)), edge_config(config))

    def forget(self, name: str) -> None:
        """Close the shard of a collection that is dropped."""
        with self._lock:
            if shard := self._shards.pop(name, None):
                with translated(f"close collection {name}"):
                    shard.close()
            self._written.discard(name)

    def close(self) -> None:
        """Flush and close every shard, and record each that was written.

        Raises:
            StoreError: one could not be closed; all others are.
        """
        failures: list[StoreError] = []
        with self._lock:
            self._closed = True
            while self._shards:
                name, shard = self._shards.popitem()
                try:
                    with translated(f"close collection {name}"):
                        shard.flush()
                        points = int(shard.count(edge.CountRequest(exact=True)))
                        shard.close()
                    if name in self._written:
                        self._directory.set_state(name, "closed", engine=ENGINE, points=points)
                except StoreError as error:
                    failures.append(error)
        if failures:
            raise failures[0]

    def _mark_open(self, name: str) -> None:
        with self._lock:
            if name not in self._written:
                self._directory.set_state(name, "open")
                self._written.add(name)

    def _opened(self, name: str) -> edge.EdgeShard:
        """Return the shard of a collection, which the first of several threads opens."""
        with self._lock:
            self.check_usable()  # another thread may have closed the store meanwhile
            if name not in self._shards:
                self._shards[name] = self._load(name)
            return self._shards[name]

    def _load(self, name: str) -> edge.EdgeShard:
        """Open a shard; compare it with what it was when it was closed, if the same engine closed it."""
        home, state = self._directory.home(name), self._directory.state(name)
        advice = "restore it from a backup, or move it away and push its embedding sets again"
        closed = state if state and (state.step, state.engine) == ("closed", ENGINE) else None
        # Before the engine reads it: of some damage the whole process dies.
        if closed and (damaged := self._directory.damaged_file(name, closed)):
            raise StoreError(
                f"collection {name} is damaged: {damaged} was lost or changed since it was closed; {home}: {advice}"
            )
        with translated(f"open collection {name} in {home}"):
            shard = edge.EdgeShard.load(str(home))
            points = int(shard.count(edge.CountRequest(exact=True)))
        if closed and points != closed.points:
            with translated(f"close collection {name}"):
                shard.close()
            raise StoreError(
                f"collection {name} is damaged: expected {closed.points} points, the engine reads {points}; {home}: "
                f"{advice}"
            )
        return shard
