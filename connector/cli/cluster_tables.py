"""The replicas of a collection in a cluster, as tables for people and as JSON."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from connector.cli.tables import print_table, show

if TYPE_CHECKING:
    from connector.stores.replicas import Replicas


def replicas_document(releases: "Mapping[str, Replicas]") -> dict[str, Any]:
    """Lay out as JSON where the replicas of each release are, and what is possible now."""
    return {
        name: {
            "replicas": list(replicas.rows()),
            "transfers": [
                {"shard": transfer.shard, "from": transfer.origin.peer, "to": transfer.target.peer}
                for transfer in replicas.transfers
            ],
            "away": [{"peer": node.peer, "address": node.address} for node in replicas.away],
            "differences": replicas.differences,
            "lost": replicas.lost,
            "possible": replicas.possible,
            "not_told": replicas.not_told,
        }
        for name, replicas in releases.items()
    }


def print_replicas(releases: "Mapping[str, Replicas]") -> None:
    """Print where the replicas of each release are, and say what is possible now."""
    for name, replicas in releases.items():
        print_table(replicas.rows(), f"replicas of {name}")
        for transfer in replicas.transfers:
            show(f"{name}: on its way: {transfer}")
        for node in replicas.away:
            show(f"{name}: away: {node}")
        for fault in (*replicas.differences, *replicas.lost):
            show(f"{name}: {fault}")
        for what, answer in replicas.possible.items():
            show(f"{name}: {what}: {answer}")
        if replicas.not_told:
            show(f"{name}: {replicas.not_told}")
