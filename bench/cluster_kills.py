"""Machines and drivers are killed while a cluster ingests: what is lost, changed, refused twice and encoded again.

A cluster of Ray with three machines of logical CPUs on this one; a corpus of captions, some of which are refused; an
encoder that waits. One ingest in one process, one by the undisturbed cluster, one during which machines and drivers
are killed after work that a seed decides. A driver that was killed is run again.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from alignment.modality import MODALITIES
from alignment.model.alignment import Alignment
from alignment.model.projections import Projection
from alignment.sets.embedding_set import EmbeddingSet
from bench.corpus import card
from bench.figure import Figure
from bench.instant_encoder import COUNTS, DIM, SECONDS
from connector.corpora import line_ranges
from connector.encoding.loading import load_encoder
from connector.home import Home
from connector.provenance.database import upgrade
from connector.requests import IngestRequest
from connector.settings import Settings
from tests.support.ray_clusters import STORE_BYTES, ray_cluster

# What both sides of a figure are asked.
ASKED = (
    "The same corpus, encoder and alignment, in new homes with Qdrant Edge. Compared are ids, vectors and payloads of "
    "points, rows and vectors of the set, points in the ledger, and rejects of the last run."
)

ITEMS, MACHINES = 100_000, 3
MACHINE_KILLS, DRIVER_KILLS = 20, 5
ITEM_SECONDS = 0.02
BETWEEN_KILLS = (0.01, 0.03)  # share of the items that is encoded between two kills
UNIT_BYTES = 1 << 14  # some 200 rows
SEED = 0
SPEC = "bench.instant_encoder:Instant"
NAME = "kills"
LAYOUT = {"indexing_threshold": 100 * ITEMS}  # building a graph is the engine's work, and takes most of the time


def settings_of(home: Path) -> Settings:
    database = f"sqlite:///{home / 'modalign.db'}"
    return Settings.load(home=home, database_url=database, qdrant_url=f"edge:{home / 'qdrant'}")


def write_corpus(path: Path, items: int) -> Path:
    """Write a manifest of captions; one row in a hundred is refused, for one of four reasons."""
    rows: list[dict[str, Any]] = [
        {"key": f"item-{number}", "caption": f"caption number {number}", "year": 1900 + number % 100}
        for number in range(items)
    ]
    for number in range(50, items, 100):
        bad: list[dict[str, Any]] = [
            {"key": None},
            {"caption": 7},
            {"key": f"item-{number - 50}"},
            {"caption": " "},
        ]
        rows[number] |= bad[number // 100 % 4]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_home(home: Path) -> Path:
    """Make a home with an alignment of the encoder, without a set."""
    home.mkdir()
    upgrade(f"sqlite:///{home / 'modalign.db'}")
    encoders = {modality: load_encoder(SPEC, "cpu").card for modality in MODALITIES}
    projections = {modality: Projection(DIM) for modality in MODALITIES}
    Alignment(card(encoders=encoders), projections, {}).save(home / "alignments" / NAME)
    return home


def ingest(home: Path, corpus: Path, on: str) -> None:
    """What a driver does."""
    line_ranges.UNIT_BYTES = UNIT_BYTES
    with Home(settings_of(home)) as opened:
        opened.ingest(IngestRequest(corpus=corpus, into=NAME, alignment=NAME, on=on, layout=LAYOUT))


def left(home: Path) -> dict[str, Any]:
    """What an ingest leaves, in no order."""
    with Home(settings_of(home)) as opened:
        (row,) = opened.provenance.releases.find(collection=NAME)
        points = {
            record.id: (record.payload, record.vector.tobytes() if record.vector is not None else None)
            for page in opened.store.scroll(row.physical_name, vector_name="text")
            for record in page
        }
        rows = EmbeddingSet.open(opened.settings.set_path(NAME)).load("text")
        columns = (rows.keys, rows.groups, rows.content_sha256, rows.payloads, rows.vectors)
        rejects = [(r.source, r.position, r.reason, r.key, r.detail) for r in opened.rejects().rows]
        return {
            "points": points,
            "rows": {key: (*rest, vector.tobytes()) for key, *rest, vector in zip(*columns, strict=True)},
            "ledger": opened.provenance.ledger.points(row.id),
            "state": (row.state, row.points, opened.store.aliases()),
            "rejects": sorted(rejects, key=repr),
        }


@dataclass
class Ingesting:
    """An ingest by drivers in processes of their own.

    Attributes:
        drivers: that were run.
        failures: drivers that ended with an error of their own.
        encoded: items that workers embedded.
        seconds: until the last driver ended.
    """

    home: Path
    corpus: Path
    counts: Path
    drivers: int = 0
    failures: int = 0
    seconds: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def start(self, on: str) -> "subprocess.Popen[bytes]":
        self.drivers += 1
        command = [sys.executable, "-m", "bench.cluster_kills", str(self.home), str(self.corpus), on]
        with (self.home / "drivers.log").open("ab") as log:
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)

    def finish(self, driver: "subprocess.Popen[bytes]", on: str) -> None:
        """Wait for a driver, and run another one while they fail."""
        while driver.wait():
            self.failures += 1
            if self.failures > DRIVER_KILLS:
                log = (self.home / "drivers.log").read_text(encoding="utf-8")
                raise RuntimeError(f"{self.failures} drivers failed by themselves:\n{log}")
            driver = self.start(on)
        self.seconds = time.monotonic() - self._started

    @property
    def encoded(self) -> int:
        return sum(int(line) for file in self.counts.iterdir() for line in file.read_text().split())


def disturb(cluster: Any, ingesting: Ingesting, rng: random.Random) -> "subprocess.Popen[bytes]":
    """Kill machines and drivers, in an order and after work that `rng` decides; return the driver that is at work."""
    driver = ingesting.start("auto")
    machines = list(cluster.worker_nodes)
    kills = ["machine"] * MACHINE_KILLS + ["driver"] * DRIVER_KILLS
    rng.shuffle(kills)
    for kill in kills:
        # Seconds would be over before a busy machine has begun to work.
        enough = ingesting.encoded + rng.uniform(*BETWEEN_KILLS) * ITEMS
        while ingesting.encoded < enough and driver.poll() is None:
            time.sleep(0.1)
        if driver.poll() is not None:
            if driver.returncode == 0:
                raise RuntimeError("the ingest ended before every kill: take more items")
            ingesting.failures += 1
            driver = ingesting.start("auto")
        if kill == "driver":
            driver.kill()
            driver.wait()
            driver = ingesting.start("auto")
        else:
            cluster.remove_node(machines.pop(rng.randrange(len(machines))), allow_graceful=False)
            machines.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
    return driver


def figures() -> Iterator[Figure]:
    """Ingest three times, and compare."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as environment:
        directory = Path(name)
        corpus = write_corpus(directory / "corpus.jsonl", ITEMS)
        alone = write_home(directory / "alone")
        ingest(alone, corpus, "local")
        expected = left(alone)
        environment.setenv(SECONDS, str(ITEM_SECONDS))
        for what in ("undisturbed", "killed"):
            counts = directory / f"counts-{what}"
            counts.mkdir()
            environment.setenv(COUNTS, str(counts))
            ingesting = Ingesting(write_home(directory / what), corpus, counts)
            with ray_cluster(machines=MACHINES) as cluster:
                environment.setenv("RAY_ADDRESS", cluster.machines.address)
                if what == "killed":
                    driver = disturb(cluster.machines, ingesting, random.Random(SEED))
                else:
                    driver = ingesting.start("auto")
                ingesting.finish(driver, "auto")
            yield from compared(what, expected, ingesting)


def compared(what: str, expected: Mapping[str, Any], ingesting: Ingesting) -> Iterator[Figure]:
    """Say what differs from the ingest of one process, and what it cost."""
    found = left(ingesting.home)
    for part, values in expected.items():
        differ = differing(values, found[part])
        yield Figure(f"{what}: {part} that differ from those of one process", differ, 0, at_most=True)
    share = ingesting.encoded / len(expected["rows"])
    yield Figure(f"{what}: items encoded / items", share, 1.05 if what == "undisturbed" else 2, at_most=True)
    yield Figure(f"{what}: drivers of {ingesting.drivers} that failed", ingesting.failures, 0, at_most=True)
    ideal = ITEMS * ITEM_SECONDS / MACHINES
    rate = 0.5 if what == "undisturbed" else 0.1
    yield Figure(f"{what}: rate / that of the encoder on {MACHINES} machines", ideal / ingesting.seconds, rate)


def differing(one: Any, other: Any) -> int:
    """Count what is in one and not, or otherwise, in the other."""
    if isinstance(one, dict):
        return sum(1 for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    if isinstance(one, list):
        return sum(1 for a, b in zip_longest(one, other) if a != b)
    return 0 if one == other else 1


if __name__ == "__main__":
    ingest(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
