"""Units that workers of Ray encode: a machine that is lost in the middle changes nothing of the set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from connector.encoding.loading import load_encoder
from connector.executors.contract import Executor
from connector.executors.opening import open_executor
from tests.support.cut_corpora import InRows
from tests.support.encoding import Encoders, encode_with, files
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.ray_clusters import STORE_BYTES, RayCluster

IMAGES, TEXTS = "tests.support.fakes:FakeImageEncoder", "tests.support.fakes:FakeTextEncoder"


@pytest.fixture
def executor(ray_machines: RayCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    for name, value in ray_machines.environment.items():
        monkeypatch.setenv(name, value)
    with open_executor("auto", modules=["tests"]) as executor:
        assert executor is not None
        yield executor


@pytest.fixture
def machines(ray_machines: RayCluster) -> Iterator[Cluster]:
    """The cluster, which has as many machines for the next test."""
    cluster = ray_machines.machines
    before = len(cluster.worker_nodes)
    yield cluster
    for _ in range(before - len(cluster.worker_nodes)):
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def by_class() -> Encoders:
    """The fakes, as encoders of one's own that are named by their class."""
    return {"image": load_encoder(IMAGES, "cpu"), "text": load_encoder(TEXTS, "cpu")}


def test_a_machine_that_is_lost_changes_nothing(machines: Cluster, executor: Executor, tmp_path: Path) -> None:
    pairs = fake_pairs(tmp_path, 60, captions=2)
    pairs[7].image.write_bytes(b"broken")
    corpus = InRows(write_manifest(tmp_path / "corpus.jsonl", pairs))
    encoders = by_class()
    local = encode_with(corpus, tmp_path / "local" / "s", encoders)
    lost: list[Any] = []

    def lose(count: int) -> None:
        if not lost:
            lost.append(True)
            machines.remove_node(next(iter(machines.worker_nodes)), allow_graceful=False)

    options: dict[str, Any] = {"executor": executor, "device": "cpu", "advance": lose}
    run = encode_with(corpus, tmp_path / "ray" / "s", encoders, **options)
    assert lost
    assert files(tmp_path / "ray" / "s") == files(tmp_path / "local" / "s")
    assert (run.refused, run.counts) == (local.refused, local.counts)
