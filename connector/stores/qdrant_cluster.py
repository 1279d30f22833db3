"""A cluster behind a Qdrant connection: its replicas, reads that ask all of them, and its failures in words.

An ordinary read asks one replica of each shard. A write that fewer replicas confirm than the write consistency factor
asks for is refused, but stays on those that took it, and the others are searched all the same. So what has to be equal
on all replicas is read with the consistency `all`, which returns only what they hold alike.

Writes are sent with weak ordering. With `medium` or `strong` ordering a write goes through a leader, and a node that
gets an error from the leader declares it dead, whoever was at fault: with one node away and a write consistency factor
that is not met, Qdrant 1.18 gave up one sound replica after the other until a single one took the write.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast

from qdrant_client import models

from connector.errors import (
    AccessDeniedError,
    ClusterError,
    CollectionNotFoundError,
    DeadlinePassedError,
    RequestRefusedError,
    StoreError,
    StoreUnavailableError,
)
from connector.stores.consistent_client import ConsistentClient
from connector.stores.deadlines import deadline, given
from connector.stores.qdrant_connection import Connection
from connector.stores.qdrant_failures import CHECK
from connector.stores.replicas import Node, Replica, Replicas, Shard, Transfer

_log = logging.getLogger(__name__)

T = TypeVar("T")

ORDERING = models.WriteOrdering.WEAK
LEVEL_SECONDS = 60.0  # after a read found replicas away, so long no more are asked than answered then
POLLS = 3  # numbers of points that differ so often in a row do not differ because of a write under way
POLL_SECONDS = 0.5
MAJORITY_SECONDS = 10  # that a node waits for a majority unless it is told
SPARE_SECONDS = 1.5  # for its answer, and to ask which nodes are away
TELEMETRY_DETAILS = 3  # the level that tells of shards
TELEMETRY_SECONDS = 20  # of which a node that hangs takes ten
# What a server answers when replicas that a read needs are dead or away.
REPLICAS_AWAY = r"does not have enough active replicas|\d+ of \d+ read operations failed"
# What it answers when other nodes are away.
NODES_AWAY = (
    rf"{REPLICAS_AWAY}|Tonic status|shards failed to apply|has no active replica|ordering via leader|"
    r"deactivation timed out|to at least one `Active` replica|Healthcheck timeout|Deadline expired"
)
NO_MAJORITY = r"[Cc]onsensus|leader is not established"
ADDRESS = r"(?:[Ff]ailed to connect to |tcp connect error\W+, )([^\s,]+),"
FIRST, LAST = 300, 150  # characters of the server's own message in ours


class Cluster:
    """What the collections of a connection need where they have replicas.

    Args:
        connection: to one node.
        params: returns the parameters of a collection.
    """

    def __init__(self, connection: Connection, params: Callable[[str], models.CollectionParams]):
        self._connection = connection
        self._params = params
        self._levels: dict[str, tuple[int, float]] = {}

    def call(self, operation: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call the client; say in words what a failure of a cluster means."""
        try:
            return self._connection.call(operation, *args, **options)
        except StoreUnavailableError as error:
            raise in_words(self._connection, error) from error

    def change(self, operation: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call the client for what a majority decides; before the deadline a node gives up and says why."""

        def attempt() -> T:
            holds = deadline()
            if holds and holds.left < MAJORITY_SECONDS + SPARE_SECONDS:
                options["timeout"] = max(1, int(holds.left - SPARE_SECONDS))
            return operation(*args, **options)

        return self.call(attempt)

    def write(self, what: str, operation: Any, name: str, **options: Any) -> None:
        """Change points and wait for `completed`: a change that was only acknowledged, or timed out, may be lost."""
        url = self._connection.url

        def change() -> None:
            result = operation(name, wait=True, ordering=ORDERING, **options)
            if result.status != models.UpdateStatus.COMPLETED:
                raise StoreUnavailableError(f"{url}: {what} collection {name} was not completed: {result.status.value}")

        try:
            self._connection.call(change)
        except StoreUnavailableError as error:
            raise in_words(self._connection, error, lambda: _not_confirmed(name, self._params(name))) from error

    def count(self, name: str, filter: models.Filter | None, *, consistent: bool) -> int:
        """Count exactly; consistently: of each shard, the points of the replica that has fewest."""
        return self.read(name, self._counting(name, filter), consistent=consistent)

    def _counting(self, name: str, filter: models.Filter | None) -> Callable[[Any], int]:
        """Return what counts with a consistency."""
        connection = self._connection

        def count(consistency: Any) -> int:
            if consistency is None:
                return connection.client.count(name, count_filter=filter, exact=True).count
            client = cast(ConsistentClient, connection.client)  # or one that goes on with another address
            return client.count_consistently(
                name, filter, consistency, over_grpc=connection.grpc, timeout=connection.timeout
            )

        return count

    def read(self, name: str, operation: Callable[[Any], T], *, consistent: bool) -> T:
        """Read from a collection; consistently: from all replicas of each shard, or from as many as answer.

        Args:
            name: of the collection.
            operation: reads with a consistency, or without one if it is None.
            consistent: ask more replicas than one.
        """
        replicas = self.replication_factor(name) if consistent else 1
        for level in range(self._most(name, replicas), 1, -1):
            consistency = models.ReadConsistencyType.ALL if level == replicas else level
            answer: tuple[T] | None = self.call(self._if_enough_answer, operation, consistency)
            if answer:
                return answer[0]
            self._step_down(name, level - 1, replicas)
        return self.call(operation, None)

    def _if_enough_answer(self, operation: Callable[[Any], T], consistency: Any) -> tuple[T] | None:
        """Read with a consistency; None: fewer replicas answer than it needs."""
        try:
            return (self._connection.translated(operation, consistency),)
        except StoreUnavailableError as error:
            if re.search(REPLICAS_AWAY, str(error)):
                return None
            raise

    def replication_factor(self, name: str) -> int:
        """Return how many replicas each shard of a collection should have."""
        return self._params(name).replication_factor or 1

    def replicas(self, name: str) -> Replicas | None:
        """Read where the replicas of a collection are; None: one node has all of it."""
        return read_replicas(self._connection, name, self._params(name))

    def lost(self, name: str) -> list[str]:
        """Say which shards have lost a replica; nothing to a token for points alone, which `differences` tells."""
        if self.replication_factor(name) == 1:
            return []
        with suppress(AccessDeniedError):
            if replicas := self.replicas(name):
                return replicas.lost
        return []

    def differences(self, name: str) -> list[str]:
        """Say how replicas of one shard differ in their number of points, a sentence for each shard.

        A write under way reaches one replica before the other, so differences have to last.
        """
        if self.replication_factor(name) == 1:
            return []
        differences: list[str] = []
        for poll in range(POLLS):
            if poll:
                time.sleep(POLL_SECONDS)
            try:
                differences = self._differences_now(name)
            except AccessDeniedError as error:  # a token for points alone
                _log.warning("the replicas of collection %s were not compared: %s", name, error)
                return []
            if not differences:
                return []
        return differences

    def _differences_now(self, name: str) -> list[str]:
        replicas = self.replicas(name)
        if replicas is None:
            return []
        if all(node.away is not None for node in replicas.nodes.values()):
            return replicas.differences
        # This node tells of its own points alone: the smallest, the middle and one replica of each shard are compared.
        counts = set()
        for consistency in (models.ReadConsistencyType.ALL, models.ReadConsistencyType.MAJORITY, None):
            try:
                answer = self.call(self._if_enough_answer, self._counting(name, None), consistency)
            except RequestRefusedError:  # strict mode refuses exact counts
                return []
            if answer is None:
                return []
            counts.add(answer[0])
        if len(counts) == 1:
            return []
        return [f"replicas differ: the smallest of each shard hold {min(counts)} points in all, others {max(counts)}"]

    def _step_down(self, name: str, level: int, replicas: int) -> None:
        """Ask no more than `level` replicas from now on; say so if it is news."""
        known = self._levels.get(name)
        if known is None or known[0] != level:
            _log.warning(
                "collection %s: not all of its %d replicas answer; reads that compare them ask %d, and what the "
                "others hold is not known",
                *(name, replicas, level),
            )
        self._levels[name] = (level, time.monotonic())

    def _most(self, name: str, replicas: int) -> int:
        """Return how many replicas to ask at first."""
        level, since = self._levels.get(name, (replicas, -LEVEL_SECONDS))
        return replicas if time.monotonic() - since > LEVEL_SECONDS else min(level, replicas)


def read_replicas(connection: Connection, name: str, params: models.CollectionParams) -> Replicas | None:
    """Read where the replicas of a collection are; None: it has none beside those of the node that answers.

    Also None where it should have others, and no other node is known.

    One node asks all others over REST. Over gRPC, or with a token that may not see the cluster, the numbers of points
    on other nodes and whether they answer are not known.
    """
    try:
        info = connection.call(connection.client.collection_cluster_info, name)
    except (NotImplementedError, CollectionNotFoundError):  # the client's local mode has no shards
        return None
    replication_factor = params.replication_factor or 1
    if not info.remote_shards and replication_factor == 1:
        return None
    telemetry = _telemetry(connection)
    own = telemetry.collections.get(name) if telemetry else None
    nodes = {peer: Node(peer) for peer in (info.peer_id, *(shard.peer_id for shard in info.remote_shards))}
    if telemetry and telemetry.cluster:
        nodes = {
            int(peer): Node(int(peer), node.uri, not node.responsive) for peer, node in telemetry.cluster.peers.items()
        }
    if len(nodes) < 2:
        return None
    if own and own.shards:
        shards = [
            Shard(shard.id, [_replica(nodes, replica) for replica in sorted(shard.replicas, key=lambda r: r.peer_id)])
            for shard in sorted(own.shards, key=lambda shard: shard.id)
        ]
    else:
        shards = _shards(info, nodes)
    transfers = [
        Transfer(
            transfer.shard_id,
            nodes.get(transfer.from_, Node(transfer.from_)),
            nodes.get(transfer.to, Node(transfer.to)),
        )
        for transfer in info.shard_transfers
    ]
    return Replicas(nodes, shards, transfers, params.write_consistency_factor or 1, replication_factor)


def _telemetry(connection: Connection) -> models.DistributedTelemetryData | None:
    """Ask one node for what all of them tell; None: it is older than 1.17, or does not tell us."""
    if connection.grpc:
        return None
    with suppress(StoreError, NotImplementedError):
        return connection.translated(
            connection.client.cluster_telemetry, details_level=TELEMETRY_DETAILS, timeout=TELEMETRY_SECONDS
        )
    return None


def _replica(nodes: dict[int, Node], replica: models.DistributedReplicaTelemetry) -> Replica:
    node = nodes.get(replica.peer_id, Node(replica.peer_id))
    status = replica.status.value if replica.status else None
    return Replica(node, replica.state.value, replica.num_points, status)


def _shards(info: models.CollectionClusterInfo, nodes: dict[int, Node]) -> list[Shard]:
    """Return the shards as one node knows them: with the numbers of its own points."""
    replicas: dict[int, list[Replica]] = {}
    for local in info.local_shards:
        replica = Replica(nodes.get(info.peer_id, Node(info.peer_id)), local.state.value, local.points_count)
        replicas.setdefault(local.shard_id, []).append(replica)
    for remote in info.remote_shards:
        replica = Replica(nodes.get(remote.peer_id, Node(remote.peer_id)), remote.state.value)
        replicas.setdefault(remote.shard_id, []).append(replica)
    return [Shard(number, of_shard) for number, of_shard in sorted(replicas.items())]


def _not_confirmed(name: str, params: models.CollectionParams) -> str:
    factor = min(params.write_consistency_factor or 1, params.replication_factor or 1)
    return (
        f"A change of points in collection {name} was not confirmed by {factor} replica{'s' * (factor > 1)} of each "
        "shard, as its write consistency factor asks. Those that were reached may have made it; the ledger does not "
        "record it"
    )


def in_words(
    connection: Connection, error: StoreUnavailableError, consequence: Callable[[], str] | None = None
) -> StoreUnavailableError:
    """Say what a failure of a cluster means: which nodes are away, and what helps. Other errors stay as they are.

    Args:
        connection: to the node that answered.
        error: what it answered.
        consequence: says what that means for the request that failed.
    """
    text = str(error)
    no_majority = re.search(NO_MAJORITY, text)
    if isinstance(error, ClusterError) or not (no_majority or re.search(NODES_AWAY, text)):
        return error
    telemetry = _telemetry(connection)
    peers = telemetry.cluster.peers if telemetry and telemetry.cluster else {}
    sentences = [_away_in_words(peers, text)]
    if no_majority:
        needed = f" ({len(peers) // 2 + 1} of its {len(peers)} nodes have to)" if peers else ""
        sentences.append(
            f"No majority of the cluster decided on the change in time{needed}. It may still happen once they answer"
        )
    if consequence:
        sentences.append(consequence())
    sentences.append("Run the same command again when they are back; it finishes")
    server = " ".join(text.replace(CHECK, "").split())
    if len(server) > FIRST + LAST:
        server = f"{server[:FIRST]} ... {server[-LAST:]}"  # what another address answered stands at the end
    kind: type[StoreUnavailableError] = ClusterError
    if isinstance(error, DeadlinePassedError):
        kind = DeadlinePassedError
        sentences.insert(-1, f"No attempt more was made in {given()}")
    return kind(f"{'. '.join(sentences)}. Last answer: {server}", error.retry_after)


def _away_in_words(peers: Mapping[str, models.DistributedPeerInfo], text: str) -> str:
    """Say which nodes are away, as the others tell; otherwise as the answer `text` does."""
    away = [str(Node(int(peer), node.uri)) for peer, node in peers.items() if not node.responsive]
    away = away or list(dict.fromkeys(re.findall(ADDRESS, text)))
    if not away:
        return "Nodes of the cluster are away, or were for a moment"
    return f"{', '.join(away)} of the cluster {'are' if len(away) > 1 else 'is'} away"
