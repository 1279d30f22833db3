"""Clusters of Ray on this machine, of logical CPUs, without its dashboard."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ray.cluster_utils import Cluster

STORE_BYTES = 80 << 20
# A machine that is lost is missed within a second or two, instead of fifteen.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


@contextmanager
def ray_cluster(machines: int, **head: object) -> Iterator[Cluster]:
    """Start a head without CPUs and `machines` of one CPU each; end all of their processes with the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
                "_system_config": HEALTH_CHECKS,
                **head,
            },
        )
        try:
            for _ in range(machines):
                cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, wait=False)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()
