"""How many workers a cluster has room for."""

import time
from collections.abc import Mapping

import ray

from alignment.plurals import counted
from connector.executors.placement import Placement

LOOK_SECONDS = 5.0  # between two looks at the machines


class Room:
    """Counts the workers that the machines of the connected cluster can hold, and says what there is."""

    def __init__(self, placement: Placement):
        self._placement = placement
        self._looked_at = -LOOK_SECONDS
        self._machines: list[Mapping[str, float]] = []

    @property
    def may_grow(self) -> bool:
        """Whether machines may join."""
        return not self._placement.processes

    @property
    def one_worker(self) -> str:
        """What one worker needs, in words."""
        gpus = self._placement.gpus_per_worker
        return "1 CPU" + (f" and {gpus:g} GPU" if gpus else "")

    def gpus(self) -> float:
        """Count the GPUs."""
        return sum(machine.get("GPU", 0.0) for machine in self._look())

    def fits(self) -> int:
        """Count the workers that fit if nothing else runs."""
        return sum(map(self._fits_on, self._look()))

    def most_workers(self) -> int:
        """Return how many workers to start at most, from 1."""
        return self._placement.max_workers or max(self._placement.min_workers, self.fits())

    def in_words(self) -> str:
        """Say what there is, and what of it is free."""
        machines, free = self._look(), ray.available_resources()

        def units(cpus: float, gpus: float) -> str:
            return f"{cpus:g} CPU and {gpus:g} GPU"

        has = units(sum(machine.get("CPU", 0.0) for machine in machines), self.gpus())
        return (
            f"the cluster has {counted(len(machines), 'machine')} with {has}, of which "
            f"{units(free.get('CPU', 0.0), free.get('GPU', 0.0))} are free"
        )

    def _fits_on(self, machine: Mapping[str, float]) -> int:
        cpus, gpus = int(machine.get("CPU", 0.0)), self._placement.gpus_per_worker
        # A share of a GPU is of one GPU, and Ray counts in ten-thousandths.
        on_gpus = int(machine.get("GPU", 0.0) / gpus + 1e-4) if gpus else cpus
        return min(cpus, on_gpus)

    def _look(self) -> list[Mapping[str, float]]:
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._looked_at = time.monotonic()
        return self._machines
