"""Clusters of Ray on this machine, of logical CPUs, without its dashboard."""

import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray.cluster_utils import Cluster

STORE_BYTES = 80 << 20
# A machine that is lost is missed within a second or two, instead of fifteen.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


@dataclass(frozen=True)
class RayCluster:
    """A cluster that runs.

    Attributes:
        machines: adds and removes some.
        from_outside: the value of `--on` for a client of it.
        environment: variables of its own machines, where `--on auto` finds it.
    """

    machines: Cluster
    from_outside: str

    @property
    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": self.machines.address}


@contextmanager
def ray_cluster(machines: int) -> Iterator[RayCluster]:
    """Start a head without CPUs and `machines` of one CPU each; end all of their processes with the block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
                "ray_client_server_port": port,
                "_system_config": HEALTH_CHECKS,
            },
        )
        try:
            for _ in range(machines):
                cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, wait=False)
            cluster.wait_for_nodes()
            yield RayCluster(cluster, f"ray://127.0.0.1:{port}")
        finally:
            cluster.shutdown()
