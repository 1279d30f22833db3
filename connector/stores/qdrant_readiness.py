"""Waiting until a Qdrant server has indexed a collection, and saying what it still does."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

from qdrant_client import models

from connector.errors import CollectionNotFoundError, StoreError, StoreUnavailableError
from connector.stores.qdrant_connection import Connection
from connector.stores.replicas import READABLE, Replicas

_log = logging.getLogger(__name__)

INDEX_SECONDS = 3600.0
REPORT_SECONDS = 30.0  # how often a wait for an index is told of
POLL_SECONDS = 0.5
STABLE_POLLS = 3
ERROR_CHARACTERS = 200
FAILED_POLLS = 2  # a request that fails so often in a row is given up for this wait


def wait_until_ready(
    connection: Connection, name: str, replicas: Callable[[str], Replicas | None] = lambda name: None
) -> None:
    """Wait until the server has nothing left to optimise in several polls in a row.

    A cluster does not tell of running optimizations while the node of a replica is away. Then the status of the
    replicas that answer says whether they are ready.

    Args:
        connection: to the server.
        name: physical collection.
        replicas: reads where the replicas of a collection are.

    Raises:
        StoreError: the optimizer failed.
        StoreUnavailableError: the collection was not indexed within an hour.
    """
    client, url = connection.client, connection.url
    started, said = time.monotonic(), -REPORT_SECONDS
    stable = 0
    optimizations = _Optimizations(connection, name, replicas)
    while stable < STABLE_POLLS:
        info = connection.call(client.get_collection, name)
        if info.optimizer_status != models.OptimizersStatusOneOf.OK:
            raise StoreError(f"{url}: the optimizer of collection {name} failed: {info.optimizer_status}")
        left = _left(info, optimizations)
        stable = 0 if left else stable + 1
        if info.status == models.CollectionStatus.GREY:
            _wake(connection, name)
        waited = time.monotonic() - started
        if left and waited > INDEX_SECONDS:
            raise StoreUnavailableError(
                f"{url}: collection {name} was not indexed within {INDEX_SECONDS:.0f} s ({left}); it goes on, run the "
                "same command again later"
            )
        if left and waited - said >= REPORT_SECONDS:
            _log.info("waiting for the index of collection %s, %.0f s so far: %s", name, waited, left)
            said = waited
        if stable < STABLE_POLLS:
            time.sleep(POLL_SECONDS)


def _wake(connection: Connection, name: str) -> None:
    """Wake the optimizer of a collection that is grey: paused until the next update of each shard.

    Delete a point that nobody has. To update the collection's settings would take the right to manage the server.
    """
    nobody = models.Filter(must=[models.HasIdCondition(has_id=[str(uuid4())])])
    selector = models.FilterSelector(filter=nobody)
    with suppress(StoreUnavailableError):  # the next poll tries again
        connection.translated(connection.client.delete, name, points_selector=selector, wait=True)


def _left(info: models.CollectionInfo, optimizations: "_Optimizations") -> str:
    """Return what the server still has to do and what it complains of; empty: nothing is left to do."""
    left = [] if info.status == models.CollectionStatus.GREEN else [f"status {info.status.value}"]
    if (queue := info.update_queue) and (queue.length or queue.deferred_points):
        left.append(f"{queue.length} updates queued, {queue.deferred_points or 0} points deferred")
    left += optimizations.left()
    if left:
        left += [warning.message for warning in info.warnings or ()]
    return "; ".join(left)


class _Optimizations:
    """What all replicas of a collection still optimise, as far as it is told."""

    def __init__(self, connection: Connection, name: str, replicas: Callable[[str], Replicas | None]):
        self._connection, self._name, self._replicas = connection, name, replicas
        self._is_told = not connection.grpc  # which has no such request
        self._failures = 0

    def left(self) -> list[str]:
        """Return what is still to do."""
        if not self._is_told:
            return []
        if self._failures == FAILED_POLLS:
            return self._by_status()
        try:
            at_work = self._connection.translated(self._connection.client.get_optimizations, self._name)
        except (CollectionNotFoundError, NotImplementedError):  # an older server, or local mode
            self._is_told = False
            return []
        except StoreUnavailableError as error:
            self._failures += 1
            if self._failures == FAILED_POLLS:
                _log.warning(
                    "collection %s: the server does not tell what its replicas optimise (%s); the status of those that "
                    "answer says whether it is ready",
                    *(self._name, str(error)[:ERROR_CHARACTERS]),
                )
            return ["the server does not tell what is being optimised"]
        self._failures = 0
        if at_work.running or at_work.summary.queued_optimizations:
            return [f"{len(at_work.running)} optimizations running, {at_work.summary.queued_optimizations} queued"]
        return []

    def _by_status(self) -> list[str]:
        replicas = self._replicas(self._name)
        return [
            f"replica of shard {shard.number} on {replica.node}: status {replica.status}"
            for shard in (replicas.shards if replicas else ())
            for replica in shard.replicas
            if replica.state in READABLE and replica.status not in (None, models.CollectionStatus.GREEN)
        ]
