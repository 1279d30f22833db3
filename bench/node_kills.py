"""Twenty nodes of a cluster are killed during pushes, while searches run: what is lost, wrong, refused and repeated.

Half of the kills meet a collection whose writes one of two replicas confirms, half one whose writes both confirm. A
push that fails is repeated once the node is back, as its message says. Searches ask for what the first push has
written: the best hit of a caption is its own image.
"""

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alignment.modality import MODALITIES
from bench.figure import Figure
from connector.errors import StoreError
from connector.releases.reconcile import reconcile
from connector.releases.release import open_release
from connector.search.retriever import Retriever
from tests.support.qdrant_servers import Cluster, cluster, skip_without_servers
from tests.support.world import World, embedded, latent, pairs, stored

# What both sides of a figure are asked.
ASKED = "One side alone: counts of what is lost, wrong or refused, against bounds."

KILLS = 20
PAIRS = 500  # that each push adds
QUERIES = 20  # of each search
CONFIRMED_BY = {1: "one of two replicas confirms", 2: "both replicas confirm"}


def figures() -> Iterator[Figure]:
    try:
        skip_without_servers()
    except pytest.skip.Exception as reason:
        print(f"left out: {reason}")
        return
    with cluster() as started:
        for factor, what in CONFIRMED_BY.items():
            with tempfile.TemporaryDirectory() as home, started.nodes[0].connect() as store:
                world = World(Path(home), store)
                with world.provenance:
                    world.alignment()
                    for figure in Killing(started, world, factor).figures(KILLS // len(CONFIRMED_BY)):
                        yield Figure(f"{what}: {figure.what}", figure.value, figure.target, at_most=True)


@dataclass
class Killing:
    """Kills of nodes other than the one that the world writes and searches by."""

    cluster: Cluster
    world: World
    write_consistency_factor: int
    counts: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    @property
    def collection(self) -> str:
        return f"kills-{self.write_consistency_factor}"

    def figures(self, kills: int) -> Iterator[Figure]:
        self.push(1, shards=3, replication_factor=2, write_consistency_factor=self.write_consistency_factor)
        with self.searching():
            for number in range(2, kills + 2):
                self.push_and_kill(number)
                started = time.monotonic()
                self.cluster.start()
                self.push(number)
                self.longest = max(self.longest, time.monotonic() - started)
        points, disagreeing, lost = 2 * (kills + 1) * PAIRS, *self.damage()
        yield Figure(f"points lost or changed of {points:,}, after {kills} kills", lost, 0)
        yield Figure("nodes of 3 that read another content", disagreeing, 0)
        yield Figure(f"wrong answers of {self.counts['answers']:,}", self.counts["wrong"], 0)
        yield Figure(f"searches that failed, of {self.counts['answers'] // QUERIES:,}", self.counts["failed"], 0)
        yield Figure(f"pushes of {kills} that had to be repeated", self.counts["repeated"], kills)
        yield Figure("longest from a node's start to the end of the repeated push, s", self.longest, 60)

    def push(self, number: int, **layout: int) -> None:
        self.world.push(self.world.set("s", *pairs(number * PAIRS)), collection=self.collection, **layout)  # type: ignore[arg-type]

    def push_and_kill(self, number: int) -> None:
        """Push, and kill a node within a second of its begin."""
        node = random.choice(self.cluster.nodes[1:])
        killer = threading.Timer(random.random(), node.kill)
        killer.start()
        try:
            self.push(number)
        except StoreError:
            self.counts["repeated"] += 1
        killer.join()

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Search all the time in a thread of its own, and count what is wrong."""
        ended = threading.Event()
        release = open_release(self.world.provenance, self.world.store, self.collection, device="cpu")
        retriever = Retriever(release, self.world.store, device="cpu")
        queries, encoder = embedded("text", latent(PAIRS)[:QUERIES]), release.alignment.card.encoders["text"]

        def search() -> None:
            while not ended.is_set():
                try:
                    found = retriever.search_embeddings("text", queries, k=1, encoder=encoder.fingerprint)
                except StoreError:
                    self.counts["failed"] += 1
                    continue
                self.counts["answers"] += len(found)
                self.counts["wrong"] += sum(hits[0].key != str(number) for number, hits in enumerate(found))

        thread = threading.Thread(target=search)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def damage(self) -> tuple[int, int]:
        """How many nodes read another content than the first, and how many points are missing or not as written."""
        world = self.world
        release = open_release(world.provenance, world.store, self.collection, device="cpu")
        report = reconcile(release, world.store, world.provenance, seed=0, full=True)
        contents = []
        for node in self.cluster.nodes:
            with node.connect() as store:
                contents.append([stored(store, release.name, modality) for modality in MODALITIES])
        return sum(other != contents[0] for other in contents[1:]), report.missing.count + report.differing.count
