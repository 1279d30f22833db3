"""How fast four workers on three machines encode, and how many rows they read, beside one process that encodes alone.

Ray's machines are processes of this one, and the encoder computes next to nothing: what is measured is reading,
hashing, sending and taking rows.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from alignment.modality import Modality
from alignment.vectors import FloatArray
from bench.cluster_kills import settings_of, write_corpus, write_home
from bench.figure import Figure
from bench.instant_encoder import Instant
from connector.home import Home
from connector.requests import EncodeRequest
from tests.support.ray_clusters import STORE_BYTES, ray_cluster

# What both sides of a figure are asked.
ASKED = (
    "The same captions, one in a hundred of which is refused, from the first one embedded until the set is complete. "
    "Cores allow as many times the rate of one process as there are cores. CPU seconds are those of the driver and all "
    "workers from then on, so that what else the machine does matters less."
)

ITEMS, WORKERS = 100_000, 4
SPEC = "bench.cluster_rate:Timed"
TIMES = "BENCH_ENCODER_TIMES"  # environment variable: a directory


class Timed(Instant):
    """Notes of each batch how many items it has, when it comes, and the CPU seconds of its process so far."""

    @override
    def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
        with Path(os.environ[TIMES], f"{os.getpid()}").open("a", encoding="utf-8") as file:
            file.write(f"{len(prepared)} {time.time()} {time.process_time()}\n")
        return super().embed(modality, prepared)


@dataclass(frozen=True, slots=True)
class Work:
    """An encode, from its first batch on.

    Attributes:
        rows: that were read.
        seconds: until the set was complete.
        driver, workers: their CPU seconds; one process is the driver.
    """

    rows: int
    seconds: float
    driver: float
    workers: float

    def __str__(self) -> str:
        each = f"driver {1e6 * self.driver / self.rows:.0f}, workers {1e6 * self.workers / self.rows:.0f}"
        return f"{self.rows / self.seconds:,.0f} rows/s, CPU microseconds a row: {each}"


def encoded(directory: Path, corpus: Path, on: str, times: Path) -> Work:
    """Encode in a new home; workers note their batches in `times`."""
    with Home(settings_of(write_home(directory / f"home-{on}"))) as home:
        began = time.process_time()
        found = home.encode(EncodeRequest(corpus=corpus, set="rate", encoders={"text": SPEC}, on=on))
        ended, cpu = time.time(), time.process_time()
    batches = {int(file.name): [line.split() for line in file.read_text().splitlines()] for file in times.iterdir()}
    embedded = sum(int(items) for of_process in batches.values() for items, _, _ in of_process)
    first = min(float(moment) for of_process in batches.values() for _, moment, _ in of_process)
    own = batches.pop(os.getpid(), None)
    workers = sum(float(of_process[-1][2]) - float(of_process[0][2]) for of_process in batches.values())
    driver = cpu - (float(own[0][2]) if own else began)
    return Work(embedded + found.counts["rejected"], ended - first, driver, workers)


def figures() -> Iterator[Figure]:
    """Encode in one process and on the cluster, and compare."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as environment:
        directory = Path(name)
        corpus = write_corpus(directory / "corpus.jsonl", ITEMS)
        by_one, by_workers = directory / "one", directory / "workers"
        by_one.mkdir()
        by_workers.mkdir()
        environment.setenv(TIMES, str(by_one))
        alone = encoded(directory, corpus, "local", by_one)
        print(f"one process: {alone}", flush=True)
        environment.setenv(TIMES, str(by_workers))  # machines have the variables that they are started with
        with ray_cluster(machines=2) as cluster:
            cluster.machines.add_node(num_cpus=WORKERS - 2, object_store_memory=STORE_BYTES)
            environment.setenv("RAY_ADDRESS", cluster.machines.address)
            together = encoded(directory, corpus, "auto", by_workers)
        print(f"{WORKERS} workers: {together}", flush=True)
    yield Figure("rows read / rows of the corpus", together.rows / ITEMS, 1.05, at_most=True)
    rate = together.rows / together.seconds / (min(cores, WORKERS) * alone.rows / alone.seconds)
    yield Figure(f"rate of {WORKERS} workers / what {cores} cores allow", rate, 0.8)
    cpu = alone.driver / (together.driver + together.workers)
    yield Figure(f"CPU seconds of one process / of the driver and {WORKERS} workers", cpu, 0.8)
