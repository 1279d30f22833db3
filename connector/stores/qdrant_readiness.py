"""Waiting until a Qdrant server has indexed a collection, and saying what it still does."""

import logging
import time
from contextlib import suppress

from qdrant_client import models

from connector.errors import CollectionNotFoundError, StoreError, StoreUnavailableError
from connector.stores.qdrant_connection import Connection

_log = logging.getLogger(__name__)

INDEX_SECONDS = 3600.0
REPORT_SECONDS = 30.0  # how often a wait for an index is told of
POLL_SECONDS = 0.5
STABLE_POLLS = 3


def wait_until_ready(connection: Connection, name: str) -> None:
    """Wait until the server has nothing left to optimise in several polls in a row.

    Raises:
        StoreError: the optimizer failed.
        StoreUnavailableError: the collection was not indexed within an hour.
    """
    client, url = connection.client, connection.url
    started, said = time.monotonic(), -REPORT_SECONDS
    stable = 0
    while stable < STABLE_POLLS:
        info = connection.call(client.get_collection, name)
        if info.optimizer_status != models.OptimizersStatusOneOf.OK:
            raise StoreError(f"{url}: the optimizer of collection {name} failed: {info.optimizer_status}")
        left = _left(connection, name, info)
        stable = 0 if left else stable + 1
        if info.status == models.CollectionStatus.GREY:
            # Grey means paused until the next update; an empty one wakes the optimizer.
            connection.call(client.update_collection, name, optimizers_config=models.OptimizersConfigDiff())
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


def _left(connection: Connection, name: str, info: models.CollectionInfo) -> str:
    """Return what the server still has to do and what it complains of; empty: nothing is left to do."""
    left = [] if info.status == models.CollectionStatus.GREEN else [f"status {info.status.value}"]
    if (queue := info.update_queue) and (queue.length or queue.deferred_points):
        left.append(f"{queue.length} updates queued, {queue.deferred_points or 0} points deferred")
    if not connection.grpc:  # gRPC has no such request
        with suppress(CollectionNotFoundError, NotImplementedError):  # nor has an older server, or local mode
            at_work = connection.call(connection.client.get_optimizations, name)
            if at_work.running or at_work.summary.queued_optimizations:
                queued = at_work.summary.queued_optimizations
                left.append(f"{len(at_work.running)} optimizations running, {queued} queued")
    if left:
        left += [warning.message for warning in info.warnings or ()]
    return "; ".join(left)
