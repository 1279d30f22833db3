"""The replicas of a collection on the nodes of a cluster, as the cluster tells of them, and what is possible now."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# States of a replica, as Qdrant names them. It is searched in the first, and written in the second. A write leaves the
# others out: they take all points from another replica before they are searched again.
READABLE = frozenset(("Active", "ActiveRead", "ReshardingScaleDown"))
WRITABLE = READABLE | {"Partial", "Initializing", "Listener", "Resharding"}


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster.

    Attributes:
        peer: its id in the cluster.
        address: where the other nodes reach it; empty: not known.
        away: whether it does not answer the other nodes; None: not known.
    """

    peer: int
    address: str = ""
    away: bool | None = None

    def __str__(self) -> str:
        return f"{self.address} (peer {self.peer})" if self.address else f"peer {self.peer}"


@dataclass(frozen=True, slots=True)
class Replica:
    """A copy of a shard.

    Attributes:
        node: where it is.
        state: as Qdrant names it, such as `Active`.
        points: number of points, once all writes are applied; None: not known.
        status: of its optimizer, `green` when there is nothing to do; None: not known.
    """

    node: Node
    state: str
    points: int | None = None
    status: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a collection and its replicas."""

    number: int
    replicas: Sequence[Replica]

    @property
    def difference(self) -> str | None:
        """How the numbers of points of its readable replicas differ; None: they do not, as far as they are known."""
        known = [replica for replica in self.replicas if replica.state in READABLE and replica.points is not None]
        if len({replica.points for replica in known}) < 2:
            return None
        counts = ", ".join(str(replica.points) for replica in known)
        where = ", ".join(f"{replica.points} points on {replica.node}" for replica in known)
        return f"replicas of shard {self.number} differ: {counts} ({where})"

    @property
    def is_searchable(self) -> bool:
        """Whether a replica answers searches."""
        return any(replica.state in READABLE and not replica.node.away for replica in self.replicas)

    def why_not_writable(self, write_consistency_factor: int) -> str | None:
        """Say why the shard takes no writes; None: it does."""
        writable = [replica for replica in self.replicas if replica.state in WRITABLE]
        reached = [replica for replica in writable if not replica.node.away]
        if not any(replica.state in READABLE for replica in reached):
            return f"no replica of shard {self.number} can take them"
        needed = min(write_consistency_factor, len(self.replicas))
        if len(reached) < len(writable) and len(reached) < needed:
            return (
                f"write consistency factor {write_consistency_factor} needs {needed} replicas of shard {self.number}, "
                f"{len(reached)} can be reached; a refused write may stay on these"
            )
        return None


@dataclass(frozen=True, slots=True)
class Transfer:
    """Points of a shard that are on their way from a node to another."""

    shard: int
    origin: Node
    target: Node

    def __str__(self) -> str:
        return f"shard {self.shard} from {self.origin} to {self.target}"


@dataclass(frozen=True, slots=True)
class Replicas:
    """The shards of a collection on the nodes of a cluster.

    Attributes:
        nodes: all nodes of the cluster, by peer.
        shards: of the collection, in order.
        transfers: that are under way.
        write_consistency_factor: of the collection.
        replication_factor: of the collection: how many replicas each shard should have.
    """

    nodes: Mapping[int, Node]
    shards: Sequence[Shard]
    transfers: Sequence[Transfer] = ()
    write_consistency_factor: int = 1
    replication_factor: int = 1

    @property
    def away(self) -> list[Node]:
        """The nodes that do not answer."""
        return [node for node in self.nodes.values() if node.away]

    @property
    def differences(self) -> list[str]:
        """How replicas of one shard differ, a sentence for each shard; empty: not in their number of points."""
        return [difference for shard in self.shards if (difference := shard.difference)]

    @property
    def lost(self) -> list[str]:
        """Which shards have fewer replicas than they should and what to do, a sentence for each; empty: none.

        A replica on a node that is away is still one of its shard. No more replicas are missed than there are nodes.
        """
        due = min(self.replication_factor, len(self.nodes))
        return [self._lost(shard) for shard in self.shards if len(shard.replicas) < due]

    def _lost(self, shard: Shard) -> str:
        holding = {replica.node.peer for replica in shard.replicas}
        free = ", ".join(str(node) for node in self.nodes.values() if node.peer not in holding and not node.away)
        where = f"on {free}" if free else "once a node answers that holds none"
        return (
            f"shard {shard.number} has {len(shard.replicas)} of {self.replication_factor} replicas: make one {where}, "
            "by Qdrant's own request replicate_shard"
        )

    @property
    def has_majority(self) -> bool:
        """Whether enough nodes answer to change collections and aliases."""
        return len(self.nodes) - len(self.away) > len(self.nodes) // 2

    @property
    def possible(self) -> dict[str, str]:
        """What is possible now, in words: searches, writes, and switches of aliases."""
        possible = {"searches": self._searches(), "writes": self._writes(), "switches": self._switches()}
        return possible if self.not_told is None else {w: f"{a} if all nodes answer" for w, a in possible.items()}

    @property
    def not_told(self) -> str | None:
        """What is not known of the other nodes, and how to know it; None: all of it is."""
        if all(node.away is not None for node in self.nodes.values()):
            return None
        return (
            "whether other nodes answer, how many points they hold and which versions of Qdrant they have is not told "
            "over gRPC, nor to every token: use a REST address and a key that may see the cluster"
        )

    def _searches(self) -> str:
        missing = [str(shard.number) for shard in self.shards if not shard.is_searchable]
        return f"not possible: no replica of shard {', '.join(missing)} answers" if missing else "possible"

    def _writes(self) -> str:
        reasons = [reason for shard in self.shards if (reason := shard.why_not_writable(self.write_consistency_factor))]
        if reasons:
            return f"not possible: {reasons[0]}"
        to_deactivate = any(
            replica.state in WRITABLE and replica.node.away for shard in self.shards for replica in shard.replicas
        )
        if to_deactivate and not self.has_majority:
            return "not possible: a majority of the nodes has to declare the replicas of absent nodes dead"
        return "possible"

    def _switches(self) -> str:
        if self.has_majority:
            return "possible"
        here, needed = len(self.nodes) - len(self.away), len(self.nodes) // 2 + 1
        return f"not possible: {here} of {len(self.nodes)} nodes answer, {needed} are needed to change aliases"

    def rows(self) -> Iterator[dict[str, object]]:
        """Lay out the replicas, one a row."""
        for shard in self.shards:
            for replica in shard.replicas:
                yield {
                    "shard": shard.number,
                    "peer": replica.node.peer,
                    "address": replica.node.address,
                    "node": {True: "away", False: "answers", None: "not known"}[replica.node.away],
                    "state": replica.state,
                    "points": replica.points,
                    "status": replica.status,
                }
