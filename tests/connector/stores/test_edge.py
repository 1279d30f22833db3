"""What only the embedded store has: a registry, a lock, and crashes that it must survive."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from alignment.metrics import Distance
from connector.errors import StoreBusyError, StoreError
from connector.stores.contract import CollectionConfig, Points, VectorConfig
from connector.stores.edge import SPARE_BYTES, EdgeStore
from connector.stores.layout import Quantization
from tests.support.edge_stores import DIM, LAYOUT, N, batch, died, ids, kill_me, registry
from tests.support.errors import raises


def write_and_die(path: Path) -> None:
    store = EdgeStore(path)
    store.create("c", LAYOUT)
    store.set_aliases({"live": "c"})
    store.upsert("live", batch())
    store.upsert("c", Points("v", ids(1), np.full((1, DIM), 7, np.float32), [{"number": -1}]))
    store.delete("c", ids(2)[1:])
    kill_me()


def hold(path: Path, opened: Connection) -> None:
    store = EdgeStore(path)
    opened.send(store.collections())
    threading.Event().wait(60)


class TestReopening:
    def test_everything_survives(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.create("d", CollectionConfig({"x": VectorConfig(2, Distance.DOT)}))
            store.set_aliases({"live": "c", "other": "d"})
            store.upsert("c", batch())
            before = store.describe("c")
        with EdgeStore(tmp_path) as store:
            assert store.collections() == ["c", "d"]
            assert store.aliases() == {"live": "c", "other": "d"}
            assert store.describe("live") == before
            assert (before.points, before.vectors, before.metadata) == (N, LAYOUT.vectors, LAYOUT.metadata)
            [hits] = store.search("live", "v", batch().vectors[42:43], 1)
            assert (hits[0].id, hits[0].raw_score, hits[0].payload) == (ids(N)[42], 0.0, {"number": 42})

    @pytest.mark.parametrize("quantization", [None, "scalar"])
    def test_the_layout_survives_whole(self, tmp_path: Path, quantization: Quantization | None) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", replace(LAYOUT, quantization=quantization))
        raw = registry(tmp_path)["collections"]["c"]
        assert raw == {
            "vectors": {"v": {"dim": DIM, "distance": "Euclid"}, "w": {"dim": 3, "distance": "Cosine"}},
            "payload_indexes": {"number": "integer"},
            "metadata": {"chain": {"alignment": "abc", "name": "Ümläut"}},
            "m": 8,
            "ef_construct": 50,
            "indexing_threshold": 123,
            "quantization": quantization,
            "compression": None,
            "oversampling": 4.0,
            "rescore": True,
            "datatype": "float32",
            "vectors_on_disk": False,
            "hnsw_on_disk": False,
            "payload_on_disk": True,
            "shards": None,
            "replication_factor": 1,
            "write_consistency_factor": 1,
        }
        with EdgeStore(tmp_path) as store:
            store.set_aliases({})  # writes what was read
        assert registry(tmp_path)["collections"]["c"] == raw

    def test_a_registry_from_before_there_was_quantization_opens(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
        raw = registry(tmp_path)
        del raw["collections"]["c"]["quantization"]
        (tmp_path / "registry.json").write_text(json.dumps(raw), encoding="utf-8")
        with EdgeStore(tmp_path) as store:
            assert store.count("c") == N

    def test_a_dropped_collection_stays_dropped(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
            store.drop("c")
            assert not (tmp_path / "collections" / "c").exists()
        with EdgeStore(tmp_path) as store:
            assert store.collections() == []

    def test_a_relative_path_is_the_same_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with EdgeStore(tmp_path / "s") as store:
            store.create("c", LAYOUT)
        monkeypatch.chdir(tmp_path)
        with EdgeStore("s") as store:
            assert store.collections() == ["c"]
            assert store.url == f"edge:{tmp_path / 's'}"

    def test_a_copy_of_a_closed_store_is_a_backup(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path / "a") as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
        (tmp_path / "a").rename(tmp_path / "b")
        with EdgeStore(tmp_path / "b") as store:
            assert store.count("c") == N


class TestCrashes:
    def test_killed_after_a_write_without_flush_nothing_is_lost(
        self, processes: ForkServerContext, tmp_path: Path
    ) -> None:
        died(processes, write_and_die, tmp_path)
        with EdgeStore(tmp_path) as store:
            assert store.aliases() == {"live": "c"}
            assert store.count("c") == N - 1
            records = {r.id: r for page in store.scroll("live", vector_name="v") for r in page}
            expected = dict(zip(ids(N), batch().vectors.tolist(), strict=True))
            expected[ids(1)[0]] = [7.0] * DIM
            del expected[ids(2)[1]]
            assert {i: r.vector.tolist() for i, r in records.items() if r.vector is not None} == expected
            assert records[ids(1)[0]].payload == {"number": -1}


class Usage(NamedTuple):
    """Stands in for what `shutil.disk_usage` answers."""

    free: int


def left(monkeypatch: pytest.MonkeyPatch, free: int) -> list[Path]:
    """Let every disk have `free` bytes left; return the places that are asked about."""
    asked: list[Path] = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return asked


class TestFullDisk:
    """The engine maps its files: where the disk is full, the process would be killed."""

    MESSAGE = r"has 127 MiB of disk left, Qdrant Edge needs 128 MiB to spare; make room and run the same command"

    def test_nothing_is_created(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            before = registry(tmp_path), sorted(tmp_path.rglob("*"))
            with monkeypatch.context() as patched:
                asked = left(patched, SPARE_BYTES - 1)
                with pytest.raises(StoreError, match=self.MESSAGE) as caught:
                    store.create("d", LAYOUT)
            assert str(caught.value).startswith(f"{tmp_path} has ")
            assert asked == [tmp_path]
            assert store.collections() == ["c"]
            assert (registry(tmp_path), sorted(tmp_path.rglob("*"))) == before
            store.create("d", LAYOUT)
            assert store.collections() == ["c", "d"]

    def test_nothing_is_upserted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.set_aliases({"live": "c"})
            store.upsert("c", batch(10))
            changed = Points("v", ids(20), np.full((20, DIM), 7, np.float32), [{"number": -1}] * 20)
            before = [record.payload for page in store.scroll("c") for record in page]
            with monkeypatch.context() as patched:
                left(patched, SPARE_BYTES - 1)
                for name in ("c", "live"):
                    with pytest.raises(StoreError, match=self.MESSAGE):
                        store.upsert(name, changed)
                # What is there can be read, deleted and closed: that makes room.
                assert [record.payload for page in store.scroll("c") for record in page] == before
                assert len(before) == 10
                store.delete("c", ids(1))
                store.flush("c")
                assert store.count("c") == 9
            store.upsert("c", changed)
            assert store.count("c") == 20
        with EdgeStore(tmp_path) as store:
            assert store.count("live") == 20

    def test_just_enough_is_enough(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        left(monkeypatch, SPARE_BYTES)
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
            assert store.count("c") == N
        assert SPARE_BYTES == 128 << 20

    def test_a_full_disk_is_dropped_from(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            left(monkeypatch, 1 << 20)
            store.drop("c")
            assert store.collections() == []


class TestOneOwner:
    def test_a_second_process_is_refused_until_the_first_is_killed(
        self, processes: ForkServerContext, tmp_path: Path
    ) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
        ours, theirs = processes.Pipe()
        child = processes.Process(target=hold, args=(tmp_path, theirs), daemon=True)
        child.start()
        assert ours.poll(60)
        assert ours.recv() == ["c"]
        with raises(StoreBusyError, "MODALIGN_QDRANT_URL"):
            EdgeStore(tmp_path)
        child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        with EdgeStore(tmp_path) as store:
            assert store.collections() == ["c"]

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_child_is_refused_instead_of_waiting_for_ever(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            if not (child := os.fork()):
                try:
                    store.count("c")
                except StoreBusyError as error:
                    os._exit(7 if "forked" in str(error) else 8)
                os._exit(9)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert store.count("c") == 0

    def test_a_second_opening_in_one_process_is_refused(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            with pytest.raises(StoreBusyError):
                EdgeStore(tmp_path)
        EdgeStore(tmp_path).close()

    def test_a_closed_store_does_not_open_collections_again(self, tmp_path: Path) -> None:
        store = EdgeStore(tmp_path)
        store.create("c", LAYOUT)
        store.close()
        store.close()
        with pytest.raises(StoreError, match="closed"):
            store.count("c")
